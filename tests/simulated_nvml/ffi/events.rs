//! Event sets: each delivers what happens to its GPUs after its creation, in
//! order, once.

use std::collections::BTreeMap;
use std::ffi::{c_uint, c_ulonglong};
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nvml_wrapper_sys::bindings::{nvmlDevice_t, nvmlEventData_t, nvmlEventSet_t, nvmlReturn_t};

use super::args::{Answer, Out, put};
use super::call::{LIBRARY, Reach, answer, device_call, failure, library_call, ready};
use crate::state::{Event, Return, SUPPORTED_EVENT_TYPES, State};

/// An instance ID in an event that is about the whole GPU.
const NO_INSTANCE: c_uint = 0xFFFF_FFFF;
/// Above every device's and instance's handle.
const FIRST_HANDLE: usize = 0x1000_0000;

static SETS: Mutex<EventSets> = Mutex::new(EventSets {
    created: 0,
    open: BTreeMap::new(),
});

struct EventSets {
    created: usize,
    /// By handle, which is a number and no address (see [`crate::handles`]). A
    /// freed one is not used again.
    open: BTreeMap<usize, Arc<EventSet>>,
}

/// One event set; a waiter keeps it alive while another thread frees it.
type EventSet = Mutex<Progress>;

struct Progress {
    /// The largest sequence number that was delivered or passed over.
    seen: u64,
    /// The event types of each registered GPU, by UUID.
    registered: BTreeMap<String, u64>,
}

impl Progress {
    /// The next event that the set is registered for; those before it are
    /// passed over for good, as no GPU tells its past to a later registration.
    /// Storms are told an event a call, so a call looks at those that are new.
    fn next<'a>(&mut self, state: &'a State) -> Option<&'a Event> {
        for event in state.events_after(self.seen) {
            self.seen = event.seq;
            let types = self.registered.get(&event.uuid);
            if types.is_some_and(|types| types & event.kind != 0) {
                return Some(event);
            }
        }
        None
    }
}

#[unsafe(no_mangle)]
extern "C" fn nvmlEventSetCreate(set: Out<'_, nvmlEventSet_t>) -> nvmlReturn_t {
    library_call("nvmlEventSetCreate", |state| put(set, create(state)))
}

fn create(state: &State) -> nvmlEventSet_t {
    let mut sets = lock(&SETS);
    let handle = FIRST_HANDLE + 0x10 * sets.created;
    sets.created += 1;
    let progress = Progress {
        seen: state.last_seq(),
        registered: BTreeMap::new(),
    };
    sets.open.insert(handle, Arc::new(Mutex::new(progress)));
    ptr::without_provenance_mut(handle)
}

#[unsafe(no_mangle)]
extern "C" fn nvmlEventSetFree(set: nvmlEventSet_t) -> nvmlReturn_t {
    library_call("nvmlEventSetFree", |_| {
        let freed = lock(&SETS).open.remove(&set.addr());
        freed.map(|_| ()).ok_or(Return::InvalidArgument)
    })
}

/// The last `nvmlShutdown` leaves no event set.
pub(super) fn free_all() {
    lock(&SETS).open.clear();
}

fn open(set: nvmlEventSet_t) -> Result<Arc<EventSet>, Return> {
    let sets = lock(&SETS);
    let set = sets.open.get(&set.addr());
    set.cloned().ok_or(Return::InvalidArgument)
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetSupportedEventTypes(
    device: nvmlDevice_t,
    types: Out<'_, c_ulonglong>,
) -> nvmlReturn_t {
    let function = "nvmlDeviceGetSupportedEventTypes";
    device_call(function, Reach::Device, device, |device| {
        device.whole()?;
        put(types, SUPPORTED_EVENT_TYPES)
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceRegisterEvents(
    device: nvmlDevice_t,
    types: c_ulonglong,
    set: nvmlEventSet_t,
) -> nvmlReturn_t {
    device_call(
        "nvmlDeviceRegisterEvents",
        Reach::Device,
        device,
        |device| {
            let set = open(set)?;
            if device.mig().is_some() || types & !SUPPORTED_EVENT_TYPES != 0 {
                return Err(Return::NotSupported);
            }
            let uuid = device.gpu().uuid.clone();
            *lock(&set).registered.entry(uuid).or_default() |= types;
            Ok(())
        },
    )
}

#[unsafe(no_mangle)]
extern "C" fn nvmlEventSetWait(
    set: nvmlEventSet_t,
    data: Out<'_, nvmlEventData_t>,
    timeout_ms: c_uint,
) -> nvmlReturn_t {
    let function = "nvmlEventSetWait";
    answer(|| wait(function, set, data, timeout_ms))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlEventSetWait_v2(
    set: nvmlEventSet_t,
    data: Out<'_, nvmlEventData_t>,
    timeout_ms: c_uint,
) -> nvmlReturn_t {
    let function = "nvmlEventSetWait_v2";
    answer(|| wait(function, set, data, timeout_ms))
}

fn wait(
    function: &str,
    set: nvmlEventSet_t,
    data: Out<'_, nvmlEventData_t>,
    timeout_ms: c_uint,
) -> Answer {
    // The state is not held while we wait: one that is old would outlive others.
    drop(ready(function)?);
    let set = open(set)?;
    let data = data.ok_or(Return::InvalidArgument)?;
    let deadline = Instant::now() + Duration::from_millis(timeout_ms.into());
    let happened = LIBRARY.store.wait(Some(deadline), |state| {
        let state = state?;
        // A failure that is injected while we wait ends the wait.
        if let Err(failure) = failure(&state.fail, function) {
            return Some(Err(failure));
        }
        lock(&set).next(&state).map(|event| Ok(event_data(event)))
    });
    match happened {
        Ok(Some(happened)) => put(Some(data), happened?),
        Ok(None) => Err(Return::Timeout),
        Err(_) => Err(Return::OperatingSystem),
    }
}

fn event_data(event: &Event) -> nvmlEventData_t {
    nvmlEventData_t {
        device: LIBRARY.device_handle(&event.uuid),
        eventType: event.kind,
        eventData: event.data,
        gpuInstanceId: event.gpu_instance_id.unwrap_or(NO_INSTANCE),
        computeInstanceId: event.compute_instance_id.unwrap_or(NO_INSTANCE),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
