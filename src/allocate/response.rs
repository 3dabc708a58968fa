//! What a container gets with its devices, and how devices are listed.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use tonic::{Code, Status};

use crate::api::v1beta1;
use crate::api::v1beta1::{
    AllocateRequest, AllocateResponse, ContainerAllocateRequest, ContainerAllocateResponse,
    DeviceSpec, ListAndWatchResponse, Mount, NumaNode, TopologyInfo,
};
use crate::device::{Device, DeviceNode, DeviceSnapshot, UnhealthyReason};

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

/// One answer for each container request, in their order.
///
/// # Errors
///
/// See [`AllocateError`]; no part of the request is answered then.
pub fn allocate(
    snapshot: &DeviceSnapshot,
    request: &AllocateRequest,
) -> Result<AllocateResponse, AllocateError> {
    let container_responses = request
        .container_requests
        .iter()
        .map(|container| allocate_container(snapshot, container))
        .collect::<Result<_, _>>()?;
    Ok(AllocateResponse {
        container_responses,
    })
}

fn allocate_container(
    snapshot: &DeviceSnapshot,
    request: &ContainerAllocateRequest,
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
    let own = devices.iter().flat_map(|device| &device.nodes);
    let devices = own
        .chain(&snapshot.common.nodes)
        .map(device_spec)
        .collect::<Result<Vec<_>, _>>()?;
    Ok(ContainerAllocateResponse {
        envs: HashMap::new(),
        mounts: mounts(snapshot)?,
        devices,
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

fn device_spec(node: &DeviceNode) -> Result<DeviceSpec, AllocateError> {
    exists(&node.here, &node.host)?;
    Ok(DeviceSpec {
        container_path: text(&node.container),
        host_path: text(&node.host),
        permissions: PERMISSIONS.into(),
    })
}

fn mounts(snapshot: &DeviceSnapshot) -> Result<Vec<Mount>, AllocateError> {
    // One file is bound in several folders, in a row: one look is enough. Bytes
    // are compared, as paths compare part by part.
    let mut looked_at = None;
    snapshot
        .common
        .mounts
        .iter()
        .map(|mount| {
            let here = mount.here.as_os_str();
            if looked_at.replace(here) != Some(here) {
                exists(&mount.here, &mount.host)?;
            }
            Ok(Mount {
                container_path: text(&mount.container),
                host_path: text(&mount.host),
                read_only: true,
            })
        })
        .collect()
}

/// A runtime makes a folder on the host of a path that is missing, and the
/// container then finds a folder where it looks for a library.
fn exists(here: &Path, host: &Path) -> Result<(), AllocateError> {
    if here.exists() {
        Ok(())
    } else {
        Err(AllocateError::Gone(host.into()))
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
