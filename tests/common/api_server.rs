//! An API server over HTTP, with as many kinds of objects as the plugin knows.
//!
//! It answers as Kubernetes 1.36 does, refusals included; `tests/cluster` holds
//! both to the same answers. It keeps every request that it was sent. What a
//! kubelet and controllers would do about an evicted pod it does itself: the pod
//! ends, and its controller makes another.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test, example and bench uses a part"
)]

mod answer;
mod budget;
mod eviction;
mod faults;
mod log;
mod patch;
mod serve;
mod server;
mod store;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

pub use self::budget::Budget;
pub use self::faults::{Fault, On};
pub use self::log::{Asked, WaitTimeout};
pub use self::store::{node, pod};

use self::log::Log;
use self::server::Server;
use self::store::{Cluster, Store};

/// How this cluster differs from another.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long an evicted pod takes to end; for ever where there is nothing.
    pub pod_end: Option<Duration>,
    /// Where controllers' new pods come to; nowhere yet where there is nothing.
    pub new_pods_on: Option<String>,
    /// How long an eviction with a wrong UID takes that no budget is asked
    /// about. A real API server takes ten seconds (eviction.go, `EvictionsRetry`).
    pub conflict_patience: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            pod_end: Some(Duration::from_millis(20)),
            new_pods_on: None,
            conflict_patience: Duration::ZERO,
        }
    }
}

/// The API server. It runs from the start; see [`stop`](Self::stop).
pub struct ApiServerPeer {
    cluster: Arc<Cluster>,
    server: tokio::sync::Mutex<Option<Server>>,
    address: SocketAddr,
    folder: TempDir,
}

impl ApiServerPeer {
    /// A cluster with nothing in it but the namespaces `default` and
    /// `kube-system`, on a free port of this machine.
    pub fn start() -> io::Result<Self> {
        Self::with(Options::default())
    }

    pub fn with(options: Options) -> io::Result<Self> {
        let cluster = Arc::new(Cluster::new(options));
        let server = Server::start(SocketAddr::from(([127, 0, 0, 1], 0)), cluster.clone())?;
        let address = server.address();
        let folder = tempfile::tempdir()?;
        let peer = Self {
            cluster,
            server: tokio::sync::Mutex::new(Some(server)),
            address,
            folder,
        };
        std::fs::write(peer.kubeconfig(), peer.kubeconfig_with(serve::TOKEN))?;
        Ok(peer)
    }

    // === Life and death ===

    /// Dies as if killed: connections are closed, and refused from then on. What
    /// it stored stays.
    pub async fn stop(&self) {
        if let Some(server) = self.server.lock().await.take() {
            server.stop().await;
        }
    }

    /// Runs again, on the same port.
    pub async fn resume(&self) -> io::Result<()> {
        let mut server = self.server.lock().await;
        if server.is_none() {
            *server = Some(Server::start(self.address, self.cluster.clone())?);
        }
        Ok(())
    }

    // === The way in ===

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A kubeconfig whose user may do everything that is not forbidden.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    /// The text of a kubeconfig with this token; every other than ours is
    /// refused.
    pub fn kubeconfig_with(&self, token: &str) -> String {
        let server = format!("http://{}", self.address);
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{ "name": "test", "cluster": { "server": server } }],
            "users": [{ "name": "test", "user": { "token": token } }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
        })
        .to_string()
    }

    // === What is in the cluster ===

    /// Adds a node as [`node`] makes one.
    pub fn add_node(&self, node: Value) {
        self.cluster.edit(|store| store.add_node(node));
    }

    /// Adds a pod as [`pod`] makes one, and its namespace. Its UID.
    pub fn add_pod(&self, pod: Value) -> String {
        self.cluster.edit(|store| store.add_pod(pod))
    }

    /// Ends a pod at once. Its controller, if it has one, makes another.
    pub fn end_pod(&self, namespace: &str, name: &str) {
        self.cluster.edit(|store| store.end_pod(namespace, name));
    }

    /// What is being deleted ends now.
    pub fn end_deleted_pods(&self) {
        self.cluster.edit(Store::end_deleted_pods);
    }

    /// Sets a disruption budget for the pods of an application.
    pub fn set_budget(&self, name: &str, budget: Budget) {
        self.cluster.edit(|store| {
            store.budgets.insert(name.to_owned(), budget);
        });
    }

    pub fn remove_budget(&self, name: &str) {
        self.cluster.edit(|store| store.budgets.remove(name));
    }

    /// How many disruptions a budget allows now.
    pub fn allowed(&self, budget: &str) -> Option<u32> {
        let allowed = |store: &mut Store| Some(store.budgets.get(budget)?.allowed);
        self.cluster.look(allowed)
    }

    /// Marks a namespace as being deleted.
    pub fn end_namespace(&self, name: &str) {
        self.cluster.edit(|store| store.end_namespace(name));
    }

    /// Changes a node as its kubelet or a person would.
    pub fn edit_node(&self, name: &str, edit: impl FnOnce(&mut Value)) {
        self.cluster.edit(|store| store.edit_node(name, edit));
    }

    pub fn remove_node(&self, name: &str) {
        self.cluster.edit(|store| store.nodes.remove(name));
    }

    pub fn node(&self, name: &str) -> Option<Value> {
        self.cluster.look(|store| store.nodes.get(name).cloned())
    }

    /// A condition of a node.
    pub fn condition(&self, node: &str, kind: &str) -> Option<Value> {
        let node = self.node(node)?;
        let conditions = node["status"]["conditions"].as_array()?;
        let mut conditions = conditions.iter();
        conditions.find(|one| one["type"] == kind).cloned()
    }

    /// The taints of a node.
    pub fn taints(&self, node: &str) -> Vec<Value> {
        let node = self.node(node).unwrap_or_default();
        let taints = node["spec"]["taints"].as_array();
        taints.cloned().unwrap_or_default()
    }

    pub fn pod(&self, namespace: &str, name: &str) -> Option<Value> {
        let key = (namespace.to_owned(), name.to_owned());
        self.cluster.look(|store| store.pods.get(&key).cloned())
    }

    /// Every pod, by namespace and name.
    pub fn pods(&self) -> Vec<Value> {
        self.cluster
            .look(|store| store.pods.values().cloned().collect())
    }

    /// The events on an object, in the order of their names.
    pub fn events(&self, kind: &str, name: &str) -> Vec<Value> {
        let is_about = |event: &&Value| {
            let about = &event["involvedObject"];
            about["kind"] == kind && about["name"] == name
        };
        self.cluster
            .look(|store| store.events.values().filter(is_about).cloned().collect())
    }

    // === Faults ===

    /// Arms a fault for so many requests of this kind.
    pub fn fault(&self, fault: Fault, on: On, times: usize) {
        self.cluster.faults().arm(fault, on, times);
    }

    /// Disarms all faults. A request that hangs goes on.
    pub fn clear_faults(&self) {
        self.cluster.faults().clear();
    }

    /// Lets every request go on that is held.
    pub fn release(&self) {
        self.cluster.held.notify_waiters();
    }

    /// From now on RBAC does not allow this verb on this resource.
    pub fn forbid(&self, verb: &str, resource: &str) {
        self.cluster.faults().forbid(verb, resource);
    }

    /// Allows everything again.
    pub fn allow_all(&self) {
        self.cluster.faults().allow_all();
    }

    // === What was asked ===

    fn log(&self) -> &Log {
        &self.cluster.log
    }

    /// Every request since the start, those that are not answered yet too.
    pub fn requests(&self) -> Vec<Asked> {
        self.log().all()
    }

    /// The requests as `VERB resource code`.
    pub fn summary(&self) -> Vec<String> {
        self.requests().iter().map(Asked::summary).collect()
    }

    /// How many were answered with 2xx, of this verb and resource.
    pub fn count(&self, verb: &str, resource: &str) -> usize {
        let requests = self.requests();
        let wanted = |asked: &&Asked| asked.is(verb, resource) && asked.was_taken();
        requests.iter().filter(wanted).count()
    }

    /// Waits until the probe answers; it is asked at every change.
    pub async fn wait_for<T>(
        &self,
        what: &str,
        within: Duration,
        mut probe: impl FnMut(&Self) -> Option<T>,
    ) -> Result<T, WaitTimeout> {
        let end = Instant::now() + within;
        let mut bell = self.log().bell();
        loop {
            bell.borrow_and_update();
            if let Some(answer) = probe(self) {
                return Ok(answer);
            }
            let now = Instant::now();
            if now >= end {
                return Err(self.log().timeout(what));
            }
            let wake = self.cluster.next_end().unwrap_or(end).min(end).max(now);
            let rung = bell.changed();
            drop(tokio::time::timeout_at(wake.into(), rung).await);
        }
    }
}
