//! How GPUs are linked, as NVML tells: the reading behind
//! [`Topology`](super::topology::Topology).
//!
//! Read when the GPUs or the state of their NVLinks change, and never on the way
//! of a request. What a GPU or its driver does not tell is absent: links make a
//! choice better, and no GPU waits for them.

use nvml_wrapper::Device;
use nvml_wrapper::enum_wrappers::device::TopologyLevel;
use nvml_wrapper::sys_exports::field_id::NVML_FI_DEV_NVLINK_GET_SPEED as NVLINK_SPEED;
use nvml_wrapper_sys::bindings::{
    nvmlIntNvLinkDeviceType_enum_NVML_NVLINK_DEVICE_TYPE_GPU as GPU,
    nvmlIntNvLinkDeviceType_enum_NVML_NVLINK_DEVICE_TYPE_SWITCH as SWITCH,
    nvmlNvlinkVersion_enum_NVML_NVLINK_VERSION_1_0 as NVLINK_1,
    nvmlNvlinkVersion_enum_NVML_NVLINK_VERSION_5_0 as NVLINK_5,
};

use super::topology::{NvLink, PcieLevel, Remote};
use super::vitals::{nvlinks, told};
use super::{LibraryError, raw};

/// In MB/s each way, of a link whose speed is not told: NVLink 1, 2 to 4, and 5.
const SPEEDS: [u32; 3] = [20_000, 25_000, 50_000];

/// The NVLinks of a GPU that are up.
pub(super) fn read(device: &Device<'_>) -> Result<Vec<NvLink>, LibraryError> {
    let states = nvlinks(device)?;
    let up: Vec<_> = states.into_iter().filter(|(_, up)| *up).collect();
    let up: Vec<_> = up.into_iter().map(|(link, _)| link).collect();
    let speeds = speeds(device, &up)?;
    let mut links = Vec::new();
    for (link, speed) in up.into_iter().zip(speeds) {
        if let Some(remote) = remote(device, link)? {
            let bandwidth = match speed {
                Some(speed) => speed,
                None => by_version(device, link)?,
            };
            links.push(NvLink { remote, bandwidth });
        }
    }
    Ok(links)
}

/// All in one call.
fn speeds(device: &Device<'_>, links: &[u32]) -> Result<Vec<Option<u32>>, LibraryError> {
    const CALL: &str = "nvmlDeviceGetFieldValues";
    let speed_of = |scope: &u32| raw::Field {
        id: NVLINK_SPEED,
        scope: *scope,
    };
    let fields: Vec<_> = links.iter().map(speed_of).collect();
    let Some(values) = told(CALL, raw::field_values(device, &fields))? else {
        return Ok(vec![None; links.len()]);
    };
    let speed = |value| {
        let speed: Option<u64> = told(CALL, value)?;
        Ok(speed
            .and_then(|speed| speed.try_into().ok())
            .filter(|speed| *speed > 0))
    };
    values.into_iter().map(speed).collect()
}

fn by_version(device: &Device<'_>, link: u32) -> Result<u32, LibraryError> {
    let version = device.link_wrapper_for(link).version();
    let version = told("nvmlDeviceGetNvLinkVersion", version)?;
    Ok(match version {
        Some(NVLINK_1) => SPEEDS[0],
        Some(version) if version >= NVLINK_5 => SPEEDS[2],
        _ => SPEEDS[1],
    })
}

/// None: to what is no GPU and leads to none, such as a processor.
fn remote(device: &Device<'_>, link: u32) -> Result<Option<Remote>, LibraryError> {
    let kind = raw::nvlink_remote_type(device, link);
    match told("nvmlDeviceGetNvLinkRemoteDeviceType", kind)? {
        Some(SWITCH) => Ok(Some(Remote::Switch)),
        // A driver of before there were NVSwitches does not tell.
        Some(GPU) | None => {
            let other = device.link_wrapper_for(link).remote_pci_info();
            let other = told("nvmlDeviceGetNvLinkRemotePciInfo_v2", other)?;
            Ok(other.map(|other| Remote::Gpu(other.bus_id)))
        }
        Some(_) => Ok(None),
    }
}

/// The distance of two GPUs on PCIe. None: it was not told.
pub(super) fn pcie(device: &Device<'_>, other: Device<'_>) -> Option<PcieLevel> {
    Some(match device.topology_common_ancestor(other).ok()? {
        TopologyLevel::Internal => PcieLevel::Board,
        TopologyLevel::Single => PcieLevel::Pix,
        TopologyLevel::Multiple => PcieLevel::Pxb,
        TopologyLevel::HostBridge => PcieLevel::Phb,
        TopologyLevel::Node => PcieLevel::Node,
        TopologyLevel::System => PcieLevel::Sys,
    })
}
