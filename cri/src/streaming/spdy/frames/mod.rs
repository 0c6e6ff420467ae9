//! SPDY/3.1 frames without any input or output: bytes in, frames out, and the other way round.
//!
//! A control frame begins with 0x8003, its type (u16), flags (u8) and length (u24); a data frame with the number of its
//! stream (u31), flags (u8) and length (u24). All numbers are big endian. Headers travel as one zlib stream per
//! direction for the whole connection, which starts from a dictionary known to both sides: a block that was not
//! inflated spoils all that follow. Flow control exists on paper only; those who speak this protocol today never send a
//! window.
//!
//! Knows nothing of the rest of the crate, so that the fuzzer builds it alone.

mod decode;
mod dictionary;
mod encode;
mod headers;

use std::fmt;

use bytes::Bytes;

pub use decode::Decoder;
pub use dictionary::dictionary;
pub use encode::Encoder;
pub use headers::{Headers, Inflater};

/// The length of what every frame begins with.
pub const PREFIX: usize = 8;
/// The longest control frame that is accepted.
pub const MAX_CONTROL: usize = 64 * 1024;
/// The longest block of headers that is accepted, inflated.
pub const MAX_HEADERS: usize = 64 * 1024;
/// The longest piece of data that is handed on at a time.
pub const MAX_CHUNK: usize = 32 * 1024;

const VERSION: u16 = 3;
const FIN: u8 = 1;
const UNIDIRECTIONAL: u8 = 2;

/// What a peer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A new stream; `fin`: its opener sends nothing on it, `one_way`: nothing may be sent back.
    Open { id: u32, fin: bool, one_way: bool, headers: Headers },
    /// The other side knows of the stream.
    Reply { id: u32, fin: bool, headers: Headers },
    /// The stream has ended at once, in both directions.
    Reset { id: u32, code: u32 },
    /// To be sent back as it is.
    Ping { id: u32 },
    /// No stream above `last` is served any more.
    GoAway { last: u32, code: u32 },
    /// More headers of a stream.
    Headers { id: u32, fin: bool, headers: Headers },
    /// A piece of a stream; with `fin` the last one.
    Data { id: u32, fin: bool, bytes: Bytes },
    /// A control frame that means nothing here: settings, windows, credentials, and what we never heard of.
    Ignored { kind: u16 },
}

/// What is wrong with a peer's bytes; nothing can be read after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A control frame of another version of the protocol.
    Version(u16),
    /// A control frame longer than [`MAX_CONTROL`].
    Long { kind: u16, length: usize },
    /// A control frame shorter than its fields.
    Short { kind: u16, length: usize },
    /// Headers that are no zlib stream with this protocol's dictionary.
    Compression,
    /// Headers longer than [`MAX_HEADERS`], inflated.
    Headers,
    /// Headers whose lengths contradict each other.
    Fields,
    /// Stream 0.
    Stream,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Version(version) => write!(f, "SPDY version {version}, not 3"),
            Fault::Long { kind, length } => write!(f, "SPDY frame of type {kind} with {length} bytes is too long"),
            Fault::Short { kind, length } => write!(f, "SPDY frame of type {kind} with {length} bytes is too short"),
            Fault::Compression => f.write_str("SPDY headers do not inflate"),
            Fault::Headers => write!(f, "SPDY headers of more than {MAX_HEADERS} bytes"),
            Fault::Fields => f.write_str("SPDY headers with wrong lengths"),
            Fault::Stream => f.write_str("SPDY frame for stream 0"),
        }
    }
}

impl std::error::Error for Fault {}

/// Types of control frames.
mod kind {
    pub const OPEN: u16 = 1;
    pub const REPLY: u16 = 2;
    pub const RESET: u16 = 3;
    pub const PING: u16 = 6;
    pub const GO_AWAY: u16 = 7;
    pub const HEADERS: u16 = 8;
}
