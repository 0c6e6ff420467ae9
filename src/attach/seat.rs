//! A client of the service: what it wants, and how far it has come.

use super::QUANTUM;
use crate::log::file::LogFile;
use crate::log::history::{self, Ask, Place, Read, Search};
use crate::rpc::{CHUNK, Remote};
use crate::stdio::Turn;
use crate::stream::Stream;

/// A request to attach.
#[derive(Debug, PartialEq)]
pub struct Request {
    pub remote: Remote,
    /// It gives input to the container.
    pub types: bool,
    /// Which streams it wants.
    pub wanted: [bool; 2],
    pub history: History,
    /// Rows and columns of its terminal.
    pub size: Option<(u16, u16)>,
    /// The container's stdin stays open when it leaves.
    pub leave_stdin_open: bool,
}

/// What it wants of what was said before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum History {
    None,
    All,
    Bytes(u64),
    Lines(u64),
    /// Everything from these offsets on.
    From([u64; 2]),
}

impl Request {
    /// A search for the beginning of what is wanted, or none if it is what comes from now on.
    pub fn search(&self, log: &LogFile) -> Option<Search> {
        let ask = match self.history {
            History::None => return None,
            History::All => Ask::All,
            History::Bytes(count) => Ask::Bytes(count),
            History::Lines(count) => Ask::Lines(count),
            History::From(offsets) => Ask::From(offsets),
        };
        Some(Search::new(log, ask, self.wanted))
    }
}

/// The place of one client of the service.
#[derive(Debug)]
pub struct Seat {
    pub remote: Remote,
    pub types: bool,
    pub leave_stdin_open: bool,
    wanted: [bool; 2],
    /// Offset of each stream's next byte.
    next: [u64; 2],
    /// Bytes that it was told it cannot have.
    pub lost: u64,
}

impl Seat {
    /// A client that has all up to `offsets`.
    pub fn new(request: Request, offsets: [u64; 2]) -> Seat {
        let Request { remote, types, wanted, leave_stdin_open, .. } = request;
        Seat { remote, types, leave_stdin_open, wanted, next: offsets, lost: 0 }
    }

    pub fn wants(&self, stream: Stream) -> bool {
        self.wanted[stream.index()]
    }

    /// Offset behind the last byte of each stream.
    pub fn offsets(&self) -> [u64; 2] {
        self.next
    }

    /// Sends what there is room for; how many bytes that is.
    pub fn send(&mut self, stream: Stream, offset: u64, bytes: &[u8]) -> usize {
        if !self.wants(stream) {
            return bytes.len();
        }
        let mut sent = 0;
        while sent < bytes.len() && self.remote.has_room() {
            let end = bytes.len().min(sent + CHUNK);
            self.remote.write(stream, offset + sent as u64, &bytes[sent..end]);
            sent = end;
        }
        self.next[stream.index()] = offset + sent as u64;
        sent
    }

    /// From the log; the second value says that it has all there is.
    pub(super) fn serve_log(&mut self, log: &LogFile, place: &mut Place, buffer: &mut [u8]) -> (Turn, bool) {
        let mut done = 0;
        while done < QUANTUM {
            if !self.remote.has_room() {
                return (Turn::Wait, false);
            }
            match history::read(log, place, self.wanted, buffer, CHUNK) {
                Read::End => return (Turn::Wait, true),
                Read::Gap { stream, offset, lost, next } => {
                    self.remote.gap(stream, offset, lost);
                    self.next[stream.index()] = offset + lost;
                    self.lost += lost;
                    *place = next;
                }
                Read::Chunks(chunks, next) => {
                    let mut sent = 0;
                    for chunk in &chunks {
                        let size = chunk.end - chunk.start;
                        let taken = self.send(chunk.stream, chunk.offset, &buffer[chunk.start..chunk.end]);
                        sent += taken;
                        if taken < size {
                            place.advance(&chunks, sent);
                            return (Turn::Wait, false);
                        }
                    }
                    *place = next;
                    done += sent.max(1);
                }
            }
        }
        (Turn::Again, false)
    }

    /// From memory; the second value says that it has all there is.
    pub(super) fn serve_pending(&mut self, pending: &mut [Vec<u8>; 2]) -> (Turn, bool) {
        for stream in Stream::ALL {
            let queue = &mut pending[stream.index()];
            let sent = self.send(stream, self.next[stream.index()], queue);
            if sent < queue.len() {
                queue.drain(..sent);
                return (Turn::Wait, false);
            }
            *queue = Vec::new();
        }
        (Turn::Wait, true)
    }
}
