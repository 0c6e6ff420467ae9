use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Resize { rows: u16, cols: u16 },
    ReopenLog,
}
#[derive(Debug)]
pub struct Rejected;
impl std::fmt::Display for Rejected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("x")
    }
}
pub enum Kind {
    Ctl,
    Winsz,
}
pub enum Drained {
    Again,
    Wait,
}
#[derive(Debug)]
pub struct Fifo(std::fs::File);
impl Fifo {
    pub fn create(_: &Path, _: &str, _: Kind) -> Result<Fifo, io::Error> {
        Ok(Fifo(std::fs::File::options().read(true).open("/dev/tty0")?))
    }
    pub fn read(&mut self, _: impl FnMut(Result<Command, Rejected>)) -> io::Result<Drained> {
        Ok(Drained::Wait)
    }
}
impl AsFd for Fifo {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
