//! What a client talks to: calls become commands, replies become results. Nothing is done here.

use std::cell::Cell;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use capnp::Error;
use conmon_proto::conward_capnp::{attach_request, attachment, exec, exec_spec, log_policy, monitor, output};
use futures_channel::oneshot;

use super::executor::Spawner;
use super::plain;
use super::remote::{Remote, named};
use super::wire::Wire;
use super::{Ask, Events, Inbox, fill};
use crate::attach::{History, Request};
use crate::command::{Answered, Code, Command, Refusal, Reply};
use crate::exec::{Process, Spec};
use crate::policy::{Action, Policy};
use crate::session::{CONTAINER, Id};
use crate::usage;

/// Of this schema; raised when something is added.
const PROTOCOL: u16 = 1;

/// When this program began to run.
pub static STARTED: OnceLock<SystemTime> = OnceLock::new();

/// The bootstrap capability of one connection.
#[derive(Clone)]
pub struct Desk {
    pub inbox: Inbox,
    pub spawner: Spawner,
    pub events: Events,
    pub wire: Rc<Wire>,
    pub known: Rc<Cell<bool>>,
    pub link: u32,
    pub pid: i32,
}

impl Desk {
    /// Leaves a request for the monitor at once, and waits for what comes of it.
    fn ask(&self, command: Command) -> impl Future<Output = Result<Answered, Error>> + use<> {
        self.known.set(true);
        let (answer, answered) = oneshot::channel();
        self.inbox.borrow_mut().push_back(Ask { command, answer: Some(answer) });
        let mut claim = Claim { answered, inbox: Rc::clone(&self.inbox) };
        async move { (&mut claim.answered).await.map_err(|_| Error::disconnected("the monitor is going".into())) }
    }

    /// The same, where nobody waits.
    fn leave(&self, command: Command) {
        self.inbox.borrow_mut().push_back(Ask { command, answer: None });
    }

    fn remote(&self, output: output::Client) -> Remote {
        Remote::new(output, self.spawner.clone(), Rc::clone(&self.events), self.link, self.pid)
    }

    /// Input, whose call ends when the container has taken it. It is in its place when this returns.
    fn input(&self, session: Id, data: &[u8]) -> impl Future<Output = Result<(), Error>> + use<> {
        let typed = Typed::new(&self.wire, data.len());
        let answer = self.ask(Command::Input { session, bytes: data.to_vec() });
        async move {
            let answer = answer.await;
            drop(typed);
            answer?.map(drop).map_err(|refusal| Error::failed(refusal.text))
        }
    }
}

/// An answer that is waited for. If nobody does any more when it comes, what it gave is given back.
struct Claim {
    answered: oneshot::Receiver<Answered>,
    inbox: Inbox,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.answered.close();
        if let Ok(Some(Ok(reply))) = self.answered.try_recv()
            && let Some(command) = reply.undo()
        {
            self.inbox.borrow_mut().push_back(Ask { command, answer: None });
        }
    }
}

/// Input on its way, which counts against its connection until it is taken or given up.
struct Typed {
    wire: Rc<Wire>,
    bytes: usize,
}

impl Typed {
    fn new(wire: &Rc<Wire>, bytes: usize) -> Typed {
        wire.typed(bytes);
        Typed { wire: Rc::clone(wire), bytes }
    }
}

impl Drop for Typed {
    fn drop(&mut self) {
        self.wire.taken(self.bytes);
    }
}

/// A reply of another kind than its command's.
fn odd(reply: &Reply) -> Error {
    Error::failed(format!("unexpected reply {reply:?}"))
}

/// Puts a refusal in a result, if that is what came.
macro_rules! plain {
    ($desk:expr, $results:ident, $command:expr) => {
        match $desk.ask($command).await? {
            Ok(_) => Ok(()),
            Err(why) => {
                fill::refusal($results.get().init_refusal(), &why);
                Ok(())
            }
        }
    };
}

impl monitor::Server for Desk {
    async fn version(
        self: Rc<Self>,
        _: monitor::VersionParams,
        mut results: monitor::VersionResults,
    ) -> Result<(), Error> {
        self.known.set(true);
        let mut version = results.get().init_version();
        version.set_conward(env!("CARGO_PKG_VERSION"));
        version.set_conmon(usage::CONMON);
        version.set_commit(usage::commit());
        version.set_protocol(PROTOCOL);
        version.set_pid(i32::try_from(std::process::id()).unwrap_or(0));
        version.set_started_at(STARTED.get().map_or(0, |time| fill::nanos(*time)));
        Ok(())
    }

    async fn inspect(
        self: Rc<Self>,
        _: monitor::InspectParams,
        mut results: monitor::InspectResults,
    ) -> Result<(), Error> {
        match self.ask(Command::Inspect).await? {
            Ok(Reply::Inspected(state)) => results.get().set_state(state.get_root_as_reader()?),
            Ok(other) => Err(odd(&other)),
            Err(why) => Err(Error::failed(why.text)),
        }
    }

    async fn wait(self: Rc<Self>, _: monitor::WaitParams, mut results: monitor::WaitResults) -> Result<(), Error> {
        match self.ask(Command::Wait).await? {
            Ok(Reply::Ended(exit, durable)) => {
                results.get().set_durable(durable);
                fill::exit(results.get().init_exit(), &exit);
            }
            Ok(other) => return Err(odd(&other)),
            Err(why) => fill::refusal(results.get().init_refusal(), &why),
        }
        Ok(())
    }

    async fn attach(
        self: Rc<Self>,
        params: monitor::AttachParams,
        mut results: monitor::AttachResults,
    ) -> Result<(), Error> {
        let params = params.get()?;
        let request = request(&params.get_request()?, self.remote(params.get_output()?))?;
        let types = params.get_request()?.get_stdin();
        match self.ask(Command::Attach(request)).await? {
            Ok(Reply::Attached(client)) => {
                let seat = Seat { desk: (*self).clone(), client, types };
                results.get().set_attachment(plain::client(seat));
            }
            Ok(other) => return Err(odd(&other)),
            Err(why) => fill::refusal(results.get().init_refusal(), &why),
        }
        Ok(())
    }

    async fn exec(self: Rc<Self>, params: monitor::ExecParams, mut results: monitor::ExecResults) -> Result<(), Error> {
        let params = params.get()?;
        let remote = if params.has_output() { Some(self.remote(params.get_output()?)) } else { None };
        let answer = match spec(&params.get_spec()?)? {
            Ok(spec) => self.ask(Command::Exec(Box::new(spec), remote)).await?,
            Err(why) => Err(why),
        };
        match answer {
            Ok(Reply::Started(id)) => {
                results.get().set_id(id);
                let run = Run { desk: (*self).clone(), id };
                results.get().set_exec(plain::client(run));
            }
            Ok(other) => return Err(odd(&other)),
            Err(why) => fill::refusal(results.get().init_refusal(), &why),
        }
        Ok(())
    }

    async fn exec_result(
        self: Rc<Self>,
        params: monitor::ExecResultParams,
        mut results: monitor::ExecResultResults,
    ) -> Result<(), Error> {
        match self.ask(Command::ExecResult(params.get()?.get_id())).await? {
            Ok(Reply::Result(outcome)) => fill::outcome(results.get().init_result(), &outcome),
            Ok(other) => return Err(odd(&other)),
            Err(why) => fill::refusal(results.get().init_refusal(), &why),
        }
        Ok(())
    }

    async fn resize(
        self: Rc<Self>,
        params: monitor::ResizeParams,
        mut results: monitor::ResizeResults,
    ) -> Result<(), Error> {
        let (rows, cols) = (params.get()?.get_rows(), params.get()?.get_columns());
        plain!(self, results, Command::Resize { session: CONTAINER, rows, cols })
    }

    async fn signal(
        self: Rc<Self>,
        params: monitor::SignalParams,
        mut results: monitor::SignalResults,
    ) -> Result<(), Error> {
        let number = params.get()?.get_number().into();
        plain!(self, results, Command::Signal { session: CONTAINER, number })
    }

    async fn close_stdin(
        self: Rc<Self>,
        _: monitor::CloseStdinParams,
        mut results: monitor::CloseStdinResults,
    ) -> Result<(), Error> {
        plain!(self, results, Command::CloseInput { session: CONTAINER })
    }

    async fn reopen_log(
        self: Rc<Self>,
        _: monitor::ReopenLogParams,
        mut results: monitor::ReopenLogResults,
    ) -> Result<(), Error> {
        match self.ask(Command::ReopenLog).await? {
            Ok(Reply::Reopened(files)) => {
                let count = u32::try_from(files.len()).unwrap_or(0);
                let mut list = results.get().init_files(count);
                for (index, file) in (0..count).zip(&files) {
                    fill::switch(list.reborrow().get(index), file);
                }
            }
            Ok(other) => return Err(odd(&other)),
            Err(why) => fill::refusal(results.get().init_refusal(), &why),
        }
        Ok(())
    }

    async fn set_log_policy(
        self: Rc<Self>,
        params: monitor::SetLogPolicyParams,
        mut results: monitor::SetLogPolicyResults,
    ) -> Result<(), Error> {
        let stream = named(params.get()?.get_stream()?);
        match policy(&params.get()?.get_policy()?)? {
            Ok(policy) => plain!(self, results, Command::SetPolicy { stream, policy }),
            Err(why) => {
                fill::refusal(results.get().init_refusal(), &why);
                Ok(())
            }
        }
    }

    async fn upgrade(
        self: Rc<Self>,
        params: monitor::UpgradeParams,
        mut results: monitor::UpgradeResults,
    ) -> Result<(), Error> {
        let program = params.get()?.get_program()?.to_str()?;
        let program = (!program.is_empty()).then(|| PathBuf::from(program));
        let check_only = params.get()?.get_check_only();
        plain!(self, results, Command::Upgrade { program, check_only })
    }
}

/// The `Attachment` of one client.
struct Seat {
    desk: Desk,
    client: u32,
    types: bool,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.desk.leave(Command::Detach(self.client));
    }
}

impl Seat {
    fn check(&self) -> Result<(), Refusal> {
        if self.types { Ok(()) } else { Err(Refusal::new(Code::Invalid, "attached without stdin")) }
    }
}

impl attachment::Server for Seat {
    // Not `async`: what is typed takes its place when the call comes, and not when its future is first polled.
    fn write(self: Rc<Self>, params: attachment::WriteParams) -> impl Future<Output = Result<(), Error>> + 'static {
        let typing = || -> Result<_, Error> {
            self.check().map_err(|why| Error::failed(why.text))?;
            Ok(self.desk.input(CONTAINER, params.get()?.get_data()?))
        };
        let typing = typing();
        async move { typing?.await }
    }

    fn close_stdin(
        self: Rc<Self>,
        _: attachment::CloseStdinParams,
        mut results: attachment::CloseStdinResults,
    ) -> impl Future<Output = Result<(), Error>> + 'static {
        let closing = self.check().map(|()| self.desk.ask(Command::CloseInput { session: CONTAINER }));
        async move {
            let answer = match closing {
                Ok(closing) => closing.await?.map(drop),
                Err(why) => Err(why),
            };
            if let Err(why) = answer {
                fill::refusal(results.get().init_refusal(), &why);
            }
            Ok(())
        }
    }

    async fn resize(
        self: Rc<Self>,
        params: attachment::ResizeParams,
        mut results: attachment::ResizeResults,
    ) -> Result<(), Error> {
        let (rows, cols) = (params.get()?.get_rows(), params.get()?.get_columns());
        plain!(self.desk, results, Command::Resize { session: CONTAINER, rows, cols })
    }
}

/// The `Exec` of one process.
struct Run {
    desk: Desk,
    id: Id,
}

impl Drop for Run {
    fn drop(&mut self) {
        self.desk.leave(Command::Abandon(self.id));
    }
}

impl exec::Server for Run {
    async fn wait(self: Rc<Self>, _: exec::WaitParams, mut results: exec::WaitResults) -> Result<(), Error> {
        match self.desk.ask(Command::ExecWait(self.id)).await? {
            Ok(Reply::Result(outcome)) => fill::outcome(results.get().init_result(), &outcome),
            Ok(other) => return Err(odd(&other)),
            Err(why) => return Err(Error::failed(why.text)),
        }
        Ok(())
    }

    // Not `async`, for the same reason as above.
    fn write(self: Rc<Self>, params: exec::WriteParams) -> impl Future<Output = Result<(), Error>> + 'static {
        let typing = || -> Result<_, Error> { Ok(self.desk.input(self.id, params.get()?.get_data()?)) };
        let typing = typing();
        async move { typing?.await }
    }

    fn close_stdin(
        self: Rc<Self>,
        _: exec::CloseStdinParams,
        mut results: exec::CloseStdinResults,
    ) -> impl Future<Output = Result<(), Error>> + 'static {
        let closing = self.desk.ask(Command::CloseInput { session: self.id });
        async move {
            if let Err(why) = closing.await? {
                fill::refusal(results.get().init_refusal(), &why);
            }
            Ok(())
        }
    }

    async fn resize(self: Rc<Self>, params: exec::ResizeParams, mut results: exec::ResizeResults) -> Result<(), Error> {
        let (rows, cols) = (params.get()?.get_rows(), params.get()?.get_columns());
        plain!(self.desk, results, Command::Resize { session: self.id, rows, cols })
    }

    async fn signal(self: Rc<Self>, params: exec::SignalParams, mut results: exec::SignalResults) -> Result<(), Error> {
        let number = params.get()?.get_number().into();
        plain!(self.desk, results, Command::Signal { session: self.id, number })
    }
}

// ---------------------------------------------------------------- from the schema's types to ours

fn request(from: &attach_request::Reader<'_>, remote: Remote) -> Result<Request, Error> {
    use attach_request::history::Which;
    let history = match from.get_history().which()? {
        Which::None(()) => History::None,
        Which::All(()) => History::All,
        Which::Bytes(count) => History::Bytes(count),
        Which::Lines(count) => History::Lines(count),
        Which::From(place) => History::From([place.get_stdout(), place.get_stderr()]),
    };
    let size = (from.get_rows(), from.get_columns());
    Ok(Request {
        remote,
        types: from.get_stdin(),
        wanted: [from.get_stdout(), from.get_stderr()],
        history,
        size: (size != (0, 0)).then_some(size),
        leave_stdin_open: from.get_leave_stdin_open(),
    })
}

fn policy(from: &log_policy::Reader<'_>) -> Result<Result<Policy, Refusal>, Error> {
    let limit = match from.which()? {
        log_policy::Which::Pass(()) => return Ok(Ok(Policy::Pass)),
        log_policy::Which::Limit(limit) => limit,
    };
    let (rate, burst) = (limit.get_bytes_per_second(), limit.get_burst());
    if rate == 0 {
        return Ok(Err(Refusal::new(Code::Invalid, "a limit of 0 bytes per second lets nothing through")));
    }
    let action = match limit.get_action()? {
        log_policy::Action::BackPressure => Action::BackPressure,
        log_policy::Action::Drop => Action::Drop,
    };
    Ok(Ok(Policy::Limit { rate, burst: if burst == 0 { rate } else { burst }, action }))
}

fn spec(from: &exec_spec::Reader<'_>) -> Result<Result<Spec, Refusal>, Error> {
    let process = match process(from)? {
        Ok(process) => process,
        Err(why) => return Ok(Err(why)),
    };
    let (rows, cols) = (from.get_rows(), from.get_columns());
    Ok(Ok(Spec {
        process,
        terminal: from.get_terminal(),
        stdin: from.get_stdin(),
        window: ((rows, cols) != (0, 0)).then_some((rows, cols)),
        timeout: Some(from.get_timeout()).filter(|limit| *limit > 0).map(Duration::from_millis),
        output_max: usize::try_from(from.get_output_max()).unwrap_or(usize::MAX),
        detached: from.get_on_disconnect()? == exec_spec::OnDisconnect::Detach,
    }))
}

fn process(from: &exec_spec::Reader<'_>) -> Result<Result<Process, Refusal>, Error> {
    let args = texts(from.get_args()?)?;
    let json = from.get_process()?;
    if args.is_empty() == json.is_empty() {
        return Ok(Err(Refusal::new(Code::Invalid, "an exec takes either a command or a process object")));
    }
    if !json.is_empty() {
        return Ok(Ok(Process::Json(json.to_vec())));
    }
    Ok(Ok(Process::Words {
        args,
        env: texts(from.get_env()?)?,
        cwd: from.get_cwd()?.to_str()?.to_owned(),
        user: from.get_user()?.to_str()?.to_owned(),
        additional_gids: from.get_additional_gids()?.iter().collect(),
        capabilities: texts(from.get_capabilities()?)?,
        no_new_privileges: from.get_no_new_privileges(),
    }))
}

/// Bytes rather than text: a command line need not be UTF-8.
fn texts(list: capnp::text_list::Reader<'_>) -> Result<Vec<std::ffi::OsString>, Error> {
    list.iter().map(|text| Ok(std::ffi::OsStr::from_bytes(text?.as_bytes()).to_owned())).collect()
}
