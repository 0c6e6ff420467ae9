//! Attach: the container's own streams.

use std::rc::Rc;
use std::sync::Arc;

use conmon_proto::{AttachRequest, Event, Stream};
use tokio::sync::watch;
use tokio::time::timeout;

use super::exec::LEFT;
use crate::daemon::Daemon;
use crate::error::Result;
use crate::streaming::Io;

/// Sends what a container says to a client, and what the client types to the container, until one of them ends.
pub async fn attach(daemon: &Arc<Daemon>, id: &str, io: Io) -> Result<()> {
    let container = daemon.container(id)?;
    container.running()?;
    let config = &container.record.config;
    let request = AttachRequest {
        stdin: io.stdin.is_some() && config.stdin,
        stdout: io.stdout.is_some(),
        stderr: io.stderr.is_some() && !config.tty,
        leave_stdin_open: !config.stdin_once,
        ..AttachRequest::default()
    };
    daemon.monitors.stream(container.bundle(), move |client| run(client, request, io)).await
}

async fn run(client: conmon_proto::Client, request: AttachRequest, io: Io) -> Result<()> {
    let refused = |error: conmon_proto::Error| crate::monitor::refusal("attach".as_ref(), &error);
    let (output, mut events) = conmon_proto::output();
    let attachment = Rc::new(client.attach(&request, output).await.map_err(refused)?);
    let Io { mut stdin, stdout, stderr, mut resize, mut gone } = io;
    let (typed, sized, wants_input) = (Rc::clone(&attachment), Rc::clone(&attachment), request.stdin);
    let (typing, mut typed_all) = watch::channel(());
    let input = async move {
        let typing = typing;
        let Some(stdin) = stdin.as_mut().filter(|_| wants_input) else {
            drop(typing);
            return std::future::pending().await;
        };
        while let Some(chunk) = stdin.recv().await {
            if typed.write(&chunk).await.is_err() {
                return;
            }
        }
        if !request.leave_stdin_open {
            let _ = typed.close_stdin().await;
        }
        drop(typing);
        // Who has nothing more to say may still be listening.
        std::future::pending().await
    };
    let sizes = async move {
        while let Some((rows, columns)) = resize.recv().await {
            let _ = sized.resize(rows, columns).await;
        }
        std::future::pending::<()>().await
    };
    let there = gone.clone();
    let listening = async move {
        while let Some(event) = events.next().await {
            let Event::Write { stream, data, .. } = event else { continue };
            let to = if stream == Stream::Stderr { &stderr } else { &stdout };
            if let Some(to) = to
                && to.send(data.into()).await.is_err()
                && !there.is_gone()
            {
                return;
            }
        }
    };
    let leaving = async move {
        gone.wait().await;
        // What it has typed before is still to be passed on.
        let _ = timeout(LEFT, async { while typed_all.changed().await.is_ok() {} }).await;
    };
    tokio::select! {
        () = input => {}
        () = sizes => {}
        () = listening => {}
        () = leaving => {}
    }
    Ok(())
}
