//! The service as methods: one per call of the schema.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use capnp::message::ReaderOptions;
use capnp::traits::HasTypeId;
use capnp_rpc::rpc_twoparty_capnp::Side;
use capnp_rpc::{RpcSystem, twoparty};
use futures::future::{AbortHandle, Abortable};
use futures::{AsyncRead, AsyncWrite};

use crate::conward_capnp as wire;
use crate::error::{Error, Refusal};
use crate::output::Output;
use crate::request::{AttachRequest, ExecSpec, LogPolicy};
use crate::types::{ExecResult, Exit, LogSwitch, State, Stream, Version};

/// Captured output, of which there may be 64 MiB, comes in one message.
const MESSAGE_MAX: usize = 65 << 20;

/// Nothing in the schema is nested deeper than a handful.
const NESTING_MAX: i32 = 32;

/// A monitor, as seen from the other end of its socket. The connection ends when the last of `Client`, [`Attachment`]
/// and [`Exec`] is dropped.
#[derive(Clone)]
pub struct Client {
    monitor: wire::monitor::Client,
    line: Rc<Line>,
}

/// Does the reading and writing: nothing happens unless it is polled. Ends with the connection.
#[must_use = "nothing happens unless it is polled"]
pub struct Driver(Abortable<RpcSystem<Side>>);

/// Ends the driver, and with it the connection, when nobody is left who could use it.
#[derive(Debug)]
struct Line(AbortHandle);

impl Drop for Line {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Future for Driver {
    type Output = Result<(), Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // Aborted is as good as done: it was we who wanted it.
        Pin::new(&mut self.0).poll(cx).map(|done| done.unwrap_or(Ok(())).map_err(Error::from))
    }
}

/// Runs a request that answers with nothing but, perhaps, a refusal.
macro_rules! call {
    ($request:expr) => {{
        let reply = $request.send().promise.await?;
        refused!(reply.get()?);
        Ok(())
    }};
}

macro_rules! refused {
    ($results:expr) => {
        if $results.has_refusal() {
            return Err(Refusal::read($results.get_refusal()?)?.into());
        }
    };
}

impl Client {
    /// Speaks to the monitor at the other end of a stream.
    pub fn over(
        reader: impl AsyncRead + Unpin + 'static,
        writer: impl AsyncWrite + Unpin + 'static,
    ) -> (Client, Driver) {
        let options = ReaderOptions {
            traversal_limit_in_words: Some(MESSAGE_MAX / size_of::<u64>()),
            nesting_limit: NESTING_MAX,
        };
        let network = twoparty::VatNetwork::new(reader, writer, Side::Client, options);
        let mut system = RpcSystem::new(Box::new(network), None);
        let monitor = system.bootstrap(Side::Server);
        let (abort, registration) = AbortHandle::new_pair();
        let client = Client { monitor, line: Rc::new(Line(abort)) };
        (client, Driver(Abortable::new(system, registration)))
    }

    /// Which programs this is.
    pub async fn version(&self) -> Result<Version, Error> {
        let reply = self.monitor.version_request().send().promise.await?;
        Ok(Version::read(reply.get()?.get_version()?)?)
    }

    /// Everything that the monitor knows, at one moment.
    pub async fn inspect(&self) -> Result<State, Error> {
        let reply = self.monitor.inspect_request().send().promise.await?;
        Ok(State::read(reply.get()?.get_state()?)?)
    }

    /// Waits for the end of the container's process; the flag says that the record of it is on the disk, too.
    pub async fn wait(&self) -> Result<(Exit, bool), Error> {
        let reply = self.monitor.wait_request().send().promise.await?;
        let results = reply.get()?;
        refused!(results);
        Ok((Exit::read(results.get_exit()?)?, results.get_durable()))
    }

    /// Sends what the container says to `output`, until the attachment is dropped.
    pub async fn attach(&self, request: &AttachRequest, output: Output) -> Result<Attachment, Error> {
        let mut call = self.monitor.attach_request();
        request.write(call.get().init_request());
        call.get().set_output(output.0);
        let reply = call.send().promise.await?;
        let results = reply.get()?;
        refused!(results);
        Ok(Attachment { attachment: results.get_attachment()?, _line: Rc::clone(&self.line) })
    }

    /// Runs one more process. Without an output what it says is captured and comes with the result.
    pub async fn exec(&self, spec: &ExecSpec, output: Option<Output>) -> Result<Exec, Error> {
        let mut call = self.monitor.exec_request();
        spec.write(call.get().init_spec());
        if let Some(output) = output {
            call.get().set_output(output.0);
        }
        let reply = call.send().promise.await?;
        let results = reply.get()?;
        refused!(results);
        Ok(Exec { exec: results.get_exec()?, id: results.get_id(), _line: Rc::clone(&self.line) })
    }

    /// How one of the last execs ended, whoever started it.
    pub async fn exec_result(&self, id: u32) -> Result<ExecResult, Error> {
        let mut call = self.monitor.exec_result_request();
        call.get().set_id(id);
        let reply = call.send().promise.await?;
        let results = reply.get()?;
        refused!(results);
        Ok(ExecResult::read(results.get_result()?)?)
    }

    /// Sets the size of the container's terminal.
    pub async fn resize(&self, rows: u16, columns: u16) -> Result<(), Error> {
        let mut call = self.monitor.resize_request();
        call.get().set_rows(rows);
        call.get().set_columns(columns);
        call!(call)
    }

    /// Sends a signal to the container's process.
    pub async fn signal(&self, number: u8) -> Result<(), Error> {
        let mut call = self.monitor.signal_request();
        call.get().set_number(number);
        call!(call)
    }

    /// Lets the container read an end of file.
    pub async fn close_stdin(&self) -> Result<(), Error> {
        call!(self.monitor.close_stdin_request())
    }

    /// Goes on in the files that are at the log paths now, and says which they are.
    pub async fn reopen_log(&self) -> Result<Vec<LogSwitch>, Error> {
        let reply = self.monitor.reopen_log_request().send().promise.await?;
        let results = reply.get()?;
        refused!(results);
        Ok(results.get_files()?.iter().map(LogSwitch::read).collect::<Result<_, _>>()?)
    }

    /// Limits how fast a stream is logged, or stops limiting it.
    pub async fn set_log_policy(&self, stream: Stream, policy: LogPolicy) -> Result<(), Error> {
        let mut call = self.monitor.set_log_policy_request();
        call.get().set_stream(match stream {
            Stream::Stderr => wire::Stream::Stderr,
            Stream::Stdout | Stream::Unrecognised => wire::Stream::Stdout,
        });
        policy.write(call.get().init_policy());
        call!(call)
    }

    /// Replaces the running monitor, or only asks whether it could be. The connection ends after a replacement.
    pub async fn upgrade(&self, program: Option<&str>, check_only: bool) -> Result<(), Error> {
        let mut call = self.monitor.upgrade_request();
        if let Some(program) = program {
            call.get().set_program(program);
        }
        call.get().set_check_only(check_only);
        call!(call)
    }
}

/// A streaming call as an ordinary one. Its answer says that the input was taken, while a stream's says only that more
/// may be sent: what is still on its way would be lost when the connection ends.
type Answered<T> = capnp::capability::Request<T, capnp::any_pointer::Owned>;

/// Being attached; dropping it detaches.
pub struct Attachment {
    attachment: wire::attachment::Client,
    _line: Rc<Line>,
}

impl Attachment {
    /// Types. Returns when it has been taken.
    pub async fn write(&self, data: &[u8]) -> Result<(), Error> {
        let id = <wire::attachment::Client as HasTypeId>::TYPE_ID;
        let mut call: Answered<wire::attachment::write_params::Owned> = self.attachment.client.new_call(id, 0, None);
        call.get().set_data(data);
        call.send().promise.await?;
        Ok(())
    }

    /// Lets the container read an end of file behind what was typed.
    pub async fn close_stdin(&self) -> Result<(), Error> {
        call!(self.attachment.close_stdin_request())
    }

    /// Tells the size of this client's terminal.
    pub async fn resize(&self, rows: u16, columns: u16) -> Result<(), Error> {
        let mut call = self.attachment.resize_request();
        call.get().set_rows(rows);
        call.get().set_columns(columns);
        call!(call)
    }
}

/// A process that was started by [`Client::exec`]. Dropping it ends the process, unless it was to go on.
pub struct Exec {
    exec: wire::exec::Client,
    /// Its number, for [`Client::exec_result`].
    pub id: u32,
    _line: Rc<Line>,
}

impl Exec {
    /// Waits for its end.
    pub async fn wait(&self) -> Result<ExecResult, Error> {
        let reply = self.exec.wait_request().send().promise.await?;
        Ok(ExecResult::read(reply.get()?.get_result()?)?)
    }

    /// Types. Returns when it has been taken.
    pub async fn write(&self, data: &[u8]) -> Result<(), Error> {
        let id = <wire::exec::Client as HasTypeId>::TYPE_ID;
        let mut call: Answered<wire::exec::write_params::Owned> = self.exec.client.new_call(id, 1, None);
        call.get().set_data(data);
        call.send().promise.await?;
        Ok(())
    }

    /// Lets the process read an end of file behind what was typed.
    pub async fn close_stdin(&self) -> Result<(), Error> {
        call!(self.exec.close_stdin_request())
    }

    /// Sets the size of its terminal.
    pub async fn resize(&self, rows: u16, columns: u16) -> Result<(), Error> {
        let mut call = self.exec.resize_request();
        call.get().set_rows(rows);
        call.get().set_columns(columns);
        call!(call)
    }

    /// Sends it a signal.
    pub async fn signal(&self, number: u8) -> Result<(), Error> {
        let mut call = self.exec.signal_request();
        call.get().set_number(number);
        call!(call)
    }
}

macro_rules! opaque {
    ($($name:ident)*) => { $(
        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(stringify!($name))
            }
        }
    )* };
}

opaque! { Client Driver Attachment Exec }
