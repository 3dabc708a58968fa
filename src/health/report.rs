//! The health of this node's GPUs as those are told of it who are not the
//! kubelet: the API server, the eviction, the metrics.

use std::fmt;
use std::time::Duration;

use super::cause::Cause;
use super::class::Class;
use super::signals::Kind;
use crate::device::DeviceId;
use crate::gpu::GpuUuid;

/// The health of all GPUs at one moment. Shared and never changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealthReport {
    /// Whether every GPU has been looked at once.
    pub complete: bool,
    /// What keeps every GPU of the node from being given, and is no GPU's own
    /// fault: no driver, another version than its module's, no device nodes.
    pub node: Option<NodeFault>,
    /// Sorted by UUID.
    pub gpus: Vec<GpuStatus>,
}

/// What keeps every GPU of the node from being given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFault {
    /// CamelCase, as Kubernetes has reasons.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// One GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuStatus {
    /// Which.
    pub uuid: GpuUuid,
    /// NVML's index, of the last enumeration that found it.
    pub index: Option<u32>,
    /// Its devices, as the kubelet knows them: one, or its MIG devices, or
    /// replicas of either.
    pub devices: Vec<DeviceStatus>,
    /// Why the GPU is sick as a whole.
    pub sickness: Option<Sickness>,
    /// What is reported and not acted on, such as a slowdown for heat.
    pub notes: Vec<Kind>,
}

/// One device that is advertised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceStatus {
    /// The resource that it is advertised as.
    pub resource: String,
    /// Its ID there.
    pub id: DeviceId,
    /// Why what it stands for is sick: its GPU, its GPU instance, or an instance
    /// within the GPU that it is.
    pub sickness: Option<Sickness>,
}

/// Since when something is sick, why, and what ends it. While it lasts, `since`
/// does not change: it is the incident's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sickness {
    /// The gravest cause.
    pub cause: Cause,
    /// What ends it.
    pub class: Class,
    /// When it turned sick, in time since boot (`CLOCK_BOOTTIME`).
    pub since: Duration,
    /// Its cause is gone and it is watched until then, in time since boot.
    pub recovering_until: Option<Duration>,
}

/// For people: what is the matter, and what is waited for.
impl fmt::Display for Sickness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.cause)?;
        if self.recovering_until.is_some() {
            f.write_str("; its cause is gone, and it is watched for a while")?;
        }
        Ok(())
    }
}

impl HealthReport {
    /// The GPUs that are sick as a whole or in part.
    pub fn sick(&self) -> impl Iterator<Item = &GpuStatus> {
        self.gpus.iter().filter(|gpu| gpu.is_sick())
    }
}

impl GpuStatus {
    /// Whether it is sick as a whole or in part.
    #[must_use]
    pub fn is_sick(&self) -> bool {
        self.worst().is_some()
    }

    /// Its own sickness, or the gravest of its devices'.
    #[must_use]
    pub fn worst(&self) -> Option<&Sickness> {
        let of_devices = self.devices.iter().filter_map(|d| d.sickness.as_ref());
        self.sickness
            .as_ref()
            .or_else(|| of_devices.max_by_key(|sickness| sickness.class))
    }
}
