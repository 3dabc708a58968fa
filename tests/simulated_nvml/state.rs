//! What the simulated driver believes: plain data, one JSON file a node.
//!
//! The library reads it and tests write it, so that both agree on one schema.
//! Every field has a default, and an unknown one is an error: a misspelt fault
//! must not pass for a healthy GPU.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "shared by the library and by test crates, which each need a part"
)]

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// The most GPUs that one node has.
pub const MAX_GPUS: usize = 16;

/// The event type of an XID critical error.
pub const XID_CRITICAL_ERROR: u64 = 8;

/// The event types that an H200 says it supports.
pub const SUPPORTED_EVENT_TYPES: u64 = 65439;

/// `nvmlClocksEventReasonGpuIdle`.
pub const CLOCKS_EVENT_REASON_GPU_IDLE: u64 = 1;

/// The health mask of a fabric in which nothing is amiss: "false" for bandwidth,
/// two kinds of recovery and routes, and "none" for what is configured wrong.
pub const FABRIC_WELL: u32 = 2 | 2 << 2 | 2 << 4 | 2 << 6 | 1 << 8;

/// `NVML_NVLINK_VERSION_4_0`, as an H200 answers.
pub const NVLINK_4: u32 = 6;

/// The function name that stands for every function.
pub const EVERY_FUNCTION: &str = "*";

/// A node's driver and GPUs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct State {
    /// The kernel driver's version.
    pub driver_version: String,
    /// NVML's own version.
    pub nvml_version: String,
    /// The newest CUDA version of the driver: 1000 × major + 10 × minor.
    pub cuda_version: i32,
    /// What `nvmlInit` answers.
    pub init: Return,
    /// Functions that do not return, whichever GPU they are asked about.
    pub hang: BTreeSet<String>,
    /// Functions that fail, whichever GPU they are asked about.
    pub fail: BTreeMap<String, Return>,
    /// The GPUs in the order in which NVML enumerates them.
    pub gpus: Vec<Gpu>,
    /// What happened to the GPUs. `seq` gives the order, not the position.
    pub events: Vec<Event>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            driver_version: "580.159.04".to_owned(),
            nvml_version: "13.580.159.04".to_owned(),
            cuda_version: 13000,
            init: Return::Success,
            hang: BTreeSet::new(),
            fail: BTreeMap::new(),
            gpus: Vec::new(),
            events: Vec::new(),
        }
    }
}

impl State {
    /// A healthy node of H200s, half of them on each of two NUMA nodes.
    pub fn healthy(gpus: usize) -> Self {
        Self {
            gpus: (0..gpus)
                .map(|position| Gpu::numbered(position, gpus))
                .collect(),
            ..Self::default()
        }
    }

    /// The GPUs that NVML enumerates, with their position in `gpus`. An NVML
    /// index is a position in this sequence.
    pub fn enumerated(&self) -> impl Iterator<Item = (usize, &Gpu)> {
        self.gpus
            .iter()
            .enumerate()
            .filter(|(_, gpu)| !gpu.vanished)
    }

    /// The largest sequence number among the events.
    pub fn last_seq(&self) -> u64 {
        self.events
            .iter()
            .map(|event| event.seq)
            .max()
            .unwrap_or_default()
    }

    /// Puts the events in the order in which they are delivered.
    pub fn sort_events(&mut self) {
        self.events.sort_by_key(|event| event.seq);
    }

    /// The events after the one with this number. They have to be sorted.
    pub fn events_after(&self, seq: u64) -> &[Event] {
        let first = self.events.partition_point(|event| event.seq <= seq);
        &self.events[first..]
    }

    /// The NVLinks of the GPU at a position, in the order of their numbers: to
    /// other GPUs, or else to NVSwitches.
    pub fn nvlinks(&self, position: usize) -> Vec<NvLink> {
        let to_gpus = self.links_to_gpus(position);
        if !to_gpus.is_empty() {
            return to_gpus;
        }
        let to_switch = NvLink {
            to: None,
            version: NVLINK_4,
        };
        vec![to_switch; self.gpus[position].nvswitch_links]
    }

    /// A link that only the other end states exists at both.
    fn links_to_gpus(&self, position: usize) -> Vec<NvLink> {
        let own = self.gpus[position].links.iter();
        let other = self.gpus.iter().enumerate().flat_map(|(from, gpu)| {
            let stated_here = |to| self.gpus[position].links.iter().any(|link| link.to == to);
            let ends_here = move |link: &&Link| link.to == position && !stated_here(from);
            gpu.links
                .iter()
                .filter(ends_here)
                .map(move |link| (from, link))
        });
        own.map(|link| (link.to, link))
            .chain(other)
            .flat_map(|(to, link)| {
                let nvlink = NvLink {
                    to: Some(to),
                    version: link.version,
                };
                std::iter::repeat_n(nvlink, link.count)
            })
            .collect()
    }

    /// How close two GPUs are. Without a statement at either end, their NUMA
    /// nodes decide.
    pub fn topology_level(&self, a: usize, b: usize) -> TopologyLevel {
        let stated = |from: usize, to: usize| {
            let mut peers = self.gpus[from].topology.iter();
            peers.find(|peer| peer.to == to).map(|peer| peer.level)
        };
        let by_numa_node = || {
            if self.gpus[a].numa_node == self.gpus[b].numa_node {
                TopologyLevel::Node
            } else {
                TopologyLevel::System
            }
        };
        stated(a, b)
            .or_else(|| stated(b, a))
            .unwrap_or_else(by_numa_node)
    }

    /// Checks what the types leave open, so that no function has to.
    ///
    /// # Errors
    ///
    /// A sentence that names what is wrong.
    pub fn validate(&self) -> Result<(), String> {
        if self.gpus.len() > MAX_GPUS {
            return Err(format!("{} GPUs, of at most {MAX_GPUS}", self.gpus.len()));
        }
        let mut uuids = BTreeSet::new();
        for gpu in &self.gpus {
            let migs = gpu.mig.instances.iter().map(|instance| &instance.uuid);
            for uuid in std::iter::once(&gpu.uuid).chain(migs) {
                if uuid.is_empty() || !uuids.insert(uuid) {
                    return Err(format!("UUID {uuid:?} is empty or there twice"));
                }
            }
            gpu.validate(self.gpus.len())
                .map_err(|error| format!("{}: {error}", gpu.uuid))?;
        }
        for position in 0..self.gpus.len() {
            self.validate_nvlinks(position)?;
        }
        let fails = std::iter::once(&self.fail).chain(self.gpus.iter().map(|gpu| &gpu.fail));
        for (function, &with) in fails.flatten() {
            if with == Return::Success {
                return Err(format!("{function} cannot fail with SUCCESS"));
            }
        }
        let mut of_fields = self.gpus.iter().flat_map(|gpu| &gpu.fail_fields);
        if let Some((id, _)) = of_fields.find(|(_, with)| **with == Return::Success) {
            return Err(format!("field {id} cannot fail with SUCCESS"));
        }
        Ok(())
    }

    fn validate_nvlinks(&self, position: usize) -> Result<(), String> {
        let gpu = &self.gpus[position];
        let links = self.nvlinks(position).len();
        match gpu.nvlinks_down.last() {
            Some(&last) if last as usize >= links => {
                Err(format!("{}: no NVLink {last}, of {links}", gpu.uuid))
            }
            _ => Ok(()),
        }
    }
}

/// One GPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gpu {
    /// `GPU-…`.
    pub uuid: String,
    /// N of `/dev/nvidiaN`.
    pub minor_number: u32,
    /// `domain:bus:device.function`, hexadecimal.
    pub pci_bus_id: String,
    /// The product's name.
    pub name: String,
    /// All of its memory.
    pub memory_bytes: u64,
    /// Major and minor.
    pub compute_capability: (i32, i32),
    /// For sysfs alone: NVML does not answer it on the machines we know.
    pub numa_node: Option<u32>,
    /// Fallen off the bus: what reaches the device fails, what the driver
    /// remembers is answered.
    pub lost: bool,
    /// No longer enumerated.
    pub vanished: bool,
    /// Functions that do not return while they are named here.
    pub hang: BTreeSet<String>,
    /// Functions that fail.
    pub fail: BTreeMap<String, Return>,
    /// The recovery action (field 230); `None` is a driver that has no such field.
    pub recovery_action: Option<u32>,
    /// Row remapping (fields 142 to 145).
    pub remapped_rows: RemappedRows,
    /// Retired pages (fields 29 to 31), of GPUs before Ampere.
    pub retired_pages: Option<RetiredPages>,
    /// Errors of the memory.
    pub ecc: Ecc,
    /// Whether SRAM has more uncorrectable errors than NVIDIA's threshold.
    pub sram_threshold_exceeded: bool,
    /// Degrees Celsius.
    pub temperature: u32,
    /// Any other field's value, by its ID.
    pub fields: BTreeMap<u32, u64>,
    /// Multi-Instance GPU.
    pub mig: Mig,
    /// Errors of single fields, by their ID, in a call that succeeds.
    pub fail_fields: BTreeMap<u32, Return>,
    /// NVLinks to other GPUs.
    pub links: Vec<Link>,
    /// NVLinks to NVSwitches, of a GPU that has none to other GPUs.
    pub nvswitch_links: usize,
    /// Which of its NVLinks are down, by their numbers.
    pub nvlinks_down: BTreeSet<u32>,
    /// Its place in the fabric of NVSwitches.
    pub fabric: Fabric,
    /// Why clocks are held down: `nvmlClocksEventReasons`, a bit each.
    pub clocks_event_reasons: u64,
    /// How close other GPUs are.
    pub topology: Vec<Peer>,
    /// The PCIe link.
    pub pci_link: PciLink,
}

impl Default for Gpu {
    fn default() -> Self {
        Self {
            uuid: String::new(),
            minor_number: 0,
            pci_bus_id: "00000000:00:00.0".to_owned(),
            name: "NVIDIA H200".to_owned(),
            memory_bytes: 150_754_820_096,
            compute_capability: (9, 0),
            numa_node: None,
            lost: false,
            vanished: false,
            hang: BTreeSet::new(),
            fail: BTreeMap::new(),
            recovery_action: Some(0),
            remapped_rows: RemappedRows::default(),
            retired_pages: None,
            ecc: Ecc::default(),
            sram_threshold_exceeded: false,
            temperature: 33,
            fields: BTreeMap::new(),
            mig: Mig::default(),
            fail_fields: BTreeMap::new(),
            links: Vec::new(),
            nvswitch_links: 18,
            nvlinks_down: BTreeSet::new(),
            fabric: Fabric::default(),
            clocks_event_reasons: CLOCKS_EVENT_REASON_GPU_IDLE,
            topology: Vec::new(),
            pci_link: PciLink::default(),
        }
    }
}

impl Gpu {
    fn numbered(position: usize, of: usize) -> Self {
        Self {
            uuid: format!("GPU-00000000-0000-4000-8000-{position:012x}"),
            minor_number: position as u32,
            pci_bus_id: format!("00000000:{:02X}:00.0", 0x10 + position * 0x0a),
            numa_node: Some(u32::from(position >= of.div_ceil(2))),
            ..Self::default()
        }
    }

    /// The parts of the bus ID.
    pub fn pci_address(&self) -> Option<PciAddress> {
        PciAddress::parse(&self.pci_bus_id)
    }

    fn validate(&self, gpus: usize) -> Result<(), String> {
        let peers = self.links.iter().map(|link| link.to);
        let peers = peers.chain(self.topology.iter().map(|peer| peer.to));
        if let Some(to) = peers.into_iter().find(|&to| to >= gpus) {
            return Err(format!("no GPU {to} to connect to"));
        }
        let of_links = self.links.iter().map(|link| link.count);
        if of_links
            .chain([self.nvswitch_links])
            .any(|count| count > MAX_GPUS * 2)
        {
            return Err("more links than any GPU has".to_owned());
        }
        let profiles = self.mig.instances.iter();
        if let Some(bad) = profiles.into_iter().find(|mig| mig.slices().is_none()) {
            return Err(format!("{:?} is no MIG profile", bad.profile));
        }
        match self.pci_address() {
            Some(_) => Ok(()),
            None => Err(format!("{:?} is no PCI bus ID", self.pci_bus_id)),
        }
    }
}

/// Where a GPU sits on the PCI bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PciAddress {
    /// The segment.
    pub domain: u32,
    /// The bus.
    pub bus: u8,
    /// The device, without its function.
    pub device: u8,
}

impl PciAddress {
    /// Reads `domain:bus:device.0`; a GPU's compute function is always 0.
    pub fn parse(id: &str) -> Option<Self> {
        let (domain, rest) = id.split_once(':')?;
        let (bus, rest) = rest.split_once(':')?;
        Some(Self {
            domain: u32::from_str_radix(domain, 16).ok()?,
            bus: u8::from_str_radix(bus, 16).ok()?,
            device: u8::from_str_radix(rest.strip_suffix(".0")?, 16).ok()?,
        })
    }

    /// As sysfs names the device's folder.
    pub fn sysfs_name(&self) -> String {
        format!("{:04x}:{:02x}:{:02x}.0", self.domain, self.bus, self.device)
    }
}

/// Remapped rows of the memory.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RemappedRows {
    /// Rows remapped for correctable errors.
    pub correctable: u32,
    /// Rows remapped for uncorrectable errors.
    pub uncorrectable: u32,
    /// Whether a remapping waits for a reset.
    pub pending: bool,
    /// Whether a remapping failed: the GPU is to be replaced.
    pub failure: bool,
}

/// Retired pages of the memory.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetiredPages {
    /// Pages retired for many single-bit errors.
    pub single_bit: u32,
    /// Pages retired for a double-bit error.
    pub double_bit: u32,
    /// Whether a page waits for a reset to be retired.
    pub pending: bool,
}

/// Error correction, and the errors since the driver was loaded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ecc {
    /// Whether it is on.
    pub enabled: bool,
    /// Errors that were corrected.
    pub corrected: u64,
    /// Errors that were not.
    pub uncorrected: u64,
}

impl Default for Ecc {
    fn default() -> Self {
        Self {
            enabled: true,
            corrected: 0,
            uncorrected: 0,
        }
    }
}

/// Multi-Instance GPU.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mig {
    /// Whether the mode is on.
    pub enabled: bool,
    /// The MIG devices in the order of their indexes.
    pub instances: Vec<MigInstance>,
}

/// One MIG device: a compute instance in a GPU instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MigInstance {
    /// `MIG-…`.
    pub uuid: String,
    /// The GPU instance's ID.
    pub gpu_instance_id: u32,
    /// The compute instance's ID within the GPU instance.
    pub compute_instance_id: u32,
    /// For example `1g.18gb`, or `1c.2g.35gb`.
    pub profile: String,
    /// The GPU instance's memory.
    pub memory_bytes: u64,
}

impl MigInstance {
    /// The slices of the compute instance and of its GPU instance, as the
    /// profile's name has them.
    pub fn slices(&self) -> Option<(u32, u32)> {
        let mut parts = self.profile.split('.');
        let first = parts.next()?;
        let (compute, gpu) = match first.strip_suffix('c') {
            Some(compute) => (Some(compute), parts.next()?),
            None => (None, first),
        };
        let gpu = gpu.strip_suffix('g')?.parse().ok()?;
        let compute = compute.map_or(Some(gpu), |text| text.parse().ok())?;
        Some((compute, gpu))
    }
}

/// NVLinks to another GPU, stated at either end or at both.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// The other GPU's position in `gpus`.
    pub to: usize,
    /// How many links.
    pub count: usize,
    /// `nvmlNvlinkVersion_t`.
    pub version: u32,
}

/// One NVLink of a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NvLink {
    /// The other GPU's position in `gpus`; none is an NVSwitch.
    pub to: Option<usize>,
    /// `nvmlNvlinkVersion_t`.
    pub version: u32,
}

impl NvLink {
    /// In MB/s each way: of version 4.0 as an H200 answers, of others as NVIDIA's
    /// data sheets have it.
    pub fn speed(self) -> u64 {
        match self.version {
            1 => 20_000,
            2..=5 => 25_000,
            NVLINK_4 => 26_562,
            _ => 50_000,
        }
    }
}

/// `nvmlGpuFabricInfoV_t`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Fabric {
    /// 0 no fabric, 1 not started, 2 in progress, 3 completed.
    pub state: u8,
    /// An `nvmlReturn_t`, once it is completed.
    pub status: u32,
    /// `NVML_GPU_FABRIC_HEALTH_MASK_*`, each at its shift.
    pub health_mask: u32,
    /// The newest version of the structure that the driver knows: 2 or 3.
    pub version: u32,
}

impl Default for Fabric {
    fn default() -> Self {
        Self {
            state: 3,
            status: 0,
            health_mask: FABRIC_WELL,
            version: 3,
        }
    }
}

/// How close another GPU is, stated at either end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// The other GPU's position in `gpus`.
    pub to: usize,
    /// The nearest thing that both share.
    pub level: TopologyLevel,
}

/// `nvmlGpuTopologyLevel_t`, by its own numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TopologyLevel {
    /// One board.
    Internal = 0,
    /// One PCIe switch.
    Single = 10,
    /// Several PCIe switches.
    Multiple = 20,
    /// One host bridge.
    Hostbridge = 30,
    /// One NUMA node.
    Node = 40,
    /// Nothing nearer than the machine.
    System = 50,
}

/// The PCIe link of a GPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PciLink {
    /// PCIe's generation.
    pub generation: u32,
    /// The number of lanes.
    pub width: u32,
}

impl Default for PciLink {
    fn default() -> Self {
        Self {
            generation: 5,
            width: 16,
        }
    }
}

/// Something that happened to a GPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// Events are delivered in this order. An event set delivers those that
    /// came after it.
    pub seq: u64,
    /// The GPU, never a MIG device.
    pub uuid: String,
    /// The event type: one bit.
    #[serde(default = "xid_critical_error")]
    pub kind: u64,
    /// The XID.
    #[serde(default)]
    pub data: u64,
    /// The GPU instance that it is about, if one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_instance_id: Option<u32>,
    /// The compute instance that it is about, if one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute_instance_id: Option<u32>,
}

fn xid_critical_error() -> u64 {
    XID_CRITICAL_ERROR
}

/// `nvmlReturn_t`, by its own numbers and by its names without `NVML_` and
/// `NVML_ERROR_`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs, reason = "the names say it, in NVML's words")]
pub enum Return {
    Success = 0,
    Uninitialized = 1,
    InvalidArgument = 2,
    NotSupported = 3,
    NoPermission = 4,
    AlreadyInitialized = 5,
    NotFound = 6,
    InsufficientSize = 7,
    InsufficientPower = 8,
    DriverNotLoaded = 9,
    Timeout = 10,
    IrqIssue = 11,
    LibraryNotFound = 12,
    FunctionNotFound = 13,
    CorruptedInforom = 14,
    GpuIsLost = 15,
    ResetRequired = 16,
    OperatingSystem = 17,
    LibRmVersionMismatch = 18,
    InUse = 19,
    Memory = 20,
    NoData = 21,
    VgpuEccNotSupported = 22,
    InsufficientResources = 23,
    FreqNotSupported = 24,
    ArgumentVersionMismatch = 25,
    Deprecated = 26,
    NotReady = 27,
    GpuNotFound = 28,
    InvalidState = 29,
    ResetTypeNotSupported = 30,
    Unknown = 999,
}

/// The functions named in `hang` and `fail` are matched with and without
/// their version: `nvmlDeviceGetMemoryInfo` names `nvmlDeviceGetMemoryInfo_v2`
/// too, so that a test needs not know which one a library calls.
pub fn names(named: &str, function: &str) -> bool {
    named == EVERY_FUNCTION || named == function || Some(named) == unversioned(function)
}

fn unversioned(function: &str) -> Option<&str> {
    let (name, version) = function.rsplit_once("_v")?;
    version.bytes().all(|b| b.is_ascii_digit()).then_some(name)
}
