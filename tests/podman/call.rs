//! Commands that always come to an end, and say everything about themselves when they disappoint.

use std::{
    ffi::OsString,
    fs::File,
    io::{ErrorKind, Read, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};

use super::{
    Stop, Verdict, check,
    output::{Done, shown},
};

/// A command being put together.
pub struct Call {
    program: String,
    args: Vec<String>,
    env: Vec<(String, Option<OsString>)>,
    dir: PathBuf,
    input: Input,
    until: Instant,
    /// The command as a person would type it.
    line: String,
}

/// What the command finds on its stdin.
enum Input {
    Nothing,
    /// These bytes and then the end of the file.
    Bytes(Vec<u8>),
    /// This descriptor, which `third` moves on.
    Given(OwnedFd),
}

impl Call {
    /// `until` is when the case as a whole must be over; no command outlives it.
    pub fn new(program: &str, args: &[&str], until: Instant) -> Self {
        let args: Vec<String> = args.iter().map(ToString::to_string).collect();
        let line = shown(program, &args);
        Self {
            program: program.to_string(),
            args,
            env: Vec::new(),
            dir: "/".into(),
            input: Input::Nothing,
            until,
            line,
        }
    }

    /// Options before all other arguments, which messages do not repeat.
    pub fn silent_options(mut self, options: &[&str]) -> Self {
        self.args.splice(0..0, options.iter().map(ToString::to_string));
        self
    }

    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.env.push((name.to_string(), Some(value.into())));
        self
    }

    pub fn without_env(mut self, name: &str) -> Self {
        self.env.push((name.to_string(), None));
        self
    }

    /// The working directory.
    pub fn at(mut self, dir: &Path) -> Self {
        self.dir = dir.to_path_buf();
        self
    }

    pub fn input(mut self, bytes: &[u8]) -> Self {
        self.input = Input::Bytes(bytes.to_vec());
        self
    }

    /// Puts `fd` at descriptor 3; with `listen` announced as systemd does it, in LISTEN_FDS and LISTEN_PID.
    ///
    /// A shell does both: that needs no unsafe code, and as the shell then becomes the program, its `$$` is right.
    pub fn third(mut self, fd: OwnedFd, listen: bool) -> Self {
        self.input = Input::Given(fd);
        let announce = if listen { "export LISTEN_PID=$$ LISTEN_FDS=1; " } else { "" };
        let script = format!("exec 3<&0 0</dev/null; {announce}exec \"$0\" \"$@\"");
        self.under("/bin/sh", &["-c", &script])
    }

    /// Started by another program, which is given the whole command as its last arguments.
    pub fn under(mut self, program: &str, args: &[&str]) -> Self {
        let inner = std::mem::replace(&mut self.program, program.to_string());
        let args = args.iter().map(ToString::to_string).chain([inner]);
        self.args.splice(0..0, args);
        self
    }

    /// At most so long, counted from now.
    pub fn within(mut self, limit: Duration) -> Self {
        self.until = self.until.min(Instant::now() + limit);
        self
    }

    /// The command without its stdin, stdout and stderr, and how a person would write it.
    pub fn command(&self) -> (Command, String) {
        let mut command = Command::new(&self.program);
        command.args(&self.args).current_dir(&self.dir);
        for (name, value) in &self.env {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        (command, self.line.clone())
    }

    pub fn start(self) -> Verdict<Running> {
        let (mut command, line) = self.command();
        let (stdin, bytes) = match self.input {
            Input::Nothing => (Stdio::null(), None),
            Input::Given(fd) => (Stdio::from(fd), None),
            Input::Bytes(bytes) => (Stdio::piped(), Some(bytes)),
        };
        let began = Instant::now();
        let mut child = (command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn())
            .map_err(|e| Stop::Failed(format!("cannot start `{line}`: {e}")))?;
        if let Some(bytes) = bytes
            && let Some(mut pipe) = child.stdin.take()
        {
            // Not joined: it ends with the reader of the pipe, and that one is killed in time.
            thread::spawn(move || pipe.write_all(&bytes));
        }
        let out = Reader::start(child.stdout.take().map(OwnedFd::from));
        let err = Reader::start(child.stderr.take().map(OwnedFd::from));
        Ok(Running { child, out, err, line, began, until: self.until })
    }

    /// Runs it to its end, whatever that is.
    pub fn run(self) -> Verdict<Done> {
        self.start()?.finish()
    }

    /// Runs it, wants exit code 0, and gives its stdout without the last newline.
    pub fn ok(self) -> Verdict<String> {
        Ok(self.run()?.expect(0)?.text())
    }
}

/// A command at work. Dropped, it is killed.
pub struct Running {
    child: Child,
    out: Reader,
    err: Reader,
    line: String,
    began: Instant,
    until: Instant,
}

impl Running {
    /// Waits until stdout contains `text`, and gives all of it.
    pub fn wait_for(&self, text: &str) -> Verdict<String> {
        loop {
            let seen = String::from_utf8_lossy(&self.out.bytes()).into_owned();
            if seen.contains(text) {
                return Ok(seen);
            }
            let err = String::from_utf8_lossy(&self.err.bytes()).into_owned();
            check!(!self.out.ended(), "`{}` ended without {text:?}; stdout {seen:?}, stderr {err:?}", self.line);
            check!(Instant::now() < self.until, "`{}` did not say {text:?}; {seen:?}, stderr {err:?}", self.line);
            thread::sleep(PAUSE);
        }
    }

    pub fn signal(&self, signal: Signal) -> Verdict {
        let pid = i32::try_from(self.child.id()).map_err(|e| Stop::Failed(format!("pid of `{}`: {e}", self.line)))?;
        signal::kill(Pid::from_raw(pid), signal).map_err(|e| Stop::Failed(format!("{signal} to `{}`: {e}", self.line)))
    }

    /// Waits for its end. Both outputs must end with it: something that still holds them holds up the caller.
    pub fn finish(mut self) -> Verdict<Done> {
        let status = self.status()?;
        let grace = Instant::now() + HELD;
        while !(self.out.ended() && self.err.ended()) {
            check!(Instant::now() < grace, "`{}` ended, but something still holds its stdout or stderr", self.line);
            thread::sleep(PAUSE);
        }
        let line = std::mem::take(&mut self.line);
        Ok(Done { line, status, out: self.out.bytes(), err: self.err.bytes(), took: self.began.elapsed() })
    }

    fn status(&mut self) -> Verdict<ExitStatus> {
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Ok(status),
                Ok(None) => {}
                Err(e) => return Err(Stop::Failed(format!("waiting for `{}`: {e}", self.line))),
            }
            let (out, err) = (self.out.bytes(), self.err.bytes());
            check!(
                Instant::now() < self.until,
                "`{}` did not end in {:.1?}; stdout {:?}, stderr {:?}",
                self.line,
                self.began.elapsed(),
                String::from_utf8_lossy(&out[out.len().saturating_sub(800)..]),
                String::from_utf8_lossy(&err[err.len().saturating_sub(800)..]),
            );
            thread::sleep(PAUSE);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Errors mean that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Collects what comes out of a descriptor, in a thread of its own.
pub struct Reader {
    seen: Arc<Mutex<Vec<u8>>>,
    thread: Option<JoinHandle<()>>,
}

impl Reader {
    pub fn start(fd: Option<OwnedFd>) -> Self {
        let seen = Arc::default();
        let into = Arc::clone(&seen);
        Self { seen, thread: fd.map(|fd| thread::spawn(move || collect(File::from(fd), &into))) }
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

/// Until the end of the file; for a terminal that is EIO, once nobody has its other side open.
fn collect(mut from: File, into: &Mutex<Vec<u8>>) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(n) => into.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&buffer[..n]),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// Between two looks at something.
pub const PAUSE: Duration = Duration::from_millis(5);
/// How long after a command's end its outputs may still be open; only scheduling needs it.
const HELD: Duration = Duration::from_secs(3);
