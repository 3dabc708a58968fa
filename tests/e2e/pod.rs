//! Pods that look at what they were given.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::image::{NAME, PLUGIN};
use super::kubelet::{Kubelet, RESOURCE};
use crate::common::probe::{Findings, LIBRARY_FOLDER, PROBE};
use crate::common::wait::eventually;

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

/// Of so many GPUs and nothing else.
pub fn limits(gpus: usize) -> Value {
    json!({RESOURCE: gpus})
}

/// Those of a guaranteed pod, to which a kubelet may give a processor alone.
pub fn with_a_cpu(gpus: usize) -> Value {
    json!({RESOURCE: gpus, "cpu": 1, "memory": "64Mi"})
}

/// Makes the kubelet start a pod; `questions` are the probe's arguments.
pub fn start(kubelet: &Kubelet, name: &str, limits: &Value, questions: &[&str]) {
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
                "resources": {"limits": limits},
            }],
        },
    });
    kubelet.add_pod(name, &manifest);
}

/// Makes the kubelet start the plugin's program, with the rights and the view of
/// the host that the manifests in deploy/ give it; but for mounts that appear
/// later, which want the host's `/` to be a shared mount.
pub fn start_program(kubelet: &Kubelet, name: &str, arguments: &[String], root: &str) {
    const DEVICE_PLUGINS: &str = "/var/lib/kubelet/device-plugins";
    let command = [PLUGIN.to_owned()];
    let command: Vec<_> = command.iter().chain(arguments).collect();
    let manifest = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "hostNetwork": true,
            "terminationGracePeriodSeconds": 10,
            "containers": [{
                "name": CONTAINER,
                "image": NAME,
                "imagePullPolicy": "Never",
                "command": command,
                "securityContext": {
                    "privileged": true,
                    "readOnlyRootFilesystem": true,
                    "runAsUser": 0,
                },
                "volumeMounts": [
                    {"name": "device-plugins", "mountPath": DEVICE_PLUGINS},
                    {"name": "host-root", "mountPath": root},
                ],
            }],
            "volumes": [
                {"name": "device-plugins", "hostPath": {"path": DEVICE_PLUGINS}},
                {"name": "host-root", "hostPath": {"path": "/"}},
            ],
        },
    });
    kubelet.add_pod(name, &manifest);
}

/// Waits until the container's first life has said something with these words.
pub async fn wait_said(kubelet: &Kubelet, pod: &str, words: &str) -> String {
    eventually(&format!("pod {pod} says {words:?}"), async || {
        let log = kubelet.log_of(pod, CONTAINER, 0).unwrap_or_default();
        let lines = said(&log).join("\n");
        if lines.contains(words) {
            Ok(lines)
        } else {
            Err(log)
        }
    })
    .await
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

/// Waits for all that the container found in its `attempt`-th life.
pub async fn findings(kubelet: &Kubelet, pod: &str, attempt: usize) -> Findings {
    eventually(&format!("the probe in pod {pod} is done"), async || {
        let log = kubelet.log_of(pod, CONTAINER, attempt).unwrap_or_default();
        Findings::parse(said(&log)).ok_or(log)
    })
    .await
}

/// The lines on standard output, out of the log's `TIME STREAM TAG LINE`.
fn said(log: &str) -> Vec<&str> {
    let lines = log.lines().filter_map(|line| line.split_once(" stdout F "));
    lines.map(|(_time, line)| line).collect()
}
