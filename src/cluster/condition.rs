//! The node condition `GPUHealthy`: a report of health in three fields.

use super::text::cut;
use crate::health::report::{GpuStatus, HealthReport, Sickness};

/// Its type.
pub const CONDITION_TYPE: &str = "GPUHealthy";
/// The longest message, in bytes. Kubernetes sets none for conditions; what
/// shows them, and an event's message, has this much room.
pub const LONGEST_MESSAGE: usize = 1024;
/// The longest that is said of one GPU, so that one does not keep out all others.
const LONGEST_ENTRY: usize = 400;
/// Room for the words that say how many GPUs are left out.
const LEFT_OUT: usize = 40;

/// A condition's status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Every GPU is healthy.
    True,
    /// A GPU is sick as a whole or in part, or none can be given.
    False,
    /// There is no GPU to speak of.
    Unknown,
}

impl Status {
    /// Every status.
    pub const ALL: [Self; 3] = [Self::True, Self::False, Self::Unknown];

    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// The condition `GPUHealthy` but for its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Whether all is well.
    pub status: Status,
    /// CamelCase: `AllGpusHealthy`, `NoGpus`, a node's fault, or the reason of
    /// the gravest cause (`health::signals`).
    pub reason: &'static str,
    /// Which GPUs, why, of what class, and what an operator does;
    /// [`LONGEST_MESSAGE`] at most.
    pub message: String,
}

/// The condition that a report amounts to; nothing while not every GPU has been
/// looked at. A GPU's notes are left out: they come and go with each load, and
/// each would be a write.
#[must_use]
pub fn condition(report: &HealthReport) -> Option<Condition> {
    if !report.complete {
        return None;
    }
    let sick = by_gravity(report);
    Some(match (&report.node, sick.first()) {
        (Some(fault), _) => Condition {
            status: Status::False,
            reason: fault.reason,
            message: message(&fault.message, report, &sick),
        },
        (None, Some((_, sickness))) => Condition {
            status: Status::False,
            reason: sickness.cause.signal().reason,
            message: message("", report, &sick),
        },
        (None, None) if report.gpus.is_empty() => Condition {
            status: Status::Unknown,
            reason: "NoGpus",
            message: "NVML enumerates no GPU".into(),
        },
        (None, None) => Condition {
            status: Status::True,
            reason: "AllGpusHealthy",
            message: "every GPU is healthy".into(),
        },
    })
}

/// Whether no GPU of the node can be used for a sickness of its own: then a
/// taint may keep pods away. A node's fault is none of a GPU's, and often ends
/// by itself, as with a driver that is being installed.
#[must_use]
pub fn all_out(report: &HealthReport) -> bool {
    let is_out = |gpu: &GpuStatus| {
        let mut devices = gpu.devices.iter();
        let all = !gpu.devices.is_empty() && devices.all(|device| device.sickness.is_some());
        gpu.sickness.is_some() || all
    };
    report.complete && !report.gpus.is_empty() && report.gpus.iter().all(is_out)
}

/// The sick GPUs, the gravest first, and among equals by UUID.
fn by_gravity(report: &HealthReport) -> Vec<(&GpuStatus, &Sickness)> {
    let sick = report.gpus.iter();
    let mut sick: Vec<_> = sick.filter_map(|gpu| Some((gpu, gpu.worst()?))).collect();
    sick.sort_by(|(_, one), (_, other)| {
        let classes = other.class.cmp(&one.class);
        classes.then_with(|| one.cause.kind().cmp(&other.cause.kind()))
    });
    sick
}

/// As many of the sick GPUs as there is room for.
fn message(fault: &str, report: &HealthReport, sick: &[(&GpuStatus, &Sickness)]) -> String {
    let mut message = cut(fault, LONGEST_ENTRY);
    if sick.is_empty() {
        return message;
    }
    if !message.is_empty() {
        message.push_str("; ");
    }
    message += &format!("{} of {} GPUs sick", sick.len(), report.gpus.len());
    for (place, (gpu, sickness)) in sick.iter().enumerate() {
        let entry = cut(&describe(gpu, sickness), LONGEST_ENTRY);
        let last = place + 1 == sick.len();
        let room = LONGEST_MESSAGE - if last { 0 } else { LEFT_OUT };
        if message.len() + 2 + entry.len() > room {
            message += &format!("; and {} more", sick.len() - place);
            break;
        }
        message = message + "; " + &entry;
    }
    message
}

/// One GPU: which, why, of what class, and what an operator does.
pub(super) fn describe(gpu: &GpuStatus, sickness: &Sickness) -> String {
    let (which, cause) = (name(gpu), &sickness.cause);
    let part = in_part(gpu);
    let class = sickness.class.name();
    let remedy = match sickness.recovering_until {
        None => cause.remedy(),
        Some(_) => "the cause is gone; it is watched before it is given again",
    };
    format!("{which}{part}: {cause} (class {class}: {remedy})")
}

/// A GPU's index and UUID.
pub(super) fn name(gpu: &GpuStatus) -> String {
    match gpu.index {
        Some(index) => format!("GPU {index} ({})", gpu.uuid),
        None => format!("GPU {}", gpu.uuid),
    }
}

/// How much of a GPU is sick, where it is not all of it.
fn in_part(gpu: &GpuStatus) -> String {
    if gpu.sickness.is_some() {
        return String::new();
    }
    let sick = gpu
        .devices
        .iter()
        .filter(|device| device.sickness.is_some());
    format!(", {} of its {} devices", sick.count(), gpu.devices.len())
}

#[cfg(test)]
mod tests;
