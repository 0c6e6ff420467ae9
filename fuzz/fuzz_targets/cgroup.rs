//! cgroup files: what stands in `/proc/PID/cgroup`, in a mount table and in the files of counters is found whatever stands
//! beside it, and no text leads out of the hierarchy.
#![no_main]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use conward::oom::Counters;
use conward::oom::cgroup::{Hierarchy, Mount, mount, v1_path, v2_path};
use conward_fuzz::Dice;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    hostile(data);
    let mut dice = Dice(data);
    paths(&mut dice);
    mounts(&mut dice);
    counters(&mut dice);
});

/// Any text: a path that comes out of it stays below what it is joined to.
fn hostile(text: &[u8]) {
    let paths = [v2_path(text), v1_path(text).map(|(_, path)| path)];
    let mounts = [Hierarchy::Memory, Hierarchy::Unified].map(|hierarchy| mount(text, hierarchy));
    let roots = mounts.iter().flatten().map(|mount| mount.root.clone());
    for path in paths.into_iter().flatten().chain(roots) {
        assert!(path.components().all(|part| matches!(part, Component::Normal(_))), "{path:?}");
    }
    assert!(mounts.iter().flatten().all(|mount| mount.point.is_absolute()));
    if let Some((list, _)) = v1_path(text) {
        assert!(Path::new("x").join(list).parent() == Some(Path::new("x")), "{list:?} is one name");
    }
    let Counters { oom, oom_kill } = Counters::parse(text);
    for (key, value) in [("oom", oom), ("oom_kill", oom_kill)] {
        let there = text.windows(key.len()).any(|window| window == key.as_bytes());
        assert!(value.is_none() || there, "{key} from nowhere");
    }
}

/// Lines as the kernel writes them, among other hierarchies.
fn paths(dice: &mut Dice<'_>) {
    let others: [&[u8]; 4] = [b"", b"3:cpu,cpuacct:/a\n", b"1:name=systemd:/b:c\n", b"0:memory_x:/d\n"];
    let (before, behind) = (others[dice.below(4)], others[dice.below(4)]);
    let Some(path) = plain_path(dice) else { return };
    let absolute = [b"/", path.as_os_str().as_bytes()].concat();
    let text = |head: &[u8]| [before, head, &absolute, b"\n", behind].concat();
    assert_eq!(v2_path(&text(b"0::")), Some(path.clone()));
    assert_eq!(v1_path(&text(b"0::")), None);
    let list = ["memory", "cpu,memory", "memory,hugetlb"][dice.below(3)];
    let text = text(format!("12:{list}:").as_bytes());
    assert_eq!(v1_path(&text), Some((OsStr::new(list), path)));
    assert_eq!(v2_path(&text), None);
}

/// A path below a root as the kernel may write it: any bytes but newlines, no dots as a name.
fn plain_path(dice: &mut Dice<'_>) -> Option<PathBuf> {
    let len = dice.below(40);
    let path = dice.take(len);
    let dots = |name: &[u8]| matches!(name, b"." | b"..");
    if path.contains(&b'\n') || path.contains(&0) || path.split(|&byte| byte == b'/').any(dots) {
        return None;
    }
    Some(Path::new("/").join(OsStr::from_bytes(path)).strip_prefix("/").ok()?.to_path_buf())
}

/// A mount table says the same when it is written as `seq_escape` in the kernel does.
fn mounts(dice: &mut Dice<'_>) {
    let (kind, options, hierarchy, other) = [
        ("cgroup2", "rw,nsdelegate", Hierarchy::Unified, Hierarchy::Memory),
        ("cgroup", "rw,memory", Hierarchy::Memory, Hierarchy::Unified),
    ][dice.below(2)];
    let tags = ["", "shared:9 ", "shared:9 master:1 "][dice.below(3)];
    let (Some(root), Some(point)) = (plain_path(dice), plain_path(dice)) else { return };
    let escape = |path: &Path| -> String {
        let bytes = path.as_os_str().as_bytes().iter();
        // Bytes above 127 would not survive a String; the parser treats them like letters.
        bytes
            .filter(|byte| byte.is_ascii())
            .map(|&byte| match byte {
                b' ' | b'\t' | b'\n' | b'\\' | b'#' => format!("\\{byte:03o}"),
                _ => char::from(byte).to_string(),
            })
            .collect()
    };
    let ascii = |path: &Path| -> PathBuf {
        let bytes: Vec<u8> = path.as_os_str().as_bytes().iter().copied().filter(u8::is_ascii).collect();
        OsStr::from_bytes(&bytes).into()
    };
    // Without its other bytes a path may have become another.
    let (root, point) = (ascii(&root), Path::new("/").join(ascii(&point)));
    if root.is_absolute() || root.components().any(|part| !matches!(part, Component::Normal(_))) {
        return;
    }
    let text = format!(
        "22 1 0:20 / /proc rw - proc proc rw\n35 24 0:30 /{} {} rw,relatime {tags}- {kind} cgroup {options}\n",
        escape(&root),
        escape(&point),
    );
    assert_eq!(mount(text.as_bytes(), hierarchy), Some(Mount { point, root }), "{text}");
    assert_eq!(mount(text.as_bytes(), other), None, "{text}");
}

/// `KEY VALUE` lines in any order: the last one of a key counts, whatever does not look like one is skipped.
fn counters(dice: &mut Dice<'_>) {
    let keys = ["oom", "oom_kill", "low", "max", "oom_group_kill", "under_oom", "oom_kill_disable"];
    let (mut text, mut expected) = (Vec::new(), Counters::default());
    for _ in 0..dice.below(8) {
        let key = keys[dice.below(keys.len())];
        let value = u64::from_le_bytes(std::array::from_fn(|_| dice.byte()));
        text.extend_from_slice(format!("{key} {value}\n").as_bytes());
        match key {
            "oom" => expected.oom = Some(value),
            "oom_kill" => expected.oom_kill = Some(value),
            _ => {}
        }
        let junk = [
            &b""[..],
            b"oom\n",
            b"oom -1\n",
            b"oom +1\n",
            b"oom 1 2\n",
            b"oom_kill 18446744073709551616\n",
            b"\xff 1\n",
        ];
        text.extend_from_slice(junk[dice.below(junk.len())]);
    }
    assert_eq!(Counters::parse(&text), expected, "{}", String::from_utf8_lossy(&text));
}
