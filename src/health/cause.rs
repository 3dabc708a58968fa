//! What is amiss with a GPU: a signal that was taken to heart.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::class::Class;
use super::signals::{Kind, Signal};
use super::xid::XidPolicy;

/// Why a GPU, or a GPU instance of it, is sick. Kept over a restart of the
/// process, so it is plain data.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Cause {
    /// An XID of class reset, reboot or replace.
    Xid(u64),
    /// `NVML_ERROR_GPU_IS_LOST`, and the call that said so.
    Lost(String),
    /// `NVML_ERROR_RESET_REQUIRED`, and the call that said so.
    ResetRequired(String),
    /// The driver names a recovery action (NVML's field 230, or the kernel log's
    /// XID 154).
    RecoveryAction(u32),
    /// It was there before and is not enumerated any more.
    Vanished,
    /// The kernel has no PCI device any more where the GPU was.
    OffBus,
    /// It could not be read, and the error.
    Unreadable(String),
    /// A call about it has not come back for so many seconds.
    NotAnswering(u64),
    /// A row of its memory could not be remapped.
    RowRemapFailure,
    /// So many pages of its memory were retired (GPUs before Ampere).
    RetiredPages(u32),
    /// Pages of its memory wait for a reset to be retired (GPUs before Ampere).
    RetirementPending,
    /// Uncorrectable ECC errors since the driver was loaded, of a GPU whose driver
    /// names no recovery action.
    UncorrectableEcc(u64),
    /// Its SRAM has more uncorrectable errors than NVIDIA's threshold.
    SramThreshold,
    /// NVLinks that were up and are down, on a node with NVSwitches.
    NvLinkDown(Vec<u32>),
    /// The fabric of NVSwitches does not have it, or not in full, and what of it.
    Fabric(String),
}

impl Cause {
    /// Which signal it is of.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Xid(_) => Kind::Xid,
            Self::Lost(_) => Kind::Lost,
            Self::ResetRequired(_) => Kind::ResetRequired,
            Self::RecoveryAction(_) => Kind::RecoveryAction,
            Self::Vanished => Kind::Vanished,
            Self::OffBus => Kind::OffBus,
            Self::Unreadable(_) => Kind::Unreadable,
            Self::NotAnswering(_) => Kind::NotAnswering,
            Self::RowRemapFailure => Kind::RowRemapFailure,
            Self::RetiredPages(_) => Kind::RetiredPages,
            Self::RetirementPending => Kind::RetirementPending,
            Self::UncorrectableEcc(_) => Kind::UncorrectableEcc,
            Self::SramThreshold => Kind::SramThreshold,
            Self::NvLinkDown(_) => Kind::NvLinkDown,
            Self::Fabric(_) => Kind::Fabric,
        }
    }

    /// The signal's row in the table of all.
    #[must_use]
    pub fn signal(&self) -> &'static Signal {
        self.kind().signal()
    }

    /// What ends it.
    #[must_use]
    pub fn class(&self, policy: &XidPolicy) -> Class {
        match self {
            Self::Xid(xid) => policy.class(*xid),
            _ => self.signal().class,
        }
    }

    /// What an operator does about it.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Xid(xid) => super::xid::remedy(*xid),
            Self::RecoveryAction(action) => action_of(*action).1,
            _ => self.signal().remedy,
        }
    }
}

/// NVML's `nvmlDeviceGpuRecoveryAction_t`, and what an operator does.
fn action_of(action: u32) -> (&'static str, &'static str) {
    match action {
        0 => ("none", "nothing"),
        1 => ("GPU reset", "reset the GPU (nvidia-smi --gpu-reset)"),
        2 => ("node reboot", "reboot the node"),
        3 => (
            "drain of peer-to-peer traffic",
            "end what uses the GPU with its NVLink peers, then reset them",
        ),
        4 => (
            "drain and reset",
            "end what uses the GPU, then reset it (nvidia-smi --gpu-reset)",
        ),
        5 => ("IMEX recovery", "restart the IMEX daemons of the domain"),
        6 => ("bus reset", "reset the GPU's PCI bus, or reboot the node"),
        7 => ("system reboot", "reboot the node"),
        _ => ("unknown", "see the release notes of the driver"),
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Xid(xid) => write!(f, "XID {xid} ({})", super::xid::describe(*xid)),
            Self::Lost(call) => write!(f, "GPU is lost ({call})"),
            Self::ResetRequired(call) => write!(f, "GPU requires a reset ({call})"),
            Self::RecoveryAction(action) => {
                let what = action_of(*action).0;
                write!(f, "driver asks for recovery action {action} ({what})")
            }
            Self::Vanished => f.write_str("GPU is not enumerated any more"),
            Self::OffBus => f.write_str("PCI device is gone from the bus"),
            Self::Unreadable(error) => write!(f, "GPU could not be read: {error}"),
            Self::NotAnswering(seconds) => write!(
                f,
                "NVML does not answer: a call has not come back for {seconds} s"
            ),
            Self::RowRemapFailure => f.write_str("a row of the memory could not be remapped"),
            Self::RetiredPages(pages) => write!(f, "{pages} pages of the memory are retired"),
            Self::RetirementPending => {
                f.write_str("pages of the memory wait for a reset to be retired")
            }
            Self::UncorrectableEcc(errors) => write!(
                f,
                "{errors} uncorrectable ECC errors since the driver was loaded"
            ),
            Self::SramThreshold => {
                f.write_str("SRAM has more uncorrectable errors than NVIDIA's threshold")
            }
            Self::NvLinkDown(links) => {
                let links: Vec<_> = links.iter().map(u32::to_string).collect();
                write!(f, "NVLinks are down: {}", links.join(", "))
            }
            Self::Fabric(what) => write!(f, "NVSwitch fabric: {what}"),
        }
    }
}
