//! Prometheus metrics over plain HTTP, if wanted.

use std::convert::Infallible;
use std::sync::Arc;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::container::Phase;
use crate::daemon::Daemon;
use crate::error::{Context, Result};
use crate::sandbox;

mod calls;

pub use calls::{Calls, Counted};

/// Listens on the configured address, if there is one.
pub async fn serve(daemon: &Arc<Daemon>) -> Result<()> {
    let address = &daemon.config.metrics_address;
    if address.is_empty() {
        return Ok(());
    }
    let doing = || format!("Failed to serve metrics on {address}");
    let listener = tokio::net::TcpListener::bind(address).await.context(doing)?;
    tracing::info!(address = %listener.local_addr().context(doing)?, "metrics");
    let mut registry = Registry::default();
    daemon.calls.register(&mut registry);
    registry.register_collector(Box::new(Figures(Arc::clone(daemon))));
    let registry = Arc::new(registry);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let registry = Arc::clone(&registry);
            let answer = service_fn(move |request| {
                let registry = Arc::clone(&registry);
                async move { Ok::<_, Infallible>(answer(&registry, &request)) }
            });
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
            tokio::spawn(connection);
        }
    });
    Ok(())
}

fn answer(registry: &Registry, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let mut text = String::new();
    let known = request.uri().path() == "/metrics";
    let encoded = known && prometheus_client::encoding::text::encode(&mut text, registry).is_ok();
    let mut response = Response::new(Full::new(Bytes::from(text)));
    if encoded {
        let kind =
            hyper::header::HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
        response.headers_mut().insert(hyper::header::CONTENT_TYPE, kind);
    } else {
        *response.status_mut() = if known { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::NOT_FOUND };
    }
    response
}

/// Figures that are counted when somebody asks.
#[derive(Debug)]
struct Figures(Arc<Daemon>);

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let pods = self.0.pods.all();
        let ready = pods.iter().filter(|pod| pod.state().phase == sandbox::Phase::Ready).count();
        let phases: Vec<Phase> = self.0.containers.all().iter().map(|container| container.state().phase).collect();
        let of = |wanted: &[Phase]| phases.iter().filter(|phase| wanted.contains(phase)).count() as u64;
        let (own, memory) = (Process::own(), private_memory());
        let rows = [
            ("conward_pods", "Pods, ready or not", pods.len() as u64),
            ("conward_pods_ready", "Pods that are ready", ready as u64),
            ("conward_containers", "Containers in any state", phases.len() as u64),
            ("conward_containers_running", "Containers that run", of(&[Phase::Running])),
            ("conward_containers_exited", "Containers that have ended", of(&[Phase::Exited])),
            ("conward_containers_lost", "Containers without their monitor", of(&[Phase::Lost])),
            (
                "conward_monitors",
                "Monitors, one for each container that has not ended",
                of(&[Phase::Created, Phase::Running]),
            ),
            ("conward_image_store_bytes", "Size of all images", self.0.images.usage().bytes),
            ("conward_private_memory_bytes", "Memory of this program that it shares with no other", memory),
            ("process_resident_memory_bytes", "Memory of this program", own.resident),
            ("process_threads", "Threads of this program", own.threads),
            ("process_open_fds", "Files that this program has open", own.files),
        ];
        for (name, help, count) in rows {
            let gauge = ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX));
            let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(metric)?;
        }
        Ok(())
    }
}

/// What this program uses.
#[derive(Debug, Default)]
struct Process {
    resident: u64,
    threads: u64,
    files: u64,
}

impl Process {
    fn own() -> Process {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        Process {
            resident: sum(&status, "VmRSS") * 1024,
            threads: sum(&status, "Threads"),
            files: std::fs::read_dir("/proc/self/fd").map_or(0, |open| open.count() as u64),
        }
    }
}

fn private_memory() -> u64 {
    sum(&std::fs::read_to_string("/proc/self/smaps_rollup").unwrap_or_default(), "Private_") * 1024
}

/// The sum of all lines `KEY...: NUMBER ...`.
fn sum(text: &str, key: &str) -> u64 {
    let lines = text.lines().filter(|line| line.starts_with(key)).filter_map(|line| line.split_once(':'));
    lines.filter_map(|(_, rest)| rest.split_whitespace().next()?.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_lines() {
        let text = "Rss: 9 kB\nPrivate_Clean:   3 kB\nPrivate_Dirty: 4 kB\nPrivate_Hugetlb: x kB\n";
        assert_eq!((sum(text, "Private_"), sum(text, "Rss"), sum(text, "None")), (7, 9, 0));
    }

    #[test]
    fn this_program_uses_something() {
        let own = Process::own();
        assert!(own.resident > 0 && own.threads > 0 && own.files > 0, "{own:?}");
        assert!(private_memory() > 0);
    }
}
