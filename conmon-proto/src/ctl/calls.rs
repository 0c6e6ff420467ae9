//! Verbs that are one call and its answer.

use std::str::FromStr;

use conmon_proto::ExitReason;
use nix::sys::signal::Signal;
use serde_json::json;

use crate::fail::{Done, Fail, OK};
use crate::line::{Item, Line, print, print_json};
use crate::{help, json, show, target};

pub async fn close_stdin(mut line: Line) -> Done {
    let (container, []) = target::words(&mut line, [])?;
    let (client, target) = target::client(&line, container.as_deref()).await?;
    target.call(client.close_stdin()).await?;
    Ok(OK)
}

pub async fn resize(mut line: Line) -> Done {
    let (container, [rows, columns]) = target::words(&mut line, ["ROWS", "COLUMNS"])?;
    let number = |text: String| text.parse().map_err(|_| line.mistake(format!("'{text}' is no size of a terminal")));
    let (rows, columns) = (number(rows)?, number(columns)?);
    let (client, target) = target::client(&line, container.as_deref()).await?;
    target.call(client.resize(rows, columns)).await?;
    Ok(OK)
}

pub async fn signal(mut line: Line) -> Done {
    let (mut words, mut number) = (Vec::new(), Signal::SIGTERM as u8);
    while let Some(item) = line.next()? {
        match item {
            Item::Word(word) => words.push(line.utf8(word)?),
            Item::Option(option) if option == "-s" || option == "--signal" => {
                let name = line.text()?;
                number = signal_number(&name).ok_or_else(|| line.mistake(format!("'{name}' is no signal")))?;
            }
            Item::Option(option) => return Err(line.unknown(&option)),
        }
    }
    let container = target::container(&line, &mut words)?;
    line.exactly(words, [])?;
    let (client, target) = target::client(&line, container.as_deref()).await?;
    target.call(client.signal(number)).await?;
    Ok(OK)
}

/// `TERM`, `SIGTERM`, `15`, `RTMIN+3`.
fn signal_number(text: &str) -> Option<u8> {
    if let Ok(number) = text.parse() {
        return (1..=SIGRTMAX).contains(&number).then_some(number);
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    if let Some(rest) = name.strip_prefix("RTMIN") {
        return real_time(rest, '+').map(|above| SIGRTMIN + above);
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        return real_time(rest, '-').map(|below| SIGRTMAX - below);
    }
    Signal::from_str(&format!("SIG{name}")).ok().and_then(|signal| u8::try_from(signal as i32).ok())
}

/// As the C library numbers them: the first two belong to itself.
const SIGRTMIN: u8 = 34;
const SIGRTMAX: u8 = 64;

fn real_time(rest: &str, sign: char) -> Option<u8> {
    let distance = if rest.is_empty() { 0 } else { rest.strip_prefix(sign)?.parse().ok()? };
    (distance <= SIGRTMAX - SIGRTMIN).then_some(distance)
}

pub async fn reopen_log(mut line: Line) -> Done {
    let (container, []) = target::words(&mut line, [])?;
    let (client, target) = target::client(&line, container.as_deref()).await?;
    let files = target.call(client.reopen_log()).await?;
    if line.json {
        return print_json(&files.iter().map(json::switch).collect());
    }
    for file in files {
        let from = format!("from stdout {} and stderr {} on", file.stdout, file.stderr);
        print(&format!("{} {} (inode {}) {from}\n", file.driver, show::plain(&file.path), file.inode))?;
    }
    Ok(OK)
}

/// Without a container, our own.
pub async fn version(mut line: Line) -> Done {
    let mut words = Vec::new();
    while let Some(item) = line.next()? {
        match item {
            Item::Word(word) => words.push(line.utf8(word)?),
            Item::Option(option) => return Err(line.unknown(&option)),
        }
    }
    if words.is_empty() && line.socket.is_none() {
        if line.json {
            return print_json(&json!({ "conwardctl": env!("CARGO_PKG_VERSION"), "commit": help::COMMIT }));
        }
        print(&help::version())?;
        return Ok(OK);
    }
    let container = target::container(&line, &mut words)?;
    line.exactly(words, [])?;
    let (client, target) = target::client(&line, container.as_deref()).await?;
    let version = target.call(client.version()).await?;
    if line.json {
        return print_json(&json::version(&version));
    }
    let since = show::time(version.started_at);
    print(&format!(
        "conward {}\nconmon {}\ncommit {}\nprotocol {}\npid {}\nrunning since {since}\n",
        version.conward, version.conmon, version.commit, version.protocol, version.pid
    ))?;
    Ok(OK)
}

pub async fn wait(mut line: Line) -> Done {
    let (container, []) = target::words(&mut line, [])?;
    let (mut client, target) = target::client(&line, container.as_deref()).await?;
    let (exit, durable) = loop {
        match client.wait().await {
            Ok(answer) => break answer,
            // An upgrade ends the connection and not the container.
            Err(error) if error.is_disconnect() => {
                client = target.again().await.ok_or_else(|| target.fail(&error))?;
            }
            Err(error) => return Err(target.fail(&error)),
        }
    };
    if line.json {
        return print_json(&json!({ "exit": json::exit(&exit), "durable": durable }));
    }
    print(&format!("{}\n", exit.status))?;
    match exit.reason {
        ExitReason::NeverStarted => Err(Fail::new(format!("{}: it never started", target.name()))),
        _ => Ok(OK),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        let cases =
            [("TERM", 15), ("sigkill", 9), ("HUP", 1), ("9", 9), ("RTMIN", 34), ("SIGRTMIN+3", 37), ("RTMAX-1", 63)];
        for (name, number) in cases {
            assert_eq!(signal_number(name), Some(number), "{name}");
        }
        for name in ["", "0", "65", "SIG", "NOPE", "RTMIN-1", "RTMIN+31", "-9"] {
            assert_eq!(signal_number(name), None, "{name}");
        }
    }
}
