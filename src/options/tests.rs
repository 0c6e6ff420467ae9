use super::*;

const BASE: [&str; 8] = ["-c", "0123456789abcdef", "-u", "uuid", "-r", "/", "-l", "none"];

fn words(line: &[&str]) -> impl Iterator<Item = OsString> {
    line.iter().map(OsString::from).collect::<Vec<_>>().into_iter()
}

fn no_env(_: &str) -> Option<OsString> {
    None
}

/// What a line means in front of a complete one, so that every option is given in a line that is accepted.
fn accepted(line: &[&str]) -> Options {
    let line = [&BASE, line].concat();
    match parse(words(&line), &no_env) {
        Ok(Parsed::Run(options, _)) => *options,
        other => panic!("{line:?} gave {other:?}"),
    }
}

fn refused(line: &[&str]) -> String {
    match parse(words(line), &no_env) {
        Err(refusal) => refusal.line(),
        other => panic!("{line:?} gave {other:?}"),
    }
}

#[test]
fn refusals_are_conmons() {
    let table: &[(&[&str], &str)] = &[
        (&["--foo"], "conmon: option parsing failed: Unknown option --foo"),
        (&["--version", "--foo"], "conmon: option parsing failed: Unknown option --foo"),
        (&["--log-max-files", "-1"], "conmon: log-max-files must be non-negative, got -1"),
        (
            &["--log-rotate", "--log-max-files", "0"],
            "conmon: log-max-files must be at least 1 when log-rotate is enabled, got 0",
        ),
        (&[], "conmon: Container ID not provided. Use --cid"),
        (&["-c", "a", "--log-level", "foo"], "[conmon:e]: No such log level foo"),
        (&["-c", "a", "--restore", "x", "-e"], "[conmon:e]: Cannot use 'exec' and 'restore' at the same time"),
        (&["-c", "a", "--exec-attach"], "[conmon:e]: Attach can only be specified with exec"),
        (&["-c", "a", "--exec-attach", "-e"], "[conmon:e]: Attach can only be specified for a non-legacy exec session"),
        (&["-c", "a"], "[conmon:e]: Container UUID not provided. Use --cuuid"),
        (&["-c", "", "--restore", ""], "[conmon:e]: Container UUID not provided. Use --cuuid"),
        (&["-c", "a", "-e", "--api-version", "1"], "[conmon:e]: Container UUID not provided. Use --cuuid"),
        (&["-c", "a", "-e"], "[conmon:e]: Runtime path not provided. Use --runtime"),
        (&["-c", "a", "-u", ""], "[conmon:e]: Runtime path not provided. Use --runtime"),
        (
            &["-c", "a", "-u", "u", "-r", "/nowhere/x"],
            "[conmon:e]: Runtime path /nowhere/x is not valid No such file or directory",
        ),
        (&["-c", "a", "-u", "u", "-r", ""], "[conmon:e]: Runtime path  is not valid No such file or directory"),
        (
            &["-c", "a", "-u", "u", "-r", "/proc/version"],
            "[conmon:e]: Runtime path /proc/version is not valid Permission denied",
        ),
        (&["-c", "a", "-e", "-r", "/"], "[conmon:e]: Exec process spec path not provided. Use --exec-process-spec"),
        (
            &["-c", "a", "-u", "u", "-r", "/", "--exit-delay", "-1"],
            "[conmon:e]: Delay before invoking exit command must be greater than or equal to 0",
        ),
        (&["-c", "a", "-u", "u", "-r", "/"], "[conmon:e]: Log driver not provided. Use --log-path"),
        (&["-c", "a", "-u", "u", "-r", "/", "-l", ""], "[conmon:e]: log-path must not be empty"),
        (&["-c", "a", "-u", "u", "-r", "/", "-l", "k8s-file"], "[conmon:e]: k8s-file requires a filename"),
        (&["-c", "a", "-u", "u", "-r", "/", "-l", "none", "-l", "X:y", "-l", ""], "[conmon:e]: No such log driver X"),
    ];
    for (line, expected) in table {
        assert_eq!(refused(line), *expected, "{line:?}");
    }
}

/// Everything wrong at once, then mended from the front: the complaints come in the order of the contract.
#[test]
fn refusals_come_in_order() {
    let mut line = vec!["--log-rotate", "--log-max-files", "-1", "--exit-delay", "-1", "--log-level", "foo"];
    line.extend(["--exec-attach", "--exec", "--restore", "x"]);
    let mut mended = |words: &[&'static str], gone: &[&str]| {
        line.extend(words);
        line.retain(|word| !gone.contains(word));
        refused(&line)
    };
    let steps: &[(&[&str], &[&str], &str)] = &[
        (&[], &[], "log-max-files must be non-negative"),
        (&["--log-max-files", "0"], &[], "log-max-files must be at least 1"),
        (&["--log-max-files", "1"], &[], "Container ID not provided"),
        (&["--cid="], &[], "No such log level foo"),
        (&["--log-level", "INFO"], &[], "Cannot use 'exec' and 'restore'"),
        (&[], &["--exec"], "Attach can only be specified with exec"),
        (&["--exec"], &["--restore"], "non-legacy exec session"),
        (&["--api-version"], &[], "Container UUID not provided"),
        (&["--cuuid="], &[], "Runtime path not provided"),
        (&["--runtime=/nowhere"], &[], "Runtime path /nowhere is not valid"),
        (&["--runtime=/"], &[], "Exec process spec path not provided"),
        (&["--exec-process-spec=s"], &[], "Delay before invoking exit command"),
        (&["--exit-delay=0"], &[], "Log driver not provided"),
    ];
    for (words, gone, expected) in steps {
        let said = mended(words, gone);
        assert!(said.contains(expected), "{said} instead of {expected}");
    }
}

#[test]
fn a_lost_working_directory_is_refused_after_the_process_spec() {
    let check = |line: &[&str]| {
        let Ok(Typed::Args(args)) = args::read(words(line), Charset::Ascii) else { panic!("{line:?}") };
        Options::check(*args, &no_env, Err(io::Error::from_raw_os_error(2))).map(|_| ()).map_err(|e| e.line())
    };
    let expected = Err("[conmon:e]: Failed to get working directory".to_owned());
    assert_eq!(check(&["-c", "a", "-u", "u", "-r", "/", "--exit-delay", "-1"]), expected);
    assert!(check(&["-c", "a", "-e", "-r", "/"]).is_err_and(|line| line.contains("process spec")));
}

#[test]
fn native_options_are_checked() {
    let table: &[(&[&str], &str)] = &[
        (&["--log-line-max", "255"], "conmon: log-line-max must be between 256 and 49152, got 255"),
        (&["--log-line-max", "49153"], "conmon: log-line-max must be between 256 and 49152, got 49153"),
        (&["--log-line-max", "-1"], "conmon: log-line-max must be between 256 and 49152, got -1"),
        (&["--log-file-mode", "0700"], "conmon: log-file-mode must be octal with no bits outside 0666, got 0700"),
        (&["--log-file-mode", "888"], "conmon: log-file-mode must be octal with no bits outside 0666, got 888"),
        (&["--log-file-mode", "+600"], "conmon: log-file-mode must be octal with no bits outside 0666, got +600"),
        (&["--log-file-mode", ""], "conmon: log-file-mode must be octal with no bits outside 0666, got "),
        (&["--attach-stall-timeout", "-1"], "conmon: attach-stall-timeout must be non-negative, got -1"),
        (&["--history-held-max", "-5"], "conmon: history-held-max must be non-negative, got -5"),
    ];
    for (line, expected) in table {
        assert_eq!(refused(&[&BASE, *line].concat()), *expected, "{line:?}");
    }
    assert_eq!(accepted(&["--log-line-max", "256"]).log.line_max, 256);
    assert_eq!(accepted(&["--log-line-max", "49152"]).log.line_max, 49_152);
    assert_eq!(accepted(&["--log-file-mode", "600"]).log.file_mode, 0o600);
    assert!(accepted(&["--log-utc"]).log.utc);
    assert_eq!(accepted(&["--attach-stall-timeout", "0"]).attach_stall_timeout, None);
    assert_eq!(accepted(&["--attach-stall-timeout", "9"]).attach_stall_timeout, Some(Duration::from_secs(9)));
    assert_eq!(accepted(&["--history-held-max", "0"]).history_held_max, 0);
    assert_eq!(accepted(&["--history-held-max", "4096"]).history_held_max, 4096);
}

#[test]
fn defaults() {
    let options = accepted(&[]);
    let cwd = std::env::current_dir().expect("tests have a working directory");
    assert_eq!(options.mode, Mode::Create);
    assert_eq!(options.api_version, 0);
    assert_eq!(options.bundle.as_deref(), Some(cwd.as_path()));
    assert_eq!(options.container_pidfile, cwd.join("pidfile-0123456789abcdef"));
    assert_eq!(options.conmon_pidfile, None);
    assert_eq!(options.socket_dir, PathBuf::from("/var/run/crio"));
    assert_eq!((options.exit_dir, options.persist_dir, options.exit_command), (None, None, None));
    assert_eq!((options.exit_delay, options.timeout), (Duration::ZERO, None));
    assert_eq!(options.log_level, Level::Warning);
    assert_eq!(options.history_held_max, 67_108_864);
    assert_eq!(options.attach_stall_timeout, None);
    assert_eq!(options.sdnotify_socket, None);
    let log = LogPolicy {
        size_max: None,
        global_size_max: None,
        rotate: false,
        max_files: 1,
        allowlist: Vec::new(),
        sync: true,
        line_max: 32_768,
        utc: false,
        file_mode: 0o640,
    };
    assert_eq!(options.log, log);
    let journal = JournalIdentity { tag: None, labels: Vec::new(), mark_partial: true, parse_priority: true };
    assert_eq!(options.journal, journal);
    let flags = [
        options.no_pivot,
        options.no_new_keyring,
        options.systemd_cgroup,
        options.replace_listen_pid,
        options.terminal,
        options.stdin,
        options.leave_stdin_open,
        options.full_attach,
        options.foreground,
        options.syslog,
    ];
    assert_eq!(flags, [false; 10]);
}

/// Each option by itself changes what it should and leaves the other flags alone.
#[test]
fn every_flag_reaches_its_field() {
    let flags = |o: &Options| {
        let own = [o.no_pivot, o.no_new_keyring, o.systemd_cgroup, o.replace_listen_pid, o.terminal, o.stdin];
        let more = [o.leave_stdin_open, o.full_attach, o.foreground, o.syslog, o.log.rotate, !o.log.sync, o.log.utc];
        [&own[..], &more[..], &[!o.journal.mark_partial, o.api_version == 1]].concat()
    };
    let names = [
        "--no-pivot",
        "--no-new-keyring",
        "--systemd-cgroup",
        "--replace-listen-pid",
        "--terminal",
        "--stdin",
        "--leave-stdin-open",
        "--full-attach",
        "--sync",
        "--syslog",
        "--log-rotate",
        "--no-sync-log",
        "--log-utc",
        "--no-container-partial-message",
        "--api-version",
    ];
    for (index, name) in names.iter().enumerate() {
        let set: Vec<usize> =
            flags(&accepted(&[name])).iter().enumerate().filter(|(_, set)| **set).map(|(i, _)| i).collect();
        assert_eq!(set, [index], "{name}");
    }
}

#[test]
fn every_value_reaches_its_field() {
    let line = "-b relative/../b -P cp -p p -n name --exit-dir e -0 per --exit-command c --exit-command-arg a1 \
                --exit-command-arg a2 --exit-delay 3 -T 7 --socket-dir-path s --sdnotify-socket @n --log-tag t \
                --log-label A=b --log-allowlist-dir d1 --log-allowlist-dir d2 --log-size-max 100 \
                --log-global-size-max 0x100 --log-max-files 4 --log-level DEBUG --runtime-arg ra --runtime-opt ro";
    let options = accepted(&line.split_whitespace().collect::<Vec<_>>());
    assert_eq!(options.bundle.map(PathBuf::into_os_string), Some("relative/../b".into()), "as typed");
    assert_eq!(options.conmon_pidfile, Some("cp".into()));
    assert_eq!(options.container_pidfile, PathBuf::from("p"));
    assert_eq!(options.name, Some("name".into()));
    assert_eq!(options.exit_dir, Some("e".into()));
    assert_eq!(options.persist_dir, Some("per".into()));
    assert_eq!(options.exit_command, Some("c".into()));
    assert_eq!(options.exit_command_args, ["a1", "a2"]);
    assert_eq!(options.exit_delay, Duration::from_secs(3));
    assert_eq!(options.timeout, Some(Duration::from_secs(7)));
    assert_eq!(options.socket_dir, PathBuf::from("s"));
    assert_eq!(options.sdnotify_socket, Some("@n".into()));
    assert_eq!(options.journal.tag, Some("t".into()));
    assert_eq!(options.journal.labels, ["A=b"]);
    assert_eq!(options.log.allowlist, [PathBuf::from("d1"), PathBuf::from("d2")]);
    assert_eq!((options.log.size_max, options.log.global_size_max), (Some(100), Some(256)));
    assert_eq!(options.log.max_files, 4);
    assert_eq!(options.log_level, Level::Debug);
    assert_eq!(options.runtime_args, ["ra"]);
    assert_eq!(options.runtime_opts, ["ro"]);
    assert_eq!(options.cuuid, Some("uuid".into()));
}

#[test]
fn no_limit_is_zero_or_less_and_empty_is_unwanted() {
    for value in ["0", "-1", "-9"] {
        let options = accepted(&["--log-size-max", value, "--log-global-size-max", value, "-T", value]);
        assert_eq!((options.log.size_max, options.log.global_size_max, options.timeout), (None, None, None));
    }
    let empty = ["--exit-dir=", "--persist-dir=", "--exit-command=", "--sdnotify-socket=", "--log-tag=", "--name="];
    let options = accepted(&empty);
    assert_eq!((options.exit_dir, options.persist_dir, options.exit_command), (None, None, None));
    assert_eq!(options.sdnotify_socket, None);
    assert_eq!((options.journal.tag, options.name), (Some("".into()), Some("".into())), "given, though empty");
}

#[test]
fn modes() {
    let exec = accepted(&["-e", "--exec-process-spec", "s", "--api-version", "--exec-attach"]);
    assert_eq!(exec.mode, Mode::Exec { process: "s".into(), attach: true });
    assert_eq!(exec.bundle, None, "exec has no bundle but the one it is given");
    assert!(exec.container_pidfile.ends_with("pidfile-0123456789abcdef"));
    let exec = accepted(&["-e", "--exec-process-spec", "s", "-b", "b"]);
    assert_eq!(exec.mode, Mode::Exec { process: "s".into(), attach: false });
    assert_eq!(exec.bundle, Some("b".into()));
    let restore = accepted(&["--restore", "image"]);
    assert_eq!(restore.mode, Mode::Restore { image: "image".into() });
    assert!(restore.bundle.is_some());
}

#[test]
fn old_seccomp_options_do_nothing() {
    let plain = format!("{:?}", accepted(&[]));
    assert_eq!(format!("{:?}", accepted(&["--seccomp-notify-socket", "s", "--seccomp-notify-plugins=p"])), plain);
}

#[test]
fn the_environment_turns_priorities_off() {
    for (value, parse_priority) in [(Some("off"), false), (Some("on"), true), (Some(""), true), (None, true)] {
        let env = |name: &str| value.filter(|_| name == "CONWARD_JOURNALD_PRIORITY").map(OsString::from);
        let Ok(Parsed::Run(options, _)) = parse(words(&BASE), &env) else { panic!("{value:?}") };
        assert_eq!(options.journal.parse_priority, parse_priority, "{value:?}");
    }
}

#[test]
fn the_locale_comes_from_the_given_environment() {
    let line = [&BASE[..], &["--log-tag", "äöüß"]].concat();
    for (lang, accepted) in [("en_US.UTF-8", true), ("C", false)] {
        let env = |name: &str| (name == "LANG").then(|| OsString::from(lang));
        assert_eq!(parse(words(&line), &env).is_ok(), accepted, "{lang}");
    }
}

#[test]
fn partial_marks_need_journald() {
    let warnings = |line: &[&str]| match parse(words(&[&BASE, line].concat()), &no_env) {
        Ok(Parsed::Run(_, warnings)) => warnings,
        other => panic!("{other:?}"),
    };
    let warning = "--no-container-partial-message has no effect without journald log driver";
    assert_eq!(warnings(&["--no-container-partial-message"]), [warning]);
    assert!(warnings(&["--no-container-partial-message", "-l", "journald"]).is_empty());
    assert!(warnings(&[]).is_empty());
}

#[test]
fn help_and_version_need_nothing_else() {
    assert!(matches!(parse(words(&["--help"]), &no_env), Ok(Parsed::Help(text)) if text == usage::help()));
    for line in [&["--version"][..], &["--version=3", "--log-level", "foo", "--log-max-files=-1"]] {
        assert!(matches!(parse(words(line), &no_env), Ok(Parsed::Version(text)) if text == usage::version()));
    }
}
