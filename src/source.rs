//! What an event is about.

use mio::Token;

use crate::stream::Stream;

/// A source of events, carried inside the mio token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The signal descriptor.
    Signals,
    /// The start pipe: an exec that waits for its second message.
    Start,
    Output(Stream),
    /// The container's stdin has room again.
    Input,
    /// The console socket, or the runtime's connection to it.
    Console,
    /// The attach socket.
    Listener,
    /// An attach client; numbers count up and are not used again.
    Client(u32),
    Ctl,
    Winsz,
    Notify,
    Oom,
    /// The pidfd of a process that is no child of ours.
    Process,
}

impl Source {
    pub fn token(self) -> Token {
        let (kind, number) = match self {
            Source::Signals => (0, 0),
            Source::Start => (1, 0),
            Source::Output(Stream::Stdout) => (2, 0),
            Source::Output(Stream::Stderr) => (3, 0),
            Source::Input => (4, 0),
            Source::Console => (5, 0),
            Source::Listener => (6, 0),
            Source::Client(number) => (7, number as usize),
            Source::Ctl => (8, 0),
            Source::Winsz => (9, 0),
            Source::Notify => (10, 0),
            Source::Oom => (11, 0),
            Source::Process => (12, 0),
        };
        Token(number << 8 | kind)
    }

    /// The source of a token; `None` for one that [`Source::token`] never makes.
    pub fn of(token: Token) -> Option<Source> {
        Some(match token.0 & 0xff {
            0 => Source::Signals,
            1 => Source::Start,
            2 => Source::Output(Stream::Stdout),
            3 => Source::Output(Stream::Stderr),
            4 => Source::Input,
            5 => Source::Console,
            6 => Source::Listener,
            7 => Source::Client(u32::try_from(token.0 >> 8).ok()?),
            8 => Source::Ctl,
            9 => Source::Winsz,
            10 => Source::Notify,
            11 => Source::Oom,
            12 => Source::Process,
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
            Source::Output(Stream::Stdout),
            Source::Output(Stream::Stderr),
            Source::Input,
            Source::Console,
            Source::Listener,
            Source::Client(0),
            Source::Client(u32::MAX),
            Source::Ctl,
            Source::Winsz,
            Source::Notify,
            Source::Oom,
            Source::Process,
        ];
        for source in all {
            assert_eq!(Source::of(source.token()), Some(source));
        }
        assert_eq!(Source::of(Token(255)), None);
    }
}
