//! Programs beside this repository that make machines to test in: where they are, and what they keep.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The first machine of a kind is fetched and unpacked: so many seconds are enough for that.
const BUILD: &str = "300";

/// A program that makes machines.
#[derive(Clone, Copy, Debug)]
pub struct Rig {
    pub name: &'static str,
    /// The variable that names the program, if it is elsewhere.
    pub program: &'static str,
    /// The variable that says where it keeps what it makes; it is the program's own.
    pub cache: &'static str,
    /// And where that is if it is not set, below the user's cache directory.
    pub place: &'static str,
}

impl Rig {
    /// Builds what all machines are made of: the program and its cache, or why there is none.
    pub fn prepare(&self) -> Result<(PathBuf, PathBuf), String> {
        let name = self.name;
        if !nix::unistd::geteuid().is_root() {
            return Err(format!("only root may call {name}"));
        }
        let program = self.find()?;
        let cache = std::env::var_os(self.cache).map_or_else(|| cache().join(self.place), PathBuf::from);
        std::fs::create_dir_all(&cache).map_err(|error| format!("{}: {error}", cache.display()))?;
        let built = Command::new("timeout").arg(BUILD).arg(&program).arg("build").env(self.cache, &cache).output();
        let built = built.map_err(|error| format!("{}: {error}", program.display()))?;
        match built.status.success() {
            true => Ok((program, cache)),
            false => Err(format!("{name} cannot build: {}", String::from_utf8_lossy(&built.stderr).trim_end())),
        }
    }

    /// What the environment names, or else a directory `shared/rigs` near the repository.
    fn find(&self) -> Result<PathBuf, String> {
        let Rig { name, program: variable, .. } = self;
        if let Some(named) = std::env::var_os(variable).map(PathBuf::from) {
            let why = format!("no {name}: {variable} names {}, which is no file", named.display());
            return if named.is_file() { Ok(named) } else { Err(why) };
        }
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        // Beside the repository or a level above it, seen from the repository or from a crate in it.
        let near = ["..", "../..", "../../.."].map(|up| here.join(up).join("shared/rigs").join(name));
        let found = near.into_iter().find(|path| path.is_file());
        found.ok_or(format!("no {name}: {variable} names none, and none is beside the repository"))
    }
}

fn cache() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cache");
    std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from)
}
