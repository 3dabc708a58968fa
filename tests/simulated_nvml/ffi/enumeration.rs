//! How many GPUs there are, and their handles.

use std::ffi::{c_char, c_uint};
use std::sync::Arc;

use nvml_wrapper_sys::bindings::{nvmlDevice_t, nvmlReturn_t};

use super::args::{Answer, Out, put, read_string};
use super::call::{Device, LIBRARY, library_call};
use crate::state::{PciAddress, Return, State};

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetCount(count: Out<'_, c_uint>) -> nvmlReturn_t {
    library_call("nvmlDeviceGetCount", |state| put(count, gpu_count(state)))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetCount_v2(count: Out<'_, c_uint>) -> nvmlReturn_t {
    library_call("nvmlDeviceGetCount_v2", |state| {
        put(count, gpu_count(state))
    })
}

fn gpu_count(state: &State) -> c_uint {
    state.enumerated().count() as c_uint
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetHandleByIndex(
    index: c_uint,
    device: Out<'_, nvmlDevice_t>,
) -> nvmlReturn_t {
    library_call("nvmlDeviceGetHandleByIndex", |state| {
        by_index(state, index, device)
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetHandleByIndex_v2(
    index: c_uint,
    device: Out<'_, nvmlDevice_t>,
) -> nvmlReturn_t {
    library_call("nvmlDeviceGetHandleByIndex_v2", |state| {
        by_index(state, index, device)
    })
}

fn by_index(state: &State, index: c_uint, device: Out<'_, nvmlDevice_t>) -> Answer {
    let (_, gpu) = state
        .enumerated()
        .nth(index as usize)
        .ok_or(Return::InvalidArgument)?;
    put(device, LIBRARY.device_handle(&gpu.uuid))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetHandleByUUID(
    uuid: *const c_char,
    device: Out<'_, nvmlDevice_t>,
) -> nvmlReturn_t {
    library_call("nvmlDeviceGetHandleByUUID", |state| {
        by_uuid(state, read_string(uuid)?, device)
    })
}

fn by_uuid(state: &Arc<State>, uuid: &str, device: Out<'_, nvmlDevice_t>) -> Answer {
    let found = Device::find(state, uuid).filter(|found| !found.gpu().vanished);
    found.ok_or(Return::NotFound)?;
    put(device, LIBRARY.device_handle(uuid))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetHandleByPciBusId(
    id: *const c_char,
    device: Out<'_, nvmlDevice_t>,
) -> nvmlReturn_t {
    library_call("nvmlDeviceGetHandleByPciBusId", |state| {
        by_pci_bus_id(state, read_string(id)?, device)
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetHandleByPciBusId_v2(
    id: *const c_char,
    device: Out<'_, nvmlDevice_t>,
) -> nvmlReturn_t {
    library_call("nvmlDeviceGetHandleByPciBusId_v2", |state| {
        by_pci_bus_id(state, read_string(id)?, device)
    })
}

fn by_pci_bus_id(state: &State, id: &str, device: Out<'_, nvmlDevice_t>) -> Answer {
    let address = PciAddress::parse(id).ok_or(Return::InvalidArgument)?;
    let found = state
        .enumerated()
        .find(|(_, gpu)| gpu.pci_address() == Some(address));
    let (_, gpu) = found.ok_or(Return::NotFound)?;
    put(device, LIBRARY.device_handle(&gpu.uuid))
}
