//! How GPUs are connected: NVLink and PCIe.

use std::ffi::c_uint;

use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlEnableState_t, nvmlGpuP2PStatus_enum_NVML_P2P_STATUS_NOT_SUPPORTED,
    nvmlGpuP2PStatus_enum_NVML_P2P_STATUS_OK, nvmlGpuP2PStatus_t, nvmlGpuTopologyLevel_t,
    nvmlIntNvLinkDeviceType_enum_NVML_NVLINK_DEVICE_TYPE_GPU,
    nvmlIntNvLinkDeviceType_enum_NVML_NVLINK_DEVICE_TYPE_SWITCH, nvmlIntNvLinkDeviceType_t,
    nvmlNvLinkCapability_enum_NVML_NVLINK_CAP_COUNT as CAPABILITIES,
    nvmlNvLinkCapability_enum_NVML_NVLINK_CAP_SLI_BRIDGE as SLI_BRIDGE, nvmlPciInfo_t,
    nvmlReturn_t,
};

use super::args::{InOut, Out, put, put_list};
use super::call::{Device, LIBRARY, Reach, device_call, reached};
use super::identity::{nvswitch_pci_info, pci_info};
use crate::state::{Gpu, NvLink, Return};

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetNvLinkState(
    device: nvmlDevice_t,
    link: c_uint,
    active: Out<'_, nvmlEnableState_t>,
) -> nvmlReturn_t {
    device_call(
        "nvmlDeviceGetNvLinkState",
        Reach::Device,
        device,
        |device| {
            nvlink(device, link)?;
            put(active, is_up(device.gpu(), link).into())
        },
    )
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetNvLinkVersion(
    device: nvmlDevice_t,
    link: c_uint,
    version: Out<'_, c_uint>,
) -> nvmlReturn_t {
    device_call(
        "nvmlDeviceGetNvLinkVersion",
        Reach::Device,
        device,
        |device| put(version, nvlink(device, link)?.version),
    )
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetNvLinkCapability(
    device: nvmlDevice_t,
    link: c_uint,
    capability: c_uint,
    result: Out<'_, c_uint>,
) -> nvmlReturn_t {
    let function = "nvmlDeviceGetNvLinkCapability";
    device_call(function, Reach::Device, device, |device| {
        nvlink(device, link)?;
        if capability >= CAPABILITIES {
            return Err(Return::InvalidArgument);
        }
        put(result, u32::from(capability != SLI_BRIDGE))
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetNvLinkRemoteDeviceType(
    device: nvmlDevice_t,
    link: c_uint,
    kind: Out<'_, nvmlIntNvLinkDeviceType_t>,
) -> nvmlReturn_t {
    let function = "nvmlDeviceGetNvLinkRemoteDeviceType";
    device_call(function, Reach::Device, device, |device| {
        put(
            kind,
            match nvlink(device, link)?.to {
                Some(_) => nvmlIntNvLinkDeviceType_enum_NVML_NVLINK_DEVICE_TYPE_GPU,
                None => nvmlIntNvLinkDeviceType_enum_NVML_NVLINK_DEVICE_TYPE_SWITCH,
            },
        )
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetNvLinkRemotePciInfo(
    device: nvmlDevice_t,
    link: c_uint,
    info: Out<'_, nvmlPciInfo_t>,
) -> nvmlReturn_t {
    let function = "nvmlDeviceGetNvLinkRemotePciInfo";
    device_call(function, Reach::Device, device, |device| {
        put(info, remote_pci_info(device, link)?)
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetNvLinkRemotePciInfo_v2(
    device: nvmlDevice_t,
    link: c_uint,
    info: Out<'_, nvmlPciInfo_t>,
) -> nvmlReturn_t {
    let function = "nvmlDeviceGetNvLinkRemotePciInfo_v2";
    device_call(function, Reach::Device, device, |device| {
        put(info, remote_pci_info(device, link)?)
    })
}

fn remote_pci_info(device: &Device, link: c_uint) -> Result<nvmlPciInfo_t, Return> {
    match nvlink(device, link)?.to {
        Some(to) => pci_info(&device.state.gpus[to]),
        None => Ok(nvswitch_pci_info()),
    }
}

/// Whether an NVLink that exists is up.
pub(super) fn is_up(gpu: &Gpu, link: c_uint) -> bool {
    !gpu.nvlinks_down.contains(&link)
}

/// One NVLink. A GPU without them answers as if it knew none.
pub(super) fn nvlink(device: &Device, link: c_uint) -> Result<NvLink, Return> {
    device.whole()?;
    let links = device.state.nvlinks(device.position);
    links
        .get(link as usize)
        .copied()
        .ok_or(Return::NotSupported)
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetTopologyCommonAncestor(
    device: nvmlDevice_t,
    other: nvmlDevice_t,
    level: Out<'_, nvmlGpuTopologyLevel_t>,
) -> nvmlReturn_t {
    let function = "nvmlDeviceGetTopologyCommonAncestor";
    device_call(function, Reach::Memory, device, |device| {
        let other = reached(function, Reach::Memory, other, &device.state)?;
        device.whole().and(other.whole())?;
        if other.position == device.position {
            return Err(Return::NotSupported);
        }
        let shared = device.state.topology_level(device.position, other.position);
        put(level, shared as nvmlGpuTopologyLevel_t)
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetTopologyNearestGpus(
    device: nvmlDevice_t,
    level: nvmlGpuTopologyLevel_t,
    count: InOut<'_, c_uint>,
    devices: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    let function = "nvmlDeviceGetTopologyNearestGpus";
    device_call(function, Reach::Memory, device, |device| {
        device.whole()?;
        let state = &device.state;
        let at_level = |position: usize| {
            position != device.position
                && state.topology_level(device.position, position) as c_uint == level
        };
        let near: Vec<_> = state
            .enumerated()
            .filter(|&(position, _)| at_level(position))
            .map(|(_, gpu)| LIBRARY.device_handle(&gpu.uuid))
            .collect();
        put_list(count, devices, &near)
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetP2PStatus(
    device: nvmlDevice_t,
    other: nvmlDevice_t,
    _capability: c_uint,
    status: Out<'_, nvmlGpuP2PStatus_t>,
) -> nvmlReturn_t {
    let function = "nvmlDeviceGetP2PStatus";
    device_call(function, Reach::Device, device, |device| {
        let other = reached(function, Reach::Device, other, &device.state)?;
        let to_itself = other.position == device.position;
        let answer = if to_itself {
            nvmlGpuP2PStatus_enum_NVML_P2P_STATUS_NOT_SUPPORTED
        } else {
            nvmlGpuP2PStatus_enum_NVML_P2P_STATUS_OK
        };
        put(status, answer)
    })
}
