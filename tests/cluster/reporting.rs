//! The reporter, over restarts of either side.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use gpu_device_plugin::cluster::api::{TAINT_EFFECT, TAINT_KEY, TAINT_VALUE};
use gpu_device_plugin::cluster::reporter::{Pace, Reporter, ReporterOptions};
use gpu_device_plugin::health::report::{HealthReport, NodeFault};
use gpu_device_plugin::health::signals::Kind;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::common::api_server::{ApiServerPeer, Fault, On, node};
use crate::common::running::LONG;
use crate::rig::{NODE, cluster, connect, gpu, report, since};

/// As fast as it goes: the ledger's own tests hold the pauses.
const PACE: Pace = Pace {
    spread: Duration::ZERO,
    spread_at_start: Duration::ZERO,
    pause: Duration::ZERO,
    pause_for_words: Duration::ZERO,
    first_retry: Duration::from_millis(5),
    longest_retry: Duration::from_millis(20),
    longest_after_refusal: Duration::from_millis(20),
};

/// A reporter that runs, and what it reads.
struct Reporting {
    reports: watch::Sender<Arc<HealthReport>>,
    task: JoinHandle<()>,
}

impl Reporting {
    fn start(peer: &ApiServerPeer, options: &ReporterOptions) -> Self {
        let (reports, seen) = watch::channel(Arc::default());
        let reporter = Reporter::new(connect(peer), seen, options);
        Self {
            reports,
            task: tokio::spawn(reporter.run()),
        }
    }

    fn report(&self, report: HealthReport) {
        self.reports.send_replace(Arc::new(report));
    }

    /// As a crash would.
    async fn kill(self) {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
    }
}

fn options() -> ReporterOptions {
    ReporterOptions {
        pace: PACE,
        ..ReporterOptions::default()
    }
}

fn keeping(folder: &Path) -> ReporterOptions {
    ReporterOptions {
        state_dir: Some(folder.into()),
        ..options()
    }
}

fn tainting() -> ReporterOptions {
    ReporterOptions {
        taint: true,
        ..options()
    }
}

/// Waits for the condition's status, with its request answered.
async fn status(peer: &ApiServerPeer, status: &str) -> Value {
    let what = format!("GPUHealthy {status}");
    let written = |peer: &ApiServerPeer| {
        let condition = peer.condition(NODE, "GPUHealthy")?;
        (condition["status"] == status && all_answered(peer)).then_some(condition)
    };
    peer.wait_for(&what, LONG, written).await.unwrap()
}

fn all_answered(peer: &ApiServerPeer) -> bool {
    peer.requests().iter().all(|asked| asked.code.is_some())
}

/// Waits for so many events on the node, with their requests answered.
async fn events(peer: &ApiServerPeer, count: usize) -> Vec<Value> {
    let what = format!("{count} events");
    let told = |peer: &ApiServerPeer| {
        let events = peer.events("Node", NODE);
        (events.len() == count && all_answered(peer)).then_some(events)
    };
    peer.wait_for(&what, LONG, told).await.unwrap()
}

/// Waits until so many of these requests were taken.
async fn taken(peer: &ApiServerPeer, verb: &str, resource: &str, count: usize) {
    let what = format!("{count} times {verb} {resource}");
    let enough = |peer: &ApiServerPeer| (peer.count(verb, resource) >= count).then_some(());
    peer.wait_for(&what, LONG, enough).await.unwrap();
}

#[tokio::test]
async fn when_all_is_well_there_is_one_request_in_a_life() {
    let peer = cluster();
    let reporting = Reporting::start(&peer, &tainting());
    // Not every GPU has been looked at.
    reporting.report(HealthReport {
        complete: false,
        ..report(8, &[3])
    });
    tokio::task::yield_now().await;
    reporting.report(report(8, &[]));
    let condition = status(&peer, "True").await;
    assert_eq!(condition["reason"], "AllGpusHealthy");
    assert_eq!(peer.summary(), ["patch nodes/status 200"]);
    // What comes and goes with each load is nobody's business here.
    for round in 0..100 {
        let mut noted = report(8, &[]);
        let slowdown = [Kind::PowerSlowdown, Kind::ThermalSlowdown];
        noted.gpus[0].notes = vec![slowdown[round % 2]];
        reporting.report(noted);
        tokio::task::yield_now().await;
    }
    reporting.report(report(8, &[3]));
    events(&peer, 1).await;
    let summary = [
        "patch nodes/status 200",
        "patch nodes/status 200",
        "create events 201",
    ];
    assert_eq!(peer.summary(), summary);
}

#[tokio::test]
async fn a_sick_gpu_is_told_and_told_well_again() {
    let peer = cluster();
    let reporting = Reporting::start(&peer, &options());
    reporting.report(report(8, &[]));
    status(&peer, "True").await;
    reporting.report(report(8, &[3]));
    let condition = status(&peer, "False").await;
    assert_eq!(condition["reason"], "GpuLost");
    assert_eq!(
        condition["message"],
        "1 of 8 GPUs sick; GPU 3 (GPU-3): GPU is lost (nvmlDeviceGetMemoryInfo) \
         (class reset: reset the GPU, or reboot the node)"
    );
    let told = events(&peer, 1).await;
    assert_eq!(
        (&told[0]["reason"], &told[0]["type"]),
        (&json!("GPUUnhealthy"), &json!("Warning"))
    );
    reporting.report(report(8, &[]));
    status(&peer, "True").await;
    let told = events(&peer, 2).await;
    let well = told
        .iter()
        .find(|event| event["reason"] == "GPURecovered")
        .unwrap();
    assert_eq!(well["message"], "GPU 3 (GPU-3) is healthy again");
    assert_eq!(peer.requests().len(), 5);
}

#[tokio::test]
async fn a_nodes_fault_is_told() {
    let peer = cluster();
    let reporting = Reporting::start(&peer, &tainting());
    reporting.report(report(1, &[]));
    status(&peer, "True").await;
    let fault = NodeFault {
        reason: "DriverMismatch",
        message: "driver 580.1 is installed, module 570.2 is loaded".into(),
    };
    reporting.report(HealthReport {
        node: Some(fault),
        ..report(1, &[])
    });
    let condition = status(&peer, "False").await;
    assert_eq!(condition["reason"], "DriverMismatch");
    let told = events(&peer, 1).await;
    assert!(
        told[0]["message"]
            .as_str()
            .unwrap()
            .contains("580.1 is installed")
    );
    assert_eq!(peer.taints(NODE), [Value::Null; 0], "no GPU is sick");
}

// === Restarts of the plugin ===

#[tokio::test]
async fn a_restart_writes_once_and_tells_nothing_twice() {
    let peer = cluster();
    let folder = tempfile::tempdir().unwrap();
    let reporting = Reporting::start(&peer, &keeping(folder.path()));
    reporting.report(report(2, &[1]));
    events(&peer, 1).await;
    let before = status(&peer, "False").await;
    reporting.kill().await;
    let mark = peer.requests().len();
    // As if it had begun an hour ago.
    let long_ago = "False 2026-01-01T00:00:00Z\n";
    std::fs::write(folder.path().join("gpu-healthy"), long_ago).unwrap();

    let reporting = Reporting::start(&peer, &keeping(folder.path()));
    reporting.report(report(2, &[1]));
    let told = |peer: &ApiServerPeer| (peer.summary().len() == mark + 2).then_some(());
    peer.wait_for("a write and an event", LONG, told)
        .await
        .unwrap();
    reporting.report(report(2, &[]));
    let well = status(&peer, "True").await;
    let summary = &peer.summary()[mark..mark + 3];
    assert_eq!(
        summary,
        [
            "patch nodes/status 200",
            "create events 409",
            "patch nodes/status 200"
        ]
    );
    let again = &peer.requests()[mark].body["status"]["conditions"][0];
    assert_eq!(again["lastTransitionTime"], "2026-01-01T00:00:00Z");
    assert_eq!(again["message"], before["message"]);
    assert_ne!(well["lastTransitionTime"], "2026-01-01T00:00:00Z");
    // By then the condition's write is done with.
    events(&peer, 2).await;
    let kept = std::fs::read_to_string(folder.path().join("gpu-healthy")).unwrap();
    assert!(kept.starts_with("True 20"), "{kept}");
}

#[tokio::test]
async fn a_state_folder_that_cannot_be_written_holds_nothing_up() {
    let peer = cluster();
    let options = keeping(Path::new("/proc/nowhere"));
    let reporting = Reporting::start(&peer, &options);
    reporting.report(report(1, &[]));
    status(&peer, "True").await;
    reporting.report(report(1, &[0]));
    status(&peer, "False").await;
}

// === The API server comes and goes ===

#[tokio::test]
async fn an_api_server_that_is_away_is_told_the_last_word_when_it_is_back() {
    let peer = cluster();
    let reporting = Reporting::start(&peer, &options());
    reporting.report(report(8, &[]));
    status(&peer, "True").await;
    peer.stop().await;
    for round in 0..50 {
        reporting.report(report(8, if round % 2 == 0 { &[1] } else { &[] }));
        tokio::task::yield_now().await;
    }
    reporting.report(report(8, &[1, 2]));
    let mark = peer.requests().len();
    peer.resume().await.unwrap();
    let last_word = |peer: &ApiServerPeer| {
        let condition = peer.condition(NODE, "GPUHealthy")?;
        let message = condition["message"].as_str()?;
        message.starts_with("2 of 8 GPUs sick").then_some(())
    };
    peer.wait_for("the last word", LONG, last_word)
        .await
        .unwrap();
    events(&peer, 2).await;
    // A try that was under way may have been one word behind.
    let writes = peer.count("patch", "nodes/status") - 1;
    assert!(writes <= 2, "{:#?}", &peer.summary()[mark..]);
}

#[tokio::test]
async fn what_went_away_meanwhile_costs_nothing() {
    let peer = cluster();
    let reporting = Reporting::start(&peer, &options());
    reporting.report(report(8, &[]));
    status(&peer, "True").await;
    peer.stop().await;
    reporting.report(report(8, &[1]));
    tokio::task::yield_now().await;
    reporting.report(report(8, &[]));
    peer.resume().await.unwrap();
    let mut other = report(8, &[]);
    other.gpus[5] = gpu(5, Some(since(200)));
    reporting.report(other);
    events(&peer, 1).await;
    let of_gpu_5 = peer.events("Node", NODE);
    assert!(
        of_gpu_5[0]["message"]
            .as_str()
            .unwrap()
            .starts_with("GPU 5")
    );
}

#[tokio::test]
async fn an_api_server_in_trouble_is_asked_again() {
    let peer = cluster();
    let trouble = [
        Fault::Status(500),
        Fault::TooMany(0),
        Fault::Garble,
        Fault::Status(503),
    ];
    for fault in trouble {
        peer.fault(fault, On::only("patch", "nodes/status"), 1);
    }
    peer.fault(Fault::Status(504), On::only("create", "events"), 2);
    let reporting = Reporting::start(&peer, &options());
    reporting.report(report(2, &[0]));
    events(&peer, 1).await;
    let mut summary = peer.summary();
    summary.retain(|line| line.starts_with("patch"));
    let codes: Vec<_> = summary
        .iter()
        .filter_map(|line| line.rsplit(' ').next())
        .collect();
    assert_eq!(codes, ["500", "429", "200", "503", "200"]);
}

#[tokio::test]
async fn a_node_that_is_registered_later_is_told_then() {
    let peer = ApiServerPeer::start().unwrap();
    let reporting = Reporting::start(&peer, &options());
    reporting.report(report(1, &[]));
    let refused = |peer: &ApiServerPeer| (peer.requests().len() >= 3).then_some(());
    peer.wait_for("some tries", LONG, refused).await.unwrap();
    peer.add_node(node(NODE));
    status(&peer, "True").await;
}

#[tokio::test]
async fn without_the_right_to_events_the_condition_is_written_all_the_same() {
    let peer = cluster();
    peer.forbid("create", "events");
    let reporting = Reporting::start(&peer, &options());
    for sick in [&[][..], &[1], &[], &[1]] {
        reporting.report(report(2, sick));
        status(&peer, if sick.is_empty() { "True" } else { "False" }).await;
    }
    assert_eq!(peer.events("Node", NODE).len(), 0);
    peer.allow_all();
    events(&peer, 1).await;
}

// === The taint ===

fn ours() -> Value {
    json!({ "key": TAINT_KEY, "value": TAINT_VALUE, "effect": TAINT_EFFECT })
}

async fn taints(peer: &ApiServerPeer, wanted: &[Value]) {
    let what = format!("taints {wanted:?}");
    let set = |peer: &ApiServerPeer| {
        let is_set = peer.taints(NODE) == wanted && all_answered(peer);
        is_set.then_some(())
    };
    peer.wait_for(&what, LONG, set).await.unwrap();
}

#[tokio::test]
async fn the_node_is_tainted_while_every_gpu_is_sick() {
    let peer = cluster();
    let reporting = Reporting::start(&peer, &tainting());
    reporting.report(report(2, &[0]));
    events(&peer, 1).await;
    assert_eq!(peer.taints(NODE), [Value::Null; 0]);
    reporting.report(report(2, &[0, 1]));
    taints(&peer, &[ours()]).await;
    reporting.report(report(2, &[0]));
    taints(&peer, &[]).await;
    assert_eq!(peer.count("patch", "nodes"), 2);
}

#[tokio::test]
async fn a_taint_of_an_earlier_process_goes_when_it_should() {
    let peer = cluster();
    let by_hand = json!({ "key": "maintenance", "effect": "NoExecute" });
    peer.edit_node(NODE, |node| {
        node["spec"]["taints"] = json!([by_hand, ours()]);
    });
    let reporting = Reporting::start(&peer, &tainting());
    reporting.report(report(1, &[0]));
    events(&peer, 1).await;
    reporting.kill().await;
    assert_eq!(peer.count("patch", "nodes"), 0, "it is right as it is");

    let reporting = Reporting::start(&peer, &options());
    reporting.report(report(1, &[0]));
    taints(&peer, &[by_hand]).await;
}

// === The end ===

#[tokio::test]
async fn it_ends_with_those_who_report() {
    let peer = cluster();
    let reporting = Reporting::start(&peer, &options());
    reporting.report(report(1, &[]));
    taken(&peer, "patch", "nodes/status", 1).await;
    drop(reporting.reports);
    tokio::time::timeout(LONG, reporting.task)
        .await
        .unwrap()
        .unwrap();
}
