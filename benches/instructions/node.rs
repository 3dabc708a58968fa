//! Files as a node has them, and what is advertised of them.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use gpu_device_plugin::choice::Chooser;
use gpu_device_plugin::device::{
    Common, Device, DeviceId, DeviceNode, DeviceSnapshot, Health, Unit,
};
use gpu_device_plugin::driver::DriverMount;
use gpu_device_plugin::gpu::GpuUuid;
use gpu_device_plugin::gpu::topology::{NvLink, Place, Remote, Topology};
use tempfile::TempDir;

/// As many files as a driver has for `compute,utility`.
const MOUNTS: usize = 31;
const VOLUME: &str = "/var/lib/gpu-device-plugin/driver/580.159.04-0123abcd";
const CONTAINER: &str = "/usr/lib/x86_64-linux-gnu";

/// Their folder. The length of its name is always the same: long paths take more
/// instructions.
pub(crate) fn lay_out() -> anyhow::Result<TempDir> {
    let root = tempfile::Builder::new()
        .prefix("instructions-")
        .tempdir_in("/tmp")?;
    let snapshot = snapshot(root.path(), 16);
    for file in snapshot.files() {
        fs::create_dir_all(file.parent().unwrap_or(file))?;
        fs::write(file, "")?;
    }
    Ok(root)
}

/// Healthy GPUs, all the same for each call of this program.
pub(crate) fn snapshot(root: &Path, gpus: usize) -> DeviceSnapshot {
    let node = |name: String| DeviceNode {
        host: format!("/dev/{name}").into(),
        here: root.join("dev").join(&name),
        container: format!("/dev/{name}").into(),
    };
    let devices = (0..gpus).map(|number| Device {
        id: DeviceId::new(&uuid(number), None),
        unit: Arc::new(Unit {
            numa_node: None,
            uuid: Some(GpuUuid::from(uuid(number).as_str())),
            gpu: None,
            mig: None,
            health: Health::Healthy,
            nodes: vec![node(format!("nvidia{number}"))],
        }),
    });
    let common = ["nvidiactl", "nvidia-uvm", "nvidia-uvm-tools"];
    DeviceSnapshot {
        complete: true,
        devices: devices.collect(),
        common: Common {
            nodes: common.map(|name| node(name.to_owned())).into(),
            mounts: (0..MOUNTS).map(|number| mount(root, number)).collect(),
            ..Common::default()
        },
        chooser: Arc::new(Chooser::new(topology(gpus))),
    }
}

/// NVSwitches among all, and two NUMA nodes.
fn topology(gpus: usize) -> Topology {
    let link = NvLink {
        remote: Remote::Switch,
        bandwidth: 25_000,
    };
    let links = vec![Some(vec![link; 18]); gpus];
    let places = (0..gpus).map(|number| Place {
        uuid: GpuUuid::from(uuid(number).as_str()),
        index: number as u32,
        pci_bus_id: format!("00000000:{number:02X}:00.0"),
        numa_node: Some(u32::from(number >= gpus / 2)),
    });
    Topology::new(places.collect(), &links, |_, _| None)
}

fn mount(root: &Path, number: usize) -> DriverMount {
    let name = format!("libnvidia-{number:08}.so.580.159.04");
    DriverMount {
        host: format!("{VOLUME}/lib/{name}").into(),
        here: root.join("lib").join(&name),
        container: format!("{CONTAINER}/{name}").into(),
    }
}

/// Sorted like their numbers.
pub(crate) fn uuid(number: usize) -> String {
    format!("GPU-00000000-0000-4000-8000-{number:012x}")
}
