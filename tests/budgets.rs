//! What a monitor may cost: promises that are sizes, counts and wake-ups. Times are compared in the benchmark instead.
//!
//! The OCI runtime is a shell script here, so neither root nor a real runtime is needed.

use std::{
    fs::{self, Permissions},
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use conward::sys;
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket},
};
use tempfile::TempDir;

/// The whole program, KiB.
const BINARY: u64 = 2304;
/// Private memory of an idle monitor, KiB: a third of conmon's.
const IDLE: u64 = 90;
/// Resident memory at most, ever, KiB; most of it are pages of the program that all monitors share. The kernel maps these
/// by the piece, larger ones where the page cache has them, so that there are 36 more in one run of a few.
const PEAK: u64 = 1920;
/// Open descriptors of a monitor without a terminal and without clients.
const DESCRIPTORS: usize = 17;

const IDLE_CONTAINER: &str = "exec sleep 1000";

/// The one that `CONWARD` names, or what was just built.
fn monitor_program() -> PathBuf {
    std::env::var_os("CONWARD").map_or_else(|| env!("CARGO_BIN_EXE_conward").into(), PathBuf::from)
}

#[test]
#[cfg_attr(debug_assertions, ignore = "the budget is for the release build")]
fn program_is_small() {
    let size = fs::metadata(monitor_program()).unwrap().len().div_ceil(1024);
    assert!(size <= BINARY, "the program has {size} KiB, the budget is {BINARY}");
}

/// A static program names no interpreter (`PT_INTERP` of elf(5)) that would load its libraries.
#[test]
fn program_needs_no_libraries() {
    const INTERPRETER: usize = 3;
    let elf = fs::read(monitor_program()).unwrap();
    let number =
        |at: usize, len: usize| elf[at..at + len].iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
    assert_eq!(elf[..6], *b"\x7fELF\x02\x01", "64 bits, little endian");
    let (table, entry, count) = (number(32, 8), number(54, 2), number(56, 2));
    let kinds: Vec<_> = (0..count).map(|index| number(table + index * entry, 4)).collect();
    assert!(kinds.contains(&1), "there are program headers: {kinds:?}");
    assert!(!kinds.contains(&INTERPRETER), "the program wants an interpreter");
}

#[test]
fn idle_monitor_never_wakes_up() {
    let monitor = Monitor::start(IDLE_CONTAINER);
    let client = monitor.attach();
    monitor.wait_until_quiet();
    let before = monitor.activity();
    thread::sleep(Duration::from_secs(2));
    assert_eq!(monitor.activity(), before, "switches and bytes read and written, before and after two idle seconds");
    drop(client);
}

/// A client of the service that is attached and hears nothing, and one that takes nothing, which is behind.
#[test]
fn clients_of_the_service_wake_nobody() {
    let monitor = Monitor::start("until [ -p go ]; do sleep 0.01; done; read line <go; seq 300000; exec sleep 1000");
    let path = monitor.bundle().join("go");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let clients = tokio::task::LocalSet::new();
    let attached = clients.block_on(&runtime, async {
        let client = conmon_proto::connect(&monitor.bundle().join("conward.sock")).await.unwrap();
        let (output, events) = conmon_proto::output();
        let attachment = client.attach(&conmon_proto::AttachRequest::default(), output).await.unwrap();
        (client, attachment, events)
    });
    monitor.is_idle("with an idle client");
    fs::write(&path, "go\n").unwrap();
    let log = monitor.scratch.path().join("log");
    wait_for("output", Duration::from_secs(20), || fs::metadata(&log).is_ok_and(|log| log.len() > 1 << 20));
    // Nothing drives the client: it has taken nothing.
    monitor.is_idle("with a client that is behind");
    let mut events = attached.2;
    let event = clients.block_on(&runtime, async { events.next().await });
    assert!(matches!(event, Some(conmon_proto::Event::Write { offset: 0, .. })), "{event:?}");
}

#[test]
fn monitor_is_one_thread_with_few_descriptors() {
    let monitor = Monitor::start(IDLE_CONTAINER);
    monitor.wait_until_quiet();
    assert_eq!(monitor.status("Threads:"), 1);
    let open = monitor.descriptors();
    assert!(open.len() <= DESCRIPTORS, "{} descriptors, the budget is {DESCRIPTORS}: {open:#?}", open.len());
}

/// Many clients that came and went, several at once, leave nothing behind.
#[test]
fn clients_leave_no_descriptors() {
    let monitor = Monitor::start(IDLE_CONTAINER);
    monitor.wait_until_quiet();
    let before = monitor.descriptors();
    for _ in 0..20 {
        let clients: Vec<_> = (0..5).map(|_| monitor.attach()).collect();
        drop(clients);
    }
    monitor.wait_until_quiet();
    assert_eq!(monitor.descriptors().len(), before.len(), "{before:#?}\n{:#?}", monitor.descriptors());
}

#[test]
#[cfg_attr(debug_assertions, ignore = "the budget is for the release build")]
fn idle_monitors_take_little_memory() {
    const COUNT: u64 = 10;
    let monitors: Vec<_> = (0..COUNT).map(|_| Monitor::start(IDLE_CONTAINER)).collect();
    monitors.iter().for_each(Monitor::wait_until_quiet);
    let each = monitors.iter().map(Monitor::own_memory).sum::<u64>() / COUNT;
    assert!(each <= IDLE, "{each} KiB of private memory, the budget is {IDLE}");
}

#[test]
#[cfg_attr(debug_assertions, ignore = "the budget is for the release build")]
fn memory_is_bounded_under_load_and_given_back() {
    const BYTES: u64 = 256 << 20;
    let monitor = Monitor::start(&format!("yes \"$(printf '%099d')\" | head -c {BYTES}; : >done; exec sleep 1000"));
    wait_for("the container to have written all", Duration::from_secs(120), || monitor.bundle().join("done").exists());
    monitor.wait_until_quiet();
    let logged = fs::metadata(monitor.scratch.path().join("log")).unwrap().len();
    assert!(logged > BYTES, "only {logged} bytes are in the log");
    let peak = monitor.status("VmHWM:");
    assert!(peak <= PEAK, "{peak} KiB resident while draining, the budget is {PEAK}");
    // It keeps its buffers for a moment, in case the load goes on.
    let deadline = Instant::now() + Duration::from_secs(10);
    while monitor.own_memory() > IDLE && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(100));
    }
    let after = monitor.own_memory();
    assert!(after <= IDLE, "{after} KiB of private memory after the load, the budget is {IDLE}");
}

/// What an upgrade takes is given back, however often one happens.
#[test]
#[cfg_attr(debug_assertions, ignore = "the budget is for the release build")]
fn replaced_monitors_cost_no_more() {
    let monitor = Monitor::start(IDLE_CONTAINER);
    let client = monitor.attach();
    monitor.wait_until_quiet();
    let before = monitor.descriptors().len();
    for _ in 0..3 {
        // Each program has its own address of the stack.
        let stack =
            || monitor.read("stat").rsplit_once(')').map(|(_, rest)| rest.split(' ').nth(26).map(str::to_owned));
        let old = stack();
        sys::pidfd_signal(monitor.monitor.as_fd(), 12).unwrap();
        wait_for("the monitor to be replaced", Duration::from_secs(20), || stack() != old);
        monitor.wait_until_quiet();
    }
    assert!(monitor.read("cmdline").contains("--resume"), "{:?}", monitor.read("cmdline"));
    // It keeps its buffers for a moment.
    thread::sleep(Duration::from_millis(1500));
    monitor.wait_until_quiet();
    let memory = monitor.own_memory();
    assert!(memory <= IDLE, "{memory} KiB of private memory, the budget is {IDLE}");
    assert_eq!(monitor.descriptors().len(), before, "{:#?}", monitor.descriptors());
    assert_eq!(monitor.status("Threads:"), 1);
    drop(client);
}

// ---------------------------------------------------------------- a monitor

/// A monitor with a container, both ended in the end.
struct Monitor {
    scratch: TempDir,
    pid: i32,
    monitor: OwnedFd,
    container: OwnedFd,
}

/// Only `create`: starts the program `container` of the bundle.
const RUNTIME: &str = r#"#!/bin/sh
while [ $# -gt 0 ]; do
    case $1 in
        --bundle) bundle=$2 ;;
        --pid-file) pidfile=$2 ;;
    esac
    shift
done
cd "$bundle"
./container &
printf %s $! >"$pidfile.new"
mv "$pidfile.new" "$pidfile"
"#;

impl Monitor {
    /// Starts a container that is this shell script.
    fn start(container: &str) -> Monitor {
        let scratch = tempfile::Builder::new().prefix("budget").tempdir().unwrap();
        let dir = scratch.path();
        let bundle = dir.join("b");
        fs::create_dir(&bundle).unwrap();
        program(&dir.join("runtime"), RUNTIME);
        program(&bundle.join("container"), &format!("#!/bin/sh\n{container}\n"));
        let file = |name: &str| dir.join(name).display().to_string();
        let log = format!("k8s-file:{}", file("log"));
        let output = Command::new(monitor_program())
            .args([
                "-c",
                "budget",
                "-u",
                "budget",
                "-r",
                &file("runtime"),
                "-b",
                &file("b"),
                "-l",
                &log,
                "--full-attach",
            ])
            .args(["-p", &file("pid"), "-P", &file("monitor")])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        wait_for("the container", Duration::from_secs(20), || dir.join("pid").exists());
        let pid = |name: &str| fs::read_to_string(dir.join(name)).unwrap().parse().unwrap();
        let (pid, container) = (pid("monitor"), pid("pid"));
        let (monitor, container) = (sys::pidfd_open(pid).unwrap(), sys::pidfd_open(container).unwrap());
        Monitor { scratch, pid, monitor, container }
    }

    fn bundle(&self) -> PathBuf {
        self.scratch.path().join("b")
    }

    /// A client that says nothing.
    fn attach(&self) -> OwnedFd {
        let client = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
        let address = UnixAddr::new(&self.bundle().join("attach")).unwrap();
        connect(client.as_raw_fd(), &address).unwrap();
        client
    }

    /// Waits until nothing has happened for a while: everything has been drained, accepted, given back.
    fn wait_until_quiet(&self) {
        let mut last = self.activity();
        wait_for("the monitor to fall asleep", Duration::from_secs(60), || {
            thread::sleep(Duration::from_millis(300));
            let before = std::mem::replace(&mut last, self.activity());
            before == last
        });
    }

    /// Falls asleep, and is not woken.
    fn is_idle(&self, what: &str) {
        // Memory is given back a second after it was needed, and by then it may have been needed again.
        thread::sleep(Duration::from_millis(2500));
        self.wait_until_quiet();
        let before = self.activity();
        thread::sleep(Duration::from_secs(2));
        assert_eq!(self.activity(), before, "switches, reads and writes, before and after two seconds, {what}");
    }

    /// Everything that counts up when a process does something: context switches, reads, writes.
    fn activity(&self) -> Vec<u64> {
        let io = self.read("io");
        let switches = ["voluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:"].map(|key| self.status(key));
        switches.into_iter().chain(["syscr:", "syscw:"].map(|key| keyed(&io, key))).collect()
    }

    fn status(&self, key: &str) -> u64 {
        keyed(&self.read("status"), key)
    }

    /// Memory that no other process has, KiB. Unchanged pages of the program do not count: all monitors share them.
    fn own_memory(&self) -> u64 {
        keyed(&self.read("smaps_rollup"), "Anonymous:")
    }

    /// What the open descriptors are.
    fn descriptors(&self) -> Vec<PathBuf> {
        let list = fs::read_dir(format!("/proc/{}/fd", self.pid)).unwrap();
        list.map(|entry| fs::read_link(entry.unwrap().path()).unwrap()).collect()
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{name}", self.pid)).unwrap()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // Either may have ended by itself.
        let _ = sys::pidfd_signal(self.container.as_fd(), 9);
        let ended = poll(&mut [PollFd::new(self.monitor.as_fd(), PollFlags::POLLIN)], PollTimeout::from(5000_u16));
        if ended != Ok(1) {
            let _ = sys::pidfd_signal(self.monitor.as_fd(), 9);
        }
    }
}

fn program(path: &Path, text: &str) {
    let write = || -> io::Result<()> {
        fs::write(path, text)?;
        fs::set_permissions(path, Permissions::from_mode(0o755))
    };
    write().unwrap();
}

fn keyed(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    number.unwrap_or_else(|| panic!("no {key} in\n{text}"))
}

fn wait_for(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !done() {
        assert!(Instant::now() < deadline, "waited {} s for {what}", limit.as_secs());
        thread::sleep(Duration::from_millis(10));
    }
}
