//! As much of an API server as kubectl needs to run exec, attach, cp and port-forward against a streaming URL.
//!
//! Tells of the resource `pods`, answers with a running pod under any name, and passes an upgrade for
//! `.../pods/NAME/{exec,attach,portforward}` through to the URL that a function gives for it.

use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

/// What kubectl wants.
#[derive(Clone, Debug)]
pub struct Ask {
    #[allow(dead_code)]
    pub namespace: String,
    pub pod: String,
    /// `exec`, `attach` or `portforward`.
    pub subresource: String,
    pub query: Vec<(String, String)>,
}

#[allow(dead_code)]
impl Ask {
    pub fn values(&self, name: &str) -> Vec<String> {
        self.query.iter().filter(|(key, _)| key == name).map(|(_, value)| value.clone()).collect()
    }

    pub fn is(&self, name: &str) -> bool {
        matches!(self.values(name).first().map(String::as_str), Some("true" | "1"))
    }
}

/// From a request to the URL that serves it, or to the reason why there is none.
pub type Lookup = Arc<dyn Fn(Ask) -> BoxFuture<'static, Result<String, String>> + Send + Sync>;

/// Serves on a port of this host until the runtime ends.
pub async fn start(lookup: Lookup) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tokio::spawn(serve(tcp, lookup.clone()));
        }
    });
    address
}

async fn serve(mut tcp: TcpStream, lookup: Lookup) {
    let Some((head, rest)) = head(&mut tcp).await else { return };
    let mut words = head.split(' ');
    let (Some(_), Some(target)) = (words.next(), words.next()) else { return };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    let (status, body) = match parts[..] {
        ["api", "v1", "namespaces", namespace, "pods", pod, subresource @ ("exec" | "attach" | "portforward")] => {
            let ask = Ask {
                namespace: namespace.into(),
                pod: pod.into(),
                subresource: subresource.into(),
                query: pairs(query),
            };
            match lookup(ask).await {
                Ok(url) => return pass(tcp, &url, &head, &rest).await,
                Err(text) => (500, failure(500, &text)),
            }
        }
        ["api", "v1", "namespaces", namespace, "pods", pod] => (200, running(namespace, pod)),
        ["api"] => (200, json!({ "kind": "APIVersions", "versions": ["v1"] })),
        ["api", "v1"] => (200, resources()),
        ["apis"] => (200, json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": [] })),
        _ => (404, failure(404, &format!("no {path} here"))),
    };
    let body = body.to_string();
    let answer = format!(
        "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let _ = tcp.write_all(answer.as_bytes()).await;
    let _ = tcp.shutdown().await;
}

/// The lines of a request, and what came behind them.
async fn head(tcp: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let rest = bytes.split_off(end + 4);
            return Some((String::from_utf8(bytes).ok()?, rest));
        }
        if tcp.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
}

/// Sends the request on to another URL, and then everything both ways.
async fn pass(mut tcp: TcpStream, url: &str, head: &str, rest: &[u8]) {
    let (host, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let (first, lines) = head.split_once("\r\n").unwrap();
    let method = first.split(' ').next().unwrap();
    let mut to = TcpStream::connect(host).await.unwrap();
    to.write_all(format!("{method} /{path} HTTP/1.1\r\n{lines}").as_bytes()).await.unwrap();
    to.write_all(rest).await.unwrap();
    let _ = copy_bidirectional(&mut tcp, &mut to).await;
}

fn pairs(query: &str) -> Vec<(String, String)> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (unescape(key), unescape(value))).collect()
}

fn unescape(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        match first {
            b'+' => bytes.push(b' '),
            b'%' => {
                let (digits, after) = rest.split_at(2);
                bytes.push(u8::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap());
                rest = after;
            }
            byte => bytes.push(*byte),
        }
    }
    String::from_utf8(bytes).unwrap()
}

fn running(namespace: &str, pod: &str) -> Value {
    json!({
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": { "name": pod, "namespace": namespace, "uid": "1" },
        "spec": { "nodeName": "node", "containers": [{ "name": "main", "image": "i", "stdin": true, "tty": true }] },
        "status": { "phase": "Running" },
    })
}

fn resources() -> Value {
    json!({
        "kind": "APIResourceList",
        "groupVersion": "v1",
        "resources": [{
            "name": "pods", "singularName": "pod", "namespaced": true, "kind": "Pod", "verbs": ["get", "list"],
        }],
    })
}

fn failure(code: u16, text: &str) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": text, "code": code })
}
