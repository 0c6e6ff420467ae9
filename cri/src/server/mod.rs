//! The two gRPC services: requests in, the domain called, answers out.

mod authority;
mod convert;
mod events;
mod images;
mod pod_metrics;
mod runtime;
mod stats;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_cri::v1::image_service_server::ImageServiceServer;
use k8s_cri::v1::runtime_service_server::RuntimeServiceServer;
use tokio::net::UnixListener;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use crate::daemon::Daemon;
use crate::error::{Context, Error, Result};
use crate::metrics::Counted;

/// What clients of the CRI take and send in one message.
const MESSAGE_MAX: usize = 16 << 20;

/// The longest that somebody may still listen who is about to leave.
const LEFT_SOON: Duration = Duration::from_secs(1);

/// Listens on the socket, in place of one that nobody listens on any more.
pub fn listen(path: &Path) -> Result<UnixListener> {
    let doing = || format!("Failed to listen on {}", path.display());
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).context(doing)?;
    }
    let end = Instant::now() + LEFT_SOON;
    while std::os::unix::net::UnixStream::connect(path).is_ok() {
        if Instant::now() > end {
            return Err(Error::failed(format!("{}: another program listens there", doing())));
        }
        // A child that a killed server was just starting has its descriptors for a moment.
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).context(doing)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o660)).context(doing)?;
    Ok(listener)
}

/// Serves until `stop` is done; calls that are under way are finished.
pub async fn serve(daemon: Arc<Daemon>, listener: UnixListener, stop: impl Future<Output = ()>) -> Result<()> {
    let calls = Arc::clone(&daemon.calls);
    let service = Service(daemon);
    let runtime = RuntimeServiceServer::new(service.clone());
    let images = ImageServiceServer::new(service);
    let runtime = runtime.max_decoding_message_size(MESSAGE_MAX).max_encoding_message_size(MESSAGE_MAX);
    let images = images.max_decoding_message_size(MESSAGE_MAX).max_encoding_message_size(MESSAGE_MAX);
    let clients = UnixListenerStream::new(listener).map(|socket| socket.map(authority::Connection::new));
    Server::builder()
        .add_service(Counted::new(runtime, &calls))
        .add_service(Counted::new(images, &calls))
        .serve_with_incoming_shutdown(clients, stop)
        .await
        .context(|| "The gRPC server ended")
}

/// Both services of one daemon.
#[derive(Clone, Debug)]
struct Service(Arc<Daemon>);
