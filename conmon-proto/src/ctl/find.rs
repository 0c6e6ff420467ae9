//! Which monitors there are: processes of the right name, asked for the rest at their sockets.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use conmon_proto::{Client, Error, State, connect};
use futures::future::join_all;

/// A process that is a monitor by its name and words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Monitor {
    pub pid: i32,
    pub id: String,
    /// What `--name` said.
    pub name: String,
    /// Where its service would be.
    pub socket: Option<PathBuf>,
    /// It runs one more process in a container that has a monitor of its own.
    pub exec: bool,
}

/// What became of asking a monitor.
#[derive(Debug)]
pub enum Answer {
    State(Box<State>, Client),
    /// Nobody listens: it is a plain conmon, or was told to have no service.
    Absent,
    /// It listens and says nothing, or not in time.
    Silent,
    /// We are not the one that it serves.
    Refused,
}

impl Answer {
    /// In a word, for tables.
    pub fn word(&self) -> &str {
        match self {
            Answer::State(state, _) => state.phase.word(),
            Answer::Absent => "conmon",
            Answer::Silent => "no answer",
            Answer::Refused => "no access",
        }
    }
}

/// How long a monitor may take to say how it is.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// All monitors of this host, by container ID.
pub fn monitors() -> Vec<Monitor> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    once(pids.filter_map(monitor).collect())
}

/// A monitor that starts, or that ends and leaves slow clients to a child, is two processes with the same words.
fn once(found: Vec<Monitor>) -> Vec<Monitor> {
    let mut unique = BTreeMap::new();
    for monitor in found {
        let apart = if monitor.exec { monitor.pid } else { 0 };
        let key = (monitor.id.clone(), monitor.socket.clone(), apart);
        let kept = unique.entry(key).or_insert_with(|| monitor.clone());
        if monitor.pid < kept.pid {
            *kept = monitor;
        }
    }
    unique.into_values().collect()
}

fn monitor(pid: i32) -> Option<Monitor> {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let words = fs::read(process.join("cmdline")).ok()?;
    let mut words = words.split(|&byte| byte == 0).map(|word| OsString::from_vec(word.to_vec()));
    let program = words.next()?;
    // An upgrade removes the file that it was started from.
    let file = fs::read_link(process.join("exe")).unwrap_or_default();
    let file = file.as_os_str().to_string_lossy().replace(" (deleted)", "");
    if !is_monitor(Path::new(&program)) && !is_monitor(Path::new(&file)) {
        return None;
    }
    // Ours to read only if the process is ours; then relative paths stay as they are.
    let directory = fs::read_link(process.join("cwd")).unwrap_or_default();
    Words::read(words).monitor(pid, &directory)
}

fn is_monitor(program: &Path) -> bool {
    program.file_name().is_some_and(|name| name == "conward" || name == "conmon")
}

/// What matters here of a monitor's command line.
#[derive(Debug, Default, PartialEq, Eq)]
struct Words {
    id: Option<OsString>,
    name: Option<OsString>,
    bundle: Option<OsString>,
    socket: Option<OsString>,
    exec: bool,
}

/// Options without a value. All others take the next word, whatever it looks like.
const FLAGS: [&str; 19] = [
    "api-version",
    "exec",
    "exec-attach",
    "full-attach",
    "help",
    "leave-stdin-open",
    "log-rotate",
    "log-utc",
    "no-container-partial-message",
    "no-new-keyring",
    "no-pivot",
    "no-sync-log",
    "replace-listen-pid",
    "stdin",
    "sync",
    "syslog",
    "systemd-cgroup",
    "terminal",
    "version",
];

impl Words {
    /// Reads words as conmon's parser does: scalars keep the last value, letters are joined and have their value in the
    /// next word.
    fn read(mut words: impl Iterator<Item = OsString>) -> Words {
        let mut read = Words::default();
        while let Some(word) = words.next() {
            match word.as_bytes() {
                b"--" => break,
                [b'-', b'-', long @ ..] => read.long(long, &mut words),
                [b'-', letters @ ..] => letters.iter().for_each(|&letter| read.letter(letter, &mut words)),
                _ => {}
            }
        }
        read
    }

    fn long(&mut self, long: &[u8], words: &mut impl Iterator<Item = OsString>) {
        let (name, attached) = match long.iter().position(|&byte| byte == b'=') {
            Some(at) => (&long[..at], Some(OsStr::from_bytes(&long[at + 1..]).to_owned())),
            None => (long, None),
        };
        match FLAGS.iter().any(|flag| flag.as_bytes() == name) {
            true => self.exec |= name == b"exec",
            false => self.set(name, attached.or_else(|| words.next())),
        }
    }

    fn letter(&mut self, letter: u8, words: &mut impl Iterator<Item = OsString>) {
        match letter {
            b'e' => self.exec = true,
            b'b' => self.bundle = words.next(),
            b'c' => self.id = words.next(),
            b'n' => self.name = words.next(),
            b'0' | b'P' | b'T' | b'l' | b'p' | b'r' | b'u' => drop(words.next()),
            _ => {}
        }
    }

    fn set(&mut self, name: &[u8], value: Option<OsString>) {
        match name {
            b"bundle" => self.bundle = value,
            b"cid" => self.id = value,
            b"name" => self.name = value,
            b"rpc-socket" => self.socket = value,
            _ => {}
        }
    }

    fn monitor(self, pid: i32, directory: &Path) -> Option<Monitor> {
        let text = |word: OsString| word.to_string_lossy().into_owned();
        let socket = match (self.socket, self.bundle) {
            (Some(none), _) if none == "none" => None,
            (Some(socket), _) => Some(directory.join(socket)),
            (None, Some(bundle)) => Some(directory.join(bundle).join(SOCKET)),
            (None, None) if self.exec => None,
            (None, None) => Some(directory.join(SOCKET)),
        };
        let (id, name) = (text(self.id?), self.name.map(text).unwrap_or_default());
        Some(Monitor { pid, id, name, socket, exec: self.exec })
    }
}

/// The name of the service in a bundle.
pub const SOCKET: &str = "conward.sock";

/// Asks all of them at once; one that hangs holds up none of the others.
pub async fn ask_all(monitors: &[Monitor]) -> Vec<Answer> {
    join_all(monitors.iter().map(ask)).await
}

pub async fn ask(monitor: &Monitor) -> Answer {
    let Some(socket) = &monitor.socket else { return Answer::Absent };
    let asking = async {
        let client = connect(socket).await?;
        let state = client.inspect().await?;
        Ok::<_, Error>((state, client))
    };
    match tokio::time::timeout(PATIENCE, asking).await {
        Ok(Ok((state, client))) => Answer::State(Box::new(state), client),
        Ok(Err(Error::Connect(_, error))) => unreachable(&error),
        Ok(Err(_)) | Err(_) => Answer::Silent,
    }
}

/// What it means that a socket cannot be connected to.
fn unreachable(error: &std::io::Error) -> Answer {
    match error.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => Answer::Absent,
        std::io::ErrorKind::PermissionDenied => Answer::Refused,
        _ => Answer::Silent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn monitor(words: &str) -> Option<Monitor> {
        Words::read(words.split(' ').map(OsString::from)).monitor(7, Path::new("/cwd"))
    }

    fn socket(words: &str) -> Option<PathBuf> {
        monitor(words).unwrap().socket
    }

    #[test]
    fn words_are_read_as_the_monitor_does() {
        let found = monitor("--api-version -c abc -u abc -r /usr/bin/runc -b /b -n web --full-attach -s").unwrap();
        let expected = Monitor {
            pid: 7,
            id: "abc".into(),
            name: "web".into(),
            socket: Some("/b/conward.sock".into()),
            exec: false,
        };
        assert_eq!(found, expected);
        // A value may look like an option, and letters share the words behind them.
        assert_eq!(monitor("--runtime-arg -c -itc abc -u x").unwrap().id, "abc");
        assert_eq!(monitor("--runtime-arg=-c --cid=abc").unwrap().id, "abc");
        assert_eq!(monitor("-c one --cid two").unwrap().id, "two");
        assert_eq!(monitor("-r /bin/runc -- -c abc"), None);
        assert_eq!(monitor("--version"), None);
    }

    #[test]
    fn the_socket_is_in_the_bundle_unless_it_is_said_otherwise() {
        assert_eq!(socket("-c a -b rel"), Some("/cwd/rel/conward.sock".into()));
        assert_eq!(socket("-c a"), Some("/cwd/conward.sock".into()));
        assert_eq!(socket("-c a -b /b --rpc-socket /run/s"), Some("/run/s".into()));
        assert_eq!(socket("-c a -b /b --rpc-socket none"), None);
        assert_eq!(socket("-e -c a --exec-process-spec p"), None);
        assert!(monitor("-e -c a").unwrap().exec);
        assert!(!monitor("--exec-attach -c a").unwrap().exec);
    }

    #[test]
    fn processes_of_one_monitor_are_one() {
        let one = monitor("-c a -b /b").unwrap();
        let child = Monitor { pid: 9, ..one.clone() };
        assert_eq!(once(vec![child, one.clone()]), [one]);
        let exec = monitor("-e -c a").unwrap();
        let other = Monitor { pid: 9, ..exec.clone() };
        assert_eq!(once(vec![exec, other]).len(), 2);
    }
}
