//! The virtual machine: Debian's kernel with cgroup v2, a runtime and busybox in memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use crate::rig::Rig;

/// The program that makes the machine; the monitor's tests have the same one.
const RIG: Rig = Rig { name: "cgroup2-vm", program: "CGROUP2_VM", cache: "CGROUP2_VM_DIR", place: "conward-vm" };
/// The directory with the programs: the cases run on the machine that they find themselves on.
const HERE: &str = "CRI_VM_HERE";
/// Seconds for all cases, in a machine without hardware support.
const LIMIT: &str = "780";
/// Where the machine has them.
const PLACE: &str = "/opt/x";
/// This program in there.
const TESTS: &str = "cgroup2";

pub fn here() -> Option<PathBuf> {
    std::env::var_os(HERE).map(PathBuf::from)
}

/// Boots a machine that runs the cases; its exit status, or why there is none.
pub fn run(words: &[String]) -> Result<ExitCode, String> {
    let (program, cache) = RIG.prepare()?;
    boot(&program, &cache, words).map_err(|error| format!("{}: {error}", program.display()))
}

fn boot(program: &Path, cache: &Path, words: &[String]) -> std::io::Result<ExitCode> {
    let programs = tempfile::Builder::new().prefix("conward-cri-vm-").tempdir()?;
    for (name, file) in [
        ("conward", monitor()?),
        ("conward-cri", env!("CARGO_BIN_EXE_conward-cri").into()),
        ("conward-hold", env!("CARGO_BIN_EXE_conward-hold").into()),
        ("conward-start", env!("CARGO_BIN_EXE_conward-start").into()),
        (TESTS, std::env::current_exe()?),
    ] {
        copy(&file, &programs.path().join(name))?;
    }
    let status = Command::new(program)
        .args(["run", "--memory", "3072", "--timeout", LIMIT])
        .args(["--add", &format!("{}:{PLACE}", programs.path().display())])
        .args(["--env", &format!("{HERE}={PLACE}"), "--env", "RUST_BACKTRACE=0"])
        .args(["--", &format!("{PLACE}/{TESTS}")])
        .args(words)
        .env(RIG.cache, cache)
        .status()?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// The one that is shipped; the server's flags are not its own, so that it is built by itself.
fn monitor() -> std::io::Result<PathBuf> {
    if let Some(named) = std::env::var_os("CONWARD") {
        return Ok(named.into());
    }
    let server = Path::new(env!("CARGO_BIN_EXE_conward-cri"));
    let target = server.parent().and_then(Path::parent).unwrap_or(Path::new("target"));
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--locked", "--release", "--package", "conward", "--bin", "conward"])
        .arg("--target-dir")
        .arg(target)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .env_remove("RUSTFLAGS")
        .status()?;
    match built.success() {
        true => Ok(target.join("release/conward")),
        false => Err(std::io::Error::other(format!("the monitor cannot be built: {built}"))),
    }
}

/// The machine is in memory: without what only a debugger reads, where there is a program that can do that.
fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    let stripped = Command::new("strip").arg("-o").arg(to).arg(from).status();
    if stripped.is_ok_and(|status| status.success()) {
        return Ok(());
    }
    fs::copy(from, to).map(drop)
}
