//! What a GPU is here, and the two traits behind which the hardware sits.
//!
//! Nothing in this module knows a resource, a kubelet or a container.

pub mod calls;
mod error;
pub mod events;
mod links;
pub mod loader;
mod mig;
pub mod nvml;
mod raw;
pub mod topology;
mod vitals;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use self::topology::{Place, Topology};

/// A GPU's UUID as NVML prints it: `GPU-` and five groups of hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GpuUuid(Arc<str>);

impl GpuUuid {
    /// The UUID as NVML prints it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for GpuUuid {
    fn from(uuid: &str) -> Self {
        Self(uuid.into())
    }
}

impl fmt::Display for GpuUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for GpuUuid {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let uuid = String::deserialize(deserializer)?;
        Ok(Self::from(uuid.as_str()))
    }
}

impl Serialize for GpuUuid {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// CUDA compute capability, such as 9.0 for Hopper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ComputeCapability {
    /// The architecture.
    pub major: u32,
    /// The variant of the architecture.
    pub minor: u32,
}

impl fmt::Display for ComputeCapability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl Serialize for ComputeCapability {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One GPU as read from NVML and sysfs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Gpu {
    /// Stable over reboots and slots.
    pub uuid: GpuUuid,
    /// NVML's index: order of PCI bus IDs, and not stable when a GPU vanishes.
    pub index: u32,
    /// The N of `/dev/nvidiaN`.
    pub minor_number: u32,
    /// As NVML prints it: `00000000:3B:00.0`.
    pub pci_bus_id: String,
    /// From sysfs; absent where sysfs says -1 or nothing.
    pub numa_node: Option<u32>,
    /// Total memory in bytes; absent where the GPU shares the system's memory.
    pub memory_bytes: Option<u64>,
    /// Absent where NVML does not tell.
    pub compute_capability: Option<ComputeCapability>,
    /// NVML's name of the product, such as `NVIDIA H200`.
    pub product_name: String,
    /// Whether it is in MIG mode: then only MIG devices can be used.
    pub mig_enabled: bool,
    /// By index.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mig_devices: Vec<MigDevice>,
}

/// One MIG device: a compute instance in a GPU instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MigDevice {
    /// `MIG-` and five groups of hexadecimal digits; another one after each change
    /// of the layout.
    pub uuid: String,
    /// The GPU that it is a part of.
    pub parent_uuid: GpuUuid,
    /// NVML's index within the GPU.
    pub index: u32,
    /// NVML's ID of the GPU instance, which XID events name.
    pub gpu_instance_id: u32,
    /// NVML's ID of the compute instance within it.
    pub compute_instance_id: u32,
    /// The profile's name as nvidia-smi has it, such as `1g.18gb`.
    pub profile: String,
    /// Memory of the GPU instance in bytes.
    pub memory_bytes: u64,
}

impl MigDevice {
    /// Whether it is the only device of its GPU instance. Others have `1c.2g.35gb`
    /// for a profile, and share memory and faults.
    #[must_use]
    pub fn is_whole_instance(&self) -> bool {
        let first = self.profile.split('.').next();
        first.is_some_and(|slices| slices.ends_with('g'))
    }
}

impl Gpu {
    /// Its folder in sysfs, which is there as long as the kernel has the PCI
    /// device. None: its bus ID is not one.
    #[must_use]
    pub fn sysfs_device(&self, sysfs: &Path) -> Option<PathBuf> {
        nvml::sysfs_device(sysfs, &self.pci_bus_id)
    }
}

/// What reading one index of NVML's enumeration came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading {
    /// All that is needed to serve it.
    Gpu(Gpu),
    /// It said who it is, and then failed.
    Partial {
        /// Who it is.
        uuid: GpuUuid,
        /// Where it was enumerated.
        index: u32,
        /// What failed.
        error: LibraryError,
    },
    /// Not even its UUID could be read.
    Unidentified {
        /// Where it was enumerated.
        index: u32,
        /// What failed.
        error: LibraryError,
    },
}

/// What a GPU answers when it is asked how it is. What the GPU or its driver
/// does not know is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vitals {
    /// NVML's field 230, `NVML_FI_DEV_GET_GPU_RECOVERY_ACTION`: 0 is none.
    pub recovery_action: Option<u32>,
    /// Rows of the memory that were remapped (Ampere and later).
    pub remapped_rows: Option<RemappedRows>,
    /// Pages of the memory that were retired (before Ampere).
    pub retired_pages: Option<RetiredPages>,
    /// Uncorrectable ECC errors since the driver was loaded, of all memories.
    pub uncorrectable_ecc: Option<u64>,
    /// Whether SRAM has more uncorrectable errors than NVIDIA's threshold.
    pub sram_threshold_exceeded: Option<bool>,
    /// Whether each NVLink is up, by its number; empty where there are none.
    pub nvlinks: BTreeMap<u32, bool>,
    /// The GPU's place in a fabric of NVSwitches; absent where there is none.
    pub fabric: Option<Fabric>,
    /// Why clocks are held down: NVML's `nvmlClocksEventReasons`, a bit each.
    pub clocks_event_reasons: Option<u64>,
}

/// NVML's `nvmlDeviceGetRemappedRows`, or fields 142 to 145.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RemappedRows {
    /// For correctable errors.
    pub correctable: u64,
    /// For uncorrectable errors.
    pub uncorrectable: u64,
    /// Whether a row waits for a reset to be remapped.
    pub pending: bool,
    /// Whether a row could not be remapped.
    pub failure: bool,
}

/// NVML's fields 29 to 31 (`NVML_FI_DEV_RETIRED_*`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetiredPages {
    /// For many single-bit errors.
    pub single_bit: u32,
    /// For a double-bit error.
    pub double_bit: u32,
    /// Whether a page waits for a reset to be retired.
    pub pending: bool,
}

/// NVML's `nvmlGpuFabricInfoV_t`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fabric {
    /// `NVML_GPU_FABRIC_STATE_*`: 1 not started, 2 in progress, 3 completed.
    pub state: u8,
    /// An `nvmlReturn_t`, of use once the state is completed: 0 is success.
    pub status: u32,
    /// `NVML_GPU_FABRIC_HEALTH_MASK_*`, two bits a statement; 0 where the driver
    /// tells none.
    pub health_mask: u32,
}

/// A critical XID event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XidEvent {
    /// The GPU it came from; absent where NVML could not say.
    pub uuid: Option<GpuUuid>,
    /// The XID.
    pub xid: u64,
    /// The GPU instance (MIG) that it names, if any.
    pub gpu_instance_id: Option<u32>,
    /// The compute instance (MIG) that it names, if any.
    pub compute_instance_id: Option<u32>,
}

/// What an error of the GPU library means to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// `NVML_ERROR_GPU_IS_LOST`.
    GpuLost,
    /// `NVML_ERROR_RESET_REQUIRED`.
    ResetRequired,
    /// `NVML_ERROR_NOT_FOUND`: no such GPU any more.
    NotFound,
    /// `NVML_ERROR_NOT_SUPPORTED`, or a function that the library lacks.
    NotSupported,
    /// `NVML_ERROR_TIMEOUT`: of a wait, and no error then.
    Timeout,
    /// The session itself is gone: driver unloaded, library not initialised,
    /// library and kernel module of different versions.
    Session,
    /// Anything else.
    Other,
}

/// A call of the GPU library that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{call}: {message}")]
pub struct LibraryError {
    /// The C function, as NVML's manual names it.
    pub call: &'static str,
    /// What it means.
    pub kind: ErrorKind,
    /// The library's own words.
    pub message: String,
}

/// Why there is no session with the GPU library. Each names its remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// No library to load.
    #[error(
        "no NVML library: {0}; install the NVIDIA driver, or name it with --nvml-library or its root with --driver-root"
    )]
    NoLibrary(String),
    /// The library is there, the kernel module is not.
    #[error(
        "no NVIDIA driver: {0} says that the kernel module is not loaded; load it with modprobe nvidia"
    )]
    NoDriver(String),
    /// The library and the kernel module are of different versions.
    #[error(
        "driver version mismatch: {library} is not of the kernel module's version ({module}); reboot, or reload the kernel modules of the installed driver"
    )]
    VersionMismatch {
        /// The library's file.
        library: String,
        /// The loaded kernel module's version.
        module: String,
    },
    /// `NVML_ERROR_UNKNOWN`, which is also what a process gets that may not open
    /// the device nodes.
    #[error(
        "{0}: an internal driver error occurred; where the process may not open /dev/nvidiactl (a container that is not privileged), NVML says no more than this"
    )]
    Internal(String),
    /// The device nodes cannot be opened.
    #[error(
        "no permission: {0} may not open the device nodes; run privileged, or open the device cgroup for the NVIDIA majors"
    )]
    NoPermission(String),
    /// It did not come back in time.
    #[error("{0} did not come back within {1:?}: the driver hangs")]
    Hung(&'static str, Duration),
    /// Anything else that it said.
    #[error("{0}")]
    Failed(#[from] LibraryError),
}

impl OpenError {
    /// The C function that failed; none where none could be called.
    pub fn call(&self) -> Option<&'static str> {
        match self {
            Self::NoLibrary(_) => None,
            Self::Hung(call, _) => Some(call),
            Self::Failed(error) => Some(error.call),
            Self::NoDriver(_)
            | Self::VersionMismatch { .. }
            | Self::Internal(_)
            | Self::NoPermission(_) => Some("nvmlInit_v2"),
        }
    }
}

/// A session with the GPUs of this node. Every method may block, for ever when
/// the driver hangs, so they are called from threads of their own ([`calls`]).
pub trait GpuLibrary: Send + Sync + 'static {
    /// The driver's version, such as `580.159.04`.
    fn driver_version(&self) -> Result<String, LibraryError>;
    /// How many GPUs are enumerated.
    fn count(&self) -> Result<u32, LibraryError>;
    /// Reads the GPU at `index`, which is below [`count`](Self::count).
    fn read(&self, index: u32) -> Reading;
    /// Asks a GPU how it is, with calls that reach the device: the library
    /// answers UUID and name from memory, for a lost GPU too.
    fn probe(&self, uuid: &GpuUuid) -> Result<Vitals, LibraryError>;
    /// How GPUs are linked. What is not told is absent from the answer.
    fn topology(&self, gpus: Vec<Place>) -> Topology;
    /// Subscribes to the critical XIDs of `gpus`. A GPU that has no events is
    /// left out; an error means that no GPU could be subscribed to.
    fn events(self: Arc<Self>, gpus: &[GpuUuid]) -> Result<Box<dyn EventSource>, LibraryError>;
}

/// A subscription to XID events.
pub trait EventSource: Send {
    /// Waits for the next event, for `timeout` at most. `None`: there was none.
    fn wait(&mut self, timeout: Duration) -> Result<Option<XidEvent>, LibraryError>;
}
