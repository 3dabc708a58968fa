//! [`GpuLibrary`] over NVML, through nvml-wrapper.
//!
//! Function names in errors are those of NVML's manual
//! (<https://docs.nvidia.com/deploy/nvml-api/>).

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nvml_wrapper::Device;
use nvml_wrapper::error::NvmlError;

use super::error::{failed, supported};
use super::events::NvmlEvents;
use super::links;
use super::loader::{Loader, Session};
use super::mig::Parent;
use super::topology::{Place, Topology};
use super::vitals::{self, Memory};
use super::{
    ComputeCapability, EventSource, Gpu, GpuLibrary, GpuUuid, LibraryError, OpenError, Reading,
    Vitals,
};

/// The name by which the loader finds NVML.
const SONAME: &str = "libnvidia-ml.so.1";

/// A session with NVML.
pub struct NvmlLibrary {
    nvml: Arc<Session>,
    sysfs: PathBuf,
    /// What spares the next probe calls. A GPU's is forgotten when it is read, and
    /// when a probe fails.
    memories: Mutex<HashMap<GpuUuid, Memory>>,
}

impl NvmlLibrary {
    /// Has `loader` load `library` (or ask the system's for `libnvidia-ml.so.1`) and
    /// initialise it. `module` is the loaded kernel module's version, for the
    /// error; `sysfs` is where sysfs is mounted.
    ///
    /// # Errors
    ///
    /// See [`OpenError`]: each variant is one thing that an operator can mend.
    pub fn open(
        loader: &Loader,
        library: Option<&Path>,
        sysfs: &Path,
        module: Option<String>,
    ) -> Result<Self, OpenError> {
        let path = library.map_or_else(|| OsString::from(SONAME), |path| path.as_os_str().into());
        let name = path.to_string_lossy().into_owned();
        let nvml = loader
            .init(&path, module.as_deref())
            .map_err(|error| match error {
                NvmlError::LibloadingError(error) => OpenError::NoLibrary(error.to_string()),
                NvmlError::DriverNotLoaded => OpenError::NoDriver(name),
                NvmlError::LibRmVersionMismatch => OpenError::VersionMismatch {
                    library: name,
                    module: module.unwrap_or_else(|| "unknown".into()),
                },
                NvmlError::Unknown => OpenError::Internal(name),
                NvmlError::NoPermission => OpenError::NoPermission(name),
                error => OpenError::Failed(failed("nvmlInit_v2", error)),
            })?;
        Ok(Self {
            nvml: Arc::new(nvml),
            sysfs: sysfs.into(),
            memories: Mutex::default(),
        })
    }

    fn device(&self, uuid: &GpuUuid) -> Result<Device<'_>, LibraryError> {
        let device = self.nvml.device_by_uuid(uuid.as_str());
        device.map_err(|error| failed("nvmlDeviceGetHandleByUUID", error))
    }

    /// Held for no call: one may hang.
    fn memories(&self) -> MutexGuard<'_, HashMap<GpuUuid, Memory>> {
        self.memories.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_details(&self, device: &Device<'_>, uuid: GpuUuid) -> Result<Gpu, LibraryError> {
        let pci = device
            .pci_info()
            .map_err(|error| failed("nvmlDeviceGetPciInfo_v3", error))?;
        let minor_number = device
            .minor_number()
            .map_err(|error| failed("nvmlDeviceGetMinorNumber", error))?;
        let index = device
            .index()
            .map_err(|error| failed("nvmlDeviceGetIndex", error))?;
        let product_name = device
            .name()
            .map_err(|error| failed("nvmlDeviceGetName", error))?;
        let memory = supported("nvmlDeviceGetMemoryInfo", device.memory_info())?;
        let capability = supported(
            "nvmlDeviceGetCudaComputeCapability",
            device.cuda_compute_capability(),
        )?;
        let memory_bytes = memory.map(|memory| memory.total);
        let mig = Parent {
            nvml: &self.nvml,
            device,
            uuid: &uuid,
            memory: memory_bytes,
        };
        let mig_devices = mig.read()?;
        Ok(Gpu {
            uuid,
            index,
            minor_number,
            numa_node: numa_node(&self.sysfs, &pci.bus_id),
            pci_bus_id: pci.bus_id,
            memory_bytes,
            compute_capability: capability.and_then(|capability| {
                Some(ComputeCapability {
                    major: capability.major.try_into().ok()?,
                    minor: capability.minor.try_into().ok()?,
                })
            }),
            product_name,
            mig_enabled: mig_devices.is_some(),
            mig_devices: mig_devices.unwrap_or_default(),
        })
    }
}

impl GpuLibrary for NvmlLibrary {
    fn driver_version(&self) -> Result<String, LibraryError> {
        self.nvml
            .sys_driver_version()
            .map_err(|error| failed("nvmlSystemGetDriverVersion", error))
    }

    fn count(&self) -> Result<u32, LibraryError> {
        self.nvml
            .device_count()
            .map_err(|error| failed("nvmlDeviceGetCount_v2", error))
    }

    fn read(&self, index: u32) -> Reading {
        let device = match self.nvml.device_by_index(index) {
            Ok(device) => device,
            Err(error) => {
                let error = failed("nvmlDeviceGetHandleByIndex_v2", error);
                return Reading::Unidentified { index, error };
            }
        };
        let uuid = match device.uuid() {
            Ok(uuid) => GpuUuid::from(uuid.as_str()),
            Err(error) => {
                let error = failed("nvmlDeviceGetUUID", error);
                return Reading::Unidentified { index, error };
            }
        };
        self.memories().remove(&uuid);
        match self.read_details(&device, uuid.clone()) {
            Ok(gpu) => Reading::Gpu(gpu),
            Err(error) => Reading::Partial { uuid, index, error },
        }
    }

    fn probe(&self, uuid: &GpuUuid) -> Result<Vitals, LibraryError> {
        let device = self.device(uuid)?;
        let mut memory = self.memories().remove(uuid).unwrap_or_default();
        let vitals = vitals::read(&device, &mut memory)?;
        self.memories().insert(uuid.clone(), memory);
        Ok(vitals)
    }

    fn topology(&self, places: Vec<Place>) -> Topology {
        let devices: Vec<_> = places
            .iter()
            .map(|place| self.device(&place.uuid).ok())
            .collect();
        let nvlinks: Vec<_> = devices
            .iter()
            .map(|device| links::read(device.as_ref()?).ok())
            .collect();
        Topology::new(places, &nvlinks, |a, b| {
            links::pcie(devices[a].as_ref()?, devices[b].as_ref()?)
        })
    }

    fn events(self: Arc<Self>, gpus: &[GpuUuid]) -> Result<Box<dyn EventSource>, LibraryError> {
        let devices: Vec<_> = gpus
            .iter()
            .filter_map(|uuid| Some((uuid, self.device(uuid).ok()?)))
            .collect();
        Ok(Box::new(NvmlEvents::subscribe(
            self.nvml.clone(),
            &devices,
        )?))
    }
}

/// The NUMA node of a PCI device as sysfs tells it; none where it says -1,
/// which is how the kernel says that firmware told it nothing
/// (Documentation/ABI/testing/sysfs-bus-pci).
fn numa_node(sysfs: &Path, nvml_bus_id: &str) -> Option<u32> {
    let file = sysfs_device(sysfs, nvml_bus_id)?.join("numa_node");
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// The folder of a PCI device.
pub(super) fn sysfs_device(sysfs: &Path, nvml_bus_id: &str) -> Option<PathBuf> {
    let address = sysfs_address(nvml_bus_id)?;
    Some(sysfs.join("bus/pci/devices").join(address))
}

/// sysfs' form of a PCI address: NVML writes the domain with eight digits and
/// capitals, the kernel with four and in lower case.
fn sysfs_address(nvml_bus_id: &str) -> Option<String> {
    let (domain, rest) = nvml_bus_id.split_once(':')?;
    let domain = u32::from_str_radix(domain, 16).ok()?;
    Some(format!("{domain:04x}:{}", rest.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bus_ids_are_written_as_sysfs_writes_them() {
        assert_eq!(
            sysfs_address("00000000:3B:00.0").as_deref(),
            Some("0000:3b:00.0")
        );
        assert_eq!(
            sysfs_address("00010000:3B:00.0").as_deref(),
            Some("10000:3b:00.0")
        );
        assert_eq!(sysfs_address("nonsense"), None);
    }

    #[test]
    fn a_numa_node_of_minus_one_is_none() {
        let sysfs = tempfile::tempdir().unwrap();
        let device = sysfs.path().join("bus/pci/devices/0000:3b:00.0");
        std::fs::create_dir_all(&device).unwrap();
        std::fs::write(device.join("numa_node"), "-1\n").unwrap();
        assert_eq!(numa_node(sysfs.path(), "00000000:3B:00.0"), None);
        std::fs::write(device.join("numa_node"), "1\n").unwrap();
        assert_eq!(numa_node(sysfs.path(), "00000000:3B:00.0"), Some(1));
    }
}
