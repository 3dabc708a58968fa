//! Errors of a GPU's memories, and what was done about them.

use std::ffi::{c_uint, c_ulonglong};

use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlEccSramErrorStatus_t, nvmlEnableState_t,
    nvmlMemoryErrorType_enum_NVML_MEMORY_ERROR_TYPE_CORRECTED as CORRECTED,
    nvmlMemoryErrorType_enum_NVML_MEMORY_ERROR_TYPE_UNCORRECTED as UNCORRECTED, nvmlReturn_t,
};

use super::args::{InOut, Out, put, put_both, version_of};
use super::call::{Device, Reach, device_call};
use crate::state::{Gpu, RemappedRows, RetiredPages, Return};

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetRemappedRows(
    device: nvmlDevice_t,
    correctable: Out<'_, c_uint>,
    uncorrectable: Out<'_, c_uint>,
    pending: Out<'_, c_uint>,
    failure: Out<'_, c_uint>,
) -> nvmlReturn_t {
    device_call(
        "nvmlDeviceGetRemappedRows",
        Reach::Device,
        device,
        |device| {
            let rows = remapped_rows(device.whole()?)?;
            let counts = (rows.correctable, rows.uncorrectable);
            put_both(correctable, uncorrectable, counts)?;
            put_both(pending, failure, (rows.pending.into(), rows.failure.into()))
        },
    )
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetEccMode(
    device: nvmlDevice_t,
    current: Out<'_, nvmlEnableState_t>,
    pending: Out<'_, nvmlEnableState_t>,
) -> nvmlReturn_t {
    device_call("nvmlDeviceGetEccMode", Reach::Device, device, |device| {
        let enabled = device.whole()?.ecc.enabled.into();
        put_both(current, pending, (enabled, enabled))
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetTotalEccErrors(
    device: nvmlDevice_t,
    error: c_uint,
    _counter: c_uint,
    count: Out<'_, c_ulonglong>,
) -> nvmlReturn_t {
    device_call(
        "nvmlDeviceGetTotalEccErrors",
        Reach::Device,
        device,
        |device| put(count, ecc_errors(device, error)?),
    )
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMemoryErrorCounter(
    device: nvmlDevice_t,
    error: c_uint,
    _counter: c_uint,
    _location: c_uint,
    count: Out<'_, c_ulonglong>,
) -> nvmlReturn_t {
    let function = "nvmlDeviceGetMemoryErrorCounter";
    device_call(function, Reach::Device, device, |device| {
        put(count, ecc_errors(device, error)?)
    })
}

fn ecc_errors(device: &Device, error: c_uint) -> Result<u64, Return> {
    ecc_errors_of(device.whole()?, error)
}

/// All errors are the memory's, and none is older than the driver's start.
pub(super) fn ecc_errors_of(gpu: &Gpu, error: c_uint) -> Result<u64, Return> {
    match error {
        _ if !gpu.ecc.enabled => Err(Return::NotSupported),
        CORRECTED => Ok(gpu.ecc.corrected),
        UNCORRECTED => Ok(gpu.ecc.uncorrected),
        _ => Err(Return::InvalidArgument),
    }
}

/// Nobody is told of rows while a MIG device exists.
pub(super) fn remapped_rows(gpu: &Gpu) -> Result<&RemappedRows, Return> {
    if gpu.mig.enabled && !gpu.mig.instances.is_empty() {
        return Err(Return::NotSupported);
    }
    Ok(&gpu.remapped_rows)
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetSramEccErrorStatus(
    device: nvmlDevice_t,
    status: InOut<'_, nvmlEccSramErrorStatus_t>,
) -> nvmlReturn_t {
    let function = "nvmlDeviceGetSramEccErrorStatus";
    device_call(function, Reach::Device, device, |device| {
        let gpu = device.whole()?;
        let status = status.ok_or(Return::InvalidArgument)?;
        if status.version != version_of::<nvmlEccSramErrorStatus_t>(1) {
            return Err(Return::ArgumentVersionMismatch);
        }
        if !gpu.ecc.enabled {
            return Err(Return::NotSupported);
        }
        status.bThresholdExceeded = gpu.sram_threshold_exceeded.into();
        Ok(())
    })
}

/// Counts are fields; where the pages are, nobody here asks.
#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetRetiredPages(
    device: nvmlDevice_t,
    _cause: c_uint,
    _count: InOut<'_, c_uint>,
    _addresses: *mut c_ulonglong,
) -> nvmlReturn_t {
    device_call("nvmlDeviceGetRetiredPages", Reach::Device, device, |_| {
        Err(Return::NotSupported)
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetRetiredPages_v2(
    device: nvmlDevice_t,
    _cause: c_uint,
    _count: InOut<'_, c_uint>,
    _addresses: *mut c_ulonglong,
    _timestamps: *mut c_ulonglong,
) -> nvmlReturn_t {
    device_call(
        "nvmlDeviceGetRetiredPages_v2",
        Reach::Device,
        device,
        |_| Err(Return::NotSupported),
    )
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetRetiredPagesPendingStatus(
    device: nvmlDevice_t,
    pending: Out<'_, nvmlEnableState_t>,
) -> nvmlReturn_t {
    let function = "nvmlDeviceGetRetiredPagesPendingStatus";
    device_call(function, Reach::Device, device, |device| {
        put(pending, retired_pages(device.whole()?)?.pending.into())
    })
}

/// Pages are retired on GPUs older than Ampere; later ones remap rows.
pub(super) fn retired_pages(gpu: &Gpu) -> Result<&RetiredPages, Return> {
    gpu.retired_pages.as_ref().ok_or(Return::NotSupported)
}
