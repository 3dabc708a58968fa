//! MIG devices, as NVML enumerates them below a GPU.
//!
//! nvml-wrapper has a handle for a MIG device and wraps neither the IDs of its
//! instances nor their profiles, so those calls are made here, on the raw
//! interface.

#![allow(unsafe_code)]

use std::ffi::c_uint;
use std::mem::zeroed;

use nvml_wrapper::error::{NvmlError, nvml_sym, nvml_try};
use nvml_wrapper::{Device, Nvml};
use nvml_wrapper_sys::bindings::{
    NVML_DEVICE_MIG_ENABLE, NVML_GPU_INSTANCE_PROFILE_1_SLICE_ALL_ME,
    NVML_GPU_INSTANCE_PROFILE_1_SLICE_GFX, NVML_GPU_INSTANCE_PROFILE_1_SLICE_NO_ME,
    NVML_GPU_INSTANCE_PROFILE_1_SLICE_REV1, NVML_GPU_INSTANCE_PROFILE_2_SLICE_ALL_ME,
    NVML_GPU_INSTANCE_PROFILE_2_SLICE_GFX, NVML_GPU_INSTANCE_PROFILE_2_SLICE_NO_ME,
    NVML_GPU_INSTANCE_PROFILE_2_SLICE_REV1, NVML_GPU_INSTANCE_PROFILE_4_SLICE_GFX, nvmlDevice_t,
};

use super::error::{failed, supported};
use super::{ErrorKind, GpuUuid, LibraryError, MigDevice};

/// What the name of a profile ends with beside its slices and memory, by NVML's
/// number of the profile: media engines, all of them or none, and graphics.
const ATTRIBUTES: [(u32, &str); 9] = [
    (NVML_GPU_INSTANCE_PROFILE_1_SLICE_REV1, "+me"),
    (NVML_GPU_INSTANCE_PROFILE_2_SLICE_REV1, "+me"),
    (NVML_GPU_INSTANCE_PROFILE_1_SLICE_ALL_ME, "+me.all"),
    (NVML_GPU_INSTANCE_PROFILE_2_SLICE_ALL_ME, "+me.all"),
    (NVML_GPU_INSTANCE_PROFILE_1_SLICE_GFX, "+gfx"),
    (NVML_GPU_INSTANCE_PROFILE_2_SLICE_GFX, "+gfx"),
    (NVML_GPU_INSTANCE_PROFILE_4_SLICE_GFX, "+gfx"),
    (NVML_GPU_INSTANCE_PROFILE_1_SLICE_NO_ME, "-me"),
    (NVML_GPU_INSTANCE_PROFILE_2_SLICE_NO_ME, "-me"),
];

/// Memory is dealt out to GPU instances in so many parts.
const PARTS: u64 = 8;

/// A GPU whose MIG devices are read.
pub(super) struct Parent<'a> {
    pub(super) nvml: &'a Nvml,
    pub(super) device: &'a Device<'a>,
    pub(super) uuid: &'a GpuUuid,
    /// Total memory in bytes.
    pub(super) memory: Option<u64>,
}

impl Parent<'_> {
    /// Its MIG devices by index; `None` where it is not in MIG mode.
    ///
    /// # Errors
    ///
    /// The GPU failed. A device that goes while it is read is left out.
    pub(super) fn read(&self) -> Result<Option<Vec<MigDevice>>, LibraryError> {
        let mode = supported("nvmlDeviceGetMigMode", self.device.mig_mode())?;
        if mode.is_none_or(|mode| mode.current != NVML_DEVICE_MIG_ENABLE) {
            return Ok(None);
        }
        let count = supported(
            "nvmlDeviceGetMaxMigDeviceCount",
            self.device.mig_device_count(),
        )?;
        let mut devices = Vec::new();
        for index in 0..count.unwrap_or_default() {
            match self.read_device(index) {
                Ok(device) => devices.push(device),
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Some(devices))
    }

    fn read_device(&self, index: u32) -> Result<MigDevice, LibraryError> {
        let device = self.device.mig_device_by_index(index);
        let device =
            device.map_err(|error| failed("nvmlDeviceGetMigDeviceHandleByIndex", error))?;
        let uuid = device
            .uuid()
            .map_err(|error| failed("nvmlDeviceGetUUID", error))?;
        let attributes = device
            .attributes()
            .map_err(|error| failed("nvmlDeviceGetAttributes_v2", error))?;
        let gpu_instance_id = self.gpu_instance_id(&device)?;
        let memory_bytes = attributes.memory_size_mb << 20;
        let slices = Slices {
            compute: attributes.compute_instance_slice_count,
            gpu: attributes.gpu_instance_slice_count,
        };
        let attributes = self.profile_attributes(gpu_instance_id);
        Ok(MigDevice {
            uuid,
            parent_uuid: self.uuid.clone(),
            index,
            gpu_instance_id,
            compute_instance_id: self.compute_instance_id(&device)?,
            profile: profile(slices, gigabytes(memory_bytes, self.memory), attributes),
            memory_bytes,
        })
    }

    fn gpu_instance_id(&self, device: &Device<'_>) -> Result<u32, LibraryError> {
        let get = nvml_sym(self.nvml.lib().nvmlDeviceGetGpuInstanceId.as_ref());
        id_by(device, get.copied()).map_err(|error| failed("nvmlDeviceGetGpuInstanceId", error))
    }

    fn compute_instance_id(&self, device: &Device<'_>) -> Result<u32, LibraryError> {
        let get = nvml_sym(self.nvml.lib().nvmlDeviceGetComputeInstanceId.as_ref());
        id_by(device, get.copied()).map_err(|error| failed("nvmlDeviceGetComputeInstanceId", error))
    }

    /// What the name of the GPU instance's profile ends with. Only a privileged
    /// process may ask; another one knows the profile without.
    fn profile_attributes(&self, gpu_instance_id: u32) -> &'static str {
        let Ok(profile) = self.profile_id(gpu_instance_id) else {
            return "";
        };
        let same = |(number, _): &&(u32, _)| self.profile_id_of(*number) == Ok(profile);
        let known = ATTRIBUTES.iter().find(same);
        known.map_or("", |(_, attributes)| attributes)
    }

    /// The ID of the profile that a GPU instance was made with.
    fn profile_id(&self, gpu_instance_id: u32) -> Result<u32, NvmlError> {
        let library = self.nvml.lib();
        let by_id = nvml_sym(library.nvmlDeviceGetGpuInstanceById.as_ref())?;
        let get_info = nvml_sym(library.nvmlGpuInstanceGetInfo.as_ref())?;
        // SAFETY: the handles are used while the session that gave them lives;
        // a handle, and a struct of integers and a handle, may be zeros.
        unsafe {
            let (mut instance, mut info) = (zeroed(), zeroed());
            nvml_try(by_id(self.device.handle(), gpu_instance_id, &mut instance))?;
            nvml_try(get_info(instance, &mut info))?;
            Ok(info.profileId)
        }
    }

    /// The ID that the profile of this number has on this GPU.
    fn profile_id_of(&self, number: u32) -> Result<u32, ErrorKind> {
        let get = nvml_sym(self.nvml.lib().nvmlDeviceGetGpuInstanceProfileInfo.as_ref());
        let told = get.and_then(|get| {
            // SAFETY: the handle is used while the session that gave it lives;
            // a struct of integers may be zeros.
            unsafe {
                let mut info = zeroed();
                nvml_try(get(self.device.handle(), number, &mut info))?;
                Ok(info.id)
            }
        });
        told.map_err(|error| failed("nvmlDeviceGetGpuInstanceProfileInfo", error).kind)
    }
}

fn id_by(
    device: &Device<'_>,
    get: Result<unsafe extern "C" fn(nvmlDevice_t, *mut c_uint) -> c_uint, NvmlError>,
) -> Result<u32, NvmlError> {
    let (get, mut id) = (get?, 0);
    // SAFETY: the handle is used while the session that gave it lives, and `id`
    // is a place for one number.
    nvml_try(unsafe { get(device.handle(), &mut id) })?;
    Ok(id)
}

/// NVML's indexes have gaps, and an administrator may take a device away at any
/// time.
fn is_gone(error: &LibraryError) -> bool {
    matches!(error.kind, ErrorKind::NotFound | ErrorKind::NotSupported)
}

#[derive(Clone, Copy)]
struct Slices {
    compute: u32,
    gpu: u32,
}

/// A profile's name as nvidia-smi has it: `1g.18gb`, or `1c.2g.35gb` where the
/// compute instance is a part of its GPU instance.
fn profile(slices: Slices, gigabytes: u64, attributes: &str) -> String {
    let Slices { compute, gpu } = slices;
    let part = if compute == gpu {
        String::new()
    } else {
        format!("{compute}c.")
    };
    format!("{part}{gpu}g.{gigabytes}gb{attributes}")
}

/// The memory in a profile's name: that of as many eighths of the GPU's as come
/// nearest to what the instance has, which is a little less.
fn gigabytes(memory: u64, of: Option<u64>) -> u64 {
    let Some(of) = of.filter(|of| *of > 0) else {
        return memory.div_ceil(1 << 30);
    };
    let rounded = |a: u64, b: u64| (a + b / 2) / b;
    let parts = rounded(memory.saturating_mul(PARTS), of);
    rounded(parts * of.div_ceil(1 << 30), PARTS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_named_as_nvidia_smi_names_it() {
        let named = |compute, gpu, attributes| profile(Slices { compute, gpu }, 20, attributes);
        assert_eq!(named(2, 2, ""), "2g.20gb");
        assert_eq!(named(1, 2, ""), "1c.2g.20gb");
        assert_eq!(named(1, 1, "+me"), "1g.20gb+me");
    }

    #[test]
    fn its_memory_is_counted_in_eighths_of_the_gpus() {
        let mebibytes = |mebibytes: u64| mebibytes << 20;
        // Of an A100 with 40 GB, an H100 with 80 GB, an H200.
        for (instance, whole, expected) in [
            (4864, 40960, 5),
            (9856, 40960, 10),
            (19968, 40960, 20),
            (9984, 81559, 10),
            (20096, 81559, 20),
            (40448, 81559, 40),
            (81152, 81559, 80),
            (16384, 143_771, 18),
            (143_771, 143_771, 141),
        ] {
            let found = gigabytes(mebibytes(instance), Some(mebibytes(whole)));
            assert_eq!(found, expected, "{instance} of {whole}");
        }
        assert_eq!(gigabytes(mebibytes(4864), None), 5);
    }
}
