//! The client library against a fake monitor over a pair of sockets.

mod fake;

use std::rc::Rc;
use std::time::Duration;

use conmon_proto::conward_capnp::Stream::{Stderr, Stdout};
use conmon_proto::{
    AttachRequest, Client, Code, EndReason, Event, ExecSpec, ExitReason, History, Phase, Stream, output,
};
use fake::{Fake, Half, ID};

/// Runs a test on one thread, connected to a fake.
fn connected<T: Future<Output = ()>>(fake: Rc<Fake>, test: impl FnOnce(Client) -> T) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let (ours, theirs) = tokio::net::UnixStream::pair().unwrap();
        let (reader, writer) = theirs.into_split();
        tokio::task::spawn_local(fake.serve(Half(reader), Half(writer)));
        let (reader, writer) = ours.into_split();
        let (client, driver) = Client::over(Half(reader), Half(writer));
        tokio::task::spawn_local(driver);
        tokio::time::timeout(Duration::from_secs(20), test(client)).await.expect("an end in time");
    });
}

fn written(event: Option<Event>) -> (Stream, u64, String) {
    match event {
        Some(Event::Write { stream, offset, data }) => (stream, offset, String::from_utf8(data).unwrap()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn answers_are_plain_values() {
    connected(Fake::new(ID, &[(Stdout, "hello\n"), (Stderr, "no\n")], 4), |client| async move {
        let state = client.inspect().await.unwrap();
        assert_eq!((&state.id[..], state.phase, state.pid), (ID, Phase::Running, 77));
        assert_eq!(state.stream(Stream::Stdout).unwrap().bytes, 10);
        assert_eq!(state.stream(Stream::Stderr).unwrap().bytes, 3);
        assert_eq!(client.version().await.unwrap().conward, "9.8.7");
        let refusal = client.resize(1, 2).await.unwrap_err();
        assert_eq!(refusal.refusal().unwrap().code, Code::NoTerminal);
        assert_eq!(refusal.to_string(), "resize: the container has no terminal");
        assert_eq!(client.exec_result(9).await.unwrap_err().refusal().unwrap().code, Code::NotFound);
        assert_eq!(client.reopen_log().await.unwrap()[0].stdout, 10);
    });
}

#[test]
fn history_and_live_output_come_in_order_and_end() {
    connected(Fake::new(ID, &[(Stdout, "one\n"), (Stderr, "two\n")], 7), |client| async move {
        let (output, mut events) = output();
        let request = AttachRequest { history: History::All, stdin: true, ..AttachRequest::default() };
        let attachment = client.attach(&request, output).await.unwrap();
        assert_eq!(events.next().await, Some(Event::Gap { stream: Stream::Stdout, offset: 0, lost: 7 }));
        assert_eq!(written(events.next().await), (Stream::Stdout, 7, "one\n".to_owned()));
        assert_eq!(written(events.next().await), (Stream::Stderr, 0, "two\n".to_owned()));
        attachment.write(b"typed\n").await.unwrap();
        assert_eq!(written(events.next().await), (Stream::Stdout, 11, "typed\n".to_owned()));
        attachment.write(b"end 3\n").await.unwrap();
        assert_eq!(written(events.next().await), (Stream::Stdout, 17, "end 3\n".to_owned()));
        let Some(Event::End(end)) = events.next().await else { panic!("no end") };
        assert_eq!((end.reason, end.exit.unwrap().status, end.stdout), (EndReason::Ended, 3, 23));
        let (exit, durable) = client.wait().await.unwrap();
        assert_eq!((exit.reason, exit.status, durable), (ExitReason::Exited, 3, true));
    });
}

#[test]
fn output_waits_for_the_one_who_takes_it() {
    let text = "x".repeat(40_000);
    let said: Vec<_> = (0..200).map(|_| (Stdout, &text[..])).collect();
    connected(Fake::new(ID, &said, 0), |client| async move {
        let (output, mut events) = output();
        let request = AttachRequest { history: History::All, ..AttachRequest::default() };
        let _attachment = client.attach(&request, output).await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        // Eight megabytes were to be had; what has come is what the monitor may send without an answer.
        let waiting = events.waiting();
        assert!(waiting > 0 && waiting < 1 << 20, "{waiting} bytes wait");
        for number in 0..200 {
            assert_eq!(written(events.next().await).1, number * 40_000);
        }
    });
}

#[test]
fn execs_are_captured_or_streamed() {
    connected(Fake::new(ID, &[], 0), |client| async move {
        let exec = client.exec(&ExecSpec::command(["echo", "hi"]), None).await.unwrap();
        let result = exec.wait().await.unwrap();
        assert_eq!((&result.stdout[..], &result.stderr[..]), (&b"hi\n"[..], &b"warn\n"[..]));
        let (output, mut events) = output();
        let exec = client.exec(&ExecSpec::command(["cat"]), Some(output)).await.unwrap();
        assert_eq!(exec.id, 2);
        exec.write(b"through").await.unwrap();
        assert_eq!(written(events.next().await).2, "through");
        let refused = client.exec(&ExecSpec::command(["refused"]), None).await.unwrap_err();
        assert_eq!(refused.refusal().unwrap().code, Code::TooMany);
    });
}

#[test]
fn a_connection_that_goes_away_ends_everything() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let (ours, theirs) = tokio::net::UnixStream::pair().unwrap();
        let (reader, writer) = theirs.into_split();
        let fake = Fake::new(ID, &[], 0);
        let serving = tokio::task::spawn_local(fake.serve(Half(reader), Half(writer)));
        let (reader, writer) = ours.into_split();
        let (client, driver) = Client::over(Half(reader), Half(writer));
        let driving = tokio::task::spawn_local(driver);
        let (output, mut events) = output();
        let attachment = client.attach(&AttachRequest::default(), output).await.unwrap();
        serving.abort();
        // The fake has the output still; the connection does not.
        drop(fake);
        assert!(client.wait().await.unwrap_err().is_disconnect());
        assert_eq!(events.next().await, None);
        drop((attachment, client));
        driving.await.unwrap().ok();
    });
}

#[test]
fn dropping_the_client_ends_the_connection() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let (ours, theirs) = tokio::net::UnixStream::pair().unwrap();
        let (reader, writer) = theirs.into_split();
        let serving = tokio::task::spawn_local(Fake::new(ID, &[], 0).serve(Half(reader), Half(writer)));
        let (reader, writer) = ours.into_split();
        let (client, driver) = Client::over(Half(reader), Half(writer));
        tokio::task::spawn_local(driver);
        let again = client.clone();
        drop(client);
        assert_eq!(again.version().await.unwrap().pid, 4242);
        drop(again);
        tokio::time::timeout(Duration::from_secs(5), serving).await.expect("the other end notices").unwrap().ok();
    });
}
