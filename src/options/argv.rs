//! How the runtime is called.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use super::{Mode, Options};

impl Options {
    /// The runtime's argument vector, its own path first. A console socket means that the container gets a terminal.
    pub fn runtime_argv(&self, console_socket: Option<&Path>) -> Vec<OsString> {
        let mut argv = Argv(vec![self.runtime.clone().into()]);
        let exec = matches!(self.mode, Mode::Exec { .. });
        argv.flag(self.systemd_cgroup && !exec, "--systemd-cgroup");
        argv.0.extend_from_slice(&self.runtime_args);
        match &self.mode {
            Mode::Create => {
                argv.word("create");
                self.bundle_words(&mut argv);
            }
            Mode::Restore { image } => {
                argv.word("restore");
                self.bundle_words(&mut argv);
                argv.word("--detach");
                argv.pair("--image-path", image);
                argv.pair("--work-path", self.bundle_dir());
            }
            Mode::Exec { process, .. } => {
                argv.word("exec");
                argv.pair("--pid-file", &self.container_pidfile);
                argv.pair("--process", process);
                argv.word("--detach");
            }
        }
        argv.0.extend_from_slice(&self.runtime_opts);
        if let Some(socket) = console_socket {
            argv.pair("--console-socket", socket);
        }
        argv.word(&self.cid);
        argv.0
    }

    fn bundle_words(&self, argv: &mut Argv) {
        argv.pair("--bundle", self.bundle_dir());
        argv.pair("--pid-file", &self.container_pidfile);
        argv.flag(self.no_pivot, "--no-pivot");
        argv.flag(self.no_new_keyring, "--no-new-keyring");
    }

    fn bundle_dir(&self) -> &Path {
        self.bundle.as_deref().unwrap_or(Path::new("."))
    }
}

struct Argv(Vec<OsString>);

impl Argv {
    fn word(&mut self, word: impl AsRef<OsStr>) {
        self.0.push(word.as_ref().to_owned());
    }

    fn pair(&mut self, option: &str, value: impl AsRef<OsStr>) {
        self.word(option);
        self.word(value);
    }

    fn flag(&mut self, wanted: bool, option: &str) {
        if wanted {
            self.word(option);
        }
    }
}

#[cfg(test)]
mod tests {}
