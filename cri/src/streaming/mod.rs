//! The streaming server: exec, attach and port-forward over connections that leave HTTP by an upgrade.
//!
//! The CRI answers such a request with a URL. Whoever has it connects once, within a minute, and is served with
//! SPDY/3.1 or WebSocket, by what its request asks for; both are on the same URL. What is done is the [`Backend`]'s.

mod attach;
mod base64;
mod channels;
mod exec;
mod negotiate;
mod netns;
mod port_forward;
mod remote;
mod server;
pub mod spdy;
mod status;
mod tokens;
mod websocket;
mod wire;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::config;
use crate::error::{Context, Error, Result};

pub use netns::connect_in;

/// How long a stop waits for backends to end.
const STOPPING: Duration = Duration::from_secs(10);

/// A connection between the client of a port-forward and the backend.
pub type Duplex = tokio::io::DuplexStream;

/// What the streaming server is for.
pub trait Backend: Send + Sync + 'static {
    /// Runs a command to its end; never dropped before it is done. Output ends when its senders are dropped.
    fn exec(&self, request: ExecRequest, io: Io) -> BoxFuture<'_, Result<i32>>;

    /// Ties the client to the container until one of them ends; never dropped before it is done.
    fn attach(&self, request: AttachRequest, io: Io) -> BoxFuture<'_, Result<()>>;

    /// Passes bytes between a stream and a port of the pod; dropped when the client has gone.
    fn port_forward(&self, pod: String, port: u16, stream: Duplex) -> BoxFuture<'_, Result<()>>;
}

/// A command to run in a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecRequest {
    pub container: String,
    pub command: Vec<String>,
    pub tty: bool,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

/// A container to attach to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AttachRequest {
    pub container: String,
    pub tty: bool,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

/// A pod whose ports to reach; clients that speak SPDY name ports themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortForwardRequest {
    pub pod: String,
    pub ports: Vec<u16>,
}

/// A client's side of a command.
#[derive(Debug)]
pub struct Io {
    /// Ends when the client has sent all, and also when it has gone. Dropping it discards the rest.
    pub stdin: Option<mpsc::Receiver<Bytes>>,
    /// Chunks of at most 32 KiB are best; an error means that the client has gone.
    pub stdout: Option<mpsc::Sender<Bytes>>,
    pub stderr: Option<mpsc::Sender<Bytes>>,
    /// Rows and columns of the client's terminal.
    pub resize: mpsc::Receiver<(u16, u16)>,
    /// Tells when there is no client any more.
    pub gone: Gone,
}

/// Tells when a client has gone.
#[derive(Clone, Debug)]
pub struct Gone(watch::Receiver<()>);

impl Gone {
    /// The client is there until the first of the pair is dropped.
    fn pair() -> (watch::Sender<()>, Gone) {
        let (present, gone) = watch::channel(());
        (present, Gone(gone))
    }

    /// Resolves when the client has gone.
    pub async fn wait(&mut self) {
        while self.0.changed().await.is_ok() {}
    }

    pub fn is_gone(&self) -> bool {
        self.0.has_changed().is_err()
    }
}

/// A request that waits for its client.
#[derive(Debug)]
enum Request {
    Exec(ExecRequest),
    Attach(AttachRequest),
    PortForward(PortForwardRequest),
}

/// The running server, which stops when the last clone of this is dropped.
#[derive(Clone, Debug)]
pub struct Streaming(Arc<Running>);

#[derive(Debug)]
struct Running {
    address: SocketAddr,
    tokens: Arc<tokens::Tokens<Request>>,
    stop: watch::Sender<bool>,
}

impl Streaming {
    /// Listens, and serves until it is stopped.
    pub async fn start(config: &config::Streaming, backend: Arc<dyn Backend>) -> Result<Streaming> {
        let listener = TcpListener::bind(config.address)
            .await
            .context(|| format!("Failed to listen for streams on {}", config.address))?;
        let address = listener.local_addr().context(|| "Failed to learn the address for streams")?;
        let tokens = Arc::new(tokens::Tokens::new(Duration::from_secs(config.token_lifetime)));
        let (stop, stopped) = watch::channel(false);
        let idle = (config.idle_timeout > 0).then(|| Duration::from_secs(config.idle_timeout));
        let server = server::Server { tokens: tokens.clone(), backend, idle, stop: stopped };
        tokio::spawn(server.run(listener));
        Ok(Streaming(Arc::new(Running { address, tokens, stop })))
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// A URL that runs a command.
    pub fn exec(&self, request: ExecRequest) -> Result<String> {
        check(&request.container, request.tty, [request.stdin, request.stdout, request.stderr])?;
        if request.command.is_empty() {
            return Err(Error::invalid("exec without a command"));
        }
        self.url("exec", Request::Exec(request))
    }

    /// A URL that attaches to a container.
    pub fn attach(&self, request: AttachRequest) -> Result<String> {
        check(&request.container, request.tty, [request.stdin, request.stdout, request.stderr])?;
        self.url("attach", Request::Attach(request))
    }

    /// A URL that reaches ports of a pod.
    pub fn port_forward(&self, request: PortForwardRequest) -> Result<String> {
        if request.pod.is_empty() {
            return Err(Error::invalid("port-forward without a pod"));
        }
        self.url("portforward", Request::PortForward(request))
    }

    /// Ends all streams and waits for their backends, though not for ever.
    pub async fn stop(&self) {
        self.0.stop.send_replace(true);
        let _ = timeout(STOPPING, self.0.stop.closed()).await;
    }

    fn url(&self, verb: &str, request: Request) -> Result<String> {
        let token = self.0.tokens.keep(request, Instant::now())?;
        Ok(format!("http://{}/{verb}/{token}", reachable(self.0.address)))
    }
}

/// What the CRI demands of exec and attach.
fn check(container: &str, tty: bool, [stdin, stdout, stderr]: [bool; 3]) -> Result<()> {
    if container.is_empty() {
        return Err(Error::invalid("no container is named"));
    }
    if tty && stderr {
        return Err(Error::invalid("tty and stderr cannot both be true: a terminal has one output"));
    }
    if !(stdin || stdout || stderr) {
        return Err(Error::invalid("one of stdin, stdout, or stderr must be set"));
    }
    Ok(())
}

/// An address that a client on this host can connect to.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_can_be_reached() {
        let text = |address: &str| reachable(address.parse().unwrap()).to_string();
        assert_eq!(text("0.0.0.0:80"), "127.0.0.1:80");
        assert_eq!(text("[::]:80"), "[::1]:80");
        assert_eq!(text("10.1.2.3:80"), "10.1.2.3:80");
    }

    #[test]
    fn requests_that_make_no_sense_are_refused() {
        assert!(check("a", true, [true, true, false]).is_ok());
        for (container, tty, streams) in
            [("", false, [true; 3]), ("a", true, [true; 3]), ("a", false, [false; 3]), ("a", true, [false; 3])]
        {
            assert!(matches!(check(container, tty, streams), Err(Error::Invalid(_))), "{container} {tty} {streams:?}");
        }
    }
}
