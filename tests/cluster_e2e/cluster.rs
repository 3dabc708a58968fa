//! A cluster of one node: a real control plane, kubelet and runtime, simulated GPUs,
//! and the plugin as the DaemonSet that deploy/ has.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::host::{self, Before, Turn};
use super::kubelet::{Kubelet, NODE};
use super::manifests;
use super::runtime::Runtime;
use crate::common::containerd;
use crate::common::daemon::Daemon;
use crate::common::device_nodes::DeviceNodes;
use crate::common::nvml::SimulatedNode;
use crate::common::plugin::http_get;
use crate::common::system::skip;
use crate::common::wait::eventually;
use crate::control_plane::door::{Door, path_of};
use crate::control_plane::{ControlPlane, Controllers, Programs};

/// All that is started.
struct Binaries {
    control_plane: Programs,
    controllers: Controllers,
    kubelet: PathBuf,
    runtime: containerd::Programs,
}

/// Dropped, it is ended by force; `end` has all pods ended first, and sees whether
/// anything is left.
pub struct Cluster {
    kubelet: Kubelet,
    pub runtime: Runtime,
    control_plane: ControlPlane,
    pub gpus: SimulatedNode,
    http: u16,
    before: Before,
    began: Instant,
    folder: TempDir,
    /// Held while anything of the above exists.
    _turn: Turn,
}

impl Binaries {
    fn find() -> Result<Self, String> {
        let (kubelet, runtime) = host::programs()?;
        Ok(Self {
            control_plane: Programs::find()?,
            controllers: Controllers::find()?,
            kubelet,
            runtime,
        })
    }
}

impl Cluster {
    /// One whose node has so many GPUs, all of them allocatable. None where this
    /// machine lacks what it takes, which is said.
    pub async fn start(test: &str, gpus: usize, flags: &[&str]) -> Option<Self> {
        let binaries = match Binaries::find() {
            Ok(binaries) => binaries,
            Err(missing) => {
                let needs = "needs root, runc, openssl, containerd and the programs of \
                             KUBE_APISERVER, KUBE_CONTROLLER_MANAGER, KUBE_SCHEDULER, KUBELET \
                             and ETCD";
                skip(test, &format!("{needs} ({missing})"));
                return None;
            }
        };
        let simulated = SimulatedNode::new(gpus);
        let turn = Turn::wait();
        println!("--- {test}");
        host::prepare();
        let folder = tempfile::Builder::new().prefix(host::PREFIX).tempdir();
        let folder = folder.expect("create a temporary folder");
        let before = Before::look();
        let began = Instant::now();
        manifests::join_networks(folder.path());
        let control_plane = ControlPlane::start(&binaries.control_plane, folder.path()).await;
        let mut cluster = Self {
            kubelet: Kubelet::new(binaries.kubelet, folder.path()),
            runtime: Runtime::new(binaries.runtime, folder.path()),
            control_plane,
            gpus: simulated,
            http: manifests::free_port(),
            before,
            began,
            folder,
            _turn: turn,
        };
        cluster.say("the API server is ready");
        cluster.start_node(&binaries.controllers).await;
        cluster.start_plugin(gpus, flags).await;
        Some(cluster)
    }

    async fn start_node(&mut self, controllers: &Controllers) {
        self.runtime.start();
        self.say("containerd runs and has the image");
        self.kubelet.join(self.control_plane.kubelet(NODE));
        self.kubelet.start().await;
        self.control_plane.start_controllers(controllers).await;
        eventually("the node is ready", async || {
            let conditions = self.conditions().await;
            match conditions.iter().find(|one| one["type"] == "Ready") {
                Some(ready) if ready["status"] == "True" => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        self.say("the node is ready");
    }

    async fn start_plugin(&mut self, gpus: usize, flags: &[&str]) {
        DeviceNodes::make(&self.dev_root().join("dev"), gpus);
        self.control_plane.apply("policy.yaml").await;
        self.control_plane.apply("policy-own-pods.yaml").await;
        let arguments = self.arguments(flags);
        for mut object in manifests::of_deploy("eviction.yaml") {
            if object["kind"] == "DaemonSet" {
                let server = self.control_plane.port();
                manifests::fit_daemon_set(&mut object, &arguments, self.http, server);
            }
            self.apply(&object).await;
        }
        self.allocatable(gpus).await;
        self.say(&format!("{gpus} GPUs are allocatable"));
    }

    /// A plugin's flags, by their names, in place of the manifest's or beside them.
    fn arguments(&self, flags: &[&str]) -> Vec<String> {
        let host = |flag: &str, path: &Path| format!("--{flag}={}", path.display());
        let below =
            |flag: &str, path: &Path| format!("--{flag}={}{}", manifests::ROOT, path.display());
        let mut arguments = vec![
            host("driver-root", &self.gpus.driver_root()),
            host("dev-root", &self.dev_root()),
            host("dev-char-root", &self.dev_root().join("dev/char")),
            host("state-dir", &self.folder().join("plugin-state")),
            host("pod-resources-socket", &self.kubelet.pod_resources_socket()),
            below("nvml-library", &self.gpus.nvml_library()),
            below("sysfs-root", &self.gpus.sys()),
            below("procfs-root", &self.gpus.proc()),
            format!("--http-listen=0.0.0.0:{}", self.http),
            "--health-poll-interval=100ms".into(),
        ];
        arguments.extend(flags.iter().map(|&flag| flag.to_owned()));
        arguments
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn dev_root(&self) -> PathBuf {
        self.folder().join("dev-root")
    }

    /// A line of the transcript.
    pub fn say(&self, what: &str) {
        println!("[{:7.3} s] {what}", self.began.elapsed().as_secs_f64());
    }

    // --- What is asked ---

    /// Who may do everything.
    pub fn admin(&self) -> &Door {
        &self.control_plane.admin
    }

    pub async fn apply(&self, object: &Value) {
        let applied = self.admin().apply(object).await;
        applied.unwrap_or_else(|refusal| panic!("{}: {refusal}", path_of(object)));
    }

    /// The objects that a path lists.
    pub async fn list(&self, path: &str) -> Vec<Value> {
        let list = self.admin().get(path).await;
        let mut list = list.unwrap_or_else(|refusal| panic!("{path}: {refusal}"));
        match list["items"].take() {
            Value::Array(items) => items,
            _ => Vec::new(),
        }
    }

    async fn node(&self) -> Value {
        let node = self.admin().get(&format!("/api/v1/nodes/{NODE}")).await;
        node.unwrap_or_default()
    }

    /// The node's conditions.
    pub async fn conditions(&self) -> Vec<Value> {
        match self.node().await["status"]["conditions"].take() {
            Value::Array(conditions) => conditions,
            _ => Vec::new(),
        }
    }

    /// Waits until the scheduler may give away so many GPUs.
    pub async fn allocatable(&self, gpus: usize) {
        let what = format!("{gpus} GPUs are allocatable");
        eventually(&what, async || {
            let node = self.node().await;
            let allocatable = &node["status"]["allocatable"]["nvidia.com/gpu"];
            if allocatable.as_str() == Some(&gpus.to_string()) {
                Ok(())
            } else {
                Err(format!("{allocatable}; {}", self.plugin_log()))
            }
        })
        .await;
    }

    /// The IDs of the devices that a pod has.
    pub async fn devices_of(&self, pod: &str) -> Vec<String> {
        let devices = self.kubelet.devices_of_pod(pod).await;
        devices.expect("the pod's devices").into_iter().collect()
    }

    /// The value of a sample of the plugin's, by its name without our prefix.
    pub async fn metric(&self, sample: &str) -> Option<f64> {
        let (_status, text) = http_get(([127, 0, 0, 1], self.http).into(), "/metrics")
            .await
            .ok()?;
        let sample = format!("gpu_device_plugin_{sample} ");
        let value = text.lines().find_map(|line| line.strip_prefix(&sample))?;
        value.parse().ok()
    }

    /// All that the plugin has said, in all its lives.
    pub fn plugin_log(&self) -> String {
        manifests::logs(
            &self.folder().join("logs"),
            "kube-system_gpu-device-plugin-",
        )
    }

    /// Kills the plugin's process, and waits until the kubelet has started it again.
    pub async fn kill_plugin(&self) {
        let container = self.plugin_container().await;
        let id = container["containerID"].as_str().expect("a container");
        self.runtime
            .kill_container(id.trim_start_matches("containerd://"));
        self.say("the plugin is killed");
        let restarts = container["restartCount"].as_u64().map(|count| count + 1);
        eventually("the plugin runs again", async || {
            let container = self.plugin_container().await;
            let running = container["state"]["running"].is_object();
            if running && container["restartCount"].as_u64() == restarts {
                Ok(())
            } else {
                Err(container)
            }
        })
        .await;
        self.say("the plugin runs again");
    }

    async fn plugin_container(&self) -> Value {
        let label = "app.kubernetes.io%2Fname%3Dgpu-device-plugin";
        let path = format!("/api/v1/namespaces/kube-system/pods?labelSelector={label}");
        let mut pods = self.list(&path).await;
        assert_eq!(pods.len(), 1, "{pods:?}");
        pods[0]["status"]["containerStatuses"][0].take()
    }

    // --- The end ---

    /// Ends all in order; what is left then fails the test.
    pub async fn end(mut self) {
        let began = Instant::now();
        self.control_plane.end_controllers();
        for pod in self.list("/api/v1/pods").await {
            let path = format!("{}?gracePeriodSeconds=1", path_of_pod(&pod));
            drop(self.admin().delete(&path).await);
        }
        let folder = self.folder().to_owned();
        eventually("all pods are gone", async || {
            let left = host::left_by_pods(&folder);
            if left.is_empty() { Ok(()) } else { Err(left) }
        })
        .await;
        let left = self.tear_down();
        println!("cleaned up within {} ms", began.elapsed().as_millis());
        assert!(left.is_empty(), "left behind:\n  {}", left.join("\n  "));
    }

    /// Says what had to be removed.
    fn tear_down(&mut self) -> Vec<String> {
        self.kubelet.stop();
        self.runtime.end();
        self.control_plane.kill();
        let left = host::sweep(self.folder.path());
        self.before.restore();
        left
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let kubelet = self.kubelet.daemon().map(Daemon::tail);
            println!("the plugin:\n{}", self.plugin_log());
            println!("containerd:\n{}", self.runtime.log());
            println!("kubelet:\n{}", kubelet.unwrap_or_default());
            println!("control plane:\n{}", self.control_plane.logs());
            self.tear_down();
        }
    }
}

/// In a list, objects do not say their kind.
fn path_of_pod(pod: &Value) -> String {
    let metadata = &pod["metadata"];
    path_of(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata}))
}
