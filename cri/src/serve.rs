//! From a configuration to a server that answers, and to its end.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use tokio::signal::unix::{SignalKind, signal};

use crate::config::Config;
use crate::daemon::Daemon;
use crate::error::{Context, Error, Result};
use crate::streaming::{self, Streaming};
use crate::{check, container, image, metrics, sandbox, server, sys};

/// Serves until SIGTERM or SIGINT. Containers and their monitors go on.
pub fn run(config: Config) -> Result<()> {
    sys::share_heap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_stack_size(1 << 20)
        .thread_keep_alive(Duration::from_secs(2))
        .enable_all()
        .build()
        .context(|| "Failed to start threads")?;
    let served = runtime.block_on(serve(config));
    runtime.shutdown_timeout(Duration::from_secs(5));
    served
}

/// Pods and containers that are made at the same time.
const BLOCKING_THREADS: usize = 16;

/// Calls a server, and waits for what it does.
pub fn call(work: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context(|| "Failed to start")?.block_on(work)
}

/// One server per root: two would undo each other's work. The lock goes with the process, however it ends.
fn alone(config: &Config) -> Result<Flock<File>> {
    let path = config.root.join("serve.lock");
    let doing = || format!("Failed to lock {}", path.display());
    std::fs::create_dir_all(&config.root).context(|| format!("Failed to make {}", config.root.display()))?;
    let until = Instant::now() + Duration::from_secs(2);
    loop {
        let file = File::options().create(true).truncate(false).write(true).open(&path).context(doing)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            // One that was just killed may have a child that is about to execute something.
            Err((_, Errno::EAGAIN)) if Instant::now() < until => std::thread::sleep(Duration::from_millis(20)),
            Err((_, Errno::EAGAIN)) => {
                return Err(Error::failed(format!("Another server has {} already", config.root.display())));
            }
            Err((_, errno)) => return Err(errno).context(doing),
        }
    }
}

async fn serve(config: Config) -> Result<()> {
    let _alone = alone(&config)?;
    let listener = server::listen(&config.socket)?;
    let socket = config.socket.clone();
    let daemon = Daemon::open(config).await?;
    let streams = Streaming::start(&daemon.config.streaming, Arc::new(Streams(Arc::clone(&daemon)))).await?;
    tracing::info!(address = %streams.address(), "streaming");
    let _ = daemon.streaming.set(streams);
    metrics::serve(&daemon).await?;
    tracing::info!(socket = %socket.display(), runtimes = ?daemon.handlers.names(), "serving");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    if let Some(limit) = sd_notify::watchdog_enabled() {
        tokio::spawn(watchdog(socket.clone(), limit));
    }
    let mut term = signal(SignalKind::terminate()).context(|| "Failed to catch SIGTERM")?;
    let mut int = signal(SignalKind::interrupt()).context(|| "Failed to catch SIGINT")?;
    let stop = async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        tracing::info!("stopping; containers go on");
    };
    server::serve(daemon, listener, stop).await?;
    let _ = std::fs::remove_file(socket);
    Ok(())
}

/// Tells systemd that the server is well, as long as its own socket answers; otherwise systemd starts another after
/// `limit`, and containers do not notice.
async fn watchdog(socket: PathBuf, limit: Duration) {
    let share = limit / 3;
    loop {
        tokio::time::sleep(share).await;
        match tokio::time::timeout(share, check::answers(&socket)).await {
            Ok(Ok(())) => _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]),
            Ok(Err(error)) => tracing::error!("The watchdog is not told that all is well: {error}"),
            Err(_) => tracing::error!("The watchdog is not told that all is well: no answer within {share:?}"),
        }
    }
}

/// Puts a directory into the store as an image.
pub fn import(config: &Config, name: &str, tree: &Path) -> Result<()> {
    let store = image::Store::open(config)?;
    match tree.to_str() {
        Some("busybox") => image::busybox(&store, name),
        _ => store.import(name, image::Content::Directory(tree), image::plain()?),
    }
    .map(drop)
}

/// What streams are connected to.
#[derive(Debug)]
struct Streams(Arc<Daemon>);

impl streaming::Backend for Streams {
    fn exec(&self, request: streaming::ExecRequest, io: streaming::Io) -> BoxFuture<'_, Result<i32>> {
        let daemon = Arc::clone(&self.0);
        let wish = container::Wish { command: request.command, terminal: request.tty, stdin: request.stdin };
        Box::pin(async move { container::exec(&daemon, &request.container, wish, io).await })
    }

    fn attach(&self, request: streaming::AttachRequest, io: streaming::Io) -> BoxFuture<'_, Result<()>> {
        let daemon = Arc::clone(&self.0);
        Box::pin(async move { container::attach(&daemon, &request.container, io).await })
    }

    fn port_forward(&self, pod: String, port: u16, mut stream: streaming::Duplex) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let netns = sandbox::netns(&*self.0.pod(&pod)?)?;
            let mut link = streaming::connect_in(netns.as_deref(), port).await?;
            tokio::io::copy_bidirectional(&mut stream, &mut link)
                .await
                .map(drop)
                .context(|| format!("The connection to port {port} of pod {pod} broke"))
        })
    }
}
