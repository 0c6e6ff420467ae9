//! What the `--log-*` options mean.

use std::ffi::{OsStr, OsString};
use std::mem::discriminant;
use std::ops::RangeInclusive;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::{JournalIdentity, LogDriver, LogPolicy};
use crate::args::{Args, Refusal};

impl LogPolicy {
    pub(super) fn check(args: &Args) -> Result<LogPolicy, Refusal> {
        let files = args.log_max_files.unwrap_or(1);
        let max_files = u32::try_from(files)
            .map_err(|_| Refusal::early(format!("log-max-files must be non-negative, got {files}")))?;
        if args.log_rotate && max_files == 0 {
            let text = "log-max-files must be at least 1 when log-rotate is enabled, got 0";
            return Err(Refusal::early(text));
        }
        Ok(LogPolicy {
            size_max: positive(args.log_size_max),
            global_size_max: positive(args.log_global_size_max),
            rotate: args.log_rotate,
            max_files,
            allowlist: args.log_allowlist.iter().map(PathBuf::from).collect(),
            sync: !args.no_sync_log,
            line_max: line_max(args.log_line_max)?,
            utc: args.log_utc,
            file_mode: file_mode(args.log_file_mode.as_deref())?,
        })
    }
}

impl LogDriver {
    /// Parses `DRIVER[:PATH]`. The path is everything after the first colon, further colons included.
    fn parse(value: &OsStr) -> Result<LogDriver, Refusal> {
        let text = value.as_bytes();
        let colon = text.iter().position(|&byte| byte == b':');
        let (name, rest) = match colon {
            Some(at) => (&text[..at], Some(&text[at + 1..])),
            None => (text, None),
        };
        let path = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
        let file = |driver: &str| match rest {
            Some(rest) if !rest.is_empty() => Ok(path(rest)),
            _ => Err(Refusal::late(format!("{driver} requires a filename"))),
        };
        match name {
            b"k8s-file" => Ok(LogDriver::K8sFile(file("k8s-file")?)),
            // conmon has no such driver, and there the bare word has always been the name of a file.
            b"json-file" if rest.is_some() => Ok(LogDriver::JsonFile(file("json-file")?)),
            b"journald" => Ok(LogDriver::Journald),
            b"passthrough" => Ok(LogDriver::Passthrough),
            b"none" | b"off" | b"null" => Ok(LogDriver::None),
            b"" => match text.iter().position(|&byte| byte != b':') {
                Some(start) => Ok(LogDriver::K8sFile(path(&text[start..]))),
                None => Err(Refusal::late("log-path must not be empty")),
            },
            _ if rest.is_none() => Ok(LogDriver::K8sFile(path(name))),
            _ => Err(Refusal::late(format!("No such log driver {}", String::from_utf8_lossy(name)))),
        }
    }

    /// The name of a driver that writes a file; such a driver has no place for a tag or labels.
    pub(super) fn file_driver(&self) -> Option<&'static str> {
        match self {
            LogDriver::K8sFile(_) => Some("k8s-file"),
            LogDriver::JsonFile(_) => Some("json-file"),
            _ => None,
        }
    }
}

impl JournalIdentity {
    pub(super) fn check(&self, cid: &OsStr) -> Result<(), Refusal> {
        // Entries carry the first twelve characters as CONTAINER_ID.
        if cid.len() <= 12 {
            return Err(Refusal::late("Container ID must be longer than 12 characters"));
        }
        self.labels.iter().try_for_each(|label| check_label(label))
    }
}

fn check_label(label: &OsStr) -> Result<(), Refusal> {
    let (bytes, shown) = (label.as_bytes(), label.to_string_lossy());
    let format = "Container labels must be in format LABEL=VALUE";
    if bytes.starts_with(b"=") {
        return Err(Refusal::late(format!("{format} (no LABEL present in '{shown}')")));
    }
    let mut parts = bytes.split(|&byte| byte == b'=');
    let (Some(name), Some(_), None) = (parts.next(), parts.next(), parts.next()) else {
        return Err(Refusal::late(format!("{format} (none or more than one '=' present in '{shown}')")));
    };
    if !name.iter().all(|byte| matches!(byte, b'A'..=b'Z' | b'0'..=b'9' | b'_')) {
        let rule = "must contain only uppercase letters, numbers and underscore";
        return Err(Refusal::late(format!("Container label names {rule} (in '{shown}')")));
    }
    Ok(())
}

/// One driver per `-l`, in order. Of several files of one kind the last is kept: one file is written, as with conmon.
pub(super) fn log_drivers(paths: &[OsString]) -> Result<Vec<LogDriver>, Refusal> {
    if paths.is_empty() {
        return Err(Refusal::late("Log driver not provided. Use --log-path"));
    }
    let mut drivers = Vec::with_capacity(paths.len());
    for path in paths {
        let driver = LogDriver::parse(path)?;
        drivers.retain(|earlier| discriminant(earlier) != discriminant(&driver));
        drivers.push(driver);
    }
    Ok(drivers)
}

fn line_max(typed: Option<i64>) -> Result<usize, Refusal> {
    let Some(bytes) = typed else { return Ok(LINE_MAX) };
    let fits = usize::try_from(bytes).ok().filter(|bytes| LINE_MAX_RANGE.contains(bytes));
    let (low, high) = (LINE_MAX_RANGE.start(), LINE_MAX_RANGE.end());
    fits.ok_or_else(|| Refusal::early(format!("log-line-max must be between {low} and {high}, got {bytes}")))
}

fn file_mode(typed: Option<&OsStr>) -> Result<u32, Refusal> {
    let Some(typed) = typed else { return Ok(FILE_MODE) };
    let text = typed.to_string_lossy();
    // Not from_str_radix alone: that takes a sign.
    let octal = text.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
    let bits = u32::from_str_radix(&text, 8).ok().filter(|bits| octal && bits & !0o666 == 0);
    bits.ok_or_else(|| Refusal::early(format!("log-file-mode must be octal with no bits outside 0666, got {text}")))
}

/// Zero and negative numbers mean no limit.
pub(super) fn positive(typed: Option<i64>) -> Option<u64> {
    typed.and_then(|number| u64::try_from(number).ok()).filter(|&number| number > 0)
}

/// Half of what one read brings.
const LINE_MAX: usize = 32_768;

/// At the low end headers begin to outweigh content. At the high end the kept beginning of a line leaves a quarter of
/// the 96 KiB read buffer for new bytes.
const LINE_MAX_RANGE: RangeInclusive<usize> = 256..=49_152;

/// What conmon's tests expect of a log file.
const FILE_MODE: u32 = 0o640;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{Options, Parsed, parse};

    fn options(cid: &str, line: &[&str]) -> Options {
        let line = [&["-u", "u", "-r", "/", "-c", cid], line].concat();
        match parse(line.iter().map(OsString::from), &|_| None) {
            Ok(Parsed::Run(options, _)) => *options,
            other => panic!("{line:?} gave {other:?}"),
        }
    }

    #[test]
    fn log_paths() {
        let k8s = |path: &str| Ok(LogDriver::K8sFile(path.into()));
        let json = |path: &str| Ok(LogDriver::JsonFile(path.into()));
        let empty = || Err("[conmon:e]: log-path must not be empty".to_owned());
        let nameless = |driver: &str| Err(format!("[conmon:e]: {driver} requires a filename"));
        let unknown = |driver: &str| Err(format!("[conmon:e]: No such log driver {driver}"));
        let table = [
            ("k8s-file:/a/b", k8s("/a/b")),
            ("k8s-file:/a:b:c", k8s("/a:b:c")),
            ("k8s-file:relative", k8s("relative")),
            ("/a/b", k8s("/a/b")),
            ("word", k8s("word")),
            (":word", k8s("word")),
            (":none", k8s("none")),
            (":journald", k8s("journald")),
            (":a:b", k8s("a:b")),
            ("::word", k8s("word")),
            ("k8s-file", nameless("k8s-file")),
            ("k8s-file:", nameless("k8s-file")),
            ("journald", Ok(LogDriver::Journald)),
            ("journald:", Ok(LogDriver::Journald)),
            ("journald:x", Ok(LogDriver::Journald)),
            ("passthrough", Ok(LogDriver::Passthrough)),
            ("passthrough:", Ok(LogDriver::Passthrough)),
            ("none", Ok(LogDriver::None)),
            ("none:", Ok(LogDriver::None)),
            ("none:x", Ok(LogDriver::None)),
            ("off", Ok(LogDriver::None)),
            ("off:x", Ok(LogDriver::None)),
            ("null", Ok(LogDriver::None)),
            ("null:x", Ok(LogDriver::None)),
            ("", empty()),
            (":", empty()),
            ("::", empty()),
            ("X:", unknown("X")),
            ("X:/path", unknown("X")),
            ("/path:x", unknown("/path")),
            ("json-file", k8s("json-file")),
            ("json-file:/a:b", json("/a:b")),
            ("json-file:", nameless("json-file")),
            ("NONE", k8s("NONE")),
            ("NONE:", unknown("NONE")),
        ];
        for (value, expected) in table {
            let parsed = LogDriver::parse(OsStr::new(value)).map_err(|refusal| refusal.line());
            assert_eq!(parsed, expected, "{value:?}");
        }
    }

    #[test]
    fn drivers_combine_and_the_last_file_wins() {
        let drivers = |line: &[&str]| options("c", line).log_drivers;
        let k8s = |path: &str| LogDriver::K8sFile(path.into());
        assert_eq!(drivers(&["-l", "a", "-l", "journald"]), [k8s("a"), LogDriver::Journald]);
        assert_eq!(drivers(&["-l", "a", "-l", "k8s-file:b"]), [k8s("b")]);
        assert_eq!(drivers(&["-l", "a", "-l", "off", "-l", "null"]), [k8s("a"), LogDriver::None]);
        let json = LogDriver::JsonFile("j".into());
        assert_eq!(drivers(&["-l", "json-file:i", "-l", "a", "-l", "json-file:j"]), [k8s("a"), json]);
        assert!(options("c", &["-l", "a", "-l", "passthrough"]).passthrough());
    }

    #[test]
    fn tags_and_labels_need_journald() {
        let long = "0123456789abc";
        let tag: &[&str] = &["--log-tag", "t"];
        let label: &[&str] = &["--log-label", "A_1=b"];
        let both = [tag, label].concat();
        let said = |text: &str| Err(format!("[conmon:e]: {text}"));
        let label_format = "Container labels must be in format LABEL=VALUE";
        type Row<'a> = (&'a str, &'a [&'a str], &'a [&'a str], Result<(), String>);
        let table: &[Row<'_>] = &[
            ("c", &["f"], &[], Ok(())),
            ("c", &["none"], &both, Ok(())),
            ("c", &["passthrough"], &both, Ok(())),
            ("c", &["f"], tag, said("k8s-file doesn't support --log-tag")),
            ("c", &["f"], &["--log-tag", ""], said("k8s-file doesn't support --log-tag")),
            ("c", &["f"], &both, said("k8s-file doesn't support --log-tag")),
            ("c", &["f"], label, said("k8s-file doesn't support --log-label")),
            ("c", &["json-file:f"], tag, said("json-file doesn't support --log-tag")),
            ("c", &["json-file:f"], label, said("json-file doesn't support --log-label")),
            (long, &["journald"], &both, Ok(())),
            (long, &["f", "journald"], &both, Ok(())),
            ("0123456789ab", &["journald"], &[], said("Container ID must be longer than 12 characters")),
            (
                "0123456789ab",
                &["journald"],
                &["--log-label", "="],
                said("Container ID must be longer than 12 characters"),
            ),
            (long, &["journald"], &["--log-label", "=A"], said(&format!("{label_format} (no LABEL present in '=A')"))),
            (
                long,
                &["journald"],
                &["--log-label", "=A="],
                said(&format!("{label_format} (no LABEL present in '=A=')")),
            ),
            (
                long,
                &["journald"],
                &["--log-label", "A"],
                said(&format!("{label_format} (none or more than one '=' present in 'A')")),
            ),
            (
                long,
                &["journald"],
                &["--log-label", "A=b", "--log-label", "A=b=c"],
                said(&format!("{label_format} (none or more than one '=' present in 'A=b=c')")),
            ),
            (
                long,
                &["journald"],
                &["--log-label", "a=b"],
                said("Container label names must contain only uppercase letters, numbers and underscore (in 'a=b')"),
            ),
            (long, &["journald"], &["--log-label", "A="], Ok(())),
        ];
        for (cid, drivers, line, expected) in table {
            let mut words: Vec<&str> = drivers.iter().flat_map(|driver| ["-l", driver]).collect();
            words.extend(*line);
            let result = options(cid, &words).check_log().map_err(|refusal| refusal.line());
            assert_eq!(&result, expected, "{words:?}");
        }
    }
}
