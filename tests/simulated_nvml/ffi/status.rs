//! How a device is: what only the GPU itself can answer.

use std::ffi::{c_uint, c_ulonglong};

use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlEnableState_t, nvmlMemory_t, nvmlMemory_v2_t, nvmlPstates_t, nvmlReturn_t,
    nvmlUtilization_t,
};

use super::args::{Answer, InOut, Out, put, version_of};
use super::call::{Device, Reach, device_call};
use crate::state::{Gpu, Return};

/// What the driver keeps for itself of an H200's memory.
const RESERVED_BYTES: u64 = 644_939_776;

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMemoryInfo(
    device: nvmlDevice_t,
    memory: Out<'_, nvmlMemory_t>,
) -> nvmlReturn_t {
    device_call("nvmlDeviceGetMemoryInfo", Reach::Device, device, |device| {
        let (total, reserved) = memory_of(device);
        put(
            memory,
            nvmlMemory_t {
                total,
                free: total - reserved,
                used: reserved,
            },
        )
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMemoryInfo_v2(
    device: nvmlDevice_t,
    memory: InOut<'_, nvmlMemory_v2_t>,
) -> nvmlReturn_t {
    device_call(
        "nvmlDeviceGetMemoryInfo_v2",
        Reach::Device,
        device,
        |device| {
            let memory = memory.ok_or(Return::InvalidArgument)?;
            if memory.version != version_of::<nvmlMemory_v2_t>(2) {
                return Err(Return::FunctionNotFound);
            }
            let (total, reserved) = memory_of(device);
            memory.total = total;
            memory.reserved = reserved;
            memory.free = total - reserved;
            memory.used = 0;
            Ok(())
        },
    )
}

/// All memory, and the reserved part of it.
fn memory_of(device: &Device) -> (u64, u64) {
    let of_mig = device.mig().map(|mig| mig.memory_bytes);
    let total = of_mig.unwrap_or(device.gpu().memory_bytes);
    (total, RESERVED_BYTES.min(total))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetTemperature(
    device: nvmlDevice_t,
    _sensor: c_uint,
    temperature: Out<'_, c_uint>,
) -> nvmlReturn_t {
    device_call(
        "nvmlDeviceGetTemperature",
        Reach::Device,
        device,
        |device| put(temperature, device.whole()?.temperature),
    )
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetUtilizationRates(
    device: nvmlDevice_t,
    utilization: Out<'_, nvmlUtilization_t>,
) -> nvmlReturn_t {
    let function = "nvmlDeviceGetUtilizationRates";
    device_call(function, Reach::Device, device, |device| {
        device.whole()?;
        put(utilization, nvmlUtilization_t { gpu: 0, memory: 0 })
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetPerformanceState(
    device: nvmlDevice_t,
    state: Out<'_, nvmlPstates_t>,
) -> nvmlReturn_t {
    number("nvmlDeviceGetPerformanceState", device, state, |_| 0)
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetPersistenceMode(
    device: nvmlDevice_t,
    mode: Out<'_, nvmlEnableState_t>,
) -> nvmlReturn_t {
    number("nvmlDeviceGetPersistenceMode", device, mode, |_| 1)
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetPowerUsage(
    device: nvmlDevice_t,
    milliwatts: Out<'_, c_uint>,
) -> nvmlReturn_t {
    number("nvmlDeviceGetPowerUsage", device, milliwatts, |_| 75_000)
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetEnforcedPowerLimit(
    device: nvmlDevice_t,
    milliwatts: Out<'_, c_uint>,
) -> nvmlReturn_t {
    number(
        "nvmlDeviceGetEnforcedPowerLimit",
        device,
        milliwatts,
        |_| 700_000,
    )
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetCurrentClocksEventReasons(
    device: nvmlDevice_t,
    reasons: Out<'_, c_ulonglong>,
) -> nvmlReturn_t {
    number(
        "nvmlDeviceGetCurrentClocksEventReasons",
        device,
        reasons,
        |gpu| gpu.clocks_event_reasons,
    )
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetCurrentClocksThrottleReasons(
    device: nvmlDevice_t,
    reasons: Out<'_, c_ulonglong>,
) -> nvmlReturn_t {
    let function = "nvmlDeviceGetCurrentClocksThrottleReasons";
    number(function, device, reasons, |gpu| gpu.clocks_event_reasons)
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetPcieReplayCounter(
    device: nvmlDevice_t,
    count: Out<'_, c_uint>,
) -> nvmlReturn_t {
    number("nvmlDeviceGetPcieReplayCounter", device, count, |_| 0)
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetCurrPcieLinkGeneration(
    device: nvmlDevice_t,
    generation: Out<'_, c_uint>,
) -> nvmlReturn_t {
    let function = "nvmlDeviceGetCurrPcieLinkGeneration";
    number(function, device, generation, |gpu| gpu.pci_link.generation)
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMaxPcieLinkGeneration(
    device: nvmlDevice_t,
    generation: Out<'_, c_uint>,
) -> nvmlReturn_t {
    let function = "nvmlDeviceGetMaxPcieLinkGeneration";
    number(function, device, generation, |gpu| gpu.pci_link.generation)
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetCurrPcieLinkWidth(
    device: nvmlDevice_t,
    width: Out<'_, c_uint>,
) -> nvmlReturn_t {
    let function = "nvmlDeviceGetCurrPcieLinkWidth";
    number(function, device, width, |gpu| gpu.pci_link.width)
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMaxPcieLinkWidth(
    device: nvmlDevice_t,
    width: Out<'_, c_uint>,
) -> nvmlReturn_t {
    let function = "nvmlDeviceGetMaxPcieLinkWidth";
    number(function, device, width, |gpu| gpu.pci_link.width)
}

/// A function that answers one number about a whole GPU.
fn number<T>(
    function: &str,
    device: nvmlDevice_t,
    out: Out<'_, T>,
    read: impl FnOnce(&Gpu) -> T,
) -> nvmlReturn_t {
    device_call(function, Reach::Device, device, |device| {
        put(out, read(device.whole()?))
    })
}

/// No process uses a simulated GPU, whichever structure would describe it.
fn no_processes(function: &str, device: nvmlDevice_t, count: InOut<'_, c_uint>) -> nvmlReturn_t {
    device_call(function, Reach::Device, device, |_| -> Answer {
        *count.ok_or(Return::InvalidArgument)? = 0;
        Ok(())
    })
}

macro_rules! process_lists {
    ($($function:ident)*) => {$(
        #[unsafe(no_mangle)]
        extern "C" fn $function(
            device: nvmlDevice_t,
            count: InOut<'_, c_uint>,
            _infos: *mut std::ffi::c_void,
        ) -> nvmlReturn_t {
            no_processes(stringify!($function), device, count)
        }
    )*};
}

process_lists! {
    nvmlDeviceGetComputeRunningProcesses
    nvmlDeviceGetComputeRunningProcesses_v2
    nvmlDeviceGetComputeRunningProcesses_v3
    nvmlDeviceGetGraphicsRunningProcesses
    nvmlDeviceGetGraphicsRunningProcesses_v2
    nvmlDeviceGetGraphicsRunningProcesses_v3
    nvmlDeviceGetMPSComputeRunningProcesses
    nvmlDeviceGetMPSComputeRunningProcesses_v2
    nvmlDeviceGetMPSComputeRunningProcesses_v3
}
