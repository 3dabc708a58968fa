//! What the whole plugin does about a sick GPU at the API server: its own binary,
//! a kubelet, its pod-resources, and an API server in this process.

#![allow(
    clippy::unwrap_used,
    reason = "also a test's helpers fail by panicking"
)]

mod common;

use std::time::Instant;

use common::api_server::{ApiServerPeer, Asked, node, pod};
use common::nvml::SimulatedNode;
use common::pod_resources::PodResourcesPeer;
use common::running::{LONG, RESOURCE, Running, options};
use serde_json::Value;

const NODE: &str = "n1";

/// A node of a cluster, with a pod on each of its GPUs: `team/p0`, `team/p1`, ….
struct Cluster {
    running: Running,
    api: ApiServerPeer,
    holders: PodResourcesPeer,
    flags: Vec<String>,
}

impl Cluster {
    async fn start(gpus: usize, more: &[&str]) -> Self {
        let node = SimulatedNode::new(gpus);
        let (api, holders) = cluster(&node, gpus);
        let mut flags = vec![
            format!("--kubeconfig={}", api.kubeconfig().display()),
            format!("--pod-resources-socket={}", holders.socket().display()),
            format!("--node-name={NODE}"),
            "--eviction-grace=0s".to_owned(),
        ];
        flags.extend(more.iter().map(|&flag| flag.to_owned()));
        let given: Vec<_> = flags.iter().map(String::as_str).collect();
        let running = Running::on(node, options(), &given).await;
        running.counts(gpus, gpus).await;
        Self {
            running,
            api,
            holders,
            flags,
        }
    }

    async fn restart_plugin(&mut self) {
        self.running.kill_plugin().await;
        let flags: Vec<_> = self.flags.iter().map(String::as_str).collect();
        self.running.start_plugin_with(&flags).await;
    }

    async fn condition(&self, status: &str) -> Value {
        let found = |_: &_| {
            let condition = self.api.condition(NODE, "GPUHealthy")?;
            (condition["status"] == status).then_some(condition)
        };
        let what = format!("the condition to be {status}");
        self.api.wait_for(&what, LONG, found).await.unwrap()
    }

    async fn evictions(&self, outcome: &str, least: f64) {
        let sample = format!(r#"evictions_total{{outcome="{outcome}"}}"#);
        self.running.metric_reaches(&sample, least).await;
    }

    /// The requests that evict, or tell a pod.
    fn about_pods(&self) -> Vec<String> {
        let requests = self.api.requests();
        let about = |asked: &&Asked| asked.path.contains("/namespaces/team/");
        let about = requests.iter().filter(about);
        about.map(Asked::summary).collect()
    }
}

fn cluster(simulated: &SimulatedNode, gpus: usize) -> (ApiServerPeer, PodResourcesPeer) {
    let api = ApiServerPeer::start().unwrap();
    api.add_node(node(NODE));
    let folder = simulated.root().join("pod-resources");
    std::fs::create_dir(&folder).unwrap();
    let holders = PodResourcesPeer::start(&folder).unwrap();
    for position in 0..gpus {
        let name = format!("p{position}");
        api.add_pod(pod("team", &name, "training", NODE));
        holders.hold("team", &name, RESOURCE, &[&simulated.uuid(position)]);
    }
    (api, holders)
}

#[tokio::test]
async fn with_eviction_off_nobody_is_asked() {
    let cluster = Cluster::start(2, &[]).await;
    cluster.running.node.lose(1);
    cluster.running.counts(1, 2).await;
    cluster.running.pass_time().await;
    assert_eq!(cluster.api.summary(), [""; 0]);
    assert_eq!(cluster.holders.lists(), 0);
}

#[tokio::test]
async fn when_all_is_well_one_condition_is_written_and_nothing_else() {
    let cluster = Cluster::start(2, &["--eviction=evict"]).await;
    let condition = cluster.condition("True").await;
    assert_eq!(condition["reason"], "AllGpusHealthy");
    // As many polls as it takes for a second request to show.
    let polls = cluster.running.node.state().gpus.len() * 3;
    for _ in 0..polls {
        cluster.running.listening(0).await;
    }
    assert_eq!(cluster.api.summary(), ["patch nodes/status 200"]);
    assert_eq!(cluster.holders.lists(), 0);
}

#[tokio::test]
async fn the_pod_on_a_sick_gpu_is_evicted_once_and_no_other() {
    let mut cluster = Cluster::start(3, &["--eviction=evict"]).await;
    cluster.condition("True").await;
    cluster.running.listening(1).await;
    let other = cluster.api.pod("team", "p0").unwrap();
    let sick_at = Instant::now();
    cluster.running.node.xid(1, 79);
    cluster.evictions("evicted", 1.0).await;
    println!("evicted {:?} after the XID", sick_at.elapsed());
    cluster.holders.forget("team", "p1");

    let asked = cluster.about_pods();
    let position = |what: &str| asked.iter().position(|asked| asked.starts_with(what));
    assert!(
        position("create events") < position("create pods/eviction"),
        "{asked:?}"
    );
    let condition = cluster.condition("False").await;
    assert_eq!(condition["reason"], "Xid");
    let message = condition["message"].as_str().unwrap();
    for part in [cluster.running.node.uuid(1).as_str(), "XID 79", "reboot"] {
        assert!(message.contains(part), "{part} is not in {message:?}");
    }
    let told = |_: &_| Some(cluster.api.events("Node", NODE)).filter(|events| !events.is_empty());
    cluster
        .api
        .wait_for("an event of the node", LONG, told)
        .await
        .unwrap();

    for _ in 0..2 {
        cluster.restart_plugin().await;
        cluster.running.counts(2, 3).await;
    }
    assert_eq!(cluster.api.count("create", "pods/eviction"), 1);
    assert_eq!(cluster.api.pod("team", "p0").unwrap(), other);
}

#[tokio::test]
async fn a_report_says_what_would_be_done_and_does_nothing() {
    let cluster = Cluster::start(2, &["--eviction=report"]).await;
    cluster.running.listening(1).await;
    cluster.running.node.xid(1, 79);
    cluster.evictions("would_evict", 1.0).await;
    cluster.condition("False").await;
    assert_eq!(cluster.api.count("create", "pods/eviction"), 0);
    let events = cluster.api.events("Pod", "p1");
    assert_eq!(events.len(), 1, "{events:?}");
}

#[tokio::test]
async fn the_configuration_file_turns_eviction_on_and_its_faults_are_told_to_the_node() {
    let node = SimulatedNode::new(2);
    let file = node.root().join("config.yaml");
    let write = |text: &str| {
        let new = file.with_extension("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, &file).unwrap();
    };
    write("version: v1\n");
    let (api, holders) = cluster(&node, 2);
    let flags = [
        format!("--kubeconfig={}", api.kubeconfig().display()),
        format!("--pod-resources-socket={}", holders.socket().display()),
        format!("--node-name={NODE}"),
        format!("--config-file={}", file.display()),
    ];
    let given: Vec<_> = flags.iter().map(String::as_str).collect();
    let running = Running::on(node, options(), &given).await;
    running.listening(1).await;
    running.node.xid(1, 79);
    running.counts(1, 2).await;
    assert_eq!(api.summary(), [""; 0]);

    write("version: v1\neviction: {mode: evict, grace: 0s}\n");
    let evicted = |_: &_| api.pod("team", "p1").is_none().then_some(());
    api.wait_for("the eviction", LONG, evicted).await.unwrap();

    write("version: v1\neviction: {mode: sometimes}\n");
    let told = |_: &_| {
        let events = api.events("Node", NODE);
        events
            .into_iter()
            .find(|event| event["reason"] == "ConfigurationFault")
    };
    let event = api.wait_for("the fault's event", LONG, told).await.unwrap();
    let message = event["message"].as_str().unwrap();
    assert!(message.contains("sometimes"), "{message}");
    running
        .metric_reaches(r#"config_reloads_total{result="failed"}"#, 1.0)
        .await;

    write("version: v1\n");
    running
        .metric_reaches(r#"config_reloads_total{result="ok"}"#, 2.0)
        .await;
    let requests = api.summary().len();
    running.node.lose(0);
    running.counts(0, 2).await;
    assert_eq!(api.summary().len(), requests, "it is off again");
}
