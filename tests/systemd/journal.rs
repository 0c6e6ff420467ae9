//! The container's output in a real journal, and a journald that is slow, stopped, restarted or absent.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::bundle::{Container, ID};
use crate::rig::{Box, field, has, text};
use crate::support::suite::{Case, Monitor};
use crate::support::{Outcome, check, same, same_bytes};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("journal/fields", "7.8", "every field of the contract, and those that journald trusts", fields),
        Case::new("journal/priorities", "7.8", "of both streams, and from prefixes", priorities),
        Case::new("journal/partial", "7.8", "a long line: partial entries, all bytes", partial),
        Case::new("journal/memfd", "7.8", "an entry larger than a datagram comes as sealed memory", memfd),
        Case::new("journal/podman-logs", "7.8", "podman logs reads it back, and nothing else", podman_logs),
        Case::new("journal/burst", "7.8", "100 000 lines at once: a living journald gets them all", burst),
        Case::new(
            "journal/stopped",
            "7.8",
            "journald stands still: the container does not, and losses are counted",
            stopped,
        ),
        Case::new(
            "journal/slow",
            "7.8",
            "journald gets a twentieth of its time: signals get through all the same",
            slow,
        ),
        Case::new("journal/restarted", "7.8", "journald starts anew: lines go on, losses are counted", restarted),
        Case::new("journal/absent", "7.8", "journald comes back after it was absent", absent),
        Case::new("journal/rate-limit", "7.8", "journald drops by itself: the container does not wait", rate_limit),
    ]
}

const WEB: &str = "CONTAINER_NAME=web";

fn message(entry: &Value) -> Vec<u8> {
    field(entry, "MESSAGE").unwrap_or_default()
}

fn bytes(entries: &[Value]) -> Vec<u8> {
    entries.iter().flat_map(message).collect()
}

fn fields(monitor: &Monitor) -> Outcome {
    let machine = Box::boot(monitor)?;
    let options = "--log-tag the-tag --log-label COLOUR=green --log-label 'SIZE_2=x y'";
    let container = Container::start(&machine, "echo one; sleep 0.3; exit 3", "", options)?;
    let pid = container.pid()?;
    container.end()?;
    let entries = machine.entries(&format!("CONTAINER_ID_FULL={ID}"))?;
    same("entries", entries.len(), 1)?;
    for (name, value) in [
        ("MESSAGE", "one\n"),
        ("PRIORITY", "6"),
        ("CONTAINER_ID_FULL", ID),
        ("CONTAINER_ID", &ID[..12]),
        ("CONTAINER_NAME", "web"),
        ("CONTAINER_TAG", "the-tag"),
        ("SYSLOG_IDENTIFIER", "the-tag"),
        ("COLOUR", "green"),
        ("SIZE_2", "x y"),
        ("_TRANSPORT", "journal"),
        ("_PID", &pid),
        ("_COMM", "conward"),
    ] {
        has(&entries[0], name, value)?;
    }
    same("partial", field(&entries[0], "CONTAINER_PARTIAL_MESSAGE"), None)?;
    same("exit code", container.record()?["exitCode"].as_i64(), Some(3))
}

fn priorities(monitor: &Monitor) -> Outcome {
    let machine = Box::boot(monitor)?;
    let script =
        "echo plain; sleep 0.2; echo wrong >&2; sleep 0.2; echo '<4>warned'; sleep 0.2; echo '<8>not one'; echo";
    Container::start(&machine, script, "", "")?.end()?;
    let seen: Vec<String> = machine
        .entries(WEB)?
        .iter()
        .map(|entry| text(&field(entry, "PRIORITY").unwrap_or_default()) + " " + &text(&message(entry)))
        .collect();
    same(
        "entries",
        seen,
        ["6 plain\n", "3 wrong\n", "4 warned\n", "6 <8>not one\n", "6 \n"].map(str::to_owned).to_vec(),
    )
}

fn partial(monitor: &Monitor) -> Outcome {
    let machine = Box::boot(monitor)?;
    Container::start(&machine, "head -c 100000 /dev/zero | tr '\\0' x; echo; printf end", "", "")?.end()?;
    let entries = machine.entries(WEB)?;
    let expected = [vec![b'x'; 100_000], b"\nend".to_vec()].concat();
    same_bytes("all messages", &bytes(&entries), &expected)?;
    for entry in &entries {
        let mark = field(entry, "CONTAINER_PARTIAL_MESSAGE");
        same("CONTAINER_PARTIAL_MESSAGE", mark.is_some(), !message(entry).ends_with(b"\n"))?;
    }
    check(entries.len() > 10, format!("{} entries", entries.len()))
}

/// Labels make it that large, and only without CAP_NET_ADMIN: with it conward asks for a buffer that takes any line.
fn memfd(monitor: &Monitor) -> Outcome {
    let machine = Box::boot(monitor)?;
    let options = ["A", "B", "C", "D", "E"].map(|name| format!("--log-label LARGE_{name}=$large")).join(" ");
    let before =
        "large=$(head -c 100000 /dev/zero | tr '\\0' y); setpriv --bounding-set=-net_admin --inh-caps=-net_admin";
    let container = Container::start(&machine, "echo one", before, &options)?;
    container.end()?;
    same("bytes and lost", container.stdout()?, (4, 0))?;
    let entries = machine.entries(WEB)?;
    same("entries", entries.len(), 1)?;
    has(&entries[0], "MESSAGE", "one\n")?;
    for name in ["A", "B", "C", "D", "E"] {
        let seen = field(&entries[0], &format!("LARGE_{name}")).unwrap_or_default();
        same_bytes(name, &seen, &vec![b'y'; 100_000])?;
    }
    Ok(())
}

/// podman finds what a container said by CONTAINER_ID_FULL, whoever else uses that field: conward's own messages, here
/// about a program that cannot take over, must not be among it.
fn podman_logs(monitor: &Monitor) -> Outcome {
    let machine = Box::boot(monitor)?;
    let script = "echo one; head -c 20000 /dev/zero | tr '\\0' x; echo; until [ -e /tmp/end ]; do sleep 0.1; done; \
                  echo two; sleep 0.2; echo three >&2";
    machine.ok(&format!(
        "podman run -d --net none --name web --log-driver journald --rootfs /opt/rootfs sh -c \"{script}\""
    ))?;
    machine.ok("echo >/opt/x/new; chmod +x /opt/x/new; mv /opt/x/new /opt/x/conmon; \
        kill -USR2 $(podman inspect web --format '{{.State.ConmonPid}}')")?;
    machine.until("the complaint", "journalctl --sync; journalctl -q SYSLOG_IDENTIFIER=conward | grep -q replace")?;
    machine.ok("cp /opt/x/conward /opt/x/conmon; touch /opt/rootfs/tmp/end; podman wait web; journalctl --sync")?;
    let logs = machine.sh("podman logs web")?;
    let expected = ["one\n".to_owned(), "x".repeat(20_000), "\ntwo\n".to_owned()].concat();
    same_bytes("stdout", &logs.stdout, expected.as_bytes())?;
    same_bytes("stderr", &logs.stderr, b"three\n")
}

const MANY: &str = "seq 1 100000";
/// What that writes.
const MANY_BYTES: u64 = 588_895;

fn burst(monitor: &Monitor) -> Outcome {
    // A journald that a loaded machine stops for longer than it is waited for is not one that gets on: then what it did
    // not take must be counted, and it gets another chance.
    for last in [false, false, true] {
        let machine = Box::boot(monitor)?;
        let container = Container::start(&machine, MANY, "", "")?;
        container.end()?;
        if !last && container.stdout()?.1 > 0 {
            accounted_for(&machine, &container)?;
            continue;
        }
        same("bytes and lost", container.stdout()?, (MANY_BYTES, 0))?;
        let seen = machine.ok(&format!("journalctl --sync; journalctl -q -o cat {WEB} | grep . | sha256sum"))?;
        same("the journal", seen, machine.ok("seq 1 100000 | sha256sum")?)?;
        break;
    }
    Ok(())
}

const JOURNALD: &str = "J=$(systemctl show -p MainPID --value systemd-journald)";

/// The bytes in the journal, which together with the lost ones are all.
fn accounted_for(machine: &Box, container: &Container) -> Outcome<(u64, u64)> {
    let (written, lost) = container.stdout()?;
    let there = bytes(&machine.entries(WEB)?).len() as u64;
    same("in the journal and lost", there + lost, written)?;
    Ok((there, lost))
}

fn stopped(monitor: &Monitor) -> Outcome {
    let machine = Box::boot(monitor)?;
    let begin = Instant::now();
    // The dead man's switch comes first: nobody can log in to a machine whose journald stands still.
    machine.ok(&format!("{JOURNALD}; (sleep 25; kill -CONT $J) >/dev/null 2>&1 & kill -STOP $J"))?;
    let container = Container::start(&machine, MANY, "", "")?;
    container.end()?;
    let took = begin.elapsed();
    machine.ok(&format!("{JOURNALD}; kill -CONT $J"))?;
    check(took < Duration::from_secs(15), format!("it took {took:?}"))?;
    let (there, lost) = accounted_for(&machine, &container)?;
    check(there > 0 && lost > 0, format!("{there} bytes in the journal, {lost} lost"))
}

fn slow(monitor: &Monitor) -> Outcome {
    let machine = Box::boot(monitor)?;
    let script = "trap 'echo last words; exit 5' TERM; while :; do echo a line; done";
    let container = Container::start(&machine, script, "", "")?;
    machine.ok(&format!(
        "{JOURNALD}; (for i in $(seq 40); do kill -STOP $J; sleep 0.19; kill -CONT $J; sleep 0.01; done) >/dev/null 2>&1 &"
    ))?;
    std::thread::sleep(Duration::from_secs(2));
    let begin = Instant::now();
    machine.ok(&format!("kill -TERM {}", container.pid()?))?;
    container.end()?;
    let took = begin.elapsed();
    same("exit code", container.record()?["exitCode"].as_i64(), Some(5))?;
    check(took < Duration::from_secs(4), format!("from the signal to the end it took {took:?}"))
}

fn restarted(monitor: &Monitor) -> Outcome {
    let machine = Box::boot(monitor)?;
    let script = "until [ -e /tmp/end ]; do echo a line; usleep 500; done; sleep 0.5; echo last words";
    let container = Container::start(&machine, script, "", "")?;
    machine.ok("for i in 1 2 3; do systemctl restart systemd-journald; sleep 0.2; done; touch /opt/rootfs/tmp/end")?;
    container.end()?;
    // What was in the socket when journald ended is read by the next one; what it had read and not written is its own.
    let entries = machine.entries(WEB)?;
    let (written, lost) = container.stdout()?;
    let there = bytes(&entries).len() as u64;
    check(there + lost <= written, format!("{there} in the journal and {lost} lost of {written}"))?;
    check(there + lost >= written - written / 50, format!("{there} in the journal and {lost} lost of {written}"))?;
    same("the last one", text(&entries.last().map(message).unwrap_or_default()).as_str(), "last words\n")
}

fn absent(monitor: &Monitor) -> Outcome {
    let machine = Box::boot(monitor)?;
    let script = "echo before; until [ -e /tmp/gone ]; do sleep 0.1; done; echo meanwhile; \
                  until [ -e /tmp/end ]; do sleep 0.1; done; echo after";
    let container = Container::start(&machine, script, "", "")?;
    let units =
        "systemd-journald.socket systemd-journald-dev-log.socket systemd-journald-audit.socket systemd-journald";
    machine.until("the first line", &format!("journalctl -q {WEB} | grep -q before"))?;
    machine.ok(&format!(
        "systemctl stop {units} 2>/dev/null; rm -f /run/systemd/journal/socket; touch /opt/rootfs/tmp/gone; sleep 0.5
         systemctl start systemd-journald.socket systemd-journald-dev-log.socket systemd-journald
         touch /opt/rootfs/tmp/end"
    ))?;
    container.end()?;
    let said = text(&bytes(&machine.entries(WEB)?));
    same("the journal", said.as_str(), "before\nafter\n")?;
    same("bytes and lost", container.stdout()?, (23, 10))
}

/// What journald takes and then throws away it tells only the journal's reader; the container is not slowed by it.
fn rate_limit(monitor: &Monitor) -> Outcome {
    let machine = Box::boot(monitor)?;
    machine.ok("printf '[Journal]\\nRateLimitIntervalSec=60s\\nRateLimitBurst=100\\n' \
        >/etc/systemd/journald.conf.d/zz.conf; systemctl restart systemd-journald")?;
    let container = Container::start(&machine, "seq 1 20000", "", "")?;
    container.end()?;
    let (written, lost) = container.stdout()?;
    same("written", written, 108_894)?;
    same("lost on the way to journald", lost, 0)?;
    let there = machine.entries(WEB)?.len();
    check((1..20_000).contains(&there), format!("{there} entries"))
}
