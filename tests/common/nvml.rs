//! A node with simulated GPUs: the simulated NVML, the driver's files, device
//! nodes, sysfs and procfs, all in one temporary folder.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{CWD, FileType, mknodat};
use tempfile::TempDir;

use super::cargo;
use super::elf::{Machine, SharedObject};

#[path = "../simulated_nvml/state.rs"]
pub mod state;

pub use state::{
    Ecc, Event, FABRIC_WELL, Fabric, Gpu, Link, MAX_GPUS, Mig, MigInstance, PciLink, Peer,
    RemappedRows, RetiredPages, Return, State, TopologyLevel,
};

/// Beside the library's copy, where it looks for its state.
const STATE_FILE: &str = "simulated_nvml.json";

/// One node. Any number of them live in one process: each loads a copy of the
/// simulated NVML of its own. Dropping it removes its files and releases the
/// calls that hang in it.
#[derive(Debug)]
pub struct SimulatedNode {
    node: Mutex<Node>,
    root: TempDir,
}

#[derive(Debug)]
struct Node {
    state: State,
    written: SystemTime,
    replaced: Instant,
    /// GPUs without a PCI device, by position.
    pulled: BTreeSet<usize>,
}

impl SimulatedNode {
    /// A healthy node with H200s.
    pub fn new(gpus: usize) -> Self {
        Self::with(gpus, |_| {})
    }

    /// A node that `change` sets up before anything is laid out.
    pub fn with(gpus: usize, change: impl FnOnce(&mut State)) -> Self {
        let mut state = State::healthy(gpus);
        change(&mut state);
        let root = tempfile::Builder::new()
            .prefix("node-")
            .tempdir()
            .expect("create a node's folder");
        let version = state.driver_version.clone();
        let node = Self {
            node: Mutex::new(Node {
                state,
                written: SystemTime::UNIX_EPOCH,
                replaced: Instant::now(),
                pulled: BTreeSet::new(),
            }),
            root,
        };
        node.lay_out();
        node.install_driver(&version);
        node
    }

    fn lay_out(&self) {
        for folder in [
            self.nvml_folder(),
            self.driver_library_dir(),
            self.driver_root().join("usr/bin"),
            self.dev().join("nvidia-caps"),
            self.proc().join("driver/nvidia"),
            self.proc().join("driver/nvidia-caps"),
            self.sys().join("module/nvidia"),
            self.device_plugin_dir(),
        ] {
            fs::create_dir_all(folder).expect("create a folder");
        }
        for name in ["nvidiactl", "nvidia-uvm", "nvidia-uvm-tools"] {
            write(&self.dev().join(name), "");
        }
        let mig_minors = self.proc().join("driver/nvidia-caps/mig-minors");
        write(&mig_minors, &mig_minors_table());
        self.boot("b0071d00-0000-4000-8000-000000000001");
        mknodat(CWD, self.kmsg(), FileType::Fifo, 0o600.into(), 0).expect("make a FIFO");
        let library = simulated_nvml_library();
        fs::copy(library, self.nvml_library()).expect("copy the simulated NVML");
    }

    // --- What happens to the node ---

    /// Changes the state, in one step as the library sees it, and sysfs, procfs
    /// and the device files with it.
    pub fn edit<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut node = self.lock();
        let result = change(&mut node.state);
        if let Err(error) = node.state.validate() {
            panic!("the library would refuse this state: {error}");
        }
        for (position, gpu) in node.state.gpus.iter().enumerate() {
            self.lay_out_gpu(gpu, node.pulled.contains(&position));
        }
        let json = serde_json::to_string_pretty(&node.state).expect("write the state as JSON");
        node.replace(&self.root, &self.state_file(), &json);
        result
    }

    /// Puts any text in the state file's place, a broken state for example. The
    /// next [`SimulatedNode::edit`] writes a good one.
    pub fn write_state_file(&self, text: &str) {
        let mut node = self.lock();
        node.replace(&self.root, &self.state_file(), text);
    }

    /// When the library could first see the last change: the files beside the
    /// state file may have taken their time before.
    pub fn changed_at(&self) -> Instant {
        self.lock().replaced
    }

    /// What the state is.
    pub fn state(&self) -> State {
        self.lock().state.clone()
    }

    /// An XID critical error of a whole GPU, given by position or UUID.
    pub fn xid(&self, gpu: impl WhichGpu, xid: u64) {
        self.edit(|state| push_xid(state, gpu, xid, None));
    }

    /// An XID critical error of one MIG device, by the IDs of its GPU instance
    /// and compute instance.
    pub fn xid_of_mig(&self, gpu: impl WhichGpu, xid: u64, instances: (u32, u32)) {
        self.edit(|state| push_xid(state, gpu, xid, Some(instances)));
    }

    /// Any number of XID critical errors of a whole GPU, all in one step.
    pub fn storm(&self, gpu: impl WhichGpu, xids: impl Iterator<Item = u64>) {
        self.edit(|state| {
            let uuid = state.gpus[gpu.position(state)].uuid.clone();
            let events = (state.last_seq() + 1..).zip(xids);
            state
                .events
                .extend(events.map(|(seq, xid)| xid_event(seq, &uuid, xid, None)));
        });
    }

    /// Changes one GPU.
    pub fn edit_gpu<T>(&self, gpu: impl WhichGpu, change: impl FnOnce(&mut Gpu) -> T) -> T {
        self.edit(|state| {
            let position = gpu.position(state);
            change(&mut state.gpus[position])
        })
    }

    /// The GPU falls off the bus.
    pub fn lose(&self, gpu: impl WhichGpu) {
        self.edit_gpu(gpu, |gpu| gpu.lost = true);
    }

    /// The GPU is no longer enumerated.
    pub fn vanish(&self, gpu: impl WhichGpu) {
        self.edit_gpu(gpu, |gpu| gpu.vanished = true);
    }

    /// The kernel has no PCI device any more where the GPU was: its folder in
    /// sysfs is gone. NVML says what it said before.
    pub fn pull(&self, gpu: impl WhichGpu) {
        self.set_pulled(gpu, true);
    }

    /// The kernel has found the GPU's PCI device again.
    pub fn plug_in(&self, gpu: impl WhichGpu) {
        self.set_pulled(gpu, false);
    }

    fn set_pulled(&self, gpu: impl WhichGpu, pulled: bool) {
        let mut node = self.lock();
        let position = gpu.position(&node.state);
        if pulled {
            node.pulled.insert(position);
        } else {
            node.pulled.remove(&position);
        }
        self.lay_out_gpu(&node.state.gpus[position], pulled);
    }

    /// These functions do not return for the GPU, from now on. A name without
    /// its version stands for all versions, `*` for all functions.
    pub fn hang(&self, gpu: impl WhichGpu, functions: &[&str]) {
        let functions = functions.iter().map(|&function| function.to_owned());
        self.edit_gpu(gpu, |gpu| gpu.hang.extend(functions));
    }

    /// This function fails for the GPU, from now on; names as for `hang`.
    pub fn fail(&self, gpu: impl WhichGpu, function: &str, with: Return) {
        self.edit_gpu(gpu, |gpu| gpu.fail.insert(function.to_owned(), with));
    }

    /// The GPU is as it was before it was lost, vanished, hung or failed; calls
    /// that hang return. Events stay: they happened. A PCI device that was pulled
    /// stays away until [`SimulatedNode::plug_in`].
    pub fn restore(&self, gpu: impl WhichGpu) {
        self.edit_gpu(gpu, |gpu| {
            gpu.lost = false;
            gpu.vanished = false;
            gpu.hang.clear();
            gpu.fail.clear();
            gpu.fail_fields.clear();
            gpu.recovery_action = Some(0);
        });
    }

    /// Turns MIG on with one device of each profile, for example `1g.18gb`.
    pub fn enable_mig(&self, gpu: impl WhichGpu, profiles: &[&str]) {
        self.edit(|state| {
            let position = gpu.position(state);
            let total = state.gpus[position].memory_bytes;
            let instances = profiles.iter().zip(1..).map(|(profile, id)| MigInstance {
                uuid: format!("MIG-00000000-0000-4000-8{position:03x}-{id:012x}"),
                gpu_instance_id: id,
                compute_instance_id: 0,
                profile: (*profile).to_owned(),
                memory_bytes: memory_of(profile, total),
            });
            state.gpus[position].mig = Mig {
                enabled: true,
                instances: instances.collect(),
            };
        });
    }

    /// Replaces the driver, its files and its kernel module alike.
    pub fn install_driver(&self, version: &str) {
        let libraries = self.driver_library_dir();
        fs::remove_dir_all(&libraries).expect("remove the old driver");
        fs::create_dir(&libraries).expect("create the library folder");
        for library in &DRIVER_LIBRARIES {
            library.install(&libraries, version);
        }
        self.write_program("nvidia-smi");
        self.load_kernel_module(version);
        self.edit(|state| state.driver_version = version.to_owned());
    }

    /// Replaces the kernel module alone.
    pub fn load_kernel_module(&self, version: &str) {
        let module = format!(
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {version}  Release Build\n"
        );
        write(&self.proc().join("driver/nvidia/version"), &module);
        let version_file = self.sys().join("module/nvidia/version");
        write(&version_file, &format!("{version}\n"));
    }

    /// Modules with character devices of these names and major numbers are loaded,
    /// and no other. Until then nothing is known of any.
    pub fn load_modules(&self, majors: &[(&str, u32)]) {
        let lines = majors
            .iter()
            .map(|(name, major)| format!("{major:3} {name}\n"));
        let devices: String = lines.collect();
        let devices = format!("Character devices:\n  1 mem\n{devices}\nBlock devices:\n  7 loop\n");
        // In one step, as the kernel does it.
        let new = self.proc().join("devices.new");
        write(&new, &devices);
        fs::rename(new, self.proc().join("devices")).expect("replace the list of devices");
    }

    /// A program by its header: nothing here runs it.
    fn write_program(&self, name: &str) {
        let path = self.driver_root().join("usr/bin").join(name);
        fs::create_dir_all(self.driver_root().join("usr/bin")).expect("create usr/bin");
        SharedObject::nameless().write(&path);
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("make it executable");
    }

    fn lay_out_gpu(&self, gpu: &Gpu, pulled: bool) {
        let address = gpu.pci_address().expect("a checked state");
        let device = self
            .sys()
            .join("bus/pci/devices")
            .join(address.sysfs_name());
        if gpu.vanished || pulled {
            // The device file stays behind on a real node as well.
            return fs::remove_dir_all(device).unwrap_or_default();
        }
        fs::create_dir_all(&device).expect("create a PCI device's folder");
        let numa_node = gpu.numa_node.map_or(-1, i64::from).to_string();
        for (name, content) in [
            ("numa_node", numa_node.as_str()),
            ("vendor", "0x10de"),
            ("device", "0x2335"),
            ("class", "0x030200"),
        ] {
            write(&device.join(name), &format!("{content}\n"));
        }
        let node = self.dev().join(format!("nvidia{}", gpu.minor_number));
        write(&node, "");
        for instance in &gpu.mig.instances {
            self.lay_out_mig(gpu, instance);
        }
    }

    /// The capability files of a MIG device, and the device files that they
    /// name.
    fn lay_out_mig(&self, gpu: &Gpu, instance: &MigInstance) {
        let (gi, ci) = (instance.gpu_instance_id, instance.compute_instance_id);
        let gi_minor = capability_minor(gpu.minor_number, gi);
        let gi_folder = format!(
            "driver/nvidia/capabilities/gpu{}/mig/gi{gi}",
            gpu.minor_number
        );
        let ci_folder = format!("{gi_folder}/ci{ci}");
        for (folder, minor) in [(gi_folder, gi_minor), (ci_folder, gi_minor + 1 + ci)] {
            let folder = self.proc().join(folder);
            fs::create_dir_all(&folder).expect("create a capability's folder");
            let access = format!("DeviceFileMinor: {minor}\nDeviceFileMode: 292\n");
            write(&folder.join("access"), &access);
            let node = self.dev().join(format!("nvidia-caps/nvidia-cap{minor}"));
            write(&node, "");
        }
    }

    // --- Where things are ---

    /// The folder that holds all the others.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// The state file.
    pub fn state_file(&self) -> PathBuf {
        self.nvml_folder().join(STATE_FILE)
    }

    /// This node's copy of the simulated NVML: load it by this path, or put
    /// its folder on the loader's search path.
    pub fn nvml_library(&self) -> PathBuf {
        self.nvml_folder().join("libnvidia-ml.so.1")
    }

    fn nvml_folder(&self) -> PathBuf {
        self.root().join("nvml")
    }

    /// Where the driver is installed.
    pub fn driver_root(&self) -> PathBuf {
        self.root().join("driver-root")
    }

    /// Where the driver's libraries are, below its root.
    pub fn driver_library_dir(&self) -> PathBuf {
        let folder = match Machine::HERE {
            Machine::Aarch64 => "usr/lib/aarch64-linux-gnu",
            Machine::X86_64 | Machine::I386 => "usr/lib/x86_64-linux-gnu",
        };
        self.driver_root().join(folder)
    }

    /// The root that device paths begin at.
    pub fn dev_root(&self) -> PathBuf {
        self.root().join("dev-root")
    }

    /// The folder of the device files, which are regular files here.
    pub fn dev(&self) -> PathBuf {
        self.dev_root().join("dev")
    }

    /// What stands for /sys.
    pub fn sys(&self) -> PathBuf {
        self.root().join("sys")
    }

    /// What stands for /proc.
    pub fn proc(&self) -> PathBuf {
        self.root().join("proc")
    }

    /// Where the kubelet and its plugins have their sockets.
    pub fn device_plugin_dir(&self) -> PathBuf {
        self.root().join("device-plugins")
    }

    /// The folder of CDI specs, which need not exist.
    pub fn cdi_root(&self) -> PathBuf {
        self.root().join("cdi")
    }

    /// Flags that have the node's folder as the host's `/`: what the plugin
    /// tells of the host is the same on every node then.
    pub fn as_host_root(&self) -> Vec<String> {
        let root = self.root().display().to_string();
        let flags = [
            ["--host-root", &root],
            ["--driver-root", "/driver-root"],
            ["--dev-root", "/dev-root"],
            ["--cdi-root", "/cdi"],
        ];
        flags.concat().into_iter().map(str::to_owned).collect()
    }

    /// Adds what a node with GPUDirect Storage, GDRCopy, InfiniBand and IMEX
    /// has beside its GPUs.
    pub fn add_extras(&self) {
        for file in [
            "dev-root/dev/nvidia-fs0",
            "dev-root/dev/nvidia-fs1",
            "dev-root/dev/gdrdrv",
            "dev-root/dev/infiniband/uverbs0",
            "dev-root/dev/infiniband/rdma_cm",
            "dev-root/dev/nvidia-caps-imex-channels/channel0",
            "run/udev/data/b8:0",
            "etc/cufile.json",
        ] {
            let file = self.root().join(file);
            fs::create_dir_all(file.parent().expect("a folder")).expect("create a folder");
            write(&file, "");
        }
    }

    /// What tells the plugin that this is its node. Flags given later would be
    /// repetitions: it listens on a port of its own, and polls often.
    pub fn plugin_arguments(&self) -> Vec<OsString> {
        let paths = [
            ("--device-plugin-dir", self.device_plugin_dir()),
            ("--nvml-library", self.nvml_library()),
            ("--driver-root", self.driver_root()),
            ("--dev-root", self.dev_root()),
            ("--cdi-root", self.cdi_root()),
            ("--sysfs-root", self.sys()),
            ("--procfs-root", self.proc()),
            ("--state-dir", self.state_dir()),
            ("--dev-char-root", self.dev().join("char")),
            ("--kmsg", self.kmsg()),
        ];
        let texts = [
            ("--http-listen", "127.0.0.1:0"),
            ("--health-poll-interval", "100ms"),
            ("--health-quiet", "300ms"),
            ("--health-longest-quiet", "300ms"),
        ];
        let paths = paths
            .into_iter()
            .map(|(flag, path)| (flag, path.into_os_string()));
        let texts = texts.into_iter().map(|(flag, text)| (flag, text.into()));
        paths
            .chain(texts)
            .flat_map(|(flag, value)| [flag.into(), value])
            .collect()
    }

    /// The kernel log: a FIFO, which waits for its next record as the real one
    /// does, and keeps no past.
    pub fn kmsg(&self) -> PathBuf {
        self.root().join("kmsg")
    }

    /// The kernel logs a line of its own.
    pub fn log_in_kernel(&self, seq: u64, line: &str) {
        // Read too: a FIFO that nobody reads would block.
        let mut options = File::options();
        let kmsg = options.read(true).write(true).open(self.kmsg());
        let mut kmsg = kmsg.expect("open the kernel log");
        let since_boot = gpu_device_plugin::health::kept::since_boot().as_micros();
        writeln!(kmsg, "2,{seq},{since_boot},-;{line}").expect("write to the kernel log");
    }

    /// The kernel logs an XID of the GPU, as the driver words it.
    pub fn xid_in_kernel_log(&self, position: usize, seq: u64, xid: u64, text: &str) {
        let bus_id = self.state().gpus[position].pci_bus_id.to_lowercase();
        // `00000000:3b:00.0` in NVML, `0000:3b:00` in the log.
        let address = bus_id[4..].split('.').next().expect("a bus ID").to_owned();
        self.log_in_kernel(seq, &format!("NVRM: Xid (PCI:{address}): {xid}, {text}"));
    }

    /// The node has booted, and this is the boot's ID.
    pub fn boot(&self, id: &str) {
        let folder = self.proc().join("sys/kernel/random");
        fs::create_dir_all(&folder).expect("create a folder");
        write(&folder.join("boot_id"), &format!("{id}\n"));
    }

    /// Where the plugin keeps what is not the driver's.
    pub fn state_dir(&self) -> PathBuf {
        self.root().join("state")
    }

    /// The folder of the driver volumes.
    pub fn volumes(&self) -> PathBuf {
        self.state_dir().join("driver")
    }

    /// The only driver volume.
    pub fn volume(&self) -> PathBuf {
        let entries = fs::read_dir(self.volumes()).expect("a folder of volumes");
        let paths = entries.map(|entry| entry.expect("a volume").path());
        let volumes: Vec<_> = paths
            .filter(|path| {
                let name = path.file_name();
                name.is_some_and(|name| !name.as_encoded_bytes().starts_with(b"."))
            })
            .collect();
        assert_eq!(volumes.len(), 1, "{volumes:?}");
        volumes.into_iter().next().expect("a volume")
    }

    /// A GPU's UUID, by its position in the state.
    pub fn uuid(&self, position: usize) -> String {
        self.lock().state.gpus[position].uuid.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Node> {
        self.node.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Node {
    /// Replaces a file by a rename. The new one's time is later than the last
    /// one's by more than a clock tick: two edits within a tick must differ.
    fn replace(&mut self, root: &TempDir, path: &Path, text: &str) {
        let new = root.path().join("new-state");
        let mut file = File::create(&new).expect("create the new state");
        file.write_all(text.as_bytes()).expect("write the state");
        self.written = SystemTime::now().max(self.written + Duration::from_millis(1));
        file.set_modified(self.written).expect("set the time");
        self.replaced = Instant::now();
        fs::rename(new, path).expect("replace the state file");
    }
}

/// The minor number of a GPU instance's capability. Those of its compute
/// instances follow: eight in each of 15 GPU instances a GPU, after two of the
/// node.
pub fn capability_minor(gpu: u32, gpu_instance: u32) -> u32 {
    3 + (gpu * 15 + gpu_instance) * 9
}

/// The driver lists every capability that there can be.
fn mig_minors_table() -> String {
    let mut table = "config 1\nmonitor 2\n".to_owned();
    for (gpu, gi) in (0..MAX_GPUS as u32).flat_map(|gpu| (0..15).map(move |gi| (gpu, gi))) {
        let minor = capability_minor(gpu, gi);
        table += &format!("gpu{gpu}/gi{gi}/access {minor}\n");
        for ci in 0..8 {
            table += &format!("gpu{gpu}/gi{gi}/ci{ci}/access {}\n", minor + 1 + ci);
        }
    }
    table
}

fn push_xid(state: &mut State, gpu: impl WhichGpu, xid: u64, instances: Option<(u32, u32)>) {
    let uuid = state.gpus[gpu.position(state)].uuid.clone();
    let event = xid_event(state.last_seq() + 1, &uuid, xid, instances);
    state.events.push(event);
}

fn xid_event(seq: u64, uuid: &str, xid: u64, instances: Option<(u32, u32)>) -> Event {
    Event {
        seq,
        uuid: uuid.to_owned(),
        kind: state::XID_CRITICAL_ERROR,
        data: xid,
        gpu_instance_id: instances.map(|(gpu_instance, _)| gpu_instance),
        compute_instance_id: instances.map(|(_, compute_instance)| compute_instance),
    }
}

/// Leaves a file alone that says so already: to whoever reads it meanwhile, one that
/// is written anew is empty for a moment, which a kernel's file never is.
fn write(path: &Path, text: &str) {
    if fs::read(path).is_ok_and(|old| old == text.as_bytes()) {
        return;
    }
    fs::write(path, text).expect("write a file of the node");
}

/// The memory that a profile's name tells: MIG deals it out in eighths, and the
/// number before `gb` is rounded.
fn memory_of(profile: &str, total: u64) -> u64 {
    let gigabytes = profile.split('.').find_map(|part| {
        let (number, _attributes) = part.split_once("gb")?;
        number.parse::<u64>().ok()
    });
    let gigabytes = gigabytes.expect("a profile such as 1g.18gb");
    let all = total.div_ceil(1 << 30);
    (gigabytes * 8 + all / 2) / all * (total / 8)
}

/// A GPU, by its position in the state or by its UUID.
pub trait WhichGpu {
    /// Its position.
    fn position(self, state: &State) -> usize;
}

impl WhichGpu for usize {
    fn position(self, _state: &State) -> usize {
        self
    }
}

impl WhichGpu for &str {
    fn position(self, state: &State) -> usize {
        let mut gpus = state.gpus.iter();
        gpus.position(|gpu| gpu.uuid == self).expect("a known UUID")
    }
}

impl WhichGpu for &String {
    fn position(self, state: &State) -> usize {
        self.as_str().position(state)
    }
}

// --- The driver's libraries ---

/// A library of the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DriverLibrary {
    /// Its name up to `.so`.
    pub stem: &'static str,
    /// What follows `.so.` in its SONAME; nothing is the driver's version.
    soname: Option<&'static str>,
    /// What it is for.
    pub purpose: Purpose,
    /// Libraries that it needs, of the driver's only.
    needs: &'static [&'static str],
}

/// What a library of the driver is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Managing GPUs.
    Utility,
    /// CUDA and OpenCL.
    Compute,
    /// OpenGL and Vulkan.
    Graphics,
}

/// The driver's libraries, as branch 580 names them; graphics by one example.
pub const DRIVER_LIBRARIES: [DriverLibrary; 13] = {
    use Purpose::{Compute, Graphics, Utility};
    const fn library(
        stem: &'static str,
        soname: Option<&'static str>,
        purpose: Purpose,
    ) -> DriverLibrary {
        DriverLibrary {
            stem,
            soname,
            purpose,
            needs: &[],
        }
    }
    [
        library("libnvidia-ml", Some("1"), Utility),
        library("libnvidia-cfg", Some("1"), Utility),
        library("libcuda", Some("1"), Compute),
        library("libcudadebugger", Some("1"), Compute),
        library("libnvidia-opencl", Some("1"), Compute),
        library("libnvidia-gpucomp", None, Compute),
        library("libnvidia-ptxjitcompiler", Some("1"), Compute),
        library("libnvidia-allocator", Some("1"), Compute),
        library("libnvidia-pkcs11", None, Compute),
        library("libnvidia-pkcs11-openssl3", None, Compute),
        library("libnvidia-nvvm", Some("4"), Compute),
        library("libnvidia-tls", None, Graphics),
        DriverLibrary {
            needs: &["libnvidia-tls", "libnvidia-gpucomp"],
            ..library("libnvidia-glcore", None, Graphics)
        },
    ]
};

impl DriverLibrary {
    /// The file's name.
    pub fn file_name(&self, version: &str) -> String {
        format!("{}.so.{version}", self.stem)
    }

    /// The SONAME.
    pub fn soname(&self, version: &str) -> String {
        format!("{}.so.{}", self.stem, self.soname.unwrap_or(version))
    }

    /// The library itself, as it can be written anywhere.
    pub fn shared_object(&self, version: &str) -> SharedObject {
        let needed = DRIVER_LIBRARIES
            .iter()
            .filter(|other| self.needs.contains(&other.stem))
            .map(|other| other.soname(version));
        SharedObject::named(&self.soname(version))
            .needs(needed)
            .needs(["libc.so.6"])
    }

    fn install(&self, folder: &Path, version: &str) {
        let (file, soname) = (self.file_name(version), self.soname(version));
        self.shared_object(version).write(&folder.join(&file));
        if soname != file {
            symlink(file, folder.join(&soname)).expect("link the SONAME");
        }
        // Installers leave a link for the linker with these two.
        if ["libcuda", "libnvidia-ml"].contains(&self.stem) {
            let link = folder.join(format!("{}.so", self.stem));
            symlink(soname, link).expect("link the name without version");
        }
    }
}

// --- The library ---

/// The simulated NVML as it is built now: Cargo decides whether it must be
/// built anew, once a process, in the caller's own profile.
pub fn simulated_nvml_library() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let messages = cargo::build(&["--quiet", "--example", "simulated_nvml"]);
        let messages = messages.expect("build the simulated NVML");
        let library = messages.iter().find_map(built_library);
        library.expect("a library among Cargo's messages")
    })
}

fn built_library(message: &serde_json::Value) -> Option<PathBuf> {
    let ours = message["target"]["name"] == "simulated_nvml";
    let file = message["filenames"].get(0).filter(|_| ours)?;
    Some(PathBuf::from(file.as_str()?))
}
