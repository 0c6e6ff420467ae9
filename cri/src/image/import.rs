//! Images that are made here: of one layer, from a directory or a tar.

use std::fs;
use std::io::{Read, Seek};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use oci_spec::image::ImageConfiguration;
use serde_json::json;
use tar::{EntryType, Header};

use super::store::{Record, Store};
use super::unpack::unpack;
use super::{Image, files, name};
use crate::error::{Context, Error, Result};

/// The image that is made of this machine's own busybox.
pub const BUSYBOX: &str = "localhost/conward/busybox:latest";

/// What the layer of an imported image is made of.
#[derive(Debug)]
pub enum Content<'a> {
    Directory(&'a Path),
    /// Compressed or not.
    Tar(fs::File),
}

impl Store {
    /// Makes an image of one layer; the configuration's list of layers is filled in. It is pinned, for there is no
    /// registry to get it from again.
    pub fn import(&self, name: &str, content: Content<'_>, config: ImageConfiguration) -> Result<Image> {
        match content {
            Content::Tar(file) => self.import_tar(name, file, config),
            Content::Directory(dir) => {
                let mut tar = tar::Builder::new(self.temp_file()?);
                append_dir(&mut tar, dir, Path::new("")).context(|| format!("Failed to pack {}", dir.display()))?;
                let mut file = tar.into_inner().context(|| "Failed to write layer")?;
                file.rewind().context(|| "Failed to rewind layer")?;
                self.import_tar(name, file, config)
            }
        }
    }

    fn import_tar(&self, name: &str, layer: impl Read, mut config: ImageConfiguration) -> Result<Image> {
        let tag = name::whole(&name::parse(name)?);
        let draft = self.draft()?;
        let diff_id = unpack(layer, &draft.tree()).context(|| format!("Failed to import {name}"))?;
        config.rootfs_mut().set_diff_ids(vec![diff_id.clone()]);
        let config = config.to_string().context(|| format!("Failed to describe {name}"))?;
        let id = files::digest(config.as_bytes());
        let _hold = self.hold([diff_id.clone(), id.clone()])?;
        self.put_blob(config.as_bytes())?;
        self.keep(draft, &diff_id)?;
        self.put(Record {
            blobs: vec![id.clone()],
            id,
            tags: vec![tag],
            layers: vec![diff_id],
            pinned: true,
            ..Record::default()
        })
    }

    fn temp_file(&self) -> Result<fs::File> {
        let path = self.temp("import");
        let file = fs::File::options().read(true).write(true).create_new(true).open(&path);
        let file = file.context(|| format!("Failed to make {}", path.display()))?;
        files::remove_file(&path)?;
        Ok(file)
    }
}

/// The configuration of an image of which nothing is known but its files: this machine's architecture, a shell.
pub fn plain() -> Result<ImageConfiguration> {
    let config = json!({
        "architecture": oci_spec::image::Arch::default(),
        "os": "linux",
        "config": { "Cmd": ["sh"], "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"] },
        "rootfs": { "type": "layers", "diff_ids": [] },
    });
    serde_json::from_value(config).context(|| "Failed to describe an image")
}

/// Packs a tree in the order of names, so that the same tree is the same layer.
fn append_dir(tar: &mut tar::Builder<fs::File>, root: &Path, below: &Path) -> std::io::Result<()> {
    let dir = root.join(below);
    let mut names = fs::read_dir(&dir)?.map(|entry| Ok(entry?.file_name())).collect::<std::io::Result<Vec<_>>>()?;
    names.sort();
    for name in names {
        let (inner, path) = (below.join(&name), dir.join(&name));
        let data = fs::symlink_metadata(&path)?;
        let mut header = Header::new_gnu();
        header.set_metadata(&data);
        header.set_size(if data.is_file() { data.size() } else { 0 });
        if data.is_dir() {
            tar.append_data(&mut header, &inner, std::io::empty())?;
            append_dir(tar, root, &inner)?;
        } else if data.is_symlink() {
            tar.append_link(&mut header, &inner, fs::read_link(&path)?)?;
        } else if data.is_file() {
            tar.append_data(&mut header, &inner, fs::File::open(&path)?)?;
        } else {
            tar.append_data(&mut header, &inner, std::io::empty())?;
        }
    }
    Ok(())
}

/// An image of this machine's static busybox: for tests and for pods that only wait. The same program makes the same
/// image.
pub fn busybox(store: &Store, name: &str) -> Result<Image> {
    let found = ["/bin/busybox", "/usr/bin/busybox", "/sbin/busybox"].into_iter().find(|path| Path::new(path).exists());
    let program = found.ok_or_else(|| Error::missing("program", "busybox"))?;
    let data = fs::read(program).context(|| format!("Failed to read {program}"))?;
    let applets = Command::new(program).arg("--list").output().context(|| format!("Failed to run {program}"))?;
    let tar = busybox_layer(&data, &String::from_utf8_lossy(&applets.stdout)).context(|| "Failed to pack busybox")?;
    store.import_tar(name, tar.as_slice(), plain()?)
}

fn busybox_layer(program: &[u8], applets: &str) -> std::io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut entry = |kind, path: &str, mode, data: &[u8]| {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(if kind == EntryType::Symlink { 0 } else { data.len() as u64 });
        match kind {
            EntryType::Symlink => tar.append_link(&mut header, path, String::from_utf8_lossy(data).as_ref()),
            _ => tar.append_data(&mut header, path, data),
        }
    };
    for dir in ["bin", "dev", "etc", "home", "proc", "root", "sys", "usr", "usr/bin", "var", "var/tmp", "tmp"] {
        let mode = match dir {
            "root" => 0o700,
            "tmp" | "var/tmp" => 0o1777,
            _ => 0o755,
        };
        entry(EntryType::Directory, dir, mode, b"")?;
    }
    entry(EntryType::Regular, "bin/busybox", 0o755, program)?;
    for applet in applets.lines().filter(|applet| *applet != "busybox" && !applet.contains('/')) {
        entry(EntryType::Symlink, &format!("bin/{applet}"), 0o777, b"busybox")?;
    }
    entry(EntryType::Symlink, "usr/bin/env", 0o777, b"../../bin/busybox")?;
    let passwd = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n";
    entry(EntryType::Regular, "etc/passwd", 0o644, passwd.as_bytes())?;
    entry(EntryType::Regular, "etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n")?;
    tar.into_inner()
}
