//! The device nodes, as the monitor sees to them.

use std::sync::Arc;

use super::Monitor;
use crate::driver::nodes::{Keeper, Report};
use crate::inventory::Looked;

/// Who makes device nodes, and what that came to.
#[derive(Debug)]
pub(super) struct Nodes {
    keeper: Arc<Keeper>,
    last: Report,
}

impl Nodes {
    pub(super) fn new(keeper: Keeper) -> Self {
        Self {
            keeper: Arc::new(keeper),
            last: Report::default(),
        }
    }

    pub(super) fn kept(&self) -> (Arc<Keeper>, Report) {
        (self.keeper.clone(), self.last.clone())
    }
}

impl Monitor {
    /// Whether there is reason to look at all device nodes: any that is needed is
    /// missing, or a module came or went. Asked at each poll, so it costs no more
    /// than the reading of /proc/devices.
    pub(super) fn nodes_due(&self, looked: &Looked) -> bool {
        let Nodes { keeper, last } = &self.nodes;
        self.inventory.lacks_nodes(&self.node, looked) || keeper.is_outdated(last)
    }

    /// What makes the nodes that are missing. For a thread that may block.
    pub(super) fn nodes_work(&self) -> impl FnOnce() -> Report + Send + 'static {
        let (keeper, needed) = (self.nodes.keeper.clone(), self.inventory.needed());
        move || keeper.keep(&needed)
    }

    /// Takes in what came of it.
    pub(super) fn nodes_kept(&mut self, report: Report) {
        report.tell(&self.nodes.last);
        self.node
            .set_device_nodes(report.faults.clone(), report.mig_minors.clone());
        self.nodes.last = report;
    }
}
