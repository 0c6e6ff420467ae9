//! What `--help` and `--version` print.

/// All commands, sorted.
pub const COMMANDS: [&str; 15] = [
    "attach",
    "close-stdin",
    "exec",
    "exec-result",
    "inspect",
    "log-policy",
    "logs",
    "ps",
    "reopen-log",
    "resize",
    "signal",
    "top",
    "upgrade",
    "version",
    "wait",
];

/// What this was built from.
pub const COMMIT: &str = match option_env!("CONWARD_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

pub fn version() -> String {
    format!("conwardctl {}\ncommit: {COMMIT}\n", env!("CARGO_PKG_VERSION"))
}

/// The help of a command, or of all.
pub fn of(command: &str) -> String {
    let text = match command {
        "attach" => ATTACH,
        "close-stdin" => CLOSE_STDIN,
        "exec" => EXEC,
        "exec-result" => EXEC_RESULT,
        "inspect" => INSPECT,
        "log-policy" => LOG_POLICY,
        "logs" => LOGS,
        "ps" => PS,
        "reopen-log" => REOPEN_LOG,
        "resize" => RESIZE,
        "signal" => SIGNAL,
        "top" => TOP,
        "upgrade" => UPGRADE,
        "version" => VERSION,
        "wait" => WAIT,
        _ => return format!("{ALL}{COMMON}{STATUS}"),
    };
    format!("{text}{COMMON}")
}

const ALL: &str = "\
Usage: conwardctl COMMAND [OPTION...] [WORD...]

Looks at, talks to and steers the monitors of containers. `conwardctl COMMAND --help` says more.

  ps           List monitors and their containers
  top          Show all of them, again and again
  inspect      Show everything that a monitor knows
  logs         Show what a container has said
  attach       Connect the terminal to a container
  exec         Run one more process in a container
  exec-result  Show how such a process ended
  wait         Wait for the end of a container
  signal       Send a signal to a container
  close-stdin  Let a container read an end of file
  resize       Set the size of a container's terminal
  reopen-log   Go on in a new log file
  log-policy   Limit how fast a container is logged
  upgrade      Replace running monitors by another program
  version      Show the version of a monitor or of this program

A CONTAINER is an ID, the beginning of one, a name, or the path of a bundle or of a socket.
";

const COMMON: &str = "
For all commands:
  --json              Print JSON
  --socket=PATH       The monitor behind this socket; CONTAINER is left out
  -h, --help          Show this text
  --version           Show the version (without a command)
";

const STATUS: &str = "
Exit status: 0 if it was done, 1 if not, 2 for a mistake in the command line. attach and exec have that of the
process: its own, 128 + signal, 124 if its time was up, 125 if something else failed, and exec 126 if the command
cannot be executed and 127 if there is none.
";

const PS: &str = "\
Usage: conwardctl ps [OPTION...]

Lists the monitors of this host. The phase of a container is `conmon` if its monitor has no service, `no answer` if
the monitor does not answer within a second, and `no access` if it does not serve this user.

  -a, --all           Also the monitors of engines' execs
  --no-trunc          Whole IDs
";

const TOP: &str = "\
Usage: conwardctl top [OPTION...]

Shows all monitors: output per second, what the log has lost, clients, execs, the monitor's own memory, size of the
log. q or ctrl-c ends it; i, n, r, l, m and s sort by ID, name, rate, loss, memory and size of the log.

  --once              Print the table one time, after one interval
  --sort=COLUMN       id, name, rate, lost, memory or size (default: rate)
  --interval=SECONDS  Between two looks (default: 1)
";

const INSPECT: &str = "\
Usage: conwardctl inspect CONTAINER

Shows everything that the monitor knows of itself and its container.
";

const LOGS: &str = "\
Usage: conwardctl logs [OPTION...] CONTAINER

Prints what the container has said, each stream to the same stream here, byte for byte. The monitor reads it from its
log, which must be a k8s-file. Bytes that the log does not have are told on stderr. The path of such a file can stand
for the container, when that has ended.

  -f, --follow        Go on with what it says
  -n, --tail=LINES    The last lines only, or all
  --bytes=BYTES       The last bytes only; K, M and G are understood
  --since-offset=STDOUT[,STDERR]
                      From these offsets of the streams on
  --stdout            Only this stream
  --stderr            Only this stream
";

const ATTACH: &str = "\
Usage: conwardctl attach [OPTION...] CONTAINER

Connects standard input, output and error with the container's, until it ends. The exit status is the container's.

  --detach-keys=KEYS  Keys that leave it, as ctrl-p,ctrl-q (the default); empty: none
  --history=WHAT      What was said before: all, none or a number of lines (default: none)
  --no-stdin          Only listen
  --leave-stdin-open  The container's stdin stays open at the end of ours
";

const EXEC: &str = "\
Usage: conwardctl exec [OPTION...] CONTAINER COMMAND [ARG...]
       conwardctl exec [OPTION...] --process=FILE CONTAINER

Runs one more process in the container. What is not said here is as for the container's own process. It is killed if
this program ends before it, unless --detach is given. With --json its output is captured and printed with the result.

  -i, --interactive   Connect standard input
  -t, --tty           With a terminal
  -d, --detach        Print its number and leave it; `exec-result` tells how it ended
  -e, --env=NAME[=VALUE]
                      One more variable; without a value, that of this program
  -w, --workdir=DIR   Working directory
  -u, --user=UID[:GID]
                      User, by number
  --group=GID         One more group
  --cap=NAME          One more capability
  --no-new-privileges
                      It cannot gain privileges
  --timeout=SECONDS   Kill it and all that came from it after so long
  --output-max=BYTES  Capture no more than this (default: 16M)
  --process=FILE      An OCI process instead of all this; --tty must agree
  --detach-keys=KEYS  Keys that leave it, which ends it; only with --tty (default: ctrl-p,ctrl-q)
";

const EXEC_RESULT: &str = "\
Usage: conwardctl exec-result CONTAINER NUMBER

Shows how an exec ended, and what it said if that was captured, which is handed over once.
";

const WAIT: &str = "\
Usage: conwardctl wait CONTAINER

Waits for the end of the container and prints its status: the exit code, 128 + signal, or -1.
";

const SIGNAL: &str = "\
Usage: conwardctl signal [OPTION...] CONTAINER

Sends a signal to the container's first process.

  -s, --signal=SIGNAL By name or number (default: TERM)
";

const CLOSE_STDIN: &str = "\
Usage: conwardctl close-stdin CONTAINER

Lets the container read an end of file, whoever is still attached.
";

const RESIZE: &str = "\
Usage: conwardctl resize CONTAINER ROWS COLUMNS

Sets the size of the container's terminal.
";

const REOPEN_LOG: &str = "\
Usage: conwardctl reopen-log CONTAINER

Goes on in the file that is at the log's path now, or in a new one, and prints where. To be called after a rename.
";

const LOG_POLICY: &str = "\
Usage: conwardctl log-policy [OPTION...] CONTAINER RATE

Limits how fast the container is logged. RATE is bytes per second, with K, M or G, or `pass` for no limit.

  --stream=STREAM     stdout, stderr or both (default: both)
  --burst=BYTES       What may come at once (default: one second's worth)
  --action=ACTION     Above the limit: back-pressure lets the container wait, drop leaves it out of the log, where it
                      is counted and noted (default: back-pressure)
";

const UPGRADE: &str = "\
Usage: conwardctl upgrade [OPTION...] CONTAINER [PROGRAM]
       conwardctl upgrade [OPTION...] --all [PROGRAM]

Replaces running monitors by PROGRAM, by default the file that each was started from. Containers and their clients do
not notice. A monitor whose state is not accepted by PROGRAM goes on as it was.

  --all               All monitors of this host; those without the service are skipped
  --check             Only ask whether PROGRAM would accept the state
";

const VERSION: &str = "\
Usage: conwardctl version [CONTAINER]

Shows the version of the monitor, or without a container that of this program.
";
