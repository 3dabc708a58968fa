//! What each function does before and after its own work: faults that the
//! state injects, handles, panics.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, OsStr, c_void};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};

use nvml_wrapper_sys::bindings::{
    nvmlComputeInstance_st, nvmlDevice_t, nvmlGpuInstance_st, nvmlReturn_t,
};

use super::args::Answer;
use super::events;
use crate::handles::Handles;
use crate::state::{Gpu, MigInstance, Return, State, names};
use crate::store::Store;

/// One loaded library.
pub(super) static LIBRARY: LazyLock<Library> = LazyLock::new(|| Library {
    store: Store::of_library(loaded_from()),
    users: AtomicUsize::new(0),
    devices: Handles::new(),
    gpu_instances: Handles::new(),
    compute_instances: Handles::new(),
});

/// What a loaded library remembers.
pub(super) struct Library {
    pub(super) store: Store,
    /// `nvmlInit` calls that no `nvmlShutdown` has undone.
    pub(super) users: AtomicUsize,
    /// GPUs and MIG devices, by UUID: a handle outlives a change of the order.
    devices: Handles<String, 1>,
    gpu_instances: Handles<GpuInstanceKey, 2>,
    compute_instances: Handles<(GpuInstanceKey, u32), 3>,
}

/// A GPU's UUID and a GPU instance's ID.
pub(super) type GpuInstanceKey = (String, u32);

impl Library {
    /// What nobody uses may be unloaded, and a static is never dropped: what it held
    /// would be the process' until its end.
    pub(super) fn forget(&self) {
        events::free_all();
        self.store.forget();
        self.devices.forget();
        self.gpu_instances.forget();
        self.compute_instances.forget();
    }

    pub(super) fn device_handle(&self, uuid: &str) -> nvmlDevice_t {
        self.devices.handle(uuid.to_owned())
    }

    pub(super) fn gpu_instance_handle(&self, key: GpuInstanceKey) -> *mut nvmlGpuInstance_st {
        self.gpu_instances.handle(key)
    }

    pub(super) fn gpu_instance(&self, handle: *mut nvmlGpuInstance_st) -> Option<GpuInstanceKey> {
        self.gpu_instances.key(handle)
    }

    pub(super) fn compute_instance_handle(
        &self,
        key: (GpuInstanceKey, u32),
    ) -> *mut nvmlComputeInstance_st {
        self.compute_instances.handle(key)
    }

    pub(super) fn compute_instance(
        &self,
        handle: *mut nvmlComputeInstance_st,
    ) -> Option<(GpuInstanceKey, u32)> {
        self.compute_instances.key(handle)
    }
}

/// Whether a function needs the GPU or only the driver's memory of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    Memory,
    Device,
}

/// The device that a function is about, and everything around it.
pub(super) struct Device {
    pub(super) state: Arc<State>,
    /// Of the GPU, in `state.gpus`.
    pub(super) position: usize,
    mig: Option<usize>,
}

impl Device {
    /// Finds a GPU or a MIG device.
    pub(super) fn find(state: &Arc<State>, uuid: &str) -> Option<Self> {
        state.gpus.iter().enumerate().find_map(|(position, gpu)| {
            let instances = gpu.mig.instances.iter();
            let mig = instances.clone().position(|mig| mig.uuid == uuid);
            (gpu.uuid == uuid || mig.is_some()).then(|| Self {
                state: Arc::clone(state),
                position,
                mig,
            })
        })
    }

    /// The GPU, also of a MIG device.
    pub(super) fn gpu(&self) -> &Gpu {
        &self.state.gpus[self.position]
    }

    /// The MIG device, if the device is one.
    pub(super) fn mig(&self) -> Option<&MigInstance> {
        self.mig.map(|mig| &self.gpu().mig.instances[mig])
    }

    /// The index among the MIG devices of the GPU.
    pub(super) fn mig_index(&self) -> Option<usize> {
        self.mig
    }

    /// For functions that know no MIG devices.
    pub(super) fn whole(&self) -> Result<&Gpu, Return> {
        match self.mig {
            None => Ok(self.gpu()),
            Some(_) => Err(Return::InvalidArgument),
        }
    }
}

/// Runs a function that works before `nvmlInit` too.
pub(super) fn answer(body: impl FnOnce() -> Answer) -> nvmlReturn_t {
    // A panic must not cross into C, and none of ours may end the process
    // under test.
    let outcome = catch_unwind(AssertUnwindSafe(body)).unwrap_or(Err(Return::Unknown));
    outcome.err().unwrap_or(Return::Success) as nvmlReturn_t
}

/// Runs a function about the whole node.
pub(super) fn library_call(
    function: &str,
    body: impl FnOnce(&Arc<State>) -> Answer,
) -> nvmlReturn_t {
    answer(|| body(&ready(function)?))
}

/// Runs a function about a device.
pub(super) fn device_call(
    function: &str,
    reach: Reach,
    handle: nvmlDevice_t,
    body: impl FnOnce(&Device) -> Answer,
) -> nvmlReturn_t {
    library_call(function, |state| {
        body(&reached(function, reach, handle, state)?)
    })
}

/// The device behind a handle, once the faults injected into its GPU let the
/// function through.
pub(super) fn reached(
    function: &str,
    reach: Reach,
    handle: nvmlDevice_t,
    state: &Arc<State>,
) -> Result<Device, Return> {
    let uuid = LIBRARY.devices.key(handle).ok_or(Return::InvalidArgument)?;
    let hangs = |state: &Arc<State>| {
        Device::find(state, &uuid).is_some_and(|device| named(&device.gpu().hang, function))
    };
    let state = &once_released(state, hangs);
    // A MIG device that is gone has no handle; a GPU that is gone had one.
    let device = Device::find(state, &uuid).ok_or(if uuid.starts_with("MIG-") {
        Return::InvalidArgument
    } else {
        Return::GpuIsLost
    })?;
    let gpu = device.gpu();
    failure(&gpu.fail, function)?;
    if gpu.vanished || (gpu.lost && reach == Reach::Device) {
        return Err(Return::GpuIsLost);
    }
    Ok(device)
}

/// The state, once the library is initialised and the faults injected into it
/// let the function through.
pub(super) fn ready(function: &str) -> Result<Arc<State>, Return> {
    if LIBRARY.users.load(Ordering::Acquire) == 0 {
        return Err(Return::Uninitialized);
    }
    let state = LIBRARY.store.last_good().ok_or(Return::Uninitialized)?;
    let state = once_released(&state, |state| named(&state.hang, function));
    failure(&state.fail, function)?;
    Ok(state)
}

/// Blocks while the state says that the function hangs. A node whose state
/// file is gone, or cannot be watched, holds nobody.
pub(super) fn once_released(state: &Arc<State>, hangs: impl Fn(&Arc<State>) -> bool) -> Arc<State> {
    if !hangs(state) {
        return Arc::clone(state);
    }
    let released = LIBRARY.store.wait(None, |now| match now {
        Some(now) => (!hangs(&now)).then_some(now),
        None => Some(Arc::clone(state)),
    });
    match released {
        Ok(Some(state)) => state,
        Ok(None) | Err(_) => Arc::clone(state),
    }
}

fn named(functions: &BTreeSet<String>, function: &str) -> bool {
    functions.iter().any(|named| names(named, function))
}

/// The failure that the state asks of a function.
pub(super) fn failure(functions: &BTreeMap<String, Return>, function: &str) -> Answer {
    let mut functions = functions.iter();
    match functions.find(|(named, _)| names(named, function)) {
        Some((_, &failure)) => Err(failure),
        None => Ok(()),
    }
}

/// The file that this library was loaded from, as the loader was told.
fn loaded_from() -> Option<PathBuf> {
    let mut info = MaybeUninit::<libc::Dl_info>::zeroed();
    let here = &raw const LIBRARY as *const c_void;
    // SAFETY: `dladdr` looks an address up and writes one `Dl_info`, for which
    // zeros are values too.
    let info = unsafe {
        libc::dladdr(here, info.as_mut_ptr());
        info.assume_init()
    };
    if info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: the loader's name of a library that stays loaded, since it is
    // this one.
    let name = unsafe { CStr::from_ptr(info.dli_fname) };
    Some(PathBuf::from(OsStr::from_bytes(name.to_bytes())))
}
