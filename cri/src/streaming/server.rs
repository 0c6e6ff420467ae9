//! HTTP: one request per connection, which is then something else.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper::{HeaderMap, Method, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::negotiate::{self, ACCEPTED_PROTOCOLS, Choice, Refusal, SPDY, STREAM_PROTOCOL, Upgrade};
use super::tokens::Tokens;
use super::wire::{Ends, Peer, Wire};
use super::{Backend, Request, attach, exec, port_forward};

/// Connections that have not been upgraded.
const MAX_WAITING: usize = 256;
/// How long a client may take for its request.
const REQUEST: Duration = Duration::from_secs(10);
/// Seconds after which a silent client is asked whether it is there.
const KEEP_ALIVE: u32 = 30;

type Answer = Response<Full<Bytes>>;

#[derive(Clone)]
pub struct Server {
    pub tokens: Arc<Tokens<Request>>,
    pub backend: Arc<dyn Backend>,
    pub idle: Option<Duration>,
    pub stop: watch::Receiver<bool>,
}

impl Server {
    /// Serves every connection in a task of its own.
    pub async fn run(self, listener: TcpListener) {
        let mut stop = self.stop.clone();
        tokio::select! {
            () = self.accept(listener) => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
    }

    async fn accept(self, listener: TcpListener) {
        let waiting = Arc::new(Semaphore::new(MAX_WAITING));
        loop {
            let Ok(permit) = waiting.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((tcp, _)) => drop(tokio::spawn(self.clone().connection(tcp, permit))),
                // Out of descriptors, most likely; there may be some in a moment.
                Err(error) => {
                    tracing::warn!("Failed to accept a connection for streams: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn connection(self, tcp: TcpStream, _permit: OwnedSemaphorePermit) {
        let peer = match prepare(&tcp) {
            Ok(peer) => peer,
            Err(error) => return tracing::debug!("Failed to prepare a connection for streams: {error}"),
        };
        let mut stop = self.stop.clone();
        let ends = Ends { idle: self.idle, stop: self.stop.clone(), peer };
        let service = service_fn(|request| {
            let answer = self.answer(request, ends.clone());
            async move { Ok::<_, Infallible>(answer) }
        });
        let http = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(REQUEST)
            .serve_connection(TokioIo::new(tcp), service)
            .with_upgrades();
        tokio::select! {
            served = http => if let Err(error) = served {
                tracing::debug!("Failed to serve a request for streams: {error}");
            },
            _ = stop.wait_for(|stop| *stop) => {}
        }
    }

    fn answer(&self, mut request: hyper::Request<Incoming>, ends: Ends) -> Answer {
        if !matches!(*request.method(), Method::GET | Method::POST) {
            return plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and POST are served");
        }
        let path = request.uri().path();
        let Some((verb, token)) = path.strip_prefix('/').and_then(|path| path.split_once('/')) else {
            return plain(StatusCode::NOT_FOUND, "no such path");
        };
        let (verb, asked) = (verb.to_owned(), self.tokens.take(token, Instant::now()));
        let missing = "no such request: a URL can be used once, and for a short time";
        let Some(asked) = asked else { return plain(StatusCode::NOT_FOUND, missing) };
        let on = hyper::upgrade::on(&mut request);
        match self.job(&verb, asked, request.headers()) {
            None => plain(StatusCode::NOT_FOUND, missing),
            Some(Err(refusal)) => refuse(refusal),
            Some(Ok(job)) => {
                let answer = switch(&job);
                tokio::spawn(async move {
                    match wire(on, ends).await {
                        Ok(wire) => (job.run)(wire).await,
                        Err(text) => tracing::debug!("Failed to upgrade a connection for streams: {text}"),
                    }
                });
                answer
            }
        }
    }

    /// What to do on the connection; none when the URL was made for something else.
    fn job(&self, verb: &str, asked: Request, headers: &HeaderMap) -> Option<Result<Job, Refusal>> {
        let backend = self.backend.clone();
        Some(match (verb, asked) {
            ("exec", Request::Exec(asked)) => negotiate::remote(headers).map(|choice| {
                Job::new(choice, move |wire, transport| {
                    async move { exec::serve(&*backend, asked, wire, transport).await }.boxed()
                })
            }),
            ("attach", Request::Attach(asked)) => negotiate::remote(headers).map(|choice| {
                Job::new(choice, move |wire, transport| {
                    async move { attach::serve(&*backend, asked, wire, transport).await }.boxed()
                })
            }),
            ("portforward", Request::PortForward(asked)) => negotiate::forwarding(headers).map(|choice| {
                Job::new(choice, move |wire, forwarding| port_forward::serve(backend, asked, wire, forwarding).boxed())
            }),
            _ => return None,
        })
    }
}

/// What happens on a connection after its upgrade.
struct Job {
    upgrade: Upgrade,
    name: &'static str,
    run: Box<dyn FnOnce(Wire) -> BoxFuture<'static, ()> + Send>,
}

impl Job {
    fn new<T: Send + 'static>(
        choice: Choice<T>,
        run: impl FnOnce(Wire, T) -> BoxFuture<'static, ()> + Send + 'static,
    ) -> Job {
        let Choice { upgrade, name, protocol } = choice;
        Job { upgrade, name, run: Box::new(move |wire| run(wire, protocol)) }
    }
}

/// Chunks go out as they come, and a client that has died without a word is noticed.
fn prepare(tcp: &TcpStream) -> io::Result<Peer> {
    tcp.set_nodelay(true)?;
    setsockopt(tcp, sockopt::KeepAlive, &true)?;
    setsockopt(tcp, sockopt::TcpKeepIdle, &KEEP_ALIVE)?;
    setsockopt(tcp, sockopt::TcpKeepInterval, &KEEP_ALIVE)?;
    Peer::of(tcp)
}

/// The connection itself, from under HTTP.
async fn wire(on: OnUpgrade, ends: Ends) -> Result<Wire, String> {
    let upgraded: Upgraded = on.await.map_err(|error| error.to_string())?;
    let parts = upgraded.downcast::<TokioIo<TcpStream>>().map_err(|_| "it is no TCP connection".to_owned())?;
    Ok(Wire { tcp: parts.io.into_inner(), early: parts.read_buf, ends })
}

fn switch(job: &Job) -> Answer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = answer.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    let named = match &job.upgrade {
        Upgrade::Spdy => {
            headers.insert(UPGRADE, HeaderValue::from_static(SPDY));
            STREAM_PROTOCOL
        }
        Upgrade::Web { key } => {
            headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
            if let Ok(accept) = derive_accept_key(key.as_bytes()).parse() {
                headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
            }
            SEC_WEBSOCKET_PROTOCOL
        }
    };
    if !job.name.is_empty() {
        headers.insert(named, HeaderValue::from_static(job.name));
    }
    answer
}

fn refuse(refusal: Refusal) -> Answer {
    match refusal {
        Refusal::Upgrade => plain(StatusCode::BAD_REQUEST, "an upgrade to SPDY/3.1 or websocket is required"),
        Refusal::Protocol { accepted } => {
            let text = format!("none of the protocols asked for is spoken here; there are {}", accepted.join(", "));
            let mut answer = plain(StatusCode::FORBIDDEN, text);
            for name in accepted {
                answer.headers_mut().append(ACCEPTED_PROTOCOLS, HeaderValue::from_static(name));
            }
            answer
        }
    }
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(text.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    answer
}
