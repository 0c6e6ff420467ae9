//! The OOM watch on a real memory cgroup, of whichever version this machine has.
//!
//! `cargo test --test oom`. Where there is no memory cgroup to be had the cases are skipped, with the reason.
#![allow(clippy::print_stdout)] // A runner reports on stdout.

use std::fs;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use conward::oom::{OomWatch, Verdict, Wake};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

type Outcome = Result<(), String>;

type Case = (&'static str, fn(&Path) -> Outcome);

const CASES: [Case; 3] = [
    ("a_kill_is_an_event_and_stays_known", a_kill_is_an_event_and_stays_known),
    ("an_ordinary_end_is_none", an_ordinary_end_is_none),
    ("a_removed_cgroup_is_no_kill", a_removed_cgroup_is_no_kill),
];

fn main() -> ExitCode {
    let top = memory_cgroups();
    let [mut passed, mut failed, mut skipped] = [0; 3];
    let mut tell = |name: &str, outcome: Result<Outcome, &String>| match outcome {
        Ok(Ok(())) => (passed += 1, println!("{name}  ok")).1,
        Ok(Err(why)) => (failed += 1, println!("{name}  FAILED\n  {why}")).1,
        Err(why) => (skipped += 1, println!("{name}  skipped: {why}")).1,
    };
    tell("the_program_has_the_text_that_is_looked_for", Ok(the_text()));
    for (name, case) in CASES {
        tell(name, top.as_ref().map(|top| case(top)));
    }
    println!("\n{passed} passed, {failed} failed, {skipped} skipped");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// conmon's own tests run `strings` on the program.
fn the_text() -> Outcome {
    // The variable is for a machine without the build.
    let program = std::env::var_os("CONWARD").unwrap_or_else(|| env!("CARGO_BIN_EXE_conward").into());
    let program = Path::new(&program);
    let bytes = fs::read(program).map_err(said(program.display()))?;
    let text = b"Cgroup appears to have been removed";
    check(memchr::memmem::find(&bytes, text).is_some(), "the text is not in the program")
}

fn a_kill_is_an_event_and_stays_known(top: &Path) -> Outcome {
    let cgroup = Cgroup::new(top)?;
    // It fills a buffer far above the limit.
    let mut victim = Victim::start(&cgroup, "exec dd if=/dev/zero of=/dev/null bs=128M count=1")?;
    let mut watch = open(&victim)?;
    let mut poll = watched(&watch)?;
    equal(watch.check(), Verdict::None, "before")?;
    check(!event(&mut poll, Duration::from_millis(50))?, "an event before anything happened")?;
    victim.go()?;
    check(event(&mut poll, PATIENCE)?, "no event after a kill")?;
    let status = victim.end()?;
    check(std::os::unix::process::ExitStatusExt::signal(&status) == Some(libc::SIGKILL), "the victim lives")?;
    equal(watch.check(), Verdict::Oom { kills: 1 }, "after the kill")?;
    // The counter is where the next watch begins.
    let next = Victim::start(&cgroup, "exit 0")?;
    equal(open(&next)?.check(), Verdict::None, "of a later watch")?;
    drop(next);
    cgroup.remove()?;
    equal(watch.check(), Verdict::Oom { kills: 1 }, "after the cgroup is gone")
}

fn an_ordinary_end_is_none(top: &Path) -> Outcome {
    let cgroup = Cgroup::new(top)?;
    let mut victim = Victim::start(&cgroup, "exit 3")?;
    let mut watch = open(&victim)?;
    let mut poll = watched(&watch)?;
    victim.go()?;
    check(victim.end()?.code() == Some(3), "not the status")?;
    check(!event(&mut poll, Duration::from_millis(50))?, "an event without a reason")?;
    equal(watch.check(), Verdict::None, "at the end")
}

fn a_removed_cgroup_is_no_kill(top: &Path) -> Outcome {
    let cgroup = Cgroup::new(top)?;
    let mut victim = Victim::start(&cgroup, "exit 0")?;
    let mut watch = open(&victim)?;
    let mut poll = watched(&watch)?;
    victim.go()?;
    victim.end()?;
    cgroup.remove()?;
    let expected = match watch.wake() {
        Wake::Readable => {
            check(event(&mut poll, PATIENCE)?, "no event of the removal")?;
            Verdict::None
        }
        // Version 2 says nothing and takes its counters along, and nobody looked at the last.
        Wake::Priority => Verdict::Unknown,
    };
    equal(watch.check(), expected, "after the removal")?;
    equal(watch.check(), expected, "when asked again")
}

// ---------------------------------------------------------------- pieces

const PATIENCE: Duration = Duration::from_secs(20);
const LIMIT: &str = "16777216";

fn check(truth: bool, otherwise: &str) -> Outcome {
    if truth { Ok(()) } else { Err(otherwise.into()) }
}

fn equal(is: Verdict, should: Verdict, when: &str) -> Outcome {
    if is == should { Ok(()) } else { Err(format!("the verdict {when} is {is:?} instead of {should:?}")) }
}

fn said(what: impl std::fmt::Display) -> impl FnOnce(std::io::Error) -> String {
    move |error| format!("{what}: {error}")
}

/// The directory in which a memory cgroup can be made, or why there is none.
fn memory_cgroups() -> Result<PathBuf, String> {
    let top = Path::new("/sys/fs/cgroup");
    let unified = top.join("cgroup.controllers").exists();
    let top = if unified { top.to_path_buf() } else { top.join("memory") };
    if unified {
        let _ = fs::write(top.join("cgroup.subtree_control"), "+memory");
    }
    let cgroup = Cgroup::new(&top)?;
    cgroup.remove()?;
    Ok(top)
}

/// A cgroup with a small limit, removed at the end.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(top: &Path) -> Result<Cgroup, String> {
        let dir = top.join(format!("conward-oom-test-{}", std::process::id()));
        fs::create_dir(&dir).map_err(said(format_args!("cannot make {}", dir.display())))?;
        let cgroup = Cgroup(dir);
        let limits = [("memory.max", LIMIT), ("memory.limit_in_bytes", LIMIT)];
        let (name, limit) = limits
            .into_iter()
            .find(|(name, _)| cgroup.0.join(name).exists())
            .ok_or_else(|| format!("{} has no memory controller", cgroup.0.display()))?;
        fs::write(cgroup.0.join(name), limit).map_err(said(format_args!("cannot set {name}")))?;
        // Without swap the limit is the limit.
        for (name, limit) in [("memory.swap.max", "0"), ("memory.memsw.limit_in_bytes", LIMIT)] {
            let path = cgroup.0.join(name);
            let _ = path.exists().then(|| fs::write(path, limit));
        }
        Ok(cgroup)
    }

    /// The last process may take a moment to leave.
    fn remove(&self) -> Outcome {
        let until = Instant::now() + PATIENCE;
        while let Err(error) = fs::remove_dir(&self.0) {
            if error.kind() == std::io::ErrorKind::NotFound {
                break;
            }
            check(Instant::now() < until, &format!("cannot remove {}: {error}", self.0.display()))?;
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = self.remove();
    }
}

/// A shell in the cgroup that waits for the word to do something.
struct Victim(Child);

impl Victim {
    fn start(cgroup: &Cgroup, what: &str) -> Result<Victim, String> {
        let script = format!("read go && {what}");
        let mut shell = Command::new("sh");
        let child = shell.args(["-c", &script]).stdin(Stdio::piped()).stderr(Stdio::null()).spawn();
        let victim = Victim(child.map_err(said("cannot start sh"))?);
        let procs = cgroup.0.join("cgroup.procs");
        fs::write(procs, victim.0.id().to_string()).map_err(said("cannot join the cgroup"))?;
        Ok(victim)
    }

    fn go(&mut self) -> Outcome {
        let stdin = self.0.stdin.as_mut().ok_or("started twice")?;
        stdin.write_all(b"go\n").map_err(said("cannot tell the victim"))
    }

    fn end(&mut self) -> Result<std::process::ExitStatus, String> {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.0.try_wait().map_err(said("cannot wait"))? {
                return Ok(status);
            }
            check(Instant::now() < until, "the victim does not end")?;
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn open(victim: &Victim) -> Result<OomWatch, String> {
    let pid = i32::try_from(victim.0.id()).map_err(|error| error.to_string())?;
    let watch = OomWatch::open(pid, Path::new("/")).map_err(|error| error.to_string())?;
    watch.ok_or_else(|| "no watch".into())
}

/// As the monitor does it.
fn watched(watch: &OomWatch) -> Result<Poll, String> {
    let poll = Poll::new().map_err(said("poll"))?;
    let interest = match watch.wake() {
        Wake::Priority => Interest::PRIORITY,
        Wake::Readable => Interest::READABLE,
    };
    let fd = watch.fd().as_raw_fd();
    poll.registry().register(&mut SourceFd(&fd), Token(0), interest).map_err(said("register"))?;
    Ok(poll)
}

fn event(poll: &mut Poll, patience: Duration) -> Result<bool, String> {
    let mut events = Events::with_capacity(4);
    let until = Instant::now() + patience;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        match poll.poll(&mut events, Some(left)) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            answer => return answer.map(|()| !events.is_empty()).map_err(said("poll")),
        }
    }
}
