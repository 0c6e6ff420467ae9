//! OCI runtimes, as command lines: finding them and calling them.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::config::{CgroupDriver, Config};
use crate::error::{Context, Error, Result};

/// A runtime handler: what a pod names to say how its containers are run.
#[derive(Clone, Debug)]
pub struct Handler {
    pub name: String,
    pub path: PathBuf,
    /// Before the runtime's own command: where it keeps its state, and how it makes cgroups.
    pub args: Vec<String>,
    /// The OCI runtime-spec that it understands.
    pub oci_version: String,
    /// Mount options that it knows, `rro` among them.
    pub recursive_read_only: bool,
    /// What starts its containers sooner than its own command does; for runc.
    starter: Option<PathBuf>,
}

/// All handlers, the default one first.
#[derive(Clone, Debug)]
pub struct Handlers(pub Vec<Handler>);

/// The longest that a runtime may take for one command.
const PATIENCE: Duration = Duration::from_secs(60);

/// The longest that a new server waits for what the one before has begun.
const SETTLED: Duration = Duration::from_secs(10);

/// Attempts to delete one container.
const DELETIONS: usize = 3;

impl Handlers {
    /// The configured handlers, or those that are found on this host.
    pub async fn find(config: &Config, systemd: bool, hybrid: bool) -> Result<Handlers> {
        let mut names: Vec<(String, PathBuf)> = match config.runtimes.is_empty() {
            // Versions of crun before 1.9 refuse hosts with both versions of cgroups.
            true if hybrid => ["runc", "crun"].map(|name| (name.to_owned(), PathBuf::from(name))).into(),
            true => ["crun", "runc"].map(|name| (name.to_owned(), PathBuf::from(name))).into(),
            false => config.runtimes.iter().map(|(name, runtime)| (name.clone(), runtime.path.clone())).collect(),
        };
        if let Some(at) = names.iter().position(|(name, _)| *name == config.default_runtime) {
            names.swap(0, at);
        } else if !config.default_runtime.is_empty() {
            return Err(Error::invalid(format!("default_runtime {} is not in runtimes", config.default_runtime)));
        }
        let mut handlers = Vec::new();
        for (name, path) in names {
            match in_path(&path) {
                Some(path) => handlers.push(Handler::new(config, name, path, systemd).await),
                None if config.runtimes.is_empty() => {}
                None => return Err(Error::invalid(format!("Runtime {name}: {} is not there", path.display()))),
            }
        }
        match handlers.is_empty() {
            true => Err(Error::failed("Neither crun nor runc is in PATH, and no other runtime is configured")),
            false => Ok(Handlers(handlers)),
        }
    }

    pub fn names(&self) -> Vec<&str> {
        self.0.iter().map(|handler| handler.name.as_str()).collect()
    }

    /// By name; the empty name is the default's.
    pub fn named(&self, name: &str) -> Result<&Handler> {
        match name {
            "" => self.0.first(),
            name => self.0.iter().find(|handler| handler.name == name),
        }
        .ok_or_else(|| {
            Error::invalid(format!("Unknown runtime handler {name:?}; there are {}", self.names().join(", ")))
        })
    }
}

impl Handler {
    async fn new(config: &Config, name: String, path: PathBuf, systemd: bool) -> Handler {
        let root = config.run.join("runtimes").join(&name);
        let mut args = vec!["--root".to_owned(), root.to_string_lossy().into_owned()];
        if systemd {
            args.push("--systemd-cgroup".to_owned());
        }
        let features = Features::of(&path).await;
        Handler {
            name,
            starter: starter(&path).await,
            path,
            args,
            oci_version: features.oci_version,
            recursive_read_only: features.mount_options.iter().any(|option| option == "rro"),
        }
    }

    /// Runs what was created; `pid` is that of its first process.
    pub async fn start(&self, id: &str, pid: i32, bundle: &Path) -> Result<()> {
        let doing = format!("start container {id}");
        if let Some(starter) = self.starter.as_ref().filter(|_| !after_start(bundle)) {
            let (args, pid) = (&self.args[..ROOT_ARGS], pid.to_string());
            match run(starter, args, &["start", id, &pid], b"", &doing).await {
                Err(Error::Failed(why)) => tracing::debug!(container = id, "Asking the runtime itself: {why}"),
                done => return done.map(drop),
            }
        }
        self.call(&["start", id], b"", &doing).await.map(drop)
    }

    /// Sends a signal to a container's first process, or to all of its processes.
    pub async fn kill(&self, id: &str, signal: i32, all: bool) -> Result<()> {
        let signal = signal.to_string();
        let words: &[&str] = if all { &["kill", "--all", id, &signal] } else { &["kill", id, &signal] };
        self.call(words, b"", &format!("signal container {id}")).await.map(drop)
    }

    /// Forgets a container and kills what is left of it; one that is unknown is fine.
    pub async fn delete(&self, id: &str) -> Result<()> {
        let mut deleted = Ok(());
        // Processes that disappear can be in the way, and so can a command of a server that was killed meanwhile.
        for _ in 0..DELETIONS {
            if !self.knows(id) {
                return Ok(());
            }
            deleted = self.call(&["delete", "--force", id], b"", &format!("delete container {id}")).await.map(drop);
            if deleted.is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        deleted
    }

    /// `created`, `running`, `stopped` or `paused`; nothing for a container that the runtime does not know.
    pub async fn status(&self, id: &str) -> Result<Option<String>> {
        #[derive(serde::Deserialize)]
        struct State {
            status: String,
        }
        if !self.knows(id) {
            return Ok(None);
        }
        let doing = format!("ask for the state of container {id}");
        let out = self.call(&["state", id], b"", &doing).await?;
        let state: State = serde_json::from_slice(&out).context(|| format!("Failed to {doing}"))?;
        Ok(Some(state.status))
    }

    /// Changes resources; an OCI LinuxResources object.
    pub async fn update(&self, id: &str, resources: &[u8]) -> Result<()> {
        self.call(&["update", "--resources", "-", id], resources, &format!("update container {id}")).await.map(drop)
    }

    /// The runtime has a directory for this container.
    fn knows(&self, id: &str) -> bool {
        self.args.get(1).is_some_and(|root| Path::new(root).join(id).exists())
    }

    async fn call(&self, words: &[&str], input: &[u8], doing: &str) -> Result<Vec<u8>> {
        run(&self.path, &self.args, words, input, doing).await
    }
}

/// Of a handler's words: the option that says where it keeps its state.
const ROOT_ARGS: usize = 2;

/// Runs a program to its end; answers with its output.
async fn run(program: &Path, args: &[String], words: &[&str], input: &[u8], doing: &str) -> Result<Vec<u8>> {
    let failed = || format!("Failed to {doing} with {}", program.display());
    let mut command = Command::new(program);
    // As the monitor has it. A runtime that sees NOTIFY_SOCKET, which is this server's, hands it to containers.
    command.env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    command.args(args).args(words).stdin(if input.is_empty() { Stdio::null() } else { Stdio::piped() });
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn().context(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input).await.context(failed)?;
    }
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await;
    let output = output.map_err(|_| Error::Deadline(format!("{}: no end after {PATIENCE:?}", failed())))?;
    let output = output.context(failed)?;
    match output.status.success() {
        true => Ok(output.stdout),
        false => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(Error::failed(format!("{}: {}: {}", failed(), output.status, said.trim_end())))
        }
    }
}

/// The program that starts containers in a runtime's place, for a runtime whose way is known: runc itself. A script
/// around it may do something of its own.
async fn starter(runtime: &Path) -> Option<PathBuf> {
    let starter = std::env::current_exe().ok()?.with_file_name("conward-start");
    if !starter.is_file() || !is_program(runtime) {
        return None;
    }
    let asked = Command::new(runtime).arg("--version").stdin(Stdio::null()).output();
    let output = tokio::time::timeout(PATIENCE, asked).await.ok()?.ok()?;
    (output.status.success() && output.stdout.starts_with(b"runc version ")).then_some(starter)
}

/// It is machine code.
fn is_program(path: &Path) -> bool {
    let mut magic = [0; 4];
    std::fs::File::open(path).is_ok_and(|mut file| file.read_exact(&mut magic).is_ok()) && magic == *b"\x7fELF"
}

/// The runtime has something to do after a start, or nobody knows.
fn after_start(bundle: &Path) -> bool {
    #[derive(serde::Deserialize)]
    struct Config {
        #[serde(default)]
        hooks: Option<Hooks>,
    }
    #[derive(serde::Deserialize)]
    struct Hooks {
        #[serde(default)]
        poststart: Option<Vec<serde::de::IgnoredAny>>,
    }
    let config = crate::state::read::<Config>(&bundle.join("config.json"));
    let hooks = config.map(|config| config.hooks.and_then(|hooks| hooks.poststart).unwrap_or_default());
    hooks.map_or(true, |hooks| !hooks.is_empty())
}

/// Waits for commands that change containers, given by a server that was killed meanwhile.
pub async fn settle(run: &Path) {
    let root = run.join("runtimes");
    let end = tokio::time::Instant::now() + SETTLED;
    while changing(&root) && tokio::time::Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn changing(root: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir("/proc") else { return false };
    entries.flatten().any(|entry| {
        let words = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words: Vec<_> = words.split(|byte| *byte == 0).collect();
        let ours = |pair: &[&[u8]]| pair[0] == b"--root" && Path::new(OsStr::from_bytes(pair[1])).starts_with(root);
        words.windows(2).any(ours) && words.iter().any(|word| CHANGES.contains(word))
    })
}

const CHANGES: [&[u8]; 4] = [b"start", b"kill", b"delete", b"update"];

/// What `RUNTIME features` tells (runtime-spec, features.md); older runtimes have no such command.
#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Features {
    #[serde(rename = "ociVersionMax", default = "oldest")]
    oci_version: String,
    #[serde(default)]
    mount_options: Vec<String>,
}

fn oldest() -> String {
    "1.0.2".to_owned()
}

impl Features {
    async fn of(path: &Path) -> Features {
        let unknown = Features { oci_version: oldest(), mount_options: Vec::new() };
        let asked = Command::new(path).arg("features").stdin(Stdio::null()).output();
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Ok(output)) if output.status.success() => serde_json::from_slice(&output.stdout).unwrap_or(unknown),
            _ => unknown,
        }
    }
}

/// A program by its path, or by its name in PATH and where systems keep what root runs.
pub fn in_path(program: &Path) -> Option<PathBuf> {
    if program.components().count() > 1 {
        // Whoever runs it is in another directory.
        return std::path::absolute(program).ok().filter(|path| path.exists());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/sbin", "/usr/bin", "/usr/local/bin", "/sbin", "/bin"].map(PathBuf::from);
    let dirs = std::env::split_paths(&path).chain(more);
    dirs.map(|dir| dir.join(program)).find(|path| path.is_file())
}

/// Whether cgroups are made by systemd.
pub fn uses_systemd(driver: CgroupDriver) -> bool {
    match driver {
        CgroupDriver::Systemd => true,
        CgroupDriver::Cgroupfs => false,
        CgroupDriver::Auto => Path::new("/run/systemd/system").exists(),
    }
}

/// The program that stays with containers: as configured, beside this one, or in PATH.
pub fn find_monitor(config: &Config) -> Result<PathBuf> {
    if !config.monitor.as_os_str().is_empty() {
        return in_path(&config.monitor)
            .ok_or_else(|| Error::invalid(format!("monitor {} is not there", config.monitor.display())));
    }
    let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join("conward")));
    beside
        .filter(|path| path.is_file())
        .or_else(|| in_path(OsStr::new("conward").as_ref()))
        .ok_or_else(|| Error::failed("The monitor conward is neither beside this program nor in PATH"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_after_the_start_are_seen() {
        let dir = tempfile::tempdir().unwrap();
        assert!(after_start(dir.path()), "nobody knows");
        for (text, after) in [
            ("{}", false),
            (r#"{"process":{"args":["x"]},"hooks":null}"#, false),
            (r#"{"hooks":{"createRuntime":[{"path":"/x"}],"poststart":[]}}"#, false),
            (r#"{"hooks":{"poststart":[{"path":"/x"}]}}"#, true),
            ("{", true),
        ] {
            std::fs::write(dir.path().join("config.json"), text).unwrap();
            assert_eq!(after_start(dir.path()), after, "{text}");
        }
    }

    #[test]
    fn scripts_are_no_programs() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("runc");
        for (text, program) in [("#!/bin/sh\nexec runc \"$@\"\n", false), ("", false), ("\x7fELF\x02", true)] {
            std::fs::write(&script, text).unwrap();
            assert_eq!(is_program(&script), program, "{text:?}");
        }
        assert!(!is_program(&dir.path().join("none")));
    }
}
