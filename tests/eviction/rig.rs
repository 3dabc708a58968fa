//! A node with GPUs and pods, and an evictor beside it.

use std::sync::Arc;
use std::time::Duration;

use gpu_device_plugin::cluster::ApiServer;
use gpu_device_plugin::cluster::metrics::ClusterMetrics;
use gpu_device_plugin::config::{ClusterOptions, EvictionMode, EvictionOptions};
use gpu_device_plugin::device::DeviceId;
use gpu_device_plugin::eviction::metrics::{EvictionMetrics, OutcomeLabels};
use gpu_device_plugin::eviction::plan::Pace;
use gpu_device_plugin::eviction::retry::Pauses;
use gpu_device_plugin::eviction::{Evictor, Places};
use gpu_device_plugin::gpu::GpuUuid;
use gpu_device_plugin::health::cause::Cause;
use gpu_device_plugin::health::class::Class;
use gpu_device_plugin::health::kept::since_boot;
use gpu_device_plugin::health::report::{DeviceStatus, GpuStatus, HealthReport, Sickness};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::common::api_server::{ApiServerPeer, Options, node, pod};
use crate::common::pod_resources::PodResourcesPeer;
use crate::common::running::LONG;

pub(crate) const NODE: &str = "n1";
pub(crate) const RESOURCE: &str = "nvidia.com/gpu";
pub(crate) const NAMESPACE: &str = "team";
const BOOT: &str = "9f2b0f4e-6d1b-4c53-a9a0-6c0f0f6f5e11";

/// The node, and all that it takes to evict on it.
pub(crate) struct Rig {
    pub(crate) cluster: ApiServerPeer,
    pub(crate) kubelet: PodResourcesPeer,
    pub(crate) folder: TempDir,
    pub(crate) reports: watch::Sender<Arc<HealthReport>>,
    pub(crate) options: watch::Sender<EvictionOptions>,
    pub(crate) metrics: EvictionMetrics,
    evictor: Option<JoinHandle<()>>,
}

/// Evicts at once.
pub(crate) fn evict() -> EvictionOptions {
    EvictionOptions {
        mode: EvictionMode::Evict,
        grace: Duration::ZERO,
        per_minute: 100,
        ..EvictionOptions::default()
    }
}

/// As the plugin does it, in milliseconds for minutes.
fn pace() -> Pace {
    let milliseconds = Duration::from_millis;
    let pauses = Pauses {
        first: milliseconds(5),
        longest: milliseconds(50),
    };
    Pace {
        spread: Duration::ZERO,
        longest_spread: Duration::ZERO,
        rescan: milliseconds(50),
        recheck: milliseconds(500),
        list: pauses,
        api: pauses,
        pod: pauses,
        budget: pauses,
        least_budget: milliseconds(1),
        ..Pace::default()
    }
}

impl Rig {
    /// With the evictor at work, and so many GPUs that are well.
    pub(crate) fn start(gpus: usize, options: EvictionOptions) -> Self {
        Self::with(gpus, options, Options::default())
    }

    pub(crate) fn with(gpus: usize, options: EvictionOptions, cluster: Options) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let cluster = ApiServerPeer::with(cluster).unwrap();
        cluster.add_node(node(NODE));
        let mut rig = Self {
            cluster,
            kubelet: PodResourcesPeer::start(folder.path()).unwrap(),
            folder,
            reports: watch::Sender::new(Arc::new(healthy(gpus))),
            options: watch::Sender::new(options),
            metrics: EvictionMetrics::default(),
            evictor: None,
        };
        rig.start_evictor();
        rig
    }

    /// Starts the evictor, as after a crash if there was one.
    pub(crate) fn start_evictor(&mut self) {
        self.evictor = Some(self.another_evictor());
    }

    pub(crate) fn another_evictor(&self) -> JoinHandle<()> {
        let options = ClusterOptions {
            node_name: Some(NODE.into()),
            kubeconfig: Some(self.cluster.kubeconfig()),
        };
        let metrics = ClusterMetrics::default();
        let api = ApiServer::connect(&options, "plugin-x", metrics);
        let places = Places {
            pod_resources: self.kubelet.socket().into(),
            state_dir: self.folder.path().join("state"),
            boot_id: BOOT.into(),
        };
        let evictor = Evictor::new(api.unwrap(), places, self.metrics.clone());
        let evictor = evictor.with_pace(pace());
        let (reports, options) = (self.reports.subscribe(), self.options.subscribe());
        tokio::spawn(evictor.run(reports, options))
    }

    /// Ends the evictor where it is.
    pub(crate) async fn crash(&mut self) {
        let evictor = self.evictor.take().unwrap();
        evictor.abort();
        drop(evictor.await);
    }

    // === Pods and GPUs ===

    /// A pod that runs and holds these GPUs. Its UID.
    pub(crate) fn pod(&self, name: &str, gpus: &[usize]) -> String {
        self.pod_like(name, gpus, |_| {})
    }

    /// The same, changed before it is made.
    pub(crate) fn pod_like(
        &self,
        name: &str,
        gpus: &[usize],
        change: impl FnOnce(&mut Value),
    ) -> String {
        let mut pod = pod(NAMESPACE, name, "app", NODE);
        change(&mut pod);
        self.hold(name, gpus);
        self.cluster.add_pod(pod)
    }

    /// A pod with annotations.
    pub(crate) fn annotated(&self, name: &str, gpus: &[usize], annotations: Value) -> String {
        self.pod_like(name, gpus, |pod| {
            pod["metadata"]["annotations"] = annotations;
        })
    }

    pub(crate) fn hold(&self, name: &str, gpus: &[usize]) {
        let ids: Vec<_> = gpus.iter().map(|gpu| format!("GPU-{gpu}")).collect();
        let ids: Vec<_> = ids.iter().map(String::as_str).collect();
        self.kubelet.hold(NAMESPACE, name, RESOURCE, &ids);
    }

    /// These GPUs turn sick now.
    pub(crate) fn sicken(&self, gpus: &[usize]) {
        let now = since_boot();
        self.change(gpus, |sickness| {
            sickness.get_or_insert(Sickness {
                cause: Cause::Xid(79),
                class: Class::Reboot,
                since: now,
                recovering_until: None,
            });
        });
    }

    /// These GPUs are well again.
    pub(crate) fn heal(&self, gpus: &[usize]) {
        self.change(gpus, |sickness| *sickness = None);
    }

    pub(crate) fn change(&self, gpus: &[usize], change: impl Fn(&mut Option<Sickness>)) {
        self.reports.send_modify(|report| {
            let report = Arc::make_mut(report);
            for &gpu in gpus {
                let gpu = &mut report.gpus[gpu];
                change(&mut gpu.sickness);
                gpu.devices[0].sickness = gpu.sickness.clone();
            }
        });
    }

    // === What is seen ===

    /// How many evictions were accepted.
    pub(crate) fn evictions(&self) -> usize {
        self.cluster.count("create", "pods/eviction")
    }

    /// Waits until so many evictions were accepted.
    pub(crate) async fn evicted(&self, evictions: usize) {
        self.wait("evictions", |rig| {
            (rig.evictions() >= evictions).then_some(())
        })
        .await;
        assert_eq!(self.evictions(), evictions, "{:#?}", self.cluster.summary());
    }

    /// The reasons of the events on a pod, sorted.
    pub(crate) fn told(&self, pod: &str) -> Vec<String> {
        let events = self.cluster.events("Pod", pod);
        let reasons = events.iter().map(|event| event["reason"].as_str().unwrap());
        let mut reasons: Vec<_> = reasons.map(String::from).collect();
        reasons.sort();
        reasons
    }

    /// Waits until a pod was told this. The event.
    pub(crate) async fn tells(&self, pod: &str, reason: &str) -> Value {
        let what = format!("{pod} to be told {reason}");
        self.wait(&what, |rig| {
            let events = rig.cluster.events("Pod", pod);
            events.into_iter().find(|event| event["reason"] == reason)
        })
        .await
    }

    pub(crate) async fn wait<T>(&self, what: &str, mut probe: impl FnMut(&Self) -> Option<T>) -> T {
        let result = self.cluster.wait_for(what, LONG, |_| probe(self)).await;
        result.unwrap()
    }

    /// Lets the evictor look at everything again, and again.
    pub(crate) async fn some_time(&self) {
        self.kubelet.more_lists(6, LONG).await;
    }

    pub(crate) fn counted(&self, outcome: &'static str) -> u64 {
        let labels = OutcomeLabels { outcome };
        self.metrics.evictions.get_or_create(&labels).get()
    }

    /// Waits until the evictor knows of so many pods on sick GPUs.
    pub(crate) async fn pods_on_sick_gpus(&self, pods: i64) {
        self.measured(|rig| rig.metrics.pods.get() == pods).await;
    }

    /// Waits for what the metrics say, which ring no bell.
    pub(crate) async fn measured(&self, so: impl Fn(&Self) -> bool) {
        let waiting = async {
            while !so(self) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(LONG, waiting).await.unwrap();
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(evictor) = &self.evictor {
            evictor.abort();
        }
    }
}

/// Makes a pod its StatefulSet's.
pub(crate) fn stateful(pod: &mut Value) {
    pod["metadata"]["ownerReferences"][0]["kind"] = json!("StatefulSet");
}

fn healthy(gpus: usize) -> HealthReport {
    let gpu = |index: usize| {
        let uuid = GpuUuid::from(format!("GPU-{index}").as_str());
        GpuStatus {
            index: u32::try_from(index).ok(),
            devices: vec![DeviceStatus {
                resource: RESOURCE.into(),
                id: DeviceId::from(&uuid),
                sickness: None,
            }],
            uuid,
            sickness: None,
            notes: Vec::new(),
        }
    };
    HealthReport {
        complete: true,
        node: None,
        gpus: (0..gpus).map(gpu).collect(),
    }
}
