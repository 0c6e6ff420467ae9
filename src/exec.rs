//! One more process in the container, asked for over the service: no second monitor, no files left behind.
//!
//! An exec is a [`Session`] like the container's own process. Its output is captured up to a bound, or goes to a client
//! and waits for it. Whoever asked hears the result when the process has ended: output gets a short grace to come to its
//! end, and pipes that some other process still holds are not waited for.

pub mod saved;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::fstat;

use crate::exit::{End, Summary, Total};
use crate::kill;
use crate::options::Options;
use crate::rpc::{Answer, Remote};
use crate::session::{Id, Phase, Session};
use crate::stdio::Output;
use crate::stream::Stream;

/// What is to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Process {
    /// An OCI process object (runtime-spec, config.md, "Process"), as it is.
    Json(Vec<u8>),
    /// What is empty is as for the container's own process; groups and capabilities are added to its, and what becomes
    /// of the environment is up to the runtime (schema/conward.capnp).
    Words {
        args: Vec<OsString>,
        env: Vec<OsString>,
        cwd: String,
        user: String,
        additional_gids: Vec<u32>,
        capabilities: Vec<OsString>,
        no_new_privileges: bool,
    },
    /// One that runs already, under another program; the command for people.
    Named(String),
}

/// An exec as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    pub process: Process,
    pub terminal: bool,
    pub stdin: bool,
    /// Rows and columns of the terminal.
    pub window: Option<(u16, u16)>,
    /// It is killed, with all that came from it, when it runs longer.
    pub timeout: Option<Duration>,
    /// Bytes captured at most.
    pub output_max: usize,
    /// It goes on when whoever asked for it goes away.
    pub detached: bool,
}

/// Where its output goes.
#[derive(Debug)]
pub enum Sink {
    /// Into memory, for the result.
    Capture { streams: [Vec<u8>; 2], max: usize, truncated: bool },
    /// To a client, which it waits for.
    Remote(Remote),
    /// The client has gone.
    Nowhere,
}

impl Sink {
    /// True if output may be read.
    pub fn has_room(&self) -> bool {
        match self {
            Sink::Remote(remote) => remote.has_room(),
            Sink::Capture { .. } | Sink::Nowhere => true,
        }
    }

    /// Takes output that begins at `offset` of its stream.
    pub fn put(&mut self, stream: Stream, offset: u64, bytes: &[u8]) {
        match self {
            Sink::Capture { streams, max, truncated } => {
                let room = max.saturating_sub(streams.iter().map(Vec::len).sum());
                *truncated |= bytes.len() > room;
                streams[stream.index()].extend_from_slice(&bytes[..bytes.len().min(room)]);
            }
            Sink::Remote(remote) => remote.write(stream, offset, bytes),
            Sink::Nowhere => {}
        }
    }

    /// Bytes in memory.
    pub fn captured(&self) -> usize {
        match self {
            Sink::Capture { streams, .. } => streams.iter().map(Vec::capacity).sum(),
            Sink::Remote(_) | Sink::Nowhere => 0,
        }
    }
}

/// What comes next by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Its time is up.
    Timeout,
    /// It was killed and should have ended by now.
    Killed,
    /// It has ended, and whoever still holds its pipes is not waited for any longer.
    Grace,
}

/// A running exec.
#[derive(Debug)]
pub struct Exec {
    pub id: Id,
    pub session: Session,
    pub sink: Sink,
    pub spec: Spec,
    pub due: Option<(Instant, Due)>,
    /// Who waits for the result.
    pub waiters: Vec<Answer>,
    /// Another process had the pipes when this one had ended.
    pub held: bool,
    /// The result is known; a client may still have output to take.
    pub settled: bool,
    /// Bytes of each stream that a held pipe may still give, once the grace is over.
    pub rest: Option<[usize; 2]>,
    pidfile: PathBuf,
    /// The process object, which the runtime reads through our descriptor.
    object: Option<OwnedFd>,
}

/// How an exec ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub id: Id,
    pub exit: Summary,
    /// Why it never started, as the runtime said.
    pub error: Vec<u8>,
    pub captured: [Vec<u8>; 2],
    pub truncated: bool,
    pub held: bool,
}

impl Exec {
    /// Makes the files that the runtime needs.
    pub fn new(id: Id, spec: Spec, session: Session, remote: Option<Remote>, bundle: &Path) -> io::Result<Exec> {
        let object = match &spec.process {
            Process::Json(text) => Some(object(text)?),
            Process::Words { .. } | Process::Named(_) => None,
        };
        let sink = match remote {
            Some(remote) => Sink::Remote(remote),
            None => Sink::Capture { streams: [Vec::new(), Vec::new()], max: spec.output_max, truncated: false },
        };
        let pidfile = bundle.join(format!(".conward-exec-{id}.pid"));
        let (due, waiters) = (None, Vec::new());
        let (held, settled, rest) = (false, false, None);
        Ok(Exec { id, session, sink, spec, due, waiters, held, settled, rest, pidfile, object })
    }

    /// The runtime's words, its own path first.
    pub fn argv(&self, options: &Options, console: Option<&Path>) -> Vec<OsString> {
        let mut argv: Vec<OsString> = vec![options.runtime.clone().into()];
        argv.extend_from_slice(&options.runtime_args);
        argv.push("exec".into());
        let mut pair = |name: &str, value: &OsStr| argv.extend([OsString::from(name), value.to_owned()]);
        pair("--pid-file", self.pidfile.as_os_str());
        if let Some(object) = &self.object {
            // Of the runtime itself: nobody looks into our own (`daemon::confine`).
            let path = format!("/proc/self/fd/{}", object.as_raw_fd());
            pair("--process", OsStr::new(&path));
        }
        if let Some(console) = console {
            pair("--console-socket", console.as_os_str());
        }
        argv.push("--detach".into());
        argv.extend(self.words());
        argv.push(options.cid.clone());
        if let Process::Words { args, .. } = &self.spec.process {
            argv.extend_from_slice(args);
        }
        argv
    }

    /// The file with the process object, which the runtime gets by its number.
    pub fn object(&self) -> Option<BorrowedFd<'_>> {
        self.object.as_ref().map(AsFd::as_fd)
    }

    /// The runtime's options of an exec without a process object.
    fn words(&self) -> Vec<OsString> {
        let mut words: Vec<OsString> = Vec::new();
        let Process::Words { env, cwd, user, additional_gids, capabilities, no_new_privileges, .. } =
            &self.spec.process
        else {
            return words;
        };
        let mut pair = |name: &str, value: &OsStr| words.extend([OsString::from(name), value.to_owned()]);
        env.iter().for_each(|entry| pair("--env", entry));
        capabilities.iter().for_each(|name| pair("--cap", name));
        additional_gids.iter().for_each(|gid| pair("--additional-gids", OsStr::new(&gid.to_string())));
        for (name, value) in [("--cwd", cwd), ("--user", user)] {
            if !value.is_empty() {
                pair(name, OsStr::new(value));
            }
        }
        if *no_new_privileges {
            words.push("--no-new-privs".into());
        }
        if self.spec.terminal {
            words.push("--tty".into());
        }
        words
    }

    /// The pid that the runtime left, or why there is none.
    pub fn started_pid(&self) -> io::Result<Option<i32>> {
        crate::runtime::read_pidfile(&self.pidfile)
    }

    /// The runtime has read and written all it wants.
    pub fn forget_files(&mut self) {
        self.object = None;
        if self.pidfile.as_os_str().is_empty() {
            return;
        }
        let _ = fs::remove_file(&self.pidfile);
    }

    /// Lets go of everything but its output.
    pub fn strip(&mut self) {
        self.forget_files();
        self.session.input.close();
        (self.session.terminal, self.session.console) = (None, None);
        if let Some(process) = &mut self.session.process {
            process.pidfd = None;
        }
    }

    /// Sets what comes next.
    pub fn expect(&mut self, due: Due, after: Duration) {
        self.due = Instant::now().checked_add(after).map(|at| (at, due));
    }

    /// Kills it and all that came from it.
    pub fn kill(&mut self) {
        // By inode, since who holds the other ends has them by another number.
        let pipes: Vec<u64> =
            self.session.outputs.iter().flatten().filter(|output| !output.is_tty()).filter_map(inode).collect();
        match &self.session.process {
            Some(process) => kill::tree(process, false),
            None => self.session.signal(libc::SIGKILL),
        }
        if !pipes.is_empty() {
            kill::holders(&pipes);
        }
    }

    /// True if all output has come to its end.
    pub fn is_dry(&self) -> bool {
        self.session.outputs.iter().all(Option::is_none)
    }

    /// True if somebody can still write to its pipes or terminal.
    pub fn has_writers(&self) -> bool {
        self.session.outputs.iter().flatten().any(|output| !output.has_no_writer())
    }

    /// The result; captured output is given away.
    pub fn outcome(&mut self) -> Outcome {
        let (captured, truncated) = match &mut self.sink {
            Sink::Capture { streams, truncated, .. } => (std::mem::take(streams), *truncated),
            Sink::Remote(_) | Sink::Nowhere => ([Vec::new(), Vec::new()], false),
        };
        let failed = self.session.phase == Phase::Failed;
        Outcome {
            id: self.id,
            exit: self.summary(),
            error: if failed { self.session.complaint.bytes().to_vec() } else { Vec::new() },
            captured,
            truncated,
            held: self.held,
        }
    }

    /// How it ended, as far as that is known.
    pub fn summary(&self) -> Summary {
        let process = self.session.process.as_ref();
        let totals = self.session.totals([0; 2]);
        Summary {
            end: process.map(|_| self.session.end.unwrap_or(End::Unknown)),
            oom_killed: None,
            pid: process.map_or(0, |process| process.pid),
            started: process.map_or(SystemTime::UNIX_EPOCH, |process| process.started),
            finished: self.session.finished,
            totals: [0, 1].map(|index: usize| Total { bytes: totals[index].bytes + self.left(index), lost: 0 }),
        }
    }

    /// Bytes of output that a client has yet to take, once it has ended.
    fn left(&self, index: usize) -> u64 {
        let there = self.session.outputs[index].as_ref().filter(|_| self.session.phase == Phase::Ended);
        let left =
            there.map(|output| self.rest.map_or_else(|| output.ahead().len() + output.waiting(), |rest| rest[index]));
        left.unwrap_or(0) as u64
    }

    /// The command, for people.
    pub fn command(&self) -> String {
        match &self.spec.process {
            Process::Json(_) => "(process object)".to_owned(),
            Process::Named(command) => command.clone(),
            Process::Words { args, .. } => args.join(OsStr::new(" ")).to_string_lossy().chars().take(200).collect(),
        }
    }
}

impl Drop for Exec {
    fn drop(&mut self) {
        self.forget_files();
    }
}

/// A file in memory with the process object.
fn object(text: &[u8]) -> io::Result<OwnedFd> {
    let fd = memfd_create("process.json", MFdFlags::MFD_CLOEXEC)?;
    let mut file = fs::File::from(fd);
    file.write_all(text)?;
    Ok(file.into())
}

fn inode(output: &Output) -> Option<u64> {
    fstat(output).ok().map(|stat| stat.st_ino)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capture_has_a_bound_over_both_streams() {
        let mut sink = Sink::Capture { streams: [Vec::new(), Vec::new()], max: 10, truncated: false };
        sink.put(Stream::Stdout, 0, b"123456");
        sink.put(Stream::Stderr, 0, b"1234");
        assert!(matches!(&sink, Sink::Capture { truncated: false, .. }));
        sink.put(Stream::Stdout, 6, b"7");
        let Sink::Capture { streams, truncated, .. } = &sink else { panic!("it captures") };
        assert_eq!((&streams[0][..], &streams[1][..], *truncated), (&b"123456"[..], &b"1234"[..], true));
    }
}
