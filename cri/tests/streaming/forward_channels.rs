//! Port-forward over channels of a WebSocket: 2n carries data of the request's nth port, 2n+1 its error.

use std::collections::HashMap;

use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::*;

type Web = WebSocketStream<TcpStream>;

/// What came on every channel, without the port that comes first.
#[derive(Default)]
struct Channels(HashMap<u8, Vec<u8>>);

impl Channels {
    /// A WebSocket for ports, whose channels have said which ports they are of.
    async fn connect(server: &conward_cri::streaming::Streaming, ports: &[u16]) -> (Web, Channels) {
        let mut socket = web(&server.port_forward(pod(ports)).unwrap(), V4).await;
        let mut heard = Channels::default();
        heard.hear(&mut socket, |heard| (0..2 * ports.len()).all(|n| heard.data(n).len() >= 2)).await;
        for (n, port) in ports.iter().enumerate() {
            for number in [2 * n, 2 * n + 1] {
                let channel = heard.0.get_mut(&u8::try_from(number).unwrap()).unwrap();
                assert_eq!(channel.drain(..2).as_slice(), port.to_le_bytes(), "channel {number}");
            }
        }
        (socket, heard)
    }

    fn data(&self, number: usize) -> &[u8] {
        self.0.get(&u8::try_from(number).unwrap()).map_or(&[], Vec::as_slice)
    }

    fn text(&self, number: usize) -> String {
        String::from_utf8_lossy(self.data(number)).into_owned()
    }

    /// Adds what comes until a condition holds.
    async fn hear(&mut self, socket: &mut (impl StreamExt<Item = Item> + Unpin), until: impl Fn(&Channels) -> bool) {
        while !until(self) {
            let message = timeout(20 * SECOND, socket.next()).await.expect("something comes");
            match message.expect("it is open").unwrap() {
                Message::Binary(bytes) => self.0.entry(bytes[0]).or_default().extend_from_slice(&bytes[1..]),
                // It asks whether we are there.
                Message::Pong(_) => {}
                message => panic!("{message:?} is no data"),
            }
        }
    }

    /// Adds what comes until the server says good-bye.
    async fn rest(&mut self, socket: &mut Web) {
        loop {
            match timeout(20 * SECOND, socket.next()).await.expect("something comes").unwrap().unwrap() {
                Message::Binary(bytes) => self.0.entry(bytes[0]).or_default().extend_from_slice(&bytes[1..]),
                Message::Close(frame) => return assert_eq!(frame.unwrap().code, CloseCode::Normal),
                message => panic!("{message:?} is no data"),
            }
        }
    }
}

type Item = Result<Message, tokio_tungstenite::tungstenite::Error>;

#[tokio::test]
async fn a_closed_port_is_an_error_on_its_channel_alone() {
    let (server, _) = Fake::serve(|_| ()).await;
    let (open, closed) = (echo().await, a_closed_port().await);
    let (mut socket, mut heard) = Channels::connect(&server, &[closed, open]).await;
    heard.hear(&mut socket, |heard| !heard.data(1).is_empty()).await;
    let text = heard.text(1);
    assert!(text.contains(&format!("port {closed} to pod p")) && text.contains("refused"), "{text}");
    socket.send(on(2, b"hello")).await.unwrap();
    heard.hear(&mut socket, |heard| heard.data(2).len() == 5).await;
    assert_eq!((heard.text(0), heard.text(2), heard.text(3)), ("".into(), "hello".into(), "".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_bytes_on_several_ports_at_once() {
    let (server, _) = Fake::serve(|_| ()).await;
    let ports = [echo().await, echo().await, echo().await];
    let (socket, mut heard) = Channels::connect(&server, &ports).await;
    let (mut sink, mut stream) = socket.split();
    let sent = pattern(8 * MB);
    let feed = tokio::spawn({
        let sent = sent.clone();
        async move {
            for chunk in sent.chunks(100_003) {
                for channel in [0, 2, 4] {
                    sink.send(on(channel, chunk)).await.unwrap();
                }
            }
            sink
        }
    });
    heard.hear(&mut stream, |heard| [0, 2, 4].iter().all(|n| heard.data(*n).len() >= sent.len())).await;
    for channel in [0, 2, 4] {
        assert!(heard.data(channel) == sent, "channel {channel} is unchanged");
    }
    drop(feed.await.unwrap());
}

#[tokio::test]
async fn the_last_ports_end_closes() {
    let (server, _) = Fake::serve(|_| ()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (mut socket, mut heard) = Channels::connect(&server, &[port, port]).await;
    let (mut first, _) = listener.accept().await.unwrap();
    let (mut second, _) = listener.accept().await.unwrap();
    first.write_all(b"one").await.unwrap();
    drop(first);
    sleep(SECOND).await;
    second.write_all(b"two").await.unwrap();
    drop(second);
    heard.rest(&mut socket).await;
    let mut said = [heard.text(0), heard.text(2)];
    said.sort();
    assert_eq!((said, heard.text(1), heard.text(3)), (["one".into(), "two".into()], "".into(), "".into()));
}

#[tokio::test]
async fn a_port_that_has_sent_its_end_gets_what_the_client_still_sends() {
    let (server, _) = Fake::serve(|_| ()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (mut socket, mut heard) = Channels::connect(&server, &[listener.local_addr().unwrap().port()]).await;
    let (mut target, _) = listener.accept().await.unwrap();
    target.write_all(b"go on").await.unwrap();
    target.shutdown().await.unwrap();
    heard.hear(&mut socket, |heard| heard.text(0) == "go on").await;
    for _ in 0..10 {
        sleep(SECOND / 10).await;
        socket.send(on(0, &[7; 100_000])).await.unwrap();
    }
    let mut got = Vec::new();
    timeout(5 * SECOND, target.read_to_end(&mut got)).await.expect("it gets the end").unwrap();
    assert!(got == vec![7; 1_000_000], "{} bytes", got.len());
    heard.rest(&mut socket).await;
    assert_eq!(heard.text(1), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_alone_may_take_its_time() {
    let (server, _) = Fake::serve(|_| ()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (socket, mut heard) = Channels::connect(&server, &[listener.local_addr().unwrap().port()]).await;
    let (mut target, _) = listener.accept().await.unwrap();
    let sent = pattern(32 * MB);
    let (mut sink, mut stream) = socket.split();
    let feed = tokio::spawn({
        let sent = sent.clone();
        async move {
            for chunk in sent.chunks(MB) {
                sink.send(on(0, chunk)).await.unwrap();
            }
            sink
        }
    });
    sleep(4 * SECOND).await;
    let mut got = vec![0; sent.len()];
    target.read_exact(&mut got).await.unwrap();
    assert!(got == sent, "it is unchanged");
    target.write_all(b"thanks").await.unwrap();
    heard.hear(&mut stream, |heard| heard.text(0) == "thanks").await;
    drop(feed.await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_takes_nothing_is_an_error_and_holds_up_no_other() {
    let (server, _) = Fake::serve(|_| ()).await;
    let (socket, mut heard) = Channels::connect(&server, &[deaf().await, echo().await]).await;
    let (mut sink, mut stream) = socket.split();
    let feed = tokio::spawn(async move {
        for _ in 0..32 {
            sink.send(on(0, &vec![0; MB])).await.unwrap();
        }
        sink.send(on(2, b"ping")).await.unwrap();
        sink
    });
    let begin = Instant::now();
    heard.hear(&mut stream, |heard| heard.text(2) == "ping").await;
    assert!(begin.elapsed() < 4 * SECOND, "{:?}", begin.elapsed());
    heard.hear(&mut stream, |heard| !heard.data(1).is_empty()).await;
    assert!(begin.elapsed() < 7 * SECOND, "{:?}", begin.elapsed());
    assert!(heard.text(1).contains("did not take"), "{}", heard.text(1));
    drop(feed.await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_gets_all_that_a_client_has_sent_before_it_went() {
    let (server, _) = Fake::serve(|_| ()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (mut socket, _) = Channels::connect(&server, &[listener.local_addr().unwrap().port()]).await;
    let (mut target, _) = listener.accept().await.unwrap();
    let sent = pattern(8 * MB);
    let reader = tokio::spawn(async move {
        let mut got = Vec::new();
        let mut chunk = vec![0; 256 * 1024];
        // Slower than the client, and saying more than anybody reads.
        while let Ok(count @ 1..) = target.read(&mut chunk).await {
            got.extend_from_slice(&chunk[..count]);
            let _ = target.write_all(&chunk[..count]).await;
            sleep(SECOND / 100).await;
        }
        got
    });
    for chunk in sent.chunks(MB / 2) {
        socket.send(on(0, chunk)).await.unwrap();
    }
    socket.close(None).await.unwrap();
    // Whether or not it waits for the answer.
    tokio::spawn(async move { while socket.next().await.is_some() {} });
    let got = timeout(10 * SECOND, reader).await.expect("the port gets the end").unwrap();
    assert!(got == sent, "{} of {} bytes, or others", got.len(), sent.len());
}

#[tokio::test]
async fn channels_beyond_nine_in_base64() {
    let (server, _) = Fake::serve(|_| ()).await;
    let ports = [echo().await; 6];
    let mut socket = web(&server.port_forward(pod(&ports)).unwrap(), "v4.base64.channel.k8s.io").await;
    // Channel 10 is the tenth character after the digit 0.
    socket.send(Message::text(":aGVsbG8=")).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 13 {
        let message = timeout(5 * SECOND, socket.next()).await.expect("something comes").unwrap().unwrap();
        seen.push(message.to_text().unwrap().to_owned());
    }
    assert_eq!(seen.iter().filter(|text| text.starts_with(';')).count(), 1, "{seen:?}");
    assert!(seen.contains(&":aGVsbG8=".to_owned()), "{seen:?}");
}

#[tokio::test]
async fn more_ports_than_channels_are_not_served_in_part() {
    let (server, _) = Fake::serve(|_| ()).await;
    let port = echo().await;
    for (name, most) in [(V4, 128), ("v4.base64.channel.k8s.io", 39)] {
        let mut socket = web(&server.port_forward(pod(&vec![port; most])).unwrap(), name).await;
        let mut seen = std::collections::HashSet::new();
        while seen.len() < 2 * most {
            let message = timeout(5 * SECOND, socket.next()).await.expect("something comes").unwrap().unwrap();
            seen.insert(message.into_data()[0]);
        }
        let mut socket = web(&server.port_forward(pod(&vec![port; most + 1])).unwrap(), name).await;
        let answer = timeout(5 * SECOND, socket.next()).await.expect("it is closed");
        assert!(!matches!(answer, Some(Ok(Message::Binary(_) | Message::Text(_)))), "{answer:?}");
    }
}
