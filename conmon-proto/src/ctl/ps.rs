//! `ps`: which monitors there are, and how their containers are.

use serde_json::{Value, json};

use crate::fail::{Done, OK};
use crate::find::{self, Answer, Monitor};
use crate::line::{Item, Line, print, print_json};
use crate::{json, show, term};

pub async fn run(mut line: Line) -> Done {
    let (mut all, mut whole) = (false, false);
    while let Some(item) = line.next()? {
        match item {
            Item::Option(option) if option == "-a" || option == "--all" => all = true,
            Item::Option(option) if option == "--no-trunc" => whole = true,
            Item::Option(option) => return Err(line.unknown(&option)),
            Item::Word(word) => {
                return Err(line.mistake(format!("'{}' is one word too many", word.to_string_lossy())));
            }
        }
    }
    let mut monitors = find::monitors();
    monitors.retain(|monitor| all || !monitor.exec);
    if let Some(socket) = &line.socket {
        monitors.retain(|monitor| monitor.socket.as_ref() == Some(socket));
    }
    let answers = find::ask_all(&monitors).await;
    let found = || monitors.iter().zip(&answers);
    if line.json {
        return print_json(&found().map(|(monitor, answer)| value(monitor, answer)).collect());
    }
    let rows: Vec<Vec<String>> = found().map(|(monitor, answer)| row(monitor, answer, whole)).collect();
    print(&coloured(&show::table(&HEADINGS, &rows)))?;
    Ok(OK)
}

const HEADINGS: [&str; 10] =
    ["CONTAINER", "NAME", "PHASE", ">PID", ">MONITOR", ">UP", ">OUTPUT", ">LOST", ">CLIENTS", ">EXECS"];

fn row(monitor: &Monitor, answer: &Answer, whole: bool) -> Vec<String> {
    let id = |id: &str| if whole { show::plain(id) } else { show::plain(&show::short(id)) };
    let phase = if monitor.exec { "exec" } else { answer.word() };
    let Answer::State(state, _) = answer else {
        let mut row =
            vec![id(&monitor.id), named(&monitor.name), phase.to_owned(), "-".to_owned(), monitor.pid.to_string()];
        row.resize(HEADINGS.len(), "-".to_owned());
        return row;
    };
    vec![
        id(&state.id),
        named(&state.name),
        phase.to_owned(),
        if state.pid > 0 { state.pid.to_string() } else { "-".to_owned() },
        state.monitor_pid.to_string(),
        show::age(state.started_at, show::now()),
        show::bytes(state.streams.iter().map(|stream| stream.bytes).sum()),
        show::bytes(state.streams.iter().map(|stream| stream.lost).sum()),
        state.clients.len().to_string(),
        state.execs.len().to_string(),
    ]
}

fn named(name: &str) -> String {
    if name.is_empty() { "-".to_owned() } else { show::plain(name) }
}

/// The headings in bold, on a terminal.
fn coloured(table: &str) -> String {
    match table.split_once('\n').filter(|_| term::colours()) {
        Some((headings, rows)) => format!("\x1b[1m{headings}\x1b[m\n{rows}"),
        None => table.to_owned(),
    }
}

/// A monitor for programs: what its process shows, and `state` if it answers.
pub fn value(monitor: &Monitor, answer: &Answer) -> Value {
    let (service, state) = match answer {
        Answer::State(state, _) => ("ok", json::state(state)),
        Answer::Absent => ("none", Value::Null),
        Answer::Silent => ("no answer", Value::Null),
        Answer::Refused => ("no access", Value::Null),
    };
    json!({
        "id": monitor.id,
        "name": if monitor.name.is_empty() { Value::Null } else { json!(monitor.name) },
        "monitorPid": monitor.pid,
        "socket": monitor.socket.as_ref().map(|socket| socket.to_string_lossy()),
        "exec": monitor.exec,
        "service": service,
        "state": state,
    })
}
