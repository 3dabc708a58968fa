//! What of an inventory can change unseen.

use std::collections::BTreeMap;
use std::time::Duration;

use super::node::{Looked, Node};
use crate::config::HealthOptions;
use crate::device::DeviceNode;
use crate::gpu::{Gpu, GpuUuid};
use crate::health::reducer::{GpuHealth, Signal};

/// An inventory as it was, for a thread that says when it is not any more.
#[derive(Clone, Debug)]
pub struct Watched {
    /// The health of each GPU; and the GPU, if it was on the bus.
    pub(super) gpus: BTreeMap<GpuUuid, (GpuHealth, Option<Gpu>)>,
    pub(super) options: HealthOptions,
    pub(super) device_nodes: Vec<DeviceNode>,
    pub(super) node: Node,
    pub(super) looked: Looked,
}

impl Watched {
    /// The GPUs, found or not.
    pub fn uuids(&self) -> impl Iterator<Item = &GpuUuid> {
        self.gpus.keys()
    }

    /// Whether this would change anything of a GPU.
    #[must_use]
    pub fn is_news(&self, now: Duration, uuid: &GpuUuid, signal: &Signal) -> bool {
        let Some((health, _)) = self.gpus.get(uuid) else {
            return true;
        };
        let mut after = health.clone();
        after.apply(now, signal, &self.options);
        after != *health
    }

    /// Whether all GPUs that were on the bus still are.
    #[must_use]
    pub fn all_on_bus(&self, is_there: impl Fn(&Gpu) -> bool) -> bool {
        let mut gpus = self.gpus.values().filter_map(|(_, gpu)| gpu.as_ref());
        gpus.all(is_there)
    }

    /// Whether a look at the node's files finds what it found.
    #[must_use]
    pub fn looks_the_same(&self) -> bool {
        self.node.look(&self.device_nodes) == self.looked
    }
}
