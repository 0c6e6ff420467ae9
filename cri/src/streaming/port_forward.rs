//! Connections to ports of a pod.
//!
//! Over SPDY a client opens for each connection two streams, `error` and `data`, with the same `requestid` and `port`.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::spdy::{Connection, Output, Patience, Stream};
use super::wire::Wire;
use super::{Backend, PortForwardRequest, channels, websocket};
use crate::error::Error;

/// How long a client may take to open the second stream of a connection.
const OPENING: Duration = Duration::from_secs(30);
/// Connections that lack their second stream.
const MAX_HALVES: usize = 256;
/// A connection whose other end reads nothing may hold up the others shortly, and new ones not until clients give up.
pub const PATIENCE: Patience =
    Patience { alone: Some(Duration::from_secs(20)), shared: Some(Duration::from_secs(2)), queue: 32 };
/// How long a port that sends no more may take to end altogether, before the client is told that all is well.
pub const GRACE: Duration = Duration::from_millis(300);
/// Bytes between a connection and the backend.
pub const PIPE: usize = 64 * 1024;
/// Read at a time.
pub const CHUNK: usize = 32 * 1024;

/// How client and server speak, as the upgrade has settled it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarding {
    Spdy,
    /// SPDY in the messages of a WebSocket.
    Tunnel,
    Web {
        base64: bool,
    },
}

/// Forwards what the client asks for until it has gone.
pub async fn serve(backend: Arc<dyn Backend>, request: PortForwardRequest, wire: Wire, forwarding: Forwarding) {
    let pod = request.pod;
    match forwarding {
        Forwarding::Spdy => {
            let Wire { tcp, early, ends } = wire;
            let (connection, incoming) = Connection::start(tcp.into_split(), early, ends, PATIENCE);
            streams(backend, pod, incoming).await;
            connection.close().await;
        }
        Forwarding::Tunnel => {
            let ends = wire.ends.clone();
            let pipe = websocket::tunnel(wire).await;
            let (connection, incoming) = Connection::start(tokio::io::split(pipe), Bytes::new(), ends, PATIENCE);
            streams(backend, pod, incoming).await;
            connection.close().await;
        }
        Forwarding::Web { base64 } => channels::serve(&*backend, pod, request.ports, wire, base64).await,
    }
}

/// A connection that lacks a stream.
#[derive(Debug)]
struct Half {
    since: Instant,
    port: u16,
    stream: Stream,
    is_data: bool,
}

async fn streams(backend: Arc<dyn Backend>, pod: String, mut incoming: mpsc::Receiver<Stream>) {
    let mut halves: HashMap<String, Half> = HashMap::new();
    let mut running = JoinSet::new();
    loop {
        let oldest = halves.values().map(|half| half.since + OPENING).min();
        let give_up = async {
            match oldest {
                Some(end) => sleep_until(end).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            stream = incoming.recv() => {
                let Some(stream) = stream else { break };
                if let Some((port, error, data)) = pair(&mut halves, stream).await {
                    running.spawn(forward(backend.clone(), pod.clone(), port, error, data));
                }
            }
            () = give_up => {
                let late: Vec<String> = halves
                    .iter()
                    .filter(|(_, half)| half.since.elapsed() >= OPENING)
                    .map(|(id, _)| id.clone())
                    .collect();
                for half in late.iter().filter_map(|id| halves.remove(id)).collect::<Vec<_>>() {
                    let _ = half.stream.output.reset().await;
                }
            }
            _ = running.join_next(), if !running.is_empty() => {}
        }
    }
    running.shutdown().await;
}

/// Adds a stream; gives the port with its error and data streams when both are there. What cannot be used is reset.
async fn pair(halves: &mut HashMap<String, Half>, stream: Stream) -> Option<(u16, Stream, Stream)> {
    let Some((id, port, is_data)) = purpose(&stream) else {
        let _ = stream.output.reset().await;
        return None;
    };
    match halves.remove(&id) {
        Some(half) if half.is_data != is_data && half.port == port => {
            let (error, data) = if is_data { (half.stream, stream) } else { (stream, half.stream) };
            Some((port, error, data))
        }
        Some(half) => {
            halves.insert(id, half);
            let _ = stream.output.reset().await;
            None
        }
        None if halves.len() >= MAX_HALVES => {
            let _ = stream.output.reset().await;
            None
        }
        None => {
            halves.insert(id, Half { since: Instant::now(), port, stream, is_data });
            None
        }
    }
}

/// The connection that a stream belongs to, its port, and whether it carries data.
fn purpose(stream: &Stream) -> Option<(String, u16, bool)> {
    let port = stream.headers.value("port")?.parse().ok().filter(|port| *port > 0)?;
    let is_data = match stream.headers.value("streamtype")? {
        "data" => true,
        "error" => false,
        _ => return None,
    };
    let id = match stream.headers.value("requestid") {
        Some(id) => id.to_owned(),
        // The first clients opened the error stream and right after it the data stream.
        None if is_data => stream.id.checked_sub(2)?.to_string(),
        None => stream.id.to_string(),
    };
    Some((id, port, is_data))
}

async fn forward(backend: Arc<dyn Backend>, pod: String, port: u16, error: Stream, data: Stream) {
    let Stream { input, mut output, .. } = data;
    let mut error = Some(error.output);
    let mut life = output.life();
    let (ours, theirs) = tokio::io::duplex(PIPE);
    let (from, to) = tokio::io::split(ours);
    let mut run = pin!(backend.port_forward(pod.clone(), port, theirs));
    let whole = async {
        let mut down = pin!(async {
            download(from, &mut output).await;
            output
        });
        tokio::select! {
            // First, so that an error is not taken for an end of data.
            biased;
            end = &mut run => (end, Some(down.await)),
            output = &mut down => {
                let _ = output.finish().await;
                let end = match timeout(GRACE, &mut run).await {
                    Ok(end) => end,
                    Err(_) => {
                        // kubectl keeps its own connection open until the error stream has ended.
                        if let Some(error) = error.take() {
                            let _ = error.finish().await;
                        }
                        run.await
                    }
                };
                (end, None)
            }
        }
    };
    let (end, output) = tokio::select! {
        whole = whole => whole,
        never = upload(input, to) => never,
        // Reset, or gone. kubectl resets the data when it has read all, and then waits for the error stream's end.
        () = life.cut() => (Ok(()), None),
    };
    if let (Err(end), Some(error)) = (&end, &mut error) {
        let _ = error.send(text(&pod, port, end).into()).await;
    }
    match (end, output) {
        (Ok(()), Some(output)) => drop(output.finish().await),
        (Err(_), Some(output)) => drop(output.reset().await),
        (_, None) => {}
    }
    if let Some(error) = error {
        let _ = error.finish().await;
    }
}

/// What a client is told of a connection that failed.
pub fn text(pod: &str, port: u16, error: &Error) -> String {
    format!("error forwarding port {port} to pod {pod}: {error}")
}

/// Passes on what the client sends, and its end; the connection goes on after that.
async fn upload<T>(mut input: mpsc::Receiver<Bytes>, mut to: impl AsyncWrite + Unpin) -> T {
    while let Some(bytes) = input.recv().await {
        if to.write_all(&bytes).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
    std::future::pending().await
}

async fn download(mut from: impl AsyncRead + Unpin, output: &mut Output) {
    let mut bytes = BytesMut::new();
    loop {
        bytes.reserve(CHUNK);
        match from.read_buf(&mut bytes).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        if output.send(bytes.split().freeze()).await.is_err() {
            return;
        }
    }
}
