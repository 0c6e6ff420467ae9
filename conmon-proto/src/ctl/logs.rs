//! `logs`: what the container has said, from the monitor, and what it says.

use conmon_proto::{AttachRequest, Client, EndReason, History, Stream, output};
use futures::FutureExt;
use futures::future::select_all;

use crate::fail::{Done, Fail, OK};
use crate::line::{Item, Line};
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
    let (client, target) = target::client(&line, wish.container.as_deref()).await?;
    let mut out = Out::new(line.json);
    let mut signals = Signals::catch()?;
    let signals = async { signals.next().await.map(status) };
    let logs = logs(&target, client, &wish, &mut out);
    select_all([signals.boxed_local(), logs.boxed_local()]).await.0
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
        let attachment = target.call(client.attach(&request, output)).await?;
        let outcome = match wish.follow {
            true => out.carry(&mut events).await?,
            false => out.carry_until(&mut events, until, &client).await?,
        };
        drop(attachment);
        match outcome {
            Outcome::Lost => {}
            Outcome::End(end) if end.reason == EndReason::Upgrade => {}
            _ => return Ok(OK),
        }
        client = target.again().await.ok_or_else(|| Fail::new(format!("{}: the monitor has gone", target.label)))?;
        request.history = out.place.history();
    }
}
