//! A node, its cluster, and a way in.

use std::time::{Duration, SystemTime};

use gpu_device_plugin::cluster::api::{ApiServer, PodFacts, Told};
use gpu_device_plugin::cluster::metrics::ClusterMetrics;
use gpu_device_plugin::config::ClusterOptions;
use gpu_device_plugin::device::DeviceId;
use gpu_device_plugin::gpu::GpuUuid;
use gpu_device_plugin::health::cause::Cause;
use gpu_device_plugin::health::class::Class;
use gpu_device_plugin::health::report::{DeviceStatus, GpuStatus, HealthReport, Sickness};

use crate::common::api_server::{ApiServerPeer, node};

pub(crate) const NODE: &str = "n1";

/// A cluster of one node.
pub(crate) fn cluster() -> ApiServerPeer {
    let peer = ApiServerPeer::start().unwrap();
    peer.add_node(node(NODE));
    peer
}

pub(crate) fn options(peer: &ApiServerPeer) -> ClusterOptions {
    ClusterOptions {
        node_name: Some(NODE.into()),
        kubeconfig: Some(peer.kubeconfig()),
    }
}

pub(crate) fn connect(peer: &ApiServerPeer) -> ApiServer {
    connect_counted(peer, &ClusterMetrics::default())
}

pub(crate) fn connect_counted(peer: &ApiServerPeer, metrics: &ClusterMetrics) -> ApiServer {
    ApiServer::connect(&options(peer), "plugin-x", metrics.clone()).unwrap()
}

/// A pod of `default` as the API server knows it.
pub(crate) async fn pod_facts(api: &ApiServer, name: &str) -> PodFacts {
    api.pod("default", name).await.unwrap().unwrap()
}

pub(crate) fn told(incident: &str) -> Told {
    Told {
        reason: "GPUUnhealthy",
        message: "GPU 0 is lost".into(),
        warning: true,
        action: "Evicting",
        incident: incident.into(),
        at: SystemTime::now(),
    }
}

// === Reports of health ===

/// Of so many GPUs, those sick whose places are named.
pub(crate) fn report(gpus: u32, sick: &[u32]) -> HealthReport {
    let gpu = |index| gpu(index, sick.contains(&index).then(|| since(100)));
    HealthReport {
        complete: true,
        node: None,
        gpus: (0..gpus).map(gpu).collect(),
    }
}

pub(crate) fn since(seconds: u64) -> Sickness {
    Sickness {
        cause: Cause::Lost("nvmlDeviceGetMemoryInfo".into()),
        class: Class::Reset,
        since: Duration::from_secs(seconds),
        recovering_until: None,
    }
}

pub(crate) fn gpu(index: u32, sickness: Option<Sickness>) -> GpuStatus {
    let uuid = GpuUuid::from(format!("GPU-{index}").as_str());
    GpuStatus {
        devices: vec![DeviceStatus {
            resource: "nvidia.com/gpu".into(),
            id: DeviceId::from(&uuid),
            sickness: sickness.clone(),
        }],
        uuid,
        index: Some(index),
        sickness,
        notes: vec![],
    }
}
