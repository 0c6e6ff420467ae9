//! Lets a container go that runc has made: what `runc start` does, without the start of a Go program.
//!
//!     conward-start --root ROOT start ID PID
//!
//! The container's first process waits until somebody opens ROOT/ID/exec.fifo, writes a byte to it, and closes it by
//! executing the container's program. While the fifo is there, runc calls the container created; without, running.
//!
//! This is a process of its own, as `runc start` is: a reader that goes away between opening and reading breaks the pipe
//! under the container's process, which dies of it, and the server may be killed at any moment. The words are those of
//! runc, so that a new server waits for it as for runc.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Longer than the server waits: who has no server any more gives up some time.
const PATIENCE: Duration = Duration::from_secs(90);

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let done = match words.as_slice() {
        [option, root, verb, id, pid] if option == "--root" && verb == "start" => {
            let pid = pid.to_str().and_then(|pid| pid.parse().ok()).and_then(Pid::from_raw);
            pid.ok_or(Errno::INVAL).and_then(|pid| start(&PathBuf::from(root).join(id).join("exec.fifo"), pid))
        }
        _ => Err(Errno::INVAL),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let error = io::Error::from(error);
            let _ = io::Write::write_fmt(&mut io::stderr(), format_args!("conward-start: {error}\n"));
            ExitCode::FAILURE
        }
    }
}

/// Opens the fifo and waits until the process has executed the container's program. An error means that nothing was
/// begun, or that the process has died: it is not for this program to say which.
fn start(path: &Path, pid: Pid) -> Result<(), Errno> {
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    let fifo = rustix::fs::open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&fifo)?.st_mode);
    if kind != FileType::Fifo {
        return Err(Errno::INVAL);
    }
    let end = Instant::now() + PATIENCE;
    if !read(&fifo, &process, end)? {
        return Err(Errno::PIPE);
    }
    // From here on it runs, whatever happens.
    fs::remove_file(path).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    while read(&fifo, &process, end)? {}
    Ok(())
}

/// Waits for a byte; answers whether there was one before the end of the pipe or of the process.
fn read(fifo: &OwnedFd, process: &OwnedFd, end: Instant) -> Result<bool, Errno> {
    let mut byte = [0];
    loop {
        let mut both = [PollFd::new(fifo, PollFlags::IN), PollFd::new(process, PollFlags::IN)];
        let left = Timespec::try_from(end.saturating_duration_since(Instant::now())).map_err(|_| Errno::INVAL)?;
        match poll(&mut both, Some(&left)) {
            Ok(0) => return Err(Errno::TIMEDOUT),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        let (told, gone) = (!both[0].revents().is_empty(), !both[1].revents().is_empty());
        if !told && !gone {
            continue;
        }
        // What died may have written before.
        match rustix::io::read(fifo.as_fd(), &mut byte) {
            Ok(count) => return Ok(count > 0),
            Err(Errno::AGAIN | Errno::INTR) if !gone => {}
            Err(Errno::AGAIN) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    fn fifo(dir: &tempfile::TempDir) -> PathBuf {
        let path = dir.path().join("exec.fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        path
    }

    fn shell(script: &str, path: &Path) -> (Child, Pid) {
        let child = Command::new("sh").args(["-c", script, "sh"]).arg(path).spawn().unwrap();
        let pid = Pid::from_child(&child);
        (child, pid)
    }

    #[test]
    fn it_ends_when_the_pipe_does() {
        let dir = tempfile::tempdir().unwrap();
        let path = fifo(&dir);
        // Opens late, and is not done when it has written.
        let (mut child, pid) =
            shell("sleep 0.2; exec 3>$1; printf 0 >&3; sleep 0.2; : >$1.done; exec sleep 60 3>&-", &path);
        assert_eq!(start(&path, pid), Ok(()));
        assert!(!path.exists() && dir.path().join("exec.fifo.done").exists());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn what_wrote_and_died_has_run() {
        let dir = tempfile::tempdir().unwrap();
        let path = fifo(&dir);
        let (mut child, pid) = shell("printf 0 >$1", &path);
        assert_eq!(start(&path, pid), Ok(()));
        assert!(!path.exists());
        child.wait().unwrap();
    }

    #[test]
    fn nothing_is_begun_with_the_dead_or_without_a_fifo() {
        let dir = tempfile::tempdir().unwrap();
        let path = fifo(&dir);
        let (mut child, pid) = shell("exec sleep 0.1", &path);
        assert_eq!(start(&path, pid), Err(Errno::PIPE));
        assert!(path.exists(), "the runtime is to find what there is");
        fs::remove_file(&path).unwrap();
        assert_eq!(start(&path, pid), Err(Errno::NOENT), "it is not reaped yet");
        fs::write(&path, "0").unwrap();
        assert_eq!(start(&path, pid), Err(Errno::INVAL));
        child.wait().unwrap();
        assert_eq!(start(&path, pid), Err(Errno::SRCH));
    }
}
