//! Clients as kubectl and crictl are: HTTP upgrades, and SPDY with compressed headers.

use std::collections::HashMap;

use bytes::{Bytes, BytesMut};
use conward_cri::streaming::spdy::frames::{Decoder, Encoder, Frame, Headers, dictionary};
use flate2::{Compress, Compression, FlushCompress};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

/// The head of an answer.
#[derive(Debug)]
pub struct Head(pub String);

impl Head {
    pub fn status(&self) -> &str {
        self.0.split(' ').nth(1).unwrap()
    }

    pub fn values(&self, name: &str) -> Vec<&str> {
        let lines = self.0.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value).collect()
    }
}

/// Sends a request with these lines and whatever follows at once.
pub async fn request(url: &str, lines: &[&str], early: &[u8]) -> (Head, TcpStream) {
    let (host, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let mut tcp = TcpStream::connect(host).await.unwrap();
    let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    let mut bytes = format!("POST /{path} HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n").into_bytes();
    bytes.extend(early);
    tcp.write_all(&bytes).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(tcp.read_u8().await.unwrap());
    }
    (Head(String::from_utf8(head).unwrap()), tcp)
}

/// The other side of a SPDY connection.
pub struct Spdy {
    to: Box<dyn AsyncWrite + Send + Unpin>,
    frames: mpsc::Receiver<Frame>,
    headers: Deflated,
    next: u32,
    reader: AbortHandle,
}

impl Drop for Spdy {
    /// Closes the connection, which the reader would keep.
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// Everything that came on a connection, by stream, and the order in which streams ended.
#[derive(Debug, Default)]
pub struct Heard {
    pub data: HashMap<u32, Vec<u8>>,
    pub ended: Vec<u32>,
    pub reset: Vec<u32>,
    pub pings: Vec<u32>,
    pub gone_away: bool,
}

impl Heard {
    pub fn text(&self, id: u32) -> String {
        String::from_utf8_lossy(self.data.get(&id).map_or(&[], Vec::as_slice)).into_owned()
    }

    /// Whether the stream sends no more.
    pub fn over(&self, id: u32) -> bool {
        self.ended.contains(&id) || self.reset.contains(&id)
    }

    fn frame(&mut self, frame: Frame) {
        match frame {
            Frame::Data { id, fin, bytes } => {
                assert!(!self.over(id), "data after the end of stream {id}");
                self.data.entry(id).or_default().extend_from_slice(&bytes);
                if fin {
                    self.ended.push(id);
                }
            }
            Frame::Reset { id, .. } => self.reset.push(id),
            Frame::Ping { id } => self.pings.push(id),
            Frame::GoAway { .. } => self.gone_away = true,
            Frame::Reply { headers, .. } => assert_eq!(headers, Headers::default()),
            frame => panic!("a server does not send {frame:?}"),
        }
    }
}

/// Blocks of headers as others compress them.
pub struct Deflated(Compress);

impl Deflated {
    pub fn new() -> Deflated {
        let mut context = Compress::new(Compression::best(), true);
        context.set_dictionary(dictionary()).unwrap();
        Deflated(context)
    }

    /// The frame that opens a stream.
    pub fn open(&mut self, id: u32, headers: &[(&str, &str)]) -> Vec<u8> {
        let headers = Headers(headers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect());
        let mut block = Vec::with_capacity(4096);
        self.0.compress_vec(&headers.block(), &mut block, FlushCompress::Sync).unwrap();
        let length = u32::try_from(block.len() + 10).unwrap();
        let mut frame = vec![0x80, 3, 0, 1];
        frame.extend(length.to_be_bytes());
        frame.extend(id.to_be_bytes());
        frame.extend([0; 6]);
        frame.extend(block);
        frame
    }
}

impl Spdy {
    /// Upgrades, offering the names; panics unless that works.
    pub async fn connect(url: &str, names: &str) -> Spdy {
        let offer = format!("X-Stream-Protocol-Version: {names}");
        let (head, tcp) = request(url, &["Connection: Upgrade", "Upgrade: SPDY/3.1", &offer], b"").await;
        assert_eq!(head.status(), "101", "{head:?}");
        Spdy::on(tcp)
    }

    /// Through the messages of a WebSocket.
    pub async fn tunnel(url: &str) -> Spdy {
        let (mut sink, mut stream) = web(url, "SPDY/3.1+portforward.k8s.io").await.split();
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let (mut from, mut to) = tokio::io::split(ours);
        tokio::spawn(async move {
            while let Some(Ok(message)) = stream.next().await {
                if message.is_binary() && to.write_all(&message.into_data()).await.is_err() {
                    break;
                }
            }
        });
        tokio::spawn(async move {
            let mut chunk = vec![0; 32 * 1024];
            while let Ok(count @ 1..) = from.read(&mut chunk).await {
                sink.send(Message::binary(chunk[..count].to_vec())).await.unwrap();
            }
            let _ = sink.close().await;
        });
        Spdy::on(theirs)
    }

    pub fn on(io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Spdy {
        let (mut from, to) = tokio::io::split(io);
        let (sender, frames) = mpsc::channel(4);
        let reader = tokio::spawn(async move {
            let (mut decoder, mut input) = (Decoder::default(), BytesMut::new());
            loop {
                while let Some(frame) = decoder.next(&mut input).unwrap() {
                    if sender.send(frame).await.is_err() {
                        return;
                    }
                }
                if !matches!(from.read_buf(&mut input).await, Ok(1..)) {
                    return;
                }
            }
        });
        Spdy { to: Box::new(to), frames, headers: Deflated::new(), next: 1, reader: reader.abort_handle() }
    }

    /// Goes on after streams were opened by hand.
    pub fn after(mut self, headers: Deflated, next: u32) -> Spdy {
        (self.headers, self.next) = (headers, next);
        self
    }

    pub async fn open(&mut self, headers: &[(&str, &str)]) -> u32 {
        let id = self.next;
        self.next += 2;
        let frame = self.headers.open(id, headers);
        self.raw(&frame).await;
        id
    }

    /// Opens streams by their types, and gives their numbers.
    pub async fn streams<const N: usize>(&mut self, types: [&str; N]) -> [u32; N] {
        let mut ids = [0; N];
        for (id, kind) in ids.iter_mut().zip(types) {
            *id = self.open(&[("streamtype", kind)]).await;
        }
        ids
    }

    /// Opens both streams of a forwarded connection: error and data.
    pub async fn forward(&mut self, port: u16, request: usize) -> (u32, u32) {
        let (port, request) = (port.to_string(), request.to_string());
        let mut ids = Vec::new();
        for kind in ["error", "data"] {
            ids.push(self.open(&[("streamtype", kind), ("port", &port), ("requestid", &request)]).await);
        }
        self.send(ids[0], true, b"").await;
        (ids[0], ids[1])
    }

    pub async fn send(&mut self, id: u32, fin: bool, bytes: &[u8]) {
        let mut frame = BytesMut::new();
        Encoder::default().data(id, fin, bytes, &mut frame);
        self.raw(&frame).await;
    }

    pub async fn reset(&mut self, id: u32) {
        let mut frame = BytesMut::new();
        Encoder::default().reset(id, 5, &mut frame);
        self.raw(&frame).await;
    }

    pub async fn raw(&mut self, bytes: &[u8]) {
        self.to.write_all(bytes).await.unwrap();
        self.to.flush().await.unwrap();
    }

    /// The writing half, to be used while frames are read.
    pub fn writer(&mut self) -> Box<dyn AsyncWrite + Send + Unpin> {
        std::mem::replace(&mut self.to, Box::new(tokio::io::sink()))
    }

    /// Adds what comes until a condition holds, or the connection ends.
    pub async fn hear(&mut self, heard: &mut Heard, until: impl Fn(&Heard) -> bool) {
        while !until(heard) {
            let Some(frame) = self.frames.recv().await else { return };
            heard.frame(frame);
        }
    }

    /// Everything until the server closes.
    pub async fn rest(&mut self) -> Heard {
        let mut heard = Heard::default();
        self.hear(&mut heard, |_| false).await;
        heard
    }
}

/// A WebSocket with one of the names.
pub async fn web(url: &str, names: &str) -> WebSocketStream<TcpStream> {
    let (host, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let tcp = TcpStream::connect(host).await.unwrap();
    let mut request = format!("ws://{host}/{path}").into_client_request().unwrap();
    if !names.is_empty() {
        request.headers_mut().insert("sec-websocket-protocol", names.parse().unwrap());
    }
    tokio_tungstenite::client_async(request, tcp).await.unwrap().0
}

/// What came on the channels of a WebSocket until it was closed.
pub async fn channels(socket: &mut (impl StreamExt<Item = Result<Message, WebError>> + Unpin)) -> HashMap<u8, Vec<u8>> {
    let mut channels: HashMap<u8, Vec<u8>> = HashMap::new();
    while let Some(Ok(message)) = socket.next().await {
        if let Message::Binary(bytes) = message {
            channels.entry(bytes[0]).or_default().extend_from_slice(&bytes[1..]);
        }
    }
    channels
}

type WebError = tokio_tungstenite::tungstenite::Error;

/// A message on a channel.
pub fn on(channel: u8, bytes: &[u8]) -> Message {
    Message::binary(Bytes::from([&[channel], bytes].concat()))
}
