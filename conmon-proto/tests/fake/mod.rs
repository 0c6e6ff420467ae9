//! A monitor that keeps to the comments of the schema and has no container: what the client is tested against.
//!
//! Its container says what was put into it, echoes what is typed, and ends when it reads `end N`.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use capnp::Error;
use capnp_rpc::rpc_twoparty_capnp::Side;
use capnp_rpc::{RpcSystem, new_client, twoparty};
use conmon_proto::conward_capnp as wire;
use conmon_proto::conward_capnp::{attach_request, attachment, exec, exec_spec, monitor, output};
use futures::channel::oneshot;
use futures::{AsyncRead, AsyncWrite};
use tokio::task::AbortHandle;

pub const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// The state of a container that does not exist.
pub struct Fake {
    pub id: String,
    said: RefCell<Vec<(wire::Stream, Vec<u8>)>>,
    /// Bytes at the beginning of stdout that the log does not have.
    pub lost: u64,
    started_at: Cell<i64>,
    outputs: RefCell<Vec<output::Client>>,
    exit: Cell<Option<i32>>,
    waiting: RefCell<Vec<oneshot::Sender<()>>>,
    results: RefCell<Vec<Ran>>,
    limit: Cell<u64>,
    pub peer: Cell<i32>,
    connections: RefCell<Vec<AbortHandle>>,
}

#[derive(Clone, Default)]
struct Ran {
    reason: Option<wire::exit::Reason>,
    code: i32,
    error: String,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Fake {
    pub fn new(id: &str, said: &[(wire::Stream, &str)], lost: u64) -> Rc<Fake> {
        let said = said.iter().map(|(stream, text)| (*stream, text.as_bytes().to_vec())).collect();
        Rc::new(Fake {
            id: id.to_owned(),
            said: RefCell::new(said),
            lost,
            started_at: Cell::new(1_700_000_000_000_000_000),
            outputs: RefCell::default(),
            exit: Cell::default(),
            waiting: RefCell::default(),
            results: RefCell::default(),
            limit: Cell::default(),
            peer: Cell::default(),
            connections: RefCell::default(),
        })
    }

    /// The other end of a connection.
    pub fn serve(
        self: &Rc<Fake>,
        reader: impl AsyncRead + Unpin + 'static,
        writer: impl AsyncWrite + Unpin + 'static,
    ) -> RpcSystem<Side> {
        let network = twoparty::VatNetwork::new(reader, writer, Side::Server, capnp::message::ReaderOptions::new());
        let service: monitor::Client = new_client(Service(Rc::clone(self)));
        RpcSystem::new(Box::new(network), Some(service.client))
    }

    fn total(&self, stream: wire::Stream) -> u64 {
        let lost = if stream == wire::Stream::Stdout { self.lost } else { 0 };
        let said = self.said.borrow();
        lost + said.iter().filter(|(of, _)| *of == stream).map(|(_, text)| text.len() as u64).sum::<u64>()
    }

    /// Tells everybody, and waits for nobody: input is taken before its echo is.
    fn say(&self, stream: wire::Stream, text: &[u8]) {
        let offset = self.total(stream);
        self.said.borrow_mut().push((stream, text.to_vec()));
        for output in self.outputs.borrow().clone() {
            let text = text.to_vec();
            tokio::task::spawn_local(async move { write(&output, stream, offset, &text).await.ok() });
        }
    }

    async fn end(&self, status: i32) {
        self.exit.set(Some(status));
        self.waiting.borrow_mut().drain(..).for_each(|waiter| waiter.send(()).unwrap_or_default());
        self.leave(wire::end::Reason::Ended).await;
    }

    async fn leave(&self, reason: wire::end::Reason) {
        for output in self.outputs.take() {
            let mut call = output.end_request();
            let mut end = call.get().init_end();
            end.set_reason(reason);
            end.set_stdout(self.total(wire::Stream::Stdout));
            end.set_stderr(self.total(wire::Stream::Stderr));
            if let (Some(status), wire::end::Reason::Ended) = (self.exit.get(), reason) {
                exited(end.init_exit(), wire::exit::Reason::Exited, status);
            }
            call.send().promise.await.ok();
        }
    }
}

fn exited(mut exit: wire::exit::Builder<'_>, reason: wire::exit::Reason, code: i32) {
    exit.set_reason(reason);
    exit.set_status(match reason {
        wire::exit::Reason::Exited => code,
        wire::exit::Reason::Signalled => 128 + code,
        _ => -1,
    });
    exit.set_exit_code(code);
    exit.set_signal(code);
    exit.set_oom_killed(wire::exit::Verdict::No);
    exit.set_started_at(1_700_000_000_000_000_000);
    exit.set_finished_at(1_700_000_005_000_000_000);
}

async fn write(output: &output::Client, stream: wire::Stream, offset: u64, data: &[u8]) -> Result<(), Error> {
    let mut call = output.write_request();
    call.get().set_stream(stream);
    call.get().set_offset(offset);
    call.get().set_data(data);
    call.send().await
}

fn refuse(mut refusal: wire::refusal::Builder<'_>, code: wire::refusal::Code, text: &str) {
    refusal.set_code(code);
    refusal.set_text(text);
}

struct Service(Rc<Fake>);

impl monitor::Server for Service {
    async fn version(
        self: Rc<Self>,
        _: monitor::VersionParams,
        mut results: monitor::VersionResults,
    ) -> Result<(), Error> {
        let mut version = results.get().init_version();
        version.set_conward("9.8.7");
        version.set_conmon("2.2.1");
        version.set_commit("abc");
        version.set_protocol(1);
        version.set_pid(4242);
        version.set_started_at(self.0.started_at.get());
        Ok(())
    }

    async fn inspect(
        self: Rc<Self>,
        _: monitor::InspectParams,
        mut results: monitor::InspectResults,
    ) -> Result<(), Error> {
        let mut state = results.get().init_state();
        state.set_id(&self.0.id[..]);
        state.set_name("web");
        state.set_bundle("/run/web");
        state.set_runtime("/usr/bin/runc");
        state.set_phase(wire::state::Phase::Running);
        state.set_pid(77);
        state.set_monitor_pid(4242);
        state.set_started_at(1_700_000_000_000_000_000);
        state.set_stdin(true);
        state.set_oom_kills(-1);
        let mut streams = state.reborrow().init_streams(2);
        for (index, stream) in [wire::Stream::Stdout, wire::Stream::Stderr].into_iter().enumerate() {
            let mut of = streams.reborrow().get(u32::try_from(index).unwrap());
            of.set_stream(stream);
            of.set_bytes(self.0.total(stream));
            of.set_lost(if index == 0 { self.0.lost } else { 0 });
            of.set_open(true);
            let mut policy = of.init_policy();
            match self.0.limit.get() {
                0 => policy.set_pass(()),
                rate => policy.init_limit().set_bytes_per_second(rate),
            }
        }
        let mut sink = state.reborrow().init_sinks(1).get(0);
        sink.set_driver("k8s-file");
        sink.set_path("/run/web/log");
        sink.set_size(2048);
        let mut peer = state.reborrow().init_clients(1).get(0);
        peer.set_kind(wire::client::Kind::Service);
        peer.set_pid(self.0.peer.get());
        state.init_memory().set_private(98_304);
        Ok(())
    }

    async fn wait(self: Rc<Self>, _: monitor::WaitParams, mut results: monitor::WaitResults) -> Result<(), Error> {
        if self.0.exit.get().is_none() {
            let (sender, receiver) = oneshot::channel();
            self.0.waiting.borrow_mut().push(sender);
            receiver.await.ok();
        }
        let status = self.0.exit.get().unwrap_or(-1);
        exited(results.get().init_exit(), wire::exit::Reason::Exited, status);
        results.get().set_durable(true);
        Ok(())
    }

    async fn attach(
        self: Rc<Self>,
        params: monitor::AttachParams,
        mut results: monitor::AttachResults,
    ) -> Result<(), Error> {
        let request = params.get()?.get_request()?;
        let output = params.get()?.get_output()?;
        let attachment: attachment::Client = new_client(Typist(Rc::clone(&self.0)));
        results.get().set_attachment(attachment);
        // The answer does not wait for the history.
        let past = past(&self.0, request)?;
        let fake = Rc::clone(&self.0);
        tokio::task::spawn_local(async move {
            for (stream, offset, text) in past {
                match text {
                    Some(text) => write(&output, stream, offset, &text).await?,
                    None => {
                        let mut call = output.gap_request();
                        call.get().set_stream(stream);
                        call.get().set_offset(offset);
                        call.get().set_lost(fake.lost);
                        call.send().await?;
                    }
                }
            }
            fake.outputs.borrow_mut().push(output);
            if let Some(status) = fake.exit.get() {
                fake.end(status).await;
            }
            Ok::<(), Error>(())
        });
        Ok(())
    }

    async fn exec(self: Rc<Self>, params: monitor::ExecParams, mut results: monitor::ExecResults) -> Result<(), Error> {
        let spec = params.get()?.get_spec()?;
        let args: Vec<String> = spec.get_args()?.iter().map(|word| word.unwrap().to_string().unwrap()).collect();
        if args.first().is_some_and(|word| word == "refused") {
            refuse(results.get().init_refusal(), wire::refusal::Code::TooMany, "start exec: there are 32 already");
            return Ok(());
        }
        let ran = run(spec, &args)?;
        let output = if params.get()?.has_output() { Some(params.get()?.get_output()?) } else { None };
        let mut all = self.0.results.borrow_mut();
        all.push(ran.clone());
        let id = u32::try_from(all.len()).unwrap();
        let process = Rc::new(Process { id, ran, output });
        if args[0] != "cat" {
            let process = Rc::clone(&process);
            tokio::task::spawn_local(async move { process.finish().await.ok() });
        }
        let exec: exec::Client = capnp_rpc::new_client_from_rc(process);
        results.get().set_exec(exec);
        results.get().set_id(id);
        Ok(())
    }

    async fn exec_result(
        self: Rc<Self>,
        params: monitor::ExecResultParams,
        mut results: monitor::ExecResultResults,
    ) -> Result<(), Error> {
        let id = params.get()?.get_id();
        let ran = (id as usize).checked_sub(1).and_then(|at| self.0.results.borrow().get(at).cloned());
        match ran {
            Some(ran) => told(results.get().init_result(), id, &ran, true),
            None => {
                refuse(results.get().init_refusal(), wire::refusal::Code::NotFound, &format!("there is no exec {id}"))
            }
        }
        Ok(())
    }

    async fn resize(
        self: Rc<Self>,
        _: monitor::ResizeParams,
        mut results: monitor::ResizeResults,
    ) -> Result<(), Error> {
        refuse(results.get().init_refusal(), wire::refusal::Code::NoTerminal, "resize: the container has no terminal");
        Ok(())
    }

    async fn signal(self: Rc<Self>, params: monitor::SignalParams, _: monitor::SignalResults) -> Result<(), Error> {
        self.0.end(128 + i32::from(params.get()?.get_number())).await;
        Ok(())
    }

    async fn close_stdin(
        self: Rc<Self>,
        _: monitor::CloseStdinParams,
        _: monitor::CloseStdinResults,
    ) -> Result<(), Error> {
        Ok(())
    }

    async fn reopen_log(
        self: Rc<Self>,
        _: monitor::ReopenLogParams,
        mut results: monitor::ReopenLogResults,
    ) -> Result<(), Error> {
        let mut file = results.get().init_files(1).get(0);
        file.set_driver("k8s-file");
        file.set_path("/run/web/log");
        file.set_inode(5);
        file.set_stdout(self.0.total(wire::Stream::Stdout));
        Ok(())
    }

    async fn set_log_policy(
        self: Rc<Self>,
        params: monitor::SetLogPolicyParams,
        mut results: monitor::SetLogPolicyResults,
    ) -> Result<(), Error> {
        match params.get()?.get_policy()?.which()? {
            wire::log_policy::Pass(()) => self.0.limit.set(0),
            wire::log_policy::Limit(limit) if limit.get_bytes_per_second() == 0 => {
                refuse(results.get().init_refusal(), wire::refusal::Code::Invalid, "a limit of 0");
            }
            wire::log_policy::Limit(limit) => self.0.limit.set(limit.get_bytes_per_second()),
        }
        Ok(())
    }

    async fn upgrade(
        self: Rc<Self>,
        params: monitor::UpgradeParams,
        mut results: monitor::UpgradeResults,
    ) -> Result<(), Error> {
        let program = params.get()?.get_program()?.to_string()?;
        if program.ends_with("bad") {
            refuse(
                results.get().init_refusal(),
                wire::refusal::Code::Failed,
                "the candidate does not accept the state",
            );
        } else if !params.get()?.get_check_only() {
            let fake = Rc::clone(&self.0);
            // Who comes from now on is met by the new program.
            let connections = fake.connections.take();
            tokio::task::spawn_local(async move {
                fake.leave(wire::end::Reason::Upgrade).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
                fake.started_at.set(fake.started_at.get() + 1);
                connections.iter().for_each(AbortHandle::abort);
            });
        }
        Ok(())
    }
}

/// What was said before that the request asks for; a text that is none is a gap.
type Past = Vec<(wire::Stream, u64, Option<Vec<u8>>)>;

fn past(fake: &Fake, request: attach_request::Reader<'_>) -> Result<Past, Error> {
    let mut offsets = [fake.lost, 0];
    let mut past = Past::new();
    if fake.lost > 0 {
        past.push((wire::Stream::Stdout, 0, None));
    }
    for (stream, text) in fake.said.borrow().iter() {
        let offset = &mut offsets[*stream as usize];
        past.push((*stream, *offset, Some(text.clone())));
        *offset += text.len() as u64;
    }
    past.retain(|(stream, ..)| match stream {
        wire::Stream::Stdout => request.get_stdout(),
        wire::Stream::Stderr => request.get_stderr(),
    });
    use attach_request::history::Which;
    Ok(match request.get_history().which()? {
        Which::None(()) => Past::new(),
        Which::All(()) | Which::Bytes(_) => past,
        // Each text is a line here.
        Which::Lines(count) => past.split_off(past.len().saturating_sub(usize::try_from(count).unwrap())),
        Which::From(from) => {
            let from = [from.get_stdout(), from.get_stderr()];
            let cut = |(stream, offset, text): (wire::Stream, u64, Option<Vec<u8>>)| {
                let skip = usize::try_from(from[stream as usize].saturating_sub(offset)).unwrap();
                let text = text?;
                (skip < text.len()).then(|| (stream, offset + skip as u64, Some(text[skip..].to_vec())))
            };
            past.into_iter().filter_map(cut).collect()
        }
    })
}

struct Typist(Rc<Fake>);

impl attachment::Server for Typist {
    async fn write(self: Rc<Self>, params: attachment::WriteParams) -> Result<(), Error> {
        let data = params.get()?.get_data()?.to_vec();
        let text = String::from_utf8_lossy(&data).into_owned();
        self.0.say(wire::Stream::Stdout, &data);
        if let Some(status) = text.trim().strip_prefix("end ") {
            let status = status.parse().unwrap();
            tokio::task::spawn_local(async move { self.0.end(status).await });
        }
        Ok(())
    }

    async fn close_stdin(
        self: Rc<Self>,
        _: attachment::CloseStdinParams,
        _: attachment::CloseStdinResults,
    ) -> Result<(), Error> {
        self.0.end(0).await;
        Ok(())
    }
}

/// The commands that there are in this container.
fn run(spec: exec_spec::Reader<'_>, args: &[String]) -> Result<Ran, Error> {
    let exited = |code| Ran { reason: Some(wire::exit::Reason::Exited), code, ..Ran::default() };
    let word = args.get(1).cloned().unwrap_or_default();
    Ok(match &args[0][..] {
        "echo" => Ran { stdout: format!("{word}\n").into_bytes(), stderr: b"warn\n".to_vec(), ..exited(0) },
        "env" => Ran {
            stdout: format!("{:?} {} {}\n", spec.get_env()?, spec.get_cwd()?.to_str()?, spec.get_user()?.to_str()?)
                .into_bytes(),
            ..exited(0)
        },
        "exit" => exited(word.parse().unwrap()),
        "die" => Ran { reason: Some(wire::exit::Reason::Signalled), code: 9, ..Ran::default() },
        "sleep" => Ran { reason: Some(wire::exit::Reason::TimedOut), ..Ran::default() },
        "cat" => exited(0),
        other => Ran {
            reason: Some(wire::exit::Reason::NeverStarted),
            error: format!("exec: \"{other}\": executable file not found in $PATH"),
            ..Ran::default()
        },
    })
}

fn told(mut result: wire::exec_result::Builder<'_>, id: u32, ran: &Ran, captured: bool) {
    result.set_id(id);
    result.set_error(&ran.error[..]);
    if captured {
        result.set_stdout(&ran.stdout);
        result.set_stderr(&ran.stderr);
    }
    exited(result.init_exit(), ran.reason.unwrap_or(wire::exit::Reason::Unknown), ran.code);
}

struct Process {
    id: u32,
    ran: Ran,
    output: Option<output::Client>,
}

impl Process {
    async fn finish(&self) -> Result<(), Error> {
        if let Some(output) = &self.output {
            write(output, wire::Stream::Stdout, 0, &self.ran.stdout).await?;
            write(output, wire::Stream::Stderr, 0, &self.ran.stderr).await?;
            let mut call = output.end_request();
            exited(call.get().init_end().init_exit(), wire::exit::Reason::Exited, self.ran.code);
            call.send().promise.await?;
        }
        Ok(())
    }
}

impl exec::Server for Process {
    async fn wait(self: Rc<Self>, _: exec::WaitParams, mut results: exec::WaitResults) -> Result<(), Error> {
        told(results.get().init_result(), self.id, &self.ran, self.output.is_none());
        Ok(())
    }

    async fn write(self: Rc<Self>, params: exec::WriteParams) -> Result<(), Error> {
        match &self.output {
            Some(output) => write(output, wire::Stream::Stdout, 0, params.get()?.get_data()?).await,
            None => Ok(()),
        }
    }

    async fn close_stdin(self: Rc<Self>, _: exec::CloseStdinParams, _: exec::CloseStdinResults) -> Result<(), Error> {
        self.finish().await
    }
}

/// A fake at a socket, in a thread of its own, with a process that looks like its monitor.
pub struct Monitor {
    pub bundle: PathBuf,
    process: Child,
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// A process with the command line of a monitor; it ends with its stdin.
pub fn process(bundle: &Path, id: &str, more: &[&str]) -> Child {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new("/bin/sh");
    command.arg0("conmon").args(["-c", "read line", "-c", id, "-b"]).arg(bundle).args(more);
    let child = command.stdin(Stdio::piped()).spawn().expect("a shell");
    // It runs a moment before its words can be read.
    while std::fs::read(format!("/proc/{}/cmdline", child.id())).expect("its words").is_empty() {
        std::thread::sleep(Duration::from_millis(1));
    }
    child
}

impl Monitor {
    pub fn start(bundle: &Path, id: &str, said: &[(wire::Stream, &str)], lost: u64) -> Monitor {
        let process = process(bundle, id, &["-n", &format!("name-{}", &id[..4])]);
        // A bundle's path may be too long for the name of a socket.
        let directory = std::fs::File::open(bundle).expect("the bundle");
        let name = format!("/proc/self/fd/{}/conward.sock", std::os::fd::AsRawFd::as_raw_fd(&directory));
        let listener = std::os::unix::net::UnixListener::bind(name).expect("a socket");
        listener.set_nonblocking(true).expect("a socket that does not block");
        let said: Vec<(wire::Stream, String)> =
            said.iter().map(|(stream, text)| (*stream, (*text).to_owned())).collect();
        let id = id.to_owned();
        std::thread::spawn(move || {
            let said: Vec<(wire::Stream, &str)> = said.iter().map(|(stream, text)| (*stream, &text[..])).collect();
            let fake = Fake::new(&id, &said, lost);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            tokio::task::LocalSet::new().block_on(&runtime, async {
                let listener = tokio::net::UnixListener::from_std(listener).unwrap();
                while let Ok((stream, _)) = listener.accept().await {
                    fake.peer.set(stream.peer_cred().unwrap().pid().unwrap());
                    let (reader, writer) = stream.into_split();
                    let task = tokio::task::spawn_local(fake.serve(Half(reader), Half(writer)));
                    fake.connections.borrow_mut().push(task.abort_handle());
                }
            });
        });
        Monitor { bundle: bundle.to_owned(), process }
    }
}

/// A stream of tokio with the traits of futures.
pub struct Half<T>(pub T);

impl<T: tokio::io::AsyncRead + Unpin> AsyncRead for Half<T> {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buffer: &mut [u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        let mut buffer = tokio::io::ReadBuf::new(buffer);
        std::task::ready!(std::pin::Pin::new(&mut self.0).poll_read(cx, &mut buffer))?;
        std::task::Poll::Ready(Ok(buffer.filled().len()))
    }
}

impl<T: tokio::io::AsyncWrite + Unpin> AsyncWrite for Half<T> {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        data: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        std::pin::Pin::new(&mut self.0).poll_write(cx, data)
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_close(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
