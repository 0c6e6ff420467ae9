//! Where the kernel counts a process's memory events: `/proc/PID/cgroup` (cgroups(7)) and the mounts of cgroupfs.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use crate::error::Error;

/// The directory of a memory cgroup, by version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    V1(PathBuf),
    V2(PathBuf),
}

/// The memory cgroup of process `pid`; `None` if it has none of its own that counts events.
///
/// `root` is where `proc` and `sys` are.
pub fn find(pid: i32, root: &Path) -> Result<Option<Place>, Error> {
    let path = root.join(format!("proc/{pid}/cgroup"));
    let text = read(&path, CGROUP_MAX).map_err(Error::at("read", &path))?;
    let top = root.join("sys/fs/cgroup");
    // Only the root directory of a version 2 hierarchy, or of a namespace's part of one, is found here by this name.
    let unified = top.join("cgroup.controllers").exists();
    if let Some((list, cgroup)) = v1_path(&text).filter(|_| !unified) {
        // The root cgroup's events are everybody's.
        let own = Some(cgroup).filter(|cgroup| !cgroup.as_os_str().is_empty());
        let found = own.and_then(|own| search(root, &top.join(list), &own, V1_FILE, Hierarchy::Memory));
        return Ok(found.map(Place::V1));
    }
    let Some(cgroup) = v2_path(&text) else { return Ok(None) };
    Ok(search(root, &top, &cgroup, V2_FILE, Hierarchy::Unified).map(Place::V2))
}

pub const V1_FILE: &str = "memory.oom_control";
pub const V2_FILE: &str = "memory.events";

/// A directory that holds `file`: at the usual mount, or at the one that the mount table names.
fn search(root: &Path, usual: &Path, cgroup: &Path, file: &str, hierarchy: Hierarchy) -> Option<PathBuf> {
    let usual = usual.join(cgroup);
    if usual.join(file).exists() {
        return Some(usual);
    }
    let text = read(&root.join("proc/self/mountinfo"), MOUNTINFO_MAX).ok()?;
    let mount = mount(&text, hierarchy)?;
    let there = root.join(mount.point.strip_prefix("/").ok()?).join(cgroup.strip_prefix(mount.root).ok()?);
    there.join(file).exists().then_some(there)
}

/// A line has at most a path; there are a dozen.
const CGROUP_MAX: u64 = 256 << 10;
const MOUNTINFO_MAX: u64 = 16 << 20;

fn read(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(path)?.take(max).read_to_end(&mut text)?;
    Ok(text)
}

/// The cgroup of the version 2 hierarchy, relative to its root: the line `0::PATH`, wherever it stands.
pub fn v2_path(text: &[u8]) -> Option<PathBuf> {
    lines(text).find_map(|line| relative(line.strip_prefix(b"0::")?))
}

/// The name of the version 1 hierarchy that has the memory controller, and the cgroup in it, relative to its root: the
/// line `ID:LIST:PATH` where `memory` is in the list.
pub fn v1_path(text: &[u8]) -> Option<(&OsStr, PathBuf)> {
    lines(text).find_map(|line| {
        let mut fields = line.splitn(3, |byte| *byte == b':').skip(1);
        let (list, path) = (fields.next()?, fields.next()?);
        let memory = list.split(|byte| *byte == b',').any(|controller| controller == b"memory");
        (memory && !list.contains(&b'/')).then_some((OsStr::from_bytes(list), relative(path)?))
    })
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b'\n')
}

/// A path below a hierarchy's root. `..` stands for a cgroup outside our cgroup namespace, which no mount shows.
fn relative(path: &[u8]) -> Option<PathBuf> {
    let path = Path::new(OsStr::from_bytes(path)).strip_prefix("/").ok()?;
    path.components().all(|part| matches!(part, Component::Normal(_))).then(|| path.to_path_buf())
}

/// Which hierarchy a mount shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hierarchy {
    /// Version 1, memory controller.
    Memory,
    /// Version 2.
    Unified,
}

/// A mount of a cgroup hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    pub point: PathBuf,
    /// What of the hierarchy is seen there, relative to its root.
    pub root: PathBuf,
}

/// The first mount of `hierarchy` in a mount table (`/proc/PID/mountinfo`, proc(5)):
/// `ID PARENT DEV ROOT POINT OPTIONS [TAGS…] - TYPE SOURCE SUPEROPTIONS`.
pub fn mount(mountinfo: &[u8], hierarchy: Hierarchy) -> Option<Mount> {
    lines(mountinfo).find_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ');
        let (root, point) = (fields.nth(3)?, fields.next()?);
        let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
        let (kind, options) = (fields.next()?, fields.nth(1)?);
        let wanted = match hierarchy {
            Hierarchy::Unified => kind == b"cgroup2",
            Hierarchy::Memory => kind == b"cgroup" && options.split(|byte| *byte == b',').any(|name| name == b"memory"),
        };
        let point = unescaped(point);
        (wanted && point.first() == Some(&b'/')).then_some(Mount {
            point: PathBuf::from(std::ffi::OsString::from_vec(point)),
            root: relative(&unescaped(root))?,
        })
    })
}

/// Blanks, newlines and backslashes stand as three octal digits in a mount table.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, behind)) = rest.split_first() {
        let code = (*first == b'\\').then(|| behind.get(..3)).flatten();
        let code = code.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        out.push(code.unwrap_or(*first));
        rest = if code.is_some() { &behind[3..] } else { behind };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn version_2_paths() {
        let rows: &[(&[u8], Option<&str>)] = &[
            (b"0::/user.slice/a:b\n", Some("user.slice/a:b")),
            (b"4:memory:/x\n1:name=systemd:/y\n0::/z", Some("z")),
            (b"0::/\n", Some("")),
            (b"garbage\n0:/x\n0::x\n0::/ok\n", Some("ok")),
            (b"0::/../up\n", None),
            (b"0::/a/../../b\n", None),
            (b"4:memory:/x\n", None),
            (b"", None),
        ];
        for (text, expected) in rows {
            assert_eq!(v2_path(text), expected.map(PathBuf::from), "{}", String::from_utf8_lossy(text));
        }
    }

    type Row<'a> = (&'a [u8], Option<(&'a str, &'a str)>);

    #[test]
    fn version_1_paths() {
        let rows: &[Row] = &[
            (b"9:name=systemd:/\n4:memory:/a/b:c\n0::/\n", Some(("memory", "a/b:c"))),
            (b"5:cpu,memory,io:/x\n", Some(("cpu,memory,io", "x"))),
            (b"4:memory:/\n", Some(("memory", ""))),
            (b"4:memoryx:/x\n3:name=memory:/x\n0::/memory\n", None),
            (b"4:memory\n4:memory:x\nmemory:/x\n", None),
            (b"4:memory,../../x:/x\n4:memory:/../x\n", None),
        ];
        for (text, expected) in rows {
            let expected = expected.map(|(list, path)| (OsStr::new(list), PathBuf::from(path)));
            assert_eq!(v1_path(text), expected, "{}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn mounts() {
        let table = b"31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
            short line\n\
            34 31 0:31 / /c/cpuset rw shared:5 master:1 - cgroup cgroup rw,cpuset\n\
            35 31 0:32 /docker/a\\134b /odd\\040place rw shared:7 - cgroup none rw,memory\n\
            41 31 0:38 /x/../y /bad rw - cgroup2 cgroup2 rw\n\
            42 31 0:38 / /u rw - cgroup2 cgroup2 rw";
        let memory = Mount { point: "/odd place".into(), root: "docker/a\\b".into() };
        assert_eq!(mount(table, Hierarchy::Memory), Some(memory));
        assert_eq!(mount(table, Hierarchy::Unified), Some(Mount { point: "/u".into(), root: "".into() }));
        assert_eq!(mount(b"1 2 0:3 / /x rw - cgroup cgroup\n", Hierarchy::Memory), None);
        assert_eq!(mount(b"", Hierarchy::Unified), None);
    }

    #[test]
    fn escapes() {
        for (field, plain) in [("a\\040b", "a b"), ("\\134040", "\\040"), ("\\04", "\\04"), ("\\999x", "\\999x")] {
            assert_eq!(unescaped(field.as_bytes()), plain.as_bytes());
        }
    }

    const TWO_TREES: &str = "\
        1 1 0:1 / /odd rw - cgroup2 cgroup2 rw\n\
        2 1 0:2 /outer /mem rw - cgroup cgroup rw,memory\n";

    #[test]
    fn cgroups_are_found_at_usual_and_odd_mounts() {
        let v1 = |path: &str| Some(Place::V1(path.into()));
        let v2 = |path: &str| Some(Place::V2(path.into()));
        // The cgroup file, the files that exist, and what is found.
        let rows: &[(&str, &[&str], Option<Place>)] = &[
            ("0::/a\n", &["sys/fs/cgroup/cgroup.controllers", "sys/fs/cgroup/a/memory.events"], v2("sys/fs/cgroup/a")),
            // A named hierarchy beside version 2, even one that claims to be memory.
            (
                "1:memory:/b\n0::/a\n",
                &["sys/fs/cgroup/cgroup.controllers", "sys/fs/cgroup/a/memory.events"],
                v2("sys/fs/cgroup/a"),
            ),
            ("4:memory:/b\n0::/a\n", &["sys/fs/cgroup/memory/b/memory.oom_control"], v1("sys/fs/cgroup/memory/b")),
            ("4:cpu,memory:/b\n", &["sys/fs/cgroup/cpu,memory/b/memory.oom_control"], v1("sys/fs/cgroup/cpu,memory/b")),
            ("4:memory:/outer/b\n", &["mem/b/memory.oom_control"], v1("mem/b")),
            ("4:memory:/else/b\n", &["mem/b/memory.oom_control"], None),
            ("4:memory:/\n", &["sys/fs/cgroup/memory/memory.oom_control"], None),
            // Memory is in version 2, which is mounted somewhere below.
            ("4:cpu:/b\n0::/a\n", &["odd/a/memory.events"], v2("odd/a")),
            ("0::/a (deleted)\n", &["sys/fs/cgroup/cgroup.controllers"], None),
            ("nothing\n", &["sys/fs/cgroup/cgroup.controllers"], None),
        ];
        for (cgroup, files, expected) in rows {
            let root = tempfile::tempdir().unwrap();
            let table = [("proc/7/cgroup", *cgroup), ("proc/self/mountinfo", TWO_TREES)];
            for (name, text) in table.into_iter().chain(files.iter().map(|name| (*name, ""))) {
                let path = root.path().join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            let found = find(7, root.path()).unwrap().map(|place| match place {
                Place::V1(path) => Place::V1(path.strip_prefix(root.path()).unwrap().into()),
                Place::V2(path) => Place::V2(path.strip_prefix(root.path()).unwrap().into()),
            });
            assert_eq!(found, *expected, "{cgroup:?}");
            let error = find(8, root.path()).unwrap_err();
            assert!(error.to_string().contains("proc/8/cgroup: No such file"), "{error}");
        }
    }
}
