//! A conversation with a container: its output to ours, our input to it, until one of us ends it.

use std::process;
use std::time::Duration;

use conmon_proto::{Attachment, Client, End, Error, Event, Events, Exec, History, PeerKind, Stream};
use futures::FutureExt;
use futures::future::{LocalBoxFuture, pending, select_all};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::fail::Fail;
use crate::keys::{Keys, Typed};
use crate::stdio::{Descriptor, Stdio};
use crate::{json, show, term};

/// Who is at the other end.
pub enum Other {
    Attachment(Attachment),
    Exec(Exec),
}

impl Other {
    async fn write(&self, data: &[u8]) -> Result<(), Error> {
        match self {
            Other::Attachment(attachment) => attachment.write(data).await,
            Other::Exec(exec) => exec.write(data).await,
        }
    }

    async fn close_stdin(&self) -> Result<(), Error> {
        match self {
            Other::Attachment(attachment) => attachment.close_stdin().await,
            Other::Exec(exec) => exec.close_stdin().await,
        }
    }

    async fn resize(&self, rows: u16, columns: u16) -> Result<(), Error> {
        match self {
            Other::Attachment(attachment) => attachment.resize(rows, columns).await,
            Other::Exec(exec) => exec.resize(rows, columns).await,
        }
    }
}

/// How a conversation ended.
#[derive(Debug)]
pub enum Outcome {
    End(End),
    /// The connection went away without a word.
    Lost,
    /// By the keys that are for it.
    Left,
    Signal(i32),
    /// What was asked for has been said.
    Enough,
}

/// Our end: what was read from the container goes to our standard output and error.
pub struct Talk {
    pub input: Option<Input>,
    /// Tell the other end about the size of our terminal.
    pub sized: bool,
    pub out: Out,
}

/// What is typed.
pub struct Input {
    stdin: Stdio,
    keys: Keys,
    /// An end of file here is one there.
    closes: bool,
}

impl Input {
    pub fn new(keys: Keys, closes: bool) -> Input {
        Input { stdin: Stdio::open(Descriptor::Stdin), keys, closes }
    }

    /// Carries input until the keys say to leave. What the container does not take is not ours to complain about: its
    /// output tells how it ended.
    async fn carry(&mut self, other: &Other) -> Result<Outcome, Fail> {
        let mut buffer = [0; 32 << 10];
        loop {
            let read = self.stdin.read(&mut buffer).await;
            let read = read.map_err(|error| Fail::new(format!("cannot read standard input: {error}")))?;
            if read == 0 {
                if self.closes {
                    other.close_stdin().await.ok();
                }
                return pending().await;
            }
            let (data, leave) = match self.keys.feed(&buffer[..read]) {
                Typed::Pass(data) => (data, false),
                Typed::Leave(data) => (data, true),
            };
            if !data.is_empty() && other.write(&data).await.is_err() {
                return pending().await;
            }
            if leave {
                return Ok(Outcome::Left);
            }
        }
    }
}

impl Talk {
    /// Talks until somebody ends it.
    pub async fn run(&mut self, other: &Other, events: &mut Events) -> Result<Outcome, Fail> {
        let Talk { input, sized, out } = self;
        let mut parts: Vec<LocalBoxFuture<'_, Result<Outcome, Fail>>> = vec![out.carry(events).boxed_local()];
        if let Some(input) = input {
            parts.push(input.carry(other).boxed_local());
        }
        if *sized {
            parts.push(follow_size(other).boxed_local());
        }
        parts.push(ended_by_signal().boxed_local());
        select_all(parts).await.0
    }
}

/// The container's terminal has the size of ours.
async fn follow_size(other: &Other) -> Result<Outcome, Fail> {
    let mut changes = signal(SignalKind::window_change()).map_err(no_signals)?;
    while changes.recv().await.is_some() {
        if let Some((rows, columns)) = term::size() {
            // It may have ended just now.
            other.resize(rows, columns).await.ok();
        }
    }
    pending().await
}

/// Signals end us in the ordinary way, so that the terminal is left as it was.
pub async fn ended_by_signal() -> Result<Outcome, Fail> {
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup(), SignalKind::quit()];
    let mut waits = Vec::new();
    for kind in kinds {
        let mut signals = signal(kind).map_err(no_signals)?;
        waits.push(async move { signals.recv().await.map(|()| kind.as_raw_value()) }.boxed_local());
    }
    match select_all(waits).await.0 {
        Some(number) => Ok(Outcome::Signal(number)),
        None => pending().await,
    }
}

pub fn no_signals(error: std::io::Error) -> Fail {
    Fail::new(format!("cannot wait for signals: {error}"))
}

/// The exit status of a program that a signal ended.
pub fn signal_status(number: i32) -> u8 {
    u8::try_from(128 + number).unwrap_or(u8::MAX)
}

/// Where output goes, and how far it has come.
pub struct Out {
    stdout: Stdio,
    stderr: Stdio,
    json: bool,
    /// Offsets behind what was written: a new connection goes on here.
    pub place: Place,
}

/// Offsets of both streams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub stdout: u64,
    pub stderr: u64,
}

impl Place {
    fn reach(&mut self, stream: Stream, offset: u64) {
        let place = if stream == Stream::Stderr { &mut self.stderr } else { &mut self.stdout };
        *place = offset.max(*place);
    }

    fn covers(self, other: Place) -> bool {
        self.stdout >= other.stdout && self.stderr >= other.stderr
    }

    pub fn history(self) -> History {
        History::From { stdout: self.stdout, stderr: self.stderr }
    }
}

impl Out {
    pub fn new(json: bool) -> Out {
        let (stdout, stderr) = (Stdio::open(Descriptor::Stdout), Stdio::open(Descriptor::Stderr));
        Out { stdout, stderr, json, place: Place::default() }
    }

    /// Writes events until the last.
    pub async fn carry(&mut self, events: &mut Events) -> Result<Outcome, Fail> {
        while let Some(event) = events.next().await {
            if let Some(end) = self.write(event).await? {
                return Ok(Outcome::End(end));
            }
        }
        Ok(Outcome::Lost)
    }

    /// Writes what there is now, up to `until`. The protocol has no mark between what was and what is new, so when
    /// nothing comes for a moment the monitor is asked whether it still has something for us.
    pub async fn carry_until(&mut self, events: &mut Events, until: Place, client: &Client) -> Result<Outcome, Fail> {
        const MOMENT: Duration = Duration::from_millis(50);
        const MOMENTS: u32 = 40;
        let mut quiet = 0;
        while !self.place.covers(until) {
            match tokio::time::timeout(MOMENT, events.next()).await {
                Ok(None) => return Ok(Outcome::Lost),
                Ok(Some(event)) => {
                    quiet = 0;
                    if let Some(end) = self.write(event).await? {
                        return Ok(Outcome::End(end));
                    }
                }
                Err(_) if quiet == MOMENTS => return Ok(Outcome::Enough),
                Err(_) => {
                    quiet += 1;
                    if self.is_served(client).await {
                        // What was sent before the answer is here by now.
                        return self.carry_rest(events).await;
                    }
                }
            }
        }
        Ok(Outcome::Enough)
    }

    async fn carry_rest(&mut self, events: &mut Events) -> Result<Outcome, Fail> {
        while let Some(event) = events.next().now_or_never() {
            let Some(event) = event else { return Ok(Outcome::Lost) };
            if let Some(end) = self.write(event).await? {
                return Ok(Outcome::End(end));
            }
        }
        Ok(Outcome::Enough)
    }

    /// Whether the monitor says that we have everything.
    async fn is_served(&self, client: &Client) -> bool {
        let Ok(state) = client.inspect().await else { return false };
        let mut ours = state.clients.iter().filter(|peer| {
            peer.kind == PeerKind::Service && u32::try_from(peer.pid).is_ok_and(|pid| pid == process::id())
        });
        ours.next().is_some_and(|peer| !peer.behind && peer.waiting_for == 0)
    }

    async fn write(&mut self, event: Event) -> Result<Option<End>, Fail> {
        match event {
            Event::Write { stream, offset, data } => {
                self.data(stream, offset, &data).await?;
                self.place.reach(stream, offset + data.len() as u64);
            }
            Event::Gap { stream, offset, lost } => {
                self.gap(stream, offset, lost).await?;
                self.place.reach(stream, offset.saturating_add(lost));
            }
            Event::End(end) => {
                if self.json {
                    self.line(&json::end(&end)).await?;
                }
                return Ok(Some(end));
            }
        }
        Ok(None)
    }

    async fn data(&self, stream: Stream, offset: u64, data: &[u8]) -> Result<(), Fail> {
        if self.json {
            let mut value = json!({ "stream": stream.word(), "offset": offset });
            if let Some(fields) = value.as_object_mut() {
                fields.extend([json::data("data", data)]);
            }
            return self.line(&value).await;
        }
        let to = if stream == Stream::Stderr { &self.stderr } else { &self.stdout };
        Ok(to.write(data).await?)
    }

    async fn gap(&self, stream: Stream, offset: u64, lost: u64) -> Result<(), Fail> {
        if self.json {
            return self.line(&json!({ "stream": stream.word(), "offset": offset, "lost": lost })).await;
        }
        let text = format!("conwardctl: {} bytes of {stream} are lost here\n", show::bytes(lost));
        Ok(self.stderr.write(text.as_bytes()).await?)
    }

    async fn line(&self, value: &serde_json::Value) -> Result<(), Fail> {
        Ok(self.stdout.write(format!("{value}\n").as_bytes()).await?)
    }

    /// Writes captured output.
    pub async fn captured(&self, stdout: &[u8], stderr: &[u8]) -> Result<(), Fail> {
        self.stdout.write(stdout).await?;
        Ok(self.stderr.write(stderr).await?)
    }
}
