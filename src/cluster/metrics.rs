//! What is counted of the API server.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Requests of one kind that were answered with one status.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// As RBAC has it: `get`, `create` or `patch`.
    pub verb: &'static str,
    /// As RBAC has it, such as `nodes/status`.
    pub resource: &'static str,
    /// The HTTP status, or `none` where no answer came.
    pub code: String,
}

/// No label, and no sample before the first request: with eviction off nobody
/// is to read that the API server does not answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct NoLabels {}

/// What is counted of the API server. A clone counts the same.
#[derive(Clone, Debug, Default)]
pub struct ClusterMetrics {
    /// `gpu_device_plugin_api_server_requests_total`.
    pub requests: Family<RequestLabels, Counter>,
    /// `gpu_device_plugin_api_server_answering`: 1 where the last request was
    /// answered, whatever with.
    pub answering: Family<NoLabels, Gauge>,
}

impl ClusterMetrics {
    /// Adds them to a registry, which has the prefix.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "api_server_requests",
            "Requests to the API server, by verb, resource and HTTP status (none: no answer)",
            self.requests.clone(),
        );
        registry.register(
            "api_server_answering",
            "Whether the API server answered the last request; absent before the first",
            self.answering.clone(),
        );
    }

    /// Counts a request and its answer.
    pub(super) fn count(&self, verb: &'static str, resource: &'static str, code: Option<u16>) {
        self.answering
            .get_or_create(&NoLabels {})
            .set(i64::from(code.is_some()));
        let code = code.map_or_else(|| "none".into(), |code| code.to_string());
        let labels = RequestLabels {
            verb,
            resource,
            code,
        };
        self.requests.get_or_create(&labels).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_said_before_the_first_request() {
        let metrics = ClusterMetrics::default();
        let mut registry = Registry::with_prefix("gpu_device_plugin");
        metrics.register(&mut registry);
        let text = |registry: &Registry| {
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
            text
        };
        let samples = |text: &str| text.lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(samples(&text(&registry)), 0);
        metrics.count("patch", "nodes/status", Some(200));
        metrics.count("patch", "nodes/status", None);
        let text = text(&registry);
        assert!(text.contains(
            r#"gpu_device_plugin_api_server_requests_total{verb="patch",resource="nodes/status",code="200"} 1"#
        ));
        assert!(text.contains(r#"code="none"} 1"#));
        assert!(
            text.contains("gpu_device_plugin_api_server_answering{} 0"),
            "{text}"
        );
    }
}
