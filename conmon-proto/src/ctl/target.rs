//! Which monitor is meant by a word: an ID, the beginning of one, a name, a bundle or a socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use conmon_proto::{Client, Error, connect};

use crate::fail::Fail;
use crate::find::{self, Answer, Monitor, SOCKET};
use crate::line::{Line, is_path};
use crate::show;

/// How long a monitor may take for a call that it can answer at once.
const PATIENCE: Duration = Duration::from_secs(10);

/// A monitor that is meant, and how it is called in messages.
#[derive(Clone, Debug)]
pub struct Target {
    pub label: String,
    pub socket: PathBuf,
    /// Of the process that was found; a path tells none.
    pid: Option<i32>,
}

/// Reads a command that has a container and some more words; with `--socket` the container is left out.
pub fn words<const N: usize>(line: &mut Line, names: [&str; N]) -> Result<(Option<String>, [String; N]), Fail> {
    let mut words = Vec::new();
    while let Some(item) = line.next()? {
        match item {
            crate::line::Item::Option(option) => return Err(line.unknown(&option)),
            crate::line::Item::Word(word) => words.push(line.utf8(word)?),
        }
    }
    let container = container(line, &mut words)?;
    Ok((container, line.exactly(words, names)?))
}

/// Takes the container from the front, unless a socket was given.
pub fn container(line: &Line, words: &mut Vec<String>) -> Result<Option<String>, Fail> {
    if line.socket.is_some() {
        return Ok(None);
    }
    if words.is_empty() {
        return Err(line.mistake("CONTAINER is missing"));
    }
    Ok(Some(words.remove(0)))
}

/// Finds and connects to what the line says.
pub async fn client(line: &Line, container: Option<&str>) -> Result<(Client, Target), Fail> {
    let target = target(line, container).await?;
    Ok((target.connect().await?, target))
}

pub async fn target(line: &Line, container: Option<&str>) -> Result<Target, Fail> {
    match (&line.socket, container) {
        (Some(socket), _) => Ok(Target::at(socket)),
        (None, Some(word)) if is_path(word.as_ref()) => Ok(Target::at(Path::new(word))),
        (None, Some(word)) => search(word).await,
        (None, None) => Err(line.mistake("CONTAINER is missing")),
    }
}

impl Target {
    /// A bundle or a socket.
    fn at(path: &Path) -> Target {
        let socket = if path.is_dir() { path.join(SOCKET) } else { path.to_owned() };
        Target { label: socket.display().to_string(), socket, pid: None }
    }

    pub fn of(monitor: &Monitor) -> Result<Target, Fail> {
        let label = monitor.id.clone();
        match &monitor.socket {
            Some(socket) => Ok(Target { label, socket: socket.clone(), pid: Some(monitor.pid) }),
            None => Err(no_service(&label, monitor.pid)),
        }
    }

    pub async fn connect(&self) -> Result<Client, Fail> {
        match (within(connect(&self.socket)).await, self.pid) {
            (Err(Late), _) => Err(self.silent()),
            (Ok(Ok(client)), _) => Ok(client),
            (Ok(Err(Error::Connect(_, error))), Some(pid)) if is_absent(&error) => {
                Err(self.ended().unwrap_or_else(|| no_service(&self.label, pid)))
            }
            (Ok(Err(error)), _) => Err(Fail::new(error)),
        }
    }

    /// A monitor that has written its record takes its service away, and may be busy with an exit command for a while.
    fn ended(&self) -> Option<Fail> {
        let record = self.socket.with_file_name("exit.json");
        record.exists().then(|| Fail::new(format!("no monitor for '{}': it has just ended", self.name())))
    }

    /// How people call it: a path, or as much of an ID as engines show.
    pub fn name(&self) -> String {
        name(&self.label)
    }

    /// Waits for the answer to a call that needs no waiting; what goes wrong is told with the container's name.
    pub async fn call<T>(&self, call: impl Future<Output = Result<T, Error>>) -> Result<T, Fail> {
        match within(call).await {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(error)) => Err(self.fail(&error)),
            Err(Late) => Err(self.silent()),
        }
    }

    /// As [`Target::call`]; `None` if the connection ended, as it does when the monitor is replaced.
    pub async fn try_call<T>(&self, call: impl Future<Output = Result<T, Error>>) -> Result<Option<T>, Fail> {
        match within(call).await {
            Ok(Ok(value)) => Ok(Some(value)),
            Ok(Err(error)) if error.is_disconnect() => Ok(None),
            Ok(Err(error)) => Err(self.fail(&error)),
            Err(Late) => Err(self.silent()),
        }
    }

    pub fn fail(&self, error: &Error) -> Fail {
        Fail::new(format!("{}: {error}", self.name()))
    }

    fn silent(&self) -> Fail {
        Fail::new(format!("{}: the monitor does not answer", self.name()))
    }

    /// Connects again to a monitor that is being replaced.
    pub async fn again(&self) -> Option<Client> {
        const STEP: Duration = Duration::from_millis(50);
        for _ in 0..100 {
            if let Ok(Ok(client)) = within(connect(&self.socket)).await {
                // A socket that is being taken over can be connected to before somebody listens to it.
                if let Ok(Ok(_)) = within(client.version()).await {
                    return Some(client);
                }
            }
            if !self.socket.exists() {
                return None;
            }
            tokio::time::sleep(STEP).await;
        }
        None
    }
}

struct Late;

async fn within<T>(call: impl Future<Output = T>) -> Result<T, Late> {
    tokio::time::timeout(PATIENCE, call).await.map_err(|_| Late)
}

fn is_absent(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused)
}

fn no_service(id: &str, pid: i32) -> Fail {
    Fail::new(format!("{} is watched by a plain conmon (pid {pid}), which has no service", name(id)))
}

fn name(label: &str) -> String {
    if is_path(label.as_ref()) { label.to_owned() } else { show::short(label) }
}

async fn search(word: &str) -> Result<Target, Fail> {
    let monitors: Vec<Monitor> = find::monitors().into_iter().filter(|monitor| !monitor.exec).collect();
    if let Some(monitor) = pick(&monitors, word)? {
        return Target::of(monitor);
    }
    // The monitor may know a name that its command line does not say.
    for (monitor, answer) in monitors.iter().zip(find::ask_all(&monitors).await) {
        if matches!(&answer, Answer::State(state, _) if state.name == word) {
            return Target::of(monitor);
        }
    }
    Err(Fail::new(format!("no monitor for '{word}'; monitors: {}", list(monitors.iter()))))
}

/// The one that is meant: by its whole ID, by its name, or by the beginning of its ID.
fn pick<'a>(monitors: &'a [Monitor], word: &str) -> Result<Option<&'a Monitor>, Fail> {
    let same: [&dyn Fn(&Monitor) -> bool; 3] =
        [&|monitor| monitor.id == word, &|monitor| !word.is_empty() && monitor.name == word, &|monitor| {
            !word.is_empty() && monitor.id.starts_with(word)
        }];
    for same in same {
        let found: Vec<&Monitor> = monitors.iter().filter(|monitor| same(monitor)).collect();
        match found[..] {
            [] => {}
            [one] => return Ok(Some(one)),
            _ => return Err(Fail::new(format!("'{word}' may be any of {}", list(found.iter().copied())))),
        }
    }
    Ok(None)
}

/// A few of them by name, for a message.
fn list<'a>(monitors: impl Iterator<Item = &'a Monitor>) -> String {
    const SHOWN: usize = 8;
    let mut names: Vec<String> = monitors.map(label).collect();
    let more = names.len().saturating_sub(SHOWN);
    names.truncate(SHOWN);
    match (names.is_empty(), more) {
        (true, _) => "none".to_owned(),
        (false, 0) => names.join(", "),
        (false, more) => format!("{} and {more} more", names.join(", ")),
    }
}

fn label(monitor: &Monitor) -> String {
    let id: String = monitor.id.chars().take(16).collect();
    if monitor.name.is_empty() { id } else { format!("{id} ({})", monitor.name) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn monitor(id: &str, name: &str) -> Monitor {
        Monitor { pid: 1, id: id.into(), name: name.into(), socket: None, exec: false }
    }

    #[test]
    fn a_container_is_picked_by_id_name_or_prefix() {
        let all = [monitor("abc", "web"), monitor("abcd", "db"), monitor("web2", "")];
        let picked = |word| pick(&all, word).map(|found| found.map(|monitor| &monitor.id[..]));
        assert_eq!(picked("abc").unwrap(), Some("abc"));
        assert_eq!(picked("abcd").unwrap(), Some("abcd"));
        assert_eq!(picked("web").unwrap(), Some("abc"));
        assert_eq!(picked("we").unwrap(), Some("web2"));
        assert_eq!(picked("x").unwrap(), None);

        assert_eq!(picked("ab").unwrap_err().text(), "'ab' may be any of abc (web), abcd (db)");
        assert_eq!(list([].iter()), "none");
    }
}
