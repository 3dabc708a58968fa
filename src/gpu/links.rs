//! How GPUs are linked, as NVML tells: the reading behind
//! [`Topology`](super::topology::Topology).
//!
//! Read when the GPUs or the state of their NVLinks change, and never on the way
//! of a request. What a GPU or its driver does not tell is absent: links make a
//! choice better, and no GPU waits for them.

use nvml_wrapper::Device;
use nvml_wrapper::sys_exports::field_id::{
    NVML_FI_DEV_NVLINK_GET_SPEED as NVLINK_SPEED, NVML_FI_DEV_NVLINK_GET_STATE as NVLINK_STATE,
    NVML_FI_DEV_NVSWITCH_CONNECTED_LINK_COUNT as TO_SWITCHES,
};
use nvml_wrapper_sys::bindings::{
    nvmlGpuLevel_enum_NVML_TOPOLOGY_HOSTBRIDGE as HOSTBRIDGE,
    nvmlGpuLevel_enum_NVML_TOPOLOGY_INTERNAL as INTERNAL,
    nvmlGpuLevel_enum_NVML_TOPOLOGY_MULTIPLE as MULTIPLE,
    nvmlGpuLevel_enum_NVML_TOPOLOGY_NODE as NODE, nvmlGpuLevel_enum_NVML_TOPOLOGY_SINGLE as SINGLE,
    nvmlGpuLevel_enum_NVML_TOPOLOGY_SYSTEM as SYSTEM,
    nvmlIntNvLinkDeviceType_enum_NVML_NVLINK_DEVICE_TYPE_GPU as GPU,
    nvmlIntNvLinkDeviceType_enum_NVML_NVLINK_DEVICE_TYPE_SWITCH as SWITCH,
    nvmlNvlinkVersion_enum_NVML_NVLINK_VERSION_1_0 as NVLINK_1,
    nvmlNvlinkVersion_enum_NVML_NVLINK_VERSION_5_0 as NVLINK_5,
};

use super::LibraryError;
use super::raw::{self, Field};
use super::topology::{NvLink, PcieLevel, Remote};
use super::vitals::{Fields, any_links, ask_for, find_links, told};

/// In MB/s each way, of a link whose speed is not told: NVLink 1, 2 to 4, and 5.
const SPEEDS: [u32; 3] = [20_000, 25_000, 50_000];

/// The NVLinks of a GPU that are up.
pub(super) fn read(device: &Device<'_>) -> Result<Vec<NvLink>, LibraryError> {
    let told = ask_for(device, &wanted())?;
    let (_, states) = find_links(device, &told)?;
    let to_switches = told.get(TO_SWITCHES).unwrap_or_default();
    let all_to_switches = to_switches >= states.len() as u64;
    let mut links = Vec::new();
    for (link, _) in states.into_iter().filter(|(_, up)| *up) {
        let remote = match all_to_switches {
            true => Some(Remote::Switch),
            false => remote(device, link)?,
        };
        if let Some(remote) = remote {
            let bandwidth = match speed(&told, link) {
                Some(speed) => speed,
                None => by_version(device, link)?,
            };
            links.push(NvLink { remote, bandwidth });
        }
    }
    Ok(links)
}

/// The fields of one call.
fn wanted() -> Vec<Field> {
    let to_switches = Field {
        id: TO_SWITCHES,
        scope: 0,
    };
    let states = any_links().filter(|field| field.id == NVLINK_STATE);
    let speeds = states.map(|state| Field {
        id: NVLINK_SPEED,
        ..state
    });
    any_links().chain(speeds).chain([to_switches]).collect()
}

fn speed(told: &Fields, link: u32) -> Option<u32> {
    let speed = told.get_of(NVLINK_SPEED, link)?;
    speed.try_into().ok().filter(|speed| *speed > 0)
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
pub(super) fn pcie(device: &Device<'_>, other: &Device<'_>) -> Option<PcieLevel> {
    Some(match raw::common_ancestor(device, other).ok()? {
        INTERNAL => PcieLevel::Board,
        SINGLE => PcieLevel::Pix,
        MULTIPLE => PcieLevel::Pxb,
        HOSTBRIDGE => PcieLevel::Phb,
        NODE => PcieLevel::Node,
        SYSTEM => PcieLevel::Sys,
        _ => return None,
    })
}
