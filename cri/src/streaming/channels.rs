//! Connections to ports of a pod over channels of a WebSocket.
//!
//! There is one connection per port of the request, on channels 2n (data) and 2n+1 (error); the first message of each
//! names the port. No message says that a channel ends: the WebSocket does, after the last connection.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::join_all;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use super::port_forward::{CHUNK, GRACE, PATIENCE, PIPE, text};
use super::status::Language;
use super::websocket::{Channel, Dialect, Input, Socket};
use super::wire::Wire;
use super::{Backend, Gone};
use crate::error::{Error, Result};

/// How long what a client has sent last may take to reach its port.
const LAST: Duration = Duration::from_secs(2);

/// Forwards the ports until each has ended or the client has gone.
pub async fn serve(backend: &dyn Backend, pod: String, ports: Vec<u16>, wire: Wire, base64: bool) {
    let dialect = Dialect { base64, close: false, language: Language::Text };
    let numbers: Vec<u8> = (0..dialect.last_channel()).step_by(2).take(ports.len()).collect();
    if numbers.len() < ports.len() {
        return tracing::warn!("{} ports of pod {pod} are more than a WebSocket has channels for", ports.len());
    }
    let patience = if ports.len() > 1 { PATIENCE.shared } else { PATIENCE.alone };
    let (inputs, ends): (Vec<_>, Vec<_>) = numbers
        .iter()
        .map(|number| {
            let (input, chunks, cut) = Input::new(*number, PATIENCE.queue);
            (input, (chunks, cut))
        })
        .unzip();
    let socket = Socket::start(wire, dialect, inputs, patience).await;
    let connections = numbers.iter().zip(ports).zip(ends).map(|((number, port), (chunks, cut))| {
        let (data, error) = (socket.channel(*number), socket.channel(number + 1));
        forward(backend, pod.clone(), port, Link { chunks, cut, data, error })
    });
    // All inputs are cut when the client goes.
    join_all(connections).await;
    socket.close().await;
}

/// The client's side of a connection.
struct Link {
    chunks: mpsc::Receiver<Bytes>,
    /// The end of its input: it has gone, or the port has kept it waiting for too long.
    cut: Gone,
    data: Channel,
    error: Channel,
}

async fn forward(backend: &dyn Backend, pod: String, port: u16, link: Link) {
    let Link { chunks, mut cut, mut data, mut error } = link;
    for channel in [&mut data, &mut error] {
        let _ = channel.send(Bytes::copy_from_slice(&port.to_le_bytes())).await;
    }
    let (ours, theirs) = tokio::io::duplex(PIPE);
    let (from, to) = tokio::io::split(ours);
    let (open, ended) = watch::channel(());
    let down = async {
        download(from, data).await;
        drop(open);
    };
    let work = async { tokio::join!(backend.port_forward(pod.clone(), port, theirs), down).0 };
    let end: Result<()> = tokio::select! {
        end = work => end,
        never = upload(chunks, to, ended) => never,
        () = async { cut.wait().await; sleep(LAST).await } => Ok(()),
    };
    let lost = || if cut.is_gone() { Err(Error::failed("it did not take what the client sent")) } else { Ok(()) };
    if let Err(end) = end.and_then(|()| lost()) {
        let _ = error.send(text(&pod, port, &end).into()).await;
    }
}

/// Passes on what the client sends, and its end. The client cannot say that it is done: it is when the port is, and
/// nothing more comes for it.
async fn upload<T>(
    mut chunks: mpsc::Receiver<Bytes>,
    mut to: impl AsyncWrite + Unpin,
    ended: watch::Receiver<()>,
) -> T {
    loop {
        let chunk = tokio::select! {
            chunk = chunks.recv() => chunk,
            () = quiet(ended.clone()) => None,
        };
        let Some(chunk) = chunk else { break };
        if to.write_all(&chunk).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
    std::future::pending().await
}

/// Waits for the port's end and a while more.
async fn quiet(mut ended: watch::Receiver<()>) {
    while ended.changed().await.is_ok() {}
    sleep(GRACE).await;
}

/// Passes on what the port sends. What comes after the client has gone is not to hold up what it has sent.
async fn download(mut from: impl AsyncRead + Unpin, mut data: Channel) {
    let mut there = true;
    let mut bytes = BytesMut::with_capacity(CHUNK);
    while from.read_buf(&mut bytes).await.is_ok_and(|count| count > 0) {
        let chunk = bytes.split().freeze();
        there = there && data.send(chunk).await.is_ok();
        bytes.reserve(CHUNK);
    }
}
