//! All unsafe code of this program.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::libc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::stdio::Descriptor;

mod raw {
    use nix::libc;
    nix::ioctl_read_bad!(window_size, libc::TIOCGWINSZ, libc::winsize);
}

/// Rows and columns of a terminal.
pub fn window_size(terminal: impl AsFd) -> Option<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the descriptor is open while it is borrowed, and the kernel writes one `winsize` to the place given.
    let answer = unsafe { raw::window_size(terminal.as_fd().as_raw_fd(), &mut size) };
    answer.ok().map(|_| (size.ws_row, size.ws_col))
}

/// Lets the loop wait for a standard descriptor; an error if the kernel cannot, as with files.
pub fn watch(which: Descriptor, interest: Interest) -> io::Result<AsyncFd<Descriptor>> {
    // SAFETY: a `Descriptor` is always the same number, and nothing in this program closes 0, 1 or 2.
    let watched = unsafe { AsyncFd::register_with_interest(which, interest) };
    watched.map_err(io::Error::from)
}
