//! A bundle made of busybox, and an OCI runtime to run it.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::pipes::Kind;
use super::scene::{CID, Live, Scene};
use super::suite::{Monitor, in_path};
use super::{Fail, Outcome};

#[derive(Debug)]
pub struct Container {
    scene: Scene,
    runtime: PathBuf,
    process: Value,
    resources: Value,
    /// Runtimes keep their containers by name below a root: one root per container, so that names may be alike.
    root: PathBuf,
}

impl Container {
    /// A container of runc whose shell runs this script.
    pub fn new(monitor: &Monitor, script: &str) -> Outcome<Container> {
        Container::of("runc", monitor, script)
    }

    /// The same with another runtime.
    pub fn of(runtime: &str, monitor: &Monitor, script: &str) -> Outcome<Container> {
        let runtime = in_path(&OsString::from(runtime)).ok_or_else(|| Fail::Skip(format!("no {runtime} in PATH")))?;
        let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| is_static(path));
        let busybox = busybox.ok_or_else(|| Fail::Skip("no static busybox".to_owned()))?;
        if !nix::unistd::geteuid().is_root() {
            return Err(Fail::Skip("only root may make containers here".to_owned()));
        }
        let mut scene = Scene::create(monitor)?;
        let root = scene.dir.join("r");
        scene.set("-r", &runtime).set("--runtime-arg", format!("--root={}", root.display()));
        let bin = scene.dir.join("b/rootfs/bin");
        fs::create_dir_all(&bin)?;
        for name in ["proc", "dev", "tmp"] {
            fs::create_dir(scene.dir.join("b/rootfs").join(name))?;
        }
        fs::copy(busybox, bin.join("busybox"))?;
        for applet in ["sh", "cat", "echo", "sleep", "stty", "yes", "head", "true", "dd", "kill", "ls", "mkfifo"] {
            symlink("busybox", bin.join(applet))?;
        }
        let process = process(&["/bin/sh", "-c", script], false);
        Ok(Container { scene, runtime, process, resources: json!({}), root })
    }

    /// Runs something else than the script.
    pub fn command(&mut self, words: &[&str]) {
        self.process["args"] = json!(words);
    }

    pub fn user(&mut self, uid: u32) {
        self.process["user"] = json!({"uid": uid, "gid": uid});
    }

    /// Bytes of memory, without swap.
    pub fn memory(&mut self, bytes: u64) {
        self.resources["memory"] = json!({"limit": bytes, "swap": bytes});
    }

    /// Where its files are.
    pub fn dir(&self) -> &Path {
        &self.scene.dir
    }

    pub fn terminal(&mut self) {
        self.process["terminal"] = json!(true);
    }

    /// Creates it under the monitor.
    pub fn create(&mut self, change: impl FnOnce(&mut Scene) -> Outcome) -> Outcome<Live> {
        let config = json!({
            "ociVersion": "1.0.2",
            "process": self.process,
            "root": {"path": "rootfs"},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                 "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]}],
            "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}],
                // Cases run side by side with the same container ID, and a shared cgroup makes runc complain.
                "cgroupsPath": self.scene.dir, "resources": self.resources},
        });
        fs::write(self.scene.dir.join("b/config.json"), config.to_string())?;
        change(&mut self.scene)?;
        self.scene.start()
    }

    /// Creates it, waits for the report and starts it.
    pub fn start(&mut self, change: impl FnOnce(&mut Scene) -> &mut Scene) -> Outcome<Live> {
        self.scene.sync_pipe(Kind::Pipe)?;
        let mut live = self.create(|scene| {
            change(scene);
            Ok(())
        })?;
        let report = live.sync()?.json()?;
        if report["pid"].as_i64().is_none_or(|pid| pid <= 0) {
            let text = report["message"].as_str().unwrap_or_default();
            let refused = ["cgroup", "operation not permitted"].iter().any(|word| text.contains(word));
            let fail = if refused { Fail::Skip } else { Fail::Wrong };
            return Err(fail(format!("no container can be made here: {text}")));
        }
        self.call(&["start", "ID"])?;
        Ok(live)
    }

    /// Calls the runtime; `ID` stands for the container's.
    pub fn call(&self, words: &[&str]) -> Outcome {
        let words = words.iter().map(|word| if *word == "ID" { CID } else { word });
        let output = Command::new(&self.runtime).arg("--root").arg(&self.root).args(words).output()?;
        match output.status.success() {
            true => Ok(()),
            false => Err(Fail::Wrong(format!("the runtime: {}", String::from_utf8_lossy(&output.stderr)))),
        }
    }

    /// An exec into it, with files of its own.
    pub fn exec(&self, monitor: &Monitor, words: &[&str], terminal: bool) -> Outcome<Scene> {
        let mut scene = Scene::exec(monitor)?;
        scene.set("-r", &self.runtime).set("--runtime-arg", format!("--root={}", self.root.display()));
        fs::write(scene.dir.join("b/process.json"), process(words, terminal).to_string())?;
        Ok(scene)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // Removes its cgroup too; a container that was never made is no error here.
        let _ = self.call(&["delete", "--force", "ID"]);
    }
}

fn process(words: &[&str], terminal: bool) -> Value {
    json!({
        "terminal": terminal,
        "user": {"uid": 0, "gid": 0},
        "args": words,
        "env": ["PATH=/bin", "TERM=xterm"],
        "cwd": "/",
    })
}

/// A program that needs no loader.
fn is_static(path: &str) -> bool {
    fs::read(path).is_ok_and(|bytes| !bytes.windows(8).take(4096).any(|part| part == b"/ld-linu"))
}
