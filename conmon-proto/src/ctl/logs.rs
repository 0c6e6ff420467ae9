//! `logs`: what the container has said, from the monitor, and what it says.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use conmon_proto::{AttachRequest, Client, EndReason, History, Stream, output};
use futures::FutureExt;
use futures::future::select_all;

use crate::fail::{Done, Fail, OK};
use crate::line::{Item, Line, is_path};
use crate::talk::{self, Out, Outcome, Place, Signals};
use crate::target::{self, Target};

struct Wish {
    container: Option<String>,
    follow: bool,
    history: History,
    stdout: bool,
    stderr: bool,
}

pub async fn run(mut line: Line) -> Done {
    let wish = read(&mut line)?;
    let mut out = Out::new(line.json);
    if let Some(path) = wish.container.as_ref().filter(|word| is_path(word.as_ref()) && Path::new(word).is_file()) {
        return file(path.as_ref(), &wish, &mut out).await;
    }
    let (client, target) = match target::client(&line, wish.container.as_deref()).await {
        Err(fail) if fail.text().starts_with("no monitor") => return Err(Fail::new(format!("{}{ENDED}", fail.text()))),
        found => found?,
    };
    let mut signals = Signals::catch()?;
    let signals = async { signals.next().await.map(status) };
    let logs = logs(&target, client, &wish, &mut out);
    select_all([signals.boxed_local(), logs.boxed_local()]).await.0
}

/// Monitors end with their containers.
const ENDED: &str = "; of a container that has ended, give the path of its log file (with podman: podman logs)";

/// The k8s-file log of a container that may have ended: records of a time, a stream, `F` or `P`, and the text; `P` is of
/// a line that goes on in the stream's next record.
async fn file(path: &Path, wish: &Wish, out: &mut Out) -> Done {
    let failed = |error: io::Error| Fail::new(format!("cannot read {}: {error}", path.display()));
    if wish.follow || !matches!(wish.history, History::All | History::Lines(_) | History::None) {
        return Err(Fail::usage("logs: of a file there are only --tail, --stdout and --stderr"));
    }
    let records = || io::Result::Ok(BufReader::new(File::open(path)?).split(b'\n'));
    let wanted = |record: &(Stream, bool, Vec<u8>)| match record.0 {
        Stream::Stderr => wish.stderr,
        _ => wish.stdout,
    };
    let mut skip = 0;
    if let History::Lines(count) = wish.history {
        let mut lines = 0_u64;
        for line in records().map_err(failed)? {
            lines += u64::from(record(line.map_err(failed)?, path)?.filter(wanted).is_some_and(|record| record.1));
        }
        skip = lines.saturating_sub(count);
    }
    if wish.history == History::None {
        return Ok(OK);
    }
    for line in records().map_err(failed)? {
        let Some((stream, whole, text)) = record(line.map_err(failed)?, path)?.filter(wanted) else { continue };
        if skip == 0 {
            out.record(stream, &text).await?;
        } else if whole {
            skip -= 1;
        }
    }
    Ok(OK)
}

/// One record: its stream, whether a line ends with it, and its bytes; none for what is the log's own remark.
fn record(line: Vec<u8>, path: &Path) -> Result<Option<(Stream, bool, Vec<u8>)>, Fail> {
    let strange = || Fail::new(format!("{} is no k8s-file log", path.display()));
    let mut words = line.splitn(4, |byte| *byte == b' ');
    let (Some(_), Some(stream), Some(tag)) = (words.next(), words.next(), words.next()) else { return Err(strange()) };
    let stream = match stream {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return Err(strange()),
    };
    let whole = match tag {
        b"F" => true,
        b"P" => false,
        _ => return Ok(None),
    };
    let mut text = words.next().unwrap_or_default().to_vec();
    if whole {
        text.push(b'\n');
    }
    Ok(Some((stream, whole, text)))
}

fn status(outcome: Outcome) -> u8 {
    if let Outcome::Signal(number) = outcome { talk::signal_status(number) } else { OK }
}

fn read(line: &mut Line) -> Result<Wish, Fail> {
    let mut words = Vec::new();
    let (mut follow, mut stdout, mut stderr) = (false, false, false);
    let mut history = None;
    while let Some(item) = line.next()? {
        let wanted = match item {
            Item::Word(word) => {
                words.push(line.utf8(word)?);
                continue;
            }
            Item::Option(option) => match &option[..] {
                "-n" | "--tail" => tail(line)?,
                "--bytes" => History::Bytes(line.size()?),
                "--since-offset" => offsets(line)?,
                other => {
                    match other {
                        "-f" | "--follow" => follow = true,
                        "--stdout" => stdout = true,
                        "--stderr" => stderr = true,
                        _ => return Err(line.unknown(other)),
                    }
                    continue;
                }
            },
        };
        if history.replace(wanted).is_some() {
            return Err(line.mistake("only one of --tail, --bytes and --since-offset makes sense"));
        }
    }
    let container = target::container(line, &mut words)?;
    line.exactly(words, [])?;
    let both = stdout == stderr;
    let history = history.unwrap_or(History::All);
    Ok(Wish { container, follow, history, stdout: stdout || both, stderr: stderr || both })
}

fn tail(line: &mut Line) -> Result<History, Fail> {
    match &line.text()?[..] {
        "all" => Ok(History::All),
        "0" => Ok(History::None),
        text => match text.parse() {
            Ok(count) => Ok(History::Lines(count)),
            Err(_) => Err(line.mistake(format!("--tail takes a number of lines or all, not '{text}'"))),
        },
    }
}

/// `STDOUT` or `STDOUT,STDERR`.
fn offsets(line: &mut Line) -> Result<History, Fail> {
    let text = line.text()?;
    let (stdout, stderr) = text.split_once(',').unwrap_or((&text, "0"));
    match (stdout.parse(), stderr.parse()) {
        (Ok(stdout), Ok(stderr)) => Ok(History::From { stdout, stderr }),
        _ => Err(line.mistake(format!("--since-offset takes STDOUT or STDOUT,STDERR, not '{text}'"))),
    }
}

async fn logs(target: &Target, mut client: Client, wish: &Wish, out: &mut Out) -> Done {
    let mut request =
        AttachRequest { stdout: wish.stdout, stderr: wish.stderr, history: wish.history, ..AttachRequest::default() };
    let now = target.call(client.inspect()).await?;
    let bytes = |stream, wanted| if wanted { now.stream(stream).map_or(0, |stream| stream.bytes) } else { 0 };
    let until = Place { stdout: bytes(Stream::Stdout, wish.stdout), stderr: bytes(Stream::Stderr, wish.stderr) };
    match wish.history {
        History::None if !wish.follow => return Ok(OK),
        History::None => out.place = until,
        History::From { stdout, stderr } => out.place = Place { stdout, stderr },
        _ => {}
    }
    loop {
        let (output, mut events) = output();
        let outcome = match (target.try_call(client.attach(&request, output)).await?, wish.follow) {
            (None, _) => Outcome::Lost,
            (Some(_attachment), true) => out.carry(&mut events).await?,
            (Some(_attachment), false) => out.carry_until(&mut events, until, &client).await?,
        };
        match outcome {
            Outcome::Lost => {}
            Outcome::End(end) if end.reason == EndReason::Upgrade => {}
            _ => return Ok(OK),
        }
        client = target.again().await.ok_or_else(|| Fail::new(format!("{}: the monitor has gone", target.name())))?;
        request.history = out.place.history();
    }
}
