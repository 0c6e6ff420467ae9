use crate::control::Drained;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
#[derive(Debug)]
pub struct Relay(std::fs::File);
impl Relay {
    pub fn bind(_: &Path, _: &OsStr) -> Result<Relay, String> {
        Err("x".into())
    }
    pub fn relay(&mut self) -> Drained {
        Drained::Wait
    }
}
impl AsFd for Relay {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
