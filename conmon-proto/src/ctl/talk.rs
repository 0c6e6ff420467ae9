//! A conversation with a container: its output to ours, our input to it, until one of us ends it.

use std::pin::pin;
use std::process;
use std::task::Poll;
use std::time::Duration;

use conmon_proto::{Attachment, Client, End, Error, Event, Events, Exec, History, PeerKind, Stream};
use futures::FutureExt;
use futures::future::{Either, LocalBoxFuture, pending, poll_fn, select, select_all};
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};

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
    pub signals: Signals,
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

    /// Carries input until the keys say to leave, which are looked for also while the container takes nothing. What it
    /// does not take is not ours to complain about: its output tells how it ended.
    async fn carry(&mut self, other: &Other) -> Result<Outcome, Fail> {
        let mut buffer = [0; 32 << 10];
        let (mut queue, mut open, mut taken) = (Vec::new(), true, true);
        let mut writing: Option<LocalBoxFuture<'_, Result<(), Error>>> = None;
        loop {
            if writing.is_none() && !queue.is_empty() {
                let data = std::mem::take(&mut queue);
                writing = taken.then(|| async move { other.write(&data).await }.boxed_local());
            }
            if !open && writing.is_none() {
                if self.closes {
                    other.close_stdin().await.ok();
                }
                return pending().await;
            }
            let reads = open && queue.len() < QUEUE_MAX;
            let read = async { if reads { self.stdin.read(&mut buffer).await } else { pending().await } };
            let write = async { if let Some(writing) = &mut writing { writing.await } else { pending().await } };
            let read = match select(pin!(read), pin!(write)).await {
                Either::Left((read, _)) => read,
                Either::Right((done, _)) => {
                    (writing, taken) = (None, taken && done.is_ok());
                    continue;
                }
            };
            let read = read.map_err(|error| Fail::new(format!("cannot read standard input: {error}")))?;
            open = read > 0;
            match self.keys.feed(&buffer[..read]) {
                Typed::Pass(data) => queue.extend(data),
                Typed::Leave(data) => {
                    queue.extend(data);
                    let last = async {
                        if let Some(writing) = writing {
                            writing.await?;
                        }
                        if queue.is_empty() { Ok(()) } else { other.write(&queue).await }
                    };
                    tokio::time::timeout(LAST_WORDS, last).await.ok();
                    return Ok(Outcome::Left);
                }
            }
        }
    }
}

/// Input that is read ahead of what the container takes.
const QUEUE_MAX: usize = 64 << 10;

/// How long the container may take for what was typed before leaving.
const LAST_WORDS: Duration = Duration::from_secs(1);

impl Talk {
    /// Talks until somebody ends it.
    pub async fn run(&mut self, other: &Other, events: &mut Events) -> Result<Outcome, Fail> {
        let Talk { input, sized, out, signals } = self;
        let mut parts: Vec<LocalBoxFuture<'_, Result<Outcome, Fail>>> =
            vec![signals.next().boxed_local(), out.carry(events).boxed_local()];
        if let Some(input) = input {
            parts.push(input.carry(other).boxed_local());
        }
        if *sized {
            parts.push(follow_size(other).boxed_local());
        }
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

/// Signals that end us in the ordinary way, so that the terminal is left as it was. To be made before it is changed.
pub struct Signals(Vec<(i32, Signal)>);

impl Signals {
    pub fn catch() -> Result<Signals, Fail> {
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup(), SignalKind::quit()];
        let caught = kinds.map(|kind| Ok((kind.as_raw_value(), signal(kind)?)));
        Ok(Signals(caught.into_iter().collect::<Result<_, _>>().map_err(no_signals)?))
    }

    /// Waits for one of them.
    pub async fn next(&mut self) -> Result<Outcome, Fail> {
        let number = poll_fn(|cx| {
            let came =
                self.0.iter_mut().find_map(|(number, signal)| signal.poll_recv(cx).is_ready().then_some(*number));
            came.map_or(Poll::Pending, Poll::Ready)
        });
        Ok(Outcome::Signal(number.await))
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

    /// Writes what a log file has, and counts as it goes.
    pub async fn record(&mut self, stream: Stream, data: &[u8]) -> Result<(), Fail> {
        let offset = if stream == Stream::Stderr { self.place.stderr } else { self.place.stdout };
        self.data(stream, offset, data).await?;
        self.place.reach(stream, offset + data.len() as u64);
        Ok(())
    }

    /// Writes captured output.
    pub async fn captured(&self, stdout: &[u8], stderr: &[u8]) -> Result<(), Fail> {
        self.stdout.write(stdout).await?;
        Ok(self.stderr.write(stderr).await?)
    }
}
