//! What a client asks for, as plain values.

use crate::conward_capnp::{attach_request, exec_spec, log_policy};

/// What to attach to, and from where on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachRequest {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub history: History,
    /// The client's terminal; 0: leave the size alone.
    pub rows: u16,
    pub columns: u16,
    /// The container's stdin stays open when this client leaves.
    pub leave_stdin_open: bool,
}

/// Both streams from now on, and no input.
impl Default for AttachRequest {
    fn default() -> AttachRequest {
        AttachRequest {
            stdin: false,
            stdout: true,
            stderr: true,
            history: History::None,
            rows: 0,
            columns: 0,
            leave_stdin_open: false,
        }
    }
}

/// How much of what the container has said already is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum History {
    /// From now on.
    None,
    /// Everything that the log has of this container's run.
    All,
    /// The last so many bytes.
    Bytes(u64),
    /// The last so many lines.
    Lines(u64),
    /// Everything from these offsets on.
    From { stdout: u64, stderr: u64 },
}

impl AttachRequest {
    pub(crate) fn write(&self, mut to: attach_request::Builder<'_>) {
        to.set_stdin(self.stdin);
        to.set_stdout(self.stdout);
        to.set_stderr(self.stderr);
        to.set_rows(self.rows);
        to.set_columns(self.columns);
        to.set_leave_stdin_open(self.leave_stdin_open);
        let mut history = to.init_history();
        match self.history {
            History::None => history.set_none(()),
            History::All => history.set_all(()),
            History::Bytes(count) => history.set_bytes(count),
            History::Lines(count) => history.set_lines(count),
            History::From { stdout, stderr } => {
                let mut from = history.init_from();
                from.set_stdout(stdout);
                from.set_stderr(stderr);
            }
        }
    }
}

/// One more process for the container. What is not said is as for the container's own process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecSpec {
    /// The command and its arguments.
    pub args: Vec<String>,
    /// `NAME=VALUE`, added to the container's.
    pub env: Vec<String>,
    pub cwd: String,
    /// UID[:GID]
    pub user: String,
    pub additional_gids: Vec<u32>,
    /// Added, as `CAP_NAME`.
    pub capabilities: Vec<String>,
    pub no_new_privileges: bool,
    pub terminal: bool,
    /// Instead of all above but `terminal`: an OCI process object.
    pub process: Vec<u8>,
    pub stdin: bool,
    pub rows: u16,
    pub columns: u16,
    /// Milliseconds until it and all that came from it are killed; 0: none.
    pub timeout: u64,
    /// Bytes captured at most over both streams.
    pub output_max: u64,
    pub on_disconnect: OnDisconnect,
}

/// What becomes of an exec whose client goes away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnDisconnect {
    #[default]
    Kill,
    /// It goes on; `exec_result` tells how it ended.
    Detach,
}

impl Default for ExecSpec {
    fn default() -> ExecSpec {
        ExecSpec {
            args: Vec::new(),
            env: Vec::new(),
            cwd: String::new(),
            user: String::new(),
            additional_gids: Vec::new(),
            capabilities: Vec::new(),
            no_new_privileges: false,
            terminal: false,
            process: Vec::new(),
            stdin: false,
            rows: 0,
            columns: 0,
            timeout: 0,
            output_max: OUTPUT_MAX,
            on_disconnect: OnDisconnect::Kill,
        }
    }
}

/// The default of the schema.
const OUTPUT_MAX: u64 = 16 << 20;

impl ExecSpec {
    /// This command and nothing else said.
    pub fn command<S: Into<String>>(args: impl IntoIterator<Item = S>) -> ExecSpec {
        ExecSpec { args: args.into_iter().map(Into::into).collect(), ..ExecSpec::default() }
    }

    pub(crate) fn write(&self, mut to: exec_spec::Builder<'_>) {
        texts(&self.args, |count| to.reborrow().init_args(count));
        texts(&self.env, |count| to.reborrow().init_env(count));
        texts(&self.capabilities, |count| to.reborrow().init_capabilities(count));
        let mut gids = to.reborrow().init_additional_gids(len(self.additional_gids.len()));
        (0..).zip(&self.additional_gids).for_each(|(index, &gid)| gids.set(index, gid));
        to.set_cwd(&self.cwd[..]);
        to.set_user(&self.user[..]);
        to.set_no_new_privileges(self.no_new_privileges);
        to.set_terminal(self.terminal);
        to.set_process(&self.process);
        to.set_stdin(self.stdin);
        to.set_rows(self.rows);
        to.set_columns(self.columns);
        to.set_timeout(self.timeout);
        to.set_output_max(self.output_max);
        to.set_on_disconnect(match self.on_disconnect {
            OnDisconnect::Kill => exec_spec::OnDisconnect::Kill,
            OnDisconnect::Detach => exec_spec::OnDisconnect::Detach,
        });
    }
}

fn texts<'a>(words: &[String], init: impl FnOnce(u32) -> capnp::text_list::Builder<'a>) {
    let mut list = init(len(words.len()));
    (0..).zip(words).for_each(|(index, word)| list.set(index, &word[..]));
}

/// Lists of the encoding have 29 bits for their length, and no command line comes near.
fn len(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// How fast a stream may be logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogPolicy {
    Pass,
    /// `burst` bytes may come at once; 0: one second's worth.
    Limit {
        bytes_per_second: u64,
        burst: u64,
        action: Action,
    },
}

/// What happens above the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The container waits.
    BackPressure,
    /// The log goes without; what is missing is counted, and noted where it is missing.
    Drop,
}

impl LogPolicy {
    pub(crate) fn read(from: log_policy::Reader<'_>) -> capnp::Result<LogPolicy> {
        Ok(match from.which()? {
            log_policy::Pass(()) => LogPolicy::Pass,
            log_policy::Limit(limit) => LogPolicy::Limit {
                bytes_per_second: limit.get_bytes_per_second(),
                burst: limit.get_burst(),
                action: match limit.get_action()? {
                    log_policy::Action::BackPressure => Action::BackPressure,
                    log_policy::Action::Drop => Action::Drop,
                },
            },
        })
    }

    pub(crate) fn write(self, mut to: log_policy::Builder<'_>) {
        match self {
            LogPolicy::Pass => to.set_pass(()),
            LogPolicy::Limit { bytes_per_second, burst, action } => {
                let mut limit = to.init_limit();
                limit.set_bytes_per_second(bytes_per_second);
                limit.set_burst(burst);
                limit.set_action(match action {
                    Action::BackPressure => log_policy::Action::BackPressure,
                    Action::Drop => log_policy::Action::Drop,
                });
            }
        }
    }
}
