//! A connection with streams that its client opens.
//!
//! One task reads and never writes, another one writes: whatever waits for a slow client waits in the second, so that
//! the first goes on. The reader hands data to bounded queues. A full queue stops the reader, and with it the client,
//! for a while, as TCP would; a stream that stays full longer than [`Patience`] is reset, so that it does not hold up
//! the others.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::frames::{Decoder, Encoder, Fault, Frame, Headers};
use crate::streaming::Gone;
use crate::streaming::wire::{Clock, Ends, Peer};

/// Streams that a client may have open at a time.
pub const MAX_STREAMS: usize = 1024;
/// How long the client is given to close a connection that we have ended, before what it still sends is refused.
const LINGER: Duration = Duration::from_secs(5);
/// Frames on their way to the writer.
const QUEUE: usize = 8;
/// The longest data frame that we send.
const MAX_FRAME: usize = 64 * 1024;
/// Read at a time.
const READ: usize = 64 * 1024;

const PROTOCOL_ERROR: u32 = 1;
const REFUSED_STREAM: u32 = 3;
const CANCEL: u32 = 5;
const FLOW_CONTROL_ERROR: u32 = 7;

/// How long a stream whose data nobody takes may stop its connection; none: as long as it likes.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// When it is the only one with somebody to take data.
    pub alone: Option<Duration>,
    /// When there are others.
    pub shared: Option<Duration>,
    /// Chunks that wait in the queue of a stream.
    pub queue: usize,
}

/// One side of a SPDY connection that accepts streams.
#[derive(Debug)]
pub struct Connection {
    queue: mpsc::Sender<Out>,
    reader: JoinHandle<()>,
    writer: JoinHandle<()>,
    gone: Gone,
}

/// A stream that the client has opened.
#[derive(Debug)]
pub struct Stream {
    pub id: u32,
    pub headers: Headers,
    /// Ends when the client has sent all, or has gone, or has reset the stream. Dropping it discards what comes.
    pub input: mpsc::Receiver<Bytes>,
    pub output: Output,
}

/// Our direction of a stream.
#[derive(Debug)]
pub struct Output {
    id: u32,
    queue: mpsc::Sender<Out>,
    streams: Streams,
    life: watch::Receiver<bool>,
}

/// Tells of the early end of a stream.
#[derive(Debug)]
pub struct Life(watch::Receiver<bool>);

impl Life {
    /// Resolves when the client has reset the stream, or has gone before both directions had ended.
    pub async fn cut(&mut self) {
        if self.0.wait_for(|done| *done).await.is_ok() {
            std::future::pending().await
        }
    }
}

/// The stream takes nothing any more: reset, or the client has gone.
#[derive(Debug, PartialEq, Eq)]
pub struct Closed;

#[derive(Debug)]
enum Out {
    Data { id: u32, fin: bool, bytes: Bytes },
    Reply { id: u32 },
    Reset { id: u32, code: u32 },
    Ping { id: u32 },
    GoAway { last: u32, code: u32 },
    End,
}

type Streams = Arc<Mutex<HashMap<u32, Open>>>;

/// A stream of which a direction is still open.
#[derive(Debug)]
struct Open {
    /// Where its data goes, until the client or the taker ends it.
    input: Option<mpsc::Sender<Bytes>>,
    /// Whether somebody may still send.
    output: bool,
    /// Whether the client has been told that nobody does.
    finished: bool,
    /// Becomes true when both directions have ended; dropped before that by a reset.
    life: watch::Sender<bool>,
}

impl Connection {
    /// Starts to read and write; streams come out of the receiver until it is dropped, and are refused from then on.
    pub fn start<R, W>(
        (reader, writer): (R, W),
        early: Bytes,
        ends: Ends,
        patience: Patience,
    ) -> (Connection, mpsc::Receiver<Stream>)
    where
        R: AsyncRead + Send + Unpin + 'static,
        W: AsyncWrite + Send + Unpin + 'static,
    {
        let (queue, frames) = mpsc::channel(QUEUE);
        let (accepted, incoming) = mpsc::channel(QUEUE);
        let (present, gone) = Gone::pair();
        let clock = Arc::new(Clock::default());
        let writer = tokio::spawn(write(writer, frames, clock.clone()));
        let session = Session {
            decoder: Decoder::default(),
            streams: Streams::default(),
            accepted,
            queue: queue.clone(),
            clock: clock.clone(),
            peer: ends.peer.clone(),
            patience,
            last: 0,
        };
        let reader = tokio::spawn(async move {
            // Whoever waits for this client learns that there is none when these are dropped.
            let (_present, session) = (present, session);
            tokio::select! {
                () = session.read(reader, early) => {}
                () = ends.wait(clock) => {}
            }
        });
        (Connection { queue, reader, writer, gone }, incoming)
    }

    /// Resolves when the client has gone.
    pub fn gone(&self) -> Gone {
        self.gone.clone()
    }

    /// Sends what is on its way and closes; a client that still sends is listened to for a moment, since closing at
    /// once would make its kernel throw away what it has not read.
    pub async fn close(self) {
        let Connection { queue, mut reader, mut writer, mut gone } = self;
        let end = async {
            let _ = queue.send(Out::End).await;
            let _ = (&mut writer).await;
        };
        tokio::select! {
            () = end => {}
            () = async { gone.wait().await; sleep(LINGER).await } => {}
        }
        let _ = timeout(LINGER, &mut reader).await;
        reader.abort();
        writer.abort();
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        lock(&self.streams).clear();
    }
}

impl Output {
    /// Sends a piece, waiting for the client as long as it is there.
    pub async fn send(&mut self, bytes: Bytes) -> Result<(), Closed> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let bytes = rest.split_to(rest.len().min(MAX_FRAME));
            self.put(Out::Data { id: self.id, fin: false, bytes }).await?;
        }
        Ok(())
    }

    /// Ends our direction.
    pub async fn finish(mut self) -> Result<(), Closed> {
        if let Some(open) = lock(&self.streams).get_mut(&self.id) {
            open.finished = true;
        }
        self.put(Out::Data { id: self.id, fin: true, bytes: Bytes::new() }).await
    }

    /// Ends both directions at once.
    pub async fn reset(mut self) -> Result<(), Closed> {
        let sent = self.put(Out::Reset { id: self.id, code: CANCEL }).await;
        lock(&self.streams).remove(&self.id);
        sent
    }

    /// Tells of an early end of the stream while this is used.
    pub fn life(&self) -> Life {
        Life(self.life.clone())
    }

    async fn put(&mut self, out: Out) -> Result<(), Closed> {
        let Output { queue, life, .. } = self;
        tokio::select! {
            biased;
            _ = life.changed() => Err(Closed),
            sent = queue.send(out) => sent.map_err(|_| Closed),
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        let mut streams = lock(&self.streams);
        if let Some(open) = streams.get_mut(&self.id) {
            open.output = false;
            if open.input.is_none() {
                open.life.send_replace(true);
                streams.remove(&self.id);
            }
        }
    }
}

/// What the reader knows.
struct Session {
    decoder: Decoder,
    streams: Streams,
    accepted: mpsc::Sender<Stream>,
    queue: mpsc::Sender<Out>,
    clock: Arc<Clock>,
    peer: Peer,
    patience: Patience,
    /// The highest stream.
    last: u32,
}

/// Why the reader ends.
enum End {
    Fault(Fault),
    Protocol(&'static str),
    Gone,
}

impl From<Fault> for End {
    fn from(fault: Fault) -> End {
        End::Fault(fault)
    }
}

impl Session {
    async fn read(mut self, mut from: impl AsyncRead + Unpin, early: Bytes) {
        let mut input = BytesMut::from(early);
        let end = loop {
            if let Err(end) = self.frames(&mut input).await {
                break end;
            }
            input.reserve(READ);
            match from.read_buf(&mut input).await {
                Ok(0) | Err(_) => break End::Gone,
                Ok(_) => {}
            }
        };
        match end {
            End::Gone => return,
            End::Fault(fault) => tracing::debug!("Ending a connection: {fault}"),
            End::Protocol(text) => tracing::debug!("Ending a connection: {text}"),
        }
        let _ = self.queue.try_send(Out::GoAway { last: self.last, code: PROTOCOL_ERROR });
        let _ = self.queue.try_send(Out::End);
    }

    async fn frames(&mut self, input: &mut BytesMut) -> Result<(), End> {
        while let Some(frame) = self.decoder.next(input)? {
            self.frame(frame).await?;
        }
        Ok(())
    }

    async fn frame(&mut self, frame: Frame) -> Result<(), End> {
        match frame {
            Frame::Open { id, fin, one_way, headers } => self.open(id, fin, one_way, headers).await,
            Frame::Data { id, fin, bytes } => self.data(id, fin, bytes).await,
            Frame::Headers { id, fin: true, .. } => self.data(id, true, Bytes::new()).await,
            Frame::Reset { id, .. } => {
                lock(&self.streams).remove(&id);
                Ok(())
            }
            // Ours would have even numbers, and we send none.
            Frame::Ping { id } if id.is_multiple_of(2) => Ok(()),
            Frame::Ping { id } => self.put(Out::Ping { id }).await,
            // Whoever says so opens no more streams; those that are open go on until it closes.
            Frame::GoAway { .. } | Frame::Reply { .. } | Frame::Headers { .. } | Frame::Ignored { .. } => Ok(()),
        }
    }

    async fn open(&mut self, id: u32, fin: bool, one_way: bool, headers: Headers) -> Result<(), End> {
        if id.is_multiple_of(2) || id <= self.last {
            return Err(End::Protocol("a stream with a number of the wrong side, or out of order"));
        }
        self.last = id;
        self.clock.touch();
        if lock(&self.streams).len() >= MAX_STREAMS {
            return self.put(Out::Reset { id, code: REFUSED_STREAM }).await;
        }
        let (sender, input) = mpsc::channel(self.patience.queue);
        let (alive, life) = watch::channel(false);
        let open = Open { input: (!fin).then_some(sender), output: true, finished: false, life: alive };
        lock(&self.streams).insert(id, open);
        let output = Output { id, queue: self.queue.clone(), streams: self.streams.clone(), life };
        // The reply goes first, so that nothing is sent on a stream before it.
        if !one_way {
            self.put(Out::Reply { id }).await?;
        }
        if self.accepted.send(Stream { id, headers, input, output }).await.is_err() {
            lock(&self.streams).remove(&id);
            return self.put(Out::Reset { id, code: REFUSED_STREAM }).await;
        }
        Ok(())
    }

    async fn data(&mut self, id: u32, fin: bool, bytes: Bytes) -> Result<(), End> {
        self.clock.touch();
        // Not known: reset or refused while this was on its way.
        let Some(sender) = lock(&self.streams).get(&id).and_then(|open| open.input.clone()) else { return Ok(()) };
        let taken = if bytes.is_empty() { Ok(()) } else { sender.try_send(bytes) };
        match taken {
            // A taker that has enough is no reason to bother the client.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
            Err(mpsc::error::TrySendError::Full(bytes)) => self.wait(id, &sender, bytes).await?,
        }
        if fin {
            self.half_close(id);
        }
        Ok(())
    }

    /// Waits for room in a stream's queue, and resets the stream when there is none for too long.
    async fn wait(&mut self, id: u32, sender: &mpsc::Sender<Bytes>, bytes: Bytes) -> Result<(), End> {
        let patience = if self.others(id) { self.patience.shared } else { self.patience.alone };
        let give_up = async {
            match patience {
                Some(patience) => sleep(patience).await,
                None => std::future::pending().await,
            }
        };
        // Not a ping, which a client would answer behind the very bytes that are not read, and not read on before.
        let probe = || {
            if lock(&self.streams).get(&id).is_some_and(|open| !open.finished) {
                let _ = self.queue.try_send(Out::Data { id, fin: false, bytes: Bytes::new() });
            }
        };
        tokio::select! {
            // An error: whoever took has gone, and the rest is discarded.
            _ = sender.send(bytes) => Ok(()),
            () = self.peer.left(probe) => Err(End::Gone),
            () = give_up => {
                tracing::debug!("Resetting stream {id}: nobody takes its data");
                lock(&self.streams).remove(&id);
                self.put(Out::Reset { id, code: FLOW_CONTROL_ERROR }).await
            }
        }
    }

    fn others(&self, id: u32) -> bool {
        let taken = |open: &Open| open.input.as_ref().is_some_and(|input| !input.is_closed());
        lock(&self.streams).iter().any(|(other, open)| *other != id && taken(open))
    }

    fn half_close(&self, id: u32) {
        let mut streams = lock(&self.streams);
        if let Some(open) = streams.get_mut(&id) {
            open.input = None;
            if !open.output {
                open.life.send_replace(true);
                streams.remove(&id);
            }
        }
    }

    /// Passes a frame to the writer; after its end there is only a client to be listened to.
    async fn put(&mut self, out: Out) -> Result<(), End> {
        let _ = self.queue.send(out).await;
        Ok(())
    }
}

fn lock(streams: &Streams) -> MutexGuard<'_, HashMap<u32, Open>> {
    // Nothing panics while it is held.
    streams.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn write(mut to: impl AsyncWrite + Unpin, mut frames: mpsc::Receiver<Out>, clock: Arc<Clock>) {
    let written = write_frames(&mut to, &mut frames, &clock).await;
    if let Err(error) = written {
        tracing::debug!("Ending a connection: {error}");
    }
    let _ = to.shutdown().await;
}

async fn write_frames(
    to: &mut (impl AsyncWrite + Unpin),
    frames: &mut mpsc::Receiver<Out>,
    clock: &Clock,
) -> io::Result<()> {
    let mut encoder = Encoder::default();
    let (mut batch, mut bytes) = (Vec::new(), BytesMut::new());
    while frames.recv_many(&mut batch, QUEUE).await > 0 {
        let mut data = false;
        let mut end = false;
        for out in batch.drain(..) {
            data |= matches!(&out, Out::Data { bytes, .. } if !bytes.is_empty());
            end |= matches!(out, Out::End);
            encode(&mut encoder, out, &mut bytes);
        }
        to.write_all(&bytes).await?;
        to.flush().await?;
        bytes.clear();
        if data {
            clock.touch();
        }
        if end {
            break;
        }
    }
    Ok(())
}

fn encode(encoder: &mut Encoder, out: Out, bytes: &mut BytesMut) {
    match out {
        Out::Data { id, fin, bytes: data } => encoder.data(id, fin, &data, bytes),
        Out::Reply { id } => encoder.reply(id, &Headers::default(), bytes),
        Out::Reset { id, code } => encoder.reset(id, code, bytes),
        Out::Ping { id } => encoder.ping(id, bytes),
        Out::GoAway { last, code } => encoder.go_away(last, code, bytes),
        Out::End => {}
    }
}
