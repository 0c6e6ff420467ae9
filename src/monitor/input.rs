//! Input: from clients of the attach socket, which are read only while the container takes it, and from clients of the
//! service, whose calls are answered when it has.

use mio::Interest;

use super::{Monitor, ROUNDS, unwatch, watch};
use crate::attach::Received;
use crate::command::{Code, Refusal, Reply};
use crate::rpc::Answer;
use crate::session::{CONTAINER, Id};
use crate::source::Source;
use crate::stdio::{Input, Turn};

impl Monitor<'_> {
    /// A session takes input again.
    pub(super) fn flush_input(&mut self, id: Id) -> Turn {
        let registry = self.poll.registry().try_clone();
        let Some(session) = self.session(id) else { return Turn::Wait };
        let before = session.input.ready();
        let ready = session.input.flush();
        if ready && !before {
            if let (Input::Open { fd, .. }, Ok(registry)) = (&session.input, &registry) {
                unwatch(registry, fd);
            }
            self.advance_input(id);
        }
        Turn::Wait
    }

    /// Gives a session what waits for its turn, and wakes those who have more.
    pub(super) fn advance_input(&mut self, id: Id) {
        loop {
            let Some(session) = self.session(id) else { return };
            if !session.input.ready() {
                return;
            }
            // What was given last has been taken, or will never be.
            if let Some(answer) = session.taking.take() {
                let taken = !matches!(session.input, Input::Closed);
                let refusal = || Refusal::new(Code::NoStdin, "the process takes no more input");
                let _ = answer.send(if taken { Ok(Reply::Done) } else { Err(refusal()) });
            }
            let Some((bytes, answer)) = session.typed.pop_front() else { break };
            session.taking = answer;
            self.give_input(id, &bytes);
        }
        let Some(session) = self.session(id) else { return };
        if std::mem::take(&mut session.closing) {
            session.input.close();
        }
        if id == CONTAINER {
            self.wake_typing_clients();
        }
    }

    /// Gives input to a session, and asks to hear when it takes more if it did not take all.
    fn give_input(&mut self, id: Id, bytes: &[u8]) {
        let Some(session) = self.session(id) else { return };
        session.input.write(bytes);
        self.busy |= bytes.len() > super::KEPT;
        self.watch_input(id);
    }

    fn watch_input(&mut self, id: Id) {
        let registry = self.poll.registry().try_clone();
        let Some(session) = self.session(id) else { return };
        if !session.input.ready()
            && let (Input::Open { fd, .. }, Ok(registry)) = (&session.input, &registry)
            && let Err(error) = watch(registry, fd, Source::Input(id), Interest::WRITABLE)
        {
            crate::warn!("Failed to watch the container's input: {error}");
        }
    }

    /// Input that came over the service.
    pub(super) fn type_input(&mut self, id: Id, bytes: Vec<u8>, answer: Option<Answer>) {
        let refusal = match self.session(id).map(|session| (&session.input, session.closing)) {
            None => Some(Refusal::new(Code::NotFound, format!("exec {id} is over"))),
            Some((Input::Closed, _) | (_, true)) => Some(Refusal::new(Code::NoStdin, "stdin is closed")),
            Some(_) => None,
        };
        match (refusal, self.session(id)) {
            (None, Some(session)) => {
                session.typed.push_back((bytes, answer));
                self.advance_input(id);
            }
            (refusal, _) => {
                if let (Some(answer), Some(refusal)) = (answer, refusal) {
                    let _ = answer.send(Err(refusal));
                }
            }
        }
    }

    /// A session's stdin ends behind what waits for it.
    pub(super) fn close_input(&mut self, id: Id) -> Result<Reply, Refusal> {
        let session = self.session(id).ok_or_else(|| Refusal::new(Code::NotFound, format!("exec {id} is over")))?;
        if session.terminal.is_some() {
            return Err(Refusal::new(Code::NoStdin, "a terminal's input has no end"));
        }
        match session.input {
            Input::Closed => return Err(Refusal::new(Code::NoStdin, "stdin is closed")),
            Input::Expected | Input::Open { .. } => session.closing = true,
        }
        self.advance_input(id);
        Ok(Reply::Done)
    }

    pub(super) fn wake_typing_clients(&mut self) {
        let waiting: Vec<u32> = self.attach.iter().flat_map(|attach| attach.readable().collect::<Vec<_>>()).collect();
        for id in waiting {
            self.wake(Source::Client(id));
        }
    }

    /// Passes a client's input on, a few packets a turn, while the container takes it.
    pub(super) fn receive(&mut self, id: u32) -> Turn {
        for _ in 0..ROUNDS {
            let Some(client) = self.attach.as_mut().and_then(|attach| attach.client(id)) else { return Turn::Wait };
            // Of one who types no more only its leaving is to be heard, which waits for nobody.
            if !client.readable || (client.types() && !self.session.input.ready()) {
                return Turn::Wait;
            }
            match client.receive(self.read_buffer.bytes()) {
                Received::Bytes(count) => {
                    self.session.input.write(&self.read_buffer.bytes()[..count]);
                    self.busy |= count > super::KEPT;
                    self.watch_input(CONTAINER);
                }
                Received::Nothing => return Turn::Wait,
                Received::End => {
                    self.stopped_typing(id);
                    return Turn::Wait;
                }
            }
        }
        Turn::Again
    }

    /// A client shut down its sending side or left: the container's stdin ends with the last one who types.
    fn stopped_typing(&mut self, id: u32) {
        self.end_of_typing(id);
        if self.attach.as_mut().and_then(|attach| attach.client(id)).is_some_and(|client| client.has_left()) {
            self.client_gone(id);
        }
    }

    /// Closes the container's stdin if `id` was the last one who typed.
    pub(super) fn end_of_typing(&mut self, id: u32) {
        let others = self.attach.as_ref().is_some_and(|attach| attach.others_type(id));
        if self.options.stdin && !self.options.leave_stdin_open && !others {
            // Behind what was typed and not taken yet.
            match self.session.input {
                Input::Open { .. } => self.session.closing = true,
                Input::Expected | Input::Closed => self.session.input.close(),
            }
            self.advance_input(CONTAINER);
        }
    }
}
