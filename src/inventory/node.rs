//! The node around the GPUs: what it has of what containers are given.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use crate::config::{AllocationOptions, Config, HostFolder, ImexChannel};
use crate::device::{Common, DeviceNode, UnhealthyReason};
use crate::driver::cdi;
use crate::driver::extras::{self, Extras};
use crate::driver::nodes::{DevRoot, Faults, Instance, MigMinors};
use crate::driver::supply::Supply;
use crate::gpu::{Gpu, MigDevice};

/// What of the node, beside its GPUs, decides what a container gets.
#[derive(Clone, Debug)]
pub struct Node {
    /// Where the device nodes are.
    pub(super) dev_root: DevRoot,
    faults: Faults,
    pub(super) mig_minors: Arc<MigMinors>,
    driver: Result<Arc<Supply>, UnhealthyReason>,
    host_root: PathBuf,
    cdi_spec: Option<HostFolder>,
    allocation: Arc<AllocationOptions>,
    /// Counts the changes.
    revision: u64,
}

/// What a look at the node's files found. Two that are equal make equal snapshots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Looked {
    /// The nodes that every container gets.
    pub(super) common: Vec<DeviceNode>,
    extras: Extras,
    /// Where a node should be that is not there, as the host names it.
    missing: BTreeSet<PathBuf>,
}

impl Node {
    /// The node that `config` names, with this driver, or why there are no files
    /// of one to give. Nothing is known to be amiss with the device nodes.
    #[must_use]
    pub fn new(config: &Config, driver: Result<Arc<Supply>, UnhealthyReason>) -> Self {
        let allocation = Arc::new(config.allocation.clone());
        let cdi_spec = allocation
            .uses_cdi()
            .then(|| config.paths.cdi_root.join(cdi::FILE));
        Self {
            dev_root: config.paths.dev_root.clone(),
            faults: Faults::default(),
            mig_minors: Arc::default(),
            driver,
            host_root: config.paths.host_root.clone(),
            cdi_spec,
            allocation,
            revision: 0,
        }
    }

    /// The same with answers that refer to no CDI spec of ours.
    #[must_use]
    pub fn without_cdi_spec(self) -> Self {
        Self {
            cdi_spec: None,
            ..self
        }
    }

    /// Another number after each change.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The driver's files, or why there are none to give.
    ///
    /// # Errors
    ///
    /// There are none.
    pub fn driver(&self) -> Result<&Arc<Supply>, &UnhealthyReason> {
        self.driver.as_ref()
    }

    /// From now on containers get this of the driver. What they got until now.
    pub fn set_driver(
        &mut self,
        driver: Result<Arc<Supply>, UnhealthyReason>,
    ) -> Result<Arc<Supply>, UnhealthyReason> {
        self.revision += 1;
        std::mem::replace(&mut self.driver, driver)
    }

    /// Takes note of what is amiss with the device nodes, and of the minor numbers
    /// of MIG instances' capabilities.
    pub fn set_device_nodes(&mut self, faults: Faults, mig_minors: Arc<MigMinors>) {
        if (&self.faults, &self.mig_minors) != (&faults, &mig_minors) {
            self.revision += 1;
            self.faults = faults;
            self.mig_minors = mig_minors;
        }
    }

    /// Our CDI spec, where answers refer to it.
    #[must_use]
    pub fn cdi_spec(&self) -> Option<&HostFolder> {
        self.cdi_spec.as_ref()
    }

    /// How containers are given their devices.
    #[must_use]
    pub fn allocation(&self) -> &AllocationOptions {
        &self.allocation
    }

    /// Looks for what every container gets, and for these nodes of devices.
    pub(super) fn look(&self, devices: &[DeviceNode]) -> Looked {
        let (required, optional) = (self.dev_root.required(), self.dev_root.optional());
        let missing = required.iter().chain(devices);
        let missing = missing.filter(|node| !node.here.exists());
        Looked {
            missing: missing.map(|node| node.host.clone()).collect(),
            common: required.into_iter().chain(optional).collect(),
            extras: Extras::find(&self.allocation, &self.dev_root, &self.host_root),
        }
    }

    /// Whether no device node is missing or another device's, of all that were
    /// looked for.
    pub(super) fn is_whole(&self, looked: &Looked) -> bool {
        looked.missing.is_empty() && self.faults.is_empty()
    }

    /// Why no container can be given these device nodes, if so.
    #[must_use]
    pub fn unfit(&self, looked: &Looked, nodes: &[DeviceNode]) -> Option<UnhealthyReason> {
        if self.is_whole(looked) {
            return None;
        }
        nodes.iter().find_map(|node| {
            let fault = self.faults.of(node, looked.missing.contains(&node.host))?;
            Some(UnhealthyReason::NoDeviceNode(node.host.clone(), fault))
        })
    }

    /// The nodes of a GPU, or of a MIG device within it. None where containers are
    /// given none by us.
    pub(super) fn of(
        &self,
        gpu: &Gpu,
        mig: Option<&MigDevice>,
    ) -> Result<Vec<DeviceNode>, UnhealthyReason> {
        if !self.allocation.gives_nodes() {
            return Ok(Vec::new());
        }
        let mut nodes = vec![self.dev_root.gpu(gpu.minor_number)];
        for instance in mig.into_iter().flat_map(|mig| instances(gpu, mig)) {
            let minor = self.mig_minors.of(instance);
            let minor = minor.ok_or(UnhealthyReason::NoMigMinor)?;
            nodes.push(self.dev_root.capability(minor));
        }
        Ok(nodes)
    }

    pub(super) fn common(&self, looked: &Looked) -> Common {
        let allocation = &self.allocation;
        let mut common = Common {
            extras: looked.extras.clone(),
            cdi_spec: self.cdi_spec.clone(),
            allocation: allocation.clone(),
            ..Common::default()
        };
        if allocation.gives_nodes() {
            common.nodes = looked.common.clone();
        }
        if let (true, Ok(supply)) = (allocation.gives_driver(), &self.driver) {
            common.mounts = supply.mounts.clone();
        }
        common
    }

    /// What keeps every device from being given.
    pub(super) fn amiss(&self, looked: &Looked, common: &Common) -> Option<UnhealthyReason> {
        let driver = self.driver.as_ref().err();
        // NVIDIA's container runtime finds the files by itself.
        let needed = |reason: &&UnhealthyReason| {
            self.allocation.gives_driver() || !matches!(reason, UnhealthyReason::NoDriverFiles(_))
        };
        let no_channel =
            self.allocation.imex == ImexChannel::Required && common.extras.imex.is_none();
        driver
            .filter(needed)
            .cloned()
            .or_else(|| self.unfit(looked, &common.nodes))
            .or(no_channel
                .then(|| UnhealthyReason::NoImexChannel(extras::imex_channel(&self.dev_root))))
    }
}

/// What a container has to be given to use a MIG device, beside its GPU.
pub(super) fn instances(gpu: &Gpu, mig: &MigDevice) -> [Instance; 2] {
    let instance = |compute_instance| Instance {
        gpu: gpu.minor_number,
        gpu_instance: mig.gpu_instance_id,
        compute_instance,
    };
    [instance(None), instance(Some(mig.compute_instance_id))]
}
