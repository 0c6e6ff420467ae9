//! Attach frames, second half: a client that fell behind is served from the log, across rotations, in packets.
//! It gets every byte once and in order, or is told that the log is gone; never a hole.
#![no_main]

use std::fs;

use conward::log::file::{LogFile, Position};
use conward::log::history::{Cursor, Window, window};
use conward::log::k8s::{HEADER, K8sFile};
use conward::log::stamp::Stamper;
use conward::options::LogPolicy;
use conward::stream::Stream;
use conward_fuzz::Dice;
use libfuzzer_sys::fuzz_target;

/// Rotated files that a log holds for those behind; more rotations than that may cost a client its place.
const ROTATIONS_KEPT: u64 = 16;

struct Client {
    cursor: Cursor,
    /// What it must get, and what it got.
    due: [Vec<u8>; 2],
    got: [Vec<u8>; 2],
    gone: bool,
}

impl Client {
    fn new(at: Position, skip: usize) -> Client {
        Client { cursor: Cursor { at, skip }, due: Default::default(), got: Default::default(), gone: false }
    }

    /// Reads one window and takes up to `appetite` pieces of it; true if there may be more.
    fn read(&mut self, log: &LogFile, buffer: &mut [u8], piece_max: usize, appetite: usize) -> bool {
        if self.gone {
            return false;
        }
        match window(log, self.cursor, None, buffer, piece_max) {
            Window::End => false,
            Window::Gone => {
                assert!(log.end().generation > self.cursor.at.generation + ROTATIONS_KEPT, "lost its place");
                self.gone = true;
                false
            }
            Window::Pieces(pieces, next) => {
                assert!(next.at > self.cursor.at, "the cursor moves on");
                for piece in pieces.iter().take(appetite) {
                    assert!(piece.start < piece.end && piece.end - piece.start <= piece_max);
                    self.got[piece.stream.index()].extend_from_slice(&buffer[piece.start..piece.end]);
                    // As an attach client whose socket is full after this piece.
                    self.cursor.skip += piece.end - piece.start;
                }
                if appetite >= pieces.len() {
                    self.cursor = next;
                }
                true
            }
        }
    }

    fn check(&self, all: bool) {
        for (due, got) in self.due.iter().zip(&self.got) {
            assert!(due.starts_with(got), "due {due:?}, got {got:?}");
            assert!(!all || self.gone || due.len() == got.len(), "due {due:?}, got only {got:?}");
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let dir = tempfile::tempdir().expect("scratch directory");
    let path = dir.path().join("log");
    let mut dice = Dice(data);
    let shape = dice.byte();
    let line_max = 1 + dice.below(64);
    let piece_max = 1 + dice.below(32);
    let policy = LogPolicy {
        size_max: (shape & 1 != 0).then(|| 1 + dice.below(256) as u64),
        global_size_max: None,
        rotate: shape & 2 != 0,
        max_files: 1 + u32::from(shape >> 6),
        allowlist: Vec::new(),
        sync: false,
        line_max,
        utc: true,
        file_mode: 0o640,
    };
    // What was in the file before is not ours, but must not disturb.
    if shape & 4 != 0 {
        let count = dice.below(64);
        fs::write(&path, dice.take(count)).expect("scratch file");
    }
    let mut file = LogFile::open(&path, &policy, u64::MAX).expect("scratch log");
    file.hold = true;
    let mut log = K8sFile::new(file, Stamper::new(true), line_max);
    let mut out = vec![0; HEADER + line_max + 1 + usize::from(shape >> 4)];
    let mut buffer = vec![0; HEADER + line_max + 1 + dice.below(256)];

    // The first client is there from the beginning, the second begins somewhere in the chunk that it names.
    let mut clients = vec![Client::new(log.file.end(), 0)];
    let late = dice.below(16);
    for (number, (stream, chunk)) in dice.chunks().into_iter().enumerate() {
        let cut = usize::from(chunk[0]);
        let (begin, whole) = log.write(&mut out, stream, chunk);
        assert!(whole, "nothing was lost");
        for client in &mut clients {
            client.due[stream.index()].extend_from_slice(chunk);
        }
        if number == late {
            let skip = cut % (chunk.len() + 1);
            clients.push(Client::new(begin, skip));
            clients[1].due[stream.index()].extend_from_slice(&chunk[skip..]);
        }
        if cut & 0x41 == 0x41 {
            let _ = log.file.reopen();
        }
        if cut & 0x22 == 0x22 {
            for client in &mut clients {
                client.read(&log.file, &mut buffer, piece_max, cut >> 6);
                client.check(false);
            }
        }
        let oldest = clients.iter().filter(|client| !client.gone).map(|client| client.cursor.at.generation).min();
        log.file.release_before(oldest.unwrap_or(u64::MAX));
    }
    for client in &mut clients {
        while client.read(&log.file, &mut buffer, piece_max, usize::MAX) {}
        client.check(true);
    }
    assert_eq!(log.file.lost(), [0; Stream::ALL.len()]);

    // Whatever a file holds that was there before us: reading it from its beginning ends, within bounds.
    let Ok(foreign) = LogFile::open(&path, &policy, 0) else { return };
    let mut cursor = Cursor { at: Position { generation: 0, offset: 0 }, skip: usize::from(shape) };
    while let Window::Pieces(pieces, next) = window(&foreign, cursor, None, &mut buffer, piece_max) {
        assert!(next.at > cursor.at && pieces.iter().all(|piece| piece.end <= buffer.len()));
        cursor = next;
    }
});
