//! Single calls of NVML about one GPU: what each answers, and what it costs.
#![allow(
    unsafe_code,
    reason = "NVML's own answers, without what is made of them"
)]

use std::ffi::{c_int, c_uint, c_ulonglong};
use std::mem::zeroed;
use std::time::Duration;

use nvml_wrapper::Device;
use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlEccCounterType_enum_NVML_VOLATILE_ECC as VOLATILE, nvmlEccSramErrorStatus_t,
    nvmlFieldValue_t, nvmlGpuFabricInfo_t, nvmlGpuFabricInfoV_t, nvmlMemory_t,
    nvmlMemoryErrorType_enum_NVML_MEMORY_ERROR_TYPE_UNCORRECTED as UNCORRECTED, nvmlReturn_t,
};

use super::cost;

/// So many calls are taken the mean of.
const CALLS: u32 = 50;
/// The fields of a GPU as a whole that a probe may ask for, and some beside them.
const FIELDS: [c_uint; 17] = [
    1, 4, 6, 29, 30, 31, 82, 91, 92, 93, 142, 143, 144, 145, 226, 227, 230,
];
const NVLINK_STATE: c_uint = 165;
const LINKS: c_uint = 18;

/// A thread's time on a processor.
#[derive(Clone, Copy)]
pub(super) struct Clock(Duration);

impl Clock {
    /// From now on.
    pub(super) fn thread() -> Self {
        Self(thread_time())
    }

    /// Since then.
    pub(super) fn elapsed(self) -> Duration {
        thread_time().saturating_sub(self.0)
    }
}

fn thread_time() -> Duration {
    // SAFETY: a structure of integers.
    let mut time: libc::timespec = unsafe { zeroed() };
    // SAFETY: `time` is a place for the answer.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Asks everything that a probe does, call by call.
pub(super) fn print_calls(device: &Device<'_>) {
    // SAFETY: used while `device` borrows its session.
    let handle = unsafe { device.handle() };
    print_fields(device, handle);
    print_memory(device, handle);
    print_fabric(device, handle);
    print_links(device, handle);
    print_clocks(device, handle);
}

/// Makes a call, and prints its answer and what it costs.
fn said(name: &str, mut call: impl FnMut() -> nvmlReturn_t) {
    let answer = call();
    println!("  {name}: {answer}; {}", cost(CALLS, || _ = call()));
}

fn print_fields(device: &Device<'_>, handle: nvmlDevice_t) {
    let Ok(get) = &device.nvml().lib().nvmlDeviceGetFieldValues else {
        return println!("  no nvmlDeviceGetFieldValues");
    };
    let ask = |name: &str, mut fields: Vec<nvmlFieldValue_t>| {
        let count = fields.len() as c_int;
        // SAFETY: `fields` has `count` elements.
        said(name, || unsafe { get(handle, count, fields.as_mut_ptr()) });
        fields.iter().for_each(print_field);
    };
    ask("fields", FIELDS.map(|id| field(id, 0)).to_vec());
    for id in FIELDS {
        ask(&format!("field {id} alone"), vec![field(id, 0)]);
    }
    let links = (0..LINKS).map(|link| field(NVLINK_STATE, link));
    ask("fields of NVLinks", links.collect());
}

fn field(id: c_uint, scope: c_uint) -> nvmlFieldValue_t {
    // SAFETY: a structure of integers and a union of numbers.
    let mut field: nvmlFieldValue_t = unsafe { zeroed() };
    (field.fieldId, field.scopeId) = (id, scope);
    field
}

fn print_field(value: &nvmlFieldValue_t) {
    // SAFETY: all bits are initialised, and any are a number.
    let number = unsafe { value.value.ullVal };
    println!(
        "    field {} scope {}: {}, type {}, {number}",
        value.fieldId, value.scopeId, value.nvmlReturn, value.valueType
    );
}

fn print_memory(device: &Device<'_>, handle: nvmlDevice_t) {
    let lib = device.nvml().lib();
    if let Ok(get) = &lib.nvmlDeviceGetMemoryInfo {
        // SAFETY: a structure of integers.
        let mut memory: nvmlMemory_t = unsafe { zeroed() };
        // SAFETY: `memory` is a place for the answer.
        said("nvmlDeviceGetMemoryInfo", || unsafe {
            get(handle, &mut memory)
        });
    }
    if let Ok(get) = &lib.nvmlDeviceGetTemperature {
        let mut degrees: c_uint = 0;
        // SAFETY: `degrees` is a place for the answer.
        said("nvmlDeviceGetTemperature", || unsafe {
            get(handle, 0, &mut degrees)
        });
    }
    if let Ok(get) = &lib.nvmlDeviceGetTotalEccErrors {
        let mut count: c_ulonglong = 0;
        // SAFETY: `count` is a place for the answer.
        said("nvmlDeviceGetTotalEccErrors", || unsafe {
            get(handle, UNCORRECTED, VOLATILE, &mut count)
        });
        println!("    {count}");
    }
    if let Ok(get) = &lib.nvmlDeviceGetRemappedRows {
        let mut rows: [c_uint; 4] = [0; 4];
        let [correctable, uncorrectable, pending, failure] = &mut rows;
        // SAFETY: four places for the answers.
        said("nvmlDeviceGetRemappedRows", || unsafe {
            get(handle, correctable, uncorrectable, pending, failure)
        });
        println!("    {rows:?}");
    }
    if let Ok(get) = &lib.nvmlDeviceGetSramEccErrorStatus {
        // SAFETY: a structure of integers.
        let mut status: nvmlEccSramErrorStatus_t = unsafe { zeroed() };
        status.version = size_of_val(&status) as c_uint | 1 << 24;
        // SAFETY: `status` is what its version says.
        said("nvmlDeviceGetSramEccErrorStatus", || unsafe {
            get(handle, &mut status)
        });
        println!("    {status:?}");
    }
}

fn print_fabric(device: &Device<'_>, handle: nvmlDevice_t) {
    let lib = device.nvml().lib();
    if let Ok(get) = &lib.nvmlDeviceGetGpuFabricInfoV {
        for (version, size) in [(3, 40), (2, 36)] {
            // SAFETY: a structure of integers.
            let mut info: nvmlGpuFabricInfoV_t = unsafe { zeroed() };
            info.version = size | version << 24;
            // SAFETY: `info` has room for either version.
            said("nvmlDeviceGetGpuFabricInfoV", || unsafe {
                get(handle, &mut info)
            });
            println!("    {info:?}");
        }
    }
    if let Ok(get) = &lib.nvmlDeviceGetGpuFabricInfo {
        // SAFETY: a structure of integers.
        let mut info: nvmlGpuFabricInfo_t = unsafe { zeroed() };
        // SAFETY: `info` is a place for the answer.
        said("nvmlDeviceGetGpuFabricInfo", || unsafe {
            get(handle, &mut info)
        });
        println!("    {info:?}");
    }
}

fn print_links(device: &Device<'_>, handle: nvmlDevice_t) {
    let Ok(get) = &device.nvml().lib().nvmlDeviceGetNvLinkState else {
        return println!("  no nvmlDeviceGetNvLinkState");
    };
    let mut active: c_uint = 0;
    // SAFETY: `active` is a place for the answer.
    let mut call = |link| unsafe { (get(handle, link, &mut active), active) };
    said("nvmlDeviceGetNvLinkState", || call(0).0);
    let links: Vec<_> = (0..LINKS).map(call).collect();
    println!("    answer and state of each: {links:?}");
}

fn print_clocks(device: &Device<'_>, handle: nvmlDevice_t) {
    let lib = device.nvml().lib();
    for get in [
        &lib.nvmlDeviceGetCurrentClocksEventReasons,
        &lib.nvmlDeviceGetCurrentClocksThrottleReasons,
    ] {
        let Ok(get) = get else { continue };
        let mut reasons: c_ulonglong = 0;
        // SAFETY: `reasons` is a place for the answer.
        said(
            "nvmlDeviceGetCurrentClocksEventReasons, or as before",
            || unsafe { get(handle, &mut reasons) },
        );
        println!("    {reasons:#x}");
    }
}
