//! The child that makes a pod's namespaces: this program once more, with [`WORD`] as its first argument.
//!
//! On its stdin it gets the request as a line of JSON. It says `users` when it has a user namespace that needs its ids,
//! and `made HOLDER` when everything is there, `HOLDER` being the pid of the first process of the pid namespace, or 0.
//! Both are answered by an empty line, and it ends. When the server ends before that, so does all that it has made.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Lines, Read, StdinLock, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};
use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::PinRequest;
use crate::error::{Context, Error, Result};
use crate::idmap::UserMaps;
use crate::sys;

/// What tells this program that it is to make namespaces.
pub const WORD: &str = "__namespaces";

/// The child, as the server sees it.
#[derive(Debug)]
pub(super) struct Maker {
    child: Child,
    stdin: Option<ChildStdin>,
    said: Lines<BufReader<ChildStdout>>,
    doing: String,
}

/// Who is in the new namespaces, for as long as nothing else holds them.
#[derive(Debug)]
pub(super) struct Made {
    pub maker: u32,
    /// The first process of the pid namespace, if there is one.
    pub holder: Option<u32>,
}

impl Maker {
    pub fn start(request: &PinRequest) -> Result<Maker> {
        let doing = format!("Failed to make namespaces of {}", request.dir.display());
        // Not by its path, where another version may be by now.
        let mut child = Command::new("/proc/self/exe")
            .args([WORD, &std::process::id().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context(|| &doing)?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let said = BufReader::new(stdout.ok_or_else(|| Error::failed(&doing))?).lines();
        let mut maker = Maker { child, stdin, said, doing };
        let mut line = serde_json::to_vec(request).context(|| &maker.doing)?;
        line.push(b'\n');
        maker.write(&line)?;
        Ok(maker)
    }

    fn write(&mut self, line: &[u8]) -> Result<()> {
        let stdin = self.stdin.as_mut().ok_or_else(|| Error::failed(&self.doing))?;
        stdin.write_all(line).context(|| &self.doing)
    }

    /// Waits until all is made.
    pub fn wait(&mut self, users: Option<UserMaps>) -> Result<Made> {
        while let Some(line) = self.said.next() {
            let line = line.context(|| &self.doing)?;
            match (line.as_str(), users) {
                ("users", Some(maps)) => {
                    maps.install(self.child.id())?;
                    self.write(b"\n")?;
                }
                (line, _) => {
                    let holder = line.strip_prefix("made ").and_then(|pid| pid.parse().ok());
                    let holder: u32 = holder.ok_or_else(|| Error::failed(format!("{}: {line}", self.doing)))?;
                    return Ok(Made { maker: self.child.id(), holder: Some(holder).filter(|pid| *pid > 0) });
                }
            }
        }
        Err(Error::failed(&self.doing))
    }

    /// Lets it go: what it made stays if it was pinned, and goes with it otherwise. What it says itself of a failure
    /// says more.
    pub fn end(mut self, pinned: Result<()>) -> Result<()> {
        if pinned.is_ok() {
            self.write(b"\n")?;
        }
        self.stdin = None;
        let doing = self.doing;
        let output = self.child.wait_with_output().context(|| &doing)?;
        let said = String::from_utf8_lossy(&output.stderr);
        match (output.status.success(), said.trim()) {
            (true, _) => Ok(()),
            (false, "") => Err(pinned.err().unwrap_or_else(|| Error::failed(format!("{doing}: {}", output.status)))),
            (false, said) => Err(Error::failed(format!("{doing}: {said}"))),
        }
    }
}

/// The child's part; its words are for the server.
pub fn main(mut words: impl Iterator<Item = OsString>) -> ExitCode {
    let parent = words.next().and_then(|word| word.to_str()?.parse().ok());
    match end_with(parent).and_then(|()| make(parent)) {
        Ok(true) => ExitCode::SUCCESS,
        // The server knows why.
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

/// Nothing is made after the server's end: the next one has cleaned up by then.
fn end_with(parent: Option<i32>) -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .context(|| "Failed to ask for the parent's end")?;
    match Some(nix::unistd::getppid().as_raw()) == parent {
        true => Ok(()),
        false => Err(Error::failed("The server has ended")),
    }
}

/// Answers whether the server has taken over what was made.
fn make(parent: Option<i32>) -> Result<bool> {
    let mut answers = std::io::stdin().lock().lines();
    let text = answers.next().and_then(std::result::Result::ok).unwrap_or_default();
    let request: PinRequest = serde_json::from_str(&text).context(|| "Failed to read the request")?;
    // Found now: in a user namespace the way to it may be closed.
    let holder = if request.pid { Some(holder()?) } else { None };
    if request.user.is_some() {
        unshare(CloneFlags::CLONE_NEWUSER).context(|| "Failed to make a user namespace")?;
        if !ask("users", &mut answers)? {
            return Ok(false);
        }
        become_root()?;
        // A change of ids takes this away.
        end_with(parent)?;
    }
    let wanted = [
        (request.net, CloneFlags::CLONE_NEWNET),
        (request.ipc, CloneFlags::CLONE_NEWIPC),
        (request.uts, CloneFlags::CLONE_NEWUTS),
        (request.pid, CloneFlags::CLONE_NEWPID),
    ];
    let flags = wanted.iter().filter(|(wanted, _)| *wanted).fold(CloneFlags::empty(), |flags, (_, flag)| flags | *flag);
    unshare(flags).context(|| "Failed to leave namespaces")?;
    if request.uts && !request.hostname.is_empty() {
        nix::unistd::sethostname(&request.hostname)
            .context(|| format!("Failed to set hostname {}", request.hostname))?;
    }
    for (name, value) in &request.sysctls {
        let path = Path::new("/proc/sys").join(name.replace('.', "/"));
        fs::write(&path, value).context(|| format!("Failed to set sysctl {name} to {value}"))?;
    }
    let Some(holder) = holder else { return ask("made 0", &mut answers) };
    let (pid, stdin) = hold(&holder, &request.dir)?;
    let taken = ask(&format!("made {pid}"), &mut answers)?;
    if taken {
        // It stays only now that it can be found.
        stdin.map_or(Ok(()), |mut stdin| stdin.write_all(b"\n")).context(|| "Failed to let the holder stay")?;
    }
    Ok(taken)
}

/// Says something to the server, and answers whether it said to go on.
fn ask(line: &str, answers: &mut Lines<StdinLock<'_>>) -> Result<bool> {
    let mut out = std::io::stdout();
    writeln!(out, "{line}").and_then(|()| out.flush()).context(|| "Failed to tell the server")?;
    Ok(matches!(answers.next(), Some(Ok(_))))
}

/// What is made from here on belongs to the root of the user namespace.
fn become_root() -> Result<()> {
    let doing = || "Failed to become root of the user namespace";
    setgroups(&[]).context(doing)?;
    setgid(Gid::from_raw(0)).context(doing)?;
    setuid(Uid::from_raw(0)).context(doing)
}

/// `conward-hold` as a mount of its own that nobody can write to: through the process whoever may trace it has the
/// program, and as root could replace it for the whole host.
fn holder() -> Result<OwnedFd> {
    let doing = || "Failed to find conward-hold";
    let program = fs::read_link("/proc/self/exe").context(doing)?.with_file_name("conward-hold");
    let flags = OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::OPEN_TREE_CLONE;
    let mount = open_tree(CWD, &program, flags).context(|| format!("{}: {}", doing(), program.display()))?;
    sys::make_read_only(&mount).context(|| format!("Failed to protect {}", program.display()))?;
    Ok(mount)
}

/// Starts the first process of the new pid namespace; it stays if it gets a byte.
fn hold(program: &OwnedFd, dir: &Path) -> Result<(u32, Option<ChildStdin>)> {
    let doing = || format!("Failed to start the holder of the pid namespace of {}", dir.display());
    let mut child = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
        .arg0("conward-hold")
        .arg(dir)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context(doing)?;
    // It is ready for others beside it; what is in the way it says on stderr, which is ours.
    let ready = child.stdout.take().map(|mut said| said.read_exact(&mut [0]));
    ready.transpose().context(doing)?;
    Ok((child.id(), child.stdin.take()))
}
