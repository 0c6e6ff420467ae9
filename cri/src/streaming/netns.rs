//! Connections to a pod's loopback.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use crate::error::{Context, Error, Result};

/// How long one address may take; on a loopback only a full queue of connections takes any time.
const PATIENCE: Duration = Duration::from_secs(10);

/// Connects to a port of 127.0.0.1, or else of ::1, in a network namespace, or in our own.
///
/// A socket belongs to the namespace in which it was made, wherever it is used. The thread that makes it in another one
/// is never used for anything else.
pub async fn connect_in(netns: Option<&Path>, port: u16) -> Result<TcpStream> {
    let (answer, connected) = oneshot::channel();
    let netns = netns.map(Path::to_owned);
    let connect = move || drop(answer.send(enter(netns).and_then(|()| connect(port))));
    std::thread::Builder::new()
        .name("port-forward".into())
        .spawn(connect)
        .context(|| format!("Failed to start a thread to connect to port {port}"))?;
    let stream = connected.await.map_err(|_| Error::failed(format!("Connecting to port {port} was given up")))??;
    let watched = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
    watched.context(|| format!("Failed to watch the connection to port {port}"))
}

fn enter(netns: Option<PathBuf>) -> Result<()> {
    let Some(path) = netns else { return Ok(()) };
    let doing = || format!("Failed to enter the network namespace {}", path.display());
    let file = File::open(&path).context(doing)?;
    setns(file, CloneFlags::CLONE_NEWNET).context(doing)
}

fn connect(port: u16) -> Result<std::net::TcpStream> {
    let (v4, v6) = (SocketAddr::from((Ipv4Addr::LOCALHOST, port)), SocketAddr::from((Ipv6Addr::LOCALHOST, port)));
    let connect = |address: SocketAddr| -> io::Result<std::net::TcpStream> {
        let stream = std::net::TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_nodelay(true)?;
        Ok(stream)
    };
    connect(v4).or_else(|first| {
        connect(v6).map_err(|second| {
            Error::failed(format!("Failed to connect to {v4} ({first}) or {v6} ({second}) inside the pod"))
        })
    })
}
