//! What of a pod decides whether it is evicted.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::Deserialize;

use crate::cluster::time;

/// The kubelet's mark on the API server's picture of a pod that comes from a
/// file on the node (Kubernetes' pkg/kubelet/types/pod_update.go).
const MIRROR: &str = "kubernetes.io/config.mirror";

/// A pod, as far as it concerns us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFacts {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Tells it from another of the same name.
    pub uid: String,
    /// Where it was scheduled to.
    pub node_name: Option<String>,
    /// Its phase is `Succeeded` or `Failed`: it holds no device any more.
    pub finished: bool,
    /// It is being deleted.
    pub terminating: bool,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// It comes from a file on the node, which only its removal ends.
    pub is_static: bool,
    /// A DaemonSet would make it anew, on the same node.
    pub is_daemon_set: bool,
    /// When the kubelet took it.
    pub started: Option<SystemTime>,
}

/// A pod in the API server's JSON.
#[derive(Debug, Deserialize)]
pub(super) struct Pod {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    namespace: String,
    name: String,
    uid: String,
    deletion_timestamp: Option<String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    owner_references: Vec<Owner>,
}

#[derive(Debug, Deserialize)]
struct Owner {
    kind: String,
    #[serde(default)]
    controller: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    node_name: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    #[serde(default)]
    phase: String,
    #[serde(default, deserialize_with = "time::optional")]
    start_time: Option<SystemTime>,
}

impl From<Pod> for PodFacts {
    fn from(pod: Pod) -> Self {
        let Metadata {
            annotations,
            owner_references,
            ..
        } = pod.metadata;
        let is_daemon_set = |owner: &Owner| owner.controller && owner.kind == "DaemonSet";
        Self {
            namespace: pod.metadata.namespace,
            name: pod.metadata.name,
            uid: pod.metadata.uid,
            node_name: pod.spec.node_name.filter(|name| !name.is_empty()),
            finished: matches!(pod.status.phase.as_str(), "Succeeded" | "Failed"),
            terminating: pod.metadata.deletion_timestamp.is_some(),
            is_static: annotations.contains_key(MIRROR),
            is_daemon_set: owner_references.iter().any(is_daemon_set),
            annotations,
            started: pod.status.start_time,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;

    fn facts(pod: Value) -> PodFacts {
        serde_json::from_value::<Pod>(pod).unwrap().into()
    }

    fn pod() -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "namespace": "default", "name": "train-0", "uid": "u",
                "ownerReferences": [{
                    "apiVersion": "apps/v1", "kind": "StatefulSet", "name": "train",
                    "uid": "o", "controller": true,
                }],
            },
            "spec": { "nodeName": "n1", "containers": [] },
            "status": { "phase": "Running", "startTime": "1970-01-01T00:01:00Z" },
        })
    }

    #[test]
    fn a_running_pod() {
        let pod = facts(pod());
        assert_eq!(
            (pod.namespace.as_str(), pod.name.as_str()),
            ("default", "train-0")
        );
        assert_eq!(
            (pod.uid.as_str(), pod.node_name.as_deref()),
            ("u", Some("n1"))
        );
        assert!(!pod.finished && !pod.terminating && !pod.is_static && !pod.is_daemon_set);
        let minute = SystemTime::UNIX_EPOCH + Duration::from_secs(60);
        assert_eq!(pod.started, Some(minute));
    }

    #[test]
    fn the_least_that_a_pod_is() {
        let pod = facts(json!({ "metadata": { "namespace": "a", "name": "b", "uid": "c" } }));
        assert_eq!((pod.node_name, pod.started), (None, None));
        assert!(!pod.finished && pod.annotations.is_empty());
    }

    #[test]
    fn each_thing_that_spares_it() {
        for phase in ["Succeeded", "Failed"] {
            let mut pod = pod();
            pod["status"]["phase"] = phase.into();
            assert!(facts(pod).finished, "{phase}");
        }
        let mut deleted = pod();
        deleted["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        assert!(facts(deleted).terminating);
        let mut mirror = pod();
        mirror["metadata"]["annotations"] = json!({ MIRROR: "1f", "a": "b" });
        let mirror = facts(mirror);
        assert!(mirror.is_static);
        assert_eq!(mirror.annotations["a"], "b");
    }

    #[test]
    fn only_its_controller_makes_it_a_daemon() {
        let mut daemon = pod();
        daemon["metadata"]["ownerReferences"][0]["kind"] = "DaemonSet".into();
        assert!(facts(daemon.clone()).is_daemon_set);
        daemon["metadata"]["ownerReferences"][0]["controller"] = false.into();
        assert!(!facts(daemon).is_daemon_set);
    }
}
