//! conmon's packets: one byte for the stream, and output.

use std::io;
use std::os::fd::BorrowedFd;

use super::{PACKET, QUANTUM};
use crate::log::file::LogFile;
use crate::log::history::{self, Chunk, Place, Read};
use crate::stdio::Turn;
use crate::stream::Stream;
use crate::sys::{self, PACKETS_MAX};

/// From the log; the second value says that the client has all there is.
pub(super) fn serve_log(socket: BorrowedFd<'_>, log: &LogFile, place: &mut Place, buffer: &mut [u8]) -> (Turn, bool) {
    let mut done = 0;
    while done < QUANTUM {
        match history::read(log, place, [true; 2], buffer, PACKET) {
            Read::End => return (Turn::Wait, true),
            // This protocol cannot say what is missing.
            Read::Gap { .. } => return (Turn::Closed, false),
            Read::Chunks(chunks, next) => match send_chunks(socket, &chunks, buffer) {
                Err(_) => return (Turn::Closed, false),
                Ok(sent) => {
                    let all = chunks.last().map_or(0, |chunk| chunk.end);
                    if sent < all {
                        place.advance(&chunks, sent);
                        return (Turn::Wait, false);
                    }
                    *place = next;
                    done += all.max(1);
                }
            },
        }
    }
    (Turn::Again, false)
}

/// From memory; the second value says that the client has all there is.
pub(super) fn serve_pending(socket: BorrowedFd<'_>, pending: &mut [Vec<u8>; 2]) -> (Turn, bool) {
    for stream in Stream::ALL {
        let queue = &mut pending[stream.index()];
        match send(socket, stream, queue) {
            Ok(sent) if sent == queue.len() => *queue = Vec::new(),
            Ok(sent) => {
                queue.drain(..sent);
                return (Turn::Wait, false);
            }
            Err(_) => return (Turn::Closed, false),
        }
    }
    (Turn::Wait, true)
}

/// Sends as much of `bytes` as the socket takes, in packets.
pub(super) fn send(socket: BorrowedFd<'_>, stream: Stream, bytes: &[u8]) -> io::Result<usize> {
    let mut sent = 0;
    while sent < bytes.len() {
        let mut parts: [&[u8]; PACKETS_MAX] = [&[]; PACKETS_MAX];
        let mut count = 0;
        for (slot, part) in parts.iter_mut().zip(bytes[sent..].chunks(PACKET)) {
            *slot = part;
            count += 1;
        }
        let taken = send_batch(socket, stream, &parts[..count])?;
        sent += parts[..taken].iter().map(|part| part.len()).sum::<usize>();
        if taken < count {
            break;
        }
    }
    Ok(sent)
}

/// Sends chunks in order; returns how many bytes of payload were taken.
fn send_chunks(socket: BorrowedFd<'_>, chunks: &[Chunk], buffer: &[u8]) -> io::Result<usize> {
    let mut sent = 0;
    for run in chunks.chunk_by(|a, b| a.stream == b.stream) {
        for batch in run.chunks(PACKETS_MAX) {
            let mut parts: [&[u8]; PACKETS_MAX] = [&[]; PACKETS_MAX];
            for (slot, chunk) in parts.iter_mut().zip(batch) {
                *slot = &buffer[chunk.start..chunk.end];
            }
            let taken = send_batch(socket, batch[0].stream, &parts[..batch.len()])?;
            sent += parts[..taken].iter().map(|part| part.len()).sum::<usize>();
            if taken < batch.len() {
                return Ok(sent);
            }
        }
    }
    Ok(sent)
}

/// A full socket takes no packet; any other error means that the client is gone.
fn send_batch(socket: BorrowedFd<'_>, stream: Stream, parts: &[&[u8]]) -> io::Result<usize> {
    match sys::send_packets(socket, stream.packet_byte(), parts) {
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(0),
        // No memory for a socket buffer now: as good as full.
        Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(0),
        answer => answer,
    }
}
