//! The OCI runtime of the benchmark, and the container it makes: a forked process that plays the role that a file names.
//!
//! Container and benchmark meet in the directory `io` beside that file: `go` is a fifo from which the container takes
//! its starting signal, `stamps` holds the times (nanoseconds of the monotonic clock) at which it did things.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, IoSlice, Read, Write},
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::{FileExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::Duration,
};

use conward::sys::{self, Fork};
use nix::{
    fcntl::OFlag,
    pty::{self, PtyMaster},
    sys::socket::{self, AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr},
    time::{ClockId, clock_gettime},
    unistd,
};

use super::payload::Payload;

/// A time in `io/stamps`.
#[derive(Clone, Copy, Debug)]
pub enum Stamp {
    Begin,
    FirstWrite,
    End,
}

pub const STAMPS: u64 = 8 * 8;

impl Stamp {
    pub fn offset(self) -> u64 {
        self as u64 * 8
    }
}

/// What a container does; as text it is one line of a file.
#[derive(Clone, Debug)]
pub enum Role {
    Sleep,
    /// Waits for the signal and ends.
    Exit,
    /// Ends at once.
    Quick,
    /// Sends back what it reads.
    Echo,
    /// Waits for the signal, writes a payload as fast as it can, and ends. The words are those of [`Payload::words`].
    Generate(String),
    /// Waits for the signal, then writes lines of 100 bytes, `rate` a second for `seconds`, and stays.
    Paced {
        rate: u32,
        seconds: u32,
    },
}

impl Role {
    pub fn text(&self) -> String {
        match self {
            Role::Sleep => "sleep".into(),
            Role::Exit => "exit".into(),
            Role::Quick => "quick".into(),
            Role::Echo => "echo".into(),
            Role::Generate(words) => format!("generate {words}"),
            Role::Paced { rate, seconds } => format!("paced {rate} {seconds}"),
        }
    }
}

/// Nanoseconds of the monotonic clock.
pub fn now() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// `create --bundle B --pid-file P [--console-socket S] ID`, `exec --pid-file P --process SPEC ID` and
/// `exec --pid-file P --detach ID ROLE`, with P in the bundle.
pub fn main(words: &[String]) -> ExitCode {
    match run(words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("benchmark runtime: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[String]) -> io::Result<()> {
    let value = |name: &str| words.iter().position(|word| word == name).and_then(|at| words.get(at + 1));
    let word = words.iter().position(|word| word == "--detach").and_then(|at| words.get(at + 2));
    let (role, text) = match (value("--process"), value("--bundle"), value("--pid-file"), word) {
        (Some(spec), ..) => (PathBuf::from(spec), None),
        (None, Some(bundle), ..) => (Path::new(bundle).join("role"), None),
        (None, None, Some(pidfile), Some(word)) => (PathBuf::from(pidfile), Some(word.clone())),
        _ => return Err(io::Error::other("neither --bundle nor --process nor a role")),
    };
    let text = text.map_or_else(|| fs::read_to_string(&role), Ok)?;
    let terminal = value("--console-socket").map(|socket| console(Path::new(socket))).transpose()?;
    match sys::fork()? {
        Fork::Child => {
            let done = contain(&text, role.parent().unwrap_or(Path::new(".")), terminal.as_ref());
            sys::end(i32::from(done.is_err()));
        }
        Fork::Parent(pid) => match value("--pid-file") {
            Some(file) => fs::write(file, pid.to_string()),
            None => Ok(()),
        },
    }
}

/// A pty whose master goes to the monitor; the slave stays open here until the container has it.
fn console(socket: &Path) -> io::Result<File> {
    let master = pty::posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)?;
    pty::grantpt(&master)?;
    pty::unlockpt(&master)?;
    let slave = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlag::O_NOCTTY.bits())
        .open(pty::ptsname_r(&master)?)?;
    send_master(&master, socket)?;
    Ok(slave)
}

fn send_master(master: &PtyMaster, path: &Path) -> io::Result<()> {
    let socket = socket::socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    socket::connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    let fds = [master.as_fd().as_raw_fd()];
    let name = [IoSlice::new(b"/dev/ptmx")];
    let rights = [ControlMessage::ScmRights(&fds)];
    socket::sendmsg::<UnixAddr>(socket.as_raw_fd(), &name, &rights, MsgFlags::empty(), None)?;
    Ok(())
}

/// The container: in the child, until its end.
fn contain(role: &str, bundle: &Path, terminal: Option<&File>) -> io::Result<()> {
    unistd::setsid()?;
    if let Some(slave) = terminal {
        unistd::dup2_stdin(slave)?;
        unistd::dup2_stdout(slave)?;
        unistd::dup2_stderr(slave)?;
    }
    sys::close_from_3();
    let io = Io::open(&bundle.join("io"))?;
    io.stamp(Stamp::Begin)?;
    let words: Vec<&str> = role.split_whitespace().collect();
    match words.as_slice() {
        ["quick"] => Ok(()),
        ["exit"] => {
            io.wait()?;
            io.stamp(Stamp::End)
        }
        ["echo"] => echo(),
        ["generate", lines, total] => {
            let payload = Payload::parse(lines, total).ok_or(io::ErrorKind::InvalidInput)?;
            generate(&io, &payload)
        }
        ["paced", rate, seconds] => match (rate.parse(), seconds.parse()) {
            (Ok(rate), Ok(seconds)) => paced(&io, rate, seconds),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        },
        _ => sleep(),
    }
}

/// The container's side of the directory `io`.
struct Io {
    go: PathBuf,
    stamps: File,
}

impl Io {
    fn open(dir: &Path) -> io::Result<Io> {
        Ok(Io { go: dir.join("go"), stamps: OpenOptions::new().write(true).open(dir.join("stamps"))? })
    }

    fn stamp(&self, stamp: Stamp) -> io::Result<()> {
        self.stamps.write_all_at(&now().to_le_bytes(), stamp.offset())
    }

    /// Sleeps until the benchmark says so.
    fn wait(&self) -> io::Result<()> {
        File::open(&self.go)?.read_exact(&mut [0])
    }
}

fn sleep() -> ! {
    loop {
        thread::sleep(Duration::from_secs(3600));
    }
}

fn echo() -> io::Result<()> {
    let (mut stdin, mut stdout) = (raw(io::stdin())?, raw(io::stdout())?);
    let mut buffer = [0; 64 << 10];
    loop {
        match stdin.read(&mut buffer)? {
            0 => return Ok(()),
            count => stdout.write_all(&buffer[..count])?,
        }
    }
}

fn generate(io: &Io, payload: &Payload) -> io::Result<()> {
    const PIECE: usize = 64 << 10;
    let mut stdout = raw(io::stdout())?;
    io.wait()?;
    io.stamp(Stamp::FirstWrite)?;
    let mut at = 0;
    while at < payload.total {
        let piece = payload.piece(at, PIECE);
        stdout.write_all(piece)?;
        at += piece.len() as u64;
    }
    io.stamp(Stamp::End)
}

fn paced(io: &Io, rate: u32, seconds: u32) -> io::Result<()> {
    let mut stdout = raw(io::stdout())?;
    let mut line = vec![b'p'; 99];
    line.push(b'\n');
    io.wait()?;
    let start = now();
    for number in 0..u64::from(rate) * u64::from(seconds) {
        let due = start + number * 1_000_000_000 / u64::from(rate);
        thread::sleep(Duration::from_nanos(due.saturating_sub(now())));
        stdout.write_all(&line)?;
    }
    sleep()
}

/// A standard stream without the buffer of the standard library.
fn raw(stream: impl AsFd) -> io::Result<File> {
    Ok(File::from(stream.as_fd().try_clone_to_owned()?))
}
