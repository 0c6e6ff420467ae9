//! What is handed over: a Cap'n Proto message in a sealed memfd, and the descriptors that it names.
//!
//! Each room saves and restores its own part, in its own `saved.rs`. Nothing in a state is believed: a value that this
//! program would never write is refused, and no number of a descriptor may be named twice.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;

use capnp::Word;
use capnp::message::{Builder, HeapAllocator, ReaderOptions};
use capnp::serialize;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::monitor::saved::Saved;
use crate::options::Options;
use crate::sys;
use crate::upgrade::state_capnp::state;

/// The version of the state that this program writes, and the newest that it reads.
pub const VERSION: u32 = 1;

/// Bytes that a state may have; clients without a log to fall back on are what can make it large.
pub const SIZE_MAX: usize = 64 << 20;

/// Structures within structures; the schema has six levels.
const NESTING_MAX: i32 = 16;

/// Why a state cannot be written or is not accepted.
#[derive(Debug)]
pub enum StateError {
    /// A newer program wrote it.
    Version(u32),
    /// More bytes than [`SIZE_MAX`].
    Size(u64),
    Encoding(capnp::Error),
    /// A value that cannot be; the name of its field.
    Value(&'static str),
    /// A number that no descriptor of ours has.
    Descriptor(RawFd),
    /// A descriptor that has an owner already.
    Twice(RawFd),
    Closed(RawFd, io::Error),
    /// It could be changed while it is read.
    Unsealed,
    Memory(io::Error),
}

impl fmt::Display for StateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StateError::Version(version) => write!(f, "the state has version {version}, {VERSION} is the newest known"),
            StateError::Size(size) => write!(f, "the state has {size} bytes, {SIZE_MAX} are allowed"),
            StateError::Encoding(error) => write!(f, "the state is malformed: {error}"),
            StateError::Value(field) => write!(f, "the state has an impossible value for {field}"),
            StateError::Descriptor(number) => write!(f, "the state names {number} as a descriptor"),
            StateError::Twice(number) => write!(f, "the state names descriptor {number} twice"),
            StateError::Closed(number, error) => write!(f, "the state names descriptor {number}: {error}"),
            StateError::Unsealed => f.write_str("the state is not in sealed memory"),
            StateError::Memory(error) => write!(f, "failed to handle the memory of the state: {error}"),
        }
    }
}

impl std::error::Error for StateError {}

impl From<capnp::Error> for StateError {
    fn from(error: capnp::Error) -> StateError {
        StateError::Encoding(error)
    }
}

impl From<capnp::NotInSchema> for StateError {
    fn from(_: capnp::NotInSchema) -> StateError {
        StateError::Value("a choice")
    }
}

/// A number that fits wherever numbers of bytes are added up.
pub fn count(number: u64, field: &'static str) -> Result<u64, StateError> {
    if number <= COUNT_MAX { Ok(number) } else { Err(StateError::Value(field)) }
}

/// An exabyte.
const COUNT_MAX: u64 = 1 << 60;

// ---------------------------------------------------------------- descriptors

/// The descriptors that a state names: exactly these survive the exec.
#[derive(Debug, Default)]
pub struct Given(Vec<RawFd>);

impl Given {
    /// Names a descriptor.
    pub fn give(&mut self, fd: &impl AsFd) -> RawFd {
        let number = fd.as_fd().as_raw_fd();
        self.0.push(number);
        number
    }

    /// Names a descriptor that may be missing.
    pub fn give_if(&mut self, fd: Option<&impl AsFd>) -> RawFd {
        fd.map_or(0, |fd| self.give(fd))
    }

    pub fn numbers(&self) -> &[RawFd] {
        &self.0
    }
}

/// Takes over the descriptors that a state names.
#[derive(Debug)]
pub struct Taken {
    /// Only a check: each descriptor is stood in for by this one.
    stand_in: Option<OwnedFd>,
    seen: Vec<RawFd>,
}

impl Taken {
    /// The descriptors themselves, for the program that goes on.
    pub fn ours() -> Taken {
        Taken { stand_in: None, seen: Vec::new() }
    }

    /// Nothing is touched: for a check.
    pub fn stand_ins() -> io::Result<Taken> {
        Ok(Taken { stand_in: Some(File::open("/dev/null")?.into()), seen: Vec::new() })
    }

    /// Takes over one descriptor.
    pub fn take(&mut self, number: RawFd) -> Result<OwnedFd, StateError> {
        if number < 3 {
            return Err(StateError::Descriptor(number));
        }
        if self.seen.contains(&number) {
            return Err(StateError::Twice(number));
        }
        self.seen.push(number);
        let taken = match &self.stand_in {
            Some(stand_in) => stand_in.try_clone(),
            None => sys::adopt(number).inspect(|_| sys::set_close_on_exec(number, true)),
        };
        taken.map_err(|error| StateError::Closed(number, error))
    }

    /// Takes over one that may be missing.
    pub fn take_if(&mut self, number: RawFd) -> Result<Option<OwnedFd>, StateError> {
        if number == 0 { Ok(None) } else { self.take(number).map(Some) }
    }
}

// ---------------------------------------------------------------- the message

/// The message in sealed memory that an exec leaves open.
pub fn seal(message: &Builder<HeapAllocator>) -> Result<File, StateError> {
    let size = serialize::compute_serialized_size_in_words(message) * size_of::<Word>();
    if size > SIZE_MAX {
        return Err(StateError::Size(size as u64));
    }
    let memory = memfd_create(c"conward-state", MFdFlags::MFD_ALLOW_SEALING);
    let mut memory = File::from(memory.map_err(|error| StateError::Memory(error.into()))?);
    serialize::write_message(&mut memory, message)?;
    memory.flush().map_err(StateError::Memory)?;
    fcntl(&memory, FcntlArg::F_ADD_SEALS(seals())).map_err(|error| StateError::Memory(error.into()))?;
    Ok(memory)
}

fn seals() -> SealFlag {
    SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SEAL
}

/// Reads what [`seal`] made.
pub fn read(memory: &File, options: &Options, taken: &mut Taken) -> Result<Saved, StateError> {
    let sealed = fcntl(memory, FcntlArg::F_GET_SEALS).map_err(|_| StateError::Unsealed)?;
    if !SealFlag::from_bits_truncate(sealed).contains(seals()) {
        return Err(StateError::Unsealed);
    }
    let size = memory.metadata().map_err(StateError::Memory)?.len();
    let len = usize::try_from(size).ok().filter(|len| *len <= SIZE_MAX).ok_or(StateError::Size(size))?;
    parse(len, |bytes| memory.read_exact_at(bytes, 0), options, taken)
}

/// Parses a state of `len` bytes, which `fill` puts into memory that is aligned as Cap'n Proto wants it.
pub fn parse(
    len: usize,
    fill: impl FnOnce(&mut [u8]) -> io::Result<()>,
    options: &Options,
    taken: &mut Taken,
) -> Result<Saved, StateError> {
    let mut words = Word::allocate_zeroed_vec(len.div_ceil(size_of::<Word>()));
    let bytes = &mut Word::words_to_bytes_mut(&mut words)[..len];
    fill(bytes).map_err(StateError::Memory)?;
    let mut limits = ReaderOptions::new();
    limits.traversal_limit_in_words(Some(2 * SIZE_MAX / size_of::<Word>())).nesting_limit(NESTING_MAX);
    let mut rest = &*bytes;
    let message = serialize::read_message_from_flat_slice(&mut rest, limits)?;
    let root: state::Reader<'_> = message.get_root()?;
    match root.get_version() {
        VERSION => Saved::read(root, options, taken),
        other => Err(StateError::Version(other)),
    }
}
