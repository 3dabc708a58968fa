//! What each way in adds to an answer, in the meaning that NVIDIA's device
//! plugin gave the words (its internal/plugin/server.go).

use std::collections::BTreeSet;

use prost::Message;

use crate::api::v1beta1::{CdiDevice, ContainerAllocateResponse, DeviceSpec, Mount};
use crate::config::{DeviceIdStrategy, DeviceListStrategy, Extra};
use crate::device::{Common, Device, DeviceNode, text};
use crate::digest::Fnv1a;
use crate::driver::extras::IMEX_CHANNEL;
use crate::driver::{DriverMount, cdi};

/// What NVIDIA's container runtime reads the devices from.
const VISIBLE_DEVICES: &str = "NVIDIA_VISIBLE_DEVICES";
/// The same for IMEX channels.
const IMEX_CHANNELS: &str = "NVIDIA_IMEX_CHANNELS";

/// The folder whose mounts NVIDIA's container runtime takes for devices, and
/// what is mounted there.
const VOLUMES: &str = "/var/run/nvidia-container-devices";
const VOLUME: &str = "/dev/null";

/// What the name of a CDI annotation begins with, after its prefix.
const ANNOTATION: &str = "gpu-device-plugin_";
/// The length of that name.
pub(crate) const ANNOTATION_NAME: usize = ANNOTATION.len() + 16;

/// What is the same in all answers from one snapshot, encoded as it stands in them.
#[derive(Clone, Debug, Default)]
pub struct Prepared(Vec<u8>);

impl Prepared {
    /// Puts it into the words of an answer.
    #[must_use]
    pub fn of(common: &Common) -> Self {
        let options = &common.allocation;
        let mut answer = ContainerAllocateResponse::default();
        if options.strategies.contains(&DeviceListStrategy::Mounts) {
            answer.mounts = common.all_mounts().map(mount).collect();
        }
        if options.answers_nodes() {
            answer.devices = each_once(common.all_nodes()).map(device_spec).collect();
        }
        Self(answer.encode_to_vec())
    }

    /// The whole answer of which this is the part of its own. Of one message that
    /// follows another the lists are appended, and a reader takes both for one.
    pub(super) fn with(&self, own: &ContainerAllocateResponse) -> Vec<u8> {
        let mut bytes = own.encode_to_vec();
        bytes.extend_from_slice(&self.0);
        bytes
    }
}

/// What is of these devices alone in an answer about them. They are sorted by ID: the
/// same devices give the same answer. Several replicas of one are given once.
pub(super) fn own(common: &Common, devices: &[&Device]) -> ContainerAllocateResponse {
    let options = &common.allocation;
    let names = || names(devices, options.device_ids);
    let mut answer = ContainerAllocateResponse::default();
    for strategy in &options.strategies {
        match strategy {
            // The same for all devices.
            DeviceListStrategy::Mounts => {}
            DeviceListStrategy::Envvar => by_variables(&mut answer, common, &names()),
            DeviceListStrategy::VolumeMounts => by_volumes(&mut answer, common, &names()),
            DeviceListStrategy::CdiAnnotations => {
                let key = annotation_key(&options.cdi_annotation_prefix, devices);
                let value = qualified(&names()).join(",");
                answer.annotations.insert(key, value);
            }
            DeviceListStrategy::CdiCri => {
                let names = qualified(&names()).into_iter();
                answer.cdi_devices = names.map(|name| CdiDevice { name }).collect();
            }
        }
    }
    if options.answers_nodes() {
        let own = devices.iter().flat_map(|device| &device.nodes);
        answer.devices = each_once(own).map(device_spec).collect();
    }
    answer
}

/// What a runtime knows these devices by, indexes in their order. A healthy
/// device has an index.
fn names(devices: &[&Device], by: DeviceIdStrategy) -> Vec<String> {
    let mut devices = devices.to_vec();
    if by == DeviceIdStrategy::Index {
        devices.sort_by_key(|device| device.index());
    }
    let names = devices.iter();
    let mut names: Vec<_> = names
        .filter_map(|device| cdi::device_name(device, by))
        .collect();
    names.dedup();
    names
}

/// Replicas of a device, and MIG devices of a GPU, have nodes in common.
fn each_once<'a>(
    nodes: impl Iterator<Item = &'a DeviceNode>,
) -> impl Iterator<Item = &'a DeviceNode> {
    let mut seen = BTreeSet::new();
    nodes.filter(move |node| seen.insert(node.container.as_os_str()))
}

fn qualified(names: &[String]) -> Vec<String> {
    let names = names.iter();
    names.map(|name| cdi::qualified_name(name)).collect()
}

fn by_variables(answer: &mut ContainerAllocateResponse, common: &Common, names: &[String]) {
    set(answer, VISIBLE_DEVICES, &names.join(","));
    if common.extras.imex.is_some() {
        set(answer, IMEX_CHANNELS, &IMEX_CHANNEL.to_string());
    }
    extras(answer, common);
}

/// Beside `envvar`, its variable says where the volumes are, as in NVIDIA's
/// device plugin.
fn by_volumes(answer: &mut ContainerAllocateResponse, common: &Common, names: &[String]) {
    set(answer, VISIBLE_DEVICES, VOLUMES);
    let channel = common.extras.imex.as_ref();
    let channel = channel.map(|_| format!("imex/{IMEX_CHANNEL}"));
    let volumes = names.iter().chain(&channel).map(|name| Mount {
        container_path: format!("{VOLUMES}/{name}"),
        host_path: VOLUME.into(),
        read_only: false,
    });
    answer.mounts.extend(volumes);
    extras(answer, common);
}

/// NVIDIA's container runtime finds them by itself.
fn extras(answer: &mut ContainerAllocateResponse, common: &Common) {
    for extra in &common.allocation.extras {
        let variable = match extra {
            Extra::Gds => "NVIDIA_GDS",
            Extra::Gdrcopy => "NVIDIA_GDRCOPY",
            Extra::Mofed => "NVIDIA_MOFED",
        };
        set(answer, variable, "enabled");
    }
}

fn set(answer: &mut ContainerAllocateResponse, variable: &str, value: &str) {
    answer.envs.insert(variable.into(), value.into());
}

/// A key of its own for each set of devices, as a container may be given
/// devices of several resources; and the same for the same, over restarts.
fn annotation_key(prefix: &str, devices: &[&Device]) -> String {
    let ids: Vec<_> = devices.iter().map(|device| device.id.as_str()).collect();
    let mut hash = Fnv1a::default();
    hash.add(ids.join(",").as_bytes());
    format!("{prefix}{ANNOTATION}{:016x}", hash.hash())
}

fn device_spec(node: &DeviceNode) -> DeviceSpec {
    DeviceSpec {
        container_path: text(&node.container),
        host_path: text(&node.host),
        permissions: DeviceNode::PERMISSIONS.into(),
    }
}

fn mount(mount: &DriverMount) -> Mount {
    Mount {
        container_path: text(&mount.container),
        host_path: text(&mount.host),
        read_only: true,
    }
}
