//! Options: any words are accepted or refused in conmon's manner, and an accepted line means the same when it is
//! written in its plainest form.
#![no_main]

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use conward::args::{Charset, Refusal, Typed, read};
use conward::options::{LogDriver, Mode, Options, Parsed, parse};
use libfuzzer_sys::fuzz_target;

const LOCALES: [&str; 4] = ["C", "en_US.UTF-8", "de_DE.ISO-8859-1", ""];

// Words as in `/proc/PID/cmdline`; the first byte of the input picks the locale.
fuzz_target!(|data: &[u8]| {
    let Some((&shape, line)) = data.split_first() else { return };
    let locale = LOCALES[usize::from(shape) % LOCALES.len()];
    let env = |name: &str| (name == "LC_ALL").then(|| OsString::from(locale));
    let charset = Charset::of(&env);
    let words: Vec<OsString> = line.split(|&byte| byte == 0).map(|word| OsStr::from_bytes(word).to_owned()).collect();

    let parsed = parse(words.iter().cloned(), &env);
    let typed = match read(words.iter().cloned(), charset) {
        Err(refusal) => {
            check_refusal(&refusal);
            assert!(refusal.line().starts_with("conmon: option parsing failed: "));
            assert_eq!(parsed.err(), Some(refusal), "a line that cannot be read is refused");
            return;
        }
        Ok(Typed::Help) => {
            assert!(matches!(parsed, Ok(Parsed::Help(text)) if text.ends_with('\n')));
            return;
        }
        Ok(typed) => typed,
    };
    let plain = plain(&words, charset);
    assert_eq!(read(plain.iter().cloned(), charset).as_ref(), Ok(&typed), "{plain:?}");
    assert_eq!(format!("{parsed:?}"), format!("{:?}", parse(plain.into_iter(), &env)));
    match parsed {
        Err(refusal) => check_refusal(&refusal),
        Ok(Parsed::Version(text)) => assert!(text.starts_with("conmon version ") && text.ends_with('\n')),
        Ok(Parsed::Help(_)) => panic!("nobody asked for help"),
        Ok(Parsed::Run(options, _) | Parsed::CheckState(options, _) | Parsed::Resume(options, _)) => check_options(&options),
    }
});

/// The same line with one option per word and every long option's value attached, without what is ignored.
fn plain(words: &[OsString], charset: Charset) -> Vec<OsString> {
    let refused = |option: &OsString| read(std::iter::once(option.clone()), charset).is_err();
    let mut plain = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.as_bytes() {
            b"--" => break,
            [b'-', b'-', long @ ..] => {
                let equals = long.iter().position(|&byte| byte == b'=');
                let mut option = OsString::from("--");
                option.push(OsStr::from_bytes(&long[..equals.unwrap_or(long.len())]));
                // What is refused alone, although it is known, needs a value.
                if refused(&option) {
                    let attached = equals.map(|at| OsStr::from_bytes(&long[at + 1..]));
                    option.push("=");
                    option.push(attached.unwrap_or_else(|| words.next().expect("a value")));
                }
                plain.push(option);
            }
            [b'-', letters @ ..] => {
                for &letter in letters {
                    let option = OsStr::from_bytes(&[b'-', letter]).to_owned();
                    let value = refused(&option).then(|| words.next().expect("a value").clone());
                    plain.push(option);
                    plain.extend(value);
                }
            }
            _ => {}
        }
    }
    plain
}

fn check_refusal(refusal: &Refusal) {
    let line = refusal.line();
    let text = line.strip_prefix("conmon: ").or_else(|| line.strip_prefix("[conmon:e]: "));
    assert!(text.is_some_and(|text| !text.is_empty()), "{line:?}");
}

/// What the rest of the program may rely on.
fn check_options(options: &Options) {
    assert!(!options.log_drivers.is_empty());
    assert!(!options.log.rotate || options.log.max_files > 0);
    assert!(options.log.size_max != Some(0) && options.log.global_size_max != Some(0));
    assert!((1..1 << 16).contains(&options.log.line_max), "one read must hold the longest line");
    assert_eq!(options.log.file_mode & !0o666, 0);
    assert!(options.timeout.is_none_or(|timeout| !timeout.is_zero()));
    match &options.mode {
        Mode::Exec { attach, .. } => assert!(!attach || options.api_version == 1),
        Mode::Create | Mode::Restore { .. } => assert!(options.bundle.is_some() && options.cuuid.is_some()),
    }
    for driver in &options.log_drivers {
        if let LogDriver::K8sFile(path) | LogDriver::JsonFile(path) = driver {
            assert!(!path.as_os_str().is_empty());
        }
    }
    let argv = options.runtime_argv(None);
    assert_eq!(argv.first().map(OsString::as_os_str), Some(options.runtime.as_os_str()));
    assert_eq!(argv.last(), Some(&options.cid));
    match options.check_log() {
        Err(refusal) => check_refusal(&refusal),
        Ok(()) if options.log_drivers.contains(&LogDriver::Journald) => {
            assert!(options.cid.len() > 12);
            for label in &options.journal.labels {
                let sign = label.as_bytes().iter().position(|&byte| byte == b'=').expect("LABEL=VALUE");
                assert!(sign > 0 && label.as_bytes()[..sign].iter().all(|byte| !byte.is_ascii_lowercase()));
            }
        }
        Ok(()) => {}
    }
}
