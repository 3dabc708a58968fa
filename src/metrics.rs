//! What is counted and measured, in OpenMetrics.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::cluster::ClusterMetrics;
use crate::eviction::metrics::EvictionMetrics;
use crate::health::kept::since_boot;
use crate::health::report::HealthReport;

/// Devices of one resource in one state of health.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct HealthLabels {
    /// The resource's name.
    pub resource: String,
    /// `Healthy` or `Unhealthy`.
    pub health: &'static str,
}

/// One resource.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ResourceLabels {
    /// The resource's name.
    pub resource: String,
}

/// Registrations of one resource that ended in one way.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RegistrationLabels {
    /// The resource's name.
    pub resource: String,
    /// `ok`, `refused`, `timeout` or `error`.
    pub result: &'static str,
}

/// One state of the connection between one resource's plugin and the kubelet.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ConnectionLabels {
    /// The resource's name.
    pub resource: String,
    /// See `plugin::machine::Phase`.
    pub state: &'static str,
}

/// Calls of one method that were answered with one gRPC code.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RpcLabels {
    /// The resource's name.
    pub resource: String,
    /// The method's name, such as `Allocate`.
    pub method: &'static str,
    /// The gRPC code, such as `Ok` or `InvalidArgument`.
    pub code: String,
}

/// XIDs of one GPU.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct XidLabels {
    /// The GPU's UUID, or `unknown`.
    pub uuid: String,
    /// The XID.
    pub xid: u64,
}

/// One GPU.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct GpuLabels {
    /// The GPU's UUID.
    pub uuid: String,
}

/// Why a GPU is sick.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct SickLabels {
    /// The GPU's UUID.
    pub uuid: String,
    /// See `health::signals`.
    pub reason: &'static str,
    /// What ends it: `reset`, `reboot` or `replace`.
    pub class: &'static str,
}

/// What is reported of a GPU and not acted on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct NoteLabels {
    /// The GPU's UUID.
    pub uuid: String,
    /// See `health::signals`.
    pub reason: &'static str,
}

/// Errors of one function of NVML.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct NvmlLabels {
    /// The function, as NVML's manual names it.
    pub call: &'static str,
}

/// Readings of the configuration file while the process ran.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReloadLabels {
    /// `ok` or `failed`.
    pub result: &'static str,
}

/// All metrics and the registry that they are in.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// `gpu_device_plugin_devices`.
    pub devices: Family<HealthLabels, Gauge>,
    /// `gpu_device_plugin_registrations_total`.
    pub registrations: Family<RegistrationLabels, Counter>,
    /// `gpu_device_plugin_kubelet_connection`: 1 for the state that holds.
    pub connection: Family<ConnectionLabels, Gauge>,
    /// `gpu_device_plugin_allocated_devices_total`.
    pub allocated: Family<ResourceLabels, Counter>,
    /// `gpu_device_plugin_rpc_duration_seconds`.
    pub rpcs: Family<RpcLabels, Histogram>,
    /// `gpu_device_plugin_rival_plugins`.
    pub rivals: Family<ResourceLabels, Gauge>,
    /// `gpu_device_plugin_xids_total`.
    pub xids: Family<XidLabels, Counter>,
    /// `gpu_device_plugin_gpu_healthy`: 1 or 0.
    pub gpu_healthy: Family<GpuLabels, Gauge>,
    /// `gpu_device_plugin_gpu_sick`: 1 while it is, with the reason.
    pub gpu_sick: Family<SickLabels, Gauge>,
    /// `gpu_device_plugin_gpu_sick_since_timestamp_seconds`: Unix time.
    pub gpu_sick_since: Family<GpuLabels, Gauge>,
    /// `gpu_device_plugin_gpu_note`: 1 while it holds.
    pub gpu_note: Family<NoteLabels, Gauge>,
    /// Of the requests to the API server.
    pub cluster: ClusterMetrics,
    /// Of the eviction.
    pub eviction: EvictionMetrics,
    /// `gpu_device_plugin_nvml_errors_total`.
    pub nvml_errors: Family<NvmlLabels, Counter>,
    /// `gpu_device_plugin_unidentified_gpus`.
    pub unidentified: Gauge,
    /// `gpu_device_plugin_nvml_session`: 1 while there is one.
    pub session: Gauge,
    /// `gpu_device_plugin_driver_volume`: 1 while containers get the driver from one.
    pub volume: Gauge,
    /// `gpu_device_plugin_config_reloads_total`.
    pub config_reloads: Family<ReloadLabels, Counter>,
    /// `gpu_device_plugin_config_last_reload_successful`: 1, or 0 while the file has
    /// faults and an earlier one holds.
    pub config_last_reload: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All metrics, at zero, registered.
    pub fn new() -> Self {
        let rpcs = Family::new_with_constructor(rpc_buckets as fn() -> Histogram);
        let mut metrics = Self {
            registry: Registry::with_prefix("gpu_device_plugin"),
            devices: Family::default(),
            registrations: Family::default(),
            connection: Family::default(),
            allocated: Family::default(),
            rpcs,
            rivals: Family::default(),
            xids: Family::default(),
            cluster: ClusterMetrics::default(),
            eviction: EvictionMetrics::default(),
            gpu_healthy: Family::default(),
            gpu_sick: Family::default(),
            gpu_sick_since: Family::default(),
            gpu_note: Family::default(),
            nvml_errors: Family::default(),
            unidentified: Gauge::default(),
            session: Gauge::default(),
            volume: Gauge::default(),
            config_reloads: Family::default(),
            config_last_reload: Gauge::default(),
        };
        metrics.register();
        metrics.register_config();
        metrics.register_health();
        metrics.cluster.register(&mut metrics.registry);
        metrics.eviction.register(&mut metrics.registry);
        metrics
    }

    /// The text that Prometheus reads (OpenMetrics 1.0).
    ///
    /// # Errors
    ///
    /// A metric could not be written; none of ours is known to.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::with_capacity(8192);
        text::encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// Takes over the health of every GPU.
    pub fn tell_health(&self, report: &HealthReport) {
        let boot = unix_time().saturating_sub(since_boot());
        self.gpu_healthy.clear();
        self.gpu_sick.clear();
        self.gpu_sick_since.clear();
        self.gpu_note.clear();
        for gpu in &report.gpus {
            let uuid = gpu.uuid.to_string();
            let labels = GpuLabels { uuid: uuid.clone() };
            let healthy = self.gpu_healthy.get_or_create(&labels);
            healthy.set(i64::from(!gpu.is_sick()));
            for note in &gpu.notes {
                let (uuid, reason) = (uuid.clone(), note.signal().reason);
                let note = self.gpu_note.get_or_create(&NoteLabels { uuid, reason });
                note.set(1);
            }
            let Some(sickness) = gpu.worst() else {
                continue;
            };
            let (reason, class) = (sickness.cause.signal().reason, sickness.class.name());
            let why = SickLabels {
                uuid,
                reason,
                class,
            };
            self.gpu_sick.get_or_create(&why).set(1);
            let since = boot.saturating_add(sickness.since).as_secs();
            let since = i64::try_from(since).unwrap_or(i64::MAX);
            self.gpu_sick_since.get_or_create(&labels).set(since);
        }
    }

    fn register_health(&mut self) {
        let Self { registry, .. } = self;
        registry.register(
            "gpu_healthy",
            "Whether a GPU is well, as a whole and in every part",
            self.gpu_healthy.clone(),
        );
        registry.register(
            "gpu_sick",
            "Why a GPU is sick, and what ends it: 1 for the reason that holds",
            self.gpu_sick.clone(),
        );
        registry.register(
            "gpu_sick_since_timestamp_seconds",
            "Unix time at which a GPU turned sick",
            self.gpu_sick_since.clone(),
        );
        registry.register(
            "gpu_note",
            "What is reported of a GPU and not acted on: 1 while it holds",
            self.gpu_note.clone(),
        );
    }

    fn register_config(&mut self) {
        let Self { registry, .. } = self;
        registry.register(
            "config_reloads",
            "Readings of the configuration file since the start, by result",
            self.config_reloads.clone(),
        );
        registry.register(
            "config_last_reload_successful",
            "Whether what the configuration file says holds: 0 while it has faults",
            self.config_last_reload.clone(),
        );
        // What the process started with had none.
        self.config_last_reload.set(1);
    }

    fn register(&mut self) {
        let Self { registry, .. } = self;
        registry.register(
            "build",
            "The version that runs",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        registry.register(
            "devices",
            "Devices advertised, by health",
            self.devices.clone(),
        );
        registry.register(
            "registrations",
            "Registrations with the kubelet that were tried, by result",
            self.registrations.clone(),
        );
        registry.register(
            "kubelet_connection",
            "State of the connection with the kubelet: 1 for the one that holds",
            self.connection.clone(),
        );
        registry.register(
            "allocated_devices",
            "Devices named in answers to Allocate",
            self.allocated.clone(),
        );
        registry.register_with_unit(
            "rpc_duration",
            "Calls of the kubelet and how long each took, by method and gRPC code",
            Unit::Seconds,
            self.rpcs.clone(),
        );
        registry.register(
            "rival_plugins",
            "Live sockets of other device plugins for the same resource in the kubelet's folder",
            self.rivals.clone(),
        );
        registry.register(
            "xids",
            "Critical XID events, by GPU and XID",
            self.xids.clone(),
        );
        registry.register(
            "nvml_errors",
            "Calls of NVML that failed or did not come back, by function",
            self.nvml_errors.clone(),
        );
        registry.register(
            "unidentified_gpus",
            "GPUs that are enumerated and do not tell their UUID: they cannot be listed",
            self.unidentified.clone(),
        );
        registry.register(
            "driver_volume",
            "Whether containers get the driver from a volume",
            self.volume.clone(),
        );
        registry.register(
            "nvml_session",
            "Whether there is a session with NVML",
            self.session.clone(),
        );
    }
}

fn unix_time() -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default()
}

fn rpc_buckets() -> Histogram {
    Histogram::new([
        0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 5.0,
    ])
}
