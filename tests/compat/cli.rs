//! The command line: what is refused, in which words and in which order; what is accepted; what `--version` says.

use std::fs;

use crate::support::scene::{CID, Scene};
use crate::support::suite::{Case, Column, Monitor};
use crate::support::{Fail, Outcome, check, contains, same};

pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        Case::new("cli/version", "1.5", "--version: two lines, third word is strict semver", version),
        Case::new("cli/version-after-parse", "1.3 #2", "--version does not excuse an unknown option", version_checks),
        Case::new("cli/help", "1.2", "--help names what callers grep for", help),
        Case::new("cli/help-22", "1.2", "--help names journald", |m| help_has(m, "journald")).since("2.2"),
        Case::new("cli/next-complaint", "1.3", "one more option each time brings the next complaint", next_complaint),
        Case::new(
            "cli/api-version-is-a-flag",
            "1.1",
            "--api-version 0 means 1; the word behind it is ignored",
            api_flag,
        ),
        Case::new("cli/dashed-value", "1.1", "values that begin with a dash are values", dashed_value),
        Case::new("cli/double-dash", "1.1", "everything after -- is ignored", double_dash),
        Case::new("cli/cluster", "1.1", "-ic ID: a cluster with one value", cluster),
        Case::new("cli/last-wins", "1.1", "a scalar option given twice: the last one wins", last_wins),
        Case::new("cli/equals", "1.1", "--opt=value and a flag with =value", equals),
        Case::new("cli/locale-c", "1.4", "C locale: a value with a byte >= 0x80 is refused", |m| locale(m, "C", false)),
        Case::new("cli/locale-utf8", "1.4", "UTF-8 locale: the same value is accepted", |m| locale(m, "C.UTF-8", true)),
        Case::new(
            "cli/directory-as-runtime",
            "1.3",
            "a directory passes as runtime; the front still says 0",
            directory,
        ),
    ];
    cases.extend(refusals());
    cases.extend(drivers());
    cases.extend(accepted());
    cases
}

/// A change to a good command line, and what must be on stderr when it is refused.
type Refusal = (&'static str, &'static str, fn(&mut Scene) -> &mut Scene, &'static str, &'static str);

/// (id, clause, change, text on stderr, first conmon that does so; empty for all).
const REFUSALS: [Refusal; 31] = [
    ("unknown-option", "1.3 #1", |s| s.flag("--foo"), "conmon: option parsing failed: Unknown option --foo", ""),
    ("abbreviation", "1.1", |s| s.flag("--ver"), "Unknown option --ver", ""),
    ("missing-argument", "1.3 #1", |s| s.flag("--cuuid"), "Missing argument for --cuuid", ""),
    ("short-attached", "1.1", |s| s.flag("-cabc"), "conmon: option parsing failed: ", ""),
    ("not-a-number", "1.3 #1", |s| s.set("-T", "abc"), "Cannot parse integer value", ""),
    (
        "max-files-range",
        "1.3 #1",
        |s| s.set("--log-max-files", "2147483648"),
        " for --log-max-files out of range",
        "2.2",
    ),
    ("timeout-range", "1.3 #1", |s| s.set("-T", "2147483648"), "out of range", ""),
    ("max-files-negative", "1.3 #3", |s| s.set("--log-max-files", "-1"), "must be non-negative, got -1", "2.2"),
    (
        "rotate-without-files",
        "1.3 #4",
        |s| s.flag("--log-rotate").set("--log-max-files", "0"),
        "log-max-files must be at least 1 when log-rotate is enabled, got 0",
        "2.2",
    ),
    ("no-cid", "1.3 #5", |s| s.without("-c"), "conmon: Container ID not provided. Use --cid", ""),
    ("log-level", "1.3 #6", |s| s.set("--log-level", "foo"), "No such log level foo", ""),
    (
        "restore-and-exec",
        "1.3 #7",
        |s| s.flag("-e").set("--restore", "/x"),
        "Cannot use 'exec' and 'restore' at the same time",
        "",
    ),
    ("attach-without-exec", "1.3 #8", |s| s.flag("--exec-attach"), "Attach can only be specified with exec", ""),
    (
        "attach-legacy",
        "1.3 #9",
        |s| s.flag("-e").flag("--exec-attach"),
        "Attach can only be specified for a non-legacy exec session",
        "",
    ),
    ("no-cuuid", "1.3 #10", |s| s.without("-u"), "Container UUID not provided. Use --cuuid", ""),
    (
        "no-cuuid-exec-api1",
        "1.3 #10",
        |s| s.without("-u").flag("-e").flag("--api-version"),
        "Container UUID not provided. Use --cuuid",
        "",
    ),
    ("no-runtime", "1.3 #11", |s| s.without("-r"), "Runtime path not provided. Use --runtime", ""),
    (
        "bad-runtime",
        "1.3 #12",
        |s| s.set("-r", "/not/there"),
        "Runtime path /not/there is not valid No such file or directory",
        "2.2",
    ),
    ("bad-runtime-path", "1.3 #12", |s| s.set("-r", "/not/there"), "Runtime path /not/there is not valid", ""),
    ("no-spec", "1.3 #13", |s| s.flag("-e"), "Exec process spec path not provided. Use --exec-process-spec", ""),
    (
        "negative-delay",
        "1.3 #15",
        |s| s.set("--exit-delay", "-1"),
        "Delay before invoking exit command must be greater than or equal to 0",
        "",
    ),
    ("no-log", "1.3 #16", |s| s.without("-l"), "Log driver not provided. Use --log-path", ""),
    ("log-dir-missing", "1.3 #18", |s| s.set("-l", "k8s-file:/not/there/log"), "Failed to open log file", ""),
    ("k8s-tag", "1.3 #19", |s| s.set("--log-tag", "tag"), "k8s-file doesn't support --log-tag", ""),
    ("k8s-label", "1.3 #20", |s| s.set("--log-label", "A=b"), "k8s-file doesn't support --log-label", "2.2"),
    (
        "journald-short-cid",
        "1.3 #21",
        |s| s.set("-l", "journald").set("-c", "short"),
        "Container ID must be longer than 12 characters",
        "",
    ),
    (
        "label-no-name",
        "1.3 #22",
        |s| s.set("-l", "journald").set("--log-label", "=A"),
        "Container labels must be in format LABEL=VALUE (no LABEL present in '=A')",
        "2.2",
    ),
    (
        "label-no-equals",
        "1.3 #23",
        |s| s.set("-l", "journald").set("--log-label", "A"),
        "Container labels must be in format LABEL=VALUE (none or more than one '=' present in 'A')",
        "2.2",
    ),
    (
        "label-two-equals",
        "1.3 #23",
        |s| s.set("-l", "journald").set("--log-label", "A=b=c"),
        "(none or more than one '=' present in 'A=b=c')",
        "2.2",
    ),
    (
        "label-lower-case",
        "1.3 #24",
        |s| s.set("-l", "journald").set("--log-label", "a=b"),
        "Container label names must contain only uppercase letters, numbers and underscore (in 'a=b')",
        "2.2",
    ),
    ("startpipe-word", "2.1", |s| s.env("_OCI_STARTPIPE", "abc"), "unable to parse _OCI_STARTPIPE", ""),
];

fn refusals() -> Vec<Case> {
    let case = |(id, clause, change, text, since): Refusal| {
        let case = Case::new(&format!("refuse/{id}"), clause, &format!("exit 1: {text}"), move |monitor: &Monitor| {
            let mut scene = Scene::create(monitor)?;
            scene.env("LC_ALL", "C");
            change(&mut scene);
            refused(monitor, &mut scene, text)
        });
        if since.is_empty() { case } else { case.since(since) }
    };
    REFUSALS.into_iter().map(case).collect()
}

fn refused(monitor: &Monitor, scene: &mut Scene, text: &str) -> Outcome {
    let (code, stdout, stderr) = scene.front()?;
    same("exit status", code, 1)?;
    match monitor.column {
        // Before 2.2 conmon said what is wrong with the words on stdout; callers read both together.
        Column::Conmon => contains("stdout and stderr", &(stdout + &stderr), text),
        Column::Conward => contains("stderr", &stderr, text),
    }
}

/// `--log-path` values: what is said, or which file is made.
fn drivers() -> Vec<Case> {
    let bad: [(&str, &str); 10] = [
        ("", "log-path must not be empty"),
        (":", "log-path must not be empty"),
        ("::", "log-path must not be empty"),
        ("k8s-file", "k8s-file requires a filename"),
        ("k8s-file:", "k8s-file requires a filename"),
        ("foo:", "No such log driver foo"),
        ("foo:/x", "No such log driver foo"),
        ("k8s-file:/not/there", "Failed to open log file"),
        ("/not/there", "Failed to open log file"),
        (":/not/there", "Failed to open log file"),
    ];
    let good: [(&str, Option<&str>); 17] = [
        ("k8s-file:made", Some("made")),
        ("made", Some("made")),
        (":made", Some("made")),
        (":none", Some("none")),
        (":journald", Some("journald")),
        ("NONE", Some("NONE")),
        ("json-file", Some("json-file")),
        ("none", None),
        ("none:", None),
        ("off", None),
        ("off:", None),
        ("null", None),
        ("null:", None),
        ("journald", None),
        ("journald:", None),
        ("journald:x", None),
        ("passthrough", None),
    ];
    let mut cases = Vec::new();
    for (value, text) in bad {
        // 2.1.6 crashes on some of these; what it says is the same where it says something.
        let case = Case::new(&format!("driver/refuse:{value}"), "7.1", text, move |monitor: &Monitor| {
            let mut scene = Scene::create(monitor)?;
            refused(monitor, scene.set("-l", value), text)
        });
        cases.push(case);
    }
    for (value, file) in good {
        let what = file.map_or("accepted, makes no file".to_owned(), |file| format!("accepted, makes the file {file}"));
        cases.push(Case::new(&format!("driver/accept:{value}"), "7.1", &what, move |m: &Monitor| {
            driver(m, value, file)
        }));
    }
    cases.push(Case::new("driver/several", "7.1", "several drivers at once", several_drivers));
    cases.push(Case::new("driver/several-one-bad", "1.3 #17", "several drivers, one of them unknown", |monitor| {
        let mut scene = Scene::create(monitor)?;
        refused(monitor, scene.add("-l", "journald:").add("-l", "foo:"), "No such log driver foo")
    }));
    cases.push(
        Case::new("driver/colon-in-path", "11 B29", "k8s-file:a:b is the file a:b", |m| {
            driver(m, "k8s-file:a:b", Some("a:b"))
        })
        .defect("B29"),
    );
    cases
}

fn driver(monitor: &Monitor, value: &str, file: Option<&str>) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    let cwd = scene.dir.join("cwd");
    fs::create_dir(&cwd)?;
    scene.cwd(&cwd).set("-l", value);
    let mut live = scene.spawn()?;
    same("exit status of the front", live.front_end()?, 0)?;
    let made = names(&cwd)?;
    same(
        "files in the working directory when the front has ended",
        made,
        file.into_iter().map(str::to_owned).collect(),
    )?;
    live.end()?;
    Ok(())
}

fn several_drivers(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    scene.add("-l", "journald:").add("-l", "none:").script("echo hi")?;
    let (live, _) = scene.run()?;
    same("log", live.plain_log()?, vec!["stdout F hi".to_owned()])
}

fn names(dir: &std::path::Path) -> Outcome<Vec<String>> {
    let mut names: Vec<_> =
        fs::read_dir(dir)?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    Ok(names)
}

/// Things that must not be refused.
fn accepted() -> Vec<Case> {
    type Row = (&'static str, &'static str, fn(&mut Scene) -> &mut Scene, &'static str);
    let rows: [Row; 11] = [
        ("empty-cuuid", "1.1", |s| s.set("-u", "").flag("--full-attach"), ""),
        ("positional-words", "1.1", |s| s.flag("some").flag("words"), ""),
        ("log-size-zero", "7.4", |s| s.set("--log-size-max", "0"), ""),
        ("log-size-50", "7.4", |s| s.set("--log-size-max", "50"), ""),
        ("log-size-1mib", "7.4", |s| s.set("--log-size-max", "1048576"), ""),
        ("log-size-negative", "1.2", |s| s.set("--log-size-max", "-1"), ""),
        ("hex-and-octal", "1.1", |s| s.set("--log-size-max", "0x1000").set("-T", "010"), ""),
        ("max-files-without-rotate", "1.2", |s| s.set("--log-max-files", "5"), "2.2"),
        ("level-upper-case", "7.11", |s| s.set("--log-level", "WARNING"), ""),
        ("allowlist", "7.7", |s| s.set("--log-allowlist-dir", "/tmp"), "2.2"),
        ("no-new-keyring", "1.2", |s| s.flag("--no-new-keyring").flag("--no-pivot").flag("--no-sync-log"), ""),
    ];
    let case = |(id, clause, change, since): Row| {
        let case = Case::new(&format!("accept/{id}"), clause, "accepted, the container runs", move |m: &Monitor| {
            let mut scene = Scene::create(m)?;
            scene.script("exit 5")?;
            change(&mut scene);
            same("exit status of the daemon", scene.run()?.1, 5)
        });
        if since.is_empty() { case } else { case.since(since) }
    };
    let mut cases: Vec<Case> = rows.into_iter().map(case).collect();
    for level in ["error", "fatal", "panic", "warn", "warning", "info", "debug", "trace"] {
        cases.push(Case::new(
            &format!("accept/level-{level}"),
            "7.11",
            "a known log level",
            move |monitor: &Monitor| {
                let mut scene = Scene::create(monitor)?;
                scene.set("--log-level", level);
                scene.run().map(drop)
            },
        ));
    }
    cases.push(
        Case::new("accept/partial-message-warning", "1.3 #25", "a warning on stderr, exit 0", |monitor| {
            let mut scene = Scene::create(monitor)?;
            let (code, _, stderr) = scene.flag("--no-container-partial-message").front()?;
            same("exit status", code, 0)?;
            let text = "[conmon:w]: --no-container-partial-message has no effect without journald log driver";
            contains("stderr", &stderr, text)
        })
        .since("2.2"),
    );
    cases
}

fn version(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::bare(monitor)?;
    let (code, stdout, stderr) = scene.flag("--version").front()?;
    same("exit status", code, 0)?;
    same("stderr", stderr.as_str(), "")?;
    let mut lines = stdout.lines();
    let first: Vec<&str> = lines.next().unwrap_or_default().split(' ').collect();
    same("first words", first.get(..2), Some(&["conmon", "version"][..]))?;
    same("words on line 1", first.len(), 3)?;
    let semver = first[2].split('.').filter(|part| part.parse::<u32>().is_ok()).count() == 3;
    check(semver, format!("expected X.Y.Z, saw {:?}", first[2]))?;
    check(lines.next().is_some_and(|line| line.starts_with("commit: ")), format!("no commit line in {stdout:?}"))?;
    match monitor.column {
        Column::Conmon => Ok(()),
        Column::Conward => same("version (callers want >= 2.2.0)", first[2], "2.2.1"),
    }
}

fn version_checks(monitor: &Monitor) -> Outcome {
    refused(monitor, Scene::bare(monitor)?.flag("--version").flag("--foo"), "Unknown option --foo")
}

fn help(monitor: &Monitor) -> Outcome {
    help_has(monitor, "--exec")?;
    help_has(monitor, "--log-global-size-max")
}

fn help_has(monitor: &Monitor, word: &str) -> Outcome {
    for option in ["--help", "-h"] {
        let (code, stdout, _) = Scene::bare(monitor)?.flag(option).front()?;
        same("exit status", code, 0)?;
        contains("stdout", &stdout, word)?;
    }
    Ok(())
}

fn next_complaint(monitor: &Monitor) -> Outcome {
    let steps: [(&str, &str, &str); 4] = [
        ("-c", CID, "Container UUID not provided. Use --cuuid"),
        ("-u", CID, "Runtime path not provided. Use --runtime"),
        ("-r", "/invalid", "Runtime path /invalid is not valid"),
        ("-r", "/tmp", "Log driver not provided. Use --log-path"),
    ];
    let mut scene = Scene::bare(monitor)?;
    refused(monitor, &mut scene, "conmon: Container ID not provided. Use --cid")?;
    for (option, value, text) in steps {
        refused(monitor, scene.set(option, value), text)?;
    }
    Ok(())
}

fn directory(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::bare(monitor)?;
    let dir = scene.dir.clone();
    scene.set("-c", CID).set("-u", CID).set("-r", "/tmp").set("-l", dir.join("log")).set("-P", dir.join("cpid"));
    let live = scene.start()?;
    check(dir.join("log").exists(), "the log file must exist when the front has ended")?;
    check(live.end()? != 0, "a daemon whose runtime is a directory cannot end well")
}

fn api_flag(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    scene.set("--api-version", "0").sync_pipe(crate::support::pipes::Kind::Pipe)?;
    let mut live = scene.start()?;
    contains("report", &live.sync()?.report()?, "{\"data\": ")?;
    live.end().map(drop)
}

fn dashed_value(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    scene.set("--runtime-arg", "--root=/x").add("--runtime-opt", "--tcp-close").set("--log-size-max", "-1");
    let (live, _) = scene.run()?;
    let argv = live.seen()?["argv"].to_string();
    contains("argv of the runtime", &argv, "--root=/x")?;
    contains("argv of the runtime", &argv, "--tcp-close")
}

fn double_dash(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    scene.flag("--").flag("--foo").flag("-T").flag("abc");
    scene.run().map(drop)
}

fn cluster(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    scene.without("-c").set("-ic", CID).script("cat")?;
    let live = scene.start()?;
    let client = live.attach()?;
    client.send(b"through stdin\n")?;
    client.expect("through stdin")?;
    client.half_close()?;
    same("exit status of the daemon", live.end()?, 0)?;
    live.exit_file().map(drop)
}

fn last_wins(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    let second = scene.dir.join("pid2");
    scene.add("-p", &second);
    scene.run()?;
    check(second.exists(), "the second --container-pidfile must be the one that counts")
}

fn equals(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    let dir = scene.dir.join("x2");
    fs::create_dir(&dir)?;
    scene.without("--exit-dir").flag(&format!("--exit-dir={}", dir.display())).flag("--api-version=0");
    scene.sync_pipe(crate::support::pipes::Kind::Pipe)?;
    let (mut live, _) = scene.run()?;
    check(dir.join(CID).exists(), "--exit-dir=DIR must be obeyed")?;
    contains("report", &live.sync()?.report()?, "{\"data\": ")
}

fn locale(monitor: &Monitor, name: &str, good: bool) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    scene.set("-l", "journald").set("--log-tag", "äöüß").env_remove("LC_ALL").env_remove("LC_CTYPE").env("LANG", name);
    let (code, stdout, stderr) = scene.front()?;
    match (good, code) {
        (true, 0) => Ok(()),
        (false, 1) => {
            let text = "conmon: option parsing failed: Invalid byte sequence in conversion input";
            contains("stdout and stderr", &(stdout + &stderr), text)
        }
        _ => Err(Fail::Wrong(format!("exit status {code}, stderr {stderr:?}"))),
    }
}
