//! One monitor with one container, from its start to the last trace of it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::FileExt,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use conward::sys;
use nix::{
    fcntl::{FcntlArg, FdFlag, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        inotify::{AddWatchFlags, InitFlags, Inotify},
        stat::Mode,
        wait::waitpid,
    },
    unistd::{Pid, mkfifo, pipe2},
};

use super::{
    processes::Family,
    runtime::{Role, STAMPS, Stamp, now},
};

/// How long anything may take before it counts as a failure.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub type Outcome<T> = Result<T, String>;

/// One of the two programs.
#[derive(Debug)]
pub struct Monitor {
    pub name: &'static str,
    pub path: PathBuf,
}

/// What a container is started with, beside its role.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plan {
    pub terminal: bool,
    pub stdin: bool,
    /// The log is written to the disk before the exit file appears: what both do unless told otherwise.
    pub sync_log: bool,
}

#[derive(Debug)]
pub struct Container {
    pub dir: Place,
    /// Nanoseconds from the start of the monitor to the container's pid on the sync pipe.
    pub start: u64,
    /// Nanoseconds from the start of the monitor to the first instruction of the container.
    pub begin: u64,
    pub monitor: i32,
    pub pid: i32,
    monitor_pidfd: OwnedFd,
    container_pidfd: OwnedFd,
    exits: Inotify,
}

impl Container {
    pub fn start(work: &Path, monitor: &Monitor, role: &Role, plan: Plan) -> Outcome<Container> {
        let place = Place::new(work, role).map_err(|error| format!("cannot lay out a bundle: {error}"))?;
        Container::launch(place, monitor, plan)
            .map_err(|error| format!("{} does not start a container: {error}", monitor.name))
    }

    fn launch(dir: Place, monitor: &Monitor, plan: Plan) -> io::Result<Container> {
        let exits = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        exits.add_watch(&dir.exits, AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_CLOSE_WRITE)?;
        let mut command = dir.command(monitor)?;
        command.arg("-b").arg(&dir.bundle).arg("-P").arg(dir.monitor_pidfile());
        command.arg("-l").arg(format!("k8s-file:{}", dir.log.display()));
        command.arg("--exit-dir").arg(&dir.exits);
        let flags = [
            (plan.terminal, &["-t"][..]),
            (plan.stdin, &["-i", "--leave-stdin-open"]),
            (!plan.sync_log, &["--no-sync-log"]),
        ];
        for (_, words) in flags.iter().filter(|(wanted, _)| *wanted) {
            command.args(*words);
        }
        let mut sync = Reports::start(&mut command)?;
        let (pid, began) = (sync.next()?, sync.began);
        let start = sync.latest - began;
        if pid <= 0 {
            return Err(io::Error::other(format!("the report says {pid}")));
        }
        let monitor = dir.monitor()?;
        let (monitor_pidfd, container_pidfd) = (sys::pidfd_open(monitor)?, sys::pidfd_open(pid)?);
        let mut container = Container { dir, start, begin: 0, monitor, pid, monitor_pidfd, container_pidfd, exits };
        container.begin = container.dir.wait_for_stamp(Stamp::Begin)? - began;
        Ok(container)
    }

    /// The processes that make up the monitor.
    pub fn processes(&self, family: &Family) -> Vec<i32> {
        family.tree(self.monitor, self.pid)
    }

    /// Waits until the exit file is there and complete, and answers when that was.
    pub fn wait_exit_file(&self, limit: Duration) -> Option<u64> {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            if self.exit_file_appears(Duration::from_millis(20)) {
                return Some(now());
            }
        }
        None
    }

    /// True as soon as the exit file is there, false if it is not there after `limit`.
    pub fn exit_file_appears(&self, limit: Duration) -> bool {
        let there = || fs::metadata(self.dir.exits.join(&self.dir.cid)).is_ok_and(|file| file.len() > 0);
        if there() {
            return true;
        }
        if readable(self.exits.as_fd(), limit) {
            // Which file it was is seen by looking.
            let _ = self.exits.read_events();
        }
        there()
    }

    /// Waits until the monitor has ended; nobody has reaped it then.
    pub fn wait_gone(&self, limit: Duration) -> bool {
        readable(self.monitor_pidfd.as_fd(), limit)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // Either may have ended by itself.
        let _ = sys::pidfd_signal(self.container_pidfd.as_fd(), 9);
        if !self.wait_gone(PATIENCE / 4) {
            let _ = sys::pidfd_signal(self.monitor_pidfd.as_fd(), 9);
        }
        // Monitors are adopted, see `suite::work`.
        let _ = waitpid(Pid::from_raw(self.monitor), None);
    }
}

/// The directory of one container, removed in the end.
#[derive(Debug)]
pub struct Place {
    pub cid: String,
    pub bundle: PathBuf,
    pub log: PathBuf,
    exits: PathBuf,
    dir: PathBuf,
    stamps: File,
    go: File,
}

impl Place {
    pub fn new(work: &Path, role: &Role) -> io::Result<Place> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        // Long enough for a container ID, short enough for a socket path.
        let cid = format!("bench{:09}", COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = work.join(&cid);
        let (bundle, exits) = (dir.join("b"), dir.join("exits"));
        let io = bundle.join("io");
        fs::create_dir_all(&io)?;
        fs::create_dir(&exits)?;
        fs::write(bundle.join("role"), role.text())?;
        mkfifo(&io.join("go"), Mode::from_bits_truncate(0o600))?;
        let open =
            |name: &str| OpenOptions::new().read(true).write(true).create(true).truncate(false).open(io.join(name));
        let (stamps, go) = (open("stamps")?, open("go")?);
        stamps.set_len(STAMPS)?;
        Ok(Place { log: dir.join("log"), cid, bundle, exits, dir, stamps, go })
    }

    /// The command line that all measurements have in common.
    pub fn command(&self, monitor: &Monitor) -> io::Result<Command> {
        let mut command = Command::new(&monitor.path);
        command.args(["--api-version", "1", "-c", &self.cid, "-u", &self.cid, "-n", &self.cid]);
        command.arg("-r").arg(std::env::current_exe()?).arg("-p").arg(self.dir.join("pid"));
        command.args(["--full-attach", "--log-level", "error", "--socket-dir-path"]).arg(&self.dir);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(command)
    }

    /// Lets the container do what it waits with.
    pub fn go(&self) -> Outcome<()> {
        (&self.go).write_all(b"g").map_err(|error| format!("cannot signal the container: {error}"))
    }

    /// When the container did this, 0 if it has not done it.
    pub fn stamp(&self, stamp: Stamp) -> u64 {
        let mut bytes = [0; 8];
        self.stamps.read_exact_at(&mut bytes, stamp.offset()).map_or(0, |()| u64::from_le_bytes(bytes))
    }

    fn wait_for_stamp(&self, stamp: Stamp) -> io::Result<u64> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            match self.stamp(stamp) {
                0 => pause(1),
                time => return Ok(time),
            }
        }
        Err(io::Error::other("the container does not begin"))
    }

    pub fn monitor_pidfile(&self) -> PathBuf {
        self.dir.join("monitor")
    }

    fn monitor(&self) -> io::Result<i32> {
        fs::read_to_string(self.monitor_pidfile())?.parse().map_err(io::Error::other)
    }

    /// Waits for the end of the monitor, which is a child of ours since its parent has ended.
    pub fn reap_monitor(&self) -> io::Result<()> {
        waitpid(Pid::from_raw(self.monitor()?), None)?;
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // The whole work directory goes in the end.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// The reports of a monitor on its sync pipe.
#[derive(Debug)]
pub struct Reports {
    pipe: File,
    text: Vec<u8>,
    /// When the monitor was started.
    pub began: u64,
    /// When the latest report came.
    pub latest: u64,
}

impl Reports {
    /// Starts a monitor that may go on at once, and reaps its first process when that ends.
    pub fn start(command: &mut Command) -> io::Result<Reports> {
        let (sync, sync_theirs) = pipe2(OFlag::O_CLOEXEC)?;
        let (start_theirs, start) = pipe2(OFlag::O_CLOEXEC)?;
        for (name, end) in [("_OCI_SYNCPIPE", &sync_theirs), ("_OCI_STARTPIPE", &start_theirs)] {
            fcntl(end, FcntlArg::F_SETFD(FdFlag::empty()))?;
            command.env(name, end.as_raw_fd().to_string());
        }
        File::from(start).write_all(b"\n")?;
        let began = now();
        let mut front = command.spawn()?;
        drop((sync_theirs, start_theirs));
        let mut reports = Reports { pipe: File::from(sync), text: Vec::new(), began, latest: began };
        reports.fill()?;
        front.wait()?;
        Ok(reports)
    }

    /// The number in the next report.
    pub fn next(&mut self) -> io::Result<i32> {
        let end = loop {
            match memchr::memchr(b'\n', &self.text) {
                Some(end) => break end,
                None => self.fill()?,
            }
        };
        let line: Vec<u8> = self.text.drain(..=end).collect();
        let report: serde_json::Value = serde_json::from_slice(&line)?;
        report["data"]
            .as_i64()
            .and_then(|number| i32::try_from(number).ok())
            .ok_or_else(|| io::Error::other(format!("not a report: {}", String::from_utf8_lossy(&line))))
    }

    fn fill(&mut self) -> io::Result<()> {
        if !readable(self.pipe.as_fd(), PATIENCE) {
            return Err(io::Error::other("no report"));
        }
        let mut buffer = [0; 4096];
        let count = self.pipe.read(&mut buffer)?;
        self.latest = now();
        match count {
            0 => Err(io::Error::other("the sync pipe was closed without a report")),
            count => {
                self.text.extend_from_slice(&buffer[..count]);
                Ok(())
            }
        }
    }
}

pub fn readable(fd: BorrowedFd<'_>, limit: Duration) -> bool {
    let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout).is_ok_and(|count| count > 0)
}

pub fn pause(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}
