//! What the monitor gives up for itself, and what its children keep: looked at through `/proc`.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::prctl;
use nix::unistd::{Gid, Pid, Uid, setgid, setgroups, setuid};

use crate::support::scene::{Live, Scene};
use crate::support::suite::{Case, Monitor};
use crate::support::{Fail, Outcome, check, procs, roles, same};

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
    if !nix::unistd::geteuid().is_root() {
        return Err(Fail::Skip("only root may become somebody else".to_owned()));
    }
    let live = waiting(as_nobody(monitor)?)?;
    let (pid, container) = (live.pid()?, live.container()?);
    for name in ["environ", "maps", "mem"] {
        let opened = fs::File::open(format!("/proc/{pid}/{name}")).map(drop);
        same(&format!("{name} of the monitor"), errno(opened), Some(Errno::EACCES))?;
        fs::File::open(format!("/proc/{container}/{name}"))
            .map_err(|error| format!("the container's {name}: {error}"))?;
    }
    let listed = fs::read_dir(format!("/proc/{pid}/fd")).map(drop);
    same("descriptors of the monitor", errno(listed), Some(Errno::EACCES))?;
    same("memory of the monitor", traced(pid), Err(Errno::EPERM))?;
    same("memory of the container", traced(container), Ok(()))?;
    live.go()?;
    live.end().map(drop)
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
