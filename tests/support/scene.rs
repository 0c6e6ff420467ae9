//! One monitor and everything around it: directories, arguments, pipes, a container's script, the runtime's behaviour.
//!
//! Below the scene's directory: `b` bundle, `x` exit directory, `p` persist directory, `s` directory of attach
//! symlinks, `log`, `pid` (container pidfile), `cpid` (monitor pidfile), `front.out`, `front.err`.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::attach::Client;
use super::crilog::{self, Record};
use super::pipes::{Channel, Kind, Way};
use super::suite::Monitor;
use super::wait::{self, SOON};
use super::{Fail, Outcome, procs, roles};

/// Longer than the twelve characters that journald wants.
pub const CID: &str = "c0ffee0123456789abcd";

/// A monitor that is about to be started.
#[derive(Debug)]
pub struct Scene {
    pub dir: PathBuf,
    program: PathBuf,
    /// Options with their values, in the order in which they are given.
    options: Vec<(OsString, Option<OsString>)>,
    env: Vec<(OsString, Option<OsString>)>,
    cwd: PathBuf,
    sync: Option<Channel>,
    start: Option<Channel>,
    attach: Option<Channel>,
    stdio: Option<[Stdio; 3]>,
    /// Where the runtime finds the script and its own orders.
    stage: PathBuf,
}

/// A monitor that runs.
#[derive(Debug)]
pub struct Live {
    pub dir: PathBuf,
    pub front: Child,
    pub sync: Option<Channel>,
    pub start: Option<Channel>,
    pub attach: Option<Channel>,
    stage: PathBuf,
}

impl Scene {
    /// Create mode with a k8s-file log, as most callers begin.
    pub fn create(monitor: &Monitor) -> Outcome<Scene> {
        let mut scene = Scene::bare(monitor)?;
        let dir = scene.dir.clone();
        for (option, value) in [("-c", CID), ("-u", CID)] {
            scene.set(option, value);
        }
        scene.set("-r", dir.join(roles::RUNTIME)).set("-b", dir.join("b")).set("--socket-dir-path", dir.join("s"));
        scene.set("-p", dir.join("pid")).set("-P", dir.join("cpid"));
        scene.set("--exit-dir", dir.join("x")).set("--persist-dir", dir.join("p")).set("-l", dir.join("log"));
        scene.script("exit 0")?;
        Ok(scene)
    }

    /// Exec mode, the rest as in create mode.
    pub fn exec(monitor: &Monitor) -> Outcome<Scene> {
        let mut scene = Scene::create(monitor)?;
        let spec = scene.dir.join("b/process.json");
        fs::write(&spec, "{}")?;
        scene.flag("-e").set("--exec-process-spec", spec);
        Ok(scene)
    }

    /// A fresh directory and no option at all.
    pub fn bare(monitor: &Monitor) -> Outcome<Scene> {
        let dir = monitor.fresh_dir()?;
        for name in ["b", "x", "p", "s"] {
            fs::create_dir(dir.join(name))?;
        }
        for name in [roles::RUNTIME, roles::EXIT_COMMAND] {
            std::os::unix::fs::symlink(std::env::current_exe()?, dir.join(name))?;
        }
        Ok(Scene {
            program: monitor.program.clone(),
            options: Vec::new(),
            env: Vec::new(),
            cwd: dir.clone(),
            sync: None,
            start: None,
            attach: None,
            stdio: None,
            stage: dir.join("b"),
            dir,
        })
    }

    /// Sets an option, in place of an earlier value.
    pub fn set(&mut self, option: &str, value: impl AsRef<OsStr>) -> &mut Scene {
        let value = Some(value.as_ref().to_owned());
        match self.options.iter_mut().find(|(name, _)| name == option) {
            Some(found) => found.1 = value,
            None => self.options.push((option.into(), value)),
        }
        self
    }

    /// Adds an option beside earlier ones of its name.
    pub fn add(&mut self, option: &str, value: impl AsRef<OsStr>) -> &mut Scene {
        self.options.push((option.into(), Some(value.as_ref().to_owned())));
        self
    }

    /// Adds a word without a value.
    pub fn flag(&mut self, word: &str) -> &mut Scene {
        self.options.push((word.into(), None));
        self
    }

    /// Takes an option away.
    pub fn without(&mut self, option: &str) -> &mut Scene {
        self.options.retain(|(name, _)| name != option);
        self
    }

    pub fn env(&mut self, name: &str, value: impl AsRef<OsStr>) -> &mut Scene {
        self.env.push((name.into(), Some(value.as_ref().to_owned())));
        self
    }

    pub fn env_remove(&mut self, name: &str) -> &mut Scene {
        self.env.push((name.into(), None));
        self
    }

    /// Starts this program instead of the one that the case is given.
    pub fn program(&mut self, path: impl Into<PathBuf>) -> &mut Scene {
        self.program = path.into();
        self
    }

    pub fn cwd(&mut self, dir: impl Into<PathBuf>) -> &mut Scene {
        self.cwd = dir.into();
        self
    }

    /// stdin, stdout and stderr of the monitor instead of `/dev/null` and two files.
    pub fn stdio(&mut self, stdin: impl Into<Stdio>, stdout: impl Into<Stdio>, stderr: impl Into<Stdio>) -> &mut Scene {
        self.stdio = Some([stdin.into(), stdout.into(), stderr.into()]);
        self
    }

    /// Moves the bundle (and with it the script and the runtime's orders).
    pub fn bundle(&mut self, dir: impl Into<PathBuf>) -> Outcome<&mut Scene> {
        let dir = dir.into();
        fs::create_dir_all(&dir)?;
        fs::rename(self.stage.join("script"), dir.join("script"))?;
        fs::rename(self.stage.join("go"), dir.join("go"))?;
        self.set("-b", &dir);
        self.stage = dir;
        Ok(self)
    }

    /// What the container runs: a shell script; `$D` is the bundle. `go` waits for [`Live::go`].
    pub fn script(&mut self, text: &str) -> Outcome<&mut Scene> {
        // A go that comes while the writer of the last one is still about ends without a line: it does not count.
        let text = format!("go() {{ until read _ < \"$D/go\"; do :; done; }}\n{text}\n");
        fs::write(self.stage.join("script"), text)?;
        let fifo = self.stage.join("go");
        if !fifo.exists() {
            nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600))?;
        }
        Ok(self)
    }

    /// What the runtime does beside starting the container, one order a line: see [`roles`].
    pub fn runtime(&mut self, orders: &str) -> Outcome<&mut Scene> {
        fs::write(self.stage.join("runtime"), orders)?;
        Ok(self)
    }

    pub fn sync_pipe(&mut self, kind: Kind) -> Outcome<&mut Scene> {
        self.sync = Some(Channel::new(kind, Way::MonitorWrites, &self.dir.join("sync.fifo"))?);
        Ok(self)
    }

    pub fn start_pipe(&mut self, kind: Kind) -> Outcome<&mut Scene> {
        self.start = Some(Channel::new(kind, Way::MonitorReads, &self.dir.join("start.fifo"))?);
        Ok(self)
    }

    pub fn attach_pipe(&mut self, kind: Kind) -> Outcome<&mut Scene> {
        self.attach = Some(Channel::new(kind, Way::MonitorWrites, &self.dir.join("attach.fifo"))?);
        Ok(self)
    }

    /// Runs the exit command that records what it was given.
    pub fn exit_command(&mut self, args: &[&str]) -> &mut Scene {
        self.set("--exit-command", self.dir.join(roles::EXIT_COMMAND));
        let record = self.dir.join("after");
        self.add("--exit-command-arg", record);
        for arg in args {
            self.add("--exit-command-arg", arg);
        }
        self
    }

    /// The words after the program's name.
    pub fn args(&self) -> Vec<OsString> {
        self.options.iter().flat_map(|(name, value)| std::iter::once(name.clone()).chain(value.clone())).collect()
    }

    /// Starts the monitor and waits for nothing.
    pub fn spawn(&mut self) -> Outcome<Live> {
        let [stdin, stdout, stderr] = match self.stdio.take() {
            Some(given) => given,
            None => [Stdio::null(), self.file("front.out")?.into(), self.file("front.err")?.into()],
        };
        let mut command = Command::new(&self.program);
        command.args(self.args()).current_dir(&self.cwd).process_group(0);
        command.stdin(stdin).stdout(stdout).stderr(stderr);
        for (name, channel) in
            [("_OCI_SYNCPIPE", &self.sync), ("_OCI_STARTPIPE", &self.start), ("_OCI_ATTACHPIPE", &self.attach)]
        {
            match channel {
                Some(channel) => command.env(name, channel.number()),
                None => command.env_remove(name),
            };
        }
        for (name, value) in &self.env {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let front = command.spawn().map_err(|error| format!("cannot start {}: {error}", self.program.display()))?;
        drop(command);
        let hand_over = |channel: Option<Channel>| {
            channel.map(|mut channel| {
                channel.handed_over();
                channel
            })
        };
        Ok(Live {
            dir: self.dir.clone(),
            front,
            sync: hand_over(self.sync.take()),
            start: hand_over(self.start.take()),
            attach: hand_over(self.attach.take()),
            stage: self.stage.clone(),
        })
    }

    /// Starts the monitor; the front must end with 0.
    pub fn start(&mut self) -> Outcome<Live> {
        let mut live = self.spawn()?;
        match live.front_end()? {
            0 => Ok(live),
            code => Err(Fail::Wrong(format!("the front ended with {code}; stderr: {:?}", live.stderr()))),
        }
    }

    /// Runs the monitor to the end of its front: exit status, stdout, stderr.
    pub fn front(&mut self) -> Outcome<(i32, String, String)> {
        let mut live = self.spawn()?;
        let code = live.front_end()?;
        Ok((code, live.stdout(), live.stderr()))
    }

    /// Starts the monitor, waits for its daemon to end and gives the daemon's exit status.
    pub fn run(&mut self) -> Outcome<(Live, i32)> {
        let live = self.start()?;
        let status = live.end()?;
        Ok((live, status))
    }

    fn file(&self, name: &str) -> Outcome<File> {
        Ok(File::options().append(true).create(true).open(self.dir.join(name))?)
    }
}

impl Live {
    /// Waits for the process that was started: `128 + S` for a signal.
    pub fn front_end(&mut self) -> Outcome<i32> {
        let front = &mut self.front;
        let status = wait::until("the end of the process that was started", SOON, || Ok(front.try_wait()?))?;
        Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
    }

    pub fn stdout(&self) -> String {
        read_text(&self.dir.join("front.out"))
    }

    pub fn stderr(&self) -> String {
        read_text(&self.dir.join("front.err"))
    }

    /// The daemon's pid, from the monitor pidfile.
    pub fn pid(&self) -> Outcome<Pid> {
        procs::pid_in(&self.dir.join("cpid"))
    }

    /// The container's pid, from its pidfile.
    pub fn container(&self) -> Outcome<Pid> {
        let path = self.dir.join("pid");
        wait::until("the container's pidfile", SOON, || {
            Ok(fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok()).map(Pid::from_raw))
        })
    }

    /// Waits for the daemon to end and gives its exit status.
    pub fn end(&self) -> Outcome<i32> {
        procs::ended("the monitor", self.pid()?, SOON)
    }

    pub fn signal(&self, signal: Signal) -> Outcome {
        Ok(kill(self.pid()?, signal)?)
    }

    /// Lets a script that waits with `go` run on.
    pub fn go(&self) -> Outcome {
        let path = self.stage.join("go");
        // Opening blocks until the script is there; a script that never comes must not hold us up.
        wait::until("the container to wait for its go", SOON, || {
            let flags = nix::fcntl::OFlag::O_WRONLY | nix::fcntl::OFlag::O_NONBLOCK | nix::fcntl::OFlag::O_CLOEXEC;
            match nix::fcntl::open(&path, flags, nix::sys::stat::Mode::empty()) {
                Ok(fd) => {
                    nix::unistd::write(&fd, b"go\n")?;
                    Ok(Some(()))
                }
                Err(nix::Error::ENXIO) => Ok(None),
                Err(error) => Err(error.into()),
            }
        })
    }

    pub fn log_bytes(&self) -> Vec<u8> {
        fs::read(self.dir.join("log")).unwrap_or_default()
    }

    pub fn log(&self) -> Outcome<Vec<Record>> {
        crilog::parse(&self.log_bytes())
    }

    /// The log as `stdout F text` lines.
    pub fn plain_log(&self) -> Outcome<Vec<String>> {
        Ok(crilog::plain(&self.log()?))
    }

    /// Waits until the log has the text.
    pub fn log_has(&self, text: &str) -> Outcome {
        wait::until(&format!("{text:?} in the log"), SOON, || {
            Ok(String::from_utf8_lossy(&self.log_bytes()).contains(text).then_some(()))
        })
    }

    /// What is in `<exit-dir>/<cid>`, once it is there.
    pub fn exit_file(&self) -> Outcome<String> {
        Ok(String::from_utf8_lossy(&wait::for_file(&self.dir.join("x").join(CID))?).into_owned())
    }

    /// What is in `<persist-dir>/exit`, once it is there.
    pub fn persist_file(&self) -> Outcome<String> {
        Ok(String::from_utf8_lossy(&wait::for_file(&self.dir.join("p/exit"))?).into_owned())
    }

    /// What the runtime saw when it was called.
    pub fn seen(&self) -> Outcome<serde_json::Value> {
        Ok(serde_json::from_slice(&wait::for_file(&self.stage.join("seen"))?)?)
    }

    /// What the exit command saw.
    pub fn after(&self) -> Outcome<serde_json::Value> {
        Ok(serde_json::from_slice(&wait::for_file(&self.dir.join("after"))?)?)
    }

    /// Connects to the attach socket in the bundle, as soon as it is there.
    pub fn attach(&self) -> Outcome<Client> {
        Client::connect_soon(&self.stage.join("attach"))
    }

    /// Writes to `ctl` in one piece.
    pub fn ctl(&self, text: &str) -> Outcome {
        self.fifo("ctl", text)
    }

    /// Writes to a FIFO of the bundle, as soon as it has a reader.
    pub fn fifo(&self, name: &str, text: &str) -> Outcome {
        let path = self.stage.join(name);
        let flags = nix::fcntl::OFlag::O_WRONLY | nix::fcntl::OFlag::O_NONBLOCK | nix::fcntl::OFlag::O_CLOEXEC;
        let fd = wait::until(&format!("{name} with a reader"), SOON, || {
            match nix::fcntl::open(&path, flags, nix::sys::stat::Mode::empty()) {
                Ok(fd) => Ok(Some(fd)),
                Err(nix::Error::ENOENT | nix::Error::ENXIO) => Ok(None),
                Err(error) => Err(error.into()),
            }
        })?;
        let count = nix::unistd::write(&fd, text.as_bytes())?;
        super::same("bytes that the FIFO took", count, text.len())
    }

    pub fn sync(&mut self) -> Outcome<&mut Channel> {
        self.sync.as_mut().ok_or_else(|| Fail::from("the case has no sync pipe"))
    }

    pub fn start(&mut self) -> Outcome<&mut Channel> {
        self.start.as_mut().ok_or_else(|| Fail::from("the case has no start pipe"))
    }

    pub fn attach_pipe(&mut self) -> Outcome<&mut Channel> {
        self.attach.as_mut().ok_or_else(|| Fail::from("the case has no attach pipe"))
    }
}

fn read_text(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}
