//! What is amiss with device nodes, in words.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::majors::{DeviceNumber, Module};
use crate::device::DeviceNode;

/// Why a container cannot be given a device node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeFault {
    /// It is not there.
    #[error("does not exist{0}")]
    Missing(Hindrance),
    /// It is another device.
    #[error("is device {is}, and the driver's is {driver}{hindrance}")]
    Wrong {
        /// What is there.
        is: DeviceNumber,
        /// What should be.
        driver: DeviceNumber,
        /// Why it stays.
        hindrance: Hindrance,
    },
    /// It is not there, and nothing would be behind it.
    #[error("does not exist: {}", unloaded(.0))]
    Unloaded(Module),
    /// It is there, and nothing is behind it.
    #[error("leads to no driver: {}", unloaded(.0))]
    Dead(Module),
}

fn unloaded(module: &Module) -> String {
    let (name, remedy) = (module.name(), module.remedy());
    format!("the {name} module is not loaded; load it: modprobe {name}, or {remedy}")
}

/// What keeps a node from being made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Hindrance {
    /// Nobody has looked.
    #[error("; load the nvidia and nvidia-uvm modules (nvidia-modprobe -u -c 0)")]
    Unknown,
    /// The operator.
    #[error("; --make-device-nodes=false keeps the plugin from making it; nvidia-modprobe does")]
    SwitchedOff,
    /// The driver's operator.
    #[error("; the driver's option NVreg_ModifyDeviceFiles=0 forbids that it is made")]
    Forbidden,
    /// This process only looks.
    #[error("; the plugin makes it when it serves")]
    OnlyLooking,
    /// The node has its place among the driver's own.
    #[error("; remove it, and the right one is made")]
    NotOurs,
    /// The system.
    #[error(
        "; it cannot be made: {0}; run the plugin privileged and with the host's /dev writable, or \
         nvidia-modprobe on the node"
    )]
    Failed(String),
}

/// What is amiss with the nodes that containers cannot do without, by their
/// paths on the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults(pub(super) BTreeMap<PathBuf, NodeFault>);

impl Faults {
    /// Whether nothing is amiss.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Why a container cannot be given this node, if it cannot. Whether it is
    /// `missing` now is told by another look: it may have come or gone since.
    #[must_use]
    pub fn of(&self, node: &DeviceNode, missing: bool) -> Option<NodeFault> {
        let told = self.0.get(&node.host);
        let spoilt =
            |fault: &&NodeFault| matches!(fault, NodeFault::Wrong { .. } | NodeFault::Dead(_));
        if !missing {
            return told.filter(spoilt).cloned();
        }
        let told = told.filter(|fault| !spoilt(fault)).cloned();
        Some(told.unwrap_or(NodeFault::Missing(Hindrance::Unknown)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::nodes::DevRoot;

    #[test]
    fn what_is_told_is_of_the_node_as_it_is_now() {
        let node = DevRoot::new("/", "/").gpu(0);
        let told = |fault| Faults([(node.host.clone(), fault)].into());
        let off = NodeFault::Missing(Hindrance::SwitchedOff);
        let unknown = NodeFault::Missing(Hindrance::Unknown);
        let dead = NodeFault::Dead(Module::Nvidia);
        let missing = |faults: &Faults| faults.of(&node, true);
        assert_eq!(missing(&Faults::default()), Some(unknown.clone()));
        assert_eq!(missing(&told(off.clone())), Some(off.clone()));
        assert_eq!(missing(&told(dead.clone())), Some(unknown));

        let there = |faults: &Faults| faults.of(&node, false);
        assert_eq!(there(&Faults::default()), None);
        assert_eq!(there(&told(off)), None);
        assert_eq!(there(&told(dead.clone())), Some(dead));
    }

    #[test]
    fn a_fault_names_the_remedy() {
        let text = NodeFault::Unloaded(Module::Uvm).to_string();
        assert_eq!(
            text,
            "does not exist: the nvidia-uvm module is not loaded; load it: modprobe nvidia-uvm, \
             or nvidia-modprobe -u -c 0"
        );
        let number = |major| DeviceNumber { major, minor: 0 };
        let wrong = NodeFault::Wrong {
            is: number(235),
            driver: number(238),
            hindrance: Hindrance::SwitchedOff,
        };
        let text = wrong.to_string();
        assert!(
            text.starts_with("is device 235:0, and the driver's is 238:0; --make-device-nodes"),
            "{text}"
        );
    }
}
