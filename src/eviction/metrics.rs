//! What is counted of evictions.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Pods that fared alike.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OutcomeLabels {
    /// `evicted`, `gone`, `held_by_budget`, `failed`, or what was decided without
    /// a request: `would_evict`, `opted_out`, `bad_annotation`, `static`,
    /// `daemon_set`, `system`, `share_exceeded`.
    pub outcome: &'static str,
}

/// What is counted of evictions. A clone counts the same.
#[derive(Clone, Debug, Default)]
pub struct EvictionMetrics {
    /// `gpu_device_plugin_evictions_total`: requests by what came of them, and
    /// decisions once a pod and incident.
    pub evictions: Family<OutcomeLabels, Counter>,
    /// `gpu_device_plugin_pods_on_sick_gpus`.
    pub pods: Gauge,
}

impl EvictionMetrics {
    /// Adds them to a registry, which has the prefix.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "evictions",
            "Evictions of pods on sick GPUs, tried or decided against, by outcome",
            self.evictions.clone(),
        );
        registry.register(
            "pods_on_sick_gpus",
            "Pods that hold a sick device, by the kubelet's last list; 0 with eviction off",
            self.pods.clone(),
        );
    }

    pub(super) fn count(&self, outcome: &'static str) {
        let labels = OutcomeLabels { outcome };
        self.evictions.get_or_create(&labels).inc();
    }
}
