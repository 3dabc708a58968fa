//! A whole node: simulated GPUs, the plugin, a kubelet and a runtime.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::host::{self, Turn};
use super::kubelet::RESOURCE;
use super::machine::Machine;
use super::pod::{self, Pod};
use super::runtime::CDI_FOLDER;
use crate::common::device_nodes::DeviceNodes;
use crate::common::nvml::SimulatedNode;
use crate::common::plugin::{PluginProcess, http_get};
use crate::common::probe::Findings;
use crate::common::system::{on_path, skip};
use crate::common::wait::{LONG, eventually};

/// The last line before the plugin is at rest.
const REGISTERED: &str = "registered with the kubelet";

/// Dropped in this order: the plugin ends before its kubelet.
pub struct Node {
    plugin: Option<PluginProcess>,
    pub machine: Machine,
    pub gpus: SimulatedNode,
    driver_root: PathBuf,
    nodes: DeviceNodes,
    /// What the plugin gets a container its devices by.
    pub strategy: &'static str,
    began: Instant,
}

impl Node {
    /// A node with so many GPUs, plugin and kubelet not started yet. None
    /// where this machine lacks what it takes, which is said.
    pub fn new(test: &str, gpus: usize) -> Option<Self> {
        Self::with_driver(test, gpus, None)
    }

    /// The same with the files of a real driver, of this version.
    pub fn with_driver(test: &str, gpus: usize, driver: Option<(PathBuf, &str)>) -> Option<Self> {
        let programs = match host::programs() {
            Ok(programs) => programs,
            Err(missing) => {
                skip(
                    test,
                    &format!(
                        "e2e needs KUBELET=<path of a kubelet binary>, root, containerd and runc ({missing})"
                    ),
                );
                return None;
            }
        };
        let simulated = SimulatedNode::with(gpus, |state| {
            if let Some((_, version)) = &driver {
                (*version).clone_into(&mut state.driver_version);
            }
        });
        install_program(&simulated.driver_root().join("usr/bin/nvidia-smi"));
        let turn = Turn::wait();
        println!("--- {test}");
        let began = Instant::now();
        let machine = Machine::new(programs, turn);
        let node = Self {
            nodes: DeviceNodes::make(&machine.folder().join("dev-root/dev"), gpus),
            machine,
            plugin: None,
            strategy: "mounts",
            driver_root: driver.map_or_else(|| simulated.driver_root(), |(root, _)| root),
            gpus: simulated,
            began,
        };
        node.say("containerd runs and has the image");
        Some(node)
    }

    fn dev_root(&self) -> PathBuf {
        self.machine.folder().join("dev-root")
    }

    /// Where the plugin has its driver volumes.
    pub fn state_dir(&self) -> PathBuf {
        self.machine.folder().join("plugin-state")
    }

    /// The driver volumes, by name.
    pub fn volumes(&self) -> BTreeSet<String> {
        let entries = fs::read_dir(self.state_dir().join("driver"));
        let entries = entries.expect("a folder of volumes");
        let names = entries.map(|entry| entry.expect("a volume").file_name());
        names.filter_map(|name| name.into_string().ok()).collect()
    }

    /// Where the runtime looks for CDI specs.
    pub fn cdi_root(&self) -> PathBuf {
        self.machine.folder().join(CDI_FOLDER)
    }

    /// A line of the transcript.
    pub fn say(&self, what: &str) {
        println!("[{:7.3} s] {what}", self.began.elapsed().as_secs_f64());
    }

    // --- The plugin ---

    /// Starts the plugin.
    pub fn start_plugin(&mut self) -> &PluginProcess {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gpu-device-plugin"));
        command
            .env_clear()
            .arg("--nvml-library")
            .arg(self.gpus.nvml_library())
            .arg("--driver-root")
            .arg(&self.driver_root)
            .arg("--dev-root")
            .arg(self.dev_root())
            .arg("--sysfs-root")
            .arg(self.gpus.sys())
            .arg("--procfs-root")
            .arg(self.gpus.proc())
            .arg("--cdi-root")
            .arg(self.cdi_root())
            .arg("--state-dir")
            .arg(self.state_dir())
            .arg("--dev-char-root")
            .arg(self.dev_root().join("dev/char"))
            // Nothing that pods have is collected, however soon it may be.
            .args(["--driver-volume-grace", "100ms"])
            .args(["--device-list-strategy", self.strategy])
            .args(["--http-listen", "127.0.0.1:0"])
            .args(["--health-poll-interval", "100ms"])
            .args(["--health-quiet", "300ms"])
            .args(["--health-longest-quiet", "300ms"]);
        let plugin = PluginProcess::start(command.into()).expect("start the plugin");
        self.plugin.insert(plugin)
    }

    /// What a pod of the plugin's has for arguments: all of the host is below
    /// `root` there, as in deploy/daemonset.yaml.
    pub fn plugin_pod_arguments(&self, root: &str) -> Vec<String> {
        let host = |flag: &str, path: &Path| format!("{flag}={}", path.display());
        let below = |flag: &str, path: &Path| format!("{flag}={root}{}", path.display());
        vec![
            format!("--host-root={root}"),
            host("--driver-root", &self.driver_root),
            host("--dev-root", &self.dev_root()),
            host("--dev-char-root", &self.dev_root().join("dev/char")),
            host("--state-dir", &self.state_dir()),
            below("--nvml-library", &self.gpus.nvml_library()),
            below("--sysfs-root", &self.gpus.sys()),
            below("--procfs-root", &self.gpus.proc()),
            "--http-listen=127.0.0.1:0".into(),
        ]
    }

    /// How the files of the only driver volume came about, by its manifest.
    pub fn volume_ways(&self) -> BTreeSet<String> {
        let volumes = self.volumes();
        assert_eq!(volumes.len(), 1, "{volumes:?}");
        let name = volumes.first().expect("a volume");
        let volume = self.state_dir().join("driver").join(name);
        let text = fs::read_to_string(volume.join("manifest.json")).expect("a manifest");
        let manifest: Value = serde_json::from_str(&text).expect("a manifest");
        let files = manifest["files"].as_array().expect("its files");
        let ways = files.iter().map(|file| file["by"].to_string());
        ways.collect()
    }

    pub fn plugin(&self) -> &PluginProcess {
        self.plugin.as_ref().expect("a plugin that was started")
    }

    /// Ends the plugin by a signal and says how long that took.
    pub async fn end_plugin(
        &mut self,
        signal: libc::c_int,
    ) -> (std::process::ExitStatus, Duration) {
        let mut plugin = self.plugin.take().expect("a plugin that runs");
        let asked = Instant::now();
        plugin.signal(signal).expect("send a signal");
        let status = plugin.wait(LONG).await.expect("its end");
        (status, asked.elapsed())
    }

    /// Waits until the plugin says that it is registered, after `skip` lines
    /// of its log. When it did.
    pub async fn wait_registered(&self, skip: usize) -> Instant {
        let plugin = self.plugin();
        let line = plugin.wait_for_line_after(skip, REGISTERED, LONG).await;
        line.unwrap_or_else(|timeout| panic!("{timeout}")).at
    }

    async fn http(&self) -> SocketAddr {
        let line = self.plugin().wait_for_line("serving /livez", LONG).await;
        let line = line.unwrap_or_else(|timeout| panic!("{timeout}"));
        let address = line.text.split("address=").nth(1).expect("an address");
        let address = address.split(' ').next().expect("an address");
        address.parse().expect("an address")
    }

    /// Status and text of one of the plugin's HTTP endpoints.
    pub async fn http_get(&self, path: &str) -> (u16, String) {
        http_get(self.http().await, path).await.expect("an answer")
    }

    /// How often this method of the plugin was called.
    pub async fn calls(&self, method: &str) -> u64 {
        let (_status, metrics) = self.http_get("/metrics").await;
        let method = format!("method=\"{method}\"");
        let counts = metrics.lines().filter(|line| {
            line.starts_with("gpu_device_plugin_rpc_duration_seconds_count")
                && line.contains(&method)
        });
        let counts = counts.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
        counts.sum()
    }

    // --- The kubelet ---

    /// Starts plugin and kubelet, and waits until all GPUs are allocatable.
    pub async fn start(&mut self) {
        self.start_plugin();
        self.start_kubelet().await;
        let count = self.gpus.state().gpus.len();
        self.machine.kubelet.wait_allocatable(count).await;
        self.say(&format!("{count} GPUs are allocatable"));
    }

    /// Starts the kubelet while the plugin runs, and waits until the plugin is
    /// registered with it. How long that took.
    pub async fn start_kubelet(&mut self) -> Duration {
        let skip = self.plugin().lines().len();
        let asked = Instant::now();
        let accepted = self.machine.kubelet.start().await;
        let registered = self.wait_registered(skip).await;
        let took = registered.saturating_duration_since(accepted);
        self.say(&format!(
            "kubelet.sock accepts {} ms after the kubelet's start; the plugin is registered {} ms later",
            accepted.duration_since(asked).as_millis(),
            took.as_millis()
        ));
        self.machine.kubelet.wait_healthy().await;
        took
    }

    // --- Pods ---

    /// Starts a pod and waits until it runs.
    pub async fn run_pod(&self, name: &str, gpus: usize) -> Pod {
        self.run_limited(name, &pod::limits(gpus)).await
    }

    /// The same with other limits too.
    pub async fn run_limited(&self, name: &str, limits: &Value) -> Pod {
        let asked = Instant::now();
        pod::start(&self.machine.kubelet, name, limits, &[]);
        let pod = pod::wait_running(&self.machine.kubelet, name, 0).await;
        self.say(&format!(
            "pod {name} runs {} ms after its manifest, with {}",
            asked.elapsed().as_millis(),
            self.in_words(&pod.devices)
        ));
        assert_eq!(limits[RESOURCE], pod.devices.len(), "{pod:?}");
        pod
    }

    /// Takes a pod away and waits until nothing of it runs, and the kubelet counts
    /// it no more when it looks for devices.
    pub async fn remove_pod(&self, pod: &Pod) {
        self.machine.kubelet.remove_pod(&pod.name);
        let what = format!("pod {} is gone", pod.name);
        eventually(&what, async || match self.machine.runtime.running() {
            Ok(running) if !running.contains(&pod.container) => Ok(()),
            other => Err(other),
        })
        .await;
        eventually(&what, async || {
            let devices = self.machine.kubelet.devices_of(&pod.name).await?;
            if devices.is_empty() {
                Ok(())
            } else {
                Err(format!("{devices:?}"))
            }
        })
        .await;
        self.say(&what);
    }

    /// Checks that the pod runs as before: the same container, never restarted,
    /// with the same devices.
    pub async fn assert_untouched(&self, pod: &Pod) {
        let now = pod::wait_running(&self.machine.kubelet, &pod.name, 0).await;
        assert_eq!(now, *pod);
    }

    /// Checks that the container sees the nodes of its devices and of no other,
    /// and may use those alone.
    pub fn assert_nodes(&self, pod: &Pod, findings: &Findings) {
        let minors = self.minors(&pod.devices);
        println!("{}", pod.name);
        self.nodes.assert_given(&minors, findings);
        self.nodes.assert_makes_none(&minors, findings);
    }

    /// The minor numbers of GPUs.
    fn minors(&self, devices: &BTreeSet<String>) -> BTreeSet<u32> {
        let state = self.gpus.state();
        let given = state.gpus.iter().filter(|gpu| devices.contains(&gpu.uuid));
        let minors: BTreeSet<_> = given.map(|gpu| gpu.minor_number).collect();
        assert_eq!(minors.len(), devices.len(), "unknown among {devices:?}");
        minors
    }

    fn in_words(&self, devices: &BTreeSet<String>) -> String {
        let minors = self.minors(devices);
        let names: Vec<_> = minors.iter().map(|minor| format!("GPU {minor}")).collect();
        names.join(", ")
    }
}

/// Puts any real program in the place of the simulated one, which is a script
/// and so none that the plugin would give.
fn install_program(path: &Path) {
    let program = on_path("true").expect("true on PATH");
    fs::copy(program, path).expect("install a program");
}
