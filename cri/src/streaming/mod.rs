use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::pin::Pin;
use hyper::body::Bytes;
use tokio::sync::mpsc;
use crate::error::Result;
pub type Future<T> = Pin<Box<dyn std::future::Future<Output = T> + Send>>;
#[derive(Debug)]
pub struct Streaming;
pub struct Io { pub stdin: Option<mpsc::Receiver<Bytes>>, pub stdout: Option<mpsc::Sender<Bytes>>, pub stderr: Option<mpsc::Sender<Bytes>>, pub resize: mpsc::Receiver<(u16, u16)> }
pub struct ExecRequest { pub container: String, pub command: Vec<String>, pub tty: bool, pub stdin: bool, pub stdout: bool, pub stderr: bool }
pub struct AttachRequest { pub container: String, pub tty: bool, pub stdin: bool, pub stdout: bool, pub stderr: bool }
pub struct PortForwardRequest { pub pod: String, pub ports: Vec<u16> }
pub trait Backend: Send + Sync {
    fn exec(&self, request: ExecRequest, io: Io) -> Future<Result<i32>>;
    fn attach(&self, request: AttachRequest, io: Io) -> Future<Result<()>>;
    fn netns(&self, pod: &str) -> Result<Option<PathBuf>>;
}
impl Streaming {
    pub async fn start(_: &crate::config::Streaming, _: Arc<dyn Backend>) -> Result<Streaming> { todo!() }
    pub fn address(&self) -> SocketAddr { todo!() }
    pub fn exec(&self, _: ExecRequest) -> Result<String> { todo!() }
    pub fn attach(&self, _: AttachRequest) -> Result<String> { todo!() }
    pub fn port_forward(&self, _: PortForwardRequest) -> Result<String> { todo!() }
}
