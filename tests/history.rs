//! Whatever happens to a log, what is read back is what the container said, at its offsets, or a gap of that length.

// Random numbers are small, and logs fit in memory.
#![allow(clippy::cast_possible_truncation)]

#[allow(dead_code, reason = "records are enough here")]
#[path = "support/cri.rs"]
mod cri;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use conward::log::file::LogFile;
use conward::log::history::{Ask, Place, Read, Search, read};
use conward::log::k8s::{HEADER, K8sFile};
use conward::log::stamp::Stamper;
use conward::options::LogPolicy;
use conward::stream::Stream;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};

/// How a log is rotated, and what else happens to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    /// By size and on request, into `.1`, `.2` and so on.
    Own,
    /// A caller renames and asks to reopen.
    Caller,
    /// As `Own`, and a cap is reached.
    Capped,
    /// As `Own`, and the disk is full now and then.
    Failing,
    /// As `Caller`, and somebody cuts and extends the file.
    Meddled,
    /// As `Meddled`, and somebody overwrites what is in it.
    Mangled,
}

#[test]
fn a_log_with_rotations_and_removed_files_reads_back() {
    check(Life::Own, 400);
    check(Life::Caller, 400);
}

#[test]
fn what_a_cap_keeps_out_is_a_gap() {
    check(Life::Capped, 400);
}

#[test]
fn a_file_that_others_cut_or_extend_gives_gaps() {
    check(Life::Meddled, 400);
    check(Life::Mangled, 400);
}

#[test]
fn what_a_full_disk_does_not_take_is_a_gap() {
    // Every write beyond the limit fails, and is cut where it begins; blocked, the signal that comes with it is
    // harmless. The limit is the whole process's, so this test has one to itself.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGXFSZ);
    signals.thread_block().unwrap();
    if std::env::var_os("FULL_DISK").is_some() {
        return check(Life::Failing, 400);
    }
    let done = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "what_a_full_disk_does_not_take_is_a_gap"])
        .env("FULL_DISK", "1")
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
}

#[test]
fn history_beyond_the_files_remembered_is_one_gap() {
    let dir = tempfile::tempdir().unwrap();
    let mut scene = Scene::new(&dir.path().join("log"), Life::Own, Random(1));
    scene.rotate_after_each(40);
    let read = scene.read(Place::START, [true; 2]);
    // 16 files of the past and the current one, a byte in each.
    assert_eq!(read.gaps, [40 - 17, 0]);
    assert_eq!(read.said[0], [b'x'; 17]);
}

#[test]
fn a_new_file_with_the_inode_of_an_old_one_is_not_taken_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let mut scene = Scene::new(&path, Life::Own, Random(1));
    scene.write(Stream::Stdout, b"old\n");
    scene.rename_and_reopen(0);
    let old = scene.name(0);
    let content = fs::read_to_string(&old).unwrap();
    // The same inode, as long, well-formed, but of another time.
    fs::write(&old, content.replace("old", "new").replacen("20", "19", 1)).unwrap();
    scene.write(Stream::Stdout, b"and on\n");
    let read = scene.read(Place::START, [true; 2]);
    assert_eq!((read.gaps, &read.said[0][..]), ([4, 0], &b"and on\n"[..]));
}

fn check(life: Life, rounds: u64) {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..rounds {
        let at = dir.path().join(round.to_string());
        fs::create_dir(&at).unwrap();
        let seed = 0x9e37_79b9_7f4a_7c15 ^ (round + 1).wrapping_mul(0x2545_f491_4f6c_dd1d);
        let mut scene = Scene::new(&at.join("log"), life, Random(seed));
        eprintln!("{life:?}, round {round}");
        scene.live();
        fs::remove_dir_all(&at).unwrap();
    }
}

/// A log, what was said, and readers that follow it.
struct Scene {
    path: PathBuf,
    life: Life,
    random: Random,
    log: K8sFile,
    line_max: usize,
    out: Vec<u8>,
    said: [Vec<u8>; 2],
    followers: Vec<Follower>,
    renamed: usize,
}

struct Follower {
    place: Place,
    wanted: [bool; 2],
}

/// What a reader got, per stream.
#[derive(Debug, Default)]
struct Got {
    said: [Vec<u8>; 2],
    gaps: [u64; 2],
}

impl Scene {
    fn new(path: &Path, life: Life, mut random: Random) -> Scene {
        let line_max = 1 + random.below(60);
        let own = !matches!(life, Life::Caller | Life::Meddled | Life::Mangled);
        let policy = LogPolicy {
            size_max: (own && random.below(3) > 0).then(|| 100 + random.below(2000) as u64),
            global_size_max: (life == Life::Capped).then(|| random.below(6000) as u64),
            rotate: own,
            max_files: 1 + random.below(8) as u32,
            allowlist: Vec::new(),
            sync: false,
            line_max,
            utc: true,
            file_mode: 0o640,
        };
        if random.below(2) == 0 {
            fs::write(path, "what was there before\n").unwrap();
        }
        let mut file = LogFile::open(path, &policy, random.below(2000) as u64).unwrap();
        file.hold = random.below(3) == 0 && matches!(life, Life::Meddled | Life::Mangled);
        Scene {
            path: path.to_path_buf(),
            life,
            log: K8sFile::new(file, Stamper::new(true), line_max),
            line_max,
            out: vec![0; HEADER + line_max + 1 + random.below(400)],
            random,
            said: Default::default(),
            followers: Vec::new(),
            renamed: 0,
        }
    }

    fn live(&mut self) {
        for _ in 0..self.random.below(60) {
            match self.random.below(12) {
                0 => self.rotate(),
                1 => self.remove(),
                2 => self.limit(),
                3 => self.meddle(),
                4 => self.follow(),
                5 => self.serve(),
                _ => self.speak(),
            }
        }
        set_limit(u64::MAX);
        let end = self.log.file.end().offsets;
        assert_eq!(end, [self.said[0].len() as u64, self.said[1].len() as u64]);
        for index in 0..self.followers.len() {
            while self.serve_one(index, usize::MAX) {}
        }
        self.compare();
    }

    fn speak(&mut self) {
        let (stream, chunk) = self.random.chunk();
        self.write(stream, &chunk);
    }

    fn write(&mut self, stream: Stream, chunk: &[u8]) {
        let begin = self.log.file.end();
        self.said[stream.index()].extend(chunk);
        if let (mark, true) = self.log.write(&mut self.out, stream, chunk) {
            assert_eq!(mark, begin);
        }
    }

    fn rotate(&mut self) {
        match self.life {
            Life::Caller | Life::Meddled | Life::Mangled if self.renamed < 15 => self.rename_and_reopen(self.renamed),
            Life::Caller | Life::Meddled | Life::Mangled => {}
            _ => self.log.file.reopen().unwrap(),
        }
    }

    fn rename_and_reopen(&mut self, number: usize) {
        fs::rename(&self.path, self.name(number)).unwrap();
        self.log.file.reopen().unwrap();
        self.renamed = number + 1;
    }

    fn name(&self, number: usize) -> PathBuf {
        let separator = if self.life == Life::Own && number > 0 { "." } else { ".20260101-" };
        PathBuf::from(format!("{}{separator}{number}", self.path.display()))
    }

    fn rotate_after_each(&mut self, count: usize) {
        for number in 0..count {
            if number > 0 {
                let name = format!("{}.{number:06}", self.path.display());
                fs::rename(&self.path, name).unwrap();
                self.log.file.reopen().unwrap();
            }
            self.write(Stream::Stdout, b"x");
        }
    }

    /// Old files are removed, as by somebody who needs the space.
    fn remove(&mut self) {
        let files = self.files();
        let victim = &files[self.random.below(files.len())];
        if *victim != self.path && self.random.below(2) == 0 {
            fs::remove_file(victim).unwrap();
        }
    }

    /// The disk is full from somewhere near, or not full any more.
    fn limit(&mut self) {
        if self.life == Life::Failing {
            let size = fs::metadata(&self.path).map_or(0, |data| data.len());
            set_limit(if self.random.below(2) == 0 { u64::MAX } else { size + self.random.below(300) as u64 });
        }
    }

    fn meddle(&mut self) {
        if !matches!(self.life, Life::Meddled | Life::Mangled) || self.random.below(3) > 0 {
            return;
        }
        let file = OpenOptions::new().write(true).open(&self.path).unwrap();
        let size = file.metadata().unwrap().len();
        match self.random.below(if self.life == Life::Mangled { 4 } else { 2 }) {
            0 => file.set_len(self.random.below(size as usize + 1) as u64).unwrap(),
            1 => {
                let junk = vec![b"\nx "[self.random.below(3)]; 1 + self.random.below(80)];
                OpenOptions::new().append(true).open(&self.path).unwrap().write_all(&junk).unwrap();
            }
            _ if size > 0 => {
                let mut bytes = fs::read(&self.path).unwrap();
                for _ in 0..=self.random.below(3) {
                    let at = self.random.below(bytes.len());
                    bytes[at] = b"\n FPx"[self.random.below(5)];
                }
                fs::write(&self.path, bytes).unwrap();
            }
            _ => {}
        }
    }

    fn follow(&mut self) {
        let wanted = self.wanted();
        let place = match self.random.below(3) {
            0 => Place::START,
            1 => Place::from(self.log.file.end()),
            _ => {
                let ask = self.ask();
                self.search(ask, wanted)
            }
        };
        self.followers.push(Follower { place, wanted });
    }

    fn serve(&mut self) {
        if !self.followers.is_empty() {
            let index = self.random.below(self.followers.len());
            let appetite = self.random.below(300);
            self.serve_one(index, appetite);
        }
        if self.random.below(4) == 0 {
            self.log.file.release_before(u64::MAX);
        }
    }

    /// Reads once; what it takes must be right, and follow what it had.
    fn serve_one(&mut self, index: usize, appetite: usize) -> bool {
        let Follower { place, wanted } = self.followers[index];
        let mut got = Got::default();
        let more = self.read_once(place, wanted, appetite, &mut got);
        self.followers[index].place = more.unwrap_or(place);
        more.is_some()
    }

    /// Reads a buffer or a gap, and takes up to `appetite` bytes; where to go on, or nothing at the end.
    fn read_once(&mut self, place: Place, wanted: [bool; 2], appetite: usize, got: &mut Got) -> Option<Place> {
        let mut buffer = vec![0; HEADER + self.line_max + 1 + self.random.below(200)];
        let piece_max = 1 + self.random.below(50);
        match read(&self.log.file, &place, wanted, &mut buffer, piece_max) {
            Read::End => {
                let end = self.log.file.end().offsets;
                (0..2).filter(|&index| wanted[index]).for_each(|index| assert_eq!(place.next()[index], end[index]));
                None
            }
            Read::Gap { stream, offset, lost, next } => {
                let index = stream.index();
                assert!(wanted[index] && lost > 0);
                assert_eq!((offset, next.next()[index]), (place.next()[index], offset + lost));
                got.gaps[index] += lost;
                Some(next)
            }
            Read::Chunks(chunks, next) => {
                assert!(next.mark.at > place.mark.at);
                let (mut at, mut left) = (place.next(), appetite);
                for chunk in &chunks {
                    let index = chunk.stream.index();
                    let bytes = &buffer[chunk.start..chunk.end];
                    assert!(wanted[index] && !bytes.is_empty() && bytes.len() <= piece_max);
                    assert_eq!(chunk.offset, at[index], "no hole before a chunk");
                    at[index] += bytes.len() as u64;
                    if self.life != Life::Mangled {
                        let offset = chunk.offset as usize;
                        assert_eq!(bytes, &self.said[index][offset..offset + bytes.len()]);
                    }
                    let taken = bytes.len().min(left);
                    left -= taken;
                    got.said[index].extend(&bytes[..taken]);
                }
                if left > 0 || appetite == usize::MAX {
                    (0..2).filter(|&index| wanted[index]).for_each(|index| assert_eq!(next.next()[index], at[index]));
                    return Some(next);
                }
                let mut place = place;
                place.advance(&chunks, appetite);
                Some(place)
            }
        }
    }

    fn read(&mut self, mut place: Place, wanted: [bool; 2]) -> Got {
        let mut got = Got::default();
        let begin = place.next();
        while let Some(next) = self.read_once(place, wanted, usize::MAX, &mut got) {
            place = next;
        }
        for index in (0..2).filter(|&index| wanted[index]) {
            let end = self.log.file.end().offsets[index];
            assert_eq!(got.said[index].len() as u64 + got.gaps[index], end - begin[index], "all is said or missing");
        }
        got
    }

    fn search(&mut self, ask: Ask, wanted: [bool; 2]) -> Place {
        let mut buffer = vec![0; HEADER + self.line_max + 1 + self.random.below(200)];
        let mut search = Search::new(&self.log.file, ask, wanted);
        loop {
            if let Some(place) = search.step(&self.log.file, &mut buffer) {
                return place;
            }
        }
    }

    fn wanted(&mut self) -> [bool; 2] {
        [[true, true], [true, true], [true, false], [false, true]][self.random.below(4)]
    }

    fn ask(&mut self) -> Ask {
        let count = self.random.below(1 + 2 * (self.said[0].len() + self.said[1].len())) as u64;
        match self.random.below(4) {
            0 => Ask::Bytes(count),
            1 => Ask::Lines(count / 4),
            2 => Ask::From([count, self.random.below(1 + self.said[1].len()) as u64]),
            _ => Ask::All,
        }
    }

    /// Compares answers with what the files say that are there.
    fn compare(&mut self) {
        // What only a reader's descriptor keeps is not in the files that are compared.
        self.log.file.release_before(u64::MAX);
        let exact = !matches!(self.life, Life::Meddled | Life::Mangled);
        let records = if exact { self.records() } else { Vec::new() };
        for _ in 0..8 {
            let (ask, wanted) = (self.ask(), self.wanted());
            let place = self.search(ask, wanted);
            let mut got = self.read(place, wanted);
            let end = self.log.file.end().offsets;
            for index in (0..2).filter(|&index| wanted[index]) {
                match ask {
                    Ask::From(from) => assert_eq!(place.next()[index], from[index].min(end[index])),
                    Ask::All => assert_eq!(place.next()[index], 0),
                    _ => {}
                }
            }
            for index in (0..2).filter(|&index| !wanted[index]) {
                assert!(got.said[index].is_empty() && got.gaps[index] == 0);
                got.said[index].clear();
            }
            if exact && !matches!(ask, Ask::From(_)) {
                assert_eq!(got.said, model(&records, ask, wanted), "{ask:?} {wanted:?}");
            }
        }
    }

    /// The container's records in the files that are there, the oldest first.
    fn records(&self) -> Vec<(usize, Vec<u8>)> {
        let mut all = Vec::new();
        for path in self.files() {
            let bytes = fs::read(&path).unwrap();
            let bytes = bytes.strip_prefix(b"what was there before\n").unwrap_or(&bytes);
            for record in cri::records(bytes).unwrap() {
                if record.content.starts_with(b"conward: lost ") {
                    continue;
                }
                let newline: &[u8] = if record.full { b"\n" } else { b"" };
                all.push((usize::from(record.stream == "stderr"), [record.content, newline].concat()));
            }
        }
        all
    }

    fn files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path.parent().unwrap()).unwrap();
        let mut files: Vec<(i64, PathBuf)> =
            entries.map(|entry| entry.unwrap().path()).map(|path| (age(&path), path)).collect();
        files.sort();
        files.into_iter().map(|(_, path)| path).collect()
    }
}

/// `.1` is younger than `.2`, `.20260101-1` older than `.20260101-2`; the log itself is the youngest.
fn age(path: &Path) -> i64 {
    let suffix = path.extension().and_then(|text| text.to_str()).unwrap_or_default();
    match suffix.strip_prefix("20260101-") {
        Some(number) => number.parse::<i64>().unwrap() - 1_000_000,
        None => -suffix.parse::<i64>().unwrap_or(0),
    }
}

/// What a request gives, said plainly.
fn model(records: &[(usize, Vec<u8>)], ask: Ask, wanted: [bool; 2]) -> [Vec<u8>; 2] {
    let records: Vec<_> = records.iter().filter(|(stream, _)| wanted[*stream]).collect();
    let mut said: [Vec<u8>; 2] = Default::default();
    match ask {
        Ask::Lines(count) => {
            // Lines in the order of their ends; the unfinished ones end with the last record of their stream.
            let last = [0, 1].map(|stream| records.iter().rposition(|record| record.0 == stream));
            let mut open: [Vec<u8>; 2] = Default::default();
            let mut lines = Vec::new();
            for (number, (stream, payload)) in records.iter().enumerate() {
                open[*stream].extend(payload);
                if payload.ends_with(b"\n") || Some(number) == last[*stream] {
                    lines.push((*stream, std::mem::take(&mut open[*stream])));
                }
            }
            let first = lines.len().saturating_sub(count as usize);
            lines[first..].iter().for_each(|(stream, line)| said[*stream].extend(line));
        }
        _ => {
            let bytes: Vec<(usize, u8)> =
                records.iter().flat_map(|(stream, payload)| payload.iter().map(|byte| (*stream, *byte))).collect();
            let count = if let Ask::Bytes(count) = ask { count as usize } else { bytes.len() };
            let first = bytes.len().saturating_sub(count);
            bytes[first..].iter().for_each(|(stream, byte)| said[*stream].push(*byte));
        }
    }
    said
}

/// The size from which no file of this process grows any more.
fn set_limit(size: u64) {
    let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
    setrlimit(Resource::RLIMIT_FSIZE, size.min(hard), hard).unwrap();
}

/// Xorshift (Marsaglia 2003): a fixed sequence, so that a failure comes again.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % end
    }

    /// Random letters, so that no piece looks like another, with ends of lines.
    fn chunk(&mut self) -> (Stream, Vec<u8>) {
        let stream = Stream::ALL[self.below(2)];
        let longest = [60, 60, 60, 1500][self.below(4)];
        let count = 1 + self.below(longest);
        let newlines = 1 + self.below(40);
        let byte = |random: &mut Random| match random.below(newlines) {
            0 => b'\n',
            _ => b'a' + random.below(26) as u8,
        };
        (stream, (0..count).map(|_| byte(self)).collect())
    }
}
