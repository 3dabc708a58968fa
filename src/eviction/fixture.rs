//! Reports for tests.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use super::names::{DeviceName, Incident};
use crate::cluster::api::PodFacts;

use crate::device::DeviceId;
use crate::gpu::GpuUuid;
use crate::health::cause::Cause;
use crate::health::class::Class;
use crate::health::report::{DeviceStatus, GpuStatus, HealthReport, Sickness};

/// The node of the tests.
pub(super) const NODE: &str = "n1";

/// What whole GPUs are advertised as.
pub(super) const RESOURCE: &str = "nvidia.com/gpu";

/// The ID of the GPU of this number.
pub(super) fn gpu_id(number: usize) -> String {
    format!("GPU-{number}")
}

/// Sick since so many seconds after boot.
pub(super) fn sick_at(seconds: u64) -> Sickness {
    Sickness {
        cause: Cause::Xid(79),
        class: Class::Reboot,
        since: Duration::from_secs(seconds),
        recovering_until: None,
    }
}

/// A complete report of whole GPUs, numbered from 0.
pub(super) fn report(sicknesses: impl IntoIterator<Item = Option<Sickness>>) -> HealthReport {
    let gpus = sicknesses.into_iter().enumerate();
    let gpus = gpus.map(|(number, sickness)| gpu(number, sickness));
    HealthReport {
        complete: true,
        node: None,
        gpus: gpus.collect(),
    }
}

fn gpu(number: usize, sickness: Option<Sickness>) -> GpuStatus {
    let uuid = GpuUuid::from(gpu_id(number).as_str());
    GpuStatus {
        index: u32::try_from(number).ok(),
        devices: vec![DeviceStatus {
            resource: RESOURCE.into(),
            id: DeviceId::from(&uuid),
            sickness: sickness.clone(),
        }],
        uuid,
        sickness,
        notes: Vec::new(),
    }
}

/// Of the GPU of this number.
pub(super) fn incident(since: u64, gpu: usize) -> Incident {
    Incident {
        since: Duration::from_secs(since),
        device: DeviceName {
            resource: RESOURCE.into(),
            id: gpu_id(gpu),
        },
    }
}

/// A pod that runs on the node `node`.
pub(super) fn pod(name: &str, uid: &str) -> PodFacts {
    PodFacts {
        namespace: "team".into(),
        name: name.into(),
        uid: uid.into(),
        node_name: Some(NODE.into()),
        finished: false,
        terminating: false,
        annotations: BTreeMap::new(),
        is_static: false,
        is_daemon_set: false,
        started: Some(SystemTime::UNIX_EPOCH),
    }
}
