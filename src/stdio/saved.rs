//! The container's output and input in the state that an upgrade hands over.

use super::{Input, Output};
use crate::monitor::READ_BUFFER;
use crate::stream::Stream;
use crate::upgrade::state::{Given, StateError, Taken, count};
use crate::upgrade::state_capnp::{input, output};

impl Output {
    pub fn save(&self, mut to: output::Builder<'_>, given: &mut Given) {
        to.set_fd(given.give(&self.fd));
        to.set_tty(self.tty);
        to.set_hung_up(self.hung_up);
        to.set_held(&self.held);
        to.set_may_grow(self.may_grow);
        to.set_offset(self.offset);
    }

    pub fn restore(stream: Stream, from: output::Reader<'_>, taken: &mut Taken) -> Result<Output, StateError> {
        let held = from.get_held()?;
        // There must be room behind it in the buffer that is read into.
        if held.len() >= READ_BUFFER {
            return Err(StateError::Value("held"));
        }
        let mut output = Output::new(stream, taken.take(from.get_fd())?, from.get_tty(), from.get_may_grow());
        output.hung_up = from.get_hung_up();
        output.held = held.to_vec();
        output.offset = count(from.get_offset(), "offset")?;
        Ok(output)
    }
}

impl Input {
    /// Saves an input that is open or closed; one that is still expected has nothing to save.
    pub fn save(&self, mut to: input::Builder<'_>, given: &mut Given) {
        if let Input::Open { fd, pending } = self {
            to.set_fd(given.give(fd));
            to.set_pending(pending);
        }
    }

    pub fn restore(from: input::Reader<'_>, taken: &mut Taken) -> Result<Input, StateError> {
        let fd = taken.take_if(from.get_fd())?;
        let pending = from.get_pending()?.to_vec();
        Ok(fd.map_or(Input::Closed, |fd| Input::Open { fd, pending }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use capnp::message::Builder;
    use nix::fcntl::OFlag;
    use nix::unistd::pipe2;

    #[test]
    fn what_was_read_and_not_passed_on_is_handed_over() {
        let (reader, _writer) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let mut output = Output::new(Stream::Stderr, reader, false, true);
        (output.held, output.offset, output.hung_up) = (b"half a li".to_vec(), 1 << 40, true);
        let (mut message, mut given) = (Builder::new_default(), Given::default());
        output.save(message.init_root(), &mut given);
        assert_eq!(given.numbers().len(), 1);
        let root = message.get_root_as_reader().unwrap();
        let back = Output::restore(Stream::Stderr, root, &mut Taken::stand_ins().unwrap()).unwrap();
        assert_eq!((back.ahead(), back.offset, back.hung_up), (&b"half a li"[..], 1 << 40, true));
        assert!(back.may_grow && !back.tty && back.stream == Stream::Stderr);
    }

    #[test]
    fn more_than_the_buffer_holds_is_refused() {
        let mut message = Builder::new_default();
        let mut to: output::Builder<'_> = message.init_root();
        to.set_fd(3);
        to.set_held(&[0; READ_BUFFER]);
        let root = message.get_root_as_reader().unwrap();
        let answer = Output::restore(Stream::Stdout, root, &mut Taken::stand_ins().unwrap());
        assert!(matches!(answer, Err(StateError::Value("held"))));
    }

    #[test]
    fn input_that_was_not_taken_yet_is_handed_over() {
        let (_reader, writer) = pipe2(OFlag::O_CLOEXEC).unwrap();
        for (input, expected) in [
            (Input::Closed, None),
            (Input::Expected, None),
            (Input::Open { fd: writer, pending: b"typed".to_vec() }, Some(b"typed".to_vec())),
        ] {
            let mut message = Builder::new_default();
            input.save(message.init_root(), &mut Given::default());
            let root = message.get_root_as_reader().unwrap();
            let back = match Input::restore(root, &mut Taken::stand_ins().unwrap()).unwrap() {
                Input::Open { pending, .. } => Some(pending),
                _ => None,
            };
            assert_eq!(back, expected);
        }
    }
}
