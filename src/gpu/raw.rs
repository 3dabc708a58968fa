//! Calls of NVML that nvml-wrapper does not make, or not in full: fields with a
//! scope, structures with a version, and symbols that it does not ask for.
//!
//! Each is one call, safe to make, with NVML's own answer. What an answer means
//! is decided in `vitals.rs`.

#![allow(unsafe_code)]

use std::ffi::{c_int, c_uint, c_ulonglong};
use std::mem::zeroed;

use nvml_wrapper::Device;
use nvml_wrapper::error::{NvmlError, nvml_sym, nvml_try};
use nvml_wrapper_sys::bindings::{
    NVML_GPU_FABRIC_STATE_NOT_SUPPORTED, nvmlDevice_t, nvmlEccSramErrorStatus_t, nvmlFieldValue_t,
    nvmlGpuFabricInfo_t, nvmlGpuFabricInfo_v2_t, nvmlGpuFabricInfoV_t,
    nvmlReturn_enum_NVML_SUCCESS, nvmlReturn_t,
    nvmlValueType_enum_NVML_VALUE_TYPE_DOUBLE as DOUBLE,
    nvmlValueType_enum_NVML_VALUE_TYPE_SIGNED_INT as SIGNED_INT,
    nvmlValueType_enum_NVML_VALUE_TYPE_SIGNED_LONG_LONG as SIGNED_LONG_LONG,
    nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_INT as UNSIGNED_INT,
    nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_LONG as UNSIGNED_LONG,
    nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_LONG_LONG as UNSIGNED_LONG_LONG,
    nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_SHORT as UNSIGNED_SHORT,
};

use super::Fabric;

/// No `nvmlValueType_t`.
const NO_TYPE: u32 = u32::MAX;

/// A field to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Field {
    /// `NVML_FI_*`. None of 251 to 273: drivers from 580.82 on number those
    /// anew, and nothing here translates them.
    pub(super) id: u32,
    /// Which part of the GPU it is about, such as the NVLink; else 0.
    pub(super) scope: u32,
}

/// `nvmlDeviceGetFieldValues`: an answer for each field, in the same order.
pub(super) fn field_values(
    device: &Device<'_>,
    fields: &[Field],
) -> Result<Vec<Result<u64, NvmlError>>, NvmlError> {
    let get = nvml_sym(device.nvml().lib().nvmlDeviceGetFieldValues.as_ref())?;
    let mut values: Vec<_> = fields.iter().map(unanswered).collect();
    let count = c_int::try_from(values.len()).map_err(|_| NvmlError::InvalidArg)?;
    // SAFETY: the handle is of the session that `device` borrows, and `values`
    // has `count` elements.
    nvml_try(unsafe { get(handle(device), count, values.as_mut_ptr()) })?;
    Ok(values.iter().map(value).collect())
}

/// A driver does not answer a field whose return value is an error already (seen with
/// 580.159.04), so it is success. As nobody says what a driver does with a field that
/// it does not know, the value is of a type that there is none of.
fn unanswered(field: &Field) -> nvmlFieldValue_t {
    // SAFETY: a structure of integers and a union of numbers.
    let mut value: nvmlFieldValue_t = unsafe { zeroed() };
    value.fieldId = field.id;
    value.scopeId = field.scope;
    value.nvmlReturn = nvmlReturn_enum_NVML_SUCCESS;
    value.valueType = NO_TYPE;
    value
}

/// Every field that is asked for here counts something: a value below zero, or of
/// a type from the future, is none.
fn value(field: &nvmlFieldValue_t) -> Result<u64, NvmlError> {
    nvml_try(field.nvmlReturn)?;
    let kind = field.valueType;
    if kind == NO_TYPE {
        return Err(NvmlError::NotSupported);
    }
    let odd = |_| NvmlError::UnexpectedVariant(kind);
    // SAFETY: every bit pattern is a value of each of these types, and all bits of
    // the union are initialised: NVML wrote some, and `unanswered` the rest.
    unsafe {
        match kind {
            DOUBLE => Ok(field.value.dVal as u64),
            UNSIGNED_INT => Ok(field.value.uiVal.into()),
            #[allow(clippy::useless_conversion, reason = "of 32 bits elsewhere")]
            UNSIGNED_LONG => Ok(field.value.ulVal.into()),
            UNSIGNED_LONG_LONG => Ok(field.value.ullVal),
            SIGNED_LONG_LONG => field.value.sllVal.try_into().map_err(odd),
            SIGNED_INT => field.value.siVal.try_into().map_err(odd),
            UNSIGNED_SHORT => Ok(field.value.usVal.into()),
            other => Err(NvmlError::UnexpectedVariant(other)),
        }
    }
}

/// `nvmlDeviceGetSramEccErrorStatus`: whether the threshold is exceeded. For root
/// only, and from Ampere on.
pub(super) fn sram_threshold_exceeded(device: &Device<'_>) -> Result<bool, NvmlError> {
    let lib = device.nvml().lib();
    let get = nvml_sym(lib.nvmlDeviceGetSramEccErrorStatus.as_ref())?;
    // SAFETY: a structure of integers.
    let mut status: nvmlEccSramErrorStatus_t = unsafe { zeroed() };
    status.version = version::<nvmlEccSramErrorStatus_t>(1);
    // SAFETY: the handle is of the session that `device` borrows, and `status` is
    // the structure that its version names.
    nvml_try(unsafe { get(handle(device), &mut status) })?;
    Ok(status.bThresholdExceeded != 0)
}

/// `nvmlDeviceGetGpuFabricInfoV`, version 3 of its structure.
pub(super) fn fabric_v3(device: &Device<'_>) -> Result<Fabric, NvmlError> {
    fabric_of_version(device, version::<nvmlGpuFabricInfoV_t>(3))
}

/// `nvmlDeviceGetGpuFabricInfoV`, version 2 of its structure.
pub(super) fn fabric_v2(device: &Device<'_>) -> Result<Fabric, NvmlError> {
    fabric_of_version(device, version::<nvmlGpuFabricInfo_v2_t>(2))
}

fn fabric_of_version(device: &Device<'_>, version: c_uint) -> Result<Fabric, NvmlError> {
    let get = nvml_sym(device.nvml().lib().nvmlDeviceGetGpuFabricInfoV.as_ref())?;
    // SAFETY: a structure of integers.
    let mut info: nvmlGpuFabricInfoV_t = unsafe { zeroed() };
    info.version = version;
    // SAFETY: the handle is of the session that `device` borrows; `info` is the
    // structure of the latest version, which begins with those of the earlier.
    nvml_try(unsafe { get(handle(device), &mut info) })?;
    fabric(Fabric {
        state: info.state,
        status: info.status,
        health_mask: info.healthMask,
    })
}

/// `nvmlDeviceGetGpuFabricInfo`: without a version, and without a health mask.
pub(super) fn fabric_v1(device: &Device<'_>) -> Result<Fabric, NvmlError> {
    let get = nvml_sym(device.nvml().lib().nvmlDeviceGetGpuFabricInfo.as_ref())?;
    // SAFETY: a structure of integers.
    let mut info: nvmlGpuFabricInfo_t = unsafe { zeroed() };
    // SAFETY: the handle is of the session that `device` borrows, and `info` is a
    // place for the answer.
    nvml_try(unsafe { get(handle(device), &mut info) })?;
    fabric(Fabric {
        state: info.state,
        status: info.status,
        health_mask: 0,
    })
}

/// A GPU that belongs to no fabric says so in one of two ways.
fn fabric(fabric: Fabric) -> Result<Fabric, NvmlError> {
    if u32::from(fabric.state) == NVML_GPU_FABRIC_STATE_NOT_SUPPORTED {
        return Err(NvmlError::NotSupported);
    }
    Ok(fabric)
}

/// `nvmlDeviceGetCurrentClocksEventReasons`.
pub(super) fn clocks_event_reasons(device: &Device<'_>) -> Result<u64, NvmlError> {
    let lib = device.nvml().lib();
    let get = nvml_sym(lib.nvmlDeviceGetCurrentClocksEventReasons.as_ref())?;
    reasons(device, *get)
}

/// `nvmlDeviceGetCurrentClocksThrottleReasons`: the same bits, by the name that
/// they had before.
pub(super) fn clocks_throttle_reasons(device: &Device<'_>) -> Result<u64, NvmlError> {
    let lib = device.nvml().lib();
    let get = nvml_sym(lib.nvmlDeviceGetCurrentClocksThrottleReasons.as_ref())?;
    reasons(device, *get)
}

fn reasons(
    device: &Device<'_>,
    get: unsafe extern "C" fn(nvmlDevice_t, *mut c_ulonglong) -> nvmlReturn_t,
) -> Result<u64, NvmlError> {
    let mut reasons: c_ulonglong = 0;
    // SAFETY: `get` is of the session that `device` borrows and its handle is of,
    // and `reasons` is a place for the answer.
    nvml_try(unsafe { get(handle(device), &mut reasons) })?;
    Ok(reasons)
}

/// `nvmlDeviceGetNvLinkRemoteDeviceType`: one of `NVML_NVLINK_DEVICE_TYPE_*`.
/// nvml-wrapper 0.13 has the call, and answers "unknown" whatever NVML says.
pub(super) fn nvlink_remote_type(device: &Device<'_>, link: u32) -> Result<u32, NvmlError> {
    let lib = device.nvml().lib();
    let get = nvml_sym(lib.nvmlDeviceGetNvLinkRemoteDeviceType.as_ref())?;
    let mut kind = 0;
    // SAFETY: the handle is of the session that `device` borrows, and `kind` is a
    // place for the answer.
    nvml_try(unsafe { get(handle(device), link, &mut kind) })?;
    Ok(kind)
}

/// `nvmlDeviceGetTopologyCommonAncestor`: one of `NVML_TOPOLOGY_*`. nvml-wrapper's call
/// takes the other device for good.
pub(super) fn common_ancestor(device: &Device<'_>, other: &Device<'_>) -> Result<u32, NvmlError> {
    let lib = device.nvml().lib();
    let get = nvml_sym(lib.nvmlDeviceGetTopologyCommonAncestor.as_ref())?;
    let mut level = 0;
    // SAFETY: both handles are of one session, which `device` borrows, and `level` is
    // a place for the answer.
    nvml_try(unsafe { get(handle(device), handle(other), &mut level) })?;
    Ok(level)
}

fn handle(device: &Device<'_>) -> nvmlDevice_t {
    // SAFETY: every caller gives it to the session that it is of, at once.
    unsafe { device.handle() }
}

/// NVML's `NVML_STRUCT_VERSION`: size and number.
const fn version<T>(number: c_uint) -> c_uint {
    size_of::<T>() as c_uint | number << 24
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUCCESS: u32 = 0;

    fn answered(kind: u32, fill: impl FnOnce(&mut nvmlFieldValue_t)) -> nvmlFieldValue_t {
        let mut field = unanswered(&Field { id: 91, scope: 0 });
        field.nvmlReturn = SUCCESS;
        field.valueType = kind;
        fill(&mut field);
        field
    }

    #[test]
    fn a_value_is_read_as_the_type_that_it_has() {
        let short = answered(UNSIGNED_SHORT, |field| field.value.usVal = 18);
        assert_eq!(value(&short).unwrap(), 18);
        let double = answered(DOUBLE, |field| field.value.dVal = 2.0);
        assert_eq!(value(&double).unwrap(), 2);
        let long = answered(UNSIGNED_LONG_LONG, |field| field.value.ullVal = u64::MAX);
        assert_eq!(value(&long).unwrap(), u64::MAX);
    }

    #[test]
    fn a_value_that_counts_nothing_is_none() {
        let negative = answered(SIGNED_INT, |field| field.value.siVal = -1);
        assert!(value(&negative).is_err());
        let unknown = answered(99, |_| {});
        assert!(value(&unknown).is_err());
    }

    #[test]
    fn a_field_that_the_driver_leaves_alone_is_not_supported() {
        let field = unanswered(&Field { id: 230, scope: 0 });
        assert!(matches!(value(&field), Err(NvmlError::NotSupported)));
    }

    /// `NVML_STRUCT_VERSION` of nvml.h (CUDA 13), worked out by hand.
    #[test]
    fn versions_are_those_of_nvml_h() {
        assert_eq!(version::<nvmlEccSramErrorStatus_t>(1), 0x0100_0068);
        assert_eq!(version::<nvmlGpuFabricInfo_v2_t>(2), 0x0200_0024);
        assert_eq!(version::<nvmlGpuFabricInfoV_t>(3), 0x0300_0028);
    }
}
