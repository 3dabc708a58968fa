//! Every signal of a GPU's health: where it comes from, what it means, and what
//! an operator does. The documentation has the same table (`docs/health.md`).

use super::class::Class;

/// One kind of signal. The order is that of gravity where several hold at once:
/// the first speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// See [`SIGNALS`], as for all others.
    OffBus,
    /// Not enumerated.
    Vanished,
    /// `NVML_ERROR_GPU_IS_LOST`.
    Lost,
    /// An XID.
    Xid,
    /// Row remapping failed.
    RowRemapFailure,
    /// SRAM's threshold.
    SramThreshold,
    /// Pages were retired.
    RetiredPages,
    /// `NVML_ERROR_RESET_REQUIRED`.
    ResetRequired,
    /// Field 230.
    RecoveryAction,
    /// Pages wait to be retired.
    RetirementPending,
    /// Uncorrectable ECC errors.
    UncorrectableEcc,
    /// NVLinks are down.
    NvLinkDown,
    /// The fabric's state.
    Fabric,
    /// Cannot be read.
    Unreadable,
    /// Calls hang.
    NotAnswering,
    /// Rows wait to be remapped.
    RemapPending,
    /// Clocks are held down for heat.
    ThermalSlowdown,
    /// Clocks are held down for power.
    PowerSlowdown,
    /// The fabric has less bandwidth than it should.
    FabricDegraded,
}

/// A row of the table.
#[derive(Debug)]
pub struct Signal {
    /// Which.
    pub kind: Kind,
    /// The reason in node conditions, events and metrics: CamelCase, as
    /// Kubernetes has reasons.
    pub reason: &'static str,
    /// Where it is read.
    pub source: &'static str,
    /// What ends it; [`Class::Application`] is reported and not acted on. An
    /// XID's and a recovery action's own class goes first.
    pub class: Class,
    /// What an operator does.
    pub remedy: &'static str,
}

/// The table.
pub const SIGNALS: [Signal; 19] = [
    Signal {
        kind: Kind::OffBus,
        reason: "GpuOffBus",
        source: "sysfs: bus/pci/devices",
        class: Class::Reset,
        remedy: "reboot the node; if it stays away, reseat or replace the GPU",
    },
    Signal {
        kind: Kind::Vanished,
        reason: "GpuVanished",
        source: "NVML enumeration",
        class: Class::Reset,
        remedy: "see the kernel log; reboot the node; if it stays away, replace the GPU",
    },
    Signal {
        kind: Kind::Lost,
        reason: "GpuLost",
        source: "NVML: GPU_IS_LOST on any call",
        class: Class::Reset,
        remedy: "reset the GPU, or reboot the node",
    },
    Signal {
        kind: Kind::Xid,
        reason: "Xid",
        source: "NVML events; the kernel log",
        class: Class::Reset,
        remedy: "by XID: see the table of XIDs",
    },
    Signal {
        kind: Kind::RowRemapFailure,
        reason: "RowRemapFailure",
        source: "NVML field 145",
        class: Class::Replace,
        remedy: "replace the GPU",
    },
    Signal {
        kind: Kind::SramThreshold,
        reason: "SramThresholdExceeded",
        source: "NVML: nvmlDeviceGetSramEccErrorStatus",
        class: Class::Replace,
        remedy: "run NVIDIA's field diagnostics; replace the GPU",
    },
    Signal {
        kind: Kind::RetiredPages,
        reason: "RetiredPages",
        source: "NVML fields 29 and 30",
        class: Class::Replace,
        remedy: "run NVIDIA's field diagnostics; replace the GPU",
    },
    Signal {
        kind: Kind::ResetRequired,
        reason: "ResetRequired",
        source: "NVML: RESET_REQUIRED on any call",
        class: Class::Reset,
        remedy: "reset the GPU (nvidia-smi --gpu-reset)",
    },
    Signal {
        kind: Kind::RecoveryAction,
        reason: "RecoveryAction",
        source: "NVML field 230; XID 154 in the kernel log",
        class: Class::Reset,
        remedy: "the action that it names",
    },
    Signal {
        kind: Kind::RetirementPending,
        reason: "PageRetirementPending",
        source: "NVML field 31",
        class: Class::Reset,
        remedy: "reset the GPU (nvidia-smi --gpu-reset)",
    },
    Signal {
        kind: Kind::UncorrectableEcc,
        reason: "UncorrectableEcc",
        source: "NVML field 4, where the driver has no field 230",
        class: Class::Reset,
        remedy: "reset the GPU (nvidia-smi --gpu-reset)",
    },
    Signal {
        kind: Kind::NvLinkDown,
        reason: "NvLinkDown",
        source: "NVML: nvmlDeviceGetNvLinkState",
        class: Class::Reset,
        remedy: "see nvidia-smi nvlink --status; reset the GPUs of the fabric",
    },
    Signal {
        kind: Kind::Fabric,
        reason: "FabricNotReady",
        source: "NVML: nvmlDeviceGetGpuFabricInfoV",
        class: Class::Reset,
        remedy: "see that the fabric manager (or NVSwitch's NVLSM) runs; restart it",
    },
    Signal {
        kind: Kind::Unreadable,
        reason: "GpuUnreadable",
        source: "NVML: an error of any call",
        class: Class::Reset,
        remedy: "see the kernel log; reset the GPU",
    },
    Signal {
        kind: Kind::NotAnswering,
        reason: "NvmlNotAnswering",
        source: "a clock on each call of NVML",
        class: Class::Reset,
        remedy: "see the kernel log; reset the GPU, or reboot the node",
    },
    Signal {
        kind: Kind::RemapPending,
        reason: "RowRemapPending",
        source: "NVML field 144",
        class: Class::Application,
        remedy: "reset the GPU when it is convenient",
    },
    Signal {
        kind: Kind::ThermalSlowdown,
        reason: "ThermalSlowdown",
        source: "NVML: nvmlDeviceGetCurrentClocksEventReasons",
        class: Class::Application,
        remedy: "see to the cooling of the node",
    },
    Signal {
        kind: Kind::PowerSlowdown,
        reason: "PowerSlowdown",
        source: "NVML: nvmlDeviceGetCurrentClocksEventReasons",
        class: Class::Application,
        remedy: "see to the power supply of the node",
    },
    Signal {
        kind: Kind::FabricDegraded,
        reason: "FabricDegraded",
        source: "NVML: nvmlDeviceGetGpuFabricInfoV, its health mask",
        class: Class::Application,
        remedy: "see nvidia-smi nvlink --status and the fabric manager's log",
    },
];

impl Kind {
    /// Its row. The table is in the order of the type, which a test holds.
    #[must_use]
    pub fn signal(self) -> &'static Signal {
        &SIGNALS[self as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::xid::catalogue::CATALOGUE;

    const DOCUMENT: &str = include_str!("../../docs/health.md");

    #[test]
    fn each_kind_has_its_row() {
        for (place, signal) in SIGNALS.iter().enumerate() {
            assert_eq!(signal.kind as usize, place, "{signal:?}");
            assert_eq!(signal.kind.signal().reason, signal.reason);
        }
        assert_eq!(Kind::FabricDegraded as usize, SIGNALS.len() - 1);
    }

    /// The lines of the table below this heading.
    fn table(heading: &str) -> Vec<&'static str> {
        let (_, rest) = DOCUMENT.split_once(heading).unwrap();
        let rows = rest.lines().skip_while(|line| !line.starts_with("|---"));
        rows.skip(1)
            .take_while(|line| line.starts_with('|'))
            .collect()
    }

    #[test]
    fn the_documentation_has_the_same_table_of_signals() {
        let row = |signal: &Signal| {
            let class = match signal.kind {
                Kind::Xid => "by XID",
                _ if signal.class.acts() => signal.class.name(),
                _ => "reported only",
            };
            let Signal {
                reason,
                source,
                remedy,
                ..
            } = signal;
            format!("| `{reason}` | {source} | {class} | {remedy} |")
        };
        let rows: Vec<_> = SIGNALS.iter().map(row).collect();
        assert_eq!(table("## Signals"), rows, "\n{}\n", rows.join("\n"));
    }

    #[test]
    fn the_documentation_has_every_xid() {
        let row = |entry: &crate::health::xid::catalogue::Entry| {
            format!(
                "| {} | {} | {} | {} |",
                entry.xid,
                entry.name,
                entry.class,
                entry.action.remedy()
            )
        };
        let rows: Vec<_> = CATALOGUE.iter().map(row).collect();
        assert_eq!(table("## XIDs"), rows, "\n{}\n", rows.join("\n"));
    }
}
