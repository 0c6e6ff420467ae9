//! conwardctl as a whole program against fake monitors.

mod fake;

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use conmon_proto::conward_capnp::Stream::{self, Stderr, Stdout};
use fake::Monitor;
use serde_json::Value;
use tempfile::TempDir;

const SAID: &[(Stream, &str)] = &[(Stdout, "one\n"), (Stderr, "oops\n"), (Stdout, "two\n"), (Stdout, "three\n")];

/// A fake monitor, whose ID no other test on this host has.
struct Bed {
    id: String,
    directory: TempDir,
    _monitor: Monitor,
}

fn fresh_id() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let seed = u64::from(std::process::id()) << 32 | u64::from(number);
    // Spread over all digits, so that a short prefix is unlikely to be another's.
    format!("{:016x}{}", seed.wrapping_mul(0x9e37_79b9_7f4a_7c15), "0".repeat(48))
}

impl Bed {
    fn new() -> Bed {
        Bed::with(SAID, 0)
    }

    fn with(said: &[(Stream, &str)], lost: u64) -> Bed {
        let (id, directory) = (fresh_id(), TempDir::new().unwrap());
        let bundle = directory.path().join("b");
        std::fs::create_dir(&bundle).unwrap();
        let monitor = Monitor::start(&bundle, &id, said, lost);
        Bed { id, directory, _monitor: monitor }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("b/conward.sock")
    }

    /// Runs a command; `ID` stands for the container.
    fn run(&self, words: &str) -> Ran {
        self.typed(words, "")
    }

    fn typed(&self, words: &str, input: &str) -> Ran {
        let words = words.split(' ').map(|word| if word == "ID" { &self.id } else { word });
        let mut child = ctl(&words.collect::<Vec<_>>());
        child.stdin.take().unwrap().write_all(input.as_bytes()).ok();
        ran(child)
    }
}

fn ctl(words: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_conwardctl"));
    command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("conwardctl")
}

struct Ran {
    status: i32,
    out: String,
    err: String,
}

impl Ran {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {} {}", self.out, self.err))
    }

    #[track_caller]
    fn is(&self, status: i32, out: &str, err: &str) {
        assert_eq!((self.status, &self.out[..], &self.err[..]), (status, out, err));
    }
}

/// Waits for it, but not for ever.
fn ran(mut child: Child) -> Ran {
    let deadline = Instant::now() + Duration::from_secs(20);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            let left = child.wait_with_output().unwrap();
            panic!("it does not end: {left:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { status: status.code().unwrap_or(-1), out: text(stdout), err: text(stderr) }
}

#[test]
fn help_and_mistakes() {
    let bed = Bed::new();
    let help = bed.run("--help");
    assert_eq!(help.status, 0);
    for command in
        "attach close-stdin exec exec-result inspect log-policy logs ps reopen-log resize signal top upgrade \
         version wait"
            .split(' ')
    {
        assert!(help.out.contains(&format!("\n  {command} ")), "{command}");
        let own = bed.run(&format!("{command} --help"));
        assert!(own.status == 0 && own.out.starts_with(&format!("Usage: conwardctl {command}")), "{command}");
    }
    assert_eq!(bed.run("sing").status, 2);
    bed.run("inspect --loud ID").is(2, "", "conwardctl: inspect: no option '--loud'; see conwardctl inspect --help\n");
    bed.run("wait").is(2, "", "conwardctl: wait: CONTAINER is missing; see conwardctl wait --help\n");
    assert_eq!(bed.run("exec").status, 125);
    assert_eq!(bed.run("exec ID").status, 125);
    assert!(bed.run("--version").out.starts_with("conwardctl 0.1.0\n"));
}

#[test]
fn a_container_has_many_names() {
    let bed = Bed::new();
    let bundle = bed.directory.path().join("b").display().to_string();
    let name = format!("name-{}", &bed.id[..4]);
    for word in ["ID", &bed.id[..14], &name, &bundle, &format!("{bundle}/conward.sock")] {
        let version = bed.run(&format!("version {word}"));
        assert!(
            version.status == 0 && version.out.starts_with("conward 9.8.7\nconmon 2.2.1\n"),
            "{word}: {}",
            version.err
        );
    }
    let version = bed.run(&format!("--socket {} version --json", bed.socket().display()));
    assert_eq!(version.json()["startedAt"], "2023-11-14T22:13:20.000000000Z");
    let none = bed.run("wait no-such-container");
    assert_eq!(none.status, 1);
    assert!(none.err.starts_with("conwardctl: no monitor for 'no-such-container'; monitors: "), "{}", none.err);
}

#[test]
fn a_long_bundle_path_is_no_obstacle() {
    let directory = TempDir::new().unwrap();
    let bundle = directory.path().join("x".repeat(120));
    std::fs::create_dir(&bundle).unwrap();
    let id = fresh_id();
    let _monitor = Monitor::start(&bundle, &id, SAID, 0);
    assert_eq!(ran(ctl(&["inspect", "--json", &id])).json()["id"], id);
}

#[test]
fn ps_lists_all_kinds_of_monitors_in_time() {
    let bed = Bed::new();
    let room = TempDir::new().unwrap();
    let (plain, hung, exec) = (fresh_id(), fresh_id(), fresh_id());
    let mut others = Vec::new();
    for (id, more) in [(&plain, vec![]), (&hung, vec!["--rpc-socket", "hung"]), (&exec, vec!["-e"])] {
        let socket = room.path().join("hung").display().to_string();
        let more: Vec<&str> = more.into_iter().map(|word| if word == "hung" { &socket[..] } else { word }).collect();
        others.push(fake::process(room.path(), id, &more));
    }
    let _silent = UnixListener::bind(room.path().join("hung")).unwrap();
    let began = Instant::now();
    let listed = bed.run("ps --json").json();
    assert!(began.elapsed() < Duration::from_secs(5));
    let of = |id: &str| listed.as_array().unwrap().iter().find(|row| row["id"] == id);
    let ours = of(&bed.id).unwrap();
    assert_eq!((&ours["service"], &ours["state"]["phase"]), (&"ok".into(), &"running".into()));
    assert_eq!(of(&plain).unwrap()["service"], "none");
    assert_eq!(of(&hung).unwrap()["service"], "no answer");
    assert!(of(&exec).is_none());
    let table = bed.run("ps --all --no-trunc").out;
    assert!(table.starts_with("CONTAINER  "), "{table}");
    let row = |id: &str| table.lines().find(|line| line.starts_with(id)).unwrap_or_default().to_owned();
    let cells: Vec<String> = row(&bed.id).split_whitespace().map(str::to_owned).collect();
    assert_eq!(cells[1..5], ["web", "running", "77", "4242"]);
    assert_eq!(cells[6..], ["19", "0", "1", "0"]);
    assert!(row(&plain).contains(" conmon "));
    assert!(row(&hung).contains(" no answer "));
    assert!(row(&exec).contains(" exec "));
    let refused = bed.run(&format!("wait {plain}"));
    let text = format!(
        "conwardctl: {} is watched by a plain conmon (pid {}), which has no service\n",
        &plain[..12],
        others[0].id()
    );
    refused.is(1, "", &text);
    others.iter_mut().for_each(|child| {
        child.kill().ok();
        child.wait().ok();
    });
}

#[test]
fn inspect_tells_people_and_programs() {
    let bed = Bed::with(SAID, 5);
    let text = bed.run("inspect ID").out;
    for line in [
        "name           web",
        "phase          running",
        "stdout         19 bytes, 0 records, 5 lost in 0 gaps",
        "oom kills      unknown",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}: {text}");
    }
    let value = bed.run("inspect ID --json").json();
    assert_eq!(value["oomKills"], Value::Null);
    assert_eq!(value["streams"][0]["lost"], 5);
    assert_eq!(value["sinks"][0]["path"], "/run/web/log");
}

#[test]
fn logs_keep_streams_apart_and_end() {
    let bed = Bed::new();
    bed.run("logs ID").is(0, "one\ntwo\nthree\n", "oops\n");
    bed.run("logs --stdout ID").is(0, "one\ntwo\nthree\n", "");
    bed.run("logs --tail 2 ID").is(0, "two\nthree\n", "");
    bed.run("logs --tail 0 ID").is(0, "", "");
    bed.run("logs --since-offset 6,2 ID").is(0, "o\nthree\n", "ps\n");
    bed.run("logs --since-offset 14,5 ID").is(0, "", "");
    let lines = bed.run("logs --json --tail 1 ID").json();
    assert_eq!(lines, serde_json::json!({ "stream": "stdout", "offset": 8, "data": "three\n" }));
    assert_eq!(bed.run("logs --tail 1 --bytes 5 ID").status, 2);
    let lossy = Bed::with(SAID, 2048);
    lossy.run("logs --stdout ID").is(0, "one\ntwo\nthree\n", "conwardctl: 2.0K bytes of stdout are lost here\n");
}

#[test]
fn a_closed_pipe_ends_quietly() {
    let bed = Bed::with(&[(Stdout, &"x".repeat(1 << 20))], 0);
    let mut child = ctl(&["logs", &bed.id]);
    drop(child.stdout.take());
    ran(child).is(0, "", "");
}

#[test]
fn logs_follow_across_an_upgrade() {
    let bed = Bed::new();
    let mut follow = ctl(&["logs", "-f", "--stdout", &bed.id]);
    let mut out = follow.stdout.take().unwrap();
    let mut expect = |text: &str| {
        let mut buffer = vec![0; text.len()];
        out.read_exact(&mut buffer).unwrap();
        assert_eq!(String::from_utf8(buffer).unwrap(), text);
    };
    expect("one\ntwo\nthree\n");
    let upgraded = bed.run("upgrade ID");
    assert_eq!(upgraded.status, 0, "{}", upgraded.err);
    assert_eq!(upgraded.out, format!("{}  upgraded  conward 9.8.7 to 9.8.7, pid 4242\n", &bed.id[..12]));
    bed.typed("attach ID", "more\nend 0\n");
    expect("more\nend 0\n");
    assert_eq!(ran(follow).status, 0);
}

#[test]
fn attach_types_and_has_the_status_of_the_container() {
    Bed::new().typed("attach ID", "end 3\n").is(3, "end 3\n", "");
    Bed::new().typed("attach --history 2 ID", "end 0\n").is(0, "two\nthree\nend 0\n", "");
    // The end of the input is one of the container's stdin.
    Bed::new().typed("attach --history all ID", "").is(0, "one\ntwo\nthree\n", "oops\n");
    let left = Bed::new();
    // Whether the echo of what was typed before the keys is still seen is a matter of time.
    let keys = left.typed("attach --detach-keys a,b ID", "x a ab");
    assert_eq!((keys.status, &keys.err[..]), (0, ""));
    assert_eq!(left.run("inspect --json ID").json()["streams"][0]["bytes"], 14 + 4);
    assert_eq!(left.run("attach --history some ID").status, 125);
    assert_eq!(left.run("attach nobody-has-this-name").status, 125);
}

#[test]
fn a_signal_ends_attach() {
    let bed = Bed::new();
    let mut child = ctl(&["attach", "--history", "1", &bed.id]);
    let mut buffer = [0; 6];
    child.stdout.as_mut().unwrap().read_exact(&mut buffer).unwrap();
    let pid = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    // Its stdin stays open meanwhile.
    let stdin = child.stdin.take();
    assert_eq!(ran(child).status, 128 + 15);
    drop(stdin);
}

#[test]
fn exec_has_the_status_of_the_command() {
    let bed = Bed::new();
    bed.run("exec ID echo hi").is(0, "hi\n", "warn\n");
    bed.run("exec ID exit 7").is(7, "", "");
    bed.run("exec ID die").is(137, "", "");
    bed.run("exec --timeout 0.5 ID sleep").is(124, "", "conwardctl: the time was up\n");
    let missing = "conwardctl: exec: \"nope\": executable file not found in $PATH\n";
    bed.run("exec ID nope").is(127, "", missing);
    bed.run("exec ID refused").is(125, "", "conwardctl: start exec: there are 32 already\n");
    bed.typed("exec -i ID cat", "in and out").is(0, "in and out", "");
    bed.run("exec -e A=b -w /dir -u 1:2 ID env -e").is(0, "[\"A=b\"] /dir 1:2\n", "");
    let json = bed.run("exec --json ID echo hi");
    assert_eq!((json.status, &json.json()["stdout"]), (0, &"hi\n".into()));
    let none = bed.run("exec -d --process /nonexistent ID");
    none.is(125, "", "conwardctl: cannot read /nonexistent: No such file or directory (os error 2)\n");
}

#[test]
fn a_detached_exec_has_a_result_later() {
    let bed = Bed::new();
    bed.run("exec -d ID echo later").is(0, "1\n", "");
    bed.run("exec-result ID 1").is(0, "exited with 0, 2023-11-14T22:13:25.000000000Z after 5s\nlater\n", "warn\n");
    assert_eq!(bed.run("exec-result --json ID 1").json()["exit"]["exitCode"], 0);
    bed.run("exec-result ID 2").is(1, "", &format!("conwardctl: {}: there is no exec 2\n", &bed.id[..12]));
}

#[test]
fn the_log_of_a_container_that_has_ended_is_read_from_its_file() {
    let bed = Bed::new();
    let log = bed.directory.path().join("ctr.log");
    let text = "T stdout F one\nT stderr F oops\nT stdout P tw\nT stdout F o\nT stdout F \n";
    std::fs::write(&log, text).unwrap();
    let log = log.display();
    bed.run(&format!("logs {log}")).is(0, "one\ntwo\n\n", "oops\n");
    bed.run(&format!("logs --tail 2 --stdout {log}")).is(0, "two\n\n", "");
    bed.run(&format!("logs --stderr {log}")).is(0, "", "oops\n");
    assert_eq!(bed.run(&format!("logs -f {log}")).status, 2);
    std::fs::write(bed.directory.path().join("other"), "hello\n").unwrap();
    let other = bed.directory.path().join("other").display().to_string();
    bed.run(&format!("logs {other}")).is(1, "", &format!("conwardctl: {other} is no k8s-file log\n"));
    let gone = bed.run("logs nobody");
    assert!(gone.status == 1 && gone.err.contains("give the path of its log file"), "{}", gone.err);
}

#[test]
fn small_calls() {
    let bed = Bed::new();
    let refused = format!("conwardctl: {}: resize: the container has no terminal\n", &bed.id[..12]);
    bed.run("resize ID 24 80").is(1, "", &refused);
    bed.run("reopen-log ID").is(0, "k8s-file /run/web/log (inode 5) from stdout 14 and stderr 0 on\n", "");
    bed.run("log-policy --burst 1M ID 64K").is(0, "", "");
    assert_eq!(bed.run("inspect --json ID").json()["streams"][1]["policy"]["bytesPerSecond"], 65536);
    bed.run("log-policy ID pass").is(0, "", "");
    assert_eq!(bed.run("inspect --json ID").json()["streams"][1]["policy"], "pass");
    assert_eq!(bed.run("log-policy ID 0").status, 1);
    assert_eq!(bed.run("signal -s NOPE ID").status, 2);
    let wait = ctl(&["wait", &bed.id]);
    bed.run("signal -s KILL ID").is(0, "", "");
    ran(wait).is(0, "137\n", "");
    assert_eq!(bed.run("wait --json ID").json()["durable"], true);
}

#[test]
fn upgrades_are_counted() {
    let bed = Bed::new();
    let directory = bed.directory.path().display().to_string();
    for name in ["good", "bad"] {
        std::fs::write(bed.directory.path().join(name), "").unwrap();
    }
    let short = &bed.id[..12];
    bed.run(&format!("upgrade --check ID {directory}/good")).is(
        0,
        &format!("{short}  accepted  conward 9.8.7, pid 4242\n"),
        "",
    );
    let text = format!("{short}  failed    the candidate does not accept the state\n");
    bed.run(&format!("upgrade ID {directory}/bad")).is(1, &text, "");
    assert_eq!(bed.run(&format!("upgrade ID {directory}/none")).status, 1);
    let all = bed.run(&format!("upgrade --all --check --json {directory}/good")).json();
    assert!(
        all.as_array().unwrap().iter().any(|row| row["container"] == bed.id && row["result"] == "accepted"),
        "{all}"
    );
}

#[test]
fn top_prints_a_table_once() {
    let bed = Bed::new();
    let table = bed.run("top --once --interval 0.1").out;
    assert!(table.starts_with("CONTAINER     PHASE"), "{table}");
    let row = table.lines().find(|line| line.starts_with(&bed.id[..12])).expect("our row");
    let cells: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(cells[1..9], ["running", "0", "0", "web", "96K", "2.0K", "1", "0"]);
    let rows = bed.run("top --json --interval 0.1").json();
    let ours = rows.as_array().unwrap().iter().find(|row| row["id"] == bed.id).unwrap();
    assert_eq!(ours["memory"], 98_304);
    assert_eq!(bed.run("top").status, 2);
    assert_eq!(bed.run("top --once --sort colour").status, 2);
}
