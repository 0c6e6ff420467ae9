//! How much a stream may log: the container waits, or the log goes without.

use std::fs;
use std::time::{Duration, Instant};

use conmon_proto::{Action, LogPolicy, Stream};

use crate::rig::{connect, start, talk, until};
use crate::support::crilog::Record;
use crate::support::scene::Live;
use crate::support::suite::{Case, Monitor};
use crate::support::{Outcome, check, contains, same};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "policy/back-pressure",
            "P5",
            "the container is slowed to the rate, and nothing is lost",
            back_pressure,
        ),
        Case::new("policy/drop", "P5", "what is missing is counted, and noted where it is missing", dropped),
        Case::new("policy/pass-again", "P5", "a limit that is lifted lets everything through at once", pass_again),
        Case::new("policy/two-rates", "P5", "a slow stream does not slow the other one", |m| {
            two_rates(m, Stream::Stdout)
        }),
        Case::new("policy/two-rates-stderr", "P5", "nor the other way round", |m| two_rates(m, Stream::Stderr)),
        Case::new("policy/ends-slowly", "P5", "a container that ends under a limit is drained at once", ends),
        Case::new("policy/slow-lines", "P5", "few bytes per second still come, byte by byte", slow_lines),
    ]
}

fn limit(bytes_per_second: u64, burst: u64, action: Action) -> LogPolicy {
    LogPolicy::Limit { bytes_per_second, burst, action }
}

fn set(live: &Live, stream: Stream, policy: LogPolicy) -> Outcome {
    talk(async {
        let client = connect(live).await?;
        client.set_log_policy(stream, policy).await?;
        let told = client.inspect().await?.stream(stream).map(|state| state.policy);
        let expected = match policy {
            LogPolicy::Limit { bytes_per_second, burst: 0, action } => {
                LogPolicy::Limit { bytes_per_second, burst: bytes_per_second, action }
            }
            other => other,
        };
        same("what inspect tells", told, Some(expected))
    })
}

fn numbered(count: u64) -> String {
    (1..=count).map(|number| format!("line {number} of it\n")).collect()
}

fn script(count: u64) -> String {
    format!("go; i=0; while [ $i -lt {count} ]; do i=$((i+1)); echo line $i of it; done; : >$D/said; go; exit 6")
}

fn content(records: &[Record], stream: &str) -> Vec<u8> {
    crate::support::crilog::bytes_of(records, stream)
}

fn back_pressure(monitor: &Monitor) -> Outcome {
    let live = start(monitor, &script(20_000))?;
    set(&live, Stream::Stdout, limit(150_000, 20_000, Action::BackPressure))?;
    live.go()?;
    let began = Instant::now();
    let text = numbered(20_000);
    talk(async {
        let client = connect(&live).await?;
        let mut last = 0;
        until("all of it", async || {
            let state = client.inspect().await?;
            let stdout = state.stream(Stream::Stdout).ok_or("there is stdout")?;
            let most = 20_000.0 + 150_000.0 * began.elapsed().as_secs_f64() + 40_000.0;
            #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
            check((stdout.bytes as f64) < most, format!("{} bytes after {:?}", stdout.bytes, began.elapsed()))?;
            same("lost", (stdout.lost, stdout.gaps), (0, 0))?;
            check(stdout.bytes >= last, "it grows")?;
            last = stdout.bytes;
            Ok((last == text.len() as u64).then_some(()))
        })
        .await
    })?;
    check(began.elapsed() > Duration::from_secs(1), format!("slowed down: {:?}", began.elapsed()))?;
    live.go()?;
    same("status", live.end()?, 6)?;
    crate::support::same_bytes("log", &content(&live.log()?, "stdout"), text.as_bytes())
}

fn dropped(monitor: &Monitor) -> Outcome {
    let live = start(monitor, &script(20_000))?;
    set(&live, Stream::Stdout, limit(20_000, 20_000, Action::Drop))?;
    live.go()?;
    crate::support::wait::until_true("the container to have said it", || live.dir.join("b/said").exists())?;
    let text = numbered(20_000);
    let (bytes, lost, gaps) = talk(async {
        let client = connect(&live).await?;
        until("all of it to be read", async || {
            let state = client.inspect().await?;
            let stdout = state.stream(Stream::Stdout).ok_or("there is stdout")?;
            Ok((stdout.bytes == text.len() as u64).then_some((stdout.bytes, stdout.lost, stdout.gaps)))
        })
        .await
    })?;
    check(lost > 0 && gaps > 0, format!("{lost} lost in {gaps} gaps"))?;
    live.go()?;
    same("status", live.end()?, 6)?;
    let records = live.log()?;
    let logged = content(&records, "stdout");
    same("what is missing", bytes - logged.len() as u64, lost)?;
    // Each gap has its note at its place: with as many bytes left out there, the text goes on.
    let (mut at, mut noted) = (0, 0);
    for record in &records {
        if record.stream == "stderr" {
            let note = String::from_utf8_lossy(&record.content).into_owned();
            contains("note", &note, "conward: lost ")?;
            let number: usize =
                note.split(' ').nth(2).and_then(|word| word.parse().ok()).ok_or("a note has a number")?;
            at += number;
            noted += number;
            continue;
        }
        let end = at + record.content.len();
        check(
            text.as_bytes().get(at..end) == Some(&record.content[..]),
            format!("the record at byte {at} is not there"),
        )?;
        at = end + usize::from(record.full);
    }
    same("noted bytes", noted as u64, lost)?;
    same("the text's end", at, text.len())?;
    let record: serde_json::Value = serde_json::from_slice(&fs::read(live.dir.join("b/exit.json"))?)?;
    same("exit.json", record["stdout"]["lost"].as_u64(), Some(lost))
}

fn pass_again(monitor: &Monitor) -> Outcome {
    let live = start(monitor, &script(20_000))?;
    set(&live, Stream::Stdout, limit(1, 100, Action::BackPressure))?;
    live.go()?;
    std::thread::sleep(Duration::from_millis(300));
    check(!live.dir.join("b/said").exists(), "it waits")?;
    set(&live, Stream::Stdout, LogPolicy::Pass)?;
    crate::support::wait::until_true("the container to have said it", || live.dir.join("b/said").exists())?;
    live.go()?;
    same("status", live.end()?, 6)?;
    crate::support::same_bytes("log", &content(&live.log()?, "stdout"), numbered(20_000).as_bytes())
}

fn two_rates(monitor: &Monitor, slow: Stream) -> Outcome {
    let (to_slow, to_fast) = if slow == Stream::Stdout { ("", ">&2") } else { (">&2", "") };
    let script = format!(
        "go; (exec head -c 100000 /dev/zero {to_slow}) & head -c 1000000 /dev/zero {to_fast}; : >$D/said; exit 6"
    );
    let live = start(monitor, &script)?;
    let fast = if slow == Stream::Stdout { Stream::Stderr } else { Stream::Stdout };
    set(&live, slow, limit(1, 4096, Action::BackPressure))?;
    set(&live, fast, limit(1_000_000, 100_000, Action::BackPressure))?;
    live.go()?;
    let began = Instant::now();
    crate::support::wait::until_true("the other stream to be through", || live.dir.join("b/said").exists())?;
    check(began.elapsed() < Duration::from_secs(5), format!("it took {:?}", began.elapsed()))?;
    same("status", live.end()?, 6)?;
    same("bytes", content(&live.log()?, fast.word()).len(), 1_000_000)
}

fn ends(monitor: &Monitor) -> Outcome {
    let live = start(monitor, "go; i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo line $i of it; done; exit 6")?;
    set(&live, Stream::Stdout, limit(10, 10, Action::BackPressure))?;
    live.go()?;
    same("status", live.end()?, 6)?;
    crate::support::same_bytes("log", &content(&live.log()?, "stdout"), numbered(2000).as_bytes())
}

fn slow_lines(monitor: &Monitor) -> Outcome {
    let live = start(monitor, "go; echo 0123456789; echo 0123456789; echo 0123456789; echo over; go; exit 6")?;
    set(&live, Stream::Stdout, limit(40, 10_000, Action::BackPressure))?;
    // The bucket is full at first; what is beyond comes with time.
    set(&live, Stream::Stdout, limit(40, 1, Action::BackPressure))?;
    live.go()?;
    crate::support::wait::until_true("all bytes", || live.log().is_ok_and(|log| content(&log, "stdout").len() == 38))?;
    live.go()?;
    same("status", live.end()?, 6)?;
    same("bytes", content(&live.log()?, "stdout").len(), 38)
}
