//! Our own CDI spec (Container Device Interface): what a runtime has to give a
//! container that asks for one of our devices by name. Pure; [`mod@file`] writes it.
//!
//! The rules are those of CDI's specification 0.5.0
//! (cncf-tags/container-device-interface, SPEC.md, and its pkg/parser for names).

pub mod file;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::DriverMount;
use crate::config::DeviceIdStrategy;
use crate::device::{Device, DeviceNode, Health, Snapshots, text};

/// Vendor and class of our devices. CDI allows a vendor of one DNS label. It is
/// nobody else's: of two specs in one folder that define the same device, a
/// runtime takes neither.
pub const KIND: &str = "gpu-device-plugin/gpu";

/// The name of the spec's file. One kind, one file, whatever the resource is
/// called: a second file would define the same devices again.
pub const FILE: &str = "gpu-device-plugin-gpu.json";

/// Host paths that differ from the container's, and names that begin with a
/// digit, came with this version; nothing newer is used.
const VERSION: &str = "0.5.0";

/// The name of all healthy devices together.
const ALL: &str = "all";

/// Nothing that a driver's file could be abused for but what it is there for:
/// programs among them have to run.
const MOUNT_OPTIONS: [&str; 5] = ["ro", "nosuid", "nodev", "rbind", "rprivate"];

/// A CDI spec, in the shape of its JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    cdi_version: &'static str,
    kind: &'static str,
    devices: Vec<NamedEdits>,
    container_edits: Edits,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct NamedEdits {
    name: String,
    container_edits: Edits,
}

/// What is done to a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Edits {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    device_nodes: Vec<SpecNode>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    mounts: Vec<SpecMount>,
}

/// Without its numbers: the runtime reads them off the node when a container
/// starts, and those of nvidia-uvm are others each time the module is loaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct SpecNode {
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    host_path: Option<String>,
    r#type: &'static str,
    permissions: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct SpecMount {
    host_path: String,
    container_path: String,
    options: [&'static str; 5],
}

impl Spec {
    /// The spec of these devices, each by UUID and by index, and of `all`
    /// healthy ones together. Replicas of a device are that device.
    ///
    /// A device that is not healthy keeps its entry, so that a container which
    /// has it can start again. `None` where there is no device to name or no
    /// driver to give: a spec of an earlier moment is the better one then.
    #[must_use]
    pub fn of(snapshots: &Snapshots) -> Option<Self> {
        // It is the same for each resource.
        let common = &snapshots.values().next()?.common;
        let known = snapshots.values().flat_map(|snapshot| &snapshot.devices);
        let known: Vec<_> = known.filter(|device| !device.nodes.is_empty()).collect();
        if known.is_empty() || common.mounts.is_empty() {
            return None;
        }
        let by_uuid: BTreeMap<_, _> = known.iter().map(|d| (d.id.uuid(), *d)).collect();
        let by_uuid = by_uuid.iter().map(|(uuid, device)| named(uuid, device));
        let by_index = by_index(&known);
        let by_index = by_index
            .iter()
            .map(|(index, device)| named(&index_name(*index), device));
        Some(Self {
            cdi_version: VERSION,
            kind: KIND,
            devices: by_uuid.chain(by_index).chain(all(&known)).collect(),
            container_edits: Edits {
                device_nodes: common.all_nodes().map(SpecNode::from).collect(),
                mounts: common.all_mounts().map(SpecMount::from).collect(),
            },
        })
    }

    /// Whether a container that asks for any one device gets the same from this
    /// spec as from `other`.
    #[must_use]
    pub fn serves(&self, other: &Self) -> bool {
        let mut single = other.devices.iter().filter(|device| device.name != ALL);
        self.container_edits == other.container_edits
            && single.all(|device| self.devices.contains(device))
    }

    /// How many names it defines.
    #[must_use]
    pub fn names(&self) -> usize {
        self.devices.len()
    }

    /// The text of its file.
    ///
    /// # Errors
    ///
    /// It cannot be written as JSON; none is known that could not.
    pub fn text(&self) -> Result<String, serde_json::Error> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }
}

/// What a runtime knows this device by. `None` for an index that is not known.
#[must_use]
pub fn device_name(device: &Device, by: DeviceIdStrategy) -> Option<String> {
    match by {
        DeviceIdStrategy::Uuid => Some(device.id.uuid().to_owned()),
        DeviceIdStrategy::Index => device.index().map(index_name),
    }
}

/// `0` is a GPU, `0:1` a MIG device of it.
fn index_name((gpu, mig): (u32, Option<u32>)) -> String {
    match mig {
        None => gpu.to_string(),
        Some(mig) => format!("{gpu}:{mig}"),
    }
}

/// The name of a device with its kind, as a container asks for it.
#[must_use]
pub fn qualified_name(device: &str) -> String {
    format!("{KIND}={device}")
}

fn named(name: &str, device: &Device) -> NamedEdits {
    NamedEdits {
        name: name.into(),
        container_edits: Edits {
            device_nodes: device.nodes.iter().map(SpecNode::from).collect(),
            mounts: Vec::new(),
        },
    }
}

/// The device at each index. One that vanished may have been at an index where
/// another one is now, and the same name twice makes a spec invalid.
fn by_index<'a>(devices: &[&'a Device]) -> BTreeMap<(u32, Option<u32>), &'a Device> {
    let rank = |device: &Device| match &device.health {
        Health::Healthy => 0,
        Health::Unhealthy(reason) if reason.is_vanished() => 2,
        Health::Unhealthy(_) => 1,
    };
    let mut found = BTreeMap::new();
    for device in devices {
        let Some(index) = device.index() else {
            continue;
        };
        let at = found.entry(index).or_insert(*device);
        if rank(device) < rank(at) {
            *at = device;
        }
    }
    found
}

/// A device without edits is invalid, so there is no `all` of none.
fn all(devices: &[&Device]) -> Option<NamedEdits> {
    let healthy = devices.iter().filter(|d| d.health == Health::Healthy);
    // MIG devices have their GPU's node in common.
    let mut seen = BTreeSet::new();
    let nodes = healthy.flat_map(|device| &device.nodes);
    let nodes = nodes.filter(|node| seen.insert(&node.container));
    let nodes: Vec<_> = nodes.map(SpecNode::from).collect();
    (!nodes.is_empty()).then(|| NamedEdits {
        name: ALL.into(),
        container_edits: Edits {
            device_nodes: nodes,
            mounts: Vec::new(),
        },
    })
}

impl From<&DeviceNode> for SpecNode {
    fn from(node: &DeviceNode) -> Self {
        Self {
            path: text(&node.container),
            host_path: (node.host != node.container).then(|| text(&node.host)),
            r#type: "c",
            permissions: DeviceNode::PERMISSIONS,
        }
    }
}

impl From<&DriverMount> for SpecMount {
    fn from(mount: &DriverMount) -> Self {
        Self {
            host_path: text(&mount.host),
            container_path: text(&mount.container),
            options: MOUNT_OPTIONS,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::device::{Common, DeviceId, DeviceSnapshot, UnhealthyReason, Unit};
    use crate::gpu::{Gpu, GpuUuid};
    use crate::health::cause::Cause;
    use crate::health::class::Class;
    use crate::health::report::Sickness;

    const RESOURCE: &str = "nvidia.com/gpu";

    fn node(path: &str, host: &str) -> DeviceNode {
        DeviceNode {
            host: host.into(),
            here: host.into(),
            container: path.into(),
        }
    }

    fn device(uuid: &str, index: u32, health: Health) -> Device {
        let uuid = GpuUuid::from(uuid);
        let path = format!("/dev/nvidia{index}");
        Device {
            id: DeviceId::from(&uuid),
            unit: Arc::new(Unit {
                uuid: Some(uuid.clone()),
                mig: None,
                gpu: Some(Gpu {
                    uuid,
                    index,
                    minor_number: index,
                    pci_bus_id: "00000000:3B:00.0".into(),
                    numa_node: None,
                    memory_bytes: None,
                    compute_capability: None,
                    product_name: "NVIDIA H200".into(),
                    mig_enabled: false,
                    mig_devices: Vec::new(),
                }),
                numa_node: None,
                health,
                nodes: vec![node(&path, &path)],
            }),
        }
    }

    fn sick(cause: Cause) -> Health {
        Health::Unhealthy(UnhealthyReason::Sick(Sickness {
            cause,
            class: Class::Reset,
            since: Duration::ZERO,
            recovering_until: None,
        }))
    }

    fn snapshot(devices: Vec<Device>) -> Snapshots {
        let mount = DriverMount {
            host: "/opt/libcuda.so.580.1".into(),
            here: "/opt/libcuda.so.580.1".into(),
            container: "/usr/lib64/libcuda.so.1".into(),
        };
        let snapshot = DeviceSnapshot {
            complete: true,
            devices,
            common: Common {
                nodes: vec![node("/dev/nvidiactl", "/run/nvidia/driver/dev/nvidiactl")],
                mounts: vec![mount],
                ..Common::default()
            },
            ..DeviceSnapshot::default()
        };
        [(RESOURCE.to_owned(), snapshot)].into()
    }

    fn only(snapshots: &mut Snapshots) -> &mut DeviceSnapshot {
        snapshots.get_mut(RESOURCE).unwrap()
    }

    fn names(spec: &Spec) -> Vec<&str> {
        spec.devices.iter().map(|d| d.name.as_str()).collect()
    }

    fn nodes_of<'a>(spec: &'a Spec, name: &str) -> Vec<&'a str> {
        let device = spec.devices.iter().find(|device| device.name == name);
        let nodes = &device.unwrap().container_edits.device_nodes;
        nodes.iter().map(|node| node.path.as_str()).collect()
    }

    #[test]
    fn each_device_by_uuid_and_index_and_all_healthy_ones() {
        let xid = sick(Cause::Xid(79));
        let spec = Spec::of(&snapshot(vec![
            device("GPU-a", 1, Health::Healthy),
            device("GPU-b", 0, Health::Healthy),
            device("GPU-c", 2, xid),
        ]));
        let spec = spec.unwrap();
        let expected = ["GPU-a", "GPU-b", "GPU-c", "0", "1", "2", "all"];
        assert_eq!(names(&spec), expected);
        assert_eq!(nodes_of(&spec, "GPU-a"), ["/dev/nvidia1"]);
        assert_eq!(nodes_of(&spec, "1"), ["/dev/nvidia1"]);
        assert_eq!(nodes_of(&spec, "2"), ["/dev/nvidia2"], "it may be held");
        assert_eq!(nodes_of(&spec, "all"), ["/dev/nvidia1", "/dev/nvidia0"]);
    }

    #[test]
    fn an_index_is_the_devices_that_is_there_now() {
        let vanished = sick(Cause::Vanished);
        let spec = Spec::of(&snapshot(vec![
            device("GPU-a", 0, vanished),
            device("GPU-b", 0, sick(Cause::Xid(48))),
            device("GPU-c", 0, Health::Healthy),
        ]));
        let spec = spec.unwrap();
        assert_eq!(names(&spec), ["GPU-a", "GPU-b", "GPU-c", "0", "all"]);
        let device = Spec::of(&snapshot(vec![device("GPU-c", 0, Health::Healthy)]));
        let alone = device.unwrap();
        assert_eq!(nodes_of(&spec, "0"), nodes_of(&alone, "0"));
    }

    #[test]
    fn no_all_of_none_and_no_spec_of_nothing() {
        let xid = || sick(Cause::Xid(79));
        let one = snapshot(vec![device("GPU-a", 0, xid())]);
        assert_eq!(names(&Spec::of(&one).unwrap()), ["GPU-a", "0"]);
        assert_eq!(Spec::of(&snapshot(Vec::new())), None);
        let mut unknown = one.clone();
        let first = &mut only(&mut unknown).devices[0];
        Arc::make_mut(&mut first.unit).nodes.clear();
        assert_eq!(Spec::of(&unknown), None);
        let mut no_driver = one;
        only(&mut no_driver).common.mounts.clear();
        assert_eq!(Spec::of(&no_driver), None);
    }

    #[test]
    fn a_spec_that_differs_in_all_only_serves_a_container_as_well() {
        let of = |health: [Health; 2]| {
            let [first, second] = health;
            let devices = vec![device("GPU-a", 0, first), device("GPU-b", 1, second)];
            Spec::of(&snapshot(devices)).unwrap()
        };
        let xid = || sick(Cause::Xid(79));
        let both = of([Health::Healthy, Health::Healthy]);
        let one = of([Health::Healthy, xid()]);
        assert_ne!(both, one);
        assert!(both.serves(&one) && one.serves(&both));
        assert!(both.serves(&of([xid(), xid()])));

        let fewer = snapshot(vec![device("GPU-a", 0, Health::Healthy)]);
        let fewer = Spec::of(&fewer).unwrap();
        assert!(both.serves(&fewer) && !fewer.serves(&both));
        let mut other = both.clone();
        other.container_edits.mounts[0].host_path += ".new";
        assert!(!other.serves(&both));
    }

    #[test]
    fn in_the_words_of_cdi() {
        let spec = Spec::of(&snapshot(vec![device("GPU-a", 0, Health::Healthy)]));
        let json: serde_json::Value = serde_json::from_str(&spec.unwrap().text().unwrap()).unwrap();
        let own = serde_json::json!({
            "deviceNodes": [{"path": "/dev/nvidia0", "type": "c", "permissions": "rw"}],
        });
        let expected = serde_json::json!({
            "cdiVersion": "0.5.0",
            "kind": "gpu-device-plugin/gpu",
            "devices": [
                {"name": "GPU-a", "containerEdits": own},
                {"name": "0", "containerEdits": own},
                {"name": "all", "containerEdits": own},
            ],
            "containerEdits": {
                "deviceNodes": [{
                    "path": "/dev/nvidiactl",
                    "hostPath": "/run/nvidia/driver/dev/nvidiactl",
                    "type": "c",
                    "permissions": "rw",
                }],
                "mounts": [{
                    "hostPath": "/opt/libcuda.so.580.1",
                    "containerPath": "/usr/lib64/libcuda.so.1",
                    "options": ["ro", "nosuid", "nodev", "rbind", "rprivate"],
                }],
            },
        });
        assert_eq!(json, expected);
    }
}
