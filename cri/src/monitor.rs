//! The monitors: starting one per container, and talking to them.
//!
//! Clients of Cap'n Proto cannot leave the thread they were made on, so one thread has all connections. Everybody else
//! hands it work through [`Monitors`] and waits for the answer.

use std::cell::RefCell;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Stdio;
use std::rc::Rc;
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use conmon_proto::{Client, Code, Exit, ExitReason, Verdict};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Command;
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;

use crate::error::{Context, Error, Result};

/// What a monitor is started with.
#[derive(Debug)]
pub struct Launch<'a> {
    pub program: &'a Path,
    pub id: &'a str,
    pub name: &'a str,
    pub runtime: &'a Path,
    /// Before the runtime's own command.
    pub runtime_args: &'a [String],
    pub bundle: &'a Path,
    /// In the CRI's format.
    pub log: Option<&'a Path>,
    /// Where exit files survive a reboot.
    pub persist_dir: &'a Path,
    pub terminal: bool,
    pub stdin: bool,
}

/// The longest that `runtime create` may take.
const CREATE_PATIENCE: Duration = Duration::from_secs(240);

/// What monitor and runtime said on their way, at most.
const COMPLAINT_MAX: u64 = 64 * 1024;

/// Starts a monitor, which creates the container; answers with the pid of the container's process.
pub async fn launch(launch: &Launch<'_>) -> Result<i32> {
    let doing = || format!("Failed to start monitor {} of container {}", launch.program.display(), launch.id);
    let (reader, writer) = std::io::pipe().context(doing)?;
    let mut command = Command::new(launch.program);
    command
        .args(launch_args(launch))
        .env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        .env("_OCI_SYNCPIPE", "3")
        .current_dir(launch.bundle)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command.fd_mappings(vec![FdMapping { parent_fd: OwnedFd::from(writer), child_fd: 3 }]).context(doing)?;
    let mut child = command.spawn().context(doing)?;
    // Holds the writing end otherwise.
    drop(command);
    let stderr = child.stderr.take();
    let reports = tokio::net::unix::pipe::Receiver::from_owned_fd(OwnedFd::from(reader)).context(doing)?;
    let mut line = String::new();
    let mut reports = BufReader::new(reports);
    let read = tokio::time::timeout(CREATE_PATIENCE, reports.read_line(&mut line)).await;
    let status = child.wait().await.context(doing)?;
    match read {
        Err(_) => return Err(Error::Deadline(format!("{}: the runtime takes too long", doing()))),
        Ok(read) => read.context(doing)?,
    };
    if line.is_empty() {
        let mut said = String::new();
        if let Some(stderr) = stderr {
            let _ = stderr.take(COMPLAINT_MAX).read_to_string(&mut said).await;
        }
        return Err(Error::failed(format!("{}: it ended with {status}: {}", doing(), said.trim_end())));
    }
    let report: Report = serde_json::from_str(&line).context(doing)?;
    match report.data {
        pid if pid > 0 => Ok(pid),
        _ => Err(Error::failed(format!("Failed to create container {}: {}", launch.id, report.message.trim_end()))),
    }
}

/// conmon's report on the sync pipe.
#[derive(serde::Deserialize)]
struct Report {
    #[serde(alias = "pid")]
    data: i32,
    #[serde(default)]
    message: String,
}

fn launch_args(launch: &Launch<'_>) -> Vec<std::ffi::OsString> {
    let bundle = launch.bundle;
    let mut args: Vec<std::ffi::OsString> = Vec::new();
    let mut push = |words: &[&std::ffi::OsStr]| args.extend(words.iter().map(|word| word.to_os_string()));
    let log = match launch.log {
        Some(path) => [std::ffi::OsStr::new("k8s-file:"), path.as_os_str()].join_words(),
        None => "none".into(),
    };
    push(&["-c".as_ref(), launch.id.as_ref(), "-u".as_ref(), launch.id.as_ref(), "-n".as_ref(), launch.name.as_ref()]);
    push(&["-r".as_ref(), launch.runtime.as_ref(), "-b".as_ref(), bundle.as_ref(), "-l".as_ref(), &log]);
    push(&["-p".as_ref(), bundle.join(PIDFILE).as_ref(), "-P".as_ref(), bundle.join(MONITOR_PIDFILE).as_ref()]);
    push(&["--persist-dir".as_ref(), launch.persist_dir.as_ref(), "--full-attach".as_ref()]);
    push(&["--log-utc".as_ref()]);
    if launch.terminal {
        push(&["-t".as_ref()]);
    }
    if launch.stdin {
        push(&["-i".as_ref()]);
    }
    for word in launch.runtime_args {
        push(&["--runtime-arg".as_ref(), word.as_ref()]);
    }
    args
}

trait JoinWords {
    fn join_words(self) -> std::ffi::OsString;
}

impl JoinWords for [&std::ffi::OsStr; 2] {
    fn join_words(self) -> std::ffi::OsString {
        let mut joined = self[0].to_os_string();
        joined.push(self[1]);
        joined
    }
}

/// In the bundle: the pid of the container's process.
pub const PIDFILE: &str = "container.pid";

/// In the bundle: the monitor's own pid.
pub const MONITOR_PIDFILE: &str = "monitor.pid";

/// In the bundle: the monitor's service.
pub const SOCKET: &str = "conward.sock";

/// How a container ended; the monitor's record in the domain's terms.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
pub struct Ended {
    /// The exit code, 128 + signal, or nothing when nobody knows.
    pub code: Option<i32>,
    pub oom_killed: bool,
    /// Nanoseconds since 1970.
    pub finished_at: i64,
}

impl From<Exit> for Ended {
    fn from(exit: Exit) -> Ended {
        let known = matches!(exit.reason, ExitReason::Exited | ExitReason::Signalled);
        Ended {
            code: known.then_some(exit.status),
            oom_killed: exit.oom_killed == Verdict::Yes,
            finished_at: exit.finished_at,
        }
    }
}

/// The monitor of a bundle runs.
pub fn alive(bundle: &Path, id: &str) -> bool {
    let Ok(pid) = std::fs::read_to_string(bundle.join(MONITOR_PIDFILE)) else { return false };
    let words = std::fs::read(format!("/proc/{}/cmdline", pid.trim())).unwrap_or_default();
    words.split(|byte| *byte == 0).any(|word| word == id.as_bytes())
}

/// Reads what a monitor that is gone has left in the bundle (SPECIFICATION, exit.json).
pub fn record(bundle: &Path) -> Option<Ended> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Record {
        reason: String,
        status: i32,
        oom_killed: Option<bool>,
    }
    let path = bundle.join("exit.json");
    let record: Record = crate::state::read(&path).ok()?;
    let written = std::fs::metadata(&path).and_then(|file| file.modified()).ok()?;
    let since = written.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some(Ended {
        code: matches!(record.reason.as_str(), "exited" | "signaled").then_some(record.status),
        oom_killed: record.oom_killed == Some(true),
        finished_at: i64::try_from(since.as_nanos()).unwrap_or(i64::MAX),
    })
}

type Local<T> = Pin<Box<dyn Future<Output = T>>>;

type Job = Box<dyn FnOnce(Rc<Links>) -> Local<()> + Send>;

/// A handle on the thread that talks to monitors.
#[derive(Clone, Debug)]
pub struct Monitors(mpsc::UnboundedSender<Job>);

/// One connection per monitor for all short calls. Streams have connections of their own.
#[derive(Default)]
struct Links(RefCell<HashMap<PathBuf, Client>>);

impl Monitors {
    /// Starts the thread; it ends when the last handle is gone.
    pub fn start() -> Result<Monitors> {
        let (sender, mut jobs) = mpsc::unbounded_channel::<Job>();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context(|| "Failed to set up the loop for monitors")?;
        let work = move || {
            let local = LocalSet::new();
            local.block_on(&runtime, async move {
                let links = Rc::new(Links::default());
                while let Some(job) = jobs.recv().await {
                    tokio::task::spawn_local(job(Rc::clone(&links)));
                }
            });
        };
        std::thread::Builder::new()
            .name("monitors".into())
            .stack_size(512 * 1024)
            .spawn(work)
            .context(|| "Failed to start the thread for monitors")?;
        Ok(Monitors(sender))
    }

    /// Calls the monitor of a bundle over the connection that is shared.
    pub async fn call<T, F, W>(&self, bundle: &Path, call: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(Client) -> W + Send + 'static,
        W: Future<Output = std::result::Result<T, conmon_proto::Error>> + 'static,
    {
        let socket = bundle.join(SOCKET);
        self.run(move |links| async move {
            let client = links.client(&socket).await?;
            let result = call(client).await;
            if matches!(&result, Err(conmon_proto::Error::Connection(_))) {
                links.forget(&socket);
            }
            result.map_err(|error| refusal(&socket, &error))
        })
        .await
    }

    /// Does something over a connection of its own, which ends with it; when the caller goes away, it is dropped.
    pub async fn stream<T, F, W>(&self, bundle: &Path, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(Client) -> W + Send + 'static,
        W: Future<Output = Result<T>> + 'static,
    {
        let socket = bundle.join(SOCKET);
        self.run(move |_| async move {
            let client = conmon_proto::connect(&socket).await.map_err(|error| refusal(&socket, &error))?;
            work(client).await
        })
        .await
    }

    /// Waits until the container has ended or its monitor is gone.
    pub async fn wait(&self, bundle: &Path) -> Option<Ended> {
        let waited = self.call(bundle, |client| async move { client.wait().await }).await;
        match waited {
            Ok((exit, _)) => Some(exit.into()),
            Err(_) => None,
        }
    }

    /// Drops the connection to a monitor that is not needed any more.
    pub fn forget(&self, bundle: &Path) {
        let socket = bundle.join(SOCKET);
        let _ = self.0.send(Box::new(move |links| {
            links.forget(&socket);
            Box::pin(async {})
        }));
    }

    async fn run<T, F, W>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(Rc<Links>) -> W + Send + 'static,
        W: Future<Output = Result<T>> + 'static,
    {
        let (mut sender, receiver) = oneshot::channel();
        let job: Job = Box::new(move |links| {
            Box::pin(async move {
                let work = work(links);
                tokio::select! {
                    result = work => drop(sender.send(result)),
                    // Nobody waits any more.
                    () = sender.closed() => {}
                }
            })
        });
        let gone = || Error::failed("The thread for monitors has ended");
        self.0.send(job).map_err(|_| gone())?;
        receiver.await.map_err(|_| gone())?
    }
}

impl Links {
    async fn client(&self, socket: &Path) -> Result<Client> {
        if let Some(client) = self.0.borrow().get(socket) {
            return Ok(client.clone());
        }
        let client = conmon_proto::connect(socket).await.map_err(|error| refusal(socket, &error))?;
        // Another call may have connected meanwhile; one of the two connections is kept.
        Ok(self.0.borrow_mut().entry(socket.to_owned()).or_insert(client).clone())
    }

    fn forget(&self, socket: &Path) {
        self.0.borrow_mut().remove(socket);
    }
}

/// A monitor's no in the terms of the CRI.
pub fn refusal(socket: &Path, error: &conmon_proto::Error) -> Error {
    match error {
        conmon_proto::Error::Refused(refusal) => match refusal.code {
            Code::Invalid => Error::Invalid(refusal.text.clone()),
            Code::NotRunning | Code::NoTerminal | Code::NoStdin => Error::Precondition(refusal.text.clone()),
            Code::NotFound => Error::Precondition(refusal.text.clone()),
            Code::TooMany | Code::Busy => Error::Unavailable(refusal.text.clone()),
            _ => Error::Failed(refusal.text.clone()),
        },
        error => Error::Unavailable(format!("Monitor at {}: {error}", socket.display())),
    }
}
