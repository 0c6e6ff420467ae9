//! Namespaces of pods, kept by bind mounts instead of by a process.
//!
//! A program with threads must not leave its namespaces, so a child does: this program once more, with [`PIN_WORD`] as its
//! first argument. It makes the namespaces, prepares them, mounts them over files, and ends. A pid namespace lives only as
//! long as its first process; that is `conward-hold`, which does nothing but wait.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result};

/// What tells this program that it is to make namespaces.
pub const PIN_WORD: &str = "__pin";

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
    pub user: Option<UserMaps>,
    /// Empty: the host's.
    pub hostname: String,
    pub sysctls: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct UserMaps {
    pub uids: IdMap,
    pub gids: IdMap,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct IdMap {
    pub host: u32,
    pub container: u32,
    pub length: u32,
}

/// In the pod's directory: pid and start time of the process that holds the pid namespace.
const HOLDER: &str = "holder";

const KINDS: [&str; 4] = ["net", "ipc", "uts", "pid"];

/// Bytes of a pod's /dev/shm.
const SHM_SIZE: u64 = 64 << 20;

/// Makes and pins the namespaces that were asked for, and the pod's /dev/shm if it has its own ipc namespace.
pub fn pin(request: &PinRequest) -> Result<()> {
    check(request)?;
    let ns = request.dir.join("ns");
    fs::create_dir_all(&ns).context(|| format!("Failed to make {}", ns.display()))?;
    let doing = || format!("Failed to make namespaces of {}", request.dir.display());
    // Not by its path, where another version may be by now.
    let mut child = Command::new("/proc/self/exe")
        .args([PIN_WORD, &std::process::id().to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context(doing)?;
    let input = serde_json::to_vec(request).context(doing)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(&input).context(doing)?;
    }
    let output = child.wait_with_output().context(doing)?;
    if !output.status.success() {
        return Err(Error::failed(format!("{}: {}", doing(), String::from_utf8_lossy(&output.stderr).trim())));
    }
    if request.ipc { mount_shm(&request.dir.join("shm")) } else { Ok(()) }
}

/// Refuses what cannot be, before anything is made.
fn check(request: &PinRequest) -> Result<()> {
    if request.user.is_some() {
        return Err(Error::Unsupported("User namespaces are not implemented by conward-cri".to_owned()));
    }
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

fn mount_shm(dir: &Path) -> Result<()> {
    let doing = || format!("Failed to mount {}", dir.display());
    fs::create_dir_all(dir).context(doing)?;
    let flags = MsFlags::MS_NOEXEC | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let options = format!("mode=1777,size={SHM_SIZE}");
    mount(Some("shm"), dir, Some("tmpfs"), flags, Some(options.as_str())).context(doing)
}

/// The child's part; its words are for the parent.
pub fn pin_main(mut words: impl Iterator<Item = OsString>) -> ExitCode {
    let parent = words.next().and_then(|word| word.to_str()?.parse().ok());
    match end_with(parent).and_then(|()| pin_here()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

/// Nothing is pinned after the server's end: the next one has cleaned up by then.
fn end_with(parent: Option<i32>) -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .context(|| "Failed to ask for the parent's end")?;
    match Some(nix::unistd::getppid().as_raw()) == parent {
        true => Ok(()),
        false => Err(Error::failed("The server has ended")),
    }
}

fn pin_here() -> Result<()> {
    let mut text = Vec::new();
    std::io::stdin().read_to_end(&mut text).context(|| "Failed to read the request")?;
    let request: PinRequest = serde_json::from_slice(&text).context(|| "Failed to read the request")?;
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
    for (kind, (wanted, _)) in KINDS.iter().zip(&wanted).take(3) {
        if *wanted {
            bind(&PathBuf::from(format!("/proc/self/ns/{kind}")), &request.dir.join("ns").join(kind))?;
        }
    }
    if request.pid { hold(&request.dir) } else { Ok(()) }
}

/// Starts the first process of the new pid namespace and pins that.
fn hold(dir: &Path) -> Result<()> {
    let doing = || format!("Failed to start the holder of the pid namespace of {}", dir.display());
    let own = fs::read_link("/proc/self/exe").context(doing)?;
    let program = own.with_file_name("conward-hold");
    let mut child = Command::new(&program)
        .arg(dir)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context(|| format!("{} ({})", doing(), program.display()))?;
    let pid = child.id();
    let started = start_time(pid).context(doing)?;
    crate::state::write_bytes(&dir.join(HOLDER), format!("{pid} {started}").as_bytes())?;
    bind(&PathBuf::from(format!("/proc/{pid}/ns/pid")), &dir.join("ns/pid"))?;
    // It stays only now that it can be found.
    match child.stdin.take() {
        Some(mut stdin) => stdin.write_all(b"\n").context(doing),
        None => Ok(()),
    }
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    let doing = || format!("Failed to pin {} on {}", from.display(), to.display());
    File::create(to).context(doing)?;
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>).context(doing)
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

/// Whether pods can have user namespaces.
pub fn user_namespaces() -> bool {
    false
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
