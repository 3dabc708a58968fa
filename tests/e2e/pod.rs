//! Pods that look at what they were given.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::image::{LIBRARY_FOLDER, NAME, PROBE};
use super::kubelet::{Kubelet, RESOURCE};
use super::wait::eventually;

const CONTAINER: &str = "probe";

/// A pod that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    pub name: String,
    /// The container's ID at the runtime.
    pub container: String,
    /// The devices that the kubelet says it has.
    pub devices: BTreeSet<String>,
}

/// Makes the kubelet start a pod; `questions` are the probe's arguments.
pub fn start(kubelet: &Kubelet, name: &str, gpus: usize, questions: &[&str]) {
    let command = [PROBE, LIBRARY_FOLDER].iter().chain(questions);
    let manifest = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "hostNetwork": true,
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": CONTAINER,
                "image": NAME,
                "imagePullPolicy": "Never",
                "command": command.collect::<Vec<_>>(),
                "resources": {"limits": {RESOURCE: gpus}},
            }],
        },
    });
    kubelet.add_pod(name, &manifest);
}

/// Waits until the pod runs, its container started `restarts` times again.
pub async fn wait_running(kubelet: &Kubelet, name: &str, restarts: usize) -> Pod {
    eventually(&format!("pod {name} runs"), async || {
        let status = kubelet.pod_status(name).await?;
        let container = &status["containerStatuses"][0];
        let running = container["state"]["running"].is_object();
        if !running || container["restartCount"] != restarts {
            return Err(status.to_string());
        }
        let id = container["containerID"].as_str().unwrap_or_default();
        Ok(Pod {
            name: name.to_owned(),
            container: id.trim_start_matches("containerd://").to_owned(),
            devices: kubelet.devices_of(name).await?,
        })
    })
    .await
}

/// Waits until the kubelet has refused the pod, and says why it did.
pub async fn wait_refused(kubelet: &Kubelet, name: &str) -> (String, String) {
    eventually(&format!("pod {name} is refused"), async || {
        let status = kubelet.pod_status(name).await?;
        if status["phase"] != "Failed" {
            return Err(status.to_string());
        }
        let text = |field: &str| status[field].as_str().unwrap_or_default().to_owned();
        Ok((text("reason"), text("message")))
    })
    .await
}

/// What a probe found; see probe.c for its lines.
#[derive(Debug)]
pub struct Findings(Vec<(String, String, String)>);

impl Findings {
    /// Waits for all that the container said in its `attempt`-th life.
    pub async fn of(kubelet: &Kubelet, pod: &str, attempt: usize) -> Self {
        eventually(&format!("the probe in pod {pod} is done"), async || {
            let log = kubelet.log_of(pod, CONTAINER, attempt).unwrap_or_default();
            let said = said(&log);
            if said.contains(&"done") {
                Ok(Self(said.into_iter().map(fact).collect()))
            } else {
                Err(log)
            }
        })
        .await
    }

    /// All facts of one kind, by what they are about.
    pub fn all(&self, kind: &str) -> BTreeMap<&str, &str> {
        let facts = self.0.iter().filter(|(of, ..)| of == kind);
        facts
            .map(|(_, about, what)| (about.as_str(), what.as_str()))
            .collect()
    }
}

/// The lines on standard output, out of the log's `TIME STREAM TAG LINE`.
fn said(log: &str) -> Vec<&str> {
    let lines = log.lines().filter_map(|line| line.split_once(" stdout F "));
    lines.map(|(_time, line)| line).collect()
}

fn fact(line: &str) -> (String, String, String) {
    let mut words = line.splitn(3, ' ').map(str::to_owned);
    let mut word = || words.next().unwrap_or_default();
    (word(), word(), word())
}
