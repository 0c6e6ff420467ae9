//! What all cases share: the scratch directory, the monitor under the name `conmon`, and an image made of busybox.

use std::{
    env, fs,
    io::Read,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{sys::statfs::OVERLAYFS_SUPER_MAGIC, unistd::geteuid};
use tempfile::TempDir;

use super::{Stop, Verdict, call::Call};

/// Made once per run; its directory is removed with it.
pub struct Rig {
    /// The monitor under test.
    pub monitor: PathBuf,
    /// conwardctl, if it was built beside it.
    pub ctl: Option<PathBuf>,
    /// Its first line of `--version`.
    pub version: String,
    /// When the whole run must be over.
    pub until: Instant,
    /// Every bed has its directory here.
    pub dir: PathBuf,
    pub busybox: String,
    /// podman's storage driver: overlay, or vfs where the kernel or the file system cannot do it.
    pub driver: &'static str,
    /// Removes the directory when dropped, unless KEEP is set.
    _keeper: TempDir,
}

impl Rig {
    /// `Skipped` names what the machine lacks.
    pub fn new() -> Verdict<Self> {
        if !geteuid().is_root() {
            return Err(Stop::Skipped("not root".into()));
        }
        for program in ["podman", "runc", "tar"] {
            found(program)?;
        }
        let busybox = found("busybox")?;
        if !is_static(&busybox) {
            return Err(Stop::Skipped(format!("{} is not static (Debian: busybox-static)", busybox.display())));
        }
        let source = PathBuf::from(env::var("CONWARD").unwrap_or_else(|_| env!("CARGO_BIN_EXE_conward").to_string()));
        // Short: the runtime's console socket below it must fit in 107 bytes.
        let mut builder = tempfile::Builder::new();
        let builder = builder.prefix("cwp").disable_cleanup(env::var_os("KEEP").is_some());
        let keeper = builder.tempdir_in("/tmp").map_err(|e| failed("scratch directory", &e))?;
        let dir = keeper.path().to_path_buf();
        let monitor = dir.join("bin/conmon");
        fs::create_dir(dir.join("bin")).map_err(|e| failed("bin", &e))?;
        // A copy, not a symbolic link: podman and people know the process by the name of its executable.
        fs::copy(&source, &monitor).map_err(|e| failed(&format!("cannot install {}", source.display()), &e))?;
        let busybox = busybox.display().to_string();
        let ctl = env::var_os("CONWARDCTL").map_or_else(|| source.with_file_name("conwardctl"), PathBuf::from);
        let mut rig = Self {
            monitor,
            ctl: ctl.is_file().then_some(ctl),
            version: String::new(),
            until: Instant::now() + SUITE,
            dir,
            busybox,
            driver: driver(),
            _keeper: keeper,
        };
        rig.version = rig.call(&rig.monitor.display().to_string(), &["--version"]).ok()?;
        rig.make_rootfs().map_err(|e| failed("image", &e))?;
        Ok(rig)
    }

    /// The image as a tar file, which each bed imports.
    pub fn image(&self) -> String {
        self.dir.join("image.tar").display().to_string()
    }

    fn call(&self, program: &str, args: &[&str]) -> Call {
        Call::new(program, args, Instant::now() + Duration::from_secs(30))
    }

    /// busybox with a link per applet, and the few files that a shell and podman want to see.
    fn make_rootfs(&self) -> std::io::Result<()> {
        let root = self.dir.join("image");
        for name in ["bin", "etc", "tmp", "root", "proc", "sys", "dev"] {
            fs::create_dir_all(root.join(name))?;
        }
        fs::copy(&self.busybox, root.join("bin/busybox"))?;
        let applets =
            self.call(&self.busybox, &["--list"]).ok().map_err(|e| std::io::Error::other(format!("{e:?}")))?;
        for applet in applets.lines().filter(|name| *name != "busybox") {
            symlink("busybox", root.join("bin").join(applet))?;
        }
        fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n")?;
        fs::write(root.join("etc/group"), "root:x:0:\nuser:x:1000:\n")?;
        let tar = self.call("tar", &["-C", &root.display().to_string(), "-cf", &self.image(), "."]);
        tar.ok().map_err(|e| std::io::Error::other(format!("{e:?}")))?;
        fs::remove_dir_all(root)
    }
}

/// overlay on overlay does not work, and a kernel may lack it.
fn driver() -> &'static str {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default().contains("\toverlay\n");
    let on_overlay = nix::sys::statfs::statfs("/tmp").is_ok_and(|fs| fs.filesystem_type() == OVERLAYFS_SUPER_MAGIC);
    if known && !on_overlay { "overlay" } else { "vfs" }
}

/// A program on the PATH, or among the places that root's PATH may lack.
pub fn found(program: &str) -> Verdict<PathBuf> {
    let path = env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin:/usr/local/sbin";
    let hit = env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file());
    hit.ok_or_else(|| Stop::Skipped(format!("{program} is not installed")))
}

/// A dynamic program names its loader in the first page.
pub fn is_static(program: &Path) -> bool {
    let mut head = [0; 4096];
    let read = fs::File::open(program).and_then(|mut file| file.read(&mut head));
    read.is_ok_and(|n| !String::from_utf8_lossy(&head[..n]).contains("/ld-"))
}

pub fn failed(what: &str, why: &std::io::Error) -> Stop {
    Stop::Failed(format!("{what}: {why}"))
}

/// All cases together take about a minute on two idle processors.
const SUITE: Duration = Duration::from_secs(270);
