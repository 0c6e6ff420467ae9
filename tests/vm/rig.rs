//! The virtual machine: Debian's kernel with cgroup v2, crun and busybox in memory.

use std::path::Path;
use std::process::{Command, ExitCode};

use crate::many::MANY;
use crate::support::rig::Rig;
use crate::support::suite::{self, Case, Column, say};

/// The program that makes the machine.
const RIG: Rig = Rig { name: "cgroup2-vm", program: "CGROUP2_VM", cache: "CGROUP2_VM_DIR", place: "conward-vm" };
/// The cases run on the machine that they find themselves on.
const HERE: &str = "VM_HERE";
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
    let (program, cache) = RIG.prepare()?;
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
        .env(RIG.cache, cache)
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
