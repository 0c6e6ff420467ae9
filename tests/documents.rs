//! Help, man page and shell completions know every option of the parser, and no option that it does not know. What the
//! specification names as proof exists.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use conward::args::LONG_OPTIONS;
use conward::usage;

const LETTERS: &str = "0PTbcehilnprstu";

fn file(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn man_page() -> String {
    file("docs/man/conward.8").replace("\\-", "-")
}

/// The words behind `mark` in `text`, made of letters, digits and dashes.
fn names(text: &str, mark: &str) -> BTreeSet<String> {
    let inside = |c: &char| c.is_ascii_alphanumeric() || *c == '-';
    let words = text.split(mark).skip(1).map(|rest| rest.chars().take_while(inside).collect::<String>());
    words.filter(|word| word.starts_with(|c: char| c.is_ascii_alphabetic())).collect()
}

fn expected() -> BTreeSet<String> {
    LONG_OPTIONS.iter().copied().chain(["help"]).map(str::to_owned).collect()
}

fn set(words: &[&str]) -> BTreeSet<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[test]
fn help_names_every_option() {
    let help = usage::help();
    assert_eq!(names(&help, "--"), expected());
    // Named in passing is not enough.
    let lines: String = help.lines().filter(|line| line.starts_with("  -")).collect::<Vec<_>>().join("\n");
    assert_eq!(names(&lines, "--"), expected());
    for letter in LETTERS.chars() {
        assert!(lines.contains(&format!("  -{letter}, --")), "-{letter}");
    }
}

#[test]
fn the_man_page_has_every_option() {
    let page = man_page();
    let own: Vec<&str> = page.lines().filter(|line| !line.starts_with("podman ")).collect();
    assert_eq!(names(&own.join("\n"), "--"), expected());
    let items: Vec<&str> = page.split(".TP\n").skip(1).filter_map(|item| item.lines().next()).collect();
    let missing: BTreeSet<String> = expected().difference(&names(&items.join("\n"), "--")).cloned().collect();
    assert_eq!(missing, set(&["pidfile", "restore-arg"]), "only aliases have no item of their own");
    for letter in LETTERS.chars() {
        let own = |item: &str| [".BI \"-", ".BR -"].iter().any(|start| item.starts_with(&format!("{start}{letter}")));
        assert!(items.iter().any(|item| own(item)), "-{letter}");
    }
}

/// A macro that is misspelt, or a quote that is not closed, makes text vanish without an error.
#[test]
fn the_man_page_is_well_formed() {
    let known = ".TH .SH .SS .TP .PP .B .I .BR .BI .IR .RI .RS .RE .br .nf .fi";
    let page = file("docs/man/conward.8");
    let mut open = Vec::new();
    for (index, line) in page.lines().enumerate() {
        if !line.starts_with('.') || line.starts_with(".\\\"") {
            continue;
        }
        let place = format!("line {}: {line}", index + 1);
        let name = line.split(' ').next().unwrap_or_default();
        assert!(known.split(' ').any(|known| known == name), "{place}");
        assert_eq!(line.matches('"').count() % 2, 0, "{place}");
        match name {
            ".RS" | ".nf" => open.push(name),
            ".RE" => assert_eq!(open.pop(), Some(".RS"), "{place}"),
            ".fi" => assert_eq!(open.pop(), Some(".nf"), "{place}"),
            _ => {}
        }
    }
    assert!(open.is_empty(), "{open:?}");
    let sections: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix(".SH ")).collect();
    let wanted = "NAME,SYNOPSIS,DESCRIPTION,MODES,OPTIONS,ENVIRONMENT,FILES,SERVICE,LOG FORMAT,EXIT RECORD,SIGNALS,\
                  EXIT STATUS,EXAMPLES,SEE ALSO";
    assert_eq!(sections.join(","), wanted);
}

#[test]
fn defaults_in_help_and_man_page_agree() {
    let (help, page) = (usage::help(), man_page().replace('\n', " "));
    for (option, default) in [
        ("log-line-max", "32768"),
        ("log-file-mode", "0640"),
        ("attach-stall-timeout", "0, never"),
        ("history-held-max", "67108864"),
        ("log-max-files", "1"),
        ("exit-delay", "0"),
        ("timeout", "0, never"),
        ("log-size-max", "-1"),
        ("log-global-size-max", "-1"),
        ("socket-dir-path", "/var/run/crio"),
        ("log-level", "warning"),
    ] {
        let after = help.split(&format!("--{option}=")).nth(1).expect("the option is in the help text");
        let shown = after.split("(default: ").nth(1).and_then(|rest| rest.split([')', ',']).next());
        assert_eq!(shown, default.split(',').next(), "--{option} in the help text");
        let item = page.split(".TP ").find(|item| item.starts_with(".BI") && item.contains(&format!("--{option} \"")));
        let item = item.unwrap_or_else(|| panic!("--{option} has no item"));
        let said =
            item.split("Default: ").nth(1).map(|said| said.trim_start_matches(".IR ").trim_start_matches(".BR "));
        assert!(said.is_some_and(|said| said.starts_with(default)), "--{option}: {item}");
    }
}

#[test]
fn bash_offers_every_option() {
    let all = expected().iter().map(|name| format!("--{name}")).collect();
    assert_eq!(complete(&["conmon", "--"]), all);
    let short = complete(&["conmon", "-"]).into_iter().filter(|word| !word.starts_with("--"));
    let letters = LETTERS.chars().map(|letter| format!("-{letter}"));
    assert_eq!(short.collect::<BTreeSet<_>>(), letters.collect());
}

#[test]
fn bash_offers_what_fits() {
    let none: &[&str] = &[];
    let table: &[(&[&str], &[&str])] = &[
        (&["--log-f"], &["--log-file-mode"]),
        (&["--log-level", "w"], &["warning"]),
        (&["--log-level", "=", "d"], &["debug"]),
        (&["--log-level", "="], &["error", "warning", "info", "debug", "trace"]),
        (&["-l", "jo"], &["journald"]),
        (&["-l", "k8s-file", ":", "/etc/passw"], &["/etc/passwd"]),
        (&["--log-path", "=", "json-file", ":", "/etc/passw"], &["/etc/passwd"]),
        (&["-l", "journald", ":", "/etc/passw"], none),
        (&["-b", "/et"], &["/etc"]),
        (&["--exec-process-spec", "/etc/passw"], &["/etc/passwd"]),
        // The value of an option may look like an option, and nobody can guess it.
        (&["--runtime-arg", "--"], none),
        (&["word"], none),
    ];
    for (line, offers) in table {
        let offered = complete(&[&["conmon"], *line].concat());
        // Another name may begin like /etc/passwd does.
        let known = offered.iter().filter(|word| !word.starts_with("/etc/passwd-")).cloned();
        assert_eq!(known.collect::<BTreeSet<_>>(), set(offers), "{line:?}");
    }
}

/// Runs the bash function on a line that bash has cut into words; the last one is to be completed.
fn complete(words: &[&str]) -> BTreeSet<String> {
    let script = "source \"$1\"; shift; COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); _conward; \
                  printf '%s\\n' \"${COMPREPLY[@]}\"";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("completions/conward.bash");
    let output = Command::new("bash").args(["--norc", "-c", script, "bash"]).arg(path).args(words).output();
    let output = output.expect("bash runs");
    assert!(output.stderr.is_empty(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("offers are UTF-8");
    text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

#[test]
fn zsh_offers_every_option() {
    let text = file("completions/_conward");
    // What excludes each other stands in parentheses in front, what is explained in brackets behind.
    let offers: Vec<String> = text.lines().filter(|line| line.starts_with("    '")).map(offer).collect();
    assert_eq!(names(&offers.join("\n"), "--"), expected());
    for letter in LETTERS.chars() {
        assert!(offers.iter().any(|offer| offer.contains(&format!("{{-{letter},--"))), "-{letter}");
    }
}

fn offer(line: &str) -> String {
    let open = line.trim_start().trim_start_matches('\'');
    let behind = if open.starts_with('(') { open.split_once(')').map_or("", |(_, rest)| rest) } else { open };
    behind.split('[').next().unwrap_or_default().to_owned()
}

#[test]
fn fish_offers_every_option() {
    let text = file("completions/conward.fish");
    assert_eq!(names(&text, " -l "), expected());
    let letters = text.split(" -s ").skip(1).filter_map(|rest| rest.chars().next());
    assert_eq!(letters.collect::<BTreeSet<_>>(), LETTERS.chars().collect());
}

/// Promises point to tests by `` `place: name` ``; one that was renamed or removed shows nothing any more.
#[test]
fn the_specification_names_tests_that_exist() {
    let text = file("SPECIFICATION.md");
    let quoted = text.split('`').skip(1).step_by(2);
    let names: BTreeSet<(&str, &str)> = quoted.filter_map(|quote| quote.split_once(": ")).collect();
    let mut places = BTreeSet::new();
    let mut missing = Vec::new();
    for (place, name) in names {
        if !exists(place, name) {
            missing.push(format!("{place}: {name}"));
        }
        places.insert(place);
    }
    assert!(missing.is_empty(), "{missing:#?}");
    // Something has been looked at: a changed manner of quoting must not make this test empty.
    assert_eq!(places, PLACES.into_iter().collect());
}

const PLACES: [&str; 17] = [
    "bench", "budgets", "compat", "cri", "cri-unit", "cri-vm", "fuzz", "loss", "oom", "packages", "podman", "runc",
    "service", "splitter", "systemd", "unit", "vm",
];

/// Whether a test of this name stands where the first word says.
fn exists(place: &str, name: &str) -> bool {
    match place {
        "compat" => below("tests/compat").contains(&format!("\"{name}\"")),
        "vm" => below("tests/vm").contains(&format!("\"{name}\"")),
        "loss" => below("tests/loss").contains(&format!("\"{name}\"")),
        // Some names are made of a room and a word of a list.
        "systemd" => {
            let text = below("tests/systemd");
            let (room, case) = name.split_once('/').unwrap_or_default();
            text.contains(&format!("\"{name}\""))
                || text.contains(&format!("\"{room}/{{")) && text.contains(&format!("\"{case}\""))
        }
        "packages" => {
            let text = file("tests/packages/run");
            let list =
                text.split_once("cases=(").and_then(|(_, rest)| rest.split_once(')')).map_or("", |(list, _)| list);
            list.split_whitespace().any(|case| case == name)
        }
        "runc" => below("tests/runc").contains(&format!("\"{name}\"")),
        "service" => below("tests/service").contains(&format!("\"{name}\"")),
        "podman" => podman_cases(&file("tests/podman/suite.rs")).contains(name),
        "budgets" => file("tests/budgets.rs").contains(&format!("fn {name}()")),
        "splitter" => file("tests/splitter.rs").contains(&format!("fn {name}()")),
        "oom" => file("tests/oom.rs").contains(&format!("\"{name}\"")),
        "unit" => tests_of("src").contains(name),
        "cri-vm" => below("cri/tests/cgroup2").contains(&format!("\"{name}\"")),
        "cri-unit" => tests_of("cri").contains(name),
        "cri" => {
            let (suite, case) = name.split_once('/').unwrap_or_default();
            let def = format!("\n@case\ndef {case}(");
            match suite {
                "every_rpc" => texts_below("cri/tests/clients/calls", "py").contains(&def),
                _ => file(&format!("cri/tests/clients/{suite}.py")).contains(&def),
            }
        }
        "fuzz" => file("fuzz/Cargo.toml").contains(&format!("\"fuzz_targets/{name}.rs\"")),
        "bench" => file("benches/side_by_side/measures.rs").contains(&format!("name: \"{name}\"")),
        _ => false,
    }
}

/// The names that the list of podman cases makes: `ROOM: CASE CASE;` is `ROOM_CASE`.
fn podman_cases(suite: &str) -> BTreeSet<String> {
    let list = suite.rsplit_once("cases! {").expect("the list of cases").1;
    let rows = list.split(';').filter_map(|row| row.split_once(':'));
    rows.flat_map(|(room, cases)| {
        let room = room.trim().to_owned();
        cases.split_whitespace().map(move |case| format!("{room}_{case}"))
    })
    .collect()
}

/// The names of functions that are tests in a directory.
fn tests_of(dir: &str) -> BTreeSet<String> {
    let text = below(dir);
    let mut lines = text.lines().map(str::trim);
    let mut names = BTreeSet::new();
    while let Some(line) = lines.next() {
        if line == "#[test]" || line.starts_with("#[tokio::test") {
            let name = lines.next().and_then(|line| line.split_once("fn ")?.1.split_once('('));
            names.extend(name.map(|(name, _)| name.to_owned()));
        }
    }
    names
}

/// All Rust code in a directory.
fn below(dir: &str) -> String {
    texts_below(dir, "rs")
}

/// What is in the files of a directory whose names end so.
fn texts_below(dir: &str, kind: &str) -> String {
    let mut text = String::new();
    let mut rooms = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(dir)];
    while let Some(room) = rooms.pop() {
        for entry in std::fs::read_dir(&room).expect("a directory of the repository") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                rooms.push(path);
            } else if path.extension().is_some_and(|extension| extension == kind) {
                text += &std::fs::read_to_string(&path).expect("a source file");
            }
        }
    }
    text
}
