//! Man page and shell completions know every command and option of the help text, and no other.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

fn file(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn help(words: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_conwardctl")).args(words).arg("--help").output().unwrap();
    assert!(output.status.success(), "{words:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Long options in a text.
fn names(text: &str, mark: &str) -> BTreeSet<String> {
    let inside = |c: &char| c.is_ascii_lowercase() || *c == '-';
    let words = text.split(mark).skip(1).map(|rest| rest.chars().take_while(inside).collect::<String>());
    words.filter(|word| word.starts_with(|c: char| c.is_ascii_lowercase())).collect()
}

fn commands() -> Vec<String> {
    let help = help(&[]);
    let lines = help.lines().filter_map(|line| line.strip_prefix("  "));
    let words = lines.filter_map(|line| line.split(' ').next());
    words.filter(|word| word.starts_with(|c: char| c.is_ascii_lowercase())).map(str::to_owned).collect()
}

/// The options of one command.
fn options(command: &str) -> BTreeSet<String> {
    let help = help(&[command]);
    let own = help.split("\nFor all commands:").next().unwrap();
    let lines: Vec<&str> = own.lines().filter(|line| line.starts_with("  -")).collect();
    lines.iter().flat_map(|line| names(line.split("  ").nth(1).unwrap_or_default(), "--")).collect()
}

#[test]
fn the_man_page_has_every_option_of_every_command() {
    let page = file("docs/man/conwardctl.1").replace("\\-", "-");
    for command in commands() {
        let section = page.split(&format!(".SS {command}\n")).nth(1).unwrap_or_else(|| panic!("no section {command}"));
        let section = section.split("\n.S").next().unwrap();
        let items = section.lines().filter(|line| line.starts_with(".B \"-") || line.starts_with(".BI \"-"));
        assert_eq!(names(&items.collect::<Vec<_>>().join("\n"), "--"), options(&command), "{command}");
    }
}

#[test]
fn bash_offers_every_option_of_every_command() {
    let common: BTreeSet<String> = ["help", "json", "socket"].map(str::to_owned).into();
    for command in commands() {
        let offered = complete(&["conwardctl", &command, "--"]);
        let expected: BTreeSet<String> = options(&command).union(&common).map(|name| format!("--{name}")).collect();
        assert_eq!(offered, expected, "{command}");
    }
    assert_eq!(complete(&["conwardctl", ""]), commands().into_iter().collect());
    assert_eq!(complete(&["conwardctl", "--socket", "x", "lo"]), ["log-policy", "logs"].map(str::to_owned).into());
    assert_eq!(complete(&["conwardctl", "top", "--sort", "=", "me"]), ["memory".to_owned()].into());
}

fn complete(words: &[&str]) -> BTreeSet<String> {
    let script = "source \"$1\"; shift; COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); _conwardctl; \
                  printf '%s\\n' \"${COMPREPLY[@]}\"";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../completions/conwardctl.bash");
    let output = Command::new("bash").args(["--norc", "-c", script, "bash"]).arg(path).args(words).output();
    let output = output.expect("bash runs");
    assert!(output.stderr.is_empty(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("offers are UTF-8");
    text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

#[test]
fn zsh_and_fish_offer_every_option_of_every_command() {
    let (zsh, fish) = (file("completions/_conwardctl"), file("completions/conwardctl.fish"));
    for command in commands() {
        assert!(zsh.contains(&format!("        \"{command}:")), "{command}");
        assert!(fish.contains(&format!("__fish_use_subcommand -a {command} ")), "{command}");
        let case = zsh.split(&format!("\n        {command})")).nth(1).unwrap().split(";;").next().unwrap();
        let offers: Vec<&str> = case.lines().filter_map(offer).collect();
        assert_eq!(names(&offers.join("\n"), "--"), options(&command), "{command}");
        let mark = format!("__fish_seen_subcommand_from {command}'");
        let lines: Vec<&str> = fish.lines().filter(|line| line.contains(&mark)).collect();
        assert_eq!(names(&lines.join("\n"), " -l "), options(&command), "{command}");
    }
}

/// What a line of zsh offers: behind what excludes it, before what explains it.
fn offer(line: &str) -> Option<&str> {
    let open = line.trim_start().strip_prefix('\'')?;
    let behind = if open.starts_with('(') { open.split_once(')')?.1 } else { open };
    behind.split('[').next()
}
