//! A backend without containers: a few built-in commands, and programs of this host for all others.

use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use conward_cri::config;
use conward_cri::error::{Context, Error, Result};
use conward_cri::streaming::{AttachRequest, Backend, Duplex, ExecRequest, Gone, Io, Streaming, connect_in};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio::time::sleep;

/// What happened, in words.
#[derive(Clone, Default)]
pub struct Fake {
    notes: Arc<Mutex<Vec<String>>>,
}

impl Fake {
    /// A server with this backend and a way to ask it what it saw.
    pub async fn serve(change: impl FnOnce(&mut config::Streaming)) -> (Streaming, Fake) {
        let mut config = config::Streaming::default();
        change(&mut config);
        let fake = Fake::default();
        (Streaming::start(&config, Arc::new(fake.clone())).await.unwrap(), fake)
    }

    /// Waits until something is noted.
    #[allow(dead_code)]
    pub async fn saw(&self, note: &str) {
        for _ in 0..1000 {
            if self.notes.lock().unwrap().iter().any(|one| one == note) {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("never saw {note:?}, only {:?}", self.notes.lock().unwrap());
    }

    fn note(&self, text: impl Into<String>) {
        self.notes.lock().unwrap().push(text.into());
    }

    async fn run(&self, request: ExecRequest, mut io: Io) -> Result<i32> {
        let words: Vec<&str> = request.command.iter().map(String::as_str).collect();
        match words[..] {
            ["exit", code] => Ok(code.parse().unwrap()),
            ["fail", text] => Err(Error::failed(text)),
            ["both"] => {
                say(&io.stdout, "to stdout\n").await;
                say(&io.stderr, "to stderr\n").await;
                Ok(3)
            }
            ["echo"] => {
                let (mut stdin, stdout) = (io.stdin.take().unwrap(), io.stdout.take().unwrap());
                while let Some(bytes) = stdin.recv().await {
                    if stdout.send(bytes).await.is_err() {
                        break;
                    }
                }
                self.note("echo ended");
                Ok(0)
            }
            // Takes one piece of its input and no more.
            ["first"] => {
                let bytes = io.stdin.take().unwrap().recv().await.unwrap();
                say(&io.stdout, bytes).await;
                sleep(Duration::from_millis(300)).await;
                Ok(0)
            }
            // Takes all of its input in its own time, whether or not the client is there.
            ["slowly"] => {
                let (mut stdin, mut length) = (io.stdin.take().unwrap(), 0);
                sleep(Duration::from_secs(2)).await;
                while let Some(bytes) = stdin.recv().await {
                    length += bytes.len();
                    sleep(Duration::from_millis(1)).await;
                }
                self.note(format!("slowly: {length}"));
                Ok(0)
            }
            ["sizes", count] => {
                for _ in 0..count.parse().unwrap() {
                    let (rows, columns) = io.resize.recv().await.unwrap();
                    say(&io.stdout, format!("{rows}x{columns}\n")).await;
                }
                Ok(0)
            }
            // Never reads, never ends by itself.
            ["stuck"] => {
                io.gone.wait().await;
                self.note("stuck: gone");
                Ok(0)
            }
            ["flood"] => {
                let stdout = io.stdout.take().unwrap();
                let chunk = Bytes::from(vec![b'x'; 32 * 1024]);
                while stdout.send(chunk.clone()).await.is_ok() {}
                self.note("flood: gone");
                Ok(0)
            }
            _ => program(&request, io).await,
        }
    }
}

impl Backend for Fake {
    fn exec(&self, request: ExecRequest, io: Io) -> BoxFuture<'_, Result<i32>> {
        self.run(request, io).boxed()
    }

    fn attach(&self, request: AttachRequest, io: Io) -> BoxFuture<'_, Result<()>> {
        async move {
            say(&io.stdout, format!("attached to {}\n", request.container)).await;
            let request = ExecRequest { command: vec!["echo".into()], ..ExecRequest::default() };
            self.run(request, io).await.map(drop)
        }
        .boxed()
    }

    fn port_forward(&self, _pod: String, port: u16, mut stream: Duplex) -> BoxFuture<'_, Result<()>> {
        async move {
            let mut target = connect_in(None, port).await?;
            copy_bidirectional(&mut stream, &mut target).await.context(|| "Failed to copy")?;
            Ok(())
        }
        .boxed()
    }
}

async fn say(to: &Option<mpsc::Sender<Bytes>>, text: impl Into<Bytes>) {
    if let Some(to) = to {
        let _ = to.send(text.into()).await;
    }
}

/// Runs a program; with a terminal of its own, made by script(1), when one is asked for.
async fn program(request: &ExecRequest, io: Io) -> Result<i32> {
    let mut command = if request.tty {
        let mut command = Command::new("script");
        command.args(["-qec", &request.command.join(" "), "/dev/null"]);
        command
    } else {
        let mut command = Command::new(&request.command[0]);
        command.args(&request.command[1..]);
        command
    };
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().context(|| format!("exec failed: {:?}", request.command))?;
    let mut to = child.stdin.take().unwrap();
    let Io { stdin, stdout, stderr, gone, .. } = io;
    let feed = tokio::spawn(async move {
        let Some(mut stdin) = stdin else { return };
        while let Some(bytes) = stdin.recv().await {
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    });
    let out = tokio::spawn(pump(child.stdout.take().unwrap(), stdout));
    let err = tokio::spawn(pump(child.stderr.take().unwrap(), stderr));
    let status = ended(&mut child, gone).await?;
    feed.abort();
    let _ = tokio::join!(out, err);
    Ok(status.code().unwrap_or(137))
}

async fn ended(child: &mut tokio::process::Child, mut gone: Gone) -> Result<std::process::ExitStatus> {
    tokio::select! {
        status = child.wait() => return status.context(|| "Failed to wait"),
        () = gone.wait() => {}
    }
    child.kill().await.context(|| "Failed to kill")?;
    child.wait().await.context(|| "Failed to wait")
}

async fn pump(mut from: impl AsyncRead + Unpin, to: Option<mpsc::Sender<Bytes>>) {
    let mut chunk = vec![0; 32 * 1024];
    while let Ok(count @ 1..) = from.read(&mut chunk).await {
        if let Some(to) = &to
            && to.send(Bytes::copy_from_slice(&chunk[..count])).await.is_err()
        {
            return;
        }
    }
}
