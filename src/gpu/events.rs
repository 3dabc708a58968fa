//! The wait for XID events.
//!
//! nvml-wrapper's event set borrows the library, frees the whole set when one
//! registration fails, and drops the MIG instance IDs of an event. So the four
//! calls are made here, on the raw interface.

#![allow(unsafe_code)]

use std::collections::HashMap;
use std::mem::zeroed;
use std::ptr::null_mut;
use std::sync::Arc;
use std::time::Duration;

use nvml_wrapper::Device;
use nvml_wrapper::error::{NvmlError, nvml_sym, nvml_try};
use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlEventData_t, nvmlEventSet_t, nvmlEventTypeXidCriticalError,
};

use super::error::failed;
use super::loader::Session;
use super::{ErrorKind, EventSource, GpuUuid, LibraryError, XidEvent};

/// NVML's word for "no instance" in an event of a GPU without MIG.
const NO_INSTANCE: u32 = u32::MAX;

/// An NVML event set with the GPUs that were registered in it.
pub(super) struct NvmlEvents {
    nvml: Arc<Session>,
    set: nvmlEventSet_t,
    /// By handle, so that an event is laid at a GPU's door without a call
    /// that a GPU in trouble might not answer.
    gpus: HashMap<usize, GpuUuid>,
}

// SAFETY: NVML is thread safe, and an event set is an opaque handle that is
// bound to no thread. Only the owner of this value waits on it or frees it.
unsafe impl Send for NvmlEvents {}

impl NvmlEvents {
    /// Registers the critical XIDs of `devices` in a new event set.
    ///
    /// # Errors
    ///
    /// The set could not be made, or not one of the devices registered.
    pub(super) fn subscribe(
        nvml: Arc<Session>,
        devices: &[(&GpuUuid, Device<'_>)],
    ) -> Result<Self, LibraryError> {
        let mut set = null_mut();
        call("nvmlEventSetCreate", || {
            let create = nvml_sym(nvml.lib().nvmlEventSetCreate.as_ref())?;
            // SAFETY: the library is loaded and initialised for as long as
            // `nvml` lives, and `set` is a place for one handle.
            nvml_try(unsafe { create(&mut set) })
        })?;
        let mut events = Self {
            nvml,
            set,
            gpus: HashMap::new(),
        };
        let mut last_error = None;
        for (uuid, device) in devices {
            // SAFETY: the handle is used while the session that gave it lives.
            let handle = unsafe { device.handle() };
            match events.register(handle) {
                Ok(()) => {
                    events.gpus.insert(handle as usize, (*uuid).clone());
                }
                Err(error) => last_error = Some(error),
            }
        }
        match last_error {
            Some(error) if events.gpus.is_empty() => Err(error),
            _ => Ok(events),
        }
    }

    fn register(&self, handle: nvmlDevice_t) -> Result<(), LibraryError> {
        call("nvmlDeviceRegisterEvents", || {
            let register = nvml_sym(self.nvml.lib().nvmlDeviceRegisterEvents.as_ref())?;
            let types = u64::from(nvmlEventTypeXidCriticalError);
            // SAFETY: handle and set are of this session, which `self.nvml`
            // keeps alive; a failing registration leaves the set as it was.
            nvml_try(unsafe { register(handle, types, self.set) })
        })
    }
}

impl EventSource for NvmlEvents {
    fn wait(&mut self, timeout: Duration) -> Result<Option<XidEvent>, LibraryError> {
        // SAFETY: a struct of integers and a pointer, for which zeros are valid.
        let mut data: nvmlEventData_t = unsafe { zeroed() };
        let milliseconds = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        let waited = call("nvmlEventSetWait_v2", || {
            let wait = nvml_sym(self.nvml.lib().nvmlEventSetWait_v2.as_ref())?;
            // SAFETY: the set is of this session and is freed in `drop` only;
            // `data` is a place for one event.
            nvml_try(unsafe { wait(self.set, &mut data, milliseconds) })
        });
        match waited {
            Ok(()) if data.eventType == u64::from(nvmlEventTypeXidCriticalError) => {
                Ok(Some(XidEvent {
                    uuid: self.gpus.get(&(data.device as usize)).cloned(),
                    xid: data.eventData,
                    gpu_instance_id: instance(data.gpuInstanceId),
                    compute_instance_id: instance(data.computeInstanceId),
                }))
            }
            Ok(())
            | Err(LibraryError {
                kind: ErrorKind::Timeout,
                ..
            }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Drop for NvmlEvents {
    fn drop(&mut self) {
        if let Ok(free) = &self.nvml.lib().nvmlEventSetFree {
            // SAFETY: the set was made in this session and is used no more.
            // What it answers changes nothing: there is nothing left to mend.
            unsafe { free(self.set) };
        }
    }
}

fn instance(id: u32) -> Option<u32> {
    (id != NO_INSTANCE).then_some(id)
}

fn call(
    name: &'static str,
    call: impl FnOnce() -> Result<(), NvmlError>,
) -> Result<(), LibraryError> {
    call().map_err(|error| failed(name, error))
}
