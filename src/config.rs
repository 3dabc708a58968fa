//! The effective configuration.

pub mod file;
pub mod reload;
pub mod sharing;

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use self::sharing::Sharing;
use crate::choice::shared::Policy;
use crate::driver::DriverRoot;
use crate::driver::capabilities::Capabilities;
use crate::driver::nodes::DevRoot;
use crate::health::xid::XidPolicy;

/// Everything that decides what the process does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where things are on this node.
    pub paths: HostPaths,
    /// The resource that whole GPUs are advertised as.
    pub resource_name: String,
    /// What GPUs in MIG mode are advertised as.
    pub mig_strategy: MigStrategy,
    /// Which devices several containers share.
    pub sharing: Sharing,
    /// Where `/livez`, `/readyz` and `/metrics` are served.
    pub http_listen: SocketAddr,
    /// Time between two polls of the GPUs.
    pub poll_interval: Duration,
    /// What of the driver a container gets.
    pub driver: DriverOptions,
    /// How a container's runtime is told of its devices.
    pub allocation: AllocationOptions,
    /// What is taken for sick, and when for well again.
    pub health: HealthOptions,
    /// What is done about the pods on a sick GPU.
    pub eviction: EvictionOptions,
    /// How the API server is reached, where it is asked at all.
    pub cluster: ClusterOptions,
}

/// What GPUs in MIG mode are advertised as, as NVIDIA's flag has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MigStrategy {
    /// Whole GPUs, whatever their mode.
    #[default]
    None,
    /// Their MIG devices under the name of whole GPUs, where all are alike.
    Single,
    /// Their MIG devices, each profile under a name of its own.
    Mixed,
}

impl MigStrategy {
    /// Every strategy, the default first.
    pub const ALL: [Self; 3] = [Self::None, Self::Single, Self::Mixed];

    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Single => "single",
            Self::Mixed => "mixed",
        }
    }
}

/// What is taken for sick, and when for well again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthOptions {
    /// What each XID is taken for.
    pub policy: XidPolicy,
    /// How long a GPU must have been without a cause before it is healthy again.
    pub quiet: Duration,
    /// Each relapse doubles that time, up to this.
    pub longest_quiet: Duration,
    /// A GPU that falls sick again within this time has had a relapse.
    pub relapse_window: Duration,
}

impl Default for HealthOptions {
    fn default() -> Self {
        Self {
            policy: XidPolicy::default(),
            quiet: Duration::from_secs(60),
            longest_quiet: Duration::from_secs(3600),
            relapse_window: Duration::from_secs(24 * 3600),
        }
    }
}

/// Whether pods on a sick GPU are evicted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EvictionMode {
    /// No connection to the API server.
    #[default]
    Off,
    /// The API server is told of health, and what would be evicted is said.
    Report,
    /// Pods are evicted.
    Evict,
}

impl EvictionMode {
    /// Every mode, the default first.
    pub const ALL: [Self; 3] = [Self::Off, Self::Report, Self::Evict];

    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Report => "report",
            Self::Evict => "evict",
        }
    }
}

/// What is done about the pods on a sick GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvictionOptions {
    /// Whether anything is.
    pub mode: EvictionMode,
    /// From the moment that a GPU turns sick to the eviction of its pods; one
    /// that is well again by then keeps them. A pod's annotation goes first.
    pub grace: Duration,
    /// At most so many evictions a minute.
    pub per_minute: u32,
    /// While a larger share of the node's GPUs is sick, in percent, no pod is
    /// evicted: then it is more likely the node or the driver.
    pub max_sick_percent: u32,
    /// Whether the node has a taint while every one of its GPUs is sick.
    pub taint: bool,
}

impl Default for EvictionOptions {
    fn default() -> Self {
        Self {
            mode: EvictionMode::Off,
            grace: Duration::from_secs(60),
            per_minute: 10,
            max_sick_percent: 50,
            taint: false,
        }
    }
}

/// How the API server is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterOptions {
    /// This node's name; needed where the API server is asked.
    pub node_name: Option<String>,
    /// Else the pod's own service account.
    pub kubeconfig: Option<PathBuf>,
}

/// What of the driver a container gets, and by what way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverOptions {
    /// Which of the driver's files.
    pub capabilities: Capabilities,
    /// Whether a volume is made of them.
    pub volume: VolumeMode,
    /// How long a volume is kept at least once another is answered with.
    pub volume_grace: Duration,
    /// Whether device nodes and their links in `/dev/char` are made where they
    /// are missing.
    pub make_device_nodes: bool,
}

/// When containers get the driver's files from a volume of our own, and when
/// from where they are installed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VolumeMode {
    /// A volume, unless the files cannot change where they are; and their own
    /// place while no volume can be made.
    #[default]
    Auto,
    /// A volume or nothing.
    Always,
    /// Never a volume.
    Never,
}

/// The device nodes and the driver's files, and nothing beside the GPUs.
impl Default for AllocationOptions {
    fn default() -> Self {
        Self {
            strategies: [DeviceListStrategy::Mounts].into(),
            device_ids: DeviceIdStrategy::Uuid,
            pass_device_specs: false,
            cdi_annotation_prefix: "cdi.k8s.io/".into(),
            extras: BTreeSet::new(),
            imex: ImexChannel::Off,
            shared_devices: Policy::Distributed,
        }
    }
}

impl VolumeMode {
    /// Every mode, the default first.
    pub const ALL: [Self; 3] = [Self::Auto, Self::Always, Self::Never];

    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Always => "always",
            Self::Never => "never",
        }
    }
}

impl fmt::Display for VolumeMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a container's runtime is told of its devices, as NVIDIA's flags have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllocationOptions {
    /// `--device-list-strategy`, each once, in the order of the type.
    pub strategies: BTreeSet<DeviceListStrategy>,
    /// What `envvar`, `volume-mounts` and CDI name a device by.
    pub device_ids: DeviceIdStrategy,
    /// Device nodes also for `envvar` and `volume-mounts`.
    pub pass_device_specs: bool,
    /// What the key of a CDI annotation begins with.
    pub cdi_annotation_prefix: String,
    /// GPUDirect Storage, GDRCopy, Mellanox OFED.
    pub extras: BTreeSet<Extra>,
    /// IMEX channel 0.
    pub imex: ImexChannel,
    /// Which of the devices that share GPUs the kubelet is told to take.
    pub shared_devices: Policy,
}

impl AllocationOptions {
    /// Whether answers have this strategy's part.
    #[must_use]
    pub fn has(&self, strategy: DeviceListStrategy) -> bool {
        self.strategies.contains(&strategy)
    }

    /// Whether answers name devices of our CDI spec, which then has to be there.
    #[must_use]
    pub fn uses_cdi(&self) -> bool {
        self.has(DeviceListStrategy::CdiAnnotations) || self.has(DeviceListStrategy::CdiCri)
    }

    /// Whether answers hold device nodes.
    #[must_use]
    pub fn answers_nodes(&self) -> bool {
        let by_nvidia =
            self.has(DeviceListStrategy::Envvar) || self.has(DeviceListStrategy::VolumeMounts);
        self.has(DeviceListStrategy::Mounts) || (self.pass_device_specs && by_nvidia)
    }

    /// Whether containers get device nodes from us, by the answer or by our CDI
    /// spec. Else NVIDIA's container runtime sees to them.
    #[must_use]
    pub fn gives_nodes(&self) -> bool {
        self.answers_nodes() || self.uses_cdi()
    }

    /// The same for the driver's files.
    #[must_use]
    pub fn gives_driver(&self) -> bool {
        self.has(DeviceListStrategy::Mounts) || self.uses_cdi()
    }
}

/// A way in which a container is given its devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeviceListStrategy {
    /// Device nodes and the driver's files: nothing of NVIDIA's on the node.
    Mounts,
    /// `NVIDIA_VISIBLE_DEVICES`, for NVIDIA's container runtime.
    Envvar,
    /// A mount a device, for NVIDIA's container runtime.
    VolumeMounts,
    /// Names of our CDI spec as annotations.
    CdiAnnotations,
    /// Names of our CDI spec in the answer's own field.
    CdiCri,
}

impl DeviceListStrategy {
    /// Every strategy, the default first.
    pub const ALL: [Self; 5] = [
        Self::Mounts,
        Self::Envvar,
        Self::VolumeMounts,
        Self::CdiAnnotations,
        Self::CdiCri,
    ];

    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Mounts => "mounts",
            Self::Envvar => "envvar",
            Self::VolumeMounts => "volume-mounts",
            Self::CdiAnnotations => "cdi-annotations",
            Self::CdiCri => "cdi-cri",
        }
    }
}

/// What NVIDIA's container runtime or a CDI spec knows a device by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceIdStrategy {
    /// The GPU's UUID.
    #[default]
    Uuid,
    /// The GPU's index in NVML's order.
    Index,
}

impl DeviceIdStrategy {
    /// Every strategy, the default first.
    pub const ALL: [Self; 2] = [Self::Uuid, Self::Index];

    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Uuid => "uuid",
            Self::Index => "index",
        }
    }
}

/// What goes beside the GPUs on some nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Extra {
    /// GPUDirect Storage.
    Gds,
    /// GDRCopy.
    Gdrcopy,
    /// Mellanox OFED, the InfiniBand verbs.
    Mofed,
}

impl Extra {
    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Gds => "gds",
            Self::Gdrcopy => "gdrcopy",
            Self::Mofed => "mofed",
        }
    }
}

/// Whether containers get IMEX channel 0 with their GPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ImexChannel {
    /// Not.
    #[default]
    Off,
    /// Where the node has it.
    Optional,
    /// And no GPU without it.
    Required,
}

/// A folder of the host, and where this process sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFolder {
    /// As the host names it.
    pub host: PathBuf,
    /// As this process sees it.
    pub here: PathBuf,
}

impl HostFolder {
    /// What the host names `host`, where the host's `/` is seen at `host_root`.
    ///
    /// Links on the way, as `/var/run` is one, are followed as the host follows
    /// them, as far as the path exists.
    #[must_use]
    pub fn below(host_root: &Path, host: impl Into<PathBuf>) -> Self {
        let host = host.into();
        let root = DriverRoot::new("/", host_root);
        let here = host.ancestors().find_map(|existing| {
            let rest = host.strip_prefix(existing).ok()?;
            let real = root.resolve(existing).ok()?;
            Some(real.components().chain(rest.components()).collect())
        });
        let here = here.unwrap_or_else(|| host.clone());
        Self { host, here }
    }

    /// A folder or file below it.
    #[must_use]
    pub fn join(&self, path: impl AsRef<Path>) -> Self {
        Self {
            host: self.host.join(&path),
            here: self.here.join(&path),
        }
    }
}

/// Where things are on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPaths {
    /// The folder of `kubelet.sock` and of the plugins' sockets.
    pub device_plugin_dir: PathBuf,
    /// NVML's library, where it was named.
    pub nvml_library: Option<PathBuf>,
    /// The root that the driver is installed in.
    pub driver_root: DriverRoot,
    /// The folder that holds `dev`.
    pub dev_root: DevRoot,
    /// The folder of the driver volumes and of what else is kept.
    pub state_dir: HostFolder,
    /// The folder of CDI specs.
    pub cdi_root: HostFolder,
    /// The kubelet's pod-resources socket.
    pub pod_resources: HostFolder,
    /// The kernel log.
    pub kmsg: PathBuf,
    /// Where this process sees the host's `/`.
    pub host_root: PathBuf,
    /// Where sysfs is mounted.
    pub sysfs: PathBuf,
    /// Where procfs is mounted.
    pub procfs: PathBuf,
}

/// On one line, as flags: what would make the same of another process.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let HostPaths {
            device_plugin_dir,
            nvml_library,
            driver_root,
            dev_root,
            state_dir,
            cdi_root,
            pod_resources,
            kmsg,
            host_root,
            ..
        } = &self.paths;
        write!(
            f,
            "--device-plugin-dir={} --driver-root={} --driver-root-ctr-path={} --dev-root={} ",
            device_plugin_dir.display(),
            driver_root.host().display(),
            driver_root.here().display(),
            dev_root.host().display(),
        )?;
        write!(
            f,
            "--host-root={} --state-dir={} --cdi-root={} --pod-resources-socket={} --kmsg={} ",
            host_root.display(),
            state_dir.host.display(),
            cdi_root.host.display(),
            pod_resources.host.display(),
            kmsg.display(),
        )?;
        if let Some(library) = nvml_library {
            write!(f, "--nvml-library={} ", library.display())?;
        }
        write!(f, "{} {} ", self.driver, self.allocation)?;
        write!(
            f,
            "--resource-name={} --mig-strategy={} --http-listen={} --health-poll-interval={}ms ",
            self.resource_name,
            self.mig_strategy.name(),
            self.http_listen,
            self.poll_interval.as_millis(),
        )?;
        write!(f, "{} {}{}", self.health, self.eviction, self.cluster)
    }
}

impl fmt::Display for HealthOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            policy,
            quiet,
            longest_quiet,
            relapse_window,
        } = self;
        write!(
            f,
            "--health-quiet={}ms --health-longest-quiet={}ms --health-relapse-window={}ms{policy}",
            quiet.as_millis(),
            longest_quiet.as_millis(),
            relapse_window.as_millis(),
        )
    }
}

impl fmt::Display for EvictionOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            mode,
            grace,
            per_minute,
            max_sick_percent,
            taint,
        } = self;
        write!(
            f,
            "--eviction={} --eviction-grace={}ms --eviction-rate={per_minute} \
             --eviction-max-sick-percent={max_sick_percent} --node-taint={taint}",
            mode.name(),
            grace.as_millis(),
        )
    }
}

impl fmt::Display for ClusterOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(name) = &self.node_name {
            write!(f, " --node-name={name}")?;
        }
        if let Some(file) = &self.kubeconfig {
            write!(f, " --kubeconfig={}", file.display())?;
        }
        Ok(())
    }
}

impl fmt::Display for DriverOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            capabilities,
            volume,
            volume_grace,
            make_device_nodes,
        } = self;
        write!(
            f,
            "--driver-capabilities={capabilities} --driver-volume={volume} \
             --driver-volume-grace={}ms --make-device-nodes={make_device_nodes}",
            volume_grace.as_millis(),
        )
    }
}

impl fmt::Display for AllocationOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let strategies: Vec<_> = self.strategies.iter().map(|s| s.name()).collect();
        write!(
            f,
            "--device-list-strategy={} --device-id-strategy={} --pass-device-specs={} \
             --cdi-annotation-prefix={} --shared-devices-allocation-policy={}",
            strategies.join(","),
            self.device_ids.name(),
            self.pass_device_specs,
            self.cdi_annotation_prefix,
            self.shared_devices.name(),
        )?;
        for extra in &self.extras {
            write!(f, " --{}-enabled", extra.name())?;
        }
        match self.imex {
            ImexChannel::Off => Ok(()),
            ImexChannel::Optional => f.write_str(" --imex-channel-ids=0"),
            ImexChannel::Required => f.write_str(" --imex-channel-ids=0 --imex-required"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_the_host_is_seen_through_the_hosts_own_links() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("run/cdi")).unwrap();
        std::fs::create_dir_all(root.join("var")).unwrap();
        std::os::unix::fs::symlink("/run", root.join("var/run")).unwrap();
        for (host, here) in [
            ("/var/run/cdi", "run/cdi"),
            ("/var/run/other/cdi", "run/other/cdi"),
            ("/var/lib/x", "var/lib/x"),
            ("/gone", "gone"),
        ] {
            let folder = HostFolder::below(&root, host);
            assert_eq!(folder.host, Path::new(host));
            assert_eq!(folder.here, root.join(here));
        }
        assert_eq!(
            HostFolder::below(Path::new("/"), "/gone/x").here,
            Path::new("/gone/x")
        );
    }
}
