//! The two output streams of a container.

/// An output stream of the container; a terminal has only `Stdout`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    pub const ALL: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

    /// The name in CRI and json-file records.
    pub const fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }

    /// The first byte of an attach packet (conmon's attach protocol: 2 is stdout, 3 is stderr).
    pub const fn packet_byte(self) -> u8 {
        match self {
            Stream::Stdout => 2,
            Stream::Stderr => 3,
        }
    }

    /// Index into per-stream arrays.
    pub const fn index(self) -> usize {
        self as usize
    }
}
