//! Connections to ports of a pod over channels of a WebSocket.
//!
//! There is one connection per port of the request, on channels 2n (data) and 2n+1 (error); the first message of each
//! names the port. No message says that a channel ends: the WebSocket does, after the last connection.

use bytes::{Bytes, BytesMut};
use futures_util::future::join_all;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use super::Backend;
use super::port_forward::{CHUNK, GRACE, PATIENCE, PIPE, text};
use super::status::Language;
use super::websocket::{Channel, Dialect, Socket};
use super::wire::Wire;
use crate::error::{Error, Result};

/// Forwards the ports until each has ended or the client has gone.
pub async fn serve(backend: &dyn Backend, pod: String, ports: Vec<u16>, wire: Wire, base64: bool) {
    let dialect = Dialect { base64, close: false, language: Language::Text };
    let numbered: Vec<(u8, u16)> = (0..dialect.last_channel()).step_by(2).zip(ports.iter().copied()).collect();
    if numbered.len() < ports.len() {
        return tracing::warn!("{} ports of pod {pod} are more than a WebSocket has channels for", ports.len());
    }
    let patience = if ports.len() > 1 { PATIENCE.shared } else { PATIENCE.alone };
    let (senders, inputs): (Vec<_>, Vec<_>) = numbered
        .iter()
        .map(|(number, _)| {
            let (sender, input) = mpsc::channel(PATIENCE.queue);
            ((*number, sender), input)
        })
        .unzip();
    let socket = Socket::start(wire, dialect, senders, patience).await;
    let connections = numbered.iter().zip(inputs).map(|((number, port), input)| {
        let (data, error) = (socket.channel(*number), socket.channel(number + 1));
        forward(backend, pod.clone(), *port, input, data, error)
    });
    let mut gone = socket.gone();
    tokio::select! {
        _ = join_all(connections) => {}
        () = gone.wait() => {}
    }
    socket.close().await;
}

async fn forward(
    backend: &dyn Backend,
    pod: String,
    port: u16,
    input: mpsc::Receiver<Bytes>,
    mut data: Channel,
    mut error: Channel,
) {
    for channel in [&mut data, &mut error] {
        let _ = channel.send(Bytes::copy_from_slice(&port.to_le_bytes())).await;
    }
    let (ours, theirs) = tokio::io::duplex(PIPE);
    let (from, to) = tokio::io::split(ours);
    let (open, ended) = watch::channel(());
    let down = async {
        download(from, &mut data).await;
        drop(open);
    };
    let work = async {
        let (end, ()) = tokio::join!(backend.port_forward(pod.clone(), port, theirs), down);
        end
    };
    let end: Result<()> = tokio::select! {
        end = work => end,
        stuck = upload(input, to, ended) => Err(stuck),
    };
    if let Err(end) = end {
        let _ = error.send(text(&pod, port, &end).into()).await;
    }
}

/// Passes on what the client sends. Since the client cannot say that it is done, it is when the port has sent its end
/// and nothing more comes for the port. Ends itself only when the port takes no data.
async fn upload(
    mut input: mpsc::Receiver<Bytes>,
    mut to: impl AsyncWrite + Unpin,
    ended: watch::Receiver<()>,
) -> Error {
    loop {
        let bytes = tokio::select! {
            bytes = input.recv() => bytes,
            () = quiet(ended.clone()) => break,
        };
        // There is no good end of a client's data, so none is passed on.
        let Some(bytes) = bytes else { return Error::failed("it did not take what the client sent") };
        if to.write_all(&bytes).await.is_err() {
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

async fn download(mut from: impl AsyncRead + Unpin, data: &mut Channel) {
    let mut bytes = BytesMut::with_capacity(CHUNK);
    while from.read_buf(&mut bytes).await.is_ok_and(|count| count > 0) {
        if data.send(bytes.split().freeze()).await.is_err() {
            return;
        }
        bytes.reserve(CHUNK);
    }
}
