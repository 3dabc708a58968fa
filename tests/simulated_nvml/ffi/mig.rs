//! Multi-Instance GPU: the mode, the MIG devices, and the instances below them.

use std::ffi::{c_uint, c_ulonglong};
use std::sync::Arc;

use nvml_wrapper_sys::bindings::{
    NVML_GPU_INSTANCE_PROFILE_1_SLICE, NVML_GPU_INSTANCE_PROFILE_1_SLICE_ALL_ME,
    NVML_GPU_INSTANCE_PROFILE_1_SLICE_GFX, NVML_GPU_INSTANCE_PROFILE_1_SLICE_NO_ME,
    NVML_GPU_INSTANCE_PROFILE_1_SLICE_REV1, NVML_GPU_INSTANCE_PROFILE_2_SLICE,
    NVML_GPU_INSTANCE_PROFILE_3_SLICE, NVML_GPU_INSTANCE_PROFILE_4_SLICE,
    NVML_GPU_INSTANCE_PROFILE_7_SLICE, nvmlComputeInstance_t, nvmlComputeInstanceInfo_t,
    nvmlComputeInstancePlacement_t, nvmlComputeInstanceProfileInfo_t, nvmlDevice_t,
    nvmlDeviceAttributes_t, nvmlGpuInstance_t, nvmlGpuInstanceInfo_t, nvmlGpuInstancePlacement_t,
    nvmlGpuInstanceProfileInfo_t, nvmlReturn_t,
};

use super::args::{Out, put, put_both};
use super::call::{Device, GpuInstanceKey, LIBRARY, Reach, device_call, library_call};
use crate::state::{Gpu, MigInstance, Return, State};

/// The most MIG devices of an H200.
const MAX_MIG_DEVICES: usize = 7;

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMigMode(
    device: nvmlDevice_t,
    current: Out<'_, c_uint>,
    pending: Out<'_, c_uint>,
) -> nvmlReturn_t {
    device_call("nvmlDeviceGetMigMode", Reach::Device, device, |device| {
        let enabled = device.whole()?.mig.enabled.into();
        put_both(current, pending, (enabled, enabled))
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMaxMigDeviceCount(
    device: nvmlDevice_t,
    count: Out<'_, c_uint>,
) -> nvmlReturn_t {
    let function = "nvmlDeviceGetMaxMigDeviceCount";
    device_call(function, Reach::Device, device, |device| {
        let mig = &device.whole()?.mig;
        let most = mig.instances.len().max(MAX_MIG_DEVICES);
        put(count, if mig.enabled { most as c_uint } else { 0 })
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMigDeviceHandleByIndex(
    device: nvmlDevice_t,
    index: c_uint,
    mig_device: Out<'_, nvmlDevice_t>,
) -> nvmlReturn_t {
    let function = "nvmlDeviceGetMigDeviceHandleByIndex";
    device_call(function, Reach::Device, device, |device| {
        let mig = &device.whole()?.mig;
        let instance = mig.instances.get(index as usize);
        let instance = instance.filter(|_| mig.enabled).ok_or(Return::NotFound)?;
        put(mig_device, LIBRARY.device_handle(&instance.uuid))
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceIsMigDeviceHandle(
    device: nvmlDevice_t,
    is_mig: Out<'_, c_uint>,
) -> nvmlReturn_t {
    let function = "nvmlDeviceIsMigDeviceHandle";
    device_call(function, Reach::Memory, device, |device| {
        put(is_mig, device.mig().is_some().into())
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetDeviceHandleFromMigDeviceHandle(
    mig_device: nvmlDevice_t,
    device: Out<'_, nvmlDevice_t>,
) -> nvmlReturn_t {
    let function = "nvmlDeviceGetDeviceHandleFromMigDeviceHandle";
    device_call(function, Reach::Memory, mig_device, |mig_device| {
        mig_device.mig().ok_or(Return::InvalidArgument)?;
        put(device, LIBRARY.device_handle(&mig_device.gpu().uuid))
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetGpuInstanceId(
    device: nvmlDevice_t,
    id: Out<'_, c_uint>,
) -> nvmlReturn_t {
    device_call(
        "nvmlDeviceGetGpuInstanceId",
        Reach::Memory,
        device,
        |device| {
            let mig = device.mig().ok_or(Return::InvalidArgument)?;
            put(id, mig.gpu_instance_id)
        },
    )
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetComputeInstanceId(
    device: nvmlDevice_t,
    id: Out<'_, c_uint>,
) -> nvmlReturn_t {
    let function = "nvmlDeviceGetComputeInstanceId";
    device_call(function, Reach::Memory, device, |device| {
        let mig = device.mig().ok_or(Return::InvalidArgument)?;
        put(id, mig.compute_instance_id)
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetAttributes_v2(
    device: nvmlDevice_t,
    attributes: Out<'_, nvmlDeviceAttributes_t>,
) -> nvmlReturn_t {
    device_call(
        "nvmlDeviceGetAttributes_v2",
        Reach::Device,
        device,
        |device| {
            let mig = device.mig().ok_or(Return::NotSupported)?;
            let (compute, gpu) = mig.slices().ok_or(Return::Unknown)?;
            put(
                attributes,
                nvmlDeviceAttributes_t {
                    multiprocessorCount: multiprocessors(compute),
                    sharedCopyEngineCount: gpu,
                    sharedDecoderCount: gpu,
                    sharedEncoderCount: 0,
                    sharedJpegCount: gpu,
                    sharedOfaCount: 0,
                    gpuInstanceSliceCount: gpu,
                    computeInstanceSliceCount: compute,
                    memorySizeMB: mebibytes(mig),
                },
            )
        },
    )
}

// NVIDIA's plugin walks from a MIG device to its two instances, to name its
// profile. A profile's ID is its number here: both are opaque to callers.

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetGpuInstanceById(
    device: nvmlDevice_t,
    id: c_uint,
    instance: Out<'_, nvmlGpuInstance_t>,
) -> nvmlReturn_t {
    device_call(
        "nvmlDeviceGetGpuInstanceById",
        Reach::Device,
        device,
        |device| {
            let gpu = device.whole()?;
            let known = gpu.mig.instances.iter();
            let mut known = known.filter(|mig| mig.gpu_instance_id == id);
            known.next().ok_or(Return::NotFound)?;
            put(
                instance,
                LIBRARY.gpu_instance_handle((gpu.uuid.clone(), id)),
            )
        },
    )
}

#[unsafe(no_mangle)]
extern "C" fn nvmlGpuInstanceGetInfo(
    instance: nvmlGpuInstance_t,
    info: Out<'_, nvmlGpuInstanceInfo_t>,
) -> nvmlReturn_t {
    library_call("nvmlGpuInstanceGetInfo", |state| {
        let found = GpuInstance::find(state, LIBRARY.gpu_instance(instance))?;
        let any = found.any()?;
        let (_, slices) = any.slices().ok_or(Return::Unknown)?;
        put(
            info,
            nvmlGpuInstanceInfo_t {
                device: LIBRARY.device_handle(&found.gpu().uuid),
                id: found.id,
                profileId: gpu_profile(any)?,
                placement: nvmlGpuInstancePlacement_t {
                    start: 0,
                    size: slices,
                },
            },
        )
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlGpuInstanceGetComputeInstanceById(
    instance: nvmlGpuInstance_t,
    id: c_uint,
    compute_instance: Out<'_, nvmlComputeInstance_t>,
) -> nvmlReturn_t {
    library_call("nvmlGpuInstanceGetComputeInstanceById", |state| {
        let found = GpuInstance::find(state, LIBRARY.gpu_instance(instance))?;
        found.compute_instance(id)?;
        let key = (found.gpu().uuid.clone(), found.id);
        put(compute_instance, LIBRARY.compute_instance_handle((key, id)))
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlComputeInstanceGetInfo_v2(
    instance: nvmlComputeInstance_t,
    info: Out<'_, nvmlComputeInstanceInfo_t>,
) -> nvmlReturn_t {
    library_call("nvmlComputeInstanceGetInfo_v2", |state| {
        let known = LIBRARY.compute_instance(instance);
        let (key, id) = known.ok_or(Return::InvalidArgument)?;
        let found = GpuInstance::find(state, Some(key.clone()))?;
        let (slices, _) = found
            .compute_instance(id)?
            .slices()
            .ok_or(Return::Unknown)?;
        put(
            info,
            nvmlComputeInstanceInfo_t {
                device: LIBRARY.device_handle(&found.gpu().uuid),
                gpuInstance: LIBRARY.gpu_instance_handle(key),
                id,
                profileId: slice_profile(slices)?,
                placement: nvmlComputeInstancePlacement_t {
                    start: 0,
                    size: slices,
                },
            },
        )
    })
}

/// Profiles that no instance has are not described.
#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetGpuInstanceProfileInfo(
    device: nvmlDevice_t,
    profile: c_uint,
    info: Out<'_, nvmlGpuInstanceProfileInfo_t>,
) -> nvmlReturn_t {
    let function = "nvmlDeviceGetGpuInstanceProfileInfo";
    device_call(function, Reach::Device, device, |device| {
        let mut instances = device.whole()?.mig.instances.iter();
        let has = |mig: &&MigInstance| gpu_profile(mig) == Ok(profile);
        let mig = instances.find(has).ok_or(Return::NotSupported)?;
        let (_, slices) = mig.slices().ok_or(Return::Unknown)?;
        put(
            info,
            nvmlGpuInstanceProfileInfo_t {
                id: profile,
                isP2pSupported: 0,
                sliceCount: slices,
                instanceCount: MAX_MIG_DEVICES as c_uint / slices.max(1),
                multiprocessorCount: multiprocessors(slices),
                copyEngineCount: slices,
                decoderCount: slices,
                encoderCount: 0,
                jpegCount: slices,
                ofaCount: 0,
                memorySizeMB: mebibytes(mig),
            },
        )
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlGpuInstanceGetComputeInstanceProfileInfo(
    instance: nvmlGpuInstance_t,
    profile: c_uint,
    _engine_profile: c_uint,
    info: Out<'_, nvmlComputeInstanceProfileInfo_t>,
) -> nvmlReturn_t {
    library_call("nvmlGpuInstanceGetComputeInstanceProfileInfo", |state| {
        let found = GpuInstance::find(state, LIBRARY.gpu_instance(instance))?;
        let slices = (1..=MAX_MIG_DEVICES as u32).find(|&n| slice_profile(n) == Ok(profile));
        let slices = slices.ok_or(Return::NotSupported)?;
        let (_, of) = found.any()?.slices().ok_or(Return::Unknown)?;
        put(
            info,
            nvmlComputeInstanceProfileInfo_t {
                id: profile,
                sliceCount: slices,
                instanceCount: of / slices,
                multiprocessorCount: multiprocessors(slices),
                sharedCopyEngineCount: of,
                sharedDecoderCount: of,
                sharedEncoderCount: 0,
                sharedJpegCount: of,
                sharedOfaCount: 0,
            },
        )
    })
}

/// A GPU instance that exists.
struct GpuInstance {
    device: Device,
    id: u32,
}

impl GpuInstance {
    fn find(state: &Arc<State>, key: Option<GpuInstanceKey>) -> Result<Self, Return> {
        let (uuid, id) = key.ok_or(Return::InvalidArgument)?;
        let device = Device::find(state, &uuid).ok_or(Return::GpuIsLost)?;
        if device.gpu().lost || device.gpu().vanished {
            return Err(Return::GpuIsLost);
        }
        Ok(Self { device, id })
    }

    fn gpu(&self) -> &Gpu {
        self.device.gpu()
    }

    fn compute_instances(&self) -> impl Iterator<Item = &MigInstance> {
        let instances = self.gpu().mig.instances.iter();
        instances.filter(|mig| mig.gpu_instance_id == self.id)
    }

    /// One of the MIG devices in it: all tell the same about it.
    fn any(&self) -> Result<&MigInstance, Return> {
        self.compute_instances().next().ok_or(Return::NotFound)
    }

    fn compute_instance(&self, id: u32) -> Result<&MigInstance, Return> {
        self.compute_instances()
            .find(|mig| mig.compute_instance_id == id)
            .ok_or(Return::NotFound)
    }
}

/// NVML's number of a GPU instance's profile. The attributes of one-slice and
/// two-slice profiles come in pairs of numbers.
fn gpu_profile(mig: &MigInstance) -> Result<c_uint, Return> {
    let (_, slices) = mig.slices().ok_or(Return::Unknown)?;
    let name = mig.profile.as_str();
    let first = match () {
        () if name.ends_with("+me") => NVML_GPU_INSTANCE_PROFILE_1_SLICE_REV1,
        () if name.ends_with("+me.all") => NVML_GPU_INSTANCE_PROFILE_1_SLICE_ALL_ME,
        () if name.ends_with("+gfx") => NVML_GPU_INSTANCE_PROFILE_1_SLICE_GFX,
        () if name.ends_with("-me") => NVML_GPU_INSTANCE_PROFILE_1_SLICE_NO_ME,
        () => return slice_profile(slices),
    };
    Ok(first + slice_profile(slices)?)
}

/// NVML's number of a plain profile, of GPU and of compute instances alike.
fn slice_profile(slices: u32) -> Result<c_uint, Return> {
    match slices {
        1 => Ok(NVML_GPU_INSTANCE_PROFILE_1_SLICE),
        2 => Ok(NVML_GPU_INSTANCE_PROFILE_2_SLICE),
        3 => Ok(NVML_GPU_INSTANCE_PROFILE_3_SLICE),
        4 => Ok(NVML_GPU_INSTANCE_PROFILE_4_SLICE),
        7 => Ok(NVML_GPU_INSTANCE_PROFILE_7_SLICE),
        _ => Err(Return::NotSupported),
    }
}

/// A slice of an H200 has 16 of its 132.
fn multiprocessors(slices: u32) -> c_uint {
    slices * 16
}

fn mebibytes(mig: &MigInstance) -> c_ulonglong {
    mig.memory_bytes >> 20
}
