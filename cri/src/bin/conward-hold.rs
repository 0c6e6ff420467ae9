//! The first process of a pod's pid namespace: takes the orphans' ends, and does nothing else until it is killed. It
//! begins when it gets a byte, and ends without one: then whoever started it died before taking note of it.

use std::io::Read;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

fn main() {
    // It is started by a descriptor, which would be its name.
    let _ = nix::sys::prctl::set_name(c"conward-hold");
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT] {
        signals.add(signal);
    }
    if signals.thread_block().is_err() {
        return;
    }
    if std::io::stdin().read_exact(&mut [0]).is_err() {
        return;
    }
    while let Ok(Signal::SIGCHLD) = signals.wait() {
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            if status == WaitStatus::StillAlive {
                break;
            }
        }
    }
}
