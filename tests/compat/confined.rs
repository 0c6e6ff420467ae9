//! What the monitor gives up for itself, and what its children keep: looked at through `/proc`.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use conmon_proto::ExecSpec;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Pid, Uid, setgid, setgroups, setuid};
use serde_json::json;

use crate::support::scene::{Live, Scene};
use crate::support::service::{connect, talk};
use crate::support::suite::{Case, Monitor};
use crate::support::{Fail, Outcome, check, procs, roles, same, wait};

pub fn cases() -> Vec<Case> {
    let case = |id, clause, what, run: fn(&Monitor) -> Outcome| Case::new(id, clause, what, run).native();
    vec![
        case(
            "confined/undumpable",
            "10",
            "the same user can neither trace the monitor nor read it; its children stay",
            undumpable,
        ),
        case(
            "confined/works",
            "10",
            "undumpable and not root: its state, an exec by process object, being replaced",
            works,
        ),
        case(
            "confined/descriptors",
            "2.2",
            "its own descriptors are close-on-exec, inherited ones stay as they are",
            descriptors,
        ),
        case(
            "confined/surroundings",
            "3.1",
            "umask 022, the caller's directory, and nothing that children inherit",
            surroundings,
        ),
    ]
}

/// A monitor whose container waits for `go`.
fn waiting(mut scene: Scene) -> Outcome<Live> {
    scene.script("go")?.start()
}

fn undumpable(monitor: &Monitor) -> Outcome {
    let live = waiting(as_nobody(monitor)?)?;
    let container = live.container()?;
    closed(&live)?;
    for name in HELD {
        fs::File::open(format!("/proc/{container}/{name}"))
            .map_err(|error| format!("the container's {name}: {error}"))?;
    }
    same("memory of the container", traced(container), Ok(()))?;
    live.go()?;
    live.end().map(drop)
}

/// Files of a process that only they may open who may trace it.
const HELD: [&str; 3] = ["environ", "maps", "mem"];

/// Nobody but root looks into the monitor.
fn closed(live: &Live) -> Outcome {
    let pid = live.pid()?;
    for name in HELD {
        let opened = fs::File::open(format!("/proc/{pid}/{name}")).map(drop);
        same(&format!("{name} of the monitor"), errno(opened), Some(Errno::EACCES))?;
    }
    let listed = fs::read_dir(format!("/proc/{pid}/fd")).map(drop);
    same("descriptors of the monitor", errno(listed), Some(Errno::EACCES))?;
    same("memory of the monitor", traced(pid), Err(Errno::EPERM))
}

/// Its own files in `/proc` are root's now.
fn works(monitor: &Monitor) -> Outcome {
    let live = waiting(as_nobody(monitor)?)?;
    live.container()?;
    speaks(&live)?;
    live.signal(Signal::SIGUSR2)?;
    let words = format!("/proc/{}/cmdline", live.pid()?);
    let resumed = || fs::read(&words).is_ok_and(|words| words.split(|byte| *byte == 0).any(|word| word == b"--resume"));
    wait::until_true("the monitor to be replaced", resumed)?;
    speaks(&live)?;
    closed(&live)?;
    live.go()?;
    live.end().map(drop)
}

fn speaks(live: &Live) -> Outcome {
    let process = json!({"args": ["/bin/sh", "-c", "echo $WHO"], "env": ["WHO=object"], "cwd": "/", "terminal": false});
    talk(async {
        let client = connect(live).await?;
        let state = client.inspect().await?;
        check(state.memory.private > 0, format!("memory in {state:?}"))?;
        check(state.descriptors > 3, format!("descriptors in {state:?}"))?;
        let spec = ExecSpec { process: process.to_string().into_bytes(), ..ExecSpec::default() };
        let result = client.exec(&spec, None).await?.wait().await?;
        same("stdout of an exec", result.stdout, b"object\n".to_vec())
    })
}

/// Whether this process may read another's memory, which takes the right to trace it.
fn traced(pid: Pid) -> Result<(), Errno> {
    let mut byte = [0u8; 1];
    let mut local = [std::io::IoSliceMut::new(&mut byte)];
    // No address that anybody has: of a process that may be traced the answer is that nothing is there.
    let remote = [nix::sys::uio::RemoteIoVec { base: 8, len: 1 }];
    match nix::sys::uio::process_vm_readv(pid, &mut local, &remote) {
        Err(Errno::EFAULT) | Ok(_) => Ok(()),
        Err(errno) => Err(errno),
    }
}

fn errno(outcome: std::io::Result<()>) -> Option<Errno> {
    outcome.err()?.raw_os_error().map(Errno::from_raw)
}

/// A scene that belongs to another user, whom this process becomes.
fn as_nobody(monitor: &Monitor) -> Outcome<Scene> {
    const NOBODY: u32 = 65534;
    if !nix::unistd::geteuid().is_root() {
        return Err(Fail::Skip("only root may become somebody else".to_owned()));
    }
    let mut scene = Scene::create(monitor)?;
    let program = scene.dir.join("conward");
    fs::copy(&monitor.program, &program)?;
    for role in [roles::RUNTIME, roles::EXIT_COMMAND] {
        let path = scene.dir.join(role);
        fs::remove_file(&path)?;
        fs::copy(std::env::current_exe()?, &path)?;
    }
    scene.program(&program);
    let above = scene.dir.parent().ok_or("a scene without a directory")?;
    fs::set_permissions(above, fs::Permissions::from_mode(0o755))?;
    give(&scene.dir, NOBODY)?;
    setgroups(&[])?;
    setgid(Gid::from_raw(NOBODY))?;
    setuid(Uid::from_raw(NOBODY))?;
    // A change of user takes it away, and the monitor is to lose it by itself.
    prctl::set_dumpable(true)?;
    Ok(scene)
}

fn give(path: &Path, uid: u32) -> Outcome {
    chown(path, Some(uid), Some(uid))?;
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            give(&entry?.path(), uid)?;
        }
    }
    Ok(())
}

fn descriptors(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    let given = fs::File::create(scene.dir.join("given"))?;
    nix::fcntl::fcntl(&given, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()))?;
    scene.flag("-i");
    let live = waiting(scene)?;
    // Its set-up is done then.
    live.container()?;
    let pid = live.pid()?;
    let ours: Vec<i32> = procs::descriptors(Pid::this())?.into_iter().map(|(fd, _)| fd).collect();
    for (fd, target) in procs::descriptors(pid)?.into_iter().filter(|(fd, _)| *fd > 2) {
        let stray = inherited(&live, fd)?;
        check(
            close_on_exec(pid, fd)? || stray,
            format!("the monitor's descriptor {fd}, {target}, would be inherited"),
        )?;
    }
    check(!close_on_exec(pid, given.as_raw_fd())?, "the caller's descriptor is no longer what it was")?;
    check(ours.contains(&given.as_raw_fd()), "the test's own descriptor is gone")?;
    live.go()?;
    live.end().map(drop)
}

/// Whether the runtime has got a descriptor, and so the monitor's caller gave it.
fn inherited(live: &Live, fd: i32) -> Outcome<bool> {
    Ok(!live.seen()?["fds"][fd.to_string()].is_null())
}

fn close_on_exec(pid: Pid, fd: i32) -> Outcome<bool> {
    let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}"))?;
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:\t")).ok_or("fdinfo has no flags")?;
    let flags = i32::from_str_radix(flags, 8).map_err(|error| Fail::Wrong(format!("flags {flags:?}: {error}")))?;
    Ok(flags & OFlag::O_CLOEXEC.bits() != 0)
}

fn surroundings(monitor: &Monitor) -> Outcome {
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let mut scene = Scene::create(monitor)?;
    let cwd = scene.dir.join("s");
    scene.cwd(&cwd);
    let live = waiting(scene)?;
    let (pid, container) = (live.pid()?, live.container()?);
    same("the monitor's umask", procs::status_field(pid, "Umask")?.as_str(), "0022")?;
    same("the monitor's directory", fs::read_link(format!("/proc/{pid}/cwd"))?, cwd)?;
    // The runtime needs all of this, and an exit command, too.
    for name in ["NoNewPrivs", "Seccomp", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        let own = procs::status_field(Pid::this(), name)?;
        same(&format!("{name} of the monitor"), procs::status_field(pid, name)?, own.clone())?;
        same(&format!("{name} of what it started"), procs::status_field(container, name)?, own)?;
    }
    live.go()?;
    live.end().map(drop)
}
