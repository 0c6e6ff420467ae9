//! Counting calls: a service around a service.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tonic::Code;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::NamedService;

type Labels = Vec<(&'static str, String)>;

/// What clients have asked for since the start of this program.
#[derive(Clone, Debug)]
pub struct Calls {
    calls: Family<Labels, Counter>,
    seconds: Family<Labels, Histogram, fn() -> Histogram>,
    running: Gauge,
    pulls: Family<Labels, Counter>,
}

/// Seconds; a probe takes milliseconds, a pull minutes.
const BUCKETS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0, 120.0];

impl Default for Calls {
    fn default() -> Calls {
        Calls {
            calls: Family::default(),
            seconds: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            running: Gauge::default(),
            pulls: Family::default(),
        }
    }
}

impl Calls {
    pub fn register(&self, registry: &mut Registry) {
        registry.register("conward_rpc_calls", "Calls that were answered, by gRPC code", self.calls.clone());
        registry.register(
            "conward_rpc_seconds",
            "Time from a call to the beginning of its answer",
            self.seconds.clone(),
        );
        registry.register("conward_rpcs_running", "Calls that are under way", self.running.clone());
        registry.register("conward_image_pulls", "Pulls that have ended, by gRPC code", self.pulls.clone());
    }

    /// Takes note of the end of a pull.
    pub fn pulled(&self, code: Code) {
        self.pulls.get_or_create(&vec![("code", name(code))]).inc();
    }

    fn done(&self, service: &'static str, path: &str, code: Code, began: Instant) {
        // What a method that is not there is called is the client's choice, and must not become a label.
        let method = if code == Code::Unimplemented { "" } else { path.rsplit('/').next().unwrap_or_default() };
        let service = service.rsplit('.').next().unwrap_or_default();
        let mut labels = vec![("service", service.to_owned()), ("method", method.to_owned())];
        self.seconds.get_or_create(&labels).observe(began.elapsed().as_secs_f64());
        labels.push(("code", name(code)));
        self.calls.get_or_create(&labels).inc();
    }
}

/// As gRPC writes its codes.
fn name(code: Code) -> String {
    let mut name = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

/// A service whose calls are counted.
#[derive(Clone, Debug)]
pub struct Counted<S> {
    inner: S,
    calls: Arc<Calls>,
}

impl<S> Counted<S> {
    pub fn new(inner: S, calls: &Arc<Calls>) -> Counted<S> {
        Counted { inner, calls: Arc::clone(calls) }
    }
}

impl<S: NamedService> NamedService for Counted<S> {
    const NAME: &'static str = S::NAME;
}

/// A call that is under way; a client may give it up.
struct Running(Gauge);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl<S> Service<http::Request<Body>> for Counted<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible> + NamedService,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = Infallible;
    type Future = BoxFuture<S::Response, Infallible>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let (calls, path, began) = (Arc::clone(&self.calls), request.uri().path().to_owned(), Instant::now());
        calls.running.inc();
        let running = Running(calls.running.clone());
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            drop(running);
            // A call that fails says so at once; the code of one that succeeds comes after its answer.
            let code = answer.headers().get("grpc-status").map_or(Code::Ok, |code| Code::from_bytes(code.as_bytes()));
            calls.done(S::NAME, &path, code, began);
            Ok(answer)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_written_as_everywhere() {
        let names = [Code::Ok, Code::NotFound, Code::DeadlineExceeded].map(name);
        assert_eq!(names, ["OK", "NOT_FOUND", "DEADLINE_EXCEEDED"]);
    }

    #[test]
    fn calls_are_counted_by_method_and_code() {
        let (calls, mut registry) = (Calls::default(), Registry::default());
        calls.register(&mut registry);
        calls.done("runtime.v1.RuntimeService", "/runtime.v1.RuntimeService/Version", Code::Ok, Instant::now());
        calls.done(
            "runtime.v1.RuntimeService",
            "/runtime.v1.RuntimeService/Nonsense",
            Code::Unimplemented,
            Instant::now(),
        );
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let line = r#"conward_rpc_calls_total{service="RuntimeService",method="Version",code="OK"} 1"#;
        assert!(text.contains(line) && !text.contains("Nonsense"), "{text}");
    }
}
