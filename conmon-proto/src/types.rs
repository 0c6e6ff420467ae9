//! What the monitor answers, as plain values.

use capnp::text as wire_text;

use crate::conward_capnp as wire;
use crate::request::LogPolicy;

/// An enum of the schema. A newer monitor may say words that we do not know: they are `Unknown`, and no error.
macro_rules! enums {
    ($($(#[$meta:meta])* $name:ident from $wire:ty { $($variant:ident = $word:literal,)* })*) => { $(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($variant,)*
            /// A word of a newer monitor.
            Unrecognised,
        }

        impl $name {
            /// The word of the schema.
            pub fn word(self) -> &'static str {
                match self {
                    $($name::$variant => $word,)*
                    $name::Unrecognised => "unrecognised",
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.word())
            }
        }

        impl From<Result<$wire, capnp::NotInSchema>> for $name {
            fn from(word: Result<$wire, capnp::NotInSchema>) -> $name {
                match word {
                    $(Ok(<$wire>::$variant) => $name::$variant,)*
                    Err(_) => $name::Unrecognised,
                }
            }
        }
    )* };
}
pub(crate) use enums;

enums! {
    /// Which of the container's streams.
    Stream from wire::Stream { Stdout = "stdout", Stderr = "stderr", }

    /// Where a container is in its life.
    Phase from wire::state::Phase {
        Held = "held", Starting = "starting", Running = "running", Ended = "ended", Failed = "failed",
    }

    /// How a client is connected.
    PeerKind from wire::client::Kind { AttachSocket = "attachSocket", Service = "service", }

    /// How a process ended.
    ExitReason from wire::exit::Reason {
        Exited = "exited", Signalled = "signalled", TimedOut = "timedOut", Unknown = "unknown",
        NeverStarted = "neverStarted",
    }

    /// Whether memory killed it.
    Verdict from wire::exit::Verdict { Unknown = "unknown", No = "no", Yes = "yes", }

    /// Why output ends.
    EndReason from wire::end::Reason { Ended = "ended", Detached = "detached", Upgrade = "upgrade", Held = "held", }
}

/// Text that is meant for people, or that goes back as it came only if it was valid.
pub(crate) fn text(from: wire_text::Reader<'_>) -> String {
    String::from_utf8_lossy(from.as_bytes()).into_owned()
}

/// The programs and protocol behind a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    pub conward: String,
    /// The conmon version whose contract is kept.
    pub conmon: String,
    pub commit: String,
    pub protocol: u16,
    pub pid: i32,
    /// When this program began to run, nanoseconds since 1970: changes with an upgrade.
    pub started_at: i64,
}

impl Version {
    pub(crate) fn read(from: wire::version::Reader<'_>) -> capnp::Result<Version> {
        Ok(Version {
            conward: text(from.get_conward()?),
            conmon: text(from.get_conmon()?),
            commit: text(from.get_commit()?),
            protocol: from.get_protocol(),
            pid: from.get_pid(),
            started_at: from.get_started_at(),
        })
    }
}

/// Everything that a monitor knows of itself and its container, at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    pub id: String,
    pub name: String,
    pub bundle: String,
    pub runtime: String,
    pub phase: Phase,
    /// Of the container's process; 0 when there is none.
    pub pid: i32,
    pub monitor_pid: i32,
    /// Nanoseconds since 1970.
    pub started_at: i64,
    pub terminal: bool,
    /// Stdin is open.
    pub stdin: bool,
    pub rows: u16,
    pub columns: u16,
    pub streams: Vec<StreamState>,
    pub sinks: Vec<Sink>,
    pub clients: Vec<Peer>,
    pub execs: Vec<ExecState>,
    pub connections: u32,
    pub memory: Memory,
    pub descriptors: u32,
    /// The monitor's last complaints, oldest first.
    pub errors: Vec<String>,
    /// -1: unknown.
    pub oom_kills: i64,
    pub attach_socket: String,
    pub exit_file: String,
    pub process_label: String,
}

impl State {
    pub(crate) fn read(from: wire::state::Reader<'_>) -> capnp::Result<State> {
        let memory = from.get_memory()?;
        Ok(State {
            id: text(from.get_id()?),
            name: text(from.get_name()?),
            bundle: text(from.get_bundle()?),
            runtime: text(from.get_runtime()?),
            phase: from.get_phase().into(),
            pid: from.get_pid(),
            monitor_pid: from.get_monitor_pid(),
            started_at: from.get_started_at(),
            terminal: from.get_terminal(),
            stdin: from.get_stdin(),
            rows: from.get_rows(),
            columns: from.get_columns(),
            streams: from.get_streams()?.iter().map(StreamState::read).collect::<Result<_, _>>()?,
            sinks: from.get_sinks()?.iter().map(Sink::read).collect::<Result<_, _>>()?,
            clients: from.get_clients()?.iter().map(Peer::read).collect(),
            execs: from.get_execs()?.iter().map(ExecState::read).collect::<Result<_, _>>()?,
            connections: from.get_connections(),
            memory: Memory { private: memory.get_private(), resident: memory.get_resident(), heap: memory.get_heap() },
            descriptors: from.get_descriptors(),
            errors: from.get_errors()?.iter().map(|line| line.map(text)).collect::<Result<_, _>>()?,
            oom_kills: from.get_oom_kills(),
            attach_socket: text(from.get_attach_socket()?),
            exit_file: text(from.get_exit_file()?),
            process_label: text(from.get_process_label()?),
        })
    }

    /// The stream of this name, if the container has it.
    pub fn stream(&self, stream: Stream) -> Option<&StreamState> {
        self.streams.iter().find(|state| state.stream == stream)
    }
}

/// One stream of the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamState {
    pub stream: Stream,
    /// That the container wrote: the offset of its next byte.
    pub bytes: u64,
    pub records: u64,
    /// Bytes that the log does not have.
    pub lost: u64,
    pub gaps: u64,
    pub open: bool,
    pub policy: LogPolicy,
}

impl StreamState {
    fn read(from: wire::stream_state::Reader<'_>) -> capnp::Result<StreamState> {
        Ok(StreamState {
            stream: from.get_stream().into(),
            bytes: from.get_bytes(),
            records: from.get_records(),
            lost: from.get_lost(),
            gaps: from.get_gaps(),
            open: from.get_open(),
            policy: LogPolicy::read(from.get_policy()?)?,
        })
    }
}

/// One place that the log is written to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sink {
    pub driver: String,
    pub path: String,
    pub inode: u64,
    pub size: u64,
    pub rotations: u64,
    /// Why it takes nothing now; empty while all is well.
    pub error: String,
}

impl Sink {
    fn read(from: wire::sink::Reader<'_>) -> capnp::Result<Sink> {
        Ok(Sink {
            driver: text(from.get_driver()?),
            path: text(from.get_path()?),
            inode: from.get_inode(),
            size: from.get_size(),
            rotations: from.get_rotations(),
            error: text(from.get_error()?),
        })
    }
}

/// Somebody who is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub kind: PeerKind,
    pub pid: i32,
    /// It is being served from the log or a queue.
    pub behind: bool,
    /// Bytes that it has not taken yet, as far as known.
    pub waiting_for: u64,
    pub types: bool,
}

impl Peer {
    fn read(from: wire::client::Reader<'_>) -> Peer {
        Peer {
            kind: from.get_kind().into(),
            pid: from.get_pid(),
            behind: from.get_behind(),
            waiting_for: from.get_waiting_for(),
            types: from.get_types(),
        }
    }
}

/// One more process in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecState {
    pub id: u32,
    pub pid: i32,
    pub started_at: i64,
    pub terminal: bool,
    /// Bytes held for the result.
    pub captured: u64,
    pub command: String,
}

impl ExecState {
    fn read(from: wire::exec_state::Reader<'_>) -> capnp::Result<ExecState> {
        Ok(ExecState {
            id: from.get_id(),
            pid: from.get_pid(),
            started_at: from.get_started_at(),
            terminal: from.get_terminal(),
            captured: from.get_captured(),
            command: text(from.get_command()?),
        })
    }
}

/// Bytes of memory of a monitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// That only this process has.
    pub private: u64,
    pub resident: u64,
    /// In use of the heap.
    pub heap: u64,
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    pub reason: ExitReason,
    /// As in exit files: the exit code, 128 + signal, or -1.
    pub status: i32,
    /// Valid if `reason` is `Exited`.
    pub exit_code: i32,
    /// Valid if `reason` is `Signalled`.
    pub signal: i32,
    pub oom_killed: Verdict,
    pub started_at: i64,
    pub finished_at: i64,
    pub stdout: Total,
    pub stderr: Total,
    pub pid: i32,
}

impl Exit {
    pub(crate) fn read(from: wire::exit::Reader<'_>) -> capnp::Result<Exit> {
        let total = |from: wire::total::Reader<'_>| Total { bytes: from.get_bytes(), lost: from.get_lost() };
        Ok(Exit {
            reason: from.get_reason().into(),
            status: from.get_status(),
            exit_code: from.get_exit_code(),
            signal: from.get_signal(),
            oom_killed: from.get_oom_killed().into(),
            started_at: from.get_started_at(),
            finished_at: from.get_finished_at(),
            stdout: total(from.get_stdout()?),
            stderr: total(from.get_stderr()?),
            pid: from.get_pid(),
        })
    }
}

/// What became of one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Total {
    pub bytes: u64,
    pub lost: u64,
}

/// The last that is said to a client's output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    pub reason: EndReason,
    /// How the process ended; none unless `reason` is `Ended`.
    pub exit: Option<Exit>,
    /// Offset behind the last byte of stdout.
    pub stdout: u64,
    /// Offset behind the last byte of stderr.
    pub stderr: u64,
    /// Sum of the gaps.
    pub lost: u64,
}

impl End {
    pub(crate) fn read(from: wire::end::Reader<'_>) -> capnp::Result<End> {
        Ok(End {
            reason: from.get_reason().into(),
            exit: from.has_exit().then(|| from.get_exit().and_then(Exit::read)).transpose()?,
            stdout: from.get_stdout(),
            stderr: from.get_stderr(),
            lost: from.get_lost(),
        })
    }
}

/// How an exec went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecResult {
    pub id: u32,
    pub exit: Exit,
    /// What the runtime said, if it never started.
    pub error: String,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// There was more output than was to be captured; `exit` has the true totals.
    pub truncated: bool,
    /// Another process still had the pipes when this one had ended: what it writes is not here.
    pub held: bool,
}

impl ExecResult {
    pub(crate) fn read(from: wire::exec_result::Reader<'_>) -> capnp::Result<ExecResult> {
        Ok(ExecResult {
            id: from.get_id(),
            exit: Exit::read(from.get_exit()?)?,
            error: text(from.get_error()?),
            stdout: from.get_stdout()?.to_vec(),
            stderr: from.get_stderr()?.to_vec(),
            truncated: from.get_truncated(),
            held: from.get_held(),
        })
    }
}

/// Where a log goes on after `reopen_log`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSwitch {
    pub driver: String,
    pub path: String,
    pub inode: u64,
    /// Offset of the first byte of stdout that goes to this file.
    pub stdout: u64,
    /// Offset of the first byte of stderr that goes to this file.
    pub stderr: u64,
}

impl LogSwitch {
    pub(crate) fn read(from: wire::log_switch::Reader<'_>) -> capnp::Result<LogSwitch> {
        Ok(LogSwitch {
            driver: text(from.get_driver()?),
            path: text(from.get_path()?),
            inode: from.get_inode(),
            stdout: from.get_stdout(),
            stderr: from.get_stderr(),
        })
    }
}
