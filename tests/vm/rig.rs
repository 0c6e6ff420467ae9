//! The virtual machine: Debian's kernel with cgroup v2, crun and busybox in memory.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use crate::many::MANY;
use crate::support::suite::{self, Case, Column, say};

/// Names the program that makes the machine.
const PROGRAM: &str = "CGROUP2_VM";
/// Where it keeps what it makes.
const CACHE: &str = "CGROUP2_VM_DIR";
/// The cases run on the machine that they find themselves on.
const HERE: &str = "VM_HERE";
/// Seconds for the machine to be made, once; it is fetched.
const BUILD: &str = "300";
/// Seconds for all cases, in a machine without hardware support.
const LIMIT: &str = "780";
/// Where the machine has the two programs.
const TESTS: &str = "/opt/x/vm";
const CONWARD: &str = "/opt/x/conward";

pub fn is_here() -> bool {
    std::env::var_os(HERE).is_some_and(|value| value == "1")
}

/// Boots a machine that runs this table; its exit status, or why there is none.
pub fn run() -> Result<ExitCode, String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("only root may make the virtual machine".to_owned());
    }
    let program = program().ok_or(format!("no cgroup2-vm: {PROGRAM} names none, and none is beside the repository"))?;
    let cache = std::env::var_os(CACHE).map_or_else(|| cache().join("conward-vm"), PathBuf::from);
    std::fs::create_dir_all(&cache).map_err(|error| format!("{}: {error}", cache.display()))?;
    let built = Command::new("timeout").arg(BUILD).arg(&program).arg("build").env(CACHE, &cache).output();
    let built = built.map_err(|error| format!("{}: {error}", program.display()))?;
    if !built.status.success() {
        return Err(format!("no machine can be built here: {}", String::from_utf8_lossy(&built.stderr).trim_end()));
    }
    boot(&program, &cache).map_err(|error| format!("{}: {error}", program.display()))
}

fn boot(program: &Path, cache: &Path) -> std::io::Result<ExitCode> {
    let conward = suite::program(Column::Conward).unwrap_or_default();
    let add = |file: &Path, place: &str| format!("{}:{place}", file.display());
    let status = Command::new(program)
        .args(["run", "--memory", "3072", "--timeout", LIMIT])
        .args(["--add", &add(&std::env::current_exe()?, TESTS), "--add", &add(&conward, CONWARD)])
        // What takes a second elsewhere takes ten without hardware support.
        .args(["--env", &format!("{HERE}=1"), "--env", "SOAK=1", "--env", &format!("CONWARD={CONWARD}")])
        .args(std::env::var(MANY).map(|many| [String::from("--env"), format!("{MANY}={many}")]).into_iter().flatten())
        .args(["--", TESTS, "--only", "conward"])
        .args(std::env::args_os().skip(1))
        .env(CACHE, cache)
        .status()?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Without a machine nothing is tested, and that is said.
pub fn without(reason: &str, cases: &[Case]) -> ExitCode {
    for case in cases {
        say(&format!("skipped {}: {reason}", case.id));
    }
    say(&format!("\n0 passed, 0 failed, {} skipped", cases.len()));
    ExitCode::from(77)
}

fn cache() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cache");
    std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from)
}

/// What the environment names, or a directory `shared/rigs` near the repository.
fn program() -> Option<PathBuf> {
    let named = std::env::var_os(PROGRAM).map(PathBuf::from);
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let near = ["..", "../.."].map(|up| here.join(up).join("shared/rigs/cgroup2-vm"));
    named.into_iter().chain(near).find(|path| path.is_file())
}
