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
mod tests {
    use super::*;
    use crate::options::{Parsed, parse};

    #[test]
    fn argv_of_each_mode() {
        let base = "-b /b -p /p -c ID -u U -r / -l none";
        let all =
            "-s --no-pivot --no-new-keyring --runtime-arg --root=/r --runtime-arg -x --runtime-opt -o --runtime-opt v";
        let exec = "-e --exec-process-spec /spec";
        let socket = Some("/tmp/s");
        let table = [
            ("", "", None, "/ create --bundle /b --pid-file /p ID"),
            (
                all,
                "",
                socket,
                "/ --systemd-cgroup --root=/r -x create --bundle /b --pid-file /p --no-pivot --no-new-keyring -o v \
                 --console-socket /tmp/s ID",
            ),
            (
                "",
                "--restore /image",
                None,
                "/ restore --bundle /b --pid-file /p --detach --image-path /image --work-path /b ID",
            ),
            (
                all,
                "--restore /image",
                socket,
                "/ --systemd-cgroup --root=/r -x restore --bundle /b --pid-file /p --no-pivot --no-new-keyring --detach \
                 --image-path /image --work-path /b -o v --console-socket /tmp/s ID",
            ),
            ("", exec, None, "/ exec --pid-file /p --process /spec --detach ID"),
            (
                all,
                exec,
                socket,
                "/ --root=/r -x exec --pid-file /p --process /spec --detach -o v --console-socket /tmp/s ID",
            ),
        ];
        for (flags, mode, socket, expected) in table {
            let words = [base, flags, mode].join(" ");
            let words = words.split_whitespace().map(OsString::from);
            let Ok(Parsed::Run(options, _)) = parse(words, &|_| None) else { panic!("{flags} {mode}") };
            let argv = options.runtime_argv(socket.map(Path::new));
            let expected: Vec<&str> = expected.split_whitespace().collect();
            assert_eq!(argv, expected, "{flags} {mode}");
        }
    }

    #[test]
    fn create_without_a_bundle_names_the_working_directory() {
        let words = "-c ID -u U -r / -l none".split_whitespace().map(OsString::from);
        let Ok(Parsed::Run(options, _)) = parse(words, &|_| None) else { panic!("accepted") };
        let cwd = std::env::current_dir().expect("tests have a working directory");
        let argv = options.runtime_argv(None);
        assert_eq!(&argv[2..4], [OsStr::new("--bundle"), cwd.as_os_str()]);
        assert_eq!(&argv[4..6], [OsStr::new("--pid-file"), cwd.join("pidfile-ID").as_os_str()]);
    }
}
