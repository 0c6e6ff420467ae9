//! The client on a Unix socket under tokio.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::ReadBuf;
use tokio::net::UnixStream;

use crate::client::Client;
use crate::error::Error;

/// Connects to the monitor that listens at `path`, and drives the connection in a task of its own. To be called within
/// a `LocalSet`.
pub async fn connect(path: &Path) -> Result<Client, Error> {
    let stream = open(path).await.map_err(|error| Error::Connect(path.to_owned(), error))?;
    let (reader, writer) = stream.into_split();
    let (client, driver) = Client::over(Half(reader), Half(writer));
    // What ends it is told to the calls that were waiting.
    tokio::task::spawn_local(async move { driver.await.ok() });
    Ok(client)
}

/// Names of sockets have 108 bytes, and a bundle's path alone may be longer: then the way goes through its directory.
async fn open(path: &Path) -> io::Result<UnixStream> {
    if path.as_os_str().as_bytes().len() < NAME_MAX {
        return UnixStream::connect(path).await;
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let directory = File::open(parent)?;
    let short: PathBuf =
        [Path::new("/proc/self/fd"), directory.as_raw_fd().to_string().as_ref(), name.as_ref()].iter().collect();
    UnixStream::connect(short).await
}

const NAME_MAX: usize = 108;

/// One direction of a stream of tokio, with the traits of futures.
struct Half<T>(T);

impl<T: tokio::io::AsyncRead + Unpin> futures::AsyncRead for Half<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(buffer);
        ready!(Pin::new(&mut self.0).poll_read(cx, &mut buffer))?;
        Poll::Ready(Ok(buffer.filled().len()))
    }
}

impl<T: tokio::io::AsyncWrite + Unpin> futures::AsyncWrite for Half<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
