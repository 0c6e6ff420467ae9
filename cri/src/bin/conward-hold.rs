//! The first process of a pod's pid namespace: takes the orphans' ends, and does nothing else until it is killed.
//!
//!     conward-hold DIRECTORY
//!
//! It says so when it has nothing any more that containers beside it could want: whoever may trace it finds an empty root
//! and no rights. Then it waits for a byte, and ends without one: whoever started it died before taking note of it. The
//! directory is the pod's, for people who look at processes.

use std::io::{self, Read, Write};
use std::process::ExitCode;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{chdir, dup2_stderr, dup2_stdout, pivot_root};
use rustix::thread::CapabilitySet;

fn main() -> ExitCode {
    let held = prepare().and_then(|signals| {
        wait_for_word()?;
        reap(&signals);
        Ok(())
    });
    match held {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "conward-hold: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Gives up what it does not need; the signals that it waits for.
fn prepare() -> io::Result<SigSet> {
    let failed = |what: &str, error: io::Error| io::Error::other(format!("failed to {what}: {error}"));
    // It is started by a descriptor, which would be its name.
    nix::sys::prctl::set_name(c"conward-hold")?;
    leave_files().map_err(|errno| failed("leave the host's files", errno.into()))?;
    give_up_rights().map_err(|error| failed("give up rights", error))?;
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT] {
        signals.add(signal);
    }
    signals.thread_block()?;
    Ok(signals)
}

/// Says that it is ready, closes what it said that with, and waits until it is to stay.
fn wait_for_word() -> io::Result<()> {
    io::stdout().write_all(b"\n")?;
    io::stdout().flush()?;
    dup2_stdout(io::stdin())?;
    dup2_stderr(io::stdin())?;
    io::stdin().read_exact(&mut [0])
}

fn reap(signals: &SigSet) {
    while let Ok(Signal::SIGCHLD) = signals.wait() {
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            if status == WaitStatus::StillAlive {
                break;
            }
        }
    }
}

/// Exchanges the host's files for nothing (pivot_root(2)).
fn leave_files() -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let nothing = None::<&str>;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)?;
    // Any directory does, and this one is everywhere.
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("nothing"), "/proc", Some("tmpfs"), flags, Some("size=4k"))?;
    chdir("/proc")?;
    pivot_root(".", ".")?;
    // The old root lies over the new one.
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")
}

fn give_up_rights() -> io::Result<()> {
    use rustix::process::DumpableBehavior;
    use rustix::thread::{CapabilitySets, remove_capability_from_bounding_set, set_capabilities, set_no_new_privs};
    for bit in 0..u64::BITS {
        // Those that this kernel does not know are no rights.
        let _ = remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << bit));
    }
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
    set_no_new_privs(true)?;
    // So that having few rights does not make it the equal of those who have few.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}
