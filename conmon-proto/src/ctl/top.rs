//! `top`: all monitors of the host, again and again.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use conmon_proto::{Client, State};
use futures::FutureExt;
use futures::future::{LocalBoxFuture, join_all, pending, select_all};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use crate::fail::{Done, Fail, OK};
use crate::find::{self, Answer, Monitor};
use crate::line::{Item, Line, print, print_json};
use crate::show::{age, bytes, now, plain, short};
use crate::stdio::{Descriptor, Stdio};
use crate::talk::{self, Outcome, Signals};
use crate::term::{self, Raw};

/// What rows are sorted by, with the key that chooses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sort {
    Id,
    Name,
    Rate,
    Lost,
    Memory,
    Log,
}

const SORTS: [(Sort, u8, &str); 6] = [
    (Sort::Id, b'i', "id"),
    (Sort::Name, b'n', "name"),
    (Sort::Rate, b'r', "rate"),
    (Sort::Lost, b'l', "lost"),
    (Sort::Memory, b'm', "memory"),
    (Sort::Log, b's', "size"),
];

pub async fn run(mut line: Line) -> Done {
    let (mut once, mut sort, mut interval) = (false, Sort::Rate, 1.0);
    while let Some(item) = line.next()? {
        match item {
            Item::Option(option) => match &option[..] {
                "--once" => once = true,
                "--sort" => sort = self::sort(&mut line)?,
                "--interval" => interval = line.number::<f64>()?,
                _ => return Err(line.unknown(&option)),
            },
            Item::Word(word) => {
                return Err(line.mistake(format!("'{}' is one word too many", word.to_string_lossy())));
            }
        }
    }
    if !(0.1..=3600.0).contains(&interval) {
        return Err(line.mistake("--interval is between 0.1 and 3600 seconds"));
    }
    let interval = Duration::from_secs_f64(interval);
    let mut watch = Watch::default();
    if once || line.json {
        return self::once(&mut watch, &line, sort, interval).await;
    }
    if !term::stdin_is_terminal() || !term::stdout_is_terminal() {
        return Err(line.mistake("this is no terminal; --once prints the table one time"));
    }
    live(&mut watch, sort, interval).await
}

fn sort(line: &mut Line) -> Result<Sort, Fail> {
    let text = line.text()?;
    let found = SORTS.iter().find(|(_, _, name)| *name == text);
    found
        .map(|(sort, ..)| *sort)
        .ok_or_else(|| line.mistake(format!("--sort is one of {}", SORTS.map(|(_, _, name)| name).join(", "))))
}

/// A rate needs two looks.
async fn once(watch: &mut Watch, line: &Line, sort: Sort, interval: Duration) -> Done {
    watch.look().await;
    tokio::time::sleep(interval).await;
    let rows = watch.look().await;
    if line.json {
        return print_json(&rows.iter().map(value).collect());
    }
    let (width, height) = (usize::MAX, usize::MAX);
    let screen = View { rows: &sorted(rows, sort), sort, width, height, hint: false }.lines();
    print(&format!("{}\n", screen.join("\n")))?;
    Ok(OK)
}

fn value(row: &Row) -> Value {
    let state = row.state.as_deref();
    let sum = |of: fn(&State) -> u64| state.map(of);
    json!({
        "id": row.id,
        "name": if row.name.is_empty() { Value::Null } else { json!(row.name) },
        "phase": row.phase,
        "bytesPerSecond": row.rate,
        "bytes": sum(written),
        "lost": sum(lost),
        "clients": state.map(|state| state.clients.len()),
        "execs": state.map(|state| state.execs.len()),
        "memory": state.map(|state| state.memory.private),
        "logSize": sum(logged),
    })
}

async fn live(watch: &mut Watch, mut sort: Sort, interval: Duration) -> Done {
    let stdin = Stdio::open(Descriptor::Stdin);
    let mut signals = Signals::catch()?;
    let _raw = Raw::screen().map_err(|error| Fail::new(format!("cannot use the terminal: {error}")))?;
    let mut resized = signal(SignalKind::window_change()).map_err(talk::no_signals)?;
    let mut rows = watch.look().await;
    let mut next = Instant::now() + interval;
    loop {
        rows = sorted(rows, sort);
        draw(&rows, sort)?;
        let mut keys = [0; 64];
        let waits: [LocalBoxFuture<'_, Result<Woken, Fail>>; 4] = [
            async { Ok(Woken::Keys(stdin.read(&mut keys).await.map_err(Fail::from)?)) }.boxed_local(),
            tokio::time::sleep_until(next.into()).map(|()| Ok(Woken::Tick)).boxed_local(),
            async { if resized.recv().await.is_some() { Ok(Woken::Resized) } else { pending().await } }.boxed_local(),
            signals.next().map(|signal| signal.map(Woken::Ended)).boxed_local(),
        ];
        let (woken, ..) = select_all(waits).await;
        match woken? {
            Woken::Keys(0) => return Ok(OK),
            Woken::Keys(count) => {
                for &key in &keys[..count] {
                    if matches!(key, b'q' | b'Q' | CTRL_C) {
                        return Ok(OK);
                    }
                    sort = SORTS.iter().find(|(_, letter, _)| *letter == key).map_or(sort, |(chosen, ..)| *chosen);
                }
            }
            Woken::Tick => {
                rows = watch.look().await;
                next = Instant::now() + interval;
            }
            Woken::Resized => {}
            Woken::Ended(Outcome::Signal(number)) => return Ok(talk::signal_status(number)),
            Woken::Ended(_) => return Ok(OK),
        }
    }
}

enum Woken {
    Keys(usize),
    Tick,
    Resized,
    Ended(Outcome),
}

const CTRL_C: u8 = 3;

fn draw(rows: &[Row], sort: Sort) -> Result<(), Fail> {
    let (height, width) = term::size().unwrap_or((24, 80));
    let lines = View { rows, sort, width: width.into(), height: height.into(), hint: true }.lines();
    // Every line ends what was there before, and so does the last: nothing flickers.
    let lines: Vec<String> = lines.into_iter().map(|line| format!("{line}\x1b[K")).collect();
    print(&format!("\x1b[H{}\x1b[J", lines.join("\r\n")))
}

/// What was seen of the monitors before.
#[derive(Default)]
struct Watch {
    clients: HashMap<PathBuf, Client>,
    written: HashMap<String, (Instant, u64)>,
}

/// One monitor, at one moment.
struct Row {
    id: String,
    name: String,
    phase: String,
    state: Option<Box<State>>,
    /// Bytes per second since the look before.
    rate: Option<u64>,
}

impl Watch {
    async fn look(&mut self) -> Vec<Row> {
        let monitors: Vec<Monitor> = find::monitors().into_iter().filter(|monitor| !monitor.exec).collect();
        let answers = join_all(monitors.iter().map(|monitor| self.ask(monitor))).await;
        let (mut clients, mut written_now, at) = (HashMap::new(), HashMap::new(), Instant::now());
        let mut rows = Vec::new();
        for (monitor, answer) in monitors.into_iter().zip(answers) {
            let phase = answer.word().to_owned();
            let Answer::State(state, client) = answer else {
                rows.push(Row { id: monitor.id, name: monitor.name, phase, state: None, rate: None });
                continue;
            };
            let bytes = written(&state);
            let rate = self.written.get(&state.id).map(|&(before, count)| rate(count, bytes, at - before));
            written_now.insert(state.id.clone(), (at, bytes));
            clients.extend(monitor.socket.map(|socket| (socket, client)));
            rows.push(Row { id: state.id.clone(), name: state.name.clone(), phase, state: Some(state), rate });
        }
        (self.clients, self.written) = (clients, written_now);
        rows
    }

    /// Over the connection of the look before, if it still stands.
    async fn ask(&self, monitor: &Monitor) -> Answer {
        if let Some(client) = monitor.socket.as_ref().and_then(|socket| self.clients.get(socket)) {
            match tokio::time::timeout(find::PATIENCE, client.inspect()).await {
                Ok(Ok(state)) => return Answer::State(Box::new(state), client.clone()),
                Ok(Err(_)) => {}
                Err(_) => return Answer::Silent,
            }
        }
        find::ask(monitor).await
    }
}

fn rate(before: u64, after: u64, time: Duration) -> u64 {
    let milliseconds = u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1);
    after.saturating_sub(before).saturating_mul(1000) / milliseconds
}

fn written(state: &State) -> u64 {
    state.streams.iter().map(|stream| stream.bytes).sum()
}

fn lost(state: &State) -> u64 {
    state.streams.iter().map(|stream| stream.lost).sum()
}

fn logged(state: &State) -> u64 {
    state.sinks.iter().map(|sink| sink.size).sum()
}

fn sorted(mut rows: Vec<Row>, sort: Sort) -> Vec<Row> {
    let number = |row: &Row, of: fn(&State) -> u64| Reverse(row.state.as_ref().map(|state| of(state)));
    rows.sort_by(|a, b| a.id.cmp(&b.id));
    match sort {
        Sort::Id => {}
        Sort::Name => rows.sort_by(|a, b| a.name.cmp(&b.name)),
        Sort::Rate => rows.sort_by_key(|row| Reverse(row.rate)),
        Sort::Lost => rows.sort_by_key(|row| number(row, lost)),
        Sort::Memory => rows.sort_by_key(|row| number(row, |state| state.memory.private)),
        Sort::Log => rows.sort_by_key(|row| number(row, logged)),
    }
    rows
}

/// A screen of rows.
struct View<'a> {
    rows: &'a [Row],
    sort: Sort,
    width: usize,
    height: usize,
    /// Say which keys there are.
    hint: bool,
}

/// Heading, width, and whether it is a number. What is most worth knowing comes first: a narrow terminal shows less.
const COLUMNS: [(&str, usize, bool); 10] = [
    ("CONTAINER", 12, false),
    ("PHASE", 9, false),
    ("RATE/s", 6, true),
    ("LOST", 5, true),
    ("NAME", 20, false),
    ("MEMORY", 6, true),
    ("LOG", 5, true),
    ("CLIENTS", 7, true),
    ("EXECS", 5, true),
    ("UP", 4, true),
];

impl View<'_> {
    fn lines(&self) -> Vec<String> {
        let shown = self.columns();
        let mut lines = Vec::new();
        if self.hint {
            lines.push(self.summary(shown));
        }
        let headings: Vec<String> = COLUMNS.iter().map(|(name, ..)| (*name).to_owned()).collect();
        lines.push(cells(&headings, shown));
        let room = self.height.saturating_sub(lines.len()).max(1);
        let fit = if self.rows.len() <= room { room } else { room - 1 };
        lines.extend(self.rows.iter().take(fit).map(|row| cells(&texts(row), shown)));
        if self.rows.len() > fit {
            lines.push(format!("… {} more do not fit", self.rows.len() - fit));
        }
        lines.iter().map(|line| line.chars().take(self.width).collect::<String>().trim_end().to_owned()).collect()
    }

    /// How many columns fit.
    fn columns(&self) -> usize {
        let mut width = 0;
        let fits = COLUMNS.iter().take_while(|(_, column, _)| {
            width += column + 2;
            width - 2 <= self.width
        });
        fits.count().max(1)
    }

    fn summary(&self, shown: usize) -> String {
        let by = SORTS.iter().find(|(sort, ..)| *sort == self.sort).map_or("", |(_, _, name)| *name);
        let hidden = match COLUMNS.len() - shown {
            0 => String::new(),
            1 => ", 1 column does not fit".to_owned(),
            count => format!(", {count} columns do not fit"),
        };
        let keys = SORTS.map(|(_, _, name)| name).join(" ");
        format!("{} monitors by {by}{hidden}; q quits; sort by first letter: {keys}", self.rows.len())
    }
}

fn cells(texts: &[String], shown: usize) -> String {
    let cells = texts.iter().zip(COLUMNS).take(shown).map(|(text, (_, width, number))| {
        // A cell that is cut says so.
        let text = match text.chars().count() > width {
            true => text.chars().take(width - 1).chain(['…']).collect(),
            false => text.clone(),
        };
        if number { format!("{text:>width$}") } else { format!("{text:<width$}") }
    });
    cells.collect::<Vec<_>>().join("  ")
}

fn texts(row: &Row) -> [String; COLUMNS.len()] {
    let of = |text: fn(&State) -> String| row.state.as_ref().map_or("-".to_owned(), |state| text(state));
    [
        plain(&short(&row.id)),
        row.phase.clone(),
        row.rate.map_or("-".to_owned(), bytes),
        of(|state| bytes(lost(state))),
        plain(&row.name),
        of(|state| bytes(state.memory.private)),
        of(|state| bytes(logged(state))),
        of(|state| state.clients.len().to_string()),
        of(|state| state.execs.len().to_string()),
        of(|state| age(state.started_at, now())),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Row> {
        let row = |id: &str, rate| Row {
            id: id.to_owned(),
            name: "a name that is longer than its column".to_owned(),
            phase: "running".to_owned(),
            state: None,
            rate,
        };
        vec![row("slow", Some(5)), row("silent", None), row("fast", Some(5000))]
    }

    fn lines(width: usize, height: usize) -> Vec<String> {
        View { rows: &sorted(rows(), Sort::Rate), sort: Sort::Rate, width, height, hint: true }.lines()
    }

    #[test]
    fn a_narrow_terminal_shows_less_and_says_so() {
        let wide = lines(200, 24);
        assert!(wide[0].starts_with("3 monitors by rate; q quits"), "{}", wide[0]);
        assert_eq!(wide[1].split_whitespace().count(), COLUMNS.len());
        assert!(wide[2].starts_with("fast          running      4.8K      -  a name that is long…"), "{}", wide[2]);
        assert!(wide[4].starts_with("silent"));
        let narrow = lines(40, 24);
        assert!(narrow[0].starts_with("3 monitors by rate, 6 columns do not fi"), "{}", narrow[0]);
        assert_eq!(narrow[1], "CONTAINER     PHASE      RATE/s   LOST");
        assert!(narrow.iter().all(|line| line.chars().count() <= 40));
    }

    #[test]
    fn a_low_terminal_counts_what_is_below() {
        let low = lines(200, 4);
        assert_eq!(low.len(), 4);
        assert_eq!(low[3], "… 2 more do not fit");
        assert_eq!(rate(1000, 3000, Duration::from_millis(500)), 4000);
        assert_eq!(rate(5, 1, Duration::ZERO), 0);
    }
}
