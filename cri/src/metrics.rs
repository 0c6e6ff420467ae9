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

use crate::daemon::Daemon;
use crate::error::{Context, Result};
use crate::{container, sandbox};

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
        let containers = self.0.containers.all();
        let in_phase = |phase| containers.iter().filter(|container| container.state().phase == phase).count();
        let rows = [
            ("conward_pods", "Pods, ready or not", pods.len()),
            ("conward_pods_ready", "Pods that are ready", ready),
            ("conward_containers", "Containers in any state", containers.len()),
            ("conward_containers_running", "Containers that run", in_phase(container::Phase::Running)),
            ("conward_containers_exited", "Containers that have ended", in_phase(container::Phase::Exited)),
            ("conward_containers_lost", "Containers without their monitor", in_phase(container::Phase::Lost)),
        ];
        for (name, help, count) in rows {
            let gauge = ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX));
            let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(metric)?;
        }
        Ok(())
    }
}
