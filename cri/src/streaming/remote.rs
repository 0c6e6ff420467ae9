//! What exec and attach have in common, whatever the transport: a client's streams tied to a backend's channels.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use super::spdy::{Connection, Output, Patience, Stream};
use super::status::Language;
use super::websocket::{Channel, Dialect, Input, Socket};
use super::wire::Wire;
use super::{Gone, Io};
use crate::error::{Error, Result};

/// Chunks between a backend and a connection.
const QUEUE: usize = 4;
/// How long a client may take to open its streams.
const OPENING: Duration = Duration::from_secs(30);
/// A command that does not read its input stops its own client, and nobody else.
const PATIENCE: Patience = Patience { alone: None, shared: None, queue: 2 * QUEUE };

/// Numbers of WebSocket's channels.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

/// How client and server speak, as the upgrade has settled it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Spdy { resize: bool, language: Language },
    Web(Dialect),
}

/// The standard streams that a request asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

/// A client that has opened the streams of its request.
#[derive(Debug)]
struct Client {
    stdin: Option<mpsc::Receiver<Bytes>>,
    stdout: Option<Sink>,
    stderr: Option<Sink>,
    error: Sink,
    /// JSON as it comes.
    resize: Option<mpsc::Receiver<Bytes>>,
    gone: Gone,
    language: Language,
}

/// Something that takes bytes to the client.
#[derive(Debug)]
enum Sink {
    Spdy(Output),
    Web(Channel),
}

impl Sink {
    async fn send(&mut self, bytes: Bytes) -> bool {
        match self {
            Sink::Spdy(output) => output.send(bytes).await.is_ok(),
            Sink::Web(channel) => channel.send(bytes).await.is_ok(),
        }
    }

    async fn finish(self) {
        match self {
            Sink::Spdy(output) => drop(output.finish().await),
            Sink::Web(_) => {}
        }
    }
}

/// Serves a connection until the backend has ended and its end is said, or the client has gone.
pub async fn serve<'a>(
    wire: Wire,
    transport: Transport,
    wanted: Wanted,
    backend: impl FnOnce(Io) -> BoxFuture<'a, Result<i32>>,
) {
    match transport {
        Transport::Spdy { resize, language } => {
            let Wire { tcp, early, ends } = wire;
            let (connection, mut incoming) = Connection::start(tcp.into_split(), early, ends, PATIENCE);
            let streams = Streams::collect(&mut incoming, wanted, wanted.tty && resize).await;
            drop(incoming);
            match streams.client(connection.gone(), language) {
                Ok(client) => run(client, backend).await,
                Err(Some(error)) => refuse(error, language).await,
                Err(None) => {}
            }
            connection.close().await;
        }
        Transport::Web(dialect) => {
            let (socket, client) = web(wire, dialect, wanted).await;
            run(client, backend).await;
            socket.close().await;
        }
    }
}

/// The streams that a client has opened, by their types.
#[derive(Debug, Default)]
struct Streams {
    stdin: Option<Stream>,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
    error: Option<Stream>,
    resize: Option<Stream>,
    complete: bool,
}

impl Streams {
    /// Waits for exactly the streams of the request.
    async fn collect(incoming: &mut mpsc::Receiver<Stream>, wanted: Wanted, resize: bool) -> Streams {
        let end = Instant::now() + OPENING;
        let mut streams = Streams::default();
        let mut missing =
            1 + [wanted.stdin, wanted.stdout, wanted.stderr, resize].into_iter().map(usize::from).sum::<usize>();
        while missing > 0 {
            let Ok(Some(stream)) = timeout_at(end, incoming.recv()).await else { return streams };
            let place = match stream.headers.value("streamtype") {
                Some("stdin") if wanted.stdin => Some(&mut streams.stdin),
                Some("stdout") if wanted.stdout => Some(&mut streams.stdout),
                Some("stderr") if wanted.stderr => Some(&mut streams.stderr),
                Some("resize") if resize => Some(&mut streams.resize),
                Some("error") => Some(&mut streams.error),
                _ => None,
            };
            match place {
                Some(place @ None) => {
                    *place = Some(stream);
                    missing -= 1;
                }
                // Not asked for, or there already.
                _ => drop(stream.output.reset().await),
            }
        }
        streams.complete = true;
        streams
    }

    /// The client, or the stream to complain on.
    fn client(self, gone: Gone, language: Language) -> std::result::Result<Client, Option<Output>> {
        let sink = |stream: Option<Stream>| stream.map(|stream| Sink::Spdy(stream.output));
        let input = |stream: Option<Stream>| stream.map(|stream| stream.input);
        match self.error {
            Some(error) if self.complete => Ok(Client {
                stdin: input(self.stdin),
                stdout: sink(self.stdout),
                stderr: sink(self.stderr),
                error: Sink::Spdy(error.output),
                resize: input(self.resize),
                gone,
                language,
            }),
            error => Err(error.map(|stream| stream.output)),
        }
    }
}

async fn refuse(error: Output, language: Language) {
    let end = Err(Error::Deadline("timed out waiting for the client to open its streams".into()));
    let mut error = Sink::Spdy(error);
    error.send(language.say(&end).into()).await;
    error.finish().await;
}

/// A WebSocket has all channels from the beginning.
async fn web(wire: Wire, dialect: Dialect, wanted: Wanted) -> (Socket, Client) {
    let (stdin, input, _) = Input::new(STDIN, PATIENCE.queue);
    let (resize, sizes, _) = Input::new(RESIZE, QUEUE);
    let socket = Socket::start(wire, dialect, vec![stdin, resize], None).await;
    let sink = |wanted: bool, number| wanted.then(|| Sink::Web(socket.channel(number)));
    let client = Client {
        stdin: wanted.stdin.then_some(input),
        stdout: sink(wanted.stdout, STDOUT),
        stderr: sink(wanted.stderr, STDERR),
        error: Sink::Web(socket.channel(ERROR)),
        resize: wanted.tty.then_some(sizes),
        gone: socket.gone(),
        language: dialect.language,
    };
    // Older clients wait for a first message, even an empty one.
    let first = if wanted.stdout {
        STDOUT
    } else if wanted.stderr {
        STDERR
    } else {
        ERROR
    };
    let _ = socket.channel(first).send(Bytes::new()).await;
    (socket, client)
}

/// Runs a backend on a client's streams, and says its end on the error stream after the last output.
async fn run<'a>(client: Client, backend: impl FnOnce(Io) -> BoxFuture<'a, Result<i32>>) {
    let (stdout, out) = output(client.stdout);
    let (stderr, err) = output(client.stderr);
    let (sizes, resize) = mpsc::channel(QUEUE);
    let sizing = client.resize.map(|input| tokio::spawn(pass_sizes(input, sizes)));
    let io = Io { stdin: client.stdin, stdout, stderr, resize, gone: client.gone };
    let end = backend(io).await;
    for pump in [out, err].into_iter().flatten() {
        let _ = pump.await;
    }
    if let Some(sizing) = sizing {
        sizing.abort();
    }
    let mut error = client.error;
    error.send(client.language.say(&end).into()).await;
    error.finish().await;
}

/// A channel whose chunks go to a sink, which is ended after the last.
fn output(sink: Option<Sink>) -> (Option<mpsc::Sender<Bytes>>, Option<JoinHandle<()>>) {
    let Some(mut sink) = sink else { return (None, None) };
    let (sender, mut chunks) = mpsc::channel::<Bytes>(QUEUE);
    let pump = tokio::spawn(async move {
        while let Some(chunk) = chunks.recv().await {
            if !sink.send(chunk).await {
                // Dropping the receiver tells the backend.
                return;
            }
        }
        sink.finish().await;
    });
    (Some(sender), Some(pump))
}

async fn pass_sizes(mut input: mpsc::Receiver<Bytes>, sizes: mpsc::Sender<(u16, u16)>) {
    let mut parser = Sizes::default();
    while let Some(bytes) = input.recv().await {
        for size in parser.next(&bytes) {
            if sizes.send(size).await.is_err() {
                return;
            }
        }
    }
}

/// Reads `{"Width":80,"Height":24}` one after the other, wherever they are cut.
#[derive(Debug, Default)]
struct Sizes(Vec<u8>);

#[derive(serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    width: u16,
    height: u16,
}

impl Sizes {
    /// An object that is longer can be none of ours.
    const LONGEST: usize = 1024;

    /// Rows and columns that are complete now; sizes of nothing are left out.
    fn next(&mut self, bytes: &[u8]) -> Vec<(u16, u16)> {
        self.0.extend_from_slice(bytes);
        let mut sizes = Vec::new();
        let mut objects = serde_json::Deserializer::from_slice(&self.0).into_iter::<Size>();
        let bad = loop {
            match objects.next() {
                Some(Ok(size)) if size.width > 0 && size.height > 0 => sizes.push((size.height, size.width)),
                Some(Ok(_)) => {}
                Some(Err(error)) => break !error.is_eof(),
                None => break false,
            }
        };
        let read = objects.byte_offset();
        self.0.drain(..read);
        if bad || self.0.len() > Self::LONGEST {
            self.0.clear();
        }
        sizes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_wherever_they_are_cut() {
        let text = br#"{"Width":80,"Height":24}
            {"Width":132,"Height":43}{"Width":0,"Height":0}{"Height":1,"Width":2}"#;
        for cut in 0..text.len() {
            let mut sizes = Sizes::default();
            let (a, b) = text.split_at(cut);
            let seen = [sizes.next(a), sizes.next(b)].concat();
            assert_eq!(seen, [(24, 80), (43, 132), (1, 2)], "{cut}");
        }
    }

    #[test]
    fn what_is_no_size_is_forgotten() {
        let mut sizes = Sizes::default();
        assert_eq!(sizes.next(b"[[[ nonsense"), []);
        assert_eq!(sizes.next(b"{\"Width\":70000,\"Height\":1}"), []);
        assert_eq!(sizes.next(b"{\"Width\":1,\"Height\":1}"), [(1, 1)]);
        assert_eq!(sizes.next(&[b' '; 5000]), []);
        assert_eq!(sizes.next(b"{\"Width\":3,\"Height\":4}"), [(4, 3)]);
        for _ in 0..100 {
            assert_eq!(sizes.next(b"{\"Width\":3,    "), []);
        }
        assert!(sizes.0.len() <= Sizes::LONGEST);
    }
}
