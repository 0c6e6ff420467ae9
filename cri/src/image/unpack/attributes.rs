//! What an entry's header and its pax extensions say about a file.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use rustix::fs::{AtFlags, Gid, Mode, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags};
use rustix::io::Errno;

use crate::error::{Context, Result};

/// What an entry's header and its extensions say.
pub struct Attributes {
    pub mode: Mode,
    uid: Uid,
    gid: Gid,
    pub times: Timestamps,
    xattrs: Vec<(OsString, Vec<u8>)>,
}

impl Attributes {
    pub fn of(entry: &mut tar::Entry<'_, impl Read>) -> Result<Attributes> {
        let header = entry.header();
        let bad = || "header";
        let old = header.as_old();
        let mode = or_zero(&old.mode, header.mode()).context(bad)? & 0o7777;
        let uid = u32::try_from(or_zero(&old.uid, header.uid()).context(bad)?).context(|| "uid")?;
        let gid = u32::try_from(or_zero(&old.gid, header.gid()).context(bad)?).context(|| "gid")?;
        let seconds = or_zero(&old.mtime, header.mtime()).context(bad)?;
        let mut mtime = Timespec { tv_sec: i64::try_from(seconds).unwrap_or(0), tv_nsec: 0 };
        let mut xattrs = Vec::new();
        for extension in entry.pax_extensions().context(bad)?.into_iter().flatten().flatten() {
            let key = extension.key_bytes();
            if key == b"mtime" {
                mtime = extension.value().ok().and_then(timespec).unwrap_or(mtime);
            } else if let Some(name) = key.strip_prefix(b"SCHILY.xattr.".as_slice()).filter(|name| wanted(name)) {
                xattrs.push((OsString::from_vec(name.to_vec()), extension.value_bytes().to_vec()));
            }
        }
        Ok(Attributes {
            mode: Mode::from_raw_mode(mode),
            uid: Uid::from_raw(uid),
            gid: Gid::from_raw(gid),
            times: Timestamps { last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT }, last_modification: mtime },
            xattrs,
        })
    }

    /// Owner first: a change of owner clears capabilities and the set-id bits.
    pub fn apply(&self, file: BorrowedFd<'_>) -> Result<()> {
        rustix::fs::fchown(file, Some(self.uid), Some(self.gid)).context(|| "owner")?;
        for (name, value) in &self.xattrs {
            match rustix::fs::fsetxattr(file, name, value, XattrFlags::empty()) {
                Err(Errno::NOTSUP) if name.as_bytes().starts_with(b"user.") => {}
                other => other.context(|| format!("attribute {}", name.display()))?,
            }
        }
        rustix::fs::fchmod(file, self.mode).context(|| "mode")?;
        rustix::fs::futimens(file, &self.times).context(|| "time")
    }

    /// For what cannot be opened.
    pub fn own(&self, dir: &OwnedFd, name: &OsStr) -> Result<()> {
        rustix::fs::chownat(dir, name, Some(self.uid), Some(self.gid), AtFlags::SYMLINK_NOFOLLOW)
            .context(|| "owner")?;
        rustix::fs::utimensat(dir, name, &self.times, AtFlags::SYMLINK_NOFOLLOW).context(|| "time")
    }
}

/// Some write nothing where they mean zero.
fn or_zero<T: Default>(field: &[u8], number: io::Result<T>) -> io::Result<T> {
    if field.iter().all(|byte| matches!(byte, 0 | b' ')) { Ok(T::default()) } else { number }
}

/// Attributes with a meaning for the container. Those of overlayfs would let an image steer the mount, and labels are
/// given by the mount.
fn wanted(name: &[u8]) -> bool {
    name == b"security.capability" || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
}

/// Seconds with a fraction, as pax has them.
fn timespec(text: &str) -> Option<Timespec> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let nanoseconds: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    Some(Timespec { tv_sec: seconds.parse().ok()?, tv_nsec: nanoseconds.parse().ok()? })
}
