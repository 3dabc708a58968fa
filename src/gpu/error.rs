//! NVML's errors in the words of this crate.

use nvml_wrapper::error::NvmlError;

use super::{ErrorKind, LibraryError};

/// What a call answered, or nothing where the GPU or the library lacks it: a
/// function that a driver branch does not have is no fault of the GPU.
pub(super) fn supported<T>(
    call: &'static str,
    answer: Result<T, NvmlError>,
) -> Result<Option<T>, LibraryError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(error) => match failed(call, error) {
            LibraryError {
                kind: ErrorKind::NotSupported,
                ..
            } => Ok(None),
            error => Err(error),
        },
    }
}

/// An NVML error with the function that it came from.
#[expect(
    clippy::needless_pass_by_value,
    reason = "made for map_err, which gives a value"
)]
pub(super) fn failed(call: &'static str, error: NvmlError) -> LibraryError {
    let kind = match error {
        NvmlError::GpuLost => ErrorKind::GpuLost,
        NvmlError::ResetRequired => ErrorKind::ResetRequired,
        NvmlError::NotFound => ErrorKind::NotFound,
        NvmlError::NotSupported
        | NvmlError::FunctionNotFound
        | NvmlError::InvalidArg
        | NvmlError::FailedToLoadSymbol(_) => ErrorKind::NotSupported,
        NvmlError::Timeout => ErrorKind::Timeout,
        NvmlError::Uninitialized
        | NvmlError::DriverNotLoaded
        | NvmlError::LibRmVersionMismatch
        | NvmlError::LibraryNotFound => ErrorKind::Session,
        _ => ErrorKind::Other,
    };
    LibraryError {
        call,
        kind,
        message: error.to_string(),
    }
}
