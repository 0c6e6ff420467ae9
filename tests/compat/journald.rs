//! The journald driver, read by a stand-in at journald's own path.

use crate::support::journal::{Entry, Journal, field};
use crate::support::scene::{CID, Scene};
use crate::support::suite::{Case, Monitor};
use crate::support::{Outcome, check, same, same_bytes};
use std::time::Duration;

pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        Case::new("journald/fields", "7.8", "message, IDs, priority, identifier", fields),
        Case::new("journald/stderr", "7.8", "stderr has priority 3", stderr),
        Case::new("journald/name", "7.8", "--name: CONTAINER_NAME and identifier", name),
        Case::new("journald/tag", "7.8", "--log-tag: CONTAINER_TAG and identifier", tag),
        Case::new("journald/labels", "7.8", "--log-label as given", labels).since("2.2"),
        Case::new("journald/partial", "7.8", "65535 bytes without newline: partial entries, all bytes", |m| {
            partial(m, true)
        }),
        Case::new("journald/no-partial-field", "7.8", "--no-container-partial-message", |m| partial(m, false))
            .since("2.2"),
        Case::new("journald/kept-rest", "7.8", "a line in two writes is one entry", kept_rest),
        Case::new("journald/with-file", "7.8", "beside a k8s-file", with_file),
        Case::new("journald/independent", "11 B20", "a failing file does not cost journald a line", independent),
        Case::new("journald/absent", "7.8", "without journald the container runs all the same", absent),
        Case::new("journald/prefix-in-pieces", "11 B30", "a prefix that comes in two writes", prefix_in_pieces)
            .since("2.2"),
        Case::new("journald/k8s-keeps-prefix", "7.8", "the k8s-file never strips a prefix", k8s_prefix),
    ];
    let rows: [(&str, &str, &str, &str); 9] = [
        ("0", "<0>text", "0", "text"),
        ("3", "<3>text", "3", "text"),
        ("7", "<7>text", "7", "text"),
        ("alone", "<3>", "3", ""),
        ("8", "<8>text", "6", "<8>text"),
        ("empty", "<>text", "6", "<>text"),
        ("letter", "<a>text", "6", "<a>text"),
        ("blank", "< 0>text", "6", "< 0>text"),
        ("double", "<<0>>text", "6", "<<0>>text"),
    ];
    for (id, line, priority, text) in rows {
        let run = move |monitor: &Monitor| prefix(monitor, line, priority, text);
        cases.push(Case::new(&format!("journald/prefix-{id}"), "7.8", line, run).since("2.2"));
    }
    cases
}

fn scene(monitor: &Monitor, script: &str) -> Outcome<(Journal, Scene)> {
    let journal = Journal::take_place()?;
    let mut scene = Scene::create(monitor)?;
    scene.set("-l", "journald").script(script)?;
    Ok((journal, scene))
}

fn is(entry: &Entry, name: &str, value: &str) -> Outcome {
    let seen = field(entry, name).map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    same(name, seen.as_deref(), Some(value))
}

/// The message, whether its newline was kept or not (both are allowed).
fn says(entry: &Entry, text: &str) -> Outcome {
    let seen = field(entry, "MESSAGE").unwrap_or_default();
    let seen = seen.strip_suffix(b"\n").unwrap_or(seen);
    same("MESSAGE", String::from_utf8_lossy(seen).as_ref(), text)
}

fn fields(monitor: &Monitor) -> Outcome {
    let (journal, mut scene) = scene(monitor, "echo hi")?;
    scene.run()?;
    let entry = journal.entry()?;
    says(&entry, "hi")?;
    is(&entry, "CONTAINER_ID_FULL", CID)?;
    is(&entry, "CONTAINER_ID", &CID[..12])?;
    is(&entry, "PRIORITY", "6")?;
    is(&entry, "SYSLOG_IDENTIFIER", &CID[..12])?;
    check(field(&entry, "CONTAINER_PARTIAL_MESSAGE").is_none(), "a full line is not partial")?;
    check(field(&entry, "CONTAINER_NAME").is_none(), "no name was given")
}

fn stderr(monitor: &Monitor) -> Outcome {
    let (journal, mut scene) = scene(monitor, "echo oops >&2")?;
    scene.run()?;
    let entry = journal.entry()?;
    says(&entry, "oops")?;
    is(&entry, "PRIORITY", "3")
}

fn name(monitor: &Monitor) -> Outcome {
    let (journal, mut scene) = scene(monitor, "echo hi")?;
    scene.set("-n", "gracious_name").run()?;
    let entry = journal.entry()?;
    is(&entry, "CONTAINER_NAME", "gracious_name")?;
    is(&entry, "SYSLOG_IDENTIFIER", "gracious_name")
}

fn tag(monitor: &Monitor) -> Outcome {
    let (journal, mut scene) = scene(monitor, "echo hi")?;
    scene.set("-n", "gracious_name").set("--log-tag", "the tag").run()?;
    let entry = journal.entry()?;
    is(&entry, "CONTAINER_TAG", "the tag")?;
    is(&entry, "SYSLOG_IDENTIFIER", "the tag")
}

fn labels(monitor: &Monitor) -> Outcome {
    let (journal, mut scene) = scene(monitor, "echo hi")?;
    scene.add("--log-label", "COLOUR=green").add("--log-label", "SIZE_2=x y").run()?;
    let entry = journal.entry()?;
    is(&entry, "COLOUR", "green")?;
    is(&entry, "SIZE_2", "x y")
}

fn partial(monitor: &Monitor, marked: bool) -> Outcome {
    let (journal, mut scene) = scene(monitor, "head -c 65535 /dev/zero | tr '\\0' q")?;
    if !marked {
        scene.flag("--no-container-partial-message");
    }
    scene.run()?;
    let mut bytes = Vec::new();
    while let Some(entry) = journal.entry_within(Duration::from_millis(300))? {
        let mark = field(&entry, "CONTAINER_PARTIAL_MESSAGE");
        same("CONTAINER_PARTIAL_MESSAGE", mark, marked.then_some(&b"true"[..]))?;
        bytes.extend_from_slice(field(&entry, "MESSAGE").unwrap_or_default());
    }
    same_bytes("all messages", &bytes, &vec![b'q'; 65535])
}

fn kept_rest(monitor: &Monitor) -> Outcome {
    let (journal, mut scene) = scene(monitor, "printf one; sleep 0.1; echo ' line'")?;
    scene.run()?;
    says(&journal.entry()?, "one line")
}

fn with_file(monitor: &Monitor) -> Outcome {
    let (journal, mut scene) = scene(monitor, "echo hi")?;
    let log = scene.dir.join("log");
    let (live, _) = scene.add("-l", log).run()?;
    says(&journal.entry()?, "hi")?;
    same("log", live.plain_log()?, vec!["stdout F hi".to_owned()])
}

fn independent(monitor: &Monitor) -> Outcome {
    let (journal, mut scene) = scene(monitor, "echo hi")?;
    let (live, _) = scene.add("-l", "k8s-file:/dev/full").run()?;
    says(&journal.entry()?, "hi")?;
    live.exit_file().map(drop)
}

fn absent(monitor: &Monitor) -> Outcome {
    let (journal, mut scene) = scene(monitor, "echo hi; exit 3")?;
    drop(journal);
    std::fs::remove_file("/run/systemd/journal/socket")?;
    same("status", scene.run()?.1, 3)
}

fn prefix(monitor: &Monitor, line: &str, priority: &str, text: &str) -> Outcome {
    let (journal, mut scene) = scene(monitor, &format!("echo '{line}'"))?;
    scene.run()?;
    let entry = journal.entry()?;
    is(&entry, "PRIORITY", priority)?;
    says(&entry, text)
}

fn prefix_in_pieces(monitor: &Monitor) -> Outcome {
    let (journal, mut scene) = scene(monitor, "printf '<4'; sleep 0.1; echo '>warned'")?;
    scene.run()?;
    let entry = journal.entry()?;
    is(&entry, "PRIORITY", "4")?;
    says(&entry, "warned")
}

fn k8s_prefix(monitor: &Monitor) -> Outcome {
    let (live, _) = Scene::create(monitor)?.script("echo '<3>text'")?.run()?;
    same("log", live.plain_log()?, vec!["stdout F <3>text".to_owned()])
}
