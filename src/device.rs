//! What is advertised: devices, their health, and all of them at one moment.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Serialize, Serializer};

use crate::choice::Chooser;
use crate::config::{AllocationOptions, HostFolder};
use crate::driver::DriverMount;
use crate::driver::extras::Extras;
use crate::driver::nodes::NodeFault;
use crate::gpu::{Gpu, GpuUuid, MigDevice};
use crate::health::cause::Cause;
use crate::health::report::Sickness;

/// What stands between a UUID and the number of a replica, as in NVIDIA's plugin.
const REPLICA: &str = "::";

/// The ID of a device in the kubelet's eyes: the UUID of a GPU or a MIG device,
/// and the number of a replica where several containers share it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(Arc<str>);

impl DeviceId {
    /// That of a device with this UUID, or of a replica of it.
    pub fn new(uuid: &str, replica: Option<u32>) -> Self {
        match replica {
            None => Self(uuid.into()),
            Some(replica) => Self(format!("{uuid}{REPLICA}{replica}").into()),
        }
    }

    /// The ID as it stands in the kubelet's messages.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The UUID of the GPU or MIG device, which runtimes and CUDA know it by.
    pub fn uuid(&self) -> &str {
        self.split().0
    }

    /// The number of the replica, from 0.
    pub fn replica(&self) -> Option<u32> {
        self.split().1
    }

    fn split(&self) -> (&str, Option<u32>) {
        let parts = self.0.rsplit_once(REPLICA);
        let replica = parts.and_then(|(uuid, number)| Some((uuid, number.parse().ok()?)));
        replica.map_or((&*self.0, None), |(uuid, number)| (uuid, Some(number)))
    }
}

impl From<&str> for DeviceId {
    fn from(id: &str) -> Self {
        Self(id.into())
    }
}

impl From<&GpuUuid> for DeviceId {
    fn from(uuid: &GpuUuid) -> Self {
        Self(uuid.as_str().into())
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for DeviceId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// Why a device is not to be given to a container.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnhealthyReason {
    /// Its GPU is sick, or the part of it that it is.
    #[error("{0}")]
    Sick(Sickness),
    /// A device node that it needs is not there, or is another device's.
    #[error("{0} {1}")]
    NoDeviceNode(PathBuf, NodeFault),
    /// There is no session with the driver.
    #[error("{0}")]
    NoDriver(String),
    /// The driver's files for containers were not found.
    #[error("{0}")]
    NoDriverFiles(String),
    /// No GPU is to be given without the IMEX channel, and it is not there.
    #[error("{0} does not exist, and --imex-required has no GPU given without it")]
    NoImexChannel(PathBuf),
    /// It is not what is advertised any more: the GPU's MIG mode or layout, or the
    /// configuration, is another.
    #[error("{0}")]
    Withdrawn(Arc<str>),
    /// The driver does not tell which device node its MIG instances have.
    #[error("/proc/driver/nvidia-caps/mig-minors does not name the MIG instances of this device")]
    NoMigMinor,
    /// The CDI spec that answers would refer to is not what it has to be.
    #[error("{0}")]
    NoCdiSpec(String),
}

impl UnhealthyReason {
    /// Its name in node conditions, events and metrics: CamelCase, as Kubernetes
    /// has reasons.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Sick(sickness) => sickness.cause.signal().reason,
            Self::NoDeviceNode(..) => "NoDeviceNode",
            Self::NoDriver(_) => "NoDriver",
            Self::NoDriverFiles(_) => "NoDriverFiles",
            Self::NoImexChannel(_) => "NoImexChannel",
            Self::Withdrawn(_) => "Withdrawn",
            Self::NoMigMinor => "NoMigMinor",
            Self::NoCdiSpec(_) => "NoCdiSpec",
        }
    }

    /// Whether its GPU or MIG device is gone, and another may be where it was.
    #[must_use]
    pub fn is_vanished(&self) -> bool {
        match self {
            Self::Sick(sickness) => matches!(sickness.cause, Cause::Vanished | Cause::OffBus),
            Self::Withdrawn(_) => true,
            _ => false,
        }
    }
}

/// Whether a device may be given to a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It may.
    Healthy,
    /// It may not, and why.
    Unhealthy(UnhealthyReason),
}

impl Health {
    /// The word that the kubelet knows: only `Healthy` is healthy
    /// (Kubernetes' pkg/kubelet/cm/devicemanager/manager.go).
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Healthy => "Healthy",
            Self::Unhealthy(_) => "Unhealthy",
        }
    }

    /// Why it is unhealthy.
    pub fn reason(&self) -> Option<&UnhealthyReason> {
        match self {
            Self::Healthy => None,
            Self::Unhealthy(reason) => Some(reason),
        }
    }
}

/// A device node, on the host and in a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeviceNode {
    /// As the host names it.
    pub host: PathBuf,
    /// Where this process sees it.
    #[serde(skip)]
    pub here: PathBuf,
    /// Where a container finds it: free of the dev root.
    pub container: PathBuf,
}

impl Deref for Device {
    type Target = Unit;

    fn deref(&self) -> &Unit {
        &self.unit
    }
}

impl Device {
    /// The number of the replica that it is, where its GPU or MIG device is shared.
    #[must_use]
    pub fn replica(&self) -> Option<u32> {
        self.id.replica()
    }

    /// NVML's index as NVIDIA's runtimes take it: of the GPU, and of the MIG device
    /// within it.
    #[must_use]
    pub fn index(&self) -> Option<(u32, Option<u32>)> {
        let mig = self.mig.as_ref().map(|mig| mig.index);
        Some((self.gpu.as_ref()?.index, mig))
    }
}

impl DeviceNode {
    /// What a container may do with it: read and write, and make none.
    pub const PERMISSIONS: &str = "rw";
}

/// A path as the kubelet's messages and a CDI spec have it, which are UTF-8: so
/// are the operator's flags that it comes from, and the names that we look for.
pub(crate) fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// One device of a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// As the kubelet knows it.
    pub id: DeviceId,
    /// What it is, or is a share of: of thousands of replicas there is one.
    pub unit: Arc<Unit>,
}

/// A GPU or MIG device that a device of a resource stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// The GPU behind it; absent for a MIG device that was never seen.
    pub uuid: Option<GpuUuid>,
    /// What is known of the GPU; absent where it could never be read whole.
    pub gpu: Option<Gpu>,
    /// Where it is, or was when that was last told.
    pub numa_node: Option<u32>,
    /// The part of the GPU that it is, where it is a MIG device.
    pub mig: Option<MigDevice>,
    /// Whether it may be given to a container.
    pub health: Health,
    /// The device nodes that are this device's, and no other GPU's.
    pub nodes: Vec<DeviceNode>,
}

/// What every container with a device gets beside the device's own nodes, and
/// how. Only what some strategy gives: nothing else has to be there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Common {
    /// `/dev/nvidiactl` and its like.
    pub nodes: Vec<DeviceNode>,
    /// The driver's libraries and programs.
    pub mounts: Vec<DriverMount>,
    /// What goes beside the GPUs.
    pub extras: Extras,
    /// The CDI spec that answers refer to.
    pub cdi_spec: Option<HostFolder>,
    /// How containers are given all this.
    pub allocation: Arc<AllocationOptions>,
    /// A container may have one replica of a shared device, and no more.
    pub one_replica_only: bool,
}

impl Common {
    /// Every node that a container is given by us, those of the extras last.
    pub fn all_nodes(&self) -> impl Iterator<Item = &DeviceNode> {
        // NVIDIA's container runtime is told of the channel, and not by its node.
        let imex = self.extras.imex.as_ref();
        let imex = imex.filter(|_| self.allocation.gives_nodes());
        self.nodes.iter().chain(&self.extras.nodes).chain(imex)
    }

    /// Every mount, those of the extras last.
    pub fn all_mounts(&self) -> impl Iterator<Item = &DriverMount> {
        self.mounts.iter().chain(&self.extras.mounts)
    }
}

/// All devices of one resource at one moment, sorted by ID, and what belongs
/// to each answer about them. Shared and never changed: a new moment is a new
/// snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceSnapshot {
    /// Whether every GPU has been looked at once: no list is worth telling the
    /// kubelet before.
    pub complete: bool,
    /// Sorted by ID.
    pub devices: Vec<Device>,
    /// The same for each device.
    pub common: Common,
    /// Chooses among their GPUs.
    pub chooser: Arc<Chooser>,
}

/// The devices of every resource at one moment.
pub type Snapshots = BTreeMap<String, DeviceSnapshot>;

impl DeviceSnapshot {
    /// Every file that an answer about a healthy device names, as this process
    /// sees it.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let healthy = self
            .devices
            .iter()
            .filter(|device| device.health == Health::Healthy);
        let nodes = healthy.flat_map(|device| &device.nodes);
        let nodes = nodes.chain(self.common.all_nodes());
        let mounts = self.common.all_mounts();
        let spec = self.common.cdi_spec.iter();
        nodes
            .map(|node| node.here.as_path())
            .chain(mounts.map(|mount| mount.here.as_path()))
            .chain(spec.map(|spec| spec.here.as_path()))
    }

    /// The device with this ID.
    pub fn get(&self, id: &str) -> Option<&Device> {
        let place = self
            .devices
            .binary_search_by(|device| device.id.as_str().cmp(id))
            .ok()?;
        self.devices.get(place)
    }
}
