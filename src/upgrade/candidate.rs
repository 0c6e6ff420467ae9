//! The program that is to take over: found, opened once, asked, executed.

use std::ffi::CString;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, pipe2, read};

use super::{ACCEPTED, number, words};
use crate::parent::set_nonblocking;
use crate::runtime::Complaint;
use crate::sys::{self, Spawn};

/// An open program.
#[derive(Debug)]
pub struct Candidate {
    file: OwnedFd,
}

/// Why a candidate may not take over.
#[derive(Debug)]
pub enum Refused {
    /// It could not be run.
    Start(io::Error),
    /// How it ended, and the end of what it said.
    Ended(String, String),
    /// It did not answer within [`PATIENCE`].
    Silent,
}

/// How long the check may take; the loop stands still meanwhile, and pipes and sockets hold what comes.
const PATIENCE: Duration = Duration::from_secs(2);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::Start(error) => write!(f, "failed to run it: {error}"),
            Refused::Ended(how, said) => write!(f, "it {how}: {said}"),
            Refused::Silent => write!(f, "no answer within {} s", PATIENCE.as_secs()),
        }
    }
}

/// Where this program was started from; what lies there now may be a newer one.
pub fn default_path() -> io::Result<PathBuf> {
    let typed = std::env::args_os().next().map(PathBuf::from);
    if let Some(path) = typed.filter(|path| path.is_absolute() && path.exists()) {
        return Ok(path);
    }
    let link = std::fs::read_link("/proc/self/exe")?.into_os_string().into_vec();
    let path = link.strip_suffix(b" (deleted)").unwrap_or(&link);
    Ok(PathBuf::from(std::ffi::OsStr::from_bytes(path)))
}

impl Candidate {
    /// Opens a regular file, without waiting for anything and without needing to read it.
    pub fn open(path: &Path) -> io::Result<Candidate> {
        let file = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
        let kind = SFlag::from_bits_truncate(fstat(&file)?.st_mode & SFlag::S_IFMT.bits());
        if kind != SFlag::S_IFREG {
            return Err(io::Error::other("it is no regular file"));
        }
        Ok(Candidate { file })
    }

    /// What executes the file itself, whatever has its name by now. (A script cannot be executed like this: its
    /// interpreter does not get the descriptor.)
    fn name(&self) -> io::Result<CString> {
        sys::c_string(format!("/proc/self/fd/{}", self.file.as_raw_fd()).as_ref())
    }

    /// Asks the program whether it can go on with this state.
    #[inline(never)]
    pub fn check(&self, memory: &File, mask: &libc::sigset_t) -> Result<(), Refused> {
        let (answer, pid) = self.ask(memory, mask).map_err(Refused::Start)?;
        let mut said = Complaint::default();
        let in_time = wait(&answer, pid, &mut said).map_err(Refused::Start)?;
        if !in_time {
            return Err(Refused::Silent);
        }
        let text = String::from_utf8_lossy(said.bytes()).trim_end().to_owned();
        let accepted = text.lines().last() == Some(ACCEPTED);
        // It has ended, so this does not wait; and it is ours to reap, not the loop's.
        match waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, 0)) if accepted => Ok(()),
            Ok(WaitStatus::Exited(_, code)) => Err(Refused::Ended(format!("ended with status {code}"), text)),
            Ok(WaitStatus::Signaled(_, signal, _)) => Err(Refused::Ended(format!("was killed by {signal}"), text)),
            other => Err(Refused::Ended(format!("ended: {other:?}"), text)),
        }
    }

    fn ask(&self, memory: &File, mask: &libc::sigset_t) -> io::Result<(OwnedFd, i32)> {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
        set_nonblocking(reader.as_fd())?;
        let null = File::open("/dev/null")?;
        let mut argv = words(["--check-state", &number(memory)])?;
        // The first word is what is executed.
        argv.splice(..1.min(argv.len()), [self.name()?]);
        let pid = sys::spawn(&Spawn {
            argv: &argv,
            env: None,
            stdio: [Some(null.as_fd()), Some(writer.as_fd()), Some(writer.as_fd())],
            open_up: [false; 3],
            keep: None,
            oom_score_adj: None,
            dies_with_us: true,
            own_listen_pid: false,
            close_rest: false,
            mask,
        })?;
        Ok((reader, pid))
    }

    /// Becomes the program; returns only why not.
    #[inline(never)]
    pub fn execute(&self, memory: &File) -> io::Error {
        let ready = words(["--resume", &number(memory)]).and_then(|argv| Ok((self.name()?, argv)));
        match ready {
            Ok((name, argv)) => sys::execute(&name, &argv),
            Err(error) => error,
        }
    }
}

/// Waits for the program's end and collects what it says; false if it did not end in time, and is killed.
fn wait(answer: &OwnedFd, pid: i32, said: &mut Complaint) -> io::Result<bool> {
    let pidfd = sys::pidfd_open(pid)?;
    let deadline = Instant::now() + PATIENCE;
    let mut open = true;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let _ = sys::pidfd_signal(pidfd.as_fd(), libc::SIGKILL);
            // At most so long, should the kernel hold it; the loop reaps it then as any other child.
            let _ = poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::from(500_u16));
            sys::reap(pid);
            return Ok(false);
        }
        let mut polled =
            [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN), PollFd::new(answer.as_fd(), PollFlags::POLLIN)];
        let polled = if open { &mut polled[..] } else { &mut polled[..1] };
        match poll(polled, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ended = polled[0].any().unwrap_or(false);
        open &= collect(answer, said);
        if ended {
            return Ok(true);
        }
    }
}

/// Reads what is there; false at the end.
fn collect(answer: &OwnedFd, said: &mut Complaint) -> bool {
    let mut buffer = [0; 1024];
    // A flood is looked at in pieces, so that the deadline holds.
    for _ in 0..64 {
        match read(answer, &mut buffer) {
            Ok(0) => return false,
            Ok(count) => said.add(&buffer[..count]),
            Err(Errno::EINTR) => {}
            Err(_) => break,
        }
    }
    true
}
