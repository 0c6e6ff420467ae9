//! A stand-in for journald in a mount namespace of its own: a datagram socket at journald's path, which nobody outside
//! the case sees. Entries are `KEY=value\n`, or `KEY\n`, a 64-bit little-endian length, the bytes and `\n`; entries too
//! large for a datagram come as a descriptor. Source: systemd's "Journal native protocol".

use std::fs::File;
use std::io::{IoSliceMut, Read, Seek};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use super::pipes::readable;
use super::wait::SOON;
use super::{Fail, Outcome};

pub type Entry = Vec<(String, Vec<u8>)>;

const HOME: &str = "/run/systemd/journal";

#[derive(Debug)]
pub struct Journal {
    socket: UnixDatagram,
}

impl Journal {
    /// Takes journald's place for this process and its descendants.
    pub fn take_place() -> Outcome<Journal> {
        own_mounts()?;
        tmpfs("/run", "size=1m")?;
        std::fs::create_dir_all(HOME)?;
        Ok(Journal { socket: UnixDatagram::bind(format!("{HOME}/socket"))? })
    }

    /// The next entry.
    pub fn entry(&self) -> Outcome<Entry> {
        self.entry_within(SOON)?.ok_or_else(|| Fail::Wrong("no entry came to the journal".to_owned()))
    }

    /// The next entry, if one comes in time.
    pub fn entry_within(&self, limit: Duration) -> Outcome<Option<Entry>> {
        if !readable(&self.socket, limit)? {
            return Ok(None);
        }
        let mut bytes = vec![0; 1 << 20];
        let mut space = nix::cmsg_space!([RawFd; 1]);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let message = recvmsg::<()>(self.socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
        let (count, large) = (message.bytes, passed(&message)?);
        bytes.truncate(count);
        if let Some(mut file) = large {
            bytes.clear();
            file.rewind()?;
            file.read_to_end(&mut bytes)?;
        }
        entry(&bytes).map(Some).ok_or_else(|| Fail::Wrong(format!("malformed journal entry: {}", bytes.escape_ascii())))
    }
}

/// The value of a field.
pub fn field<'a>(entry: &'a Entry, name: &str) -> Option<&'a [u8]> {
    entry.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_slice())
}

/// Mounts made from now on are seen by this process and its descendants only.
pub fn own_mounts() -> Outcome {
    let refused = |error| Fail::Skip(format!("cannot make a mount namespace: {error}"));
    unshare(CloneFlags::CLONE_NEWNS).map_err(refused)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).map_err(refused)
}

/// Mounts a tmpfs, in the namespace that [`own_mounts`] made.
pub fn tmpfs(path: &str, options: &str) -> Outcome {
    mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), Some(options))
        .map_err(|error| Fail::Skip(format!("cannot mount a tmpfs: {error}")))
}

/// Takes away what a case mounted in its scratch directory, so that the directory can be removed.
pub fn unmount_below(dir: &Path) {
    let table = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for target in
        table.lines().filter_map(|line| line.split(' ').nth(1)).filter(|path| Path::new(path).starts_with(dir))
    {
        // What cannot be unmounted goes with the namespace.
        let _ = umount2(target, MntFlags::MNT_DETACH);
    }
}

fn passed(message: &nix::sys::socket::RecvMsg<()>) -> Outcome<Option<File>> {
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            // Opened anew by name, so that nothing unsafe is needed to own it; the case ends soon and closes the rest.
            return Ok(fds.first().map(|fd| File::open(format!("/proc/self/fd/{fd}"))).transpose()?);
        }
    }
    Ok(None)
}

fn entry(mut bytes: &[u8]) -> Option<Entry> {
    let mut fields = Entry::new();
    while !bytes.is_empty() {
        let end = bytes.iter().position(|byte| *byte == b'\n')?;
        let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
        match line.iter().position(|byte| *byte == b'=') {
            Some(at) => {
                fields.push((String::from_utf8(line[..at].to_vec()).ok()?, line[at + 1..].to_vec()));
                bytes = rest;
            }
            None => {
                let size = usize::try_from(u64::from_le_bytes(rest.get(..8)?.try_into().ok()?)).ok()?;
                let value = rest.get(8..)?.get(..size)?;
                fields.push((String::from_utf8(line.to_vec()).ok()?, value.to_vec()));
                bytes = rest.get(8 + size..)?.strip_prefix(b"\n")?;
            }
        }
    }
    Some(fields)
}
