//! `attach`: the terminal is the container's until it ends or somebody leaves.

use std::io::{self, Write};

use conmon_proto::{AttachRequest, Client, EndReason, Exit, ExitReason, History, output};

use crate::fail::{Done, Fail, OK, OURS};
use crate::keys::{DEFAULT, Keys};
use crate::line::{Item, Line};
use crate::talk::{self, Input, Other, Out, Outcome, Signals, Talk};
use crate::target::{self, Target};
use crate::term::{self, Raw};

struct Wish {
    container: Option<String>,
    keys: Keys,
    history: History,
    stdin: bool,
    leave_stdin_open: bool,
}

pub async fn run(mut line: Line) -> Done {
    let wish = read(&mut line)?;
    attach(&line, wish).await.map_err(Fail::ours)
}

fn read(line: &mut Line) -> Result<Wish, Fail> {
    let mut words = Vec::new();
    let (mut keys, mut history, mut stdin, mut leave_stdin_open) = (DEFAULT.to_owned(), History::None, true, false);
    while let Some(item) = line.next()? {
        match item {
            Item::Word(word) => words.push(line.utf8(word)?),
            Item::Option(option) => match &option[..] {
                "--detach-keys" => keys = line.text()?,
                "--history" => history = self::history(line)?,
                "--leave-stdin-open" => leave_stdin_open = true,
                "--no-stdin" => stdin = false,
                _ => return Err(line.unknown(&option)),
            },
        }
    }
    let keys = Keys::parse(&keys).map_err(|text| line.mistake(text))?;
    let container = target::container(line, &mut words)?;
    line.exactly(words, [])?;
    Ok(Wish { container, keys, history, stdin, leave_stdin_open })
}

/// `all`, `none`, or a number of lines.
pub fn history(line: &mut Line) -> Result<History, Fail> {
    match &line.text()?[..] {
        "all" => Ok(History::All),
        "none" => Ok(History::None),
        text => match text.parse() {
            Ok(count) => Ok(History::Lines(count)),
            Err(_) => Err(line.mistake(format!("a history is all, none or a number of lines, not '{text}'"))),
        },
    }
}

async fn attach(line: &Line, wish: Wish) -> Done {
    let (client, target) = target::client(line, wish.container.as_deref()).await?;
    let state = target.call(client.inspect()).await?;
    let sized = state.terminal && term::size().is_some();
    let (rows, columns) = term::size().filter(|_| sized).unwrap_or_default();
    let request = AttachRequest {
        // Where nobody can type, keys still leave.
        stdin: wish.stdin && state.stdin,
        history: wish.history,
        rows,
        columns,
        leave_stdin_open: wish.leave_stdin_open,
        ..AttachRequest::default()
    };
    // What keys do is the container's business if it has a terminal, and that of ours otherwise.
    let closes = !state.terminal && !wish.leave_stdin_open;
    let input = wish.stdin.then(|| Input::new(wish.keys, closes));
    let mut talk = Talk { input, sized, out: Out::new(line.json), signals: Signals::catch()? };
    let place = &mut talk.out.place;
    // Nothing of what was said before is asked for again after an upgrade.
    if request.history == History::None {
        let bytes = |stream| state.stream(stream).map_or(0, |stream| stream.bytes);
        place.stdout = bytes(conmon_proto::Stream::Stdout);
        place.stderr = bytes(conmon_proto::Stream::Stderr);
    }
    let raw = match state.terminal && wish.stdin && term::stdin_is_terminal() {
        true => Some(Raw::enter().map_err(|error| Fail::new(format!("cannot use the terminal: {error}")))?),
        false => None,
    };
    let outcome = converse(&target, client, request, &mut talk).await;
    let had_terminal = raw.is_some();
    drop(raw);
    let (status, goes_on) = outcome?;
    if had_terminal && goes_on {
        // Behind what the container said last; if stderr is gone, nobody misses it.
        let _ = writeln!(io::stderr(), "\nconwardctl: left {}, which goes on", target.name());
    }
    Ok(status)
}

/// Talks, and goes on where it was when the monitor is replaced. Gives the exit status, and whether the container goes
/// on without us.
async fn converse(
    target: &Target,
    mut client: Client,
    mut request: AttachRequest,
    talk: &mut Talk,
) -> Result<(u8, bool), Fail> {
    loop {
        let (output, mut events) = output();
        let attachment = target.call(client.attach(&request, output)).await?;
        let outcome = talk.run(&Other::Attachment(attachment), &mut events).await?;
        if let Some(status) = ended(target, &client, &outcome).await? {
            return Ok((status, !matches!(outcome, Outcome::End(_))));
        }
        client = target.again().await.ok_or_else(|| Fail::new(format!("{}: the monitor has gone", target.name())))?;
        request.history = talk.out.place.history();
    }
}

/// The exit status; none if the monitor is only being replaced.
async fn ended(target: &Target, client: &Client, outcome: &Outcome) -> Result<Option<u8>, Fail> {
    match outcome {
        Outcome::Left | Outcome::Enough => Ok(Some(OK)),
        Outcome::Signal(number) => Ok(Some(talk::signal_status(*number))),
        Outcome::Lost => Ok(None),
        Outcome::End(end) => match (end.reason, &end.exit) {
            (EndReason::Upgrade, _) => Ok(None),
            (EndReason::Detached | EndReason::Unrecognised, _) => {
                Err(Fail::new(format!("{}: detached by the monitor", target.name())))
            }
            (EndReason::Ended, Some(exit)) => Ok(Some(status(exit))),
            (EndReason::Ended | EndReason::Held, _) => Ok(Some(status(&target.call(client.wait()).await?.0))),
        },
    }
}

/// The exit status that stands for the end of a process.
pub fn status(exit: &Exit) -> u8 {
    match exit.reason {
        ExitReason::TimedOut => TIMED_OUT,
        _ => u8::try_from(exit.status).unwrap_or(OURS),
    }
}

/// As timeout(1) has it.
const TIMED_OUT: u8 = 124;
