//! All unsafe code: what neither nix nor rustix wraps, behind safe functions.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Lets a detached mount, and those below it, show ids as a user namespace has them (mount_setattr(2)). They hear of what
/// is mounted and unmounted in those that they were made of, and tell these nothing: whoever unmounts them unmounts nothing
/// else.
pub fn map_ids(mount: impl AsFd, namespace: impl AsFd) -> io::Result<()> {
    let userns_fd = u64::try_from(namespace.as_fd().as_raw_fd()).map_err(io::Error::other)?;
    set_attributes(mount, libc::MOUNT_ATTR_IDMAP, libc::MS_SLAVE, userns_fd)
}

/// One heap for all threads that are started from now on: by default each gets its own, and what is freed in one is not used
/// by another (mallopt(3)).
pub fn share_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it sets a number of the allocator's, under the allocator's own lock.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Makes a detached mount, and those below it, read-only (mount_setattr(2)).
pub fn make_read_only(mount: impl AsFd) -> io::Result<()> {
    set_attributes(mount, libc::MOUNT_ATTR_RDONLY, 0, 0)
}

fn set_attributes(mount: impl AsFd, attr_set: u64, propagation: u64, userns_fd: u64) -> io::Result<()> {
    let attributes = libc::mount_attr { attr_set, attr_clr: 0, propagation, userns_fd };
    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    // SAFETY: the descriptors are borrowed for the length of the call; the path ends with a zero, and the structure,
    // which the kernel only reads, is as large as the call is told.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
