//! Starting the OCI runtime and learning what it started.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::{pipe2, read};

use crate::options::Options;
use crate::parent::set_nonblocking;
use crate::sys::{self, Spawn};

/// The pipes between us and the container, both ends.
#[derive(Debug, Default)]
pub struct Stdio {
    /// What the runtime gets as 0, 1 and 2; `None` is the caller's own.
    pub theirs: [Option<OwnedFd>; 3],
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
}

impl Stdio {
    /// Real pipes, since a container must be able to open `/dev/stdout`; our ends do not block. With a terminal there is
    /// only a stderr, for what the runtime says.
    pub fn new(terminal: bool, stdin: bool) -> io::Result<Stdio> {
        let mut stdio = Stdio::default();
        if stdin && !terminal {
            let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
            set_nonblocking(writer.as_fd())?;
            stdio.theirs[0] = Some(reader);
            stdio.stdin = Some(writer);
        }
        if !terminal {
            let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
            set_nonblocking(reader.as_fd())?;
            stdio.theirs[1] = Some(writer);
            stdio.stdout = Some(reader);
        }
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
        set_nonblocking(reader.as_fd())?;
        stdio.theirs[2] = Some(writer);
        stdio.stderr = Some(reader);
        Ok(stdio)
    }
}

/// What the runtime is started with besides its own words.
#[derive(Debug)]
pub struct Inherit<'a> {
    pub mask: &'a libc::sigset_t,
    /// A file for the runtime, which finds it below its own `/proc/self/fd`.
    pub file: Option<BorrowedFd<'a>>,
    pub oom_score_adj: Option<&'a CStr>,
    /// `LISTEN_PID` becomes the runtime's own pid.
    pub own_listen_pid: bool,
}

/// Starts the runtime with these words, its own path first; the pid, or why it could not be started.
pub fn start(words: &[OsString], theirs: &[Option<OwnedFd>; 3], inherit: &Inherit<'_>) -> io::Result<i32> {
    crate::trace!("runtime: {}", words.join(" ".as_ref()).to_string_lossy());
    let argv = words.iter().map(|word| sys::c_string(word)).collect::<io::Result<Vec<CString>>>()?;
    sys::spawn(&Spawn {
        argv: &argv,
        env: None,
        stdio: [0, 1, 2].map(|index: usize| theirs[index].as_ref().map(AsFd::as_fd)),
        open_up: [0, 1, 2].map(|index: usize| theirs[index].is_some()),
        keep: inherit.file,
        oom_score_adj: inherit.oom_score_adj,
        dies_with_us: true,
        own_listen_pid: inherit.own_listen_pid,
        close_rest: false,
        mask: inherit.mask,
    })
}

/// Whether LISTEN_PID must become the runtime's pid: when asked for, or when it means this process.
pub fn own_listen_pid(options: &Options, value: Option<&OsStr>) -> io::Result<bool> {
    let Some(value) = value else { return Ok(false) };
    let pid = value.to_str().and_then(|text| text.parse::<u32>().ok()).filter(|pid| *pid > 0);
    let pid = pid.ok_or_else(|| io::Error::other(format!("Invalid LISTEN_PID {:?}", value.to_string_lossy())))?;
    Ok(options.replace_listen_pid || pid == std::process::id())
}

/// The pid in the runtime's pidfile: leading decimal digits, whatever follows. `None` if there is none.
pub fn parse_pid(text: &[u8]) -> Option<i32> {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(&text[..digits]).ok()?.parse().ok().filter(|pid| *pid > 0)
}

/// Reads the pidfile; `Ok(None)` if it has no pid in it, as the file that a caller made beforehand.
pub fn read_pidfile(path: &Path) -> io::Result<Option<i32>> {
    let mut text = Vec::new();
    // A FIFO in its place has nothing to say, and is not waited for.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    file.take(64).read_to_end(&mut text)?;
    Ok(parse_pid(&text))
}

/// The end of what the runtime wrote to stderr: the part that says why.
#[derive(Debug, Default)]
pub struct Complaint(Vec<u8>);

/// Bytes of the runtime's stderr that are kept for an error message.
pub const COMPLAINT_MAX: usize = 4096;

impl Complaint {
    pub fn add(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(&bytes[bytes.len().saturating_sub(COMPLAINT_MAX)..]);
        let over = self.0.len().saturating_sub(COMPLAINT_MAX);
        self.0.drain(..over);
    }

    /// Adds all that can be read now; what the runtime wrote before it ended is in the pipe.
    pub fn collect(&mut self, stderr: BorrowedFd<'_>) {
        let mut buffer = vec![0; 4096];
        // A process that survived the runtime may go on writing: a full pipe's worth is enough.
        for _ in 0..512 {
            match read(stderr, &mut buffer) {
                Ok(0) => break,
                Ok(count) => self.add(&buffer[..count]),
                Err(Errno::EINTR) => {}
                Err(_) => break,
            }
        }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// No more needed.
    pub fn clear(&mut self) {
        self.0 = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pidfiles_begin_with_the_pid() {
        let rows: [(&[u8], Option<i32>); 8] = [
            (b"123", Some(123)),
            (b"123\n", Some(123)),
            (b"12x", Some(12)),
            (b"", None),
            (b"0", None),
            (b"-5", None),
            (b" 5", None),
            (b"99999999999", None),
        ];
        for (text, expected) in rows {
            assert_eq!(parse_pid(text), expected, "{}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn a_complaint_keeps_its_end() {
        let mut complaint = Complaint::default();
        complaint.add(&[b'x'; 10_000]);
        complaint.add(b"the end");
        assert_eq!(complaint.bytes().len(), COMPLAINT_MAX);
        assert!(complaint.bytes().ends_with(b"xxthe end"));
    }
}
