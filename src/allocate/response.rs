//! What a container gets with its devices, and how devices are listed.

use std::collections::BTreeSet;
use std::path::PathBuf;

use tonic::{Code, Status};

use crate::api::EncodedAllocateResponse;
use crate::api::v1beta1;
use crate::api::v1beta1::{
    AllocateRequest, ContainerAllocateRequest, ListAndWatchResponse, NumaNode, TopologyInfo,
};
use crate::device::{Common, Device, DeviceSnapshot, UnhealthyReason};

use super::ways::{self, Prepared};

/// Why devices are not given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllocateError {
    /// An ID that is not of this resource.
    #[error("unknown device {0:?}: it is not on the list of this resource")]
    Unknown(String),
    /// A request for nothing: the kubelet never makes one.
    #[error("a container request names no device")]
    Empty,
    /// Several replicas of shared devices, where one is all that is given.
    #[error(
        "{0} devices for one container: they are shares of GPUs that others have too, and more of \
         them are no larger share; ask for 1 (sharing.timeSlicing.failRequestsGreaterThanOne)"
    )]
    Several(usize),
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
    /// The CDI spec that the answer would refer to is gone.
    #[error(
        "the CDI spec {0} does not exist; it is written again at once, unless /readyz says why not"
    )]
    NoSpec(PathBuf),
}

impl AllocateError {
    /// As gRPC tells it: a request that can never be met is `InvalidArgument`,
    /// one that could be later is `FailedPrecondition`.
    pub fn into_status(self) -> Status {
        let code = match self {
            Self::Unknown(_) | Self::Empty | Self::Several(_) => Code::InvalidArgument,
            Self::Unhealthy { .. } | Self::Gone(_) | Self::NoSpec(_) => Code::FailedPrecondition,
        };
        Status::new(code, self.to_string())
    }

    /// Whether the node is not what the snapshot says.
    pub fn is_news(&self) -> bool {
        matches!(self, Self::Gone(_) | Self::NoSpec(_))
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
    prepared: &Prepared,
    request: &AllocateRequest,
    files_exist: bool,
) -> Result<EncodedAllocateResponse, AllocateError> {
    let container_responses = request
        .container_requests
        .iter()
        .map(|container| allocate_container(snapshot, prepared, container, files_exist))
        .collect::<Result<_, _>>()?;
    Ok(EncodedAllocateResponse {
        container_responses,
    })
}

fn allocate_container(
    snapshot: &DeviceSnapshot,
    prepared: &Prepared,
    request: &ContainerAllocateRequest,
    files_exist: bool,
) -> Result<Vec<u8>, AllocateError> {
    // Sorted, and each once: the same devices give the same answer.
    let ids: BTreeSet<_> = request.devices_ids.iter().map(String::as_str).collect();
    if ids.is_empty() {
        return Err(AllocateError::Empty);
    }
    let devices = ids
        .into_iter()
        .map(|id| usable(snapshot, id))
        .collect::<Result<Vec<_>, _>>()?;
    let shared = devices.iter().any(|device| device.replica().is_some());
    if shared && snapshot.common.one_replica_only && devices.len() > 1 {
        return Err(AllocateError::Several(devices.len()));
    }
    if !files_exist {
        all_exist(&snapshot.common, &devices)?;
    }
    let own = ways::own(&snapshot.common, &devices);
    Ok(prepared.with(&own))
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

/// A runtime makes a folder on the host of a path that is missing, and the
/// container then finds a folder where it looks for a library.
///
/// What the CDI spec names is looked at as well: a container could not start
/// without, and the next spec is without it.
fn all_exist(common: &Common, devices: &[&Device]) -> Result<(), AllocateError> {
    let own = devices.iter().flat_map(|device| &device.nodes);
    let nodes = own.chain(common.all_nodes());
    let nodes = nodes.map(|node| (&node.here, &node.host));
    let mounts = common.all_mounts();
    let mounts = mounts.map(|mount| (&mount.here, &mount.host));
    if let Some((_, host)) = nodes.chain(mounts).find(|(here, _)| !here.exists()) {
        return Err(AllocateError::Gone(host.clone()));
    }
    match &common.cdi_spec {
        Some(spec) if !spec.here.exists() => Err(AllocateError::NoSpec(spec.host.clone())),
        _ => Ok(()),
    }
}

/// Whether two snapshots are the same list.
pub fn same_list(one: &DeviceSnapshot, other: &DeviceSnapshot) -> bool {
    let shown = |device: &Device| (device.health.as_str(), device.numa_node);
    let mut pairs = one.devices.iter().zip(&other.devices);
    one.devices.len() == other.devices.len()
        && pairs.all(|(one, other)| one.id == other.id && shown(one) == shown(other))
}

/// The whole list of a resource's devices, sorted by ID.
pub fn list(snapshot: &DeviceSnapshot) -> ListAndWatchResponse {
    let devices = snapshot.devices.iter().map(|device| v1beta1::Device {
        id: device.id.to_string(),
        health: device.health.as_str().into(),
        topology: device.numa_node.map(|node| TopologyInfo {
            nodes: vec![NumaNode {
                id: i64::from(node),
            }],
        }),
    });
    ListAndWatchResponse {
        devices: devices.collect(),
    }
}
