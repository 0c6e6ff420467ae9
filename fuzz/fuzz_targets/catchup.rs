//! A reader of the log's history, across rotations, removed files and caps, in packets: it gets every byte once and in
//! order, or a gap of the right length. Files that others write in give gaps, never an endless search.
#![no_main]

use std::fs;
use std::path::Path;

use conward::log::file::LogFile;
use conward::log::history::{Ask, Place, Read, Search, read};
use conward::log::k8s::{HEADER, K8sFile};
use conward::log::stamp::Stamper;
use conward::options::LogPolicy;
use conward::stream::Stream;
use conward_fuzz::Dice;
use libfuzzer_sys::fuzz_target;

struct Client {
    place: Place,
    wanted: [bool; 2],
}

impl Client {
    /// Reads one buffer and takes up to `appetite` bytes of it; true if there may be more. Without `said`, what it
    /// reads need not be right.
    fn read(
        &mut self,
        log: &LogFile,
        said: Option<&[Vec<u8>; 2]>,
        buffer: &mut [u8],
        piece_max: usize,
        appetite: usize,
    ) -> bool {
        let mut due = self.place.next();
        match read(log, &self.place, self.wanted, buffer, piece_max) {
            Read::End => {
                assert!((0..2).all(|index| !self.wanted[index] || due[index] == log.end().offsets[index]));
                return false;
            }
            Read::Gap { stream, offset, lost, next } => {
                let index = stream.index();
                assert!(self.wanted[index] && offset == due[index] && lost > 0);
                assert_eq!(next.next()[index], offset + lost);
                self.place = next;
            }
            Read::Chunks(chunks, next) => {
                assert!(next.mark.at > self.place.mark.at, "the place moves on");
                for chunk in &chunks {
                    let (index, bytes) = (chunk.stream.index(), &buffer[chunk.start..chunk.end]);
                    assert!(self.wanted[index] && !bytes.is_empty() && bytes.len() <= piece_max);
                    assert_eq!(chunk.offset, due[index], "a hole");
                    if let Some(said) = said {
                        assert!(said[index][chunk.offset as usize..].starts_with(bytes));
                    }
                    due[index] += bytes.len() as u64;
                }
                if chunks.last().is_none_or(|last| last.end <= appetite) {
                    self.place = next;
                } else {
                    // As an attach client whose socket is full after so much.
                    self.place.advance(&chunks, appetite);
                }
            }
        }
        true
    }
}

fn find(log: &LogFile, ask: Ask, wanted: [bool; 2], buffer: &mut [u8]) -> Place {
    let mut search = Search::new(log, ask, wanted);
    loop {
        if let Some(place) = search.step(log, buffer) {
            return place;
        }
    }
}

fn ask(dice: &mut Dice<'_>) -> (Ask, [bool; 2]) {
    let (kind, count) = (dice.byte(), dice.byte().into());
    let ask = match kind & 3 {
        0 => Ask::All,
        1 => Ask::Bytes(count),
        2 => Ask::Lines(count),
        _ => Ask::From([count, dice.byte().into()]),
    };
    (ask, [kind & 4 == 0, kind & 8 == 0])
}

/// Everything from `place` on: so many bytes and gaps as there must be.
fn read_all(log: &LogFile, mut client: Client, said: Option<&[Vec<u8>; 2]>, buffer: &mut [u8], piece_max: usize) {
    while client.read(log, said, buffer, piece_max, usize::MAX) {}
}

fn change(path: &Path, dice: &mut Dice<'_>) {
    let Ok(mut bytes) = fs::read(path) else { return };
    match dice.byte() & 3 {
        0 => bytes.truncate(dice.byte().into()),
        1 => bytes.extend_from_slice(dice.take(16)),
        _ => {
            for _ in 0..dice.below(8) {
                let (at, byte) = (usize::from(dice.byte()) << 1, dice.byte());
                if let Some(place) = bytes.get_mut(at) {
                    *place = byte;
                }
            }
        }
    }
    fs::write(path, bytes).expect("scratch file");
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
        global_size_max: (shape & 16 != 0).then(|| dice.below(256) as u64 * 16),
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
    let mut file = LogFile::open(&path, &policy, dice.below(256) as u64).expect("scratch log");
    file.hold = shape & 8 != 0;
    let mut log = K8sFile::new(file, Stamper::new(true), line_max);
    let mut out = vec![0; HEADER + line_max + 1 + usize::from(shape >> 4)];
    let mut buffer = vec![0; HEADER + line_max + 1 + dice.below(256)];
    let asks = [ask(&mut dice), ask(&mut dice)];
    let changes = dice.take(8);

    let mut said: [Vec<u8>; 2] = Default::default();
    // The first client is there from the beginning, the others come as they ask.
    let mut clients = vec![Client { place: Place::START, wanted: [true; 2] }];
    for (number, (stream, chunk)) in dice.chunks().into_iter().enumerate() {
        let cut = usize::from(chunk[0]);
        let begin = log.file.end();
        said[stream.index()].extend_from_slice(chunk);
        assert_eq!(log.write(&mut out, stream, chunk).0, begin);
        if let Some((ask, wanted)) = asks.get(number / 4).filter(|_| number % 4 == 3) {
            clients.push(Client { place: find(&log.file, *ask, *wanted, &mut buffer), wanted: *wanted });
        }
        match cut & 0x43 {
            0x41 => drop(log.file.reopen()),
            0x42 => drop(fs::remove_file(dir.path().join("log.1"))),
            0x43 => {
                let _ = fs::rename(&path, dir.path().join(format!("log.{}", 100 + number)));
                let _ = log.file.reopen();
            }
            _ => {}
        }
        if cut & 0x22 == 0x22 {
            for client in &mut clients {
                client.read(&log.file, Some(&said), &mut buffer, piece_max, cut);
            }
        }
        let oldest = clients.iter().map(|client| client.place.mark.at.generation).min();
        log.file.release_before(oldest.unwrap_or(u64::MAX));
    }
    let [stdout, stderr] = &said;
    assert_eq!(log.file.end().offsets, [stdout, stderr].map(|bytes| bytes.len() as u64));
    for client in clients {
        read_all(&log.file, client, Some(&said), &mut buffer, piece_max);
    }
    for (ask, wanted) in asks {
        let place = find(&log.file, ask, wanted, &mut buffer);
        read_all(&log.file, Client { place, wanted }, Some(&said), &mut buffer, piece_max);
    }
    assert!(log.file.lost() == [0; Stream::ALL.len()] || policy.global_size_max.is_some());

    // Whatever others do to the files: reading and searching end, within bounds.
    let mut dice = Dice(changes);
    change(&path, &mut dice);
    change(&dir.path().join("log.1"), &mut dice);
    for (ask, wanted) in asks {
        let place = find(&log.file, ask, wanted, &mut buffer);
        read_all(&log.file, Client { place, wanted }, None, &mut buffer, piece_max);
    }
});
