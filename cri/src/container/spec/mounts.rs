//! What a container sees of the file systems: what everybody gets, the pod's files, and what the request mounts.

use std::path::{Component, Path, PathBuf};

use k8s_cri::v1::{ContainerConfig, LinuxContainerSecurityContext, Mount, MountPropagation};
use serde_json::{Value, json};

use super::Facts;
use crate::error::{Error, Result};

/// The host's side of a mount, symbolic links followed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    pub path: PathBuf,
    /// Of the mount that it is in.
    pub peers: Peers,
}

/// What a mount tells others and hears from them (mount_namespaces(7)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Peers {
    #[default]
    Private,
    /// Hears only.
    Slave,
    Shared,
}

/// All mounts, those above before those below them.
pub fn mounts(config: &ContainerConfig, context: &LinuxContainerSecurityContext, facts: &Facts) -> Result<Vec<Value>> {
    let mut own: Vec<Value> = Vec::new();
    for (mount, source) in config.mounts.iter().zip(&facts.sources) {
        let one = bind(mount, source, facts.recursive_read_only)?;
        own.retain(|other| other["destination"] != one["destination"]);
        own.push(one);
    }
    let taken = |target: &str| own.iter().any(|mount| mount["destination"] == target);
    let dev = taken("/dev");
    let mut all = usual(context.privileged);
    all.extend(of_pod(context, facts));
    // What is asked for takes the place of what everybody gets; a /dev of the host has all that ours would have.
    all.retain(|mount| {
        let target = mount["destination"].as_str().unwrap_or_default();
        !(taken(target) || dev && Path::new(target).starts_with("/dev"))
    });
    all.extend(own);
    all.sort_by_key(|mount| mount["destination"].as_str().map_or(0, depth));
    Ok(all)
}

fn depth(target: &str) -> usize {
    Path::new(target).components().count()
}

fn usual(privileged: bool) -> Vec<Value> {
    let sys = if privileged { "rw" } else { "ro" };
    let plain = json!(["nosuid", "noexec", "nodev"]);
    let of_sys = json!(["nosuid", "noexec", "nodev", sys]);
    let cgroup = json!(["nosuid", "noexec", "nodev", "relatime", sys]);
    let dev = json!(["nosuid", "strictatime", "mode=755", "size=65536k"]);
    let pts = json!(["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]);
    [
        ("/proc", "proc", plain.clone()),
        ("/dev", "tmpfs", dev),
        ("/dev/pts", "devpts", pts),
        ("/dev/mqueue", "mqueue", plain),
        ("/sys", "sysfs", of_sys),
        ("/sys/fs/cgroup", "cgroup", cgroup),
    ]
    .into_iter()
    .map(|(target, kind, options)| json!({ "destination": target, "type": kind, "source": kind, "options": options }))
    .collect()
}

fn of_pod(context: &LinuxContainerSecurityContext, facts: &Facts) -> Vec<Value> {
    let bind = |target: &str, source: &Path, options: &[&str]| json!({ "destination": target, "type": "bind", "source": source, "options": options });
    let shm = facts.shm.as_deref().unwrap_or(Path::new("/dev/shm"));
    let mut all = vec![bind("/dev/shm", shm, &["rbind", "rw", "nosuid", "nodev", "noexec"])];
    let mode = if context.readonly_rootfs { "ro" } else { "rw" };
    for (target, source) in &facts.files {
        all.push(bind(target, source, &["rbind", "rprivate", mode, "nosuid", "nodev", "noexec"]));
    }
    all
}

/// Whether a mount is of something that the host has; what is not is an image's.
pub fn of_host(mount: &Mount) -> bool {
    mount.image.as_ref().is_none_or(|image| image.image.is_empty())
}

/// What can be said of a mount without looking at the host, so that nothing is made there for one that is refused.
pub fn check(mount: &Mount) -> Result<()> {
    let target = &mount.container_path;
    let refuse = |why: &str| Err(Error::invalid(format!("Mount {target:?}: {why}")));
    if target.is_empty() {
        return refuse("container_path is empty");
    }
    if clean(target) == "/" {
        return refuse("the root cannot be mounted over");
    }
    if of_host(mount) && !mount.host_path.starts_with('/') {
        return refuse("host_path is no absolute path");
    }
    let Ok(propagation) = MountPropagation::try_from(mount.propagation) else {
        return refuse("propagation is unknown");
    };
    match (mount.recursive_read_only, mount.readonly, propagation) {
        (true, false, _) => refuse("recursive_read_only without readonly"),
        (true, true, propagation) if propagation != MountPropagation::PropagationPrivate => {
            refuse("recursive_read_only with propagation")
        }
        _ => Ok(()),
    }
}

fn bind(mount: &Mount, source: &Source, recursive_read_only: bool) -> Result<Value> {
    check(mount)?;
    let (target, path) = (clean(&mount.container_path), source.path.display());
    let refuse = |why: &str| Err(Error::invalid(format!("Mount {target}: {why}")));
    let propagation = match (MountPropagation::try_from(mount.propagation), source.peers) {
        (Ok(MountPropagation::PropagationHostToContainer), Peers::Shared | Peers::Slave) => "rslave",
        (Ok(MountPropagation::PropagationHostToContainer), Peers::Private) => {
            return refuse(&format!("HostToContainer needs a shared or slave mount, and {path} is in a private one"));
        }
        (Ok(MountPropagation::PropagationBidirectional), Peers::Shared) => "rshared",
        (Ok(MountPropagation::PropagationBidirectional), _) => {
            return refuse(&format!("Bidirectional needs a shared mount, and {path} is not in one"));
        }
        _ => "rprivate",
    };
    let mode = match (mount.recursive_read_only, mount.readonly) {
        (true, _) if !recursive_read_only => {
            let why = "recursive_read_only is not known to the runtime or the kernel";
            return Err(Error::Unsupported(format!("Mount {target}: {why}")));
        }
        (true, _) => "rro",
        (false, true) => "ro",
        (false, false) => "rw",
    };
    Ok(json!({ "destination": target, "type": "bind", "source": source.path, "options": ["rbind", propagation, mode] }))
}

/// An absolute path without `.`, `..`, doubled and last slashes. No link is followed: the runtime does that.
pub fn clean(path: &str) -> String {
    let mut out = PathBuf::from("/");
    for part in Path::new(path).components() {
        match part {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => _ = out.pop(),
            _ => {}
        }
    }
    out.to_string_lossy().into_owned()
}

/// The root must pass on what one of the mounts wants to hear or tell.
pub fn propagation(mounts: &[Mount]) -> &'static str {
    let any = |wanted: MountPropagation| mounts.iter().any(|mount| mount.propagation == wanted as i32);
    match (any(MountPropagation::PropagationBidirectional), any(MountPropagation::PropagationHostToContainer)) {
        (true, _) => "rshared",
        (false, true) => "rslave",
        (false, false) => "rprivate",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(target: &str) -> Mount {
        Mount { container_path: target.into(), host_path: "/y".into(), ..Mount::default() }
    }

    fn with(wanted: MountPropagation, peers: Peers) -> Result<Value> {
        let mount = Mount { propagation: wanted as i32, ..mount("/x") };
        bind(&mount, &Source { path: "/y".into(), peers }, true).map(|mount| mount["options"][1].clone())
    }

    #[test]
    fn propagation_needs_a_source_that_does_it() {
        use MountPropagation::{PropagationBidirectional, PropagationHostToContainer, PropagationPrivate};
        for (wanted, peers, option) in [
            (PropagationPrivate, Peers::Private, Some("rprivate")),
            (PropagationPrivate, Peers::Shared, Some("rprivate")),
            (PropagationHostToContainer, Peers::Shared, Some("rslave")),
            (PropagationHostToContainer, Peers::Slave, Some("rslave")),
            (PropagationHostToContainer, Peers::Private, None),
            (PropagationBidirectional, Peers::Shared, Some("rshared")),
            (PropagationBidirectional, Peers::Slave, None),
            (PropagationBidirectional, Peers::Private, None),
        ] {
            match (with(wanted, peers), option) {
                (Ok(seen), Some(option)) => assert_eq!(seen, option),
                (Err(error), None) => assert!(error.to_string().contains("/y"), "{error}"),
                (seen, _) => panic!("{wanted:?} of {peers:?}: {seen:?}"),
            }
        }
    }

    #[test]
    fn recursive_read_only_has_its_conditions() {
        let source = Source { path: "/y".into(), peers: Peers::Shared };
        let mount = |readonly, propagation: MountPropagation| Mount {
            readonly,
            recursive_read_only: true,
            propagation: propagation as i32,
            ..mount("/x")
        };
        let good = mount(true, MountPropagation::PropagationPrivate);
        assert_eq!(bind(&good, &source, true).unwrap()["options"], json!(["rbind", "rprivate", "rro"]));
        assert!(matches!(bind(&good, &source, false), Err(Error::Unsupported(text)) if text.contains("/x")));
        for bad in [
            mount(false, MountPropagation::PropagationPrivate),
            mount(true, MountPropagation::PropagationHostToContainer),
        ] {
            assert!(matches!(check(&bad), Err(Error::Invalid(text)) if text.contains("/x")));
        }
    }

    #[test]
    fn targets_are_normal() {
        for (path, expected) in
            [("/dev/shm/", "/dev/shm"), ("//a/./b", "/a/b"), ("a", "/a"), ("/a/../../b", "/b"), ("/..", "/")]
        {
            assert_eq!(clean(path), expected);
        }
        for bad in ["", "/", "/x/.."] {
            assert!(check(&mount(bad)).is_err(), "{bad:?}");
        }
        assert!(check(&Mount { host_path: "relative".into(), ..mount("/x") }).is_err());
    }

    fn targets(asked: &[&str]) -> Vec<String> {
        let config =
            ContainerConfig { mounts: asked.iter().map(|target| mount(target)).collect(), ..Default::default() };
        let facts = Facts {
            sources: vec![Source { path: "/y".into(), ..Source::default() }; asked.len()],
            files: vec![("/etc/hosts", "/pod/hosts".into())],
            ..Facts::default()
        };
        let all = mounts(&config, &LinuxContainerSecurityContext::default(), &facts).unwrap();
        all.iter()
            .map(|mount| {
                let own = if mount["source"] == "/y" { "!" } else { "" };
                format!("{own}{}", mount["destination"].as_str().unwrap())
            })
            .collect()
    }

    #[test]
    fn requests_take_the_place_of_what_everybody_gets() {
        let plain = ["/proc", "/dev", "/sys", "/dev/pts", "/dev/mqueue", "/dev/shm", "/etc/hosts", "/sys/fs/cgroup"];
        assert_eq!(targets(&[]), plain);
        let seen = targets(&["/a/b", "/dev/shm/", "/a", "/etc//hosts", "/a/b/"]);
        let expected = [
            "/proc",
            "/dev",
            "/sys",
            "!/a",
            "/dev/pts",
            "/dev/mqueue",
            "!/dev/shm",
            "!/etc/hosts",
            "!/a/b",
            "/sys/fs/cgroup",
        ];
        assert_eq!(seen, expected);
        assert_eq!(targets(&["/dev"]), ["/proc", "/sys", "!/dev", "/etc/hosts", "/sys/fs/cgroup"]);
    }
}
