//! What `--help` and `--version` print.
//!
//! Other programs read both. CRI-O takes the third word of the version for a semantic version and looks for option names
//! in the help text; conmon's tests look there for `journald`. Line 1 of the version is therefore conmon's, and nothing
//! may follow its number.

/// The text of `--help`.
pub fn help() -> String {
    HELP.to_owned()
}

/// The commit that the program was built from.
pub const fn commit() -> &'static str {
    match option_env!("CONWARD_COMMIT") {
        Some(commit) => commit,
        None => "unknown",
    }
}

/// The text of `--version`: the conmon release whose behaviour this is, the commit it was built from, our own version.
pub fn version() -> String {
    let commit = commit();
    format!("conmon version {CONMON}\ncommit: {commit}\nconward {}\n", env!("CARGO_PKG_VERSION"))
}

/// CRI-O and podman switch features on by this number.
pub const CONMON: &str = "2.2.1";

const HELP: &str = "\
Usage:
  conmon [OPTION...]

Stays with one container: starts it through an OCI runtime, holds its terminal or pipes, writes its log, lets clients
attach, and records how it ended. Without --exec or --restore it creates a container.

Help Options:
  -h, --help                       Show this text
  --version                        Show the version

What to run:
  -c, --cid=ID                     Container ID (required)
  -u, --cuuid=ID                   Name of the attach symlink; required but for --exec without --api-version
  -n, --name=NAME                  Container name, for journald
  -b, --bundle=DIR                 Bundle directory (default: working directory; with --exec none)
  -r, --runtime=PATH               OCI runtime (required)
  --runtime-arg=WORD               Word before the runtime's sub-command; repeatable
  --runtime-opt=WORD               Word after the sub-command's options; repeatable
  --no-pivot                       Pass --no-pivot to the runtime
  --no-new-keyring                 Pass --no-new-keyring to the runtime
  -s, --systemd-cgroup             Pass --systemd-cgroup to the runtime; not with --exec
  --restore=PATH                   Restore the container from the checkpoint image at PATH
  -e, --exec                       Run one more process in a running container
  --exec-process-spec=FILE         OCI process file for --exec (required with it)
  --exec-attach                    With --exec: wait until the caller has attached
  --api-version                    Flag: reports in the form of API version 1

Terminal and stdin:
  -t, --terminal                   The container has a terminal
  -i, --stdin                      The container has a stdin that clients can write to
  --leave-stdin-open               Keep stdin open when a client leaves
  --full-attach                    Attach socket in the bundle, whatever the length of its path
  --socket-dir-path=DIR            Directory of the attach symlinks (default: /var/run/crio)

Logs:
  -l, --log-path=[DRIVER:]PATH     Where output goes (required, repeatable): k8s-file:PATH, journald, passthrough, none;
                                   a bare PATH is a k8s-file
  --log-size-max=BYTES             Start the log file anew at this size (default: -1, no limit)
  --log-global-size-max=BYTES      Log no more than this in all (default: -1, no limit)
  --log-rotate                     At --log-size-max keep backups PATH.1, PATH.2, ...
  --log-max-files=N                Number of backups with --log-rotate (default: 1)
  --log-allowlist-dir=DIR          Log files must lie below DIR; repeatable
  --log-tag=TAG                    journald: CONTAINER_TAG
  --log-label=LABEL=VALUE          journald: one more field; repeatable
  --no-container-partial-message   journald: do not mark partial lines
  --no-sync-log                    Do not fsync the log at the end
  --log-level=LEVEL                Own messages: error, warning, info, debug, trace (default: warning)
  --syslog                         Own messages to syslog as well

Life and end:
  -p, --container-pidfile=FILE     Where the runtime writes the container's pid (default: pidfile-ID in the working
                                   directory)
  -P, --conmon-pidfile=FILE        Where to write the own pid
  --sync                           Stay in the started process instead of going into the background
  -T, --timeout=SECONDS            Kill the container after so long (default: 0, never)
  --exit-dir=DIR                   Directory for the exit file, named after the container ID
  -0, --persist-dir=DIR            Directory for the files exit and oom
  --exit-command=PATH              Program to run at the end
  --exit-command-arg=WORD          Its argument; repeatable
  --exit-delay=SECONDS             Wait before running it (default: 0)
  --sdnotify-socket=PATH           Relay the container's sd-notify messages to this socket
  --replace-listen-pid             Give the runtime's pid in LISTEN_PID

conward's own options:
  -l, --log-path=json-file:PATH    Log driver: one JSON object per line
  --log-line-max=BYTES             Content of one k8s-file record, 256 to 49152; longer lines are cut (default: 32768)
  --log-utc                        Time stamps in UTC instead of local time
  --log-file-mode=OCTAL            Permissions of a new log file, of 0666 (default: 0640)
  --attach-stall-timeout=SECONDS   Where nothing is logged to a file: disconnect a client that reads nothing for so long
                                   (default: 0, never)
  --history-held-max=BYTES         Rotated logs kept on disk for attached clients that are behind (default: 67108864)
  --rpc-socket=PATH                Where the Cap'n Proto service listens, an absolute path, or none (default:
                                   conward.sock in the bundle; with --exec none)

Between a monitor and the program that replaces it (SIGUSR2; see conward(8)):
  --check-state=FD                 Say whether the state in this descriptor could be resumed
  --resume=FD                      Go on with the state in this descriptor

Accepted for older callers:
  --pidfile                        Same as --container-pidfile
  --restore-arg                    Same as --runtime-opt
  --seccomp-notify-socket, --seccomp-notify-plugins
                                   Take a value and do nothing
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_what_callers_split() {
        let text = version();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert_eq!(lines[0], "conmon version 2.2.1");
        assert!(lines[1].strip_prefix("commit: ").is_some_and(|commit| !commit.is_empty()), "{text}");
        assert_eq!(lines[2], concat!("conward ", env!("CARGO_PKG_VERSION")));
        assert_eq!(text.split_whitespace().nth(2), Some("2.2.1"));
        assert!(text.ends_with('\n'));
    }

    #[test]
    fn help_has_the_words_that_callers_look_for() {
        for word in ["--exec", "journald", "--log-global-size-max"] {
            assert!(help().contains(word), "{word}");
        }
        assert!(help().ends_with('\n'));
        assert!(help().lines().all(|line| line.len() <= 120));
    }
}
