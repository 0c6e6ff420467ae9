//! WebSocket: channels numbered by the first byte of each message, and a tunnel for SPDY.
//!
//! `v5.channel.k8s.io` adds to `v4` a message `[255, N]`: the client sends no more on channel N. The older variants
//! differ in what the error channel says; the `base64` ones carry text, with the channel's number first, as a character
//! counted from '0'.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};

use super::Gone;
use super::base64;
use super::status::Language;
use super::wire::{Clock, Peer, Wire};

/// How long a client may take to answer a close.
const LINGER: Duration = Duration::from_secs(5);
/// The longest message; JavaScript and Python clients send a whole file at once, and other servers take as much.
const MAX_MESSAGE: usize = 32 << 20;
/// The longest piece that is handed on.
const MAX_CHUNK: usize = 32 * 1024;
/// Messages on their way to the writer.
const QUEUE: usize = 8;
/// The channel of the signal that another one is closed.
const CLOSE: u8 = 255;

/// A variant of the channel protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dialect {
    pub base64: bool,
    /// Whether the client can end a channel.
    pub close: bool,
    pub language: Language,
}

impl Dialect {
    /// The highest number of a channel, which is one byte or, in base64, one printable character from '0' on.
    pub fn last_channel(self) -> u8 {
        if self.base64 { b'~' - b'0' } else { u8::MAX }
    }
}

type Web = WebSocketStream<TcpStream>;

/// A WebSocket with channels.
#[derive(Debug)]
pub struct Socket {
    dialect: Dialect,
    queue: mpsc::Sender<Message>,
    reader: JoinHandle<()>,
    writer: JoinHandle<()>,
    gone: Gone,
}

/// The client's direction of a channel.
#[derive(Debug)]
pub struct Input {
    number: u8,
    queue: mpsc::Sender<Bytes>,
    /// Dropped with it.
    _present: watch::Sender<()>,
}

/// Our direction of a channel.
#[derive(Debug)]
pub struct Channel {
    number: u8,
    base64: bool,
    queue: mpsc::Sender<Message>,
    gone: Gone,
}

/// The client has gone.
#[derive(Debug, PartialEq, Eq)]
pub struct Closed;

impl Socket {
    /// Starts to read into the channels given, and to write; a channel whose data nobody takes for longer than
    /// `patience` is given up.
    pub async fn start(wire: Wire, dialect: Dialect, inputs: Vec<Input>, patience: Option<Duration>) -> Socket {
        let ends = wire.ends.clone();
        let (sink, stream) = accept(wire).await.split();
        let (queue, messages) = mpsc::channel(QUEUE);
        let (present, gone) = Gone::pair();
        let clock = Arc::new(Clock::default());
        let writer = tokio::spawn(write(sink, messages, clock.clone()));
        let (peer, back) = (ends.peer.clone(), queue.clone());
        let present = Some(present);
        let reader = Reader { dialect, inputs, patience, peer, queue: back, clock: clock.clone(), present };
        let reader = tokio::spawn(async move {
            tokio::select! {
                () = reader.read(stream) => {}
                () = ends.wait(clock) => {}
            }
        });
        Socket { dialect, queue, reader, writer, gone }
    }

    pub fn channel(&self, number: u8) -> Channel {
        Channel { number, base64: self.dialect.base64, queue: self.queue.clone(), gone: self.gone.clone() }
    }

    /// Resolves when the client has gone.
    pub fn gone(&self) -> Gone {
        self.gone.clone()
    }

    /// Sends what is on its way and says good-bye.
    pub async fn close(self) {
        let Socket { queue, mut reader, mut writer, mut gone, .. } = self;
        let end = async {
            let _ = queue.send(farewell()).await;
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

impl Input {
    /// An input, what comes of it, and its end, which is known before everything has been taken.
    pub fn new(number: u8, length: usize) -> (Input, mpsc::Receiver<Bytes>, Gone) {
        let (queue, chunks) = mpsc::channel(length);
        let (present, gone) = Gone::pair();
        (Input { number, queue, _present: present }, chunks, gone)
    }
}

impl Channel {
    /// Sends a piece, waiting for the client as long as it is there.
    pub async fn send(&mut self, bytes: Bytes) -> Result<(), Closed> {
        let message = if self.base64 {
            Message::text(format!("{}{}", char::from(b'0' + self.number), base64::encode(&bytes)))
        } else {
            let mut message = Vec::with_capacity(1 + bytes.len());
            message.push(self.number);
            message.extend_from_slice(&bytes);
            Message::binary(message)
        };
        tokio::select! {
            biased;
            () = self.gone.wait() => Err(Closed),
            sent = self.queue.send(message) => sent.map_err(|_| Closed),
        }
    }
}

async fn accept(wire: Wire) -> Web {
    let config = WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_MESSAGE));
    WebSocketStream::from_partially_read(wire.tcp, wire.early.into(), Role::Server, Some(config)).await
}

fn farewell() -> Message {
    Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() }))
}

async fn write(mut sink: SplitSink<Web, Message>, mut messages: mpsc::Receiver<Message>, clock: Arc<Clock>) {
    while let Some(message) = messages.recv().await {
        let (last, data) = (message.is_close(), message.is_binary() || message.is_text());
        let sent = if messages.is_empty() { sink.send(message).await } else { sink.feed(message).await };
        if data {
            clock.touch();
        }
        if let Err(error) = sent {
            tracing::debug!("Ending a WebSocket: {error}");
            return;
        }
        if last {
            let _ = sink.flush().await;
            return;
        }
    }
}

struct Reader {
    dialect: Dialect,
    inputs: Vec<Input>,
    patience: Option<Duration>,
    peer: Peer,
    queue: mpsc::Sender<Message>,
    clock: Arc<Clock>,
    /// Until the client has gone; what it has sent before is handed on all the same.
    present: Option<watch::Sender<()>>,
}

impl Reader {
    async fn read(mut self, mut stream: SplitStream<Web>) {
        // Going on after a close sends the answer to it.
        while let Some(message) = stream.next().await {
            let bytes = match message {
                Ok(Message::Binary(bytes)) if self.dialect.base64 => decode(&bytes),
                Ok(Message::Text(text)) if self.dialect.base64 => decode(text.as_bytes()),
                Ok(Message::Binary(bytes)) => bytes,
                Ok(Message::Text(text)) => text.into(),
                Ok(_) => continue,
                Err(error) => {
                    tracing::debug!("Ending a WebSocket: {error}");
                    return;
                }
            };
            self.clock.touch();
            self.message(bytes).await;
        }
    }

    async fn message(&mut self, mut bytes: Bytes) {
        if bytes.is_empty() {
            return;
        }
        let number = bytes.split_to(1)[0];
        if number == CLOSE && self.dialect.close {
            self.inputs.retain(|input| Some(&input.number) != bytes.first());
            return;
        }
        while !bytes.is_empty() {
            let Some(at) = self.inputs.iter().position(|input| input.number == number) else { return };
            let chunk = bytes.split_to(bytes.len().min(MAX_CHUNK));
            if !self.hand_on(at, chunk).await {
                self.inputs.remove(at);
            }
        }
    }

    /// Waits until a piece is taken; tells whether its input is of use any more.
    async fn hand_on(&mut self, at: usize, chunk: Bytes) -> bool {
        let mut sending = pin!(self.inputs[at].queue.send(chunk));
        let mut give_up = pin!(async {
            match self.patience {
                Some(patience) => sleep(patience).await,
                None => std::future::pending().await,
            }
        });
        // Nobody answers a pong.
        let probe = || drop(self.queue.try_send(Message::Pong(Bytes::new())));
        loop {
            tokio::select! {
                biased;
                sent = &mut sending => return sent.is_ok(),
                () = self.peer.left(&probe), if self.present.is_some() => self.present = None,
                () = &mut give_up => return false,
            }
        }
    }
}

/// The channel's character and base64, as the channel's number and bytes; nothing for what is neither.
fn decode(text: &[u8]) -> Bytes {
    let Some((digit @ b'0'..=b'~', rest)) = text.split_first() else { return Bytes::new() };
    let Some(bytes) = base64::decode(rest) else { return Bytes::new() };
    let mut message = vec![digit - b'0'];
    message.extend(bytes);
    message.into()
}

/// Makes a byte stream of the binary messages of a WebSocket.
pub async fn tunnel(wire: Wire) -> DuplexStream {
    let (mut sink, mut stream) = accept(wire).await.split();
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let (mut from, mut to) = tokio::io::split(ours);
    let read = async move {
        while let Some(Ok(message)) = stream.next().await {
            if let Message::Binary(bytes) = message
                && to.write_all(&bytes).await.is_err()
            {
                break;
            }
        }
        let _ = to.shutdown().await;
    };
    let write = async move {
        let mut chunk = vec![0; MAX_CHUNK];
        loop {
            let message = match from.read(&mut chunk).await {
                Ok(0) | Err(_) => break,
                Ok(count) => Message::binary(chunk[..count].to_vec()),
            };
            if sink.send(message).await.is_err() {
                return;
            }
        }
        let _ = sink.send(farewell()).await;
    };
    tokio::spawn(async move {
        let (mut read, mut write) = (pin!(read), pin!(write));
        tokio::select! {
            () = &mut read => write.await,
            // Until the client has answered.
            () = &mut write => drop(timeout(LINGER, read).await),
        }
    });
    theirs
}
