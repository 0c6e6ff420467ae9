//! One case's own podman: store, locks, events and configuration below a directory of its own.

use std::{
    cell::Cell,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{
    Stop, Verdict,
    call::Call,
    check, inside,
    processes::{self, Process, eventually, listed},
    rig::{Rig, failed},
    tty::Tty,
};

/// The image of all containers: busybox, and a command that waits for SIGTERM.
pub const IMAGE: &str = "localhost/box:1";
/// Runs for ever, and ends with code 0 on SIGTERM at once.
pub const PARK: &str = "trap 'exit 0' TERM; sleep 600 & wait";

pub struct Bed<'a> {
    pub rig: &'a Rig,
    pub dir: PathBuf,
    /// When the case must be over.
    until: Instant,
    /// Set by a case after which nobody can clean up behind the runtime.
    pub abrupt: Cell<bool>,
}

impl<'a> Bed<'a> {
    pub fn new(rig: &'a Rig, number: usize) -> Verdict<Self> {
        let dir = rig.dir.join(format!("{number:02}"));
        let bed = Self { rig, dir, until: rig.until.min(Instant::now() + CASE), abrupt: Cell::new(false) };
        for name in ["root", "run", "tmp", "home", "net"] {
            fs::create_dir_all(bed.dir.join(name)).map_err(|e| failed(name, &e))?;
        }
        let runtime = bed.write("runc", format!("#!/bin/sh\nexec runc --root {} \"$@\"\n", bed.path("runtime")))?;
        fs::set_permissions(&runtime, Permissions::from_mode(0o755)).map_err(|e| failed(&runtime, &e))?;
        bed.write("containers.conf", bed.containers_conf())?;
        bed.write("storage.conf", bed.storage_conf())?;
        let park = format!("CMD [\"sh\", \"-c\", \"{PARK}\"]");
        bed.podman(&["import", "-q", "-c", &park, &rig.image(), IMAGE]).ok()?;
        Ok(bed)
    }

    /// For what the original is known to get wrong: the case is ours alone.
    pub fn only_ours(&self, why: &str) -> Verdict {
        if self.rig.version.contains("conward") { Ok(()) } else { Err(Stop::Skipped(format!("conmon differs: {why}"))) }
    }

    /// podman with everything of its own; at most half a minute.
    pub fn podman(&self, args: &[&str]) -> Call {
        let [root, run, tmp] = ["root", "run", "tmp"].map(|name| self.path(name));
        let monitor = self.rig.monitor.display().to_string();
        #[rustfmt::skip]
        let own = [
            "--conmon", &monitor, "--root", &root, "--runroot", &run, "--tmpdir", &tmp,
            "--cgroup-manager", "cgroupfs", "--runtime", "runc", "--events-backend", "file",
        ];
        self.at_home(Call::new("podman", args, self.until).within(COMMAND)).silent_options(&own)
    }

    /// conwardctl, which finds the monitors of other beds, too: containers are to be named by ID.
    pub fn ctl(&self, args: &[&str]) -> Verdict<Call> {
        self.only_ours("it has no service")?;
        let Some(ctl) = &self.rig.ctl else {
            return Err(Stop::Skipped("no conwardctl beside the monitor (cargo build --package conmon-proto)".into()));
        };
        Ok(self.host(&ctl.display().to_string(), args))
    }

    /// A program of the host, within the case's time.
    pub fn host(&self, program: &str, args: &[&str]) -> Call {
        self.at_home(Call::new(program, args, self.until).within(COMMAND))
    }

    /// podman in a terminal of its own, 80 columns by 24 lines.
    pub fn terminal(&self, args: &[&str]) -> Verdict<Tty<'_>> {
        Tty::open(self, args)
    }

    /// Shorthand: podman must succeed; gives its stdout.
    pub fn ok(&self, args: &[&str]) -> Verdict<String> {
        self.podman(args).ok()
    }

    /// `run -d` of a shell script under a name.
    pub fn start(&self, name: &str, script: &str) -> Verdict {
        self.ok(&["run", "-d", "--name", name, IMAGE, "sh", "-c", script])?;
        Ok(())
    }

    /// Makes /tmp/end in a container that ends upon it, and so can kill this command before it has ended by itself.
    pub fn end(&self, name: &str) -> Verdict {
        let done = self.podman(&["exec", name, "touch", "/tmp/end"]).run()?;
        if done.status.code() == Some(137) { Ok(()) } else { done.expect(0).map(drop) }
    }

    pub fn inspect(&self, name: &str, format: &str) -> Verdict<String> {
        self.ok(&["inspect", "--format", format, name])
    }

    /// Waits until `podman logs` shows the text.
    pub fn logged(&self, name: &str, text: &str) -> Verdict<String> {
        let mut last = String::new();
        let found = eventually(self.left(PATIENCE), || {
            last = self.ok(&["logs", name]).unwrap_or_else(|e| format!("{e:?}"));
            last.contains(text)
        });
        check!(found, "{text:?} did not come into the log of {name}: {last:?}");
        Ok(last)
    }

    /// The option that mounts this program into a container, where it can be asked for what busybox cannot do.
    pub fn helper(&self) -> Verdict<String> {
        let me = std::env::current_exe().map_err(|e| failed("current_exe", &e))?;
        if !super::rig::is_static(&me) {
            return Err(Stop::Skipped(
                "this program is not linked statically, so it cannot run in the container".into(),
            ));
        }
        Ok(format!("{}:{}:ro", me.display(), inside::PATH))
    }

    pub fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> Verdict<String> {
        let path = self.path(name);
        fs::write(&path, content).map_err(|e| failed(&path, &e))?;
        Ok(path)
    }

    pub fn read(&self, path: impl AsRef<Path>) -> Verdict<Vec<u8>> {
        fs::read(&path).map_err(|e| failed(&path.as_ref().display().to_string(), &e))
    }

    /// A wait of at most this, but not beyond the case's end.
    pub fn left(&self, limit: Duration) -> Duration {
        limit.min(self.until.saturating_duration_since(Instant::now()))
    }

    /// The monitors of this bed.
    pub fn monitors(&self) -> Vec<Process> {
        processes::of(&self.dir).into_iter().filter(|p| p.exe == self.rig.monitor).collect()
    }

    pub fn without_monitors(&self) -> Verdict {
        let gone = eventually(self.left(PATIENCE), || self.monitors().is_empty());
        check!(gone, "monitors are still there:{}", listed(&self.monitors()));
        Ok(())
    }

    /// After the case: containers that have ended have no monitor, and nothing stays when all are removed.
    pub fn strip(mut self) -> Verdict {
        self.until = Instant::now() + CASE / 2;
        let orderly = match self.ok(&["ps", "-q"]) {
            Ok(running) if running.is_empty() => self.without_monitors(),
            _ => Ok(()),
        };
        let emptied = self.empty().and_then(|()| self.runtime_is_empty());
        let quiet = eventually(PATIENCE, || processes::of(&self.dir).is_empty());
        let left = processes::of(&self.dir);
        for process in &left {
            // The next case must not suffer; this one fails below.
            let pid = nix::unistd::Pid::from_raw(process.pid);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
        orderly?;
        emptied?;
        check!(quiet, "processes stay after all containers were removed:{}", listed(&left));
        let mut mounts = processes::mounts(&self.dir);
        for mount in &mounts {
            self.host(&self.rig.busybox, &["umount", "-l", mount]).ok()?;
        }
        // podman's own mark on its storage, which two podmans that end at the same time leave to each other.
        mounts.retain(|mount| !mount.ends_with("/root/overlay"));
        check!(mounts.is_empty(), "mounts stay after all containers were removed: {mounts:?}");
        if std::env::var_os("KEEP").is_none() {
            fs::remove_dir_all(&self.dir).map_err(|e| failed("removing the case's directory", &e))?;
        }
        Ok(())
    }

    fn empty(&self) -> Verdict {
        self.ok(&["pod", "rm", "-fa", "-t", "0"])?;
        self.ok(&["rm", "-fa", "-t", "0"])?;
        let left = self.ok(&["ps", "-a", "--format", "{{.Names}} {{.Status}}"])?;
        check!(left.is_empty(), "`podman rm -fa` left containers: {left}");
        Ok(())
    }

    /// The runtime has forgotten the containers too: podman's clean-up, which the monitor starts, tells it to.
    fn runtime_is_empty(&self) -> Verdict {
        let state = fs::read_dir(self.dir.join("runtime")).into_iter().flatten().flatten();
        let ids: Vec<String> = state.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        for id in &ids {
            self.host(&self.path("runc"), &["delete", "-f", id]).ok()?;
        }
        check!(ids.is_empty() || self.abrupt.get(), "the runtime still knew {ids:?}");
        Ok(())
    }

    /// What helps to understand a failure: containers, and who is still at work.
    pub fn scene(&self) -> String {
        let containers = self.at_scene(&["ps", "-a", "--format", "{{.Names}}: {{.Status}}"]);
        format!("\n  containers: {containers}\n  processes:{}", listed(&processes::of(&self.dir)))
    }

    fn at_scene(&self, args: &[&str]) -> String {
        let call = self.podman(args);
        call.run().map_or_else(|e| format!("{e:?}"), |done| done.text().replace('\n', "; "))
    }

    fn at_home(&self, call: Call) -> Call {
        // In its own directory too: conmon 2.1.6 leaves a file where it was started.
        let call = (call.at(&self.dir).env("CONTAINERS_CONF", self.path("containers.conf")))
            .env("CONTAINERS_STORAGE_CONF", self.path("storage.conf"))
            .env("HOME", self.path("home"))
            .env("TMPDIR", self.path("tmp"))
            // Without a systemd there is nobody who could run timers for health checks.
            .env("DISABLE_HC_SYSTEMD", "true")
            .env("TERM", "xterm");
        ["XDG_RUNTIME_DIR", "NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "CONTAINER_HOST", "LC_ALL"]
            .iter()
            .fold(call, |call, name| call.without_env(name))
    }

    /// No pids limit and modest ulimits: both need rights that a test machine's root may lack. Hard and soft limit are the
    /// same, because podman 4.3's `play kube` mixes them up.
    fn containers_conf(&self) -> String {
        let dir = self.dir.display();
        format!(
            r#"[containers]
pids_limit = 0
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
log_driver = "k8s-file"
netns = "none"
env = ["PATH=/bin", "BED={dir}"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
infra_image = "{IMAGE}"
tmp_dir = "{dir}/tmp"
image_copy_tmp_dir = "{dir}/tmp"
[engine.runtimes]
runc = ["{dir}/runc"]
[network]
network_config_dir = "{dir}/net"
"#
        )
    }

    fn storage_conf(&self) -> String {
        let dir = self.dir.display();
        let driver = self.rig.driver;
        format!("[storage]\ndriver = \"{driver}\"\ngraphroot = \"{dir}/root\"\nrunroot = \"{dir}/run\"\n")
    }
}

/// A case takes a few seconds; a stuck one ends here.
const CASE: Duration = Duration::from_secs(45);
/// One podman command.
const COMMAND: Duration = Duration::from_secs(30);
/// For things that happen at once on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(10);
