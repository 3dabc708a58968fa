//! A simulated node with a kubelet and the plugin's own binary, started and
//! registered.

#![allow(
    clippy::unwrap_used,
    reason = "a condition that never came true says why"
)]

use std::ffi::OsString;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use gpu_device_plugin::api::v1beta1::device_plugin_client::DevicePluginClient;
use gpu_device_plugin::api::v1beta1::{
    AllocateRequest, AllocateResponse, ContainerAllocateRequest, Device,
};
use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use super::kubelet::{Event, KubeletPeer, Options, Record};
use super::nvml::SimulatedNode;
use super::plugin::{PluginProcess, http_get};

/// What whole GPUs are advertised as, unless a flag says otherwise.
pub const RESOURCE: &str = "nvidia.com/gpu";

/// How long anything may take that is expected to happen. Generous: a test that
/// fails for lack of time says nothing of the plugin.
pub const LONG: Duration = Duration::from_secs(40);

/// A machine that runs other work may take this many times longer than the
/// bound that a benchmark holds.
pub const LOADED: u32 = 20;

/// The clock of /proc/PID/stat (`USER_HZ`), the same on every Linux that runs
/// Kubernetes.
const TICKS_A_SECOND: u64 = 100;

/// A node, its kubelet and its plugin.
pub struct Running {
    pub node: SimulatedNode,
    pub kubelet: KubeletPeer,
    pub plugin: PluginProcess,
    pub http: SocketAddr,
}

/// A kubelet as the tests want it: patient, on a loaded machine, with the end
/// of an old stream. One that is never ended is found all the same.
pub fn options() -> Options {
    Options {
        settle: Duration::from_secs(2),
        ..Options::default()
    }
}

impl Running {
    /// A node with healthy GPUs, all of them advertised.
    pub async fn start(gpus: usize) -> Self {
        let running = Self::on(SimulatedNode::new(gpus), options(), &[]).await;
        running.counts(gpus, gpus).await;
        running
    }

    /// The same on any node; returns once the kubelet has the first list.
    pub async fn on(node: SimulatedNode, options: Options, extra: &[&str]) -> Self {
        let kubelet = KubeletPeer::new(node.device_plugin_dir(), options);
        kubelet.start().await.unwrap();
        let running = Self::unregistered(node, kubelet, extra).await;
        running.listed_since(0).await;
        running
    }

    /// A plugin that has just been started beside a kubelet in any state.
    pub async fn unregistered(node: SimulatedNode, kubelet: KubeletPeer, extra: &[&str]) -> Self {
        let plugin = spawn(&node, extra);
        let http = http_address(&plugin).await;
        Self {
            node,
            kubelet,
            plugin,
            http,
        }
    }

    /// Starts the plugin anew, after its end.
    pub async fn start_plugin(&mut self) {
        self.start_plugin_with(&[]).await;
    }

    /// The same with other flags than before.
    pub async fn start_plugin_with(&mut self, extra: &[&str]) {
        self.plugin = spawn(&self.node, extra);
        self.http = http_address(&self.plugin).await;
    }

    /// Ends the plugin as a crash would.
    pub async fn kill_plugin(&mut self) {
        self.plugin.kill().unwrap();
        self.plugin.wait(LONG).await.unwrap();
    }

    /// Waits for the node's numbers, as allocatable/capacity.
    pub async fn counts(&self, allocatable: usize, capacity: usize) {
        let counts = (allocatable, capacity);
        self.kubelet
            .wait_counts(RESOURCE, counts, LONG)
            .await
            .unwrap();
    }

    /// Waits until the kubelet knows the GPU as this healthy.
    pub async fn health(&self, position: usize, health: &str) {
        let uuid = self.node.uuid(position);
        let what = format!("{uuid} {health}");
        let listed = |kubelet: &KubeletPeer| {
            let devices = kubelet.devices(RESOURCE);
            devices
                .iter()
                .any(|device| device.id == uuid && device.health == health)
                .then_some(())
        };
        self.kubelet.wait_for(&what, LONG, listed).await.unwrap();
    }

    /// Waits for a list since the mark, and answers when it came.
    pub async fn listed_since(&self, mark: usize) -> Record {
        let list = |event: &Event| matches!(event, Event::ListReceived { .. });
        self.kubelet
            .wait_event("a list", mark, LONG, list)
            .await
            .unwrap()
    }

    /// Every list that the kubelet got, since the mark.
    pub fn lists(&self, mark: usize) -> Vec<Vec<Device>> {
        let records = self.kubelet.events().into_iter().skip(mark);
        records
            .filter_map(|record| match record.event {
                Event::ListReceived { devices, .. } => Some(devices),
                _ => None,
            })
            .collect()
    }

    /// How often Register was called since the mark.
    pub fn register_calls(&self, mark: usize) -> usize {
        let records = self.kubelet.events().into_iter().skip(mark);
        records
            .filter(|record| matches!(record.event, Event::RegisterCalled { .. }))
            .count()
    }

    /// The plugin's sockets in the kubelet's folder: every one but its own. None
    /// where there is no folder.
    pub fn sockets(&self) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(self.kubelet.folder()) else {
            return Vec::new();
        };
        let paths = entries.map(|entry| entry.unwrap().path());
        paths
            .filter(|path| {
                let name = path.file_name().unwrap().to_string_lossy();
                name.ends_with(".sock") && name != "kubelet.sock"
            })
            .collect()
    }

    /// Removes the kubelet's folder. The plugin may make its socket anew between
    /// the last file's end and the folder's own.
    pub fn remove_folder(&self) {
        while let Err(error) = std::fs::remove_dir_all(self.kubelet.folder()) {
            assert_eq!(error.kind(), ErrorKind::DirectoryNotEmpty, "{error}");
        }
    }

    /// A client that is no kubelet, of the socket that is there now, whether or not a
    /// kubelet knows of it.
    pub async fn guest(&self) -> DevicePluginClient<Channel> {
        let socket = self.sockets().pop().expect("a socket of the plugin");
        let connect = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://localhost");
        let channel = endpoint.connect_with_connector(connect).await;
        DevicePluginClient::new(channel.unwrap())
    }

    /// A connection of one's own to the plugin.
    pub async fn client(&self) -> DevicePluginClient<Channel> {
        self.kubelet.client(RESOURCE).await.unwrap()
    }

    /// Asks Allocate for the GPUs at these positions, one container.
    pub async fn allocate(&self, positions: &[usize]) -> Result<AllocateResponse, Status> {
        let ids = positions.iter().map(|&at| self.node.uuid(at)).collect();
        allocate(&mut self.client().await, vec![ids]).await
    }

    /// What an HTTP path answers.
    pub async fn get(&self, path: &str) -> (u16, String) {
        http_get(self.http, path).await.unwrap()
    }

    /// Waits until /readyz answers 503 with this text in its list.
    pub async fn unready(&self, because: &str) -> String {
        let what = format!("/readyz to name {because:?}");
        self.eventually(&what, || async {
            let (status, body) = self.get("/readyz").await;
            (status == 503 && body.contains(because)).then_some(body)
        })
        .await
    }

    /// Waits until /readyz answers 200 with this text in a note.
    pub async fn noted(&self, note: &str) -> String {
        let what = format!("/readyz to note {note:?}");
        self.eventually(&what, || async {
            let (status, body) = self.get("/readyz").await;
            (status == 200 && body.contains(note)).then_some(body)
        })
        .await
    }

    /// Waits until /readyz answers 200, and notes nothing.
    pub async fn ready(&self) {
        self.eventually("/readyz to be ready", || async {
            (self.get("/readyz").await == (200, "ok\n".to_owned())).then_some(())
        })
        .await;
    }

    /// The value of a sample, by its name without our prefix and its labels.
    pub async fn metric(&self, sample: &str) -> Option<f64> {
        let (_, text) = self.get("/metrics").await;
        let sample = format!("gpu_device_plugin_{sample} ");
        let value = text.lines().find_map(|line| line.strip_prefix(&sample))?;
        value.parse().ok()
    }

    /// Waits until a sample has at least this value.
    pub async fn metric_reaches(&self, sample: &str, least: f64) {
        let what = format!("{sample} to reach {least}");
        self.eventually(&what, || async {
            let value = self.metric(sample).await?;
            (value >= least).then_some(())
        })
        .await;
    }

    /// Asks over HTTP, or anything else that cannot ring a bell, again and again.
    pub async fn eventually<T, F>(&self, what: &str, mut ask: impl FnMut() -> F) -> T
    where
        F: Future<Output = Option<T>>,
    {
        let asking = async {
            loop {
                if let Some(answer) = ask().await {
                    return answer;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        match tokio::time::timeout(LONG, asking).await {
            Ok(answer) => answer,
            Err(_) => panic!("waited in vain for {what}\n{}", self.kubelet.history()),
        }
    }

    /// Waits until the plugin hears the events of a GPU, which it does a moment
    /// after it has listed it; what comes earlier is lost, as on any node. Leaves
    /// XIDs 13 behind, an application's fault.
    pub async fn listening(&self, position: usize) {
        let uuid = self.node.uuid(position);
        let sample = format!(r#"xids_total{{uuid="{uuid}",xid="13"}}"#);
        self.eventually("an XID to be heard", || async {
            self.node.xid(position, 13);
            self.metric(&sample).await.map(drop)
        })
        .await;
    }

    /// Lets some time pass, measured in the plugin's own polls: a busy loop would
    /// show by its end.
    pub async fn pass_time(&self) {
        let unhealthy = r#"devices{resource="nvidia.com/gpu",health="Unhealthy"}"#;
        let before = self.metric(unhealthy).await.unwrap_or_default();
        for more in [1.0, 0.0, 1.0, 0.0, 1.0, 0.0] {
            if more > 0.0 {
                self.node.lose(0);
            } else {
                self.node.restore(0);
            }
            let wanted = Some(before + more);
            let what = format!("{wanted:?} unhealthy devices");
            self.eventually(&what, || async {
                (self.metric(unhealthy).await == wanted).then_some(())
            })
            .await;
        }
    }

    /// Begins to measure how busy the plugin is.
    pub fn effort(&self) -> Effort {
        Effort {
            pid: self.plugin.pid().expect("a running plugin"),
            since: Instant::now(),
            ticks: cpu_ticks(self.plugin.pid().expect("a running plugin")),
        }
    }
}

/// CPU time of a process since a moment.
pub struct Effort {
    pid: u32,
    since: Instant,
    ticks: u64,
}

impl Effort {
    /// Panics where the process computed for more than a third of the time (and
    /// more than a quarter of a second in all): a busy loop takes all of it.
    #[track_caller]
    pub fn assert_idle(&self) {
        let wall = self.since.elapsed();
        let cpu = self.cpu();
        println!("CPU {cpu:?} in {wall:?}");
        let allowed = (wall / 3).max(Duration::from_millis(250));
        assert!(cpu <= allowed, "busy for {cpu:?} of {wall:?}");
    }
}

impl Effort {
    /// What the process computed.
    pub fn cpu(&self) -> Duration {
        let ticks = cpu_ticks(self.pid) - self.ticks;
        Duration::from_millis(ticks * 1000 / TICKS_A_SECOND)
    }
}

/// Fields 14 and 15 of proc_pid_stat(5); the second may hold anything, and ends
/// with the last parenthesis.
fn cpu_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("read the stat file");
    let (_, rest) = stat.rsplit_once(')').expect("a name in parentheses");
    let fields = rest.split_whitespace().skip(11).take(2);
    fields
        .map(|ticks| ticks.parse::<u64>().expect("a number"))
        .sum()
}

/// Starts the plugin's binary on the node. Flags in `extra` take the place of
/// the node's own, and may not be repeated.
pub fn spawn(node: &SimulatedNode, extra: &[&str]) -> PluginProcess {
    PluginProcess::spawn(program(), arguments(node, extra), &[]).expect("start the plugin")
}

/// The node's own arguments, but for those that `extra` has too, and then these.
pub fn arguments(node: &SimulatedNode, extra: &[&str]) -> Vec<OsString> {
    let own = node.plugin_arguments();
    let kept = own
        .chunks(2)
        .filter(|pair| !extra.iter().any(|flag| pair[0] == *flag));
    let mut arguments: Vec<OsString> = kept.flatten().cloned().collect();
    arguments.extend(extra.iter().map(OsString::from));
    arguments
}

/// The plugin's binary: Cargo names it to tests and benches only.
pub fn program() -> &'static str {
    match option_env!("CARGO_BIN_EXE_gpu-device-plugin") {
        Some(program) => program,
        None => panic!("neither a test nor a bench"),
    }
}

/// Where a plugin serves HTTP, as its log says.
pub async fn http_address(plugin: &PluginProcess) -> SocketAddr {
    let line = plugin.wait_for_line("serving /livez", LONG).await.unwrap();
    let (_, address) = line.text.rsplit_once("address").expect("an address");
    // `address=127.0.0.1:1` in text, `address":"127.0.0.1:1"}` in JSON.
    let address = address.trim_matches(|letter: char| !letter.is_ascii_digit());
    address.parse().expect("an address and port")
}

/// Asks Allocate, with one container request for each list of IDs.
pub async fn allocate(
    client: &mut DevicePluginClient<Channel>,
    containers: Vec<Vec<String>>,
) -> Result<AllocateResponse, Status> {
    let container_requests = containers.into_iter();
    let container_requests = container_requests
        .map(|devices_ids| ContainerAllocateRequest { devices_ids })
        .collect();
    let answer = client.allocate(AllocateRequest { container_requests });
    answer.await.map(tonic::Response::into_inner)
}

/// Prints what was measured, and fails only where it is far beyond the bound.
#[track_caller]
pub fn measured(what: &str, times: &[Duration], bound: Duration) {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let (median, max) = (sorted[sorted.len() / 2], sorted[sorted.len() - 1]);
    println!(
        "{what}: median {median:?}, max {max:?} of {} (bound {bound:?})",
        sorted.len()
    );
    assert!(
        max <= bound * LOADED,
        "{what} took {max:?}, far beyond {bound:?}"
    );
}
