//! Namespaces of pods, kept by bind mounts instead of by a process.
//!
//! A program with threads must not leave its namespaces, so a child does (`maker`): it makes them and prepares them, this
//! program mounts them over files, and the child ends. A pid namespace lives only as long as its first process; that is
//! `conward-hold`, which does nothing but wait.

mod maker;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use self::maker::{Made, Maker};
use crate::error::{Context, Error, Result};
use crate::idmap::UserMaps;
use crate::state;

pub use maker::{WORD, main};

/// What a pod's namespaces are to be.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct PinRequest {
    /// The pod's directory; namespaces are mounted on `ns/net` and so on in it.
    pub dir: PathBuf,
    pub net: bool,
    pub ipc: bool,
    pub uts: bool,
    /// One for all containers of the pod.
    pub pid: bool,
    /// One of its own, which owns the others.
    pub user: Option<UserMaps>,
    /// Empty: the host's.
    pub hostname: String,
    pub sysctls: BTreeMap<String, String>,
}

/// In the pod's directory: pid and start time of the process that holds the pid namespace.
const HOLDER: &str = "holder";

const KINDS: [&str; 5] = ["user", "net", "ipc", "uts", "pid"];

/// Bytes of a pod's /dev/shm.
const SHM_SIZE: u64 = 64 << 20;

/// Makes and pins the namespaces that were asked for, and the pod's /dev/shm if it has its own ipc namespace.
pub fn pin(request: &PinRequest) -> Result<()> {
    check(request)?;
    let ns = request.dir.join("ns");
    fs::create_dir_all(&ns).context(|| format!("Failed to make {}", ns.display()))?;
    let mut maker = Maker::start(request)?;
    let pinned = maker.wait(request.user).and_then(|made| keep(request, &made));
    maker.end(pinned)?;
    if request.ipc { mount_shm(&request.dir.join("shm"), request.user) } else { Ok(()) }
}

/// Mounts what the child has made over files.
fn keep(request: &PinRequest, made: &Made) -> Result<()> {
    let wanted = [request.user.is_some(), request.net, request.ipc, request.uts];
    let bind = |kind: &str, pid: u32| {
        let (from, to) = (PathBuf::from(format!("/proc/{pid}/ns/{kind}")), request.dir.join("ns").join(kind));
        let doing = || format!("Failed to pin {} on {}", from.display(), to.display());
        File::create(&to).context(doing)?;
        mount(Some(&from), &to, None::<&str>, MsFlags::MS_BIND, None::<&str>).context(doing)
    };
    for (kind, _) in KINDS.iter().zip(wanted).filter(|(_, wanted)| *wanted) {
        bind(kind, made.maker)?;
    }
    let Some(pid) = made.holder else { return Ok(()) };
    let started = start_time(pid).context(|| format!("Failed to find the holder of {}", request.dir.display()))?;
    state::write_bytes(&request.dir.join(HOLDER), format!("{pid} {started}").as_bytes())?;
    bind("pid", pid)
}

/// Refuses what cannot be, before anything is made.
fn check(request: &PinRequest) -> Result<()> {
    for name in request.sysctls.keys() {
        let needed = sysctl_kind(name);
        let own = match needed {
            Some("net") => request.net,
            Some(_) => request.ipc,
            None => return Err(Error::invalid(format!("Sysctl {name} is not one of a namespace"))),
        };
        if !own {
            let kind = needed.unwrap_or_default();
            return Err(Error::invalid(format!("Sysctl {name} needs a {kind} namespace of the pod's own")));
        }
    }
    Ok(())
}

/// The kind of namespace that a sysctl belongs to (namespaces(7)).
fn sysctl_kind(name: &str) -> Option<&'static str> {
    let ipc = [
        "kernel.sem",
        "kernel.shm_rmid_forced",
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
    ];
    match name {
        name if name.contains("..") || name.contains("/..") => None,
        name if name.starts_with("net.") => Some("net"),
        name if ipc.contains(&name) || name.starts_with("fs.mqueue.") => Some("ipc"),
        _ => None,
    }
}

fn mount_shm(dir: &Path, user: Option<UserMaps>) -> Result<()> {
    let doing = || format!("Failed to mount {}", dir.display());
    fs::create_dir_all(dir).context(doing)?;
    let flags = MsFlags::MS_NOEXEC | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let (uid, gid) = user.map_or((0, 0), UserMaps::root);
    let options = format!("mode=1777,size={SHM_SIZE},uid={uid},gid={gid}");
    mount(Some("shm"), dir, Some("tmpfs"), flags, Some(options.as_str())).context(doing)
}

/// Field 22 of /proc/PID/stat (proc(5)), which no later process of the same pid has.
fn start_time(pid: u32) -> std::result::Result<u64, String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).map_err(|error| error.to_string())?;
    let fields = stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace()).ok_or("no process name in stat")?;
    let mut fields = fields.skip(19);
    fields.next().and_then(|field| field.parse().ok()).ok_or_else(|| "no start time in stat".to_owned())
}

/// Gives back all that [`pin`] made; may be repeated, and needs nothing but the directory.
pub fn release(dir: &Path) -> Result<()> {
    end_holder(dir);
    for path in KINDS.iter().map(|kind| dir.join("ns").join(kind)).chain([dir.join("shm")]) {
        unmount(&path)?;
    }
    Ok(())
}

fn end_holder(dir: &Path) {
    let Ok(text) = fs::read_to_string(dir.join(HOLDER)) else { return };
    let mut words = text.split_whitespace();
    let (Some(pid), Some(started)) = (words.next(), words.next()) else { return };
    let (Ok(pid), Ok(started)) = (pid.parse::<u32>(), started.parse::<u64>()) else { return };
    if start_time(pid) != Ok(started) {
        return;
    }
    if let Ok(pid) = i32::try_from(pid) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// Unmounts what is there, however often it was mounted.
fn unmount(path: &Path) -> Result<()> {
    loop {
        match umount2(path, MntFlags::MNT_DETACH) {
            Ok(()) => {}
            // Nothing is mounted there, or nothing is there.
            Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => return Ok(()),
            Err(error) => return Err(Error::failed(format!("Failed to unmount {}: {error}", path.display()))),
        }
    }
}

/// Whether what was pinned is still there: after a reboot the files are empty.
pub fn alive(dir: &Path) -> bool {
    let Ok(entries) = fs::read_dir(dir.join("ns")) else { return false };
    entries.flatten().all(|entry| {
        nix::sys::statfs::statfs(&entry.path()).is_ok_and(|fs| fs.filesystem_type() == nix::sys::statfs::NSFS_MAGIC)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctls_need_their_namespace() {
        let request = |name: &str, net, ipc| PinRequest {
            net,
            ipc,
            sysctls: BTreeMap::from([(name.to_owned(), "1".to_owned())]),
            ..PinRequest::default()
        };
        assert!(check(&request("net.ipv4.ip_forward", true, false)).is_ok());
        assert!(check(&request("kernel.shm_rmid_forced", false, true)).is_ok());
        for (name, net, ipc) in [
            ("net.ipv4.ip_forward", false, true),
            ("kernel.sem", true, false),
            ("vm.swappiness", true, true),
            ("net./../kernel/x", true, true),
        ] {
            let error = check(&request(name, net, ipc)).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn a_process_has_a_start_time() {
        assert!(start_time(std::process::id()).unwrap() > 0);
        assert!(start_time(u32::MAX).is_err());
    }

    #[test]
    fn releasing_nothing_is_fine() {
        let dir = tempfile::tempdir().unwrap();
        release(dir.path()).unwrap();
        assert!(!alive(dir.path()));
    }
}
