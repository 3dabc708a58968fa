//! The workload's pods.

use serde_json::Value;

use super::cluster::Cluster;
use super::manifests::APP;
use crate::common::wait::eventually;

/// A pod of the workload that runs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Worker {
    pub name: String,
    pub uid: String,
    /// The container's ID at the runtime.
    pub container: String,
    /// The devices that the kubelet says it has.
    pub devices: Vec<String>,
}

/// Waits until there are so many pods, all of which run.
pub async fn workers(cluster: &Cluster, count: usize) -> Vec<Worker> {
    let what = format!("{count} pods run");
    let pods = eventually(&what, async || {
        let pods = pods(cluster).await;
        if pods.len() == count && pods.iter().all(runs) {
            Ok(pods)
        } else {
            Err(format!("{pods:?}"))
        }
    })
    .await;
    let mut workers = Vec::new();
    for pod in &pods {
        let worker = worker(cluster, pod).await;
        cluster.say(&format!(
            "pod {} runs, with {:?}",
            worker.name, worker.devices
        ));
        workers.push(worker);
    }
    workers.sort();
    workers
}

/// The workload's pods, those on their way out too.
pub async fn pods(cluster: &Cluster) -> Vec<Value> {
    let path = format!("/api/v1/namespaces/default/pods?labelSelector=app%3D{APP}");
    cluster.list(&path).await
}

fn runs(pod: &Value) -> bool {
    let container = &pod["status"]["containerStatuses"][0];
    container["state"]["running"].is_object()
        && container["restartCount"] == 0
        && pod["metadata"]["deletionTimestamp"].is_null()
}

async fn worker(cluster: &Cluster, pod: &Value) -> Worker {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let name = text(&pod["metadata"]["name"]);
    Worker {
        uid: text(&pod["metadata"]["uid"]),
        container: text(&pod["status"]["containerStatuses"][0]["containerID"]),
        devices: cluster.devices_of(&name).await,
        name,
    }
}
