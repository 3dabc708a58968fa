//! What a device is: answered from the driver's memory, of a lost GPU too.

use std::ffi::{c_char, c_int, c_uint};

use nvml_wrapper_sys::bindings::{
    NVML_DEVICE_ARCH_AMPERE, NVML_DEVICE_ARCH_BLACKWELL, NVML_DEVICE_ARCH_HOPPER,
    NVML_DEVICE_ARCH_TURING, NVML_DEVICE_ARCH_UNKNOWN, NVML_DEVICE_ARCH_VOLTA,
    nvmlBrandType_enum_NVML_BRAND_NVIDIA, nvmlBrandType_t, nvmlDevice_t, nvmlDeviceArchitecture_t,
    nvmlPciInfo_t, nvmlReturn_t,
};

use super::args::{Answer, Out, chars, put, put_both, put_string};
use super::call::{Device, Reach, device_call};
use crate::state::{Gpu, PciAddress, Return};

/// An H200's, device in the upper half and vendor in the lower.
const PCI_DEVICE_ID: c_uint = 0x2335_10de;
const PCI_SUBSYSTEM_ID: c_uint = 0x18bf_10de;
/// A third-generation NVSwitch's, likewise.
const NVSWITCH_PCI_IDS: (c_uint, c_uint) = (0x22a3_10de, 0x1796_10de);

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetUUID(
    device: nvmlDevice_t,
    uuid: *mut c_char,
    length: c_uint,
) -> nvmlReturn_t {
    device_call("nvmlDeviceGetUUID", Reach::Memory, device, |device| {
        let of_mig = device.mig().map(|mig| &mig.uuid);
        put_string(uuid, length, of_mig.unwrap_or(&device.gpu().uuid))
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetName(
    device: nvmlDevice_t,
    name: *mut c_char,
    length: c_uint,
) -> nvmlReturn_t {
    device_call("nvmlDeviceGetName", Reach::Memory, device, |device| {
        let gpu = &device.gpu().name;
        match device.mig() {
            None => put_string(name, length, gpu),
            Some(mig) => put_string(name, length, &format!("{gpu} MIG {}", mig.profile)),
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetIndex(device: nvmlDevice_t, index: Out<'_, c_uint>) -> nvmlReturn_t {
    device_call("nvmlDeviceGetIndex", Reach::Memory, device, |device| {
        let of_gpu = || {
            let mut enumerated = device.state.enumerated();
            enumerated.position(|(position, _)| position == device.position)
        };
        let found = device.mig_index().or_else(of_gpu).ok_or(Return::NotFound)?;
        put(index, found as c_uint)
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMinorNumber(
    device: nvmlDevice_t,
    minor: Out<'_, c_uint>,
) -> nvmlReturn_t {
    device_call(
        "nvmlDeviceGetMinorNumber",
        Reach::Memory,
        device,
        |device| put(minor, device.whole()?.minor_number),
    )
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetBrand(
    device: nvmlDevice_t,
    brand: Out<'_, nvmlBrandType_t>,
) -> nvmlReturn_t {
    device_call("nvmlDeviceGetBrand", Reach::Memory, device, |_| {
        put(brand, nvmlBrandType_enum_NVML_BRAND_NVIDIA)
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetArchitecture(
    device: nvmlDevice_t,
    architecture: Out<'_, nvmlDeviceArchitecture_t>,
) -> nvmlReturn_t {
    device_call(
        "nvmlDeviceGetArchitecture",
        Reach::Memory,
        device,
        |device| put(architecture, architecture_of(device.gpu())),
    )
}

fn architecture_of(gpu: &Gpu) -> nvmlDeviceArchitecture_t {
    match gpu.compute_capability {
        (7, 0..=2) => NVML_DEVICE_ARCH_VOLTA,
        (7, _) => NVML_DEVICE_ARCH_TURING,
        (8, _) => NVML_DEVICE_ARCH_AMPERE,
        (9, _) => NVML_DEVICE_ARCH_HOPPER,
        (10..=12, _) => NVML_DEVICE_ARCH_BLACKWELL,
        _ => NVML_DEVICE_ARCH_UNKNOWN,
    }
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetCudaComputeCapability(
    device: nvmlDevice_t,
    major: Out<'_, c_int>,
    minor: Out<'_, c_int>,
) -> nvmlReturn_t {
    let function = "nvmlDeviceGetCudaComputeCapability";
    device_call(function, Reach::Memory, device, |device| {
        put_both(major, minor, device.whole()?.compute_capability)
    })
}

/// No machine that we know has an answer, hence sysfs.
#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetNumaNodeId(
    device: nvmlDevice_t,
    _node: Out<'_, c_uint>,
) -> nvmlReturn_t {
    device_call("nvmlDeviceGetNumaNodeId", Reach::Memory, device, |_| {
        Err(Return::NotSupported)
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetPciInfo_v2(
    device: nvmlDevice_t,
    info: Out<'_, nvmlPciInfo_t>,
) -> nvmlReturn_t {
    device_call("nvmlDeviceGetPciInfo_v2", Reach::Memory, device, |device| {
        put_pci_info(device, info)
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetPciInfo_v3(
    device: nvmlDevice_t,
    info: Out<'_, nvmlPciInfo_t>,
) -> nvmlReturn_t {
    device_call("nvmlDeviceGetPciInfo_v3", Reach::Memory, device, |device| {
        put_pci_info(device, info)
    })
}

fn put_pci_info(device: &Device, info: Out<'_, nvmlPciInfo_t>) -> Answer {
    put(info, pci_info(device.whole()?)?)
}

/// Where a GPU sits.
pub(super) fn pci_info(gpu: &Gpu) -> Result<nvmlPciInfo_t, Return> {
    let address = gpu.pci_address().ok_or(Return::Unknown)?;
    Ok(pci_info_at(address, (PCI_DEVICE_ID, PCI_SUBSYSTEM_ID)))
}

/// Where an NVSwitch sits: one stands for all of the node.
pub(super) fn nvswitch_pci_info() -> nvmlPciInfo_t {
    let address = PciAddress {
        domain: 0,
        bus: 0x05,
        device: 0,
    };
    pci_info_at(address, NVSWITCH_PCI_IDS)
}

/// An address in NVML's two spellings.
fn pci_info_at(address: PciAddress, ids: (c_uint, c_uint)) -> nvmlPciInfo_t {
    let PciAddress {
        domain,
        bus,
        device,
    } = address;
    nvmlPciInfo_t {
        busIdLegacy: chars(&format!("{domain:04X}:{bus:02X}:{device:02X}.0")),
        domain,
        bus: bus.into(),
        device: device.into(),
        pciDeviceId: ids.0,
        pciSubSystemId: ids.1,
        busId: chars(&format!("{domain:08X}:{bus:02X}:{device:02X}.0")),
    }
}
