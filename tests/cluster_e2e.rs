//! The plugin of deploy/eviction.yaml in a real cluster, on simulated GPUs: what
//! happens to the pods on a GPU that falls sick.
//!
//! Runs as root where `KUBE_APISERVER`, `KUBE_CONTROLLER_MANAGER`,
//! `KUBE_SCHEDULER` and `KUBELET` name the programs. etcd is that of `ETCD` or on
//! PATH, containerd that of `CONTAINERD_ROOT` or on PATH; runc, cc and openssl are
//! needed too.
//!
//! ```sh
//! cargo test --test cluster_e2e -- --nocapture
//! ```

#![allow(
    unreachable_pub,
    clippy::expect_used,
    clippy::panic,
    reason = "also a test's helpers fail by panicking"
)]

#[path = "cluster_e2e/cluster.rs"]
mod cluster;
mod common;
#[path = "common/control_plane.rs"]
mod control_plane;
#[path = "e2e/host.rs"]
mod host;
#[path = "e2e/image.rs"]
mod image;
#[allow(dead_code, reason = "tests/e2e.rs uses all of it")]
#[path = "e2e/kubelet.rs"]
mod kubelet;
#[path = "cluster_e2e/manifests.rs"]
mod manifests;
#[allow(dead_code, reason = "tests/e2e.rs uses all of it")]
#[path = "e2e/runtime.rs"]
mod runtime;
#[path = "cluster_e2e/workers.rs"]
mod workers;

use std::collections::BTreeSet;
use std::time::Duration;

use cluster::Cluster;
use common::wait::{eventually, eventually_within};
use kubelet::NODE;
use serde_json::Value;
use workers::{Worker, pods, workers};

/// After a budget refused an eviction it is tried again after 15 s and more, and a
/// container that was killed twice is started again after 10 s.
const PATIENCE: Duration = Duration::from_secs(180);

const EVICTED: &str = r#"evictions_total{outcome="evicted"}"#;

/// Long enough to kill the plugin in.
const GRACE: &str = "--eviction-grace=10s";

#[tokio::test(flavor = "multi_thread")]
async fn pods_make_way_for_sick_gpus() {
    let test = "pods make way for sick GPUs";
    let Some(cluster) = Cluster::start(test, 8, &[GRACE]).await else {
        return;
    };
    policies_have_no_faults(&cluster).await;
    wait_condition(&cluster, "True", "AllGpusHealthy").await;
    cluster.apply(&manifests::deployment(2)).await;
    let pods = workers(&cluster, 2).await;

    let pods = one_makes_way(&cluster, &pods).await;
    let pods = a_budget_holds_one(&cluster, &pods).await;
    let pods = one_makes_way_after_a_restart(&cluster, &pods).await;
    nobody_makes_way_for_healthy_gpus(&cluster, &pods).await;
    let log = cluster.plugin_log();
    assert!(!log.contains("may not"), "roles and policies let it: {log}");
    cluster.end().await;
}

/// The controller manager checks the types of their expressions.
async fn policies_have_no_faults(cluster: &Cluster) {
    let path = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
    let policies = eventually("the policies are checked", async || {
        let policies = cluster.list(path).await;
        let checked = |policy: &Value| policy["status"]["typeChecking"].is_object();
        if policies.len() == 5 && policies.iter().all(checked) {
            Ok(policies)
        } else {
            Err(policies)
        }
    })
    .await;
    for policy in policies {
        let warnings = &policy["status"]["typeChecking"]["expressionWarnings"];
        assert!(
            warnings.is_null(),
            "{}: {warnings}",
            policy["metadata"]["name"]
        );
    }
    cluster.say("the policies' types are right");
}

/// A pod's GPU falls off the bus: the node says so, the pod's controller makes
/// another, and that gets a GPU that is well. The pod beside it does not notice.
async fn one_makes_way(cluster: &Cluster, before: &[Worker]) -> Vec<Worker> {
    let [sick, beside] = before else {
        panic!("{before:?}");
    };
    fall_sick(cluster, sick);
    let message = wait_condition(cluster, "False", "Xid").await;
    cluster.say(&format!("the node says: {message}"));
    for words in [&sick.devices[0], "XID 79", "reboot the node"] {
        assert!(message.contains(words), "{words} in {message}");
    }
    wait_event(cluster, NODE, "GPUUnhealthy").await;
    let after = wait_replaced(cluster, sick, beside).await;
    assert_told(cluster, sick, &["WillEvict"]).await;
    after
}

/// As long as a budget lets no pod go, the pod stays, also over a restart of the
/// plugin; then it goes.
async fn a_budget_holds_one(cluster: &Cluster, before: &[Worker]) -> Vec<Worker> {
    let [sick, beside] = before else {
        panic!("{before:?}");
    };
    let budget = manifests::budget(2);
    cluster.apply(&budget).await;
    wait_budget(cluster, 0).await;
    fall_sick(cluster, sick);
    wait_event(cluster, &sick.uid, "EvictionHeldByBudget").await;
    cluster.kill_plugin().await;
    eventually_within(PATIENCE, "the eviction is tried again", async || {
        let refused = r#"{verb="create",resource="pods/eviction",code="429"}"#;
        let refused = format!("api_server_requests_total{refused}");
        match cluster.metric(&refused).await {
            Some(count) if count >= 1.0 => Ok(()),
            other => Err(other),
        }
    })
    .await;
    assert_same(&workers(cluster, 2).await, before);
    cluster.say("the budget holds the pod; the plugin was killed and tries again");

    let path = control_plane::door::path_of(&budget);
    cluster.admin().delete(&path).await.expect("no budget");
    let after = wait_replaced(cluster, sick, beside).await;
    assert_told(cluster, sick, &["EvictionHeldByBudget", "WillEvict"]).await;
    after
}

/// The plugin is killed between the fault and the eviction.
async fn one_makes_way_after_a_restart(cluster: &Cluster, before: &[Worker]) -> Vec<Worker> {
    let [sick, beside] = before else {
        panic!("{before:?}");
    };
    fall_sick(cluster, sick);
    wait_event(cluster, &sick.uid, "WillEvict").await;
    cluster.kill_plugin().await;
    let after = wait_replaced(cluster, sick, beside).await;
    assert_told(cluster, sick, &["WillEvict"]).await;
    let evicted = cluster.metric(EVICTED).await;
    assert_eq!(evicted, Some(1.0), "not by the plugin that was killed");
    after
}

/// Who has a GPU that is well was neither told anything nor moved.
async fn nobody_makes_way_for_healthy_gpus(cluster: &Cluster, pods: &[Worker]) {
    cluster.allocatable(5).await;
    let message = eventually_within(PATIENCE, "the condition names all", async || {
        let message = wait_condition(cluster, "False", "Xid").await;
        if message.starts_with("3 of 8 GPUs sick") {
            Ok(message)
        } else {
            Err(message)
        }
    });
    let message = message.await;
    cluster.say(&format!("the node says: {message}"));
    assert_same(&workers(cluster, 2).await, pods);
    for pod in pods {
        assert_told(cluster, pod, &[]).await;
    }
}

// === What is done ===

/// A worker's GPU falls off the bus.
fn fall_sick(cluster: &Cluster, worker: &Worker) {
    let gpu = &worker.devices[0];
    cluster.gpus.xid(gpu.as_str(), 79);
    cluster.say(&format!("{gpu} of pod {} falls off the bus", worker.name));
}

// === What is waited for ===

/// Waits until the pod is gone and another one of the same controller runs on a GPU
/// that is well. The pod beside it is the one it was.
async fn wait_replaced(cluster: &Cluster, gone: &Worker, beside: &Worker) -> Vec<Worker> {
    let what = format!("pod {} is gone", gone.name);
    eventually_within(PATIENCE, &what, async || {
        let pods = pods(cluster).await;
        let there = pods.iter().any(|pod| pod["metadata"]["uid"] == gone.uid);
        if there {
            Err(cluster.plugin_log())
        } else {
            Ok(())
        }
    })
    .await;
    cluster.say(&what);
    let after = workers(cluster, 2).await;
    assert!(after.contains(beside), "{beside:?} among {after:?}");
    let new = after.iter().find(|pod| *pod != beside);
    let new = new.expect("another pod");
    assert_ne!(new.uid, gone.uid);
    assert_ne!(new.devices, gone.devices);
    let mut after = after.clone();
    // The one that has been there for longer is the next to fall sick.
    after.sort_by_key(|pod| pod != beside);
    after
}

/// Waits until the node's condition is so, and answers with its message.
async fn wait_condition(cluster: &Cluster, status: &str, reason: &str) -> String {
    eventually("the node's condition", async || {
        let conditions = cluster.conditions().await;
        let ours = conditions.iter().find(|one| one["type"] == "GPUHealthy");
        match ours {
            Some(ours) if ours["status"] == status && ours["reason"] == reason => {
                Ok(ours["message"].as_str().unwrap_or_default().to_owned())
            }
            other => Err(format!("{other:?}; {}", cluster.plugin_log())),
        }
    })
    .await
}

/// The reasons of the plugin's events on an object, sorted, once each.
async fn told(cluster: &Cluster, uid: &str) -> Vec<String> {
    let events = cluster.list("/api/v1/events").await;
    let ours = events.iter().filter(|event| {
        event["involvedObject"]["uid"] == uid && event["source"]["component"] == "gpu-device-plugin"
    });
    let reasons = ours.filter_map(|event| event["reason"].as_str());
    let mut reasons: Vec<_> = reasons.map(str::to_owned).collect();
    reasons.sort();
    reasons
}

async fn wait_event(cluster: &Cluster, uid: &str, reason: &str) {
    let what = format!("an event {reason}");
    eventually_within(PATIENCE, &what, async || {
        let told = told(cluster, uid).await;
        if told.iter().any(|one| one == reason) {
            Ok(())
        } else {
            Err(told)
        }
    })
    .await;
    cluster.say(&what);
}

/// Checks that these are the same pods and containers, in any order.
fn assert_same(now: &[Worker], before: &[Worker]) {
    let set = |workers: &[Worker]| workers.iter().cloned().collect::<BTreeSet<_>>();
    assert_eq!(set(now), set(before));
}

/// Checks what a pod was told: each thing once.
async fn assert_told(cluster: &Cluster, worker: &Worker, reasons: &[&str]) {
    assert_eq!(told(cluster, &worker.uid).await, reasons, "{worker:?}");
}

/// Waits until a budget allows so many disruptions.
async fn wait_budget(cluster: &Cluster, allowed: u64) {
    let path = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    eventually("the budget is counted", async || {
        let budgets = cluster.list(path).await;
        let status = &budgets[0]["status"];
        let counted = status["observedGeneration"] == budgets[0]["metadata"]["generation"];
        if counted && status["disruptionsAllowed"] == allowed {
            Ok(())
        } else {
            Err(status.to_string())
        }
    })
    .await;
}
