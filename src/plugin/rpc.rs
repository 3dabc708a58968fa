//! What every call of the kubelet needs, once: a span, a deadline, metrics.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use tokio::time::{Instant, timeout};
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::{Instrument, info_span};

use crate::metrics::{Metrics, RpcLabels};

/// The kubelet's Allocate has no deadline and holds up every pod of the node,
/// so a call that is not answered by then is ended here. Answers come from
/// memory: nothing is known to take this long.
const DEADLINE: Duration = Duration::from_secs(5);

/// Makes [`Rpc`] of a service.
#[derive(Clone, Debug)]
pub struct RpcLayer {
    resource: String,
    metrics: Arc<Metrics>,
}

impl RpcLayer {
    /// For the calls about `resource`.
    pub fn new(resource: String, metrics: Arc<Metrics>) -> Self {
        Self { resource, metrics }
    }
}

impl<S> Layer<S> for RpcLayer {
    type Service = Rpc<S>;

    fn layer(&self, inner: S) -> Rpc<S> {
        Rpc {
            inner,
            layer: self.clone(),
        }
    }
}

/// A service whose calls are traced, bounded and measured.
#[derive(Clone, Debug)]
pub struct Rpc<S> {
    inner: S,
    layer: RpcLayer,
}

impl<S, B> Service<Request<B>> for Rpc<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let method = method(request.uri().path());
        let RpcLayer { resource, metrics } = self.layer.clone();
        let span = info_span!("rpc", resource, method);
        let answer = self.inner.call(request);
        let bounded = async move {
            let start = Instant::now();
            let response = match timeout(DEADLINE, answer).await {
                Ok(response) => response?,
                Err(_) => Status::deadline_exceeded("the plugin took too long").into_http(),
            };
            // An answer carries its code in the trailers, an error in the headers.
            let code = Status::from_header_map(response.headers()).map_or(Code::Ok, |s| s.code());
            let labels = RpcLabels {
                resource,
                method,
                code: format!("{code:?}"),
            };
            metrics
                .rpcs
                .get_or_create(&labels)
                .observe(start.elapsed().as_secs_f64());
            Ok(response)
        };
        Box::pin(bounded.instrument(span))
    }
}

/// The method's name, from a fixed set: a label must not grow with what a
/// stranger on the socket asks for.
fn method(path: &str) -> &'static str {
    const METHODS: [&str; 5] = [
        "Allocate",
        "GetDevicePluginOptions",
        "GetPreferredAllocation",
        "ListAndWatch",
        "PreStartContainer",
    ];
    let name = path.strip_prefix("/v1beta1.DevicePlugin/");
    METHODS
        .into_iter()
        .find(|method| name == Some(method))
        .unwrap_or("unknown")
}

#[cfg(test)]
mod tests {
    use tower::{ServiceExt, service_fn};

    use super::*;

    fn service<F>(
        answer: impl Fn() -> F + Clone,
    ) -> (
        Arc<Metrics>,
        impl Service<Request<()>, Response = Response<Body>, Error = Status>,
    )
    where
        F: Future<Output = Result<Response<Body>, Status>> + Send + 'static,
    {
        let metrics = Arc::new(Metrics::new());
        let layer = RpcLayer::new("nvidia.com/gpu".into(), metrics.clone());
        (
            metrics,
            layer.layer(service_fn(move |_request: Request<()>| answer())),
        )
    }

    async fn call(
        service: impl Service<Request<()>, Response = Response<Body>, Error = Status>,
    ) -> Code {
        let request = Request::builder()
            .uri("/v1beta1.DevicePlugin/Allocate")
            .body(())
            .unwrap();
        let response = service.oneshot(request).await.unwrap();
        Status::from_header_map(response.headers()).map_or(Code::Ok, |status| status.code())
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_hangs_is_ended_and_counted() {
        let (metrics, service) = service(std::future::pending);
        assert_eq!(call(service).await, Code::DeadlineExceeded);
        assert!(
            metrics
                .encode()
                .unwrap()
                .contains(r#"method="Allocate",code="DeadlineExceeded""#)
        );
    }

    #[tokio::test]
    async fn an_error_is_counted_by_its_code() {
        let (metrics, service) =
            service(|| async { Ok(Status::invalid_argument("no").into_http()) });
        assert_eq!(call(service).await, Code::InvalidArgument);
        assert!(
            metrics
                .encode()
                .unwrap()
                .contains(r#"method="Allocate",code="InvalidArgument""#)
        );
    }
}
