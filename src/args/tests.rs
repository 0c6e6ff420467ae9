use std::os::unix::ffi::OsStringExt;

use super::*;

fn words(line: &[&str]) -> impl Iterator<Item = OsString> {
    line.iter().map(OsString::from).collect::<Vec<_>>().into_iter()
}

fn args(line: &[&str]) -> Args {
    match read(words(line), Charset::Utf8) {
        Ok(Typed::Args(args)) => *args,
        other => panic!("{line:?} gave {other:?}"),
    }
}

fn refusal(line: &[&str], charset: Charset) -> String {
    let Err(refusal) = read(words(line), charset) else { panic!("{line:?} was accepted") };
    let line = refusal.line();
    line.strip_prefix("conmon: option parsing failed: ").expect("prefix of the parser").to_owned()
}

fn text(value: &str) -> Text {
    Some(value.into())
}

fn list(values: &[&str]) -> List {
    values.iter().map(OsString::from).collect()
}

#[test]
fn a_long_option_takes_its_value() {
    let table: &[(&[&str], Args)] = &[
        (&["--cid", "a"], Args { cid: text("a"), ..Args::default() }),
        (&["--cid=a"], Args { cid: text("a"), ..Args::default() }),
        (&["--cid=a=b"], Args { cid: text("a=b"), ..Args::default() }),
        (&["--cid="], Args { cid: text(""), ..Args::default() }),
        (&["--cid", ""], Args { cid: text(""), ..Args::default() }),
        (&["--log-path", ""], Args { log_paths: list(&[""]), ..Args::default() }),
        // The next word is the value even if it looks like an option.
        (&["--log-max-files", "-1"], Args { log_max_files: Some(-1), ..Args::default() }),
        (&["--runtime-arg", "--root=/x"], Args { runtime_args: list(&["--root=/x"]), ..Args::default() }),
        (&["--exit-command-arg", "--syslog"], Args { exit_command_args: list(&["--syslog"]), ..Args::default() }),
        (&["--runtime-opt", "--tcp-close"], Args { runtime_opts: list(&["--tcp-close"]), ..Args::default() }),
        (&["--runtime-opt", "--"], Args { runtime_opts: list(&["--"]), ..Args::default() }),
        (&["--runtime-opt", "--help"], Args { runtime_opts: list(&["--help"]), ..Args::default() }),
    ];
    check(table);
}

#[test]
fn letters_cluster_and_take_the_next_word() {
    let table: &[(&[&str], Args)] = &[
        (&["-c", "abc"], Args { cid: text("abc"), ..Args::default() }),
        (&["-u", ""], Args { cuuid: text(""), ..Args::default() }),
        (&["-itc", "abc"], Args { stdin: true, terminal: true, cid: text("abc"), ..Args::default() }),
        (&["-ci", "abc"], Args { stdin: true, cid: text("abc"), ..Args::default() }),
        (&["-sec", "-i"], Args { systemd_cgroup: true, exec: true, cid: text("-i"), ..Args::default() }),
        (&["-0", "/p", "-P", "/c"], Args { persist_dir: text("/p"), conmon_pidfile: text("/c"), ..Args::default() }),
        (&["-p", "f", "-T", "5"], Args { container_pidfile: text("f"), timeout: Some(5), ..Args::default() }),
        (&["-b", "d", "-r", "r"], Args { bundle: text("d"), runtime: text("r"), ..Args::default() }),
        (&["-n", "x", "-l", "y"], Args { name: text("x"), log_paths: list(&["y"]), ..Args::default() }),
    ];
    check(table);
}

#[test]
fn flags_swallow_values_and_other_words_are_ignored() {
    let api = Args { api_version: true, ..Args::default() };
    let table: &[(&[&str], Args)] = &[
        (&["--terminal=foo"], Args { terminal: true, ..Args::default() }),
        (&["--api-version=0"], api.clone()),
        (&["--api-version", "1"], api.clone()),
        (&["--api-version", "0"], api.clone()),
        (&["word", "--api-version", "-", "", "word"], api.clone()),
        (&["--api-version", "--", "--cid", "a", "--foo", "--help"], api),
        (&[], Args::default()),
    ];
    check(table);
}

#[test]
fn scalars_keep_the_last_value_and_lists_keep_all() {
    let table: &[(&[&str], Args)] = &[
        (&["--cid", "a", "-c", "b"], Args { cid: text("b"), ..Args::default() }),
        (&["-T", "1", "--timeout=2"], Args { timeout: Some(2), ..Args::default() }),
        (&["-l", "a", "--log-path=b", "-l", "a"], Args { log_paths: list(&["a", "b", "a"]), ..Args::default() }),
        (&["--pidfile", "a"], Args { container_pidfile: text("a"), ..Args::default() }),
        (&["--pidfile", "a", "-p", "b"], Args { container_pidfile: text("b"), ..Args::default() }),
        (&["--runtime-opt", "a", "--restore-arg", "b"], Args { runtime_opts: list(&["a", "b"]), ..Args::default() }),
    ];
    check(table);
}

fn check(table: &[(&[&str], Args)]) {
    for (line, expected) in table {
        assert_eq!(&args(line), expected, "{line:?}");
    }
}

#[test]
fn numbers_have_the_base_they_look_like() {
    let size = |value: &str| args(&["--log-size-max", value]).log_size_max;
    let table = [
        ("10", 10),
        ("0x10", 16),
        ("0XfF", 255),
        ("010", 8),
        ("0", 0),
        ("-0x10", -16),
        ("+7", 7),
        (" \t\n7", 7),
        ("9223372036854775807", i64::MAX),
        ("-9223372036854775808", i64::MIN),
    ];
    for (value, expected) in table {
        assert_eq!(size(value), Some(expected), "{value:?}");
    }
    assert_eq!(args(&["--log-max-files=2147483647"]).log_max_files, Some(i32::MAX));
    assert_eq!(args(&["--log-max-files=-2147483648"]).log_max_files, Some(i32::MIN));
}

#[test]
fn mistakes_have_glib_words() {
    let table: &[(&[&str], &str)] = &[
        (&["--foo"], "Unknown option --foo"),
        (&["--foo=bar"], "Unknown option --foo=bar"),
        (&["--ver"], "Unknown option --ver"),
        (&["--versionx"], "Unknown option --versionx"),
        (&["--é"], "Unknown option --é"),
        (&["--=x"], "Unknown option --=x"),
        (&["---"], "Unknown option ---"),
        (&["--help=x"], "Unknown option --help=x"),
        (&["-v"], "Unknown option -v"),
        (&["-Xh"], "Unknown option -Xh"),
        (&["--cid"], "Missing argument for --cid"),
        (&["--pidfile"], "Missing argument for --pidfile"),
        (&["--timeout"], "Missing argument for --timeout"),
        (&["-it", "-c"], "Missing argument for -c"),
        (&["-cabc"], "Missing argument for -c"),
        (&["-c=abc"], "Missing argument for -c"),
        (&["-cabc", "x"], "Unknown option -cabc"),
        (&["-cu", "x", "y"], "Error parsing option -u"),
        (&["-T", "abc"], "Cannot parse integer value “abc” for -T"),
        (&["-T", ""], "Cannot parse integer value “” for -T"),
        (&["-T", "-"], "Cannot parse integer value “-” for -T"),
        (&["-T", "0x"], "Cannot parse integer value “0x” for -T"),
        (&["-T", "08"], "Cannot parse integer value “08” for -T"),
        (&["-T", "5 "], "Cannot parse integer value “5 ” for -T"),
        (&["-T", "1_0"], "Cannot parse integer value “1_0” for -T"),
        (&["-T", "+-5"], "Cannot parse integer value “+-5” for -T"),
        (&["--log-size-max=1.5"], "Cannot parse integer value “1.5” for --log-size-max"),
        (&["--log-max-files", "2147483648"], "Integer value “2147483648” for --log-max-files out of range"),
        (&["--log-max-files", "-2147483649"], "Integer value “-2147483649” for --log-max-files out of range"),
        (
            &["--log-size-max", "9223372036854775808"],
            "Integer value “9223372036854775808” for --log-size-max out of range",
        ),
        // The first mistake counts, and help asked for after it is not given.
        (&["--foo", "--help"], "Unknown option --foo"),
    ];
    for (line, expected) in table {
        assert_eq!(refusal(line, Charset::Utf8), *expected, "{line:?}");
    }
}

#[test]
fn outside_utf_8_quotes_are_question_marks() {
    for charset in [Charset::Ascii, Charset::Other] {
        assert_eq!(refusal(&["-T", "äb"], charset), "Cannot parse integer value ??b? for -T");
        assert_eq!(refusal(&["--é"], charset), "Unknown option --?");
    }
}

#[test]
fn help_ends_the_parse() {
    for line in [&["-h"][..], &["--help"], &["--help-all"], &["-?"], &["-ith"], &["-hX"], &["--help", "--foo"]] {
        assert_eq!(read(words(line), Charset::Ascii), Ok(Typed::Help), "{line:?}");
    }
    assert_eq!(read(words(&["-ch", "x"]), Charset::Ascii), Ok(Typed::Help), "help behind a letter with a value");
}

#[test]
fn every_name_and_letter_is_known() {
    for name in LONG_OPTIONS {
        assert!(Args::default().slot(name).is_some(), "--{name}");
    }
    let letters: String = (0..=u8::MAX).filter(|&letter| long_name(letter).is_some()).map(char::from).collect();
    assert_eq!(letters, "0PTbceilnprstu");
    for name in letters.bytes().filter_map(long_name) {
        assert!(LONG_OPTIONS.contains(&name), "{name}");
    }
}

#[test]
fn the_locale_decides_which_bytes_are_text() {
    let bytes: [(&[u8], [bool; 3]); 4] = [
        (b"plain", [true, true, true]),
        ("äöüß".as_bytes(), [false, true, true]),
        (b"\xff", [false, false, true]),
        (b"", [true, true, true]),
    ];
    for (value, accepted) in bytes {
        for (charset, accepted) in [Charset::Ascii, Charset::Utf8, Charset::Other].into_iter().zip(accepted) {
            for option in ["--log-tag", "--log-path", "-c"] {
                let line = [OsString::from(option), OsString::from_vec(value.to_vec())];
                let result = read(line.into_iter(), charset);
                let expected = "conmon: option parsing failed: Invalid byte sequence in conversion input";
                match result {
                    Ok(_) => assert!(accepted, "{option} {value:?} {charset:?}"),
                    Err(refusal) => {
                        assert_eq!(refusal.line(), expected);
                        assert!(!accepted, "{option} {value:?} {charset:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn the_first_locale_variable_that_is_set_decides() {
    use Charset::{Ascii, Other, Utf8};
    let table: &[(&[(&str, &str)], Charset)] = &[
        (&[], Ascii),
        (&[("LANG", "")], Ascii),
        (&[("LANG", "C")], Ascii),
        (&[("LANG", "POSIX")], Ascii),
        (&[("LANG", "en_US.UTF-8")], Utf8),
        (&[("LANG", "C.utf8")], Utf8),
        (&[("LANG", "C.UTF-8")], Utf8),
        (&[("LANG", "de_DE.UTF-8@euro")], Utf8),
        (&[("LANG", "de_DE@euro")], Other),
        (&[("LANG", "de_DE.ISO-8859-1")], Other),
        (&[("LC_CTYPE", "C"), ("LANG", "en_US.UTF-8")], Ascii),
        (&[("LC_CTYPE", "en_US.UTF-8"), ("LANG", "C")], Utf8),
        (&[("LC_ALL", "C"), ("LC_CTYPE", "en_US.UTF-8"), ("LANG", "en_US.UTF-8")], Ascii),
        (&[("LC_ALL", "C.UTF-8"), ("LC_CTYPE", "C")], Utf8),
        (&[("LC_ALL", ""), ("LC_CTYPE", ""), ("LANG", "C.UTF-8")], Utf8),
        (&[("LC_MESSAGES", "en_US.UTF-8")], Ascii),
    ];
    for (variables, expected) in table {
        let env = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
        assert_eq!(Charset::of(&env), *expected, "{variables:?}");
    }
}
