//! What an event is about.

use mio::Token;

use crate::session::Id;
use crate::stream::Stream;

/// A source of events, carried inside the mio token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The signal descriptor.
    Signals,
    /// The start pipe: an exec that waits for its second message.
    Start,
    Output(Id, Stream),
    /// The stdin of a session has room again.
    Input(Id),
    /// The console socket, or the runtime's connection to it.
    Console(Id),
    /// The attach socket.
    Listener,
    /// An attach client; numbers count up and are not used again.
    Client(u32),
    Ctl,
    Winsz,
    Notify,
    Oom,
    /// The pidfd of a process that is no child of ours.
    Process(Id),
    /// The service's socket.
    Service,
    /// A connection to the service; numbers count up and are not used again.
    Link(u32),
}

impl Source {
    pub fn token(self) -> Token {
        let (kind, number) = match self {
            Source::Signals => (0, 0),
            Source::Start => (1, 0),
            Source::Output(id, Stream::Stdout) => (2, id),
            Source::Output(id, Stream::Stderr) => (3, id),
            Source::Input(id) => (4, id),
            Source::Console(id) => (5, id),
            Source::Listener => (6, 0),
            Source::Client(number) => (7, number),
            Source::Ctl => (8, 0),
            Source::Winsz => (9, 0),
            Source::Notify => (10, 0),
            Source::Oom => (11, 0),
            Source::Process(id) => (12, id),
            Source::Service => (13, 0),
            Source::Link(number) => (14, number),
        };
        Token((number as usize) << 8 | kind)
    }

    /// The source of a token; `None` for one that [`Source::token`] never makes.
    pub fn of(token: Token) -> Option<Source> {
        let number = u32::try_from(token.0 >> 8).ok()?;
        Some(match token.0 & 0xff {
            0 => Source::Signals,
            1 => Source::Start,
            2 => Source::Output(number, Stream::Stdout),
            3 => Source::Output(number, Stream::Stderr),
            4 => Source::Input(number),
            5 => Source::Console(number),
            6 => Source::Listener,
            7 => Source::Client(number),
            8 => Source::Ctl,
            9 => Source::Winsz,
            10 => Source::Notify,
            11 => Source::Oom,
            12 => Source::Process(number),
            13 => Source::Service,
            14 => Source::Link(number),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back_as_their_source() {
        let all = [
            Source::Signals,
            Source::Start,
            Source::Output(0, Stream::Stdout),
            Source::Output(7, Stream::Stderr),
            Source::Input(u32::MAX),
            Source::Console(1),
            Source::Listener,
            Source::Client(0),
            Source::Client(u32::MAX),
            Source::Ctl,
            Source::Winsz,
            Source::Notify,
            Source::Oom,
            Source::Process(2),
            Source::Service,
            Source::Link(3),
        ];
        for source in all {
            assert_eq!(Source::of(source.token()), Some(source));
        }
        assert_eq!(Source::of(Token(255)), None);
    }
}
