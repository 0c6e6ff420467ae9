//! The other side of a connection, by hand: messages of rpc.capnp, well-formed or not, without a client library.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use capnp::message::{Builder, HeapAllocator, ReaderOptions};
use capnp::traits::{HasTypeId, ImbueMut};
use capnp_rpc::rpc_capnp::{exception, message};
use conmon_proto::conward_capnp::{monitor, output};

use crate::rig::socket;
use crate::support::scene::Live;
use crate::support::wait::{self, SOON};
use crate::support::{Fail, Outcome};

#[derive(Debug)]
pub struct Peer {
    pub stream: UnixStream,
    question: u32,
}

/// Numbers of methods, in the order of the schema.
pub const VERSION: u16 = 0;
pub const INSPECT: u16 = 1;
pub const WAIT: u16 = 2;
const ATTACH: u16 = 3;
const EXEC: u16 = 4;

type Message = Builder<HeapAllocator>;

impl Peer {
    pub fn connect(live: &Live) -> Outcome<Peer> {
        let path = socket(live);
        Peer::over(wait::until("a connection to the service", SOON, || Ok(UnixStream::connect(&path).ok()))?)
    }

    pub fn over(stream: UnixStream) -> Outcome<Peer> {
        stream.set_read_timeout(Some(SOON))?;
        stream.set_write_timeout(Some(Duration::from_secs(2)))?;
        Ok(Peer { stream, question: 0 })
    }

    pub fn send(&mut self, bytes: &[u8]) -> Outcome {
        Ok(self.stream.write_all(bytes)?)
    }

    fn send_message(&mut self, message: &Message) -> Outcome {
        let bytes = capnp::serialize::write_message_to_words(message);
        self.send(&bytes)
    }

    /// Asks for the monitor; its promise is the target of all calls.
    pub fn bootstrap(&mut self) -> Outcome {
        let bytes = bootstrap();
        self.question = 1;
        self.send(&bytes)
    }

    /// Calls a method without parameters on the bootstrap capability.
    pub fn call(&mut self, method: u16) -> Outcome {
        let bytes = self.next_call(method);
        self.send(&bytes)
    }

    /// The message of the next call.
    pub fn next_call(&mut self, method: u16) -> Vec<u8> {
        self.question += 1;
        call(self.question - 1, method)
    }

    /// An exec of this command, with an output of ours or captured.
    pub fn exec(&mut self, args: &[&str], streamed: bool) -> Outcome {
        let mut message = Message::new_default();
        let mut payload = begin(&mut message, self.question, EXEC).init_params();
        self.question += 1;
        if streamed {
            payload.reborrow().init_cap_table(1).get(0).set_sender_hosted(0);
        }
        let (mut table, mut content) = (Vec::new(), payload.get_content());
        content.imbue_mut(&mut table);
        let mut params = content.init_as::<monitor::exec_params::Builder<'_>>();
        let mut list = params.reborrow().init_spec().init_args(u32::try_from(args.len()).unwrap_or(0));
        (0..).zip(args).for_each(|(index, word)| list.set(index, *word));
        if streamed {
            params.set_output(hosted());
        }
        self.send_message(&message)
    }

    /// Attaches an output of ours.
    pub fn attach(&mut self) -> Outcome {
        let mut message = Message::new_default();
        let mut payload = begin(&mut message, self.question, ATTACH).init_params();
        self.question += 1;
        payload.reborrow().init_cap_table(1).get(0).set_sender_hosted(0);
        let (mut table, mut content) = (Vec::new(), payload.get_content());
        content.imbue_mut(&mut table);
        let mut params = content.init_as::<monitor::attach_params::Builder<'_>>();
        params.reborrow().init_request();
        params.set_output(hosted());
        self.send_message(&message)
    }

    /// The next message: its kind, and the reason if it is an abort.
    pub fn next(&mut self) -> Outcome<Option<Came>> {
        let options = ReaderOptions { traversal_limit_in_words: Some(64 << 20), nesting_limit: 64 };
        let Some(message) = capnp::serialize::try_read_message(&mut self.stream, options)
            .map_err(|error| Fail::Wrong(format!("cannot read a message: {error}")))?
        else {
            return Ok(None);
        };
        let read = || -> capnp::Result<Came> {
            Ok(match message.get_root::<message::Reader<'_>>()?.which()? {
                message::Abort(abort) => {
                    let abort = abort?;
                    Came::Abort(abort.get_reason()?.to_string()?, abort.get_type()?)
                }
                message::Return(_) => Came::Return,
                _ => Came::Other,
            })
        };
        read().map(Some).map_err(|error| Fail::Wrong(format!("cannot understand a message: {error}")))
    }

    /// Reads on to the abort that ends this connection.
    pub fn abort(&mut self) -> Outcome<(String, exception::Type)> {
        loop {
            match self.next()? {
                Some(Came::Abort(reason, kind)) => return Ok((reason, kind)),
                Some(_) => {}
                None => return Err("the connection ended without an abort".into()),
            }
        }
    }

    /// Waits until the other side has closed, whatever else it says.
    pub fn closed(&mut self) -> Outcome {
        let mut buffer = [0; 65536];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return Ok(()),
                Err(error) => return Err(format!("the connection was not closed: {error}").into()),
            }
        }
    }
}

/// What came.
#[derive(Debug, PartialEq)]
pub enum Came {
    Abort(String, exception::Type),
    Return,
    Other,
}

/// The message that asks for the bootstrap capability.
pub fn bootstrap() -> Vec<u8> {
    let mut message = Message::new_default();
    message.init_root::<message::Builder<'_>>().init_bootstrap().set_question_id(0);
    capnp::serialize::write_message_to_words(&message)
}

/// A call without parameters.
pub fn call(question: u32, method: u16) -> Vec<u8> {
    let mut message = Message::new_default();
    begin(&mut message, question, method).init_params();
    capnp::serialize::write_message_to_words(&message)
}

/// A call on what the bootstrap will be.
pub fn begin(message: &mut Message, question: u32, method: u16) -> capnp_rpc::rpc_capnp::call::Builder<'_> {
    let mut call = message.init_root::<message::Builder<'_>>().init_call();
    call.set_question_id(question);
    call.set_interface_id(<monitor::Client as HasTypeId>::TYPE_ID);
    call.set_method_id(method);
    call.reborrow().init_target().init_promised_answer().set_question_id(0);
    call
}

/// Stands for the first capability in a message's table; nothing is ever called on it here.
fn hosted() -> output::Client {
    capnp_rpc::new_client(Nobody)
}

struct Nobody;

impl output::Server for Nobody {}
