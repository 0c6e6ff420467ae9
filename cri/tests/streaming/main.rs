//! The streaming server as its clients see it, with a backend that needs no containers.

mod client;
#[path = "../fake/mod.rs"]
mod fake;
mod forward_channels;

use std::time::{Duration, Instant};

use client::{Deflated, Heard, Spdy, channels, on, request, web};
use conward_cri::streaming::{AttachRequest, ExecRequest, PortForwardRequest, connect_in};
use fake::Fake;
use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::Message;

const MB: usize = 1 << 20;
const SECOND: Duration = Duration::from_secs(1);
const V4: &str = "v4.channel.k8s.io";

fn exec(command: &[&str], streams: &str) -> ExecRequest {
    ExecRequest {
        container: "c".into(),
        command: command.iter().map(|word| (*word).into()).collect(),
        tty: streams.contains('t'),
        stdin: streams.contains('i'),
        stdout: streams.contains('o'),
        stderr: streams.contains('e'),
    }
}

fn pod(ports: &[u16]) -> PortForwardRequest {
    PortForwardRequest { pod: "p".into(), ports: ports.into() }
}

fn exit_code(status: &str) -> i32 {
    let status: Value = serde_json::from_str(status).unwrap();
    match status["status"].as_str().unwrap() {
        "Success" => 0,
        _ => {
            assert_eq!(status["reason"], "NonZeroExitCode", "{status}");
            assert_eq!(status["details"]["causes"][0]["reason"], "ExitCode");
            status["details"]["causes"][0]["message"].as_str().unwrap().parse().unwrap()
        }
    }
}

/// Bytes of which none is like its neighbours, so that a lost or doubled one is seen.
fn pattern(length: usize) -> Vec<u8> {
    (0u32..).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).take(length).collect()
}

#[tokio::test]
async fn exec_echoes_and_half_closes() {
    let (server, _) = Fake::serve(|_| ()).await;
    let url = server.exec(exec(&["echo"], "io")).unwrap();
    let mut spdy = Spdy::connect(&url, "v5.channel.k8s.io, v4.channel.k8s.io").await;
    let [error, stdin, stdout] = spdy.streams(["error", "stdin", "stdout"]).await;
    let mut heard = Heard::default();
    spdy.send(stdin, false, b"hello ").await;
    spdy.hear(&mut heard, |heard| heard.text(stdout) == "hello ").await;
    spdy.send(stdin, false, b"world").await;
    spdy.send(stdin, true, b"!").await;
    spdy.hear(&mut heard, |heard| heard.over(error)).await;
    assert_eq!((heard.text(stdout), exit_code(&heard.text(error))), ("hello world!".into(), 0));
    assert_eq!(heard.ended, [stdout, error]);
}

#[tokio::test]
async fn the_answer_names_the_protocol() {
    let (server, _) = Fake::serve(|_| ()).await;
    for (offers, chosen) in [
        (&["X-Stream-Protocol-Version: v5.channel.k8s.io", "X-Stream-Protocol-Version: v4.channel.k8s.io"][..], V4),
        (&["x-stream-protocol-version: nonsense,v3.channel.k8s.io"], "v3.channel.k8s.io"),
    ] {
        let url = server.exec(exec(&["exit", "0"], "o")).unwrap();
        let (head, _) = request(&url, &[&["connection: upgrade", "upgrade: spdy/3.1"], offers].concat(), b"").await;
        assert_eq!((head.status(), head.values("x-stream-protocol-version")), ("101", vec![chosen]));
        assert_eq!(head.values("upgrade"), ["SPDY/3.1"]);
    }
}

#[tokio::test]
async fn exec_tells_the_exit_code_after_all_output() {
    let (server, _) = Fake::serve(|_| ()).await;
    for (version, expected) in [(V4, ""), ("v2.channel.k8s.io", "command terminated with exit code 3")] {
        let url = server.exec(exec(&["both"], "oe")).unwrap();
        let mut spdy = Spdy::connect(&url, version).await;
        let [stdout, stderr, error] = spdy.streams(["stdout", "stderr", "error"]).await;
        let heard = spdy.rest().await;
        assert_eq!((heard.text(stdout), heard.text(stderr)), ("to stdout\n".into(), "to stderr\n".into()));
        assert_eq!(heard.ended.last(), Some(&error), "the error stream ends last");
        assert_eq!(heard.ended.len(), 3);
        match version {
            V4 => assert_eq!(exit_code(&heard.text(error)), 3),
            _ => assert_eq!(heard.text(error), expected),
        }
    }
}

#[tokio::test]
async fn a_command_that_cannot_run_says_why() {
    let (server, _) = Fake::serve(|_| ()).await;
    let url = server.exec(exec(&["fail", "executable not found"], "o")).unwrap();
    let mut spdy = Spdy::connect(&url, V4).await;
    let [error, _] = spdy.streams(["error", "stdout"]).await;
    let status: Value = serde_json::from_str(&spdy.rest().await.text(error)).unwrap();
    assert_eq!((&status["reason"], &status["message"]), (&"InternalError".into(), &"executable not found".into()));
}

#[tokio::test]
async fn frames_right_behind_the_request_are_kept() {
    let (server, _) = Fake::serve(|_| ()).await;
    let url = server.exec(exec(&["echo"], "io")).unwrap();
    let mut headers = Deflated::new();
    let mut early = Vec::new();
    for (id, kind) in [(1, "error"), (3, "stdin"), (5, "stdout")] {
        early.extend(headers.open(id, &[("streamtype", kind)]));
    }
    early.extend([0, 0, 0, 3, 1, 0, 0, 2, b'h', b'i']);
    let offer = format!("X-Stream-Protocol-Version: {V4}");
    let (_, tcp) = request(&url, &["Connection: Upgrade", "Upgrade: SPDY/3.1", &offer], &early).await;
    let heard = Spdy::on(tcp).after(headers, 7).rest().await;
    assert_eq!((heard.text(5), exit_code(&heard.text(1))), ("hi".into(), 0));
}

#[tokio::test]
async fn attach_is_like_exec_without_a_code() {
    let (server, _) = Fake::serve(|_| ()).await;
    let request =
        AttachRequest { container: "abc".into(), stdin: true, stdout: true, tty: true, ..AttachRequest::default() };
    let mut spdy = Spdy::connect(&server.attach(request).unwrap(), V4).await;
    let [error, stdin, stdout, _] = spdy.streams(["error", "stdin", "stdout", "resize"]).await;
    spdy.send(stdin, true, b"typed").await;
    let heard = spdy.rest().await;
    assert_eq!((heard.text(stdout), exit_code(&heard.text(error))), ("attached to abc\ntyped".into(), 0));
}

#[tokio::test]
async fn sizes_of_the_terminal_arrive() {
    let (server, _) = Fake::serve(|_| ()).await;
    let url = server.exec(exec(&["sizes", "2"], "ot")).unwrap();
    let mut spdy = Spdy::connect(&url, V4).await;
    let [error, stdout, resize] = spdy.streams(["error", "stdout", "resize"]).await;
    spdy.send(resize, false, b"{\"Width\":80,\"Height\":24}\n{\"Width\":132,").await;
    spdy.send(resize, false, b"\"Height\":43}").await;
    let heard = spdy.rest().await;
    assert_eq!((heard.text(stdout), exit_code(&heard.text(error))), ("24x80\n43x132\n".into(), 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_bytes_pass_unchanged_over_spdy() {
    let (server, _) = Fake::serve(|_| ()).await;
    let mut spdy = Spdy::connect(&server.exec(exec(&["echo"], "io")).unwrap(), V4).await;
    let [error, stdin, stdout] = spdy.streams(["error", "stdin", "stdout"]).await;
    let sent = pattern(64 * MB);
    let mut to = spdy.writer();
    let feed = tokio::spawn({
        let sent = sent.clone();
        async move {
            // Lengths that fit no buffer.
            for chunk in sent.chunks(100_003) {
                let mut frame = stdin.to_be_bytes().to_vec();
                frame.extend(u32::try_from(chunk.len()).unwrap().to_be_bytes());
                frame.extend(chunk);
                to.write_all(&frame).await.unwrap();
            }
            to.write_all(&[0, 0, 0, u8::try_from(stdin).unwrap(), 1, 0, 0, 0]).await.unwrap();
            to.flush().await.unwrap();
            to
        }
    });
    let mut heard = Heard::default();
    spdy.hear(&mut heard, |heard| heard.over(error)).await;
    drop(feed.await.unwrap());
    assert!(heard.data[&stdout] == sent, "{} of {} bytes, or others", heard.data[&stdout].len(), sent.len());
    assert_eq!(exit_code(&heard.text(error)), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_bytes_pass_unchanged_over_websocket() {
    let (server, _) = Fake::serve(|_| ()).await;
    let url = server.exec(exec(&["echo"], "io")).unwrap();
    let (mut sink, mut stream) = web(&url, "v5.channel.k8s.io").await.split();
    let sent = pattern(64 * MB);
    let feed = tokio::spawn({
        let sent = sent.clone();
        async move {
            for chunk in sent.chunks(100_003) {
                sink.send(on(0, chunk)).await.unwrap();
            }
            sink.send(on(255, &[0])).await.unwrap();
            sink
        }
    });
    let heard = channels(&mut stream).await;
    drop(feed.await.unwrap());
    assert!(heard[&1] == sent, "{} of {} bytes, or others", heard[&1].len(), sent.len());
    assert_eq!(exit_code(&String::from_utf8_lossy(&heard[&3])), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_may_be_long_and_not_endless() {
    let (server, _) = Fake::serve(|_| ()).await;
    for (length, kept) in [(32 * MB - 1, true), (32 * MB, false)] {
        let url = server.exec(exec(&["echo"], "io")).unwrap();
        let (mut sink, mut stream) = web(&url, "v5.channel.k8s.io").await.split();
        let sent = pattern(length);
        let message = on(0, &sent);
        let feed = tokio::spawn(async move {
            // The server may have gone before it has read all.
            let _ = sink.send(message).await;
            let _ = sink.send(on(255, &[0])).await;
            sink
        });
        let heard = timeout(20 * SECOND, channels(&mut stream)).await.expect("it ends");
        assert_eq!(heard.get(&1).is_some_and(|seen| *seen == sent), kept, "{length}");
        drop(feed.await.unwrap());
    }
}

#[tokio::test]
async fn websocket_channels_of_every_version() {
    let (server, _) = Fake::serve(|_| ()).await;
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    for version in ["v5.channel.k8s.io", V4, "channel.k8s.io", ""] {
        let url = server.exec(exec(&["both"], "oe")).unwrap();
        let heard = channels(&mut web(&url, version).await).await;
        assert_eq!((text(&heard[&1]), text(&heard[&2])), ("to stdout\n".into(), "to stderr\n".into()), "{version}");
        match version {
            "channel.k8s.io" | "" => assert_eq!(text(&heard[&3]), "command terminated with exit code 3"),
            _ => assert_eq!(exit_code(&text(&heard[&3])), 3),
        }
    }
    let url = server.exec(exec(&["first"], "io")).unwrap();
    let mut socket = web(&url, "v4.base64.channel.k8s.io").await;
    socket.send(Message::text("0aGVsbG8=")).await.unwrap();
    let mut said = String::new();
    while let Some(Ok(message)) = socket.next().await {
        said += message.to_text().unwrap_or("");
    }
    assert!(said.starts_with("11aGVsbG8=3ey"), "{said}");
}

#[tokio::test]
async fn websocket_resizes_and_answers_pings() {
    let (server, _) = Fake::serve(|_| ()).await;
    let url = server.exec(exec(&["sizes", "1"], "ot")).unwrap();
    let mut socket = web(&url, "v5.channel.k8s.io").await;
    socket.send(Message::Ping("there?".into())).await.unwrap();
    loop {
        match socket.next().await.unwrap().unwrap() {
            Message::Pong(text) => break assert_eq!(text, "there?"),
            message => assert_eq!(message, on(1, b"")),
        }
    }
    socket.send(on(4, b"{\"Width\":100,\"Height\":50}\n")).await.unwrap();
    assert_eq!(channels(&mut socket).await[&1], b"50x100\n");
}

#[tokio::test]
async fn a_token_is_good_for_one_request() {
    let (server, _) = Fake::serve(|config| config.token_lifetime = 1).await;
    let lines = ["Connection: Upgrade", "Upgrade: SPDY/3.1", "X-Stream-Protocol-Version: v4.channel.k8s.io"];
    let url = server.exec(exec(&["exit", "0"], "o")).unwrap();
    let first = request(&url, &lines, b"").await;
    assert_eq!(first.0.status(), "101");
    assert_eq!(request(&url, &lines, b"").await.0.status(), "404", "used");
    let url = server.exec(exec(&["exit", "0"], "o")).unwrap();
    assert_eq!(request(&url.replace("/exec/", "/attach/"), &lines, b"").await.0.status(), "404", "another verb");
    assert_eq!(request(&url, &lines, b"").await.0.status(), "404", "used for another verb");
    let url = server.exec(exec(&["exit", "0"], "o")).unwrap();
    sleep(SECOND).await;
    assert_eq!(request(&url, &lines, b"").await.0.status(), "404", "expired");
    let guess = format!("http://{}/exec/{}", server.address(), "0".repeat(32));
    assert_eq!(request(&guess, &lines, b"").await.0.status(), "404", "guessed");
}

#[tokio::test]
async fn what_is_not_spoken_is_refused() {
    let (server, _) = Fake::serve(|_| ()).await;
    let url = || server.exec(exec(&["exit", "0"], "o")).unwrap();
    let lines = ["Connection: Upgrade", "Upgrade: SPDY/3.1", "X-Stream-Protocol-Version: v9.channel.k8s.io"];
    let (head, _) = request(&url(), &lines, b"").await;
    assert_eq!(head.status(), "403");
    assert_eq!(head.values("x-accepted-stream-protocol-versions")[..2], [V4, "v3.channel.k8s.io"]);
    assert_eq!(request(&url(), &[], b"").await.0.status(), "400");
    assert_eq!(request(&url(), &["Connection: Upgrade", "Upgrade: h2c"], b"").await.0.status(), "400");
}

#[tokio::test]
async fn a_client_that_has_gone_is_noticed() {
    let (server, fake) = Fake::serve(|_| ()).await;
    let mut spdy = Spdy::connect(&server.exec(exec(&["stuck"], "io")).unwrap(), V4).await;
    spdy.streams(["error", "stdin", "stdout"]).await;
    drop(spdy);
    fake.saw("stuck: gone").await;
    let (server, fake) = Fake::serve(|_| ()).await;
    let mut socket = web(&server.exec(exec(&["stuck"], "io")).unwrap(), "v5.channel.k8s.io").await;
    socket.close(None).await.unwrap();
    fake.saw("stuck: gone").await;
}

#[tokio::test]
async fn a_client_that_has_gone_is_noticed_behind_input_that_nobody_reads() {
    let (server, fake) = Fake::serve(|_| ()).await;
    let mut spdy = Spdy::connect(&server.exec(exec(&["stuck"], "io")).unwrap(), V4).await;
    let [_, stdin, _] = spdy.streams(["error", "stdin", "stdout"]).await;
    let chunk = vec![0; MB];
    while timeout(SECOND / 2, spdy.send(stdin, false, &chunk)).await.is_ok() {}
    drop(spdy);
    fake.saw("stuck: gone").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_client_has_sent_before_it_went_arrives() {
    for size in [100_003, 20 * MB] {
        let (server, fake) = Fake::serve(|_| ()).await;
        let mut socket = web(&server.exec(exec(&["slowly"], "io")).unwrap(), V4).await;
        // With bytes that it has not read its end would be a reset.
        assert_eq!(socket.next().await.unwrap().unwrap(), on(1, b""));
        for chunk in pattern(20 * MB).chunks(size) {
            socket.send(on(0, chunk)).await.unwrap();
        }
        socket.close(None).await.unwrap();
        drop(socket);
        fake.saw(&format!("slowly: {}", 20 * MB)).await;
    }
}

#[tokio::test]
async fn a_websocket_that_has_gone_is_noticed_behind_input_that_nobody_reads() {
    let (server, fake) = Fake::serve(|_| ()).await;
    let mut socket = web(&server.exec(exec(&["stuck"], "io")).unwrap(), V4).await;
    let chunk = vec![0; MB];
    while timeout(SECOND / 2, socket.send(on(0, &chunk))).await.is_ok() {}
    drop(socket);
    fake.saw("stuck: gone").await;
}

#[tokio::test]
async fn input_that_nobody_wants_is_discarded() {
    let (server, _) = Fake::serve(|_| ()).await;
    let mut spdy = Spdy::connect(&server.exec(exec(&["first"], "io")).unwrap(), V4).await;
    let [error, stdin, stdout] = spdy.streams(["error", "stdin", "stdout"]).await;
    spdy.send(stdin, false, b"first").await;
    let mut heard = Heard::default();
    spdy.hear(&mut heard, |heard| heard.text(stdout) == "first").await;
    let chunk = vec![0; MB];
    for _ in 0..32 {
        spdy.send(stdin, false, &chunk).await;
    }
    spdy.hear(&mut heard, |heard| heard.over(error)).await;
    assert_eq!(exit_code(&heard.text(error)), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_never_reads_delays_no_other() {
    let (server, fake) = Fake::serve(|_| ()).await;
    let mut deaf = Spdy::connect(&server.exec(exec(&["flood"], "o")).unwrap(), V4).await;
    deaf.streams(["error", "stdout"]).await;
    sleep(SECOND / 2).await;
    let begin = Instant::now();
    let mut spdy = Spdy::connect(&server.exec(exec(&["both"], "oe")).unwrap(), V4).await;
    let [error, ..] = spdy.streams(["error", "stdout", "stderr"]).await;
    assert_eq!(exit_code(&spdy.rest().await.text(error)), 3);
    assert!(begin.elapsed() < SECOND, "{:?}", begin.elapsed());
    drop(deaf);
    fake.saw("flood: gone").await;
}

#[tokio::test]
async fn pings_are_answered_and_the_rest_is_tolerated() {
    let (server, _) = Fake::serve(|_| ()).await;
    let mut spdy = Spdy::connect(&server.exec(exec(&["echo"], "io")).unwrap(), V4).await;
    let [error, stdin, stdout] = spdy.streams(["error", "stdin", "stdout"]).await;
    spdy.raw(&[0x80, 3, 0, 4, 0, 0, 0, 12, 0, 0, 0, 1, 0, 0, 0, 7, 0, 1, 0, 0]).await; // SETTINGS
    spdy.raw(&[0x80, 3, 0, 9, 0, 0, 0, 8, 0, 0, 0, 5, 0, 0, 1, 0]).await; // WINDOW_UPDATE
    spdy.raw(&[0x80, 3, 0, 7, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0]).await; // GOAWAY
    spdy.raw(&[0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 9]).await; // PING
    spdy.send(999, true, b"for a stream that is not there").await;
    spdy.send(stdin, true, b"text").await;
    let heard = spdy.rest().await;
    assert_eq!((heard.text(stdout), exit_code(&heard.text(error)), heard.pings), ("text".into(), 0, vec![9]));
}

#[tokio::test]
async fn nonsense_ends_the_connection() {
    let (server, fake) = Fake::serve(|_| ()).await;
    for nonsense in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0x80, 2, 0, 6, 0, 0, 0, 4], &[0x80, 3, 0, 1, 0xff, 0, 0, 0]] {
        let mut spdy = Spdy::connect(&server.exec(exec(&["stuck"], "io")).unwrap(), V4).await;
        spdy.streams(["error", "stdin", "stdout"]).await;
        // The first of these looks like a long data frame of a stream that is not there.
        spdy.raw(nonsense).await;
        if nonsense[0] == 0x80 {
            let heard = timeout(8 * SECOND, spdy.rest()).await.expect("the connection ends");
            assert!(heard.gone_away);
            fake.saw("stuck: gone").await;
        }
    }
}

#[tokio::test]
async fn streams_that_were_not_asked_for_are_reset() {
    let (server, _) = Fake::serve(|_| ()).await;
    let mut spdy = Spdy::connect(&server.exec(exec(&["echo"], "io")).unwrap(), V4).await;
    let [error, twice, stderr, stdin, stdout] = spdy.streams(["error", "error", "stderr", "stdin", "stdout"]).await;
    let mut heard = Heard::default();
    spdy.hear(&mut heard, |heard| heard.reset.len() == 2).await;
    let late = spdy.open(&[("streamtype", "stdin")]).await;
    spdy.hear(&mut heard, |heard| heard.reset.len() == 3).await;
    assert_eq!(heard.reset, [twice, stderr, late]);
    spdy.send(stdin, true, b"still here").await;
    spdy.hear(&mut heard, |heard| heard.over(error)).await;
    assert_eq!(heard.text(stdout), "still here");
}

#[tokio::test]
async fn a_reset_ends_input() {
    let (server, fake) = Fake::serve(|_| ()).await;
    let mut spdy = Spdy::connect(&server.exec(exec(&["echo"], "io")).unwrap(), V4).await;
    let [error, stdin, _] = spdy.streams(["error", "stdin", "stdout"]).await;
    spdy.reset(stdin).await;
    fake.saw("echo ended").await;
    assert_eq!(exit_code(&spdy.rest().await.text(error)), 0);
}

#[tokio::test]
async fn a_connection_without_data_is_ended_though_it_pings() {
    let (server, fake) = Fake::serve(|config| config.idle_timeout = 1).await;
    let mut spdy = Spdy::connect(&server.exec(exec(&["stuck"], "io")).unwrap(), V4).await;
    let [_, stdin, _] = spdy.streams(["error", "stdin", "stdout"]).await;
    let begin = Instant::now();
    for _ in 0..4 {
        sleep(SECOND / 2).await;
        spdy.send(stdin, false, b"x").await;
    }
    let mut to = spdy.writer();
    tokio::spawn(async move {
        while to.write_all(&[0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 9]).await.is_ok() {
            sleep(SECOND / 4).await;
        }
    });
    fake.saw("stuck: gone").await;
    let took = begin.elapsed();
    assert!(took > SECOND * 5 / 2 && took < SECOND * 5, "{took:?}");
    timeout(8 * SECOND, spdy.rest()).await.expect("the connection ends");
}

#[tokio::test]
async fn a_stop_ends_everything() {
    let (server, fake) = Fake::serve(|_| ()).await;
    let mut spdy = Spdy::connect(&server.exec(exec(&["stuck"], "io")).unwrap(), V4).await;
    spdy.streams(["error", "stdin", "stdout"]).await;
    sleep(SECOND / 5).await;
    timeout(9 * SECOND, server.stop()).await.expect("it stops");
    fake.saw("stuck: gone").await;
    assert!(tokio::net::TcpStream::connect(server.address()).await.is_err());
}

#[tokio::test]
async fn a_client_that_lacks_streams_is_told() {
    let (server, _) = Fake::serve(|_| ()).await;
    let mut spdy = Spdy::connect(&server.exec(exec(&["echo"], "io")).unwrap(), V4).await;
    let [error, _] = spdy.streams(["error", "stdin"]).await;
    let heard = timeout(40 * SECOND, spdy.rest()).await.expect("the connection ends");
    assert!(heard.text(error).contains("timed out"), "{}", heard.text(error));
}

/// A server that sends back what it gets, and its end.
async fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = tcp.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
            });
        }
    });
    port
}

/// A server that accepts and never reads.
async fn deaf() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((tcp, _)) = listener.accept().await {
            held.push(tcp);
        }
    });
    port
}

async fn a_closed_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thirty_connections_at_a_time() {
    let (server, _) = Fake::serve(|_| ()).await;
    let port = echo().await;
    for tunnel in [false, true] {
        let url = server.port_forward(pod(&[port])).unwrap();
        let mut spdy = match tunnel {
            true => Spdy::tunnel(&url).await,
            false => Spdy::connect(&url, "portforward.k8s.io").await,
        };
        let mut streams = Vec::new();
        for request in 0..30 {
            streams.push(spdy.forward(port, request).await);
        }
        for (n, (_, data)) in streams.iter().enumerate() {
            spdy.send(*data, false, format!("request {n} ").as_bytes()).await;
        }
        for (_, data) in &streams {
            spdy.send(*data, true, &pattern(100_000)).await;
        }
        let mut heard = Heard::default();
        let all = |heard: &Heard| streams.iter().all(|(error, data)| heard.over(*error) && heard.over(*data));
        timeout(20 * SECOND, spdy.hear(&mut heard, all)).await.expect("all end");
        for (n, (error, data)) in streams.iter().enumerate() {
            assert_eq!((heard.text(*error).as_str(), &heard.reset), ("", &Vec::new()));
            assert!(heard.data[data] == [format!("request {n} ").as_bytes(), &pattern(100_000)].concat());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forwarded_connection_that_never_reads_holds_up_no_other() {
    let (server, _) = Fake::serve(|_| ()).await;
    let (echo, deaf) = (echo().await, deaf().await);
    let mut spdy = Spdy::connect(&server.port_forward(pod(&[])).unwrap(), "portforward.k8s.io").await;
    let (_, live) = spdy.forward(echo, 0).await;
    let (_, stuck) = spdy.forward(deaf, 1).await;
    let mut heard = Heard::default();
    let chunk = vec![0; MB];
    let begin = Instant::now();
    for _ in 0..32 {
        spdy.send(stuck, false, &chunk).await;
    }
    spdy.send(live, false, b"ping").await;
    spdy.hear(&mut heard, |heard| heard.text(live) == "ping").await;
    assert!(begin.elapsed() < 4 * SECOND, "{:?}", begin.elapsed());
    assert_eq!(heard.reset, [stuck]);
    let begin = Instant::now();
    spdy.send(stuck, false, &chunk).await;
    spdy.send(live, true, b"pong").await;
    spdy.hear(&mut heard, |heard| heard.over(live)).await;
    assert_eq!(heard.text(live), "pingpong");
    assert!(begin.elapsed() < SECOND, "{:?}", begin.elapsed());
}

#[tokio::test]
async fn a_port_that_nobody_listens_on_is_an_error_on_its_connection_alone() {
    let (server, _) = Fake::serve(|_| ()).await;
    let (closed, open) = (a_closed_port().await, echo().await);
    let mut spdy = Spdy::connect(&server.port_forward(pod(&[])).unwrap(), "portforward.k8s.io").await;
    let (error, data) = spdy.forward(closed, 0).await;
    let mut heard = Heard::default();
    spdy.hear(&mut heard, |heard| heard.over(error) && heard.over(data)).await;
    let text = heard.text(error);
    assert!(text.contains(&format!("port {closed} to pod p")) && text.contains("refused"), "{text}");
    assert_eq!(heard.reset, [data]);
    let (error, data) = spdy.forward(open, 1).await;
    spdy.send(data, true, b"fine").await;
    spdy.hear(&mut heard, |heard| heard.over(error)).await;
    assert_eq!((heard.text(data), heard.text(error)), ("fine".into(), String::new()));
}

#[tokio::test]
async fn ends_and_resets_reach_the_port() {
    let (server, _) = Fake::serve(|_| ()).await;
    let listener = TcpListener::bind("[::1]:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut spdy = Spdy::connect(&server.port_forward(pod(&[])).unwrap(), "portforward.k8s.io").await;
    // The port's end first, ours later.
    let (error, data) = spdy.forward(port, 0).await;
    let (mut target, _) = listener.accept().await.unwrap();
    target.write_all(b"greeting").await.unwrap();
    target.shutdown().await.unwrap();
    let mut heard = Heard::default();
    spdy.hear(&mut heard, |heard| heard.over(data)).await;
    assert!(heard.text(data) == "greeting" && !heard.over(error));
    spdy.send(data, true, b"answer").await;
    let mut answer = String::new();
    target.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "answer");
    spdy.hear(&mut heard, |heard| heard.over(error)).await;
    // A reset of ours.
    let (error, data) = spdy.forward(port, 1).await;
    let (mut target, _) = listener.accept().await.unwrap();
    spdy.reset(data).await;
    spdy.hear(&mut heard, |heard| heard.over(error)).await;
    assert_eq!(timeout(5 * SECOND, target.read(&mut [0])).await.expect("it ends").unwrap_or(0), 0);
    // The client's end.
    spdy.forward(port, 2).await;
    let (mut target, _) = listener.accept().await.unwrap();
    drop(spdy);
    assert_eq!(timeout(5 * SECOND, target.read(&mut [0])).await.expect("it ends").unwrap_or(0), 0);
}

#[tokio::test]
async fn streams_without_a_use_are_reset_and_bounded() {
    let (server, _) = Fake::serve(|_| ()).await;
    let mut spdy = Spdy::connect(&server.port_forward(pod(&[])).unwrap(), "portforward.k8s.io").await;
    let strange = [
        spdy.open(&[("streamtype", "data")]).await,
        spdy.open(&[("streamtype", "data"), ("port", "0"), ("requestid", "1")]).await,
        spdy.open(&[("streamtype", "data"), ("port", "99999"), ("requestid", "1")]).await,
        spdy.open(&[("streamtype", "stdin"), ("port", "80"), ("requestid", "1")]).await,
    ];
    let mut heard = Heard::default();
    spdy.hear(&mut heard, |heard| heard.reset.len() == strange.len()).await;
    assert_eq!(heard.reset, strange);
    // Halves that never become whole.
    let mut halves = Vec::new();
    for request in 0..300 {
        halves.push(spdy.open(&[("streamtype", "data"), ("port", "80"), ("requestid", &format!("h{request}"))]).await);
    }
    spdy.hear(&mut heard, |heard| heard.reset.contains(&halves[299])).await;
    assert_eq!(heard.reset[strange.len()..], halves[256..]);
    spdy.raw(&[0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1]).await;
    spdy.hear(&mut heard, |heard| heard.pings == [1]).await;
}

#[tokio::test]
async fn ports_inside_a_network_namespace() {
    let name = format!("conward-stream-{}", std::process::id());
    let ip = |words: &[&str]| assert!(std::process::Command::new("ip").args(words).status().unwrap().success());
    ip(&["netns", "add", &name]);
    ip(&["-n", &name, "link", "set", "lo", "up"]);
    let path = std::path::PathBuf::from(format!("/run/netns/{name}"));
    let listener = std::thread::spawn({
        let path = path.clone();
        move || {
            let netns = std::fs::File::open(path).unwrap();
            nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            std::net::TcpListener::bind("127.0.0.1:0").unwrap()
        }
    });
    let listener = listener.join().unwrap();
    let port = listener.local_addr().unwrap().port();
    let accepted = std::thread::spawn(move || std::io::Write::write_all(&mut listener.accept().unwrap().0, b"inside"));
    let inside = connect_in(Some(&path), port).await;
    let outside = connect_in(None, port).await;
    let missing = connect_in(Some(std::path::Path::new("/run/netns/none")), port).await;
    let mut text = String::new();
    inside.unwrap().read_to_string(&mut text).await.unwrap();
    accepted.join().unwrap().unwrap();
    ip(&["netns", "del", &name]);
    assert_eq!(text, "inside");
    assert!(outside.unwrap_err().to_string().contains("refused"));
    assert!(missing.unwrap_err().to_string().contains("/run/netns/none"));
}
