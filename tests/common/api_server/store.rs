//! What is in the cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use gpu_device_plugin::cluster::time::rfc3339;
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::Options;
use super::budget::Budget;
use super::faults::Faults;
use super::log::Log;

pub(super) type Key = (String, String);

/// A node that is ready.
pub fn node(name: &str) -> Value {
    json!({
        "kind": "Node", "apiVersion": "v1",
        "metadata": { "name": name },
        "spec": {},
        "status": { "conditions": [{
            "type": "Ready", "status": "True", "reason": "KubeletReady",
            "message": "kubelet is posting ready status",
            "lastHeartbeatTime": "2026-01-01T00:00:00Z",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }] },
    })
}

/// A pod that runs on a node, of an application with this name that makes
/// another where it ends.
pub fn pod(namespace: &str, name: &str, app: &str, node: &str) -> Value {
    json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {
            "namespace": namespace, "name": name, "labels": { "app": app },
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": app,
                "uid": "", "controller": true, "blockOwnerDeletion": true,
            }],
        },
        "spec": { "nodeName": node, "containers": [{ "name": "main", "image": "test" }] },
        "status": {
            "phase": "Running", "startTime": now(),
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    })
}

pub(super) fn now() -> Value {
    rfc3339(SystemTime::now()).into()
}

/// The store, what is wrong with it, and who asked.
pub(super) struct Cluster {
    pub(super) options: Options,
    pub(super) log: Log,
    /// Rung to let go on what is held.
    pub(super) held: Notify,
    store: Mutex<Store>,
    faults: Mutex<Faults>,
}

impl Cluster {
    pub(super) fn new(options: Options) -> Self {
        Self {
            store: Mutex::new(Store::new(options.clone())),
            options,
            log: Log::default(),
            held: Notify::new(),
            faults: Mutex::default(),
        }
    }

    /// Changes something, and rings.
    pub(super) fn edit<T>(&self, edit: impl FnOnce(&mut Store) -> T) -> T {
        let result = self.look(edit);
        self.log.ring();
        result
    }

    pub(super) fn look<T>(&self, look: impl FnOnce(&mut Store) -> T) -> T {
        let mut store = lock(&self.store);
        store.end_due_pods(Instant::now());
        look(&mut store)
    }

    /// When the next pod ends.
    pub(super) fn next_end(&self) -> Option<Instant> {
        lock(&self.store).ending.values().min().copied()
    }

    pub(super) fn faults(&self) -> MutexGuard<'_, Faults> {
        lock(&self.faults)
    }
}

pub(super) struct Store {
    options: Options,
    pub(super) namespaces: BTreeSet<String>,
    pub(super) ending_namespaces: BTreeSet<String>,
    pub(super) nodes: BTreeMap<String, Value>,
    pub(super) pods: BTreeMap<Key, Value>,
    pub(super) events: BTreeMap<Key, Value>,
    pub(super) budgets: BTreeMap<String, Budget>,
    /// When what is being deleted ends.
    ending: BTreeMap<Key, Instant>,
    revision: u64,
    made: u64,
}

impl Store {
    fn new(options: Options) -> Self {
        Self {
            options,
            namespaces: ["default", "kube-system"].map(String::from).into(),
            ending_namespaces: BTreeSet::new(),
            nodes: BTreeMap::new(),
            pods: BTreeMap::new(),
            events: BTreeMap::new(),
            budgets: BTreeMap::new(),
            ending: BTreeMap::new(),
            revision: 100,
            made: 0,
        }
    }

    /// Gives an object a version that none had before.
    pub(super) fn touch(&mut self, object: &mut Value) {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = self.revision.to_string().into();
    }

    /// Gives an object what the API server gives each new one.
    pub(super) fn create(&mut self, object: &mut Value) {
        self.made += 1;
        let uid = format!("00000000-0000-4000-8000-{:012}", self.made);
        object["metadata"]["uid"] = uid.into();
        object["metadata"]["creationTimestamp"] = now();
        self.touch(object);
    }

    pub(super) fn add_node(&mut self, mut node: Value) {
        self.create(&mut node);
        let name = text(&node["metadata"]["name"]);
        self.nodes.insert(name, node);
    }

    pub(super) fn edit_node(&mut self, name: &str, edit: impl FnOnce(&mut Value)) {
        if let Some(mut node) = self.nodes.remove(name) {
            edit(&mut node);
            self.touch(&mut node);
            self.nodes.insert(name.into(), node);
        }
    }

    pub(super) fn add_pod(&mut self, mut pod: Value) -> String {
        self.create(&mut pod);
        let key = key_of(&pod);
        self.namespaces.insert(key.0.clone());
        let uid = text(&pod["metadata"]["uid"]);
        self.pods.insert(key, pod);
        uid
    }

    pub(super) fn end_namespace(&mut self, name: &str) {
        self.ending_namespaces.insert(name.into());
    }

    /// Marks a pod as being deleted (apiserver's registry/rest/delete.go).
    pub(super) fn delete_pod(&mut self, key: &Key) {
        let Some(mut pod) = self.pods.get(key).cloned() else {
            return;
        };
        if pod["metadata"]["deletionTimestamp"].is_null() {
            pod["metadata"]["deletionTimestamp"] = now();
            pod["metadata"]["deletionGracePeriodSeconds"] = 30.into();
            self.touch(&mut pod);
            self.pods.insert(key.clone(), pod);
        }
        if let Some(after) = self.options.pod_end {
            let end = Instant::now() + after;
            self.ending.entry(key.clone()).or_insert(end);
        }
    }

    pub(super) fn end_pod(&mut self, namespace: &str, name: &str) {
        let key = (namespace.to_owned(), name.to_owned());
        self.ending.remove(&key);
        if let Some(pod) = self.pods.remove(&key) {
            self.replace(&pod);
        }
    }

    pub(super) fn end_deleted_pods(&mut self) {
        let is_deleted = |pod: &&Value| !pod["metadata"]["deletionTimestamp"].is_null();
        let deleted = self.pods.values().filter(is_deleted).map(key_of);
        for (namespace, name) in deleted.collect::<Vec<_>>() {
            self.end_pod(&namespace, &name);
        }
    }

    fn end_due_pods(&mut self, now: Instant) {
        let due = self.ending.iter().filter(|(_, end)| **end <= now);
        let due: Vec<_> = due.map(|(key, _)| key.clone()).collect();
        for (namespace, name) in due {
            self.end_pod(&namespace, &name);
        }
    }

    /// What the pod's controller does about its end. A StatefulSet's pod has the
    /// same name again.
    fn replace(&mut self, pod: &Value) {
        let owner = &pod["metadata"]["ownerReferences"][0];
        if owner["controller"] != true {
            return;
        }
        let mut new = pod.clone();
        if let Some(metadata) = new["metadata"].as_object_mut() {
            metadata.remove("deletionTimestamp");
            metadata.remove("deletionGracePeriodSeconds");
        }
        if owner["kind"] != "StatefulSet" {
            let name = format!("{}-{:05}", text(&owner["name"]), self.made + 1);
            new["metadata"]["name"] = name.into();
        }
        new["spec"]["nodeName"] = json!(self.options.new_pods_on);
        self.add_pod(new);
        let (namespace, app) = (text(&pod["metadata"]["namespace"]), app_of(pod));
        for budget in self.budgets.values_mut() {
            if (&budget.namespace, &budget.app) == (&namespace, &app) {
                budget.give();
            }
        }
    }
}

pub(super) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().into()
}

pub(super) fn key_of(object: &Value) -> Key {
    let metadata = &object["metadata"];
    (text(&metadata["namespace"]), text(&metadata["name"]))
}

pub(super) fn app_of(pod: &Value) -> String {
    text(&pod["metadata"]["labels"]["app"])
}

/// A test that panicked elsewhere has already failed; its data is still good.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
