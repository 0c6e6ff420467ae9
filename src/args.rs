//! What was typed: the words of the command line as conmon's parser (GLib's `GOptionContext`) reads them.
//!
//! The rules differ from getopt's. A value option takes the next word whatever it looks like
//! (`--runtime-arg --root=/x` needs no `=`). A letter never has its value attached, but it may stand
//! anywhere in a cluster (`-ci abc`). Long names are never abbreviated, a flag swallows a `=value`, words that
//! are no options are ignored, and `--` ends it all. What the values mean is decided in [`crate::options`].

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

type Flag = bool;
type Text = Option<OsString>;
type List = Vec<OsString>;
type Int = Option<i32>;
type Size = Option<i64>;

/// Where the value of one option goes.
#[derive(Debug)]
enum Slot<'a> {
    Flag(&'a mut Flag),
    Text(&'a mut Text),
    List(&'a mut List),
    Int(&'a mut Int),
    Size(&'a mut Size),
}

/// One line per option keeps name, aliases and type together. It becomes a `match`, not a table of pointers,
/// because a table would have to be relocated at every start and its pages would be private memory.
macro_rules! options {
    ($($long:literal $(or $alias:literal)* => $field:ident: $kind:ident,)*) => {
        /// The options as typed: scalars keep the last value, lists keep all, nothing is defaulted.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Args {
            $(pub $field: $kind,)*
        }

        /// Every long name the parser knows, without the dashes; `--help` is not among them.
        pub const LONG_OPTIONS: &[&str] = &[$($long, $($alias,)*)*];

        impl Args {
            fn slot(&mut self, long: &str) -> Option<Slot<'_>> {
                Some(match long {
                    $($long $(| $alias)* => Slot::$kind(&mut self.$field),)*
                    _ => return None,
                })
            }
        }
    };
}

options! {
    "api-version" => api_version: Flag,
    "attach-stall-timeout" => attach_stall_timeout: Int,
    "bundle" => bundle: Text,
    "check-state" => check_state: Int,
    "cid" => cid: Text,
    "conmon-pidfile" => conmon_pidfile: Text,
    "container-pidfile" or "pidfile" => container_pidfile: Text,
    "cuuid" => cuuid: Text,
    "exec" => exec: Flag,
    "exec-attach" => exec_attach: Flag,
    "exec-process-spec" => exec_process_spec: Text,
    "exit-command" => exit_command: Text,
    "exit-command-arg" => exit_command_args: List,
    "exit-delay" => exit_delay: Int,
    "exit-dir" => exit_dir: Text,
    "full-attach" => full_attach: Flag,
    "history-held-max" => history_held_max: Size,
    "leave-stdin-open" => leave_stdin_open: Flag,
    "log-allowlist-dir" => log_allowlist: List,
    "log-file-mode" => log_file_mode: Text,
    "log-global-size-max" => log_global_size_max: Size,
    "log-label" => log_labels: List,
    "log-level" => log_level: Text,
    "log-line-max" => log_line_max: Size,
    "log-max-files" => log_max_files: Int,
    "log-path" => log_paths: List,
    "log-rotate" => log_rotate: Flag,
    "log-size-max" => log_size_max: Size,
    "log-tag" => log_tag: Text,
    "log-utc" => log_utc: Flag,
    "name" => name: Text,
    "no-container-partial-message" => no_partial_message: Flag,
    "no-new-keyring" => no_new_keyring: Flag,
    "no-pivot" => no_pivot: Flag,
    "no-sync-log" => no_sync_log: Flag,
    "persist-dir" => persist_dir: Text,
    "replace-listen-pid" => replace_listen_pid: Flag,
    "restore" => restore: Text,
    "resume" => resume: Int,
    "rpc-socket" => rpc_socket: Text,
    "runtime" => runtime: Text,
    "runtime-arg" => runtime_args: List,
    "runtime-opt" or "restore-arg" => runtime_opts: List,
    "sdnotify-socket" => sdnotify_socket: Text,
    // conmon up to 2.2.1 knew these two and dropped them; old callers must not fail over them.
    "seccomp-notify-plugins" or "seccomp-notify-socket" => seccomp_unused: Text,
    "socket-dir-path" => socket_dir: Text,
    "stdin" => stdin: Flag,
    "sync" => sync: Flag,
    "syslog" => syslog: Flag,
    "systemd-cgroup" => systemd_cgroup: Flag,
    "terminal" => terminal: Flag,
    "timeout" => timeout: Int,
    "version" => version: Flag,
}

/// The long name behind a letter.
fn long_name(letter: u8) -> Option<&'static str> {
    Some(match letter {
        b'0' => "persist-dir",
        b'P' => "conmon-pidfile",
        b'T' => "timeout",
        b'b' => "bundle",
        b'c' => "cid",
        b'e' => "exec",
        b'i' => "stdin",
        b'l' => "log-path",
        b'n' => "name",
        b'p' => "container-pidfile",
        b'r' => "runtime",
        b's' => "systemd-cgroup",
        b't' => "terminal",
        b'u' => "cuuid",
        _ => return None,
    })
}

/// What the command line asks for, before anything is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Typed {
    Args(Box<Args>),
    /// Help was asked for before any mistake; what follows was not looked at.
    Help,
}

/// Reads the words after the program name. Pure: no environment, no files.
pub fn read(mut words: impl Iterator<Item = OsString>, charset: Charset) -> Result<Typed, Refusal> {
    let mut reader = Reader { args: Args::default(), charset };
    while let Some(word) = words.next() {
        let asked = match word.as_bytes() {
            b"--" => break,
            b"--help" | b"--help-all" => Asked::Help,
            [b'-', b'-', long @ ..] => reader.long(&word, long, &mut words)?,
            [b'-', letters @ ..] => reader.cluster(&word, letters, &mut words)?,
            _ => Asked::Nothing,
        };
        if asked == Asked::Help {
            return Ok(Typed::Help);
        }
    }
    Ok(Typed::Args(Box::new(reader.args)))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    Nothing,
    Help,
}

struct Reader {
    args: Args,
    charset: Charset,
}

impl Reader {
    fn long(
        &mut self,
        word: &OsStr,
        text: &[u8],
        words: &mut impl Iterator<Item = OsString>,
    ) -> Result<Asked, Refusal> {
        let equals = text.iter().position(|&byte| byte == b'=');
        let name = &text[..equals.unwrap_or(text.len())];
        let attached = equals.map(|at| OsStr::from_bytes(&text[at + 1..]).to_owned());
        let charset = self.charset;
        let slot = std::str::from_utf8(name).ok().and_then(|name| self.args.slot(name));
        let Some(slot) = slot else { return Err(unknown(word, charset)) };
        let shown = format!("--{}", String::from_utf8_lossy(name));
        match slot {
            // A value on a flag is accepted and says nothing: `--api-version=0` sets the flag.
            Slot::Flag(flag) => *flag = true,
            slot => fill(slot, &shown, attached.or_else(|| words.next()), charset)?,
        }
        Ok(Asked::Nothing)
    }

    fn cluster(
        &mut self,
        word: &OsStr,
        letters: &[u8],
        words: &mut impl Iterator<Item = OsString>,
    ) -> Result<Asked, Refusal> {
        let charset = self.charset;
        let mut taken = false;
        for &letter in letters {
            if matches!(letter, b'h' | b'?') {
                return Ok(Asked::Help);
            }
            let slot = long_name(letter).and_then(|name| self.args.slot(name));
            let shown = format!("-{}", char::from(letter));
            match slot {
                None => return Err(unknown(word, charset)),
                Some(Slot::Flag(flag)) => *flag = true,
                // There is one next word and it is spoken for.
                Some(_) if taken => return Err(mistake(&format!("Error parsing option {shown}"), charset)),
                Some(slot) => {
                    fill(slot, &shown, words.next(), charset)?;
                    taken = true;
                }
            }
        }
        Ok(Asked::Nothing)
    }
}

/// Puts `value` where it belongs; `shown` is the option as it is named in messages.
fn fill(slot: Slot<'_>, shown: &str, value: Option<OsString>, charset: Charset) -> Result<(), Refusal> {
    let value = value.ok_or_else(|| mistake(&format!("Missing argument for {shown}"), charset))?;
    let number = |value: &OsStr, low: i64, high: i64| match integer(value.as_bytes()) {
        Some(Some(number)) if (low..=high).contains(&number) => Ok(number),
        Some(_) => {
            Err(mistake(&format!("Integer value “{}” for {shown} out of range", value.to_string_lossy()), charset))
        }
        None => Err(mistake(&format!("Cannot parse integer value “{}” for {shown}", value.to_string_lossy()), charset)),
    };
    match slot {
        Slot::Flag(flag) => *flag = true,
        Slot::Text(text) => *text = Some(charset.check(value)?),
        Slot::List(list) => list.push(charset.check(value)?),
        Slot::Size(size) => *size = Some(number(&value, i64::MIN, i64::MAX)?),
        Slot::Int(int) => *int = i32::try_from(number(&value, i32::MIN.into(), i32::MAX.into())?).ok(),
    }
    Ok(())
}

/// A number as C's `strtol` reads it with base 0: blanks, a sign, then `0x` for hexadecimal, `0` for octal. `None` is
/// no number at all, `Some(None)` one that does not fit.
fn integer(text: &[u8]) -> Option<Option<i64>> {
    let blanks = text.iter().take_while(|byte| matches!(byte, b' ' | b'\t'..=b'\r')).count();
    let (sign, digits) = match &text[blanks..] {
        [b'-', rest @ ..] => ("-", rest),
        [b'+', rest @ ..] => ("", rest),
        rest => ("", rest),
    };
    let (radix, digits) = match digits {
        [b'0', b'x' | b'X', rest @ ..] => (16, rest),
        [b'0', ..] => (8, digits),
        _ => (10, digits),
    };
    if digits.is_empty() || !digits.iter().all(|&digit| char::from(digit).is_digit(radix)) {
        return None;
    }
    let digits = std::str::from_utf8(digits).ok()?;
    Some(i64::from_str_radix(&format!("{sign}{digits}"), radix).ok())
}

fn unknown(word: &OsStr, charset: Charset) -> Refusal {
    mistake(&format!("Unknown option {}", word.to_string_lossy()), charset)
}

fn mistake(text: &str, charset: Charset) -> Refusal {
    // Outside UTF-8 GLib prints a question mark for what the terminal could not show, its own quotes included.
    let plain = |c: char| if c.is_ascii() || charset == Charset::Utf8 { c } else { '?' };
    Refusal::early(format!("option parsing failed: {}", text.chars().map(plain).collect::<String>()))
}

/// Which bytes a text value may have, by the caller's locale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Charset {
    /// No locale, `C` or `POSIX`: nothing above 127. podman's tests rely on this refusal.
    Ascii,
    Utf8,
    /// Some other charset: we have no tables for it, so every byte is taken as it is.
    Other,
}

impl Charset {
    /// The charset by name of the locale; the first of LC_ALL, LC_CTYPE and LANG that is not empty decides (POSIX, 8.2).
    pub fn of(env: &impl Fn(&str) -> Option<OsString>) -> Charset {
        let set = |name: &&str| env(name).filter(|value| !value.is_empty());
        let Some(locale) = ["LC_ALL", "LC_CTYPE", "LANG"].iter().find_map(set) else { return Charset::Ascii };
        let locale = locale.to_string_lossy();
        if matches!(&*locale, "C" | "POSIX") {
            return Charset::Ascii;
        }
        // language[_territory][.codeset][@modifier]
        let codeset = locale.split('@').next().and_then(|name| name.split_once('.')).map(|(_, codeset)| codeset);
        match codeset.map(|codeset| codeset.replace('-', "").to_ascii_lowercase()) {
            Some(codeset) if codeset == "utf8" => Charset::Utf8,
            _ => Charset::Other,
        }
    }

    fn check(self, value: OsString) -> Result<OsString, Refusal> {
        let valid = match self {
            Charset::Ascii => value.as_bytes().is_ascii(),
            Charset::Utf8 => value.to_str().is_some(),
            Charset::Other => true,
        };
        if valid { Ok(value) } else { Err(mistake("Invalid byte sequence in conversion input", self)) }
    }
}

/// Why the program does not start, in conmon's words: callers and tests compare them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    early: bool,
    text: String,
}

impl Refusal {
    /// A refusal of the parser and of the checks right behind it, with the prefix `conmon: `.
    pub fn early(text: impl Into<String>) -> Refusal {
        Refusal { early: true, text: text.into() }
    }

    /// A refusal of a later check, with the prefix `[conmon:e]: `.
    pub fn late(text: impl Into<String>) -> Refusal {
        Refusal { early: false, text: text.into() }
    }

    /// The whole line for stderr, without the newline.
    pub fn line(&self) -> String {
        let prefix = if self.early { "conmon: " } else { "[conmon:e]: " };
        format!("{prefix}{}", self.text)
    }
}

#[cfg(test)]
mod tests;
