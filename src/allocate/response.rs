//! What a container gets with its devices, and how devices are listed.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use tonic::{Code, Status};

use crate::api::v1beta1;
use crate::api::v1beta1::{
    AllocateRequest, AllocateResponse, ContainerAllocateRequest, ContainerAllocateResponse,
    DeviceSpec, ListAndWatchResponse, Mount, NumaNode, TopologyInfo,
};
use crate::device::{Common, Device, DeviceNode, DeviceSnapshot, UnhealthyReason};
use crate::driver::DriverMount;

/// Read and write; no making of nodes.
const PERMISSIONS: &str = "rw";

/// Why devices are not given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllocateError {
    /// An ID that is not of this resource.
    #[error("unknown device {0:?}: it is not on the list of this resource")]
    Unknown(String),
    /// A request for nothing: the kubelet never makes one.
    #[error("a container request names no device")]
    Empty,
    /// A device that may not be given to a container.
    #[error("device {id} is unhealthy: {reason}")]
    Unhealthy {
        /// The device.
        id: String,
        /// Why.
        reason: UnhealthyReason,
    },
    /// A file that a container would get is gone since it was found.
    #[error("{0} does not exist any more; was the driver changed or its module unloaded?")]
    Gone(PathBuf),
}

impl AllocateError {
    /// As gRPC tells it: a request that can never be met is `InvalidArgument`,
    /// one that could be later is `FailedPrecondition`.
    pub fn into_status(self) -> Status {
        let code = match self {
            Self::Unknown(_) | Self::Empty => Code::InvalidArgument,
            Self::Unhealthy { .. } | Self::Gone(_) => Code::FailedPrecondition,
        };
        Status::new(code, self.to_string())
    }
}

/// One answer for each container request, in their order. Looks whether each
/// file that it names exists, unless that is known.
///
/// # Errors
///
/// See [`AllocateError`]; no part of the request is answered then.
pub fn allocate(
    snapshot: &DeviceSnapshot,
    request: &AllocateRequest,
    files_exist: bool,
) -> Result<AllocateResponse, AllocateError> {
    let container_responses = request
        .container_requests
        .iter()
        .map(|container| allocate_container(snapshot, container, files_exist))
        .collect::<Result<_, _>>()?;
    Ok(AllocateResponse {
        container_responses,
    })
}

fn allocate_container(
    snapshot: &DeviceSnapshot,
    request: &ContainerAllocateRequest,
    files_exist: bool,
) -> Result<ContainerAllocateResponse, AllocateError> {
    // Sorted, and each once: the same devices give the same answer.
    let ids: BTreeSet<_> = request.devices_ids.iter().map(String::as_str).collect();
    if ids.is_empty() {
        return Err(AllocateError::Empty);
    }
    let devices = ids
        .into_iter()
        .map(|id| usable(snapshot, id))
        .collect::<Result<Vec<_>, _>>()?;
    if !files_exist {
        all_exist(snapshot, &devices)?;
    }
    let Common { nodes, mounts } = &snapshot.common;
    let own = devices.iter().flat_map(|device| &device.nodes);
    Ok(ContainerAllocateResponse {
        envs: HashMap::new(),
        mounts: mounts.iter().map(mount).collect(),
        devices: own.chain(nodes).map(device_spec).collect(),
        annotations: HashMap::new(),
        cdi_devices: Vec::new(),
    })
}

fn usable<'a>(snapshot: &'a DeviceSnapshot, id: &str) -> Result<&'a Device, AllocateError> {
    let device = snapshot
        .get(id)
        .ok_or_else(|| AllocateError::Unknown(id.into()))?;
    match device.health.reason() {
        None => Ok(device),
        Some(reason) => Err(AllocateError::Unhealthy {
            id: id.into(),
            reason: reason.clone(),
        }),
    }
}

fn device_spec(node: &DeviceNode) -> DeviceSpec {
    DeviceSpec {
        container_path: text(&node.container),
        host_path: text(&node.host),
        permissions: PERMISSIONS.into(),
    }
}

fn mount(mount: &DriverMount) -> Mount {
    Mount {
        container_path: text(&mount.container),
        host_path: text(&mount.host),
        read_only: true,
    }
}

/// A runtime makes a folder on the host of a path that is missing, and the
/// container then finds a folder where it looks for a library.
fn all_exist(snapshot: &DeviceSnapshot, devices: &[&Device]) -> Result<(), AllocateError> {
    let Common { nodes, mounts } = &snapshot.common;
    let own = devices.iter().flat_map(|device| &device.nodes);
    let nodes = own.chain(nodes).map(|node| (&node.here, &node.host));
    let mounts = mounts.iter().map(|mount| (&mount.here, &mount.host));
    match nodes.chain(mounts).find(|(here, _)| !here.exists()) {
        None => Ok(()),
        Some((_, host)) => Err(AllocateError::Gone(host.clone())),
    }
}

/// The kubelet's messages are UTF-8; the paths come from the operator's flags,
/// which are, and from names that we look for.
fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// The whole list of a resource's devices, sorted by ID.
pub fn list(snapshot: &DeviceSnapshot) -> ListAndWatchResponse {
    let devices = snapshot.devices.iter().map(|device| v1beta1::Device {
        id: device.id.to_string(),
        health: device.health.as_str().into(),
        topology: device
            .gpu
            .as_ref()
            .and_then(|gpu| gpu.numa_node)
            .map(|node| TopologyInfo {
                nodes: vec![NumaNode {
                    id: i64::from(node),
                }],
            }),
    });
    ListAndWatchResponse {
        devices: devices.collect(),
    }
}
