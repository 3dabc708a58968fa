//! A kubelet: a standalone one with static pods, or one of a cluster.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use gpu_device_plugin::api::podresources::pod_resources_lister_client::PodResourcesListerClient;
use gpu_device_plugin::api::podresources::{
    AllocatableResourcesRequest, ContainerDevices, ListPodResourcesRequest,
};
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use super::host::DEVICE_PLUGINS;
use crate::common::containerd::socket;
use crate::common::daemon::Daemon;
use crate::common::plugin::http_get;
use crate::common::wait::{LONG, eventually, eventually_every};

/// The resource under test.
pub const RESOURCE: &str = "nvidia.com/gpu";

/// The name of the node, which ends the names of static pods.
pub const NODE: &str = "e2e";

/// The NUMA nodes of a kubelet that aligns what a pod gets.
#[derive(Debug)]
pub struct Alignment {
    /// What it sees as /sys/devices/system/node.
    pub nodes: PathBuf,
    /// The processors that no pod gets for itself.
    pub reserved: String,
}

/// For a shell in a mount namespace of its own. Exec, for what ends the process to
/// end the kubelet.
const IN_PLACE: &str = "mount --bind \"$0\" /sys/devices/system/node && exec \"$@\"";

/// A kubelet, running or not.
#[derive(Debug)]
pub struct Kubelet {
    program: PathBuf,
    folder: PathBuf,
    /// Of the read-only API.
    api: SocketAddr,
    health: SocketAddr,
    /// Of the API server, if it has one.
    kubeconfig: Option<PathBuf>,
    alignment: Option<Alignment>,
    daemon: Option<Daemon>,
}

impl Kubelet {
    /// Configures it, in `folder`.
    pub fn new(program: PathBuf, folder: &Path) -> Self {
        let kubelet = Self {
            program,
            folder: folder.into(),
            api: free_address(),
            health: free_address(),
            kubeconfig: None,
            alignment: None,
            daemon: None,
        };
        fs::create_dir(kubelet.manifests()).expect("create the folder of manifests");
        kubelet.configure();
        kubelet
    }

    /// Has it join a cluster, as a node that is labelled to have GPUs.
    pub fn join(&mut self, kubeconfig: PathBuf) {
        self.kubeconfig = Some(kubeconfig);
    }

    /// Has it give a pod all from one NUMA node, or nothing.
    pub fn align(&mut self, alignment: Alignment) {
        self.alignment = Some(alignment);
        self.configure();
    }

    fn configure(&self) {
        let folder = self.folder.display();
        let mut config = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "staticPodPath": self.manifests(),
            "containerRuntimeEndpoint": format!("unix://{}", socket(&self.folder).display()),
            "podLogsDir": format!("{folder}/logs"),
            "volumePluginDir": format!("{folder}/volume-plugins"),
            "failCgroupV1": false,
            "failSwapOn": false,
            "makeIPTablesUtilChains": false,
            "localStorageCapacityIsolation": false,
            "enforceNodeAllocatable": [],
            "address": "127.0.0.1",
            "port": 0,
            "readOnlyPort": self.api.port(),
            "healthzPort": self.health.port(),
            // How full the disks are is none of the tests' business.
            "evictionHard": {"memory.available": "10Mi"},
            "nodeStatusUpdateFrequency": "1s",
            "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
            "authorization": {"mode": "AlwaysAllow"},
        });
        if let Some(alignment) = &self.alignment {
            config["topologyManagerPolicy"] = "single-numa-node".into();
            config["cpuManagerPolicy"] = "static".into();
            config["reservedSystemCPUs"] = (*alignment.reserved).into();
        }
        // JSON is YAML.
        fs::write(self.config(), config.to_string()).expect("configure the kubelet");
    }

    fn config(&self) -> PathBuf {
        self.folder.join("kubelet.yaml")
    }

    fn manifests(&self) -> PathBuf {
        self.folder.join("manifests")
    }

    pub fn daemon(&self) -> Option<&Daemon> {
        self.daemon.as_ref()
    }

    fn command(&self) -> Command {
        let Some(alignment) = &self.alignment else {
            return Command::new(&self.program);
        };
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation=private", "sh", "-c", IN_PLACE])
            .args([&alignment.nodes, &self.program]);
        command
    }

    /// Starts it, and says when it first accepted on its socket for plugins.
    pub async fn start(&mut self) -> Instant {
        let mut command = self.command();
        command
            .arg(format!("--config={}", self.config().display()))
            .arg(format!(
                "--root-dir={}",
                self.folder.join("kubelet").display()
            ))
            .arg(format!("--cert-dir={}", self.folder.join("pki").display()))
            .arg(format!("--hostname-override={NODE}"));
        if let Some(kubeconfig) = &self.kubeconfig {
            command
                .arg(format!("--kubeconfig={}", kubeconfig.display()))
                .arg("--node-labels=nvidia.com/gpu.present=true");
        }
        let daemon = Daemon::start("kubelet", &mut command, &self.folder);
        let daemon = self.daemon.insert(daemon);
        let plugins = Path::new(DEVICE_PLUGINS).join("kubelet.sock");
        let often = Duration::from_millis(1);
        eventually_every(often, "the kubelet accepts plugins", async || {
            daemon.assert_running();
            let accepted = UnixStream::connect(&plugins).await;
            accepted
                .map(|_| Instant::now())
                .map_err(|error| error.to_string())
        })
        .await
    }

    /// Waits until it says of itself that it is well.
    pub async fn wait_healthy(&self) {
        eventually("the kubelet is healthy", async || {
            match http_get(self.health, "/healthz").await {
                Ok((200, _)) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }

    /// Stops it, if it runs. Its pods run on.
    pub fn stop(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            daemon.end(LONG);
        }
    }

    // --- Pods ---

    /// Adds a static pod.
    pub fn add_pod(&self, name: &str, manifest: &Value) {
        let file = self.manifests().join(format!("{name}.json"));
        // Whole at once: it reads what it sees.
        let new = self.folder.join("new-manifest");
        fs::write(&new, manifest.to_string()).expect("write a manifest");
        fs::rename(new, file).expect("add a manifest");
    }

    /// Takes a static pod away.
    pub fn remove_pod(&self, name: &str) {
        let file = self.manifests().join(format!("{name}.json"));
        fs::remove_file(file).expect("remove a manifest");
    }

    /// Takes all static pods away.
    pub fn forget_pods(&self) {
        let manifests = fs::read_dir(self.manifests()).into_iter().flatten();
        for manifest in manifests.flatten() {
            drop(fs::remove_file(manifest.path()));
        }
    }

    /// A pod's status as the kubelet has it, if it knows the pod.
    pub async fn pod_status(&self, name: &str) -> Result<Value, String> {
        let (code, body) = http_get(self.api, "/pods")
            .await
            .map_err(|error| error.to_string())?;
        if code != 200 {
            return Err(format!("HTTP {code}: {body}"));
        }
        let pods: Value = serde_json::from_str(&body).map_err(|error| error.to_string())?;
        let mut pods = pods["items"].as_array().into_iter().flatten();
        let name = format!("{name}-{NODE}");
        let pod = pods.find(|pod| pod["metadata"]["name"] == *name);
        pod.map(|pod| pod["status"].clone())
            .ok_or_else(|| "the kubelet does not know it".to_owned())
    }

    /// The log of a container's `attempt`-th life, of any life of the pod's.
    pub fn log_of(&self, pod: &str, container: &str, attempt: usize) -> Option<String> {
        let prefix = format!("default_{pod}-{NODE}_");
        let folders = fs::read_dir(self.folder.join("logs")).ok()?.flatten();
        let mut folders = folders.filter(|folder| {
            let name = folder.file_name();
            name.to_string_lossy().starts_with(&prefix)
        });
        let file = folders
            .next()?
            .path()
            .join(container)
            .join(format!("{attempt}.log"));
        fs::read_to_string(file).ok()
    }

    // --- Devices ---

    /// The IDs that it may give to pods.
    pub async fn allocatable(&self) -> Result<BTreeSet<String>, String> {
        let mut client = self.pod_resources().await?;
        let answer = client
            .get_allocatable_resources(AllocatableResourcesRequest {})
            .await;
        let answer = answer.map_err(|status| status.to_string())?.into_inner();
        Ok(ids(&answer.devices))
    }

    /// The IDs that the static pod has.
    pub async fn devices_of(&self, pod: &str) -> Result<BTreeSet<String>, String> {
        self.devices_of_pod(&format!("{pod}-{NODE}")).await
    }

    /// The IDs that the pod has, by its whole name.
    pub async fn devices_of_pod(&self, name: &str) -> Result<BTreeSet<String>, String> {
        let mut client = self.pod_resources().await?;
        let answer = client.list(ListPodResourcesRequest {}).await;
        let answer = answer.map_err(|status| status.to_string())?.into_inner();
        let pods = answer.pod_resources.iter().filter(|pod| pod.name == name);
        let containers = pods.flat_map(|pod| &pod.containers);
        Ok(containers
            .flat_map(|container| ids(&container.devices))
            .collect())
    }

    /// Where it says which pod has which device.
    pub fn pod_resources_socket(&self) -> PathBuf {
        self.folder.join("kubelet/pod-resources/kubelet.sock")
    }

    async fn pod_resources(&self) -> Result<PodResourcesListerClient<Channel>, String> {
        let socket = self.pod_resources_socket();
        let endpoint = Endpoint::try_from(format!("unix://{}", socket.display()));
        let channel = endpoint.expect("an address").connect().await;
        channel
            .map(PodResourcesListerClient::new)
            .map_err(|error| error.to_string())
    }

    /// Waits until so many devices are allocatable.
    pub async fn wait_allocatable(&self, count: usize) -> BTreeSet<String> {
        let what = format!("{count} devices are allocatable");
        eventually(&what, async || {
            let devices = self.allocatable().await?;
            if devices.len() == count {
                Ok(devices)
            } else {
                Err(format!("allocatable: {devices:?}"))
            }
        })
        .await
    }

    /// The value of a metric, given with its labels as the kubelet writes them.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let (_code, text) = http_get(self.api, "/metrics").await.ok()?;
        let value = text.lines().find_map(|line| line.strip_prefix(name))?;
        value.trim().parse().ok()
    }
}

fn ids(devices: &[ContainerDevices]) -> BTreeSet<String> {
    let ours = devices
        .iter()
        .filter(|devices| devices.resource_name == RESOURCE);
    ours.flat_map(|devices| devices.device_ids.clone())
        .collect()
}

fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("its address")
}
