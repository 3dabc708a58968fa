//! What this process asks of the API server. The only place that knows its
//! objects.
//!
//! Nothing is retried here: an error says whether that is of use, and who asked
//! knows when.

mod connect;
mod event;
mod node;
mod pod;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::json;

use super::condition::Condition;
use super::error::ClusterError;
use super::metrics::ClusterMetrics;
use super::text::{cut, is_name};
use super::wire::{Answer, Ask, Verb, Wire};
use crate::config::ClusterOptions;

pub use self::event::Told;
pub use self::node::{NodeFacts, TAINT_EFFECT, TAINT_KEY, TAINT_VALUE};
pub use self::pod::PodFacts;

/// What events and requests are signed with.
const COMPONENT: &str = "gpu-device-plugin";
/// The namespace of events on what has none (Kubernetes'
/// pkg/apis/core/validation/events.go).
const NAMESPACE_OF_NODE_EVENTS: &str = "default";
/// The API server itself tries an eviction for ten seconds where the UID is
/// another one's (Kubernetes' pkg/registry/core/pod/storage/eviction.go).
const EVICTION_DEADLINE: Duration = Duration::from_secs(20);
/// Of a 429 (k8s.io/api/policy/v1, `DisruptionBudgetCause`).
const DISRUPTION_BUDGET: &str = "DisruptionBudget";
/// Of a 409 (apimachinery's meta/v1, `StatusReasonAlreadyExists`).
const ALREADY_EXISTS: &str = "AlreadyExists";
/// Of a 403 (k8s.io/api/core/v1, `NamespaceTerminatingCause`).
const NAMESPACE_TERMINATING: &str = "NamespaceTerminating";
/// How often a taint is tried anew where the node changes meanwhile.
const TAINT_TRIES: usize = 4;
const LONGEST_REFUSAL: usize = 512;

const MERGE_PATCH: &str = "application/merge-patch+json";
const STRATEGIC_MERGE_PATCH: &str = "application/strategic-merge-patch+json";

/// What an eviction came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Eviction {
    /// The pod is being deleted.
    Accepted,
    /// There is no such pod any more, or another one has its name, or its
    /// namespace is being deleted and takes it along.
    Gone,
    /// A `PodDisruptionBudget` does not allow it now.
    ///
    /// The API server looks at the budget before it looks at the UID: ask for
    /// the pod again before the next try, which else may be about another pod
    /// of that name.
    HeldByBudget {
        /// What the API server asks for; it rarely does.
        retry_after: Option<Duration>,
        /// Which budget, and why.
        message: String,
    },
}

/// The API server, and this node's name there. Clones share connections, the
/// limit on requests (five a second, ten at once) and the metrics.
#[derive(Clone, Debug)]
pub struct ApiServer {
    wire: Wire,
    node_name: Arc<str>,
    instance: Arc<str>,
}

impl ApiServer {
    /// Makes ready to connect, by the kubeconfig that was named, else by the
    /// pod's service account. No connection is made yet. `instance` is this
    /// pod's name, for events.
    ///
    /// # Errors
    ///
    /// [`ClusterError::NotConfigured`] says what is missing.
    pub fn connect(
        options: &ClusterOptions,
        instance: &str,
        metrics: ClusterMetrics,
    ) -> Result<Self, ClusterError> {
        let node_name = connect::node_name(options)?;
        let client = connect::client(options.kubeconfig.as_deref())?;
        Ok(Self {
            wire: Wire::new(client, metrics),
            node_name: node_name.into(),
            instance: instance.into(),
        })
    }

    /// This node's name.
    #[must_use]
    pub fn node_name(&self) -> &str {
        &self.node_name
    }

    /// A pod as the API server knows it now; nothing where it has none of the
    /// name. `get pods`.
    ///
    /// # Errors
    ///
    /// Any of [`ClusterError`]'s.
    pub async fn pod(&self, namespace: &str, name: &str) -> Result<Option<PodFacts>, ClusterError> {
        let ask = Ask::new(Verb::Get, "pods", pod_path(namespace, name)?);
        match self.wire.ask_for::<pod::Pod>(&ask).await {
            Ok(pod) => Ok(Some(pod.into())),
            Err(ClusterError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Asks for the pod's eviction, of this very pod by its UID.
    /// `create pods/eviction`. May take twenty seconds.
    ///
    /// # Errors
    ///
    /// Any of [`ClusterError`]'s. A pod with more than one budget is a
    /// [`ClusterError::Failed`] with status 500.
    pub async fn evict(&self, pod: &PodFacts) -> Result<Eviction, ClusterError> {
        let path = pod_path(&pod.namespace, &pod.name)? + "/eviction";
        let ask = Ask {
            deadline: EVICTION_DEADLINE,
            ..Ask::new(Verb::Create, "pods/eviction", path)
        };
        let ask = ask.with(&json!({
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": { "namespace": pod.namespace, "name": pod.name },
            "deleteOptions": { "preconditions": { "uid": pod.uid } },
        }));
        let answer = self.wire.ask(&ask).await?;
        match evicted(&answer) {
            Some(eviction) => Ok(eviction),
            None => Err(answer.into_error(&ask)),
        }
    }

    /// An event on a pod. Once an incident, also over restarts.
    /// `create events`. Nothing where the pod's namespace is gone.
    ///
    /// # Errors
    ///
    /// Any of [`ClusterError`]'s.
    pub async fn tell_pod(&self, pod: &PodFacts, told: &Told) -> Result<(), ClusterError> {
        let about = json!({
            "apiVersion": "v1", "kind": "Pod",
            "namespace": pod.namespace, "name": pod.name, "uid": pod.uid,
        });
        match self.tell(&pod.namespace, &about, told).await {
            // Nobody is left to read it.
            Err(ClusterError::NotFound(_)) => Ok(()),
            result => result,
        }
    }

    /// An event on this node. Once an incident, also over restarts.
    /// `create events`.
    ///
    /// # Errors
    ///
    /// Any of [`ClusterError`]'s.
    pub async fn tell_node(&self, told: &Told) -> Result<(), ClusterError> {
        // The kubelet has the name for the UID too, and `kubectl describe` looks
        // for that (Kubernetes' pkg/kubelet/kubelet.go, nodeRef).
        let about = json!({
            "apiVersion": "v1", "kind": "Node",
            "name": self.node_name(), "uid": self.node_name(),
        });
        self.tell(NAMESPACE_OF_NODE_EVENTS, &about, told).await
    }

    /// Writes the condition of this node; `since` is when its status began to
    /// hold. `patch nodes/status`. Answers with the node as it is then.
    ///
    /// # Errors
    ///
    /// Any of [`ClusterError`]'s.
    pub async fn set_condition(
        &self,
        condition: &Condition,
        since: SystemTime,
    ) -> Result<NodeFacts, ClusterError> {
        let patch = node::condition_patch(condition, since, SystemTime::now());
        let path = format!("/api/v1/nodes/{}/status", self.node_name);
        let ask = Ask::new(Verb::Patch(STRATEGIC_MERGE_PATCH), "nodes/status", path);
        self.wire.ask_for(&ask.with(&patch)).await
    }

    /// This node as the API server knows it now. `get nodes`.
    ///
    /// # Errors
    ///
    /// Any of [`ClusterError`]'s.
    pub async fn node(&self) -> Result<NodeFacts, ClusterError> {
        let ask = Ask::new(Verb::Get, "nodes", self.node_path());
        self.wire.ask_for(&ask).await
    }

    /// Adds our taint to this node, or removes it, and leaves any other alone,
    /// also one that has our key and is not ours. `get nodes`, `patch nodes`.
    ///
    /// # Errors
    ///
    /// Any of [`ClusterError`]'s; [`ClusterError::Conflict`] where the node
    /// changed again and again meanwhile.
    pub async fn set_taint(&self, wanted: bool) -> Result<(), ClusterError> {
        let mut result = Ok(());
        for _ in 0..TAINT_TRIES {
            let node = self.node().await?;
            let Some(patch) = node.taint_patch(wanted) else {
                return Ok(());
            };
            let ask = Ask::new(Verb::Patch(MERGE_PATCH), "nodes", self.node_path());
            let patched = self.wire.ask_for::<NodeFacts>(&ask.with(&patch)).await;
            result = patched.map(drop);
            if !matches!(result, Err(ClusterError::Conflict(_))) {
                break;
            }
        }
        result
    }

    fn node_path(&self) -> String {
        format!("/api/v1/nodes/{}", self.node_name)
    }

    async fn tell(
        &self,
        namespace: &str,
        about: &serde_json::Value,
        told: &Told,
    ) -> Result<(), ClusterError> {
        let path = format!("/api/v1/namespaces/{}/events", name(namespace)?);
        let ask = Ask::new(Verb::Create, "events", path);
        let ask = ask.with(&told.event(namespace, about, &self.node_name, &self.instance));
        let answer = self.wire.ask(&ask).await?;
        let already = answer.code() == 409 && answer.status().reason == ALREADY_EXISTS;
        if answer.is_success() || already || answer.has_cause(NAMESPACE_TERMINATING) {
            return Ok(());
        }
        Err(answer.into_error(&ask))
    }
}

/// What an answer to an eviction means, where it is no error.
fn evicted(answer: &Answer) -> Option<Eviction> {
    match answer.code() {
        200..300 => Some(Eviction::Accepted),
        404 => Some(Eviction::Gone),
        403 if answer.has_cause(NAMESPACE_TERMINATING) => Some(Eviction::Gone),
        // In 1.36 "the UID in the precondition", before "UID in precondition".
        409 if answer.status().message.contains("UID in ") => Some(Eviction::Gone),
        429 if answer.has_cause(DISRUPTION_BUDGET) => Some(Eviction::HeldByBudget {
            retry_after: answer.retry_after(),
            message: refusal(answer),
        }),
        _ => None,
    }
}

/// The budget's own words where there are some.
fn refusal(answer: &Answer) -> String {
    let status = answer.status();
    let causes = status.details.iter().flat_map(|details| &details.causes);
    let mut words = causes.map(|cause| cause.message.as_str());
    let words = words.find(|words| !words.is_empty());
    cut(words.unwrap_or(&status.message), LONGEST_REFUSAL)
}

fn pod_path(namespace: &str, pod: &str) -> Result<String, ClusterError> {
    let (namespace, pod) = (name(namespace)?, name(pod)?);
    Ok(format!("/api/v1/namespaces/{namespace}/pods/{pod}"))
}

fn name(name: &str) -> Result<&str, ClusterError> {
    if is_name(name) {
        return Ok(name);
    }
    Err(ClusterError::InvalidName(name.into()))
}
