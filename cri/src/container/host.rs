//! What this host, its kernel and this program's place on it allow containers to have.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::spec::seccomp::{self, Machine};
use super::spec::security::NAMES;
use super::spec::{Cgroups, Peers, Source};
use crate::cgroup;
use crate::error::{Context, Error, Result};

/// Capabilities of this program.
#[derive(Clone, Debug)]
pub struct Capabilities {
    /// Names of the bounding set.
    pub bounding: Vec<String>,
    effective: u64,
}

impl Capabilities {
    pub fn own() -> Result<Capabilities> {
        let doing = || "Failed to read own capabilities";
        let status = fs::read_to_string("/proc/self/status").context(doing)?;
        let mask = |key: &str| {
            let text = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
            u64::from_str_radix(text.trim(), 16).context(doing)
        };
        let bounding = mask("CapBnd:")?;
        let numbered = NAMES.iter().enumerate().filter(|(bit, _)| bounding >> bit & 1 == 1);
        let bounding = numbered.map(|(_, name)| format!("CAP_{name}")).collect();
        Ok(Capabilities { bounding, effective: mask("CapEff:")? })
    }

    /// The lowest value that this program may give its children; nothing where it may give any.
    pub fn least_oom_score_adj(&self) -> Option<i64> {
        let resource = NAMES.iter().position(|name| *name == "SYS_RESOURCE").unwrap_or_default();
        if self.effective >> resource & 1 == 1 {
            return None;
        }
        let text = fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
        Some(text.trim().parse().unwrap_or(0))
    }
}

/// What the cgroups of this host count.
pub fn cgroups() -> Cgroups {
    let unified = cgroup::unified();
    let root = Path::new("/sys/fs/cgroup");
    if !unified {
        // Without accounting of swap the kernel has no such file, not even in the root.
        let swap = root.join("memory/memory.memsw.limit_in_bytes").exists();
        return Cgroups { unified, swap, hugepages: root.join("hugetlb").exists(), reserved: false };
    }
    let has = |controller: &str| {
        let text = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
        text.split_whitespace().any(|one| one == controller)
    };
    // The root has no limits; this program's own cgroup or one beside it does.
    let limits = |file: &str| {
        own_cgroup(root).is_some_and(|own| own.join(file).exists())
            || fs::read_dir(root).is_ok_and(|all| all.flatten().any(|entry| entry.path().join(file).exists()))
    };
    let reserved = cgroup::huge_sizes().first().is_some_and(|size| limits(&format!("hugetlb.{size}.rsvd.max")));
    Cgroups { unified, swap: limits("memory.swap.max"), hugepages: has("hugetlb"), reserved }
}

fn own_cgroup(root: &Path) -> Option<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(root.join(path.trim_start_matches('/')))
}

pub fn machine() -> Result<Machine> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let kernel = seccomp::version(&release).map_err(Error::Failed)?;
    Ok(Machine { kernel, ..Machine::default() })
}

/// AppArmor profiles that are loaded; nothing where the kernel has no AppArmor.
pub fn apparmor() -> Option<Vec<String>> {
    let on = fs::read_to_string("/sys/module/apparmor/parameters/enabled").ok()?;
    if !on.starts_with('Y') {
        return None;
    }
    let text = fs::read_to_string("/sys/kernel/security/apparmor/profiles").unwrap_or_default();
    // `name (mode)`
    Some(text.lines().filter_map(|line| Some(line.rsplit_once(" (")?.0.to_owned())).collect())
}

pub fn selinux() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists()
}

/// The host's side of a mount. What is not there is made a directory, as other runtimes do.
pub fn source(path: &str) -> Result<Source> {
    let doing = || format!("Failed to find mount source {path}");
    if !Path::new(path).try_exists().context(doing)? {
        fs::create_dir_all(path).context(|| format!("Failed to make mount source {path}"))?;
    }
    let path = fs::canonicalize(path).context(doing)?;
    let peers = peers(&path).context(doing)?;
    Ok(Source { path, peers })
}

/// How the mount that a path is in gets on with others.
fn peers(path: &Path) -> std::result::Result<Peers, String> {
    use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
    let data = statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID).map_err(|error| error.to_string())?;
    let table = fs::read_to_string("/proc/self/mountinfo").map_err(|error| error.to_string())?;
    Ok(table.lines().find_map(|line| peers_in(line, data.stx_mnt_id)).unwrap_or_default())
}

/// A line of mountinfo (proc(5)): id, five more fields, optional ones, a hyphen.
fn peers_in(line: &str, id: u64) -> Option<Peers> {
    let mut fields = line.split(' ');
    if fields.next()?.parse() != Ok(id) {
        return None;
    }
    let optional: Vec<&str> = fields.skip(5).take_while(|field| *field != "-").collect();
    let has = |kind: &str| optional.iter().any(|field| field.starts_with(kind));
    Some(match (has("shared:"), has("master:")) {
        (true, _) => Peers::Shared,
        (false, true) => Peers::Slave,
        (false, false) => Peers::Private,
    })
}

/// Files of images that are read here are small.
const FILE_MAX: u64 = 16 << 20;

/// A file of a container's root file system, in which its links are followed as the container would; nothing for one
/// that is not there or no plain file.
pub fn inside(rootfs: &Path, path: &str) -> Result<String> {
    let doing = || format!("Failed to read /{path} of the image");
    let root = File::open(rootfs).context(doing)?;
    // Not to wait for the other end of a fifo.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = match rustix::fs::openat2(&root, path, flags, Mode::empty(), how) {
        Ok(file) => File::from(file),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(String::new()),
        Err(error) => return Err(Error::failed(format!("{}: {error}", doing()))),
    };
    if !file.metadata().context(doing)?.is_file() {
        return Ok(String::new());
    }
    let mut bytes = Vec::new();
    let read = file.take(FILE_MAX + 1).read_to_end(&mut bytes).context(doing)?;
    match read as u64 > FILE_MAX {
        true => Err(Error::invalid(format!("{}: it has more than {FILE_MAX} bytes", doing()))),
        false => Ok(String::from_utf8_lossy(&bytes).into_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_have_peers() {
        let line =
            |optional: &str| format!("36 35 98:0 /mnt1 /mnt2 rw,noatime {optional}- ext3 /dev/root rw,errors=continue");
        assert_eq!(peers_in(&line(""), 36), Some(Peers::Private));
        assert_eq!(peers_in(&line("shared:1 master:2 "), 36), Some(Peers::Shared));
        assert_eq!(peers_in(&line("master:2 propagate_from:1 "), 36), Some(Peers::Slave));
        assert_eq!(peers_in(&line("shared:1 "), 3), None);
    }

    #[test]
    fn sources_are_made_and_followed() {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        let made = root.join("a/b");
        assert_eq!(source(made.to_str().unwrap()).unwrap().path, made);
        assert!(made.is_dir());
        std::os::unix::fs::symlink("a/b", root.join("link")).unwrap();
        assert_eq!(source(root.join("link").to_str().unwrap()).unwrap().path, made);
        fs::write(root.join("file"), "").unwrap();
        assert!(source(root.join("file/x").to_str().unwrap()).is_err());
    }

    #[test]
    fn links_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        let (outside, rootfs) = (dir.path().join("secret"), dir.path().join("root"));
        fs::create_dir_all(rootfs.join("etc")).unwrap();
        fs::write(&outside, "outside").unwrap();
        fs::write(rootfs.join("plain"), "inside").unwrap();
        let link = |to: &Path, name: &str| std::os::unix::fs::symlink(to, rootfs.join("etc").join(name)).unwrap();
        link(&outside, "absolute");
        link(Path::new("../../secret"), "relative");
        link(Path::new("/plain"), "rooted");
        link(Path::new("loop"), "loop");
        nix::unistd::mkfifo(&rootfs.join("etc/fifo"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        for name in ["absolute", "relative", "fifo", "none"] {
            assert_eq!(inside(&rootfs, &format!("etc/{name}")).unwrap(), "", "{name}");
        }
        assert_eq!(inside(&rootfs, "etc/rooted").unwrap(), "inside");
        assert!(inside(&rootfs, "etc/loop").unwrap_err().to_string().contains("etc/loop"));
    }

    #[test]
    fn own_capabilities_have_names() {
        let own = Capabilities::own().unwrap();
        assert!(own.bounding.iter().all(|name| name.starts_with("CAP_")));
        let lacks = Capabilities { bounding: Vec::new(), effective: 0 };
        let has = Capabilities { bounding: Vec::new(), effective: u64::MAX };
        assert!(lacks.least_oom_score_adj().is_some() && has.least_oom_score_adj().is_none());
    }

    #[test]
    fn this_machine_is_known() {
        assert!(machine().unwrap().kernel >= (4, 0));
    }
}
