//! `log-policy`: how fast a stream may be logged.

use conmon_proto::{Action, LogPolicy, Stream};

use crate::fail::{Done, Fail, OK};
use crate::line::{Item, Line};
use crate::{show, target};

pub async fn run(mut line: Line) -> Done {
    let (mut words, mut streams) = (Vec::new(), vec![Stream::Stdout, Stream::Stderr]);
    let (mut burst, mut action) = (None, None);
    while let Some(item) = line.next()? {
        let option = match item {
            Item::Word(word) => {
                words.push(line.utf8(word)?);
                continue;
            }
            Item::Option(option) => option,
        };
        match &option[..] {
            "--burst" => burst = Some(line.size()?),
            "--action" => action = Some(self::action(&mut line)?),
            "--stream" => streams = self::streams(&mut line)?,
            _ => return Err(line.unknown(&option)),
        }
    }
    let container = target::container(&line, &mut words)?;
    let [rate] = line.exactly(words, ["RATE"])?;
    let policy = match (&rate[..], burst, action) {
        ("pass", None, None) => LogPolicy::Pass,
        ("pass", ..) => return Err(line.mistake("--burst and --action are for a RATE, not for pass")),
        (rate, burst, action) => LogPolicy::Limit {
            bytes_per_second: show::size(rate)
                .ok_or_else(|| line.mistake(format!("RATE is pass or bytes per second, not '{rate}'")))?,
            burst: burst.unwrap_or(0),
            action: action.unwrap_or(Action::BackPressure),
        },
    };
    let (client, target) = target::client(&line, container.as_deref()).await?;
    for stream in streams {
        target.call(client.set_log_policy(stream, policy)).await?;
    }
    Ok(OK)
}

fn action(line: &mut Line) -> Result<Action, Fail> {
    match &line.text()?[..] {
        "back-pressure" => Ok(Action::BackPressure),
        "drop" => Ok(Action::Drop),
        other => Err(line.mistake(format!("--action is back-pressure or drop, not '{other}'"))),
    }
}

fn streams(line: &mut Line) -> Result<Vec<Stream>, Fail> {
    match &line.text()?[..] {
        "stdout" => Ok(vec![Stream::Stdout]),
        "stderr" => Ok(vec![Stream::Stderr]),
        "both" => Ok(vec![Stream::Stdout, Stream::Stderr]),
        other => Err(line.mistake(format!("--stream is stdout, stderr or both, not '{other}'"))),
    }
}
