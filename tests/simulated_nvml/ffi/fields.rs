//! Values by number, many in one call.

use std::ffi::{c_int, c_uint};

use nvml_wrapper_sys::bindings::field_id::{
    NVML_FI_DEV_ECC_CURRENT, NVML_FI_DEV_ECC_DBE_AGG_TOTAL, NVML_FI_DEV_ECC_DBE_VOL_TOTAL,
    NVML_FI_DEV_ECC_PENDING, NVML_FI_DEV_ECC_SBE_AGG_TOTAL, NVML_FI_DEV_ECC_SBE_VOL_TOTAL,
    NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, NVML_FI_DEV_NVLINK_GET_SPEED,
    NVML_FI_DEV_NVLINK_GET_STATE, NVML_FI_DEV_NVLINK_LINK_COUNT,
    NVML_FI_DEV_NVSWITCH_CONNECTED_LINK_COUNT, NVML_FI_DEV_REMAPPED_COR,
    NVML_FI_DEV_REMAPPED_FAILURE, NVML_FI_DEV_REMAPPED_PENDING, NVML_FI_DEV_REMAPPED_UNC,
    NVML_FI_DEV_RETIRED_DBE, NVML_FI_DEV_RETIRED_PENDING, NVML_FI_DEV_RETIRED_SBE,
};
use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlFieldValue_t,
    nvmlMemoryErrorType_enum_NVML_MEMORY_ERROR_TYPE_CORRECTED as CORRECTED,
    nvmlMemoryErrorType_enum_NVML_MEMORY_ERROR_TYPE_UNCORRECTED as UNCORRECTED, nvmlReturn_t,
    nvmlValue_t, nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_INT as UNSIGNED_INT,
    nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_LONG_LONG as UNSIGNED_LONG_LONG, nvmlValueType_t,
};

use super::args::array;
use super::call::{Device, Reach, device_call};
use super::memory::{ecc_errors_of, remapped_rows, retired_pages};
use super::topology::{is_up, nvlink};
use crate::state::{Gpu, Return};

/// A field's type and value.
type Value = (nvmlValueType_t, u64);

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetFieldValues(
    device: nvmlDevice_t,
    count: c_int,
    values: *mut nvmlFieldValue_t,
) -> nvmlReturn_t {
    device_call(
        "nvmlDeviceGetFieldValues",
        Reach::Device,
        device,
        |device| {
            let count = usize::try_from(count).map_err(|_| Return::InvalidArgument)?;
            device.whole()?;
            for value in array(values, count)? {
                // Each field has a return value of its own, and one that is an error
                // before is not asked for: so does the driver 580.159.04.
                if value.nvmlReturn != Return::Success as nvmlReturn_t {
                    continue;
                }
                let outcome = field(device, value.fieldId, value.scopeId);
                value.nvmlReturn = outcome.err().unwrap_or(Return::Success) as nvmlReturn_t;
                if let Ok((kind, number)) = outcome {
                    value.valueType = kind;
                    value.value = nvmlValue_t { ullVal: number };
                }
            }
            Ok(())
        },
    )
}

/// A field of a GPU, or of the part of it that is its scope.
fn field(device: &Device, id: c_uint, scope: c_uint) -> Result<Value, Return> {
    let gpu = device.gpu();
    if let Some(&failure) = gpu.fail_fields.get(&id) {
        return Err(failure);
    }
    match id {
        NVML_FI_DEV_NVLINK_LINK_COUNT => {
            let links = device.state.nvlinks(device.position);
            Ok((UNSIGNED_INT, links.len() as u64))
        }
        NVML_FI_DEV_NVLINK_GET_STATE => {
            nvlink(device, scope)?;
            Ok((UNSIGNED_INT, is_up(gpu, scope).into()))
        }
        NVML_FI_DEV_NVSWITCH_CONNECTED_LINK_COUNT => {
            let links = device.state.nvlinks(device.position);
            let to_switches = links.iter().filter(|link| link.to.is_none());
            Ok((UNSIGNED_INT, to_switches.count() as u64))
        }
        NVML_FI_DEV_NVLINK_GET_SPEED => Ok((UNSIGNED_INT, nvlink(device, scope)?.speed())),
        NVML_FI_DEV_GET_GPU_RECOVERY_ACTION => match gpu.recovery_action {
            Some(action) => Ok((UNSIGNED_INT, action.into())),
            None => Err(Return::InvalidArgument),
        },
        other => Ok((UNSIGNED_LONG_LONG, of_memory(gpu, other)?)),
    }
}

fn of_memory(gpu: &Gpu, id: c_uint) -> Result<u64, Return> {
    match id {
        NVML_FI_DEV_REMAPPED_COR => Ok(remapped_rows(gpu)?.correctable.into()),
        NVML_FI_DEV_REMAPPED_UNC => Ok(remapped_rows(gpu)?.uncorrectable.into()),
        NVML_FI_DEV_REMAPPED_PENDING => Ok(remapped_rows(gpu)?.pending.into()),
        NVML_FI_DEV_REMAPPED_FAILURE => Ok(remapped_rows(gpu)?.failure.into()),
        NVML_FI_DEV_RETIRED_SBE => Ok(retired_pages(gpu)?.single_bit.into()),
        NVML_FI_DEV_RETIRED_DBE => Ok(retired_pages(gpu)?.double_bit.into()),
        NVML_FI_DEV_RETIRED_PENDING => Ok(retired_pages(gpu)?.pending.into()),
        NVML_FI_DEV_ECC_CURRENT | NVML_FI_DEV_ECC_PENDING => Ok(gpu.ecc.enabled.into()),
        NVML_FI_DEV_ECC_SBE_VOL_TOTAL | NVML_FI_DEV_ECC_SBE_AGG_TOTAL => {
            ecc_errors_of(gpu, CORRECTED)
        }
        NVML_FI_DEV_ECC_DBE_VOL_TOTAL | NVML_FI_DEV_ECC_DBE_AGG_TOTAL => {
            ecc_errors_of(gpu, UNCORRECTED)
        }
        other => gpu.fields.get(&other).copied().ok_or(Return::NotSupported),
    }
}
