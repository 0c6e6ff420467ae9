//! The log's place fails or moves under load: rotation, a directory removed, a full disk, a file made immutable.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};

use crate::flow::Pattern;
use crate::reading::Reader;
use crate::rig::{LINES, MIB, Steady, patience, scene, size, totals};
use crate::support::journal::{own_mounts, tmpfs};
use crate::support::suite::{Case, Monitor};
use crate::support::{Fail, Outcome, check, same, wait};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("rotate/lines", "7.6", "rename and reopen every 50 ms under full load", |m| rotate(m, LINES)),
        Case::new("rotate/binary", "7.6", "the same with random bytes", |m| rotate(m, Pattern::Binary)),
        Case::new("rotate/one-line", "7.6", "the same within one line", |m| rotate(m, Pattern::Lines(u64::MAX))),
        Case::new("disk/directory-removed", "11 B21", "the log's directory goes and comes back", directory),
        Case::new("disk/full", "11 B20", "a disk that is full again and again", |m| full(m, LINES)),
        Case::new("disk/full-long-lines", "11 B20", "the same with long lines", |m| full(m, Pattern::Lines(30_000))),
        Case::new("disk/full-binary", "11 B20", "the same with random bytes", |m| full(m, Pattern::Binary)),
        Case::new("disk/immutable", "P5", "the log is made immutable for a while", immutable),
    ]
}

/// As kubelet does it. What the pieces hold together is checked while the load goes on.
fn rotate(monitor: &Monitor, pattern: Pattern) -> Outcome {
    // Nothing but the checked pieces stays on the disk, however much that is in the end.
    let script = format!("$W {} 0 \"until:$D/stop\" max:{}; exit 5", pattern.name(), 1_u64 << 42);
    let steady = Steady::start(scene(monitor, &script)?, "log")?;
    let times = size(40, 500);
    let (pieces, queue) = sync_channel::<PathBuf>(32);
    let (reader, total) = std::thread::scope(|scope| {
        let checker = scope.spawn(move || check_pieces(pattern, &queue));
        let total = cut(&steady, times, |piece| pieces.send(piece).is_ok());
        drop(pieces);
        let reader = checker.join().map_err(|_| Fail::from("the reader of the pieces panicked"))??;
        Ok::<_, Fail>((reader, total?))
    })?;
    let mut reader = reader;
    reader.eat(&steady.log)?;
    reader.complete(total)?;
    same("exit.json", totals(&steady.live, 0)?, (total, 0))
}

fn check_pieces(pattern: Pattern, queue: &Receiver<PathBuf>) -> Outcome<Reader> {
    let mut reader = Reader::new(pattern);
    for piece in queue {
        reader.eat(&piece)?;
    }
    Ok(reader)
}

/// Renames the log away and has it reopened so many times; the bytes written in the end.
fn cut(steady: &Steady, times: u64, mut each: impl FnMut(PathBuf) -> bool) -> Outcome<u64> {
    for number in 0..times {
        let next = Instant::now() + Duration::from_millis(50);
        let piece = steady.log.with_extension(number.to_string());
        reopen(steady, &piece)?;
        if !each(piece.clone()) {
            // The reader has seen enough, and says what.
            break;
        }
        pace(steady, &piece)?;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    steady.stop()
}

/// Whoever writes faster than its output can be checked stands still until it is: the disk is not without end.
fn pace(steady: &Steady, last: &Path) -> Outcome {
    let waiting: u64 =
        steady.live.dir.read_dir()?.flatten().filter_map(|file| file.metadata().ok()).map(|m| m.len()).sum();
    if waiting < BACKLOG {
        return Ok(());
    }
    let group = steady.live.container()?;
    killpg(group, Signal::SIGSTOP)?;
    let checked = wait::until("the pieces to be checked", patience(), || Ok((!last.exists()).then_some(())));
    killpg(group, Signal::SIGCONT)?;
    checked
}

/// Bytes of log on the disk at which the container has to wait, about.
const BACKLOG: u64 = 512 << 20;

/// Renames the log to `piece`; when this returns the piece is final.
pub fn reopen(steady: &Steady, piece: &Path) -> Outcome {
    fs::rename(&steady.log, piece)?;
    steady.live.ctl("2 0 0\n")?;
    let log = &steady.log;
    wait::until("the new log", patience(), || Ok(log.exists().then_some(())))
}

fn directory(monitor: &Monitor) -> Outcome {
    let scene = scene(monitor, &Steady::script(LINES))?;
    let (logs, kept) = (scene.dir.join("logs"), scene.dir.join("kept"));
    fs::create_dir(&logs)?;
    let steady = Steady::start(scene, "logs/log")?;
    steady.grows(MIB)?;
    // The second name shows what goes into the file that nobody else sees any more.
    fs::hard_link(&steady.log, &kept)?;
    fs::remove_dir_all(&logs)?;
    for _ in 0..3 {
        steady.live.ctl("2 0 0\n")?;
        let before = fs::metadata(&kept)?.len();
        wait::until("output without a directory", patience(), || {
            Ok((fs::metadata(&kept)?.len() > before + MIB).then_some(()))
        })?;
        steady.alive()?;
    }
    fs::create_dir(&logs)?;
    steady.live.ctl("2 0 0\n")?;
    wait::until("the log to come back", patience(), || Ok(steady.log.exists().then_some(())))?;
    steady.grows(MIB)?;
    let total = steady.stop()?;
    let mut reader = Reader::new(LINES);
    reader.eat(&kept)?;
    reader.eat(&steady.log)?;
    reader.complete(total)?;
    same("exit.json", totals(&steady.live, 0)?, (total, 0))
}

/// Each ballast that goes makes room for a while.
fn full(monitor: &Monitor, pattern: Pattern) -> Outcome {
    const BALLASTS: u64 = 4;
    own_mounts()?;
    let scene = scene(monitor, &Steady::script(pattern))?;
    let disk = scene.dir.join("disk");
    fs::create_dir(&disk)?;
    // Not a multiple of a page away from any record's end.
    tmpfs(&disk.to_string_lossy(), "size=22m")?;
    let ballast = |number: u64| disk.join(format!("ballast{number}"));
    for number in 0..BALLASTS {
        fs::write(ballast(number), vec![0; 4 << 20])?;
    }
    let steady = Steady::start(scene, "disk/log")?;
    for number in 0..BALLASTS {
        lost_more(&steady, &disk)?;
        steady.alive()?;
        let before = steady.size();
        fs::remove_file(ballast(number))?;
        wait::until("the log to go on", patience(), || Ok((steady.size() > before + MIB).then_some(())))?;
    }
    lost_more(&steady, &disk)?;
    let total = steady.stop()?;
    gaps(&steady, pattern, total, 4)
}

/// Waits until the disk is full and stays so while output goes on.
fn lost_more(steady: &Steady, disk: &Path) -> Outcome {
    wait::until("the disk to be full", patience(), || {
        let stat = nix::sys::statvfs::statvfs(disk)?;
        Ok((stat.blocks_available() == 0).then_some(()))
    })?;
    let read = || -> Outcome<u64> {
        let text = fs::read_to_string(format!("/proc/{}/io", steady.pid()?))?;
        let line = text.lines().find_map(|line| line.strip_prefix("rchar: "));
        Ok(line.and_then(|number| number.parse().ok()).unwrap_or(0))
    };
    let before = read()?;
    wait::until("output to go on with a full disk", patience(), || Ok((read()? > before + 4 * MIB).then_some(())))
}

/// Every missing byte is accounted for, where it is missing, and nothing else is.
fn gaps(steady: &Steady, pattern: Pattern, total: u64, notes: u64) -> Outcome {
    let (bytes, lost) = totals(&steady.live, 0)?;
    same("bytes in exit.json", bytes, total)?;
    let mut reader = Reader::new(pattern);
    reader.eat(&steady.log)?;
    check(reader.notes >= notes, format!("{} notes on losses, at least {notes} are due", reader.notes))?;
    // What is lost in the end could not be noted: the disk is still full.
    let end = total - reader.stdout();
    check(lost > 0, "something was lost")?;
    same("bytes lost, in exit.json", lost, reader.gaps[0] + end)
}

fn immutable(monitor: &Monitor) -> Outcome {
    let steady = Steady::start(scene(monitor, &Steady::script(LINES))?, "log")?;
    steady.grows(MIB)?;
    let flag = Immutable::set(&steady.log)?;
    let before = steady.size();
    std::thread::sleep(Duration::from_millis(300));
    let refused = steady.size() == before;
    steady.alive()?;
    // A request in between is no reason to give anything up.
    steady.live.ctl("2 0 0\n")?;
    drop(flag);
    steady.grows(MIB)?;
    let total = steady.stop()?;
    if refused {
        return gaps(&steady, LINES, total, 1);
    }
    let mut reader = Reader::new(LINES);
    reader.eat(&steady.log)?;
    reader.complete(total)?;
    Err(Fail::Skip("this file system lets an open file grow although it is immutable; nothing was lost".to_owned()))
}

/// The flag of chattr(1), taken away in any case: such a file cannot be removed.
struct Immutable(PathBuf);

impl Immutable {
    fn set(path: &Path) -> Outcome<Immutable> {
        match chattr("+i", path) {
            true => Ok(Immutable(path.to_owned())),
            false => Err(Fail::Skip("chattr +i is refused here".to_owned())),
        }
    }
}

impl Drop for Immutable {
    fn drop(&mut self) {
        chattr("-i", &self.0);
    }
}

fn chattr(flag: &str, path: &Path) -> bool {
    let status = Command::new("chattr").arg(flag).arg(path).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}
