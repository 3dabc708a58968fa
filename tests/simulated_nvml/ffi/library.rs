//! The library itself: initialisation, versions, the names of errors.

use std::ffi::{c_char, c_int, c_uint};
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::Ordering;

use nvml_wrapper_sys::bindings::nvmlReturn_t;

use super::args::{Answer, Out, put, put_string};
use super::call::{LIBRARY, answer, failure, library_call, once_released, ready};
use crate::state::{Return, names};

/// What NVML (580.159.04) leaves open when it is unloaded, once it was initialised: an
/// eventfd.
static LEFT_OPEN: OnceLock<Option<OwnedFd>> = OnceLock::new();

#[unsafe(no_mangle)]
extern "C" fn nvmlInit() -> nvmlReturn_t {
    answer(|| init("nvmlInit"))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlInit_v2() -> nvmlReturn_t {
    answer(|| init("nvmlInit_v2"))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlInitWithFlags(_flags: c_uint) -> nvmlReturn_t {
    answer(|| init("nvmlInitWithFlags"))
}

fn init(function: &str) -> Answer {
    let outcome = try_init(function);
    if outcome.is_err() && LIBRARY.users.load(Ordering::Acquire) == 0 {
        LIBRARY.forget();
    }
    outcome
}

fn try_init(function: &str) -> Answer {
    let state = LIBRARY.store.current().ok_or(Return::DriverNotLoaded)?;
    let hangs = |named: &String| names(named, function);
    let state = once_released(&state, |state| state.hang.iter().any(hangs));
    failure(&state.fail, function)?;
    if state.init != Return::Success {
        return Err(state.init);
    }
    LEFT_OPEN.get_or_init(|| {
        // SAFETY: no pointers.
        let file = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        // SAFETY: the call above has just opened it, for nobody else.
        (file >= 0).then(|| unsafe { OwnedFd::from_raw_fd(file) })
    });
    LIBRARY.users.fetch_add(1, Ordering::AcqRel);
    Ok(())
}

/// Who is told of a failure does not come back for a second try, so nothing is kept
/// for one.
#[unsafe(no_mangle)]
extern "C" fn nvmlShutdown() -> nvmlReturn_t {
    answer(|| {
        let failure = ready("nvmlShutdown").map(drop);
        let one_less = |users: usize| users.checked_sub(1);
        let users = LIBRARY
            .users
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, one_less);
        if users == Ok(1) {
            LIBRARY.forget();
        }
        failure
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlErrorString(result: nvmlReturn_t) -> *const c_char {
    let text = match result {
        0 => c"Success",
        1 => c"Uninitialized",
        2 => c"Invalid Argument",
        3 => c"Not Supported",
        4 => c"Insufficient Permissions",
        6 => c"Not Found",
        7 => c"Insufficient Size",
        9 => c"Driver Not Loaded",
        10 => c"Timeout",
        12 => c"Library Not Found",
        13 => c"Function Not Found",
        15 => c"GPU is lost",
        16 => c"GPU requires restart",
        17 => c"Operating system error",
        18 => c"Driver/library version mismatch",
        _ => c"Unknown Error",
    };
    text.as_ptr()
}

#[unsafe(no_mangle)]
extern "C" fn nvmlSystemGetDriverVersion(version: *mut c_char, length: c_uint) -> nvmlReturn_t {
    library_call("nvmlSystemGetDriverVersion", |state| {
        put_string(version, length, &state.driver_version)
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlSystemGetNVMLVersion(version: *mut c_char, length: c_uint) -> nvmlReturn_t {
    library_call("nvmlSystemGetNVMLVersion", |state| {
        put_string(version, length, &state.nvml_version)
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlSystemGetCudaDriverVersion(version: Out<'_, c_int>) -> nvmlReturn_t {
    library_call("nvmlSystemGetCudaDriverVersion", |state| {
        put(version, state.cuda_version)
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlSystemGetCudaDriverVersion_v2(version: Out<'_, c_int>) -> nvmlReturn_t {
    library_call("nvmlSystemGetCudaDriverVersion_v2", |state| {
        put(version, state.cuda_version)
    })
}
