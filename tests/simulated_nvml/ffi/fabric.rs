//! A GPU's place in a fabric of NVSwitches.

use std::ffi::c_uint;

use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlGpuFabricInfo_t, nvmlGpuFabricInfo_v2_t, nvmlGpuFabricInfo_v3_t, nvmlReturn_t,
};

use super::args::{Answer, Out, put, version_of};
use super::call::{Reach, device_call};
use crate::state::{Fabric, Return};

const V2: c_uint = version_of::<nvmlGpuFabricInfo_v2_t>(2);
const V3: c_uint = version_of::<nvmlGpuFabricInfo_v3_t>(3);
/// `NVML_GPU_FABRIC_HEALTH_SUMMARY_NOT_SUPPORTED`.
const NO_SUMMARY: u8 = 0;

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetGpuFabricInfo(
    device: nvmlDevice_t,
    info: Out<'_, nvmlGpuFabricInfo_t>,
) -> nvmlReturn_t {
    let function = "nvmlDeviceGetGpuFabricInfo";
    device_call(function, Reach::Device, device, |device| {
        let fabric = &device.whole()?.fabric;
        put(
            info,
            nvmlGpuFabricInfo_t {
                clusterUuid: [0; 16],
                status: fabric.status,
                cliqueId: 0,
                state: fabric.state,
            },
        )
    })
}

/// Which structure `info` leads to is said in its first field, the version.
#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetGpuFabricInfoV(device: nvmlDevice_t, info: *mut c_uint) -> nvmlReturn_t {
    let function = "nvmlDeviceGetGpuFabricInfoV";
    device_call(function, Reach::Device, device, |device| {
        let fabric = &device.whole()?.fabric;
        if info.is_null() {
            return Err(Return::InvalidArgument);
        }
        // SAFETY: not null, so a structure that begins with its version.
        match unsafe { info.read() } {
            V2 => put_v2(info.cast(), fabric),
            V3 if fabric.version >= 3 => put_v3(info.cast(), fabric),
            _ => Err(Return::ArgumentVersionMismatch),
        }
    })
}

fn put_v2(info: *mut nvmlGpuFabricInfo_v2_t, fabric: &Fabric) -> Answer {
    // SAFETY: its version says that it is this structure.
    unsafe {
        info.write(nvmlGpuFabricInfo_v2_t {
            version: V2,
            clusterUuid: [0; 16],
            status: fabric.status,
            cliqueId: 0,
            state: fabric.state,
            healthMask: fabric.health_mask,
        });
    }
    Ok(())
}

fn put_v3(info: *mut nvmlGpuFabricInfo_v3_t, fabric: &Fabric) -> Answer {
    // SAFETY: its version says that it is this structure.
    unsafe {
        info.write(nvmlGpuFabricInfo_v3_t {
            version: V3,
            clusterUuid: [0; 16],
            status: fabric.status,
            cliqueId: 0,
            state: fabric.state,
            healthMask: fabric.health_mask,
            healthSummary: NO_SUMMARY,
        });
    }
    Ok(())
}
