//! An API server with two nodes, the manifests of deploy/, and a plugin's pod.

use std::fs;
use std::path::PathBuf;

use gpu_device_plugin::cluster::{ApiServer, ClusterMetrics};
use gpu_device_plugin::config::ClusterOptions;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::system::skip;
use crate::common::wait::eventually;
use crate::control_plane::door::{Answer, Door, Patch, eviction};
use crate::control_plane::{ControlPlane, Programs};

/// Asks and does nothing.
const DRY: &str = "dryRun=All";

pub struct Cluster {
    control_plane: ControlPlane,
    folder: TempDir,
}

/// A plugin at the API server's door.
pub struct Plugin {
    pub door: Door,
    /// A file for the plugin's own way to the API server.
    kubeconfig: Option<PathBuf>,
}

impl Cluster {
    /// None where this machine lacks what it takes, which is said.
    pub async fn start(test: &str) -> Option<Self> {
        let programs = match Programs::find() {
            Ok(programs) => programs,
            Err(missing) => {
                let needs = "needs KUBE_APISERVER=<path of a kube-apiserver>, etcd and openssl";
                skip(test, &format!("{needs} ({missing})"));
                return None;
            }
        };
        let folder = tempfile::tempdir().expect("create a temporary folder");
        let cluster = Self {
            control_plane: ControlPlane::start(&programs, folder.path()).await,
            folder,
        };
        cluster.make_nodes().await;
        for file in ["policy.yaml", "eviction.yaml", "node-taint.yaml"] {
            cluster.control_plane.apply(file).await;
        }
        cluster.make_account("default").await;
        cluster.make_account("kube-system").await;
        cluster.wait_in_force().await;
        Some(cluster)
    }

    pub fn admin(&self) -> &Door {
        &self.control_plane.admin
    }

    /// Applies another file of deploy/.
    pub async fn apply(&self, file: &str) {
        self.control_plane.apply(file).await;
    }

    async fn make_nodes(&self) {
        for name in ["a", "b"] {
            let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
            let made = self.admin().create("/api/v1/nodes", &node).await;
            made.expect("a node");
            let status = json!({"status": {
                "addresses": [{"type": "InternalIP", "address": "10.1.1.1"}],
                "capacity": {"cpu": "8", "nvidia.com/gpu": "8"},
                "conditions": [{"type": "Ready", "status": "True"}],
            }});
            self.write_status(name, &status).await;
        }
    }

    async fn write_status(&self, node: &str, status: &Value) {
        let path = format!("/api/v1/nodes/{node}/status");
        let written = self.admin().patch(&path, Patch::Strategic, status).await;
        written.expect("a node's status");
    }

    /// Gives a node a status as long as they come.
    pub async fn fill_node(&self, node: &str) {
        let images = (0..300).map(|image| {
            let name = format!("registry.example/team/an-image-with-a-name-{image}");
            json!({"names": [format!("{name}:1"), format!("{name}@sha256:{image:064}")]})
        });
        let volumes = (0..300).map(|volume| format!("kubernetes.io/csi/disk.example^{volume}"));
        let conditions = (0..40).map(|condition| {
            json!({"type": format!("Problem{condition}"), "status": "False", "message": "none"})
        });
        let status = json!({"status": {
            "images": images.collect::<Vec<_>>(),
            "volumesInUse": volumes.collect::<Vec<_>>(),
            "conditions": conditions.collect::<Vec<_>>(),
        }});
        self.write_status(node, &status).await;
    }

    /// Gives a node these taints and no other.
    pub async fn taint(&self, node: &str, taints: &Value) {
        let path = format!("/api/v1/nodes/{node}");
        let taints = json!({"spec": {"taints": taints}});
        let tainted = self.admin().patch(&path, Patch::Merge, &taints).await;
        tainted.expect("a tainted node");
    }

    /// What a controller would make: no pod is taken without it.
    async fn make_account(&self, namespace: &str) {
        let account = json!({
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": "default", "namespace": namespace},
        });
        self.admin().apply(&account).await.expect("an account");
    }

    /// Makes a pod that is on a node, and answers with its UID.
    pub async fn make_pod(&self, namespace: &str, name: &str, node: &str) -> String {
        self.make_pod_of(namespace, name, node, "default").await
    }

    async fn make_pod_of(&self, namespace: &str, name: &str, node: &str, account: &str) -> String {
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "nodeName": node,
                "serviceAccountName": account,
                "tolerations": [{"operator": "Exists"}],
                "containers": [{"name": "program", "image": "registry.example/program:1"}],
            },
        });
        let path = format!("/api/v1/namespaces/{namespace}/pods");
        let pod = self.admin().create(&path, &pod).await.expect("a pod");
        pod["metadata"]["uid"].as_str().expect("a UID").to_owned()
    }

    /// The plugin of a node, with the token that a kubelet would have given it.
    pub async fn plugin(&self, node: &str) -> Plugin {
        let name = format!("gpu-device-plugin-{node}");
        let uid = self.make_pod_of("kube-system", &name, node, "gpu-device-plugin");
        let pod = json!({"kind": "Pod", "apiVersion": "v1", "name": name, "uid": uid.await});
        let kubeconfig = self.kubeconfig(&json!({"boundObjectRef": pod})).await;
        let file = self.folder.path().join(format!("{name}.kubeconfig"));
        fs::write(&file, kubeconfig.to_string()).expect("write a kubeconfig");
        let door = Door::of(&kubeconfig);
        let kubeconfig = Some(file);
        Plugin { door, kubeconfig }
    }

    /// Somebody with a token of the plugin's account that is for no pod.
    pub async fn anywhere(&self) -> Plugin {
        Plugin {
            door: Door::of(&self.kubeconfig(&json!({})).await),
            kubeconfig: None,
        }
    }

    async fn kubeconfig(&self, spec: &Value) -> Value {
        let path = "/api/v1/namespaces/kube-system/serviceaccounts/gpu-device-plugin/token";
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": spec,
        });
        let token = self.admin().create(path, &request).await.expect("a token");
        let token = token["status"]["token"].as_str().expect("a token");
        self.control_plane.with_token(token)
    }

    /// A policy is in force a moment after it was made.
    async fn wait_in_force(&self) {
        self.make_pod("default", "waiting", "a").await;
        let somebody = self.anywhere().await.door;
        let nothing = json!({});
        let event = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": "waiting", "namespace": "default"},
            "involvedObject": {"kind": "Pod", "name": "waiting", "namespace": "default"},
        });
        let eviction = eviction("default", "waiting", None);
        let pod = "/api/v1/namespaces/default/pods/waiting/eviction";
        self.wait_refusal("node-status", async || {
            let path = format!("/api/v1/nodes/a/status?{DRY}");
            somebody.patch(&path, Patch::Merge, &nothing).await
        })
        .await;
        self.wait_refusal("node-taint", async || {
            let path = format!("/api/v1/nodes/a?{DRY}");
            somebody.patch(&path, Patch::Merge, &nothing).await
        })
        .await;
        self.wait_refusal("event", async || {
            let path = format!("/api/v1/namespaces/default/events?{DRY}");
            somebody.create(&path, &event).await
        })
        .await;
        self.wait_refusal("eviction", async || {
            somebody.create(&format!("{pod}?{DRY}"), &eviction).await
        })
        .await;
    }

    /// Waits until a policy refuses what nothing but it would.
    pub async fn wait_refusal(&self, policy: &str, ask: impl AsyncFn() -> Answer) {
        let name = format!("'gpu-device-plugin-{policy}'");
        eventually(&format!("policy {name} refuses"), async || {
            match ask().await {
                Err(refusal) if refusal.message.contains(&name) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }
}

impl Plugin {
    /// The plugin's own way to the API server, on a node of that name.
    pub fn api(&self, node: &str) -> ApiServer {
        let options = ClusterOptions {
            node_name: Some(node.into()),
            kubeconfig: self.kubeconfig.clone(),
        };
        let api = ApiServer::connect(&options, "gpu-device-plugin-x", ClusterMetrics::default());
        api.expect("a way to the API server")
    }

    /// Writes the status of a node.
    pub async fn status(&self, node: &str, patch: &Value) -> Answer {
        let path = format!("/api/v1/nodes/{node}/status");
        self.door.patch(&path, Patch::Strategic, patch).await
    }

    /// Writes a node.
    pub async fn node(&self, node: &str, patch: &Value) -> Answer {
        let path = format!("/api/v1/nodes/{node}");
        self.door.patch(&path, Patch::Merge, patch).await
    }

    pub async fn tell(&self, event: &Value) -> Answer {
        self.door
            .create("/api/v1/namespaces/default/events", event)
            .await
    }

    pub async fn evict(&self, namespace: &str, pod: &str, uid: Option<&str>) -> Answer {
        self.evict_with(namespace, pod, uid, "").await
    }

    /// Asks for an eviction that is not done.
    pub async fn try_evict(&self, namespace: &str, pod: &str, uid: &str) -> Answer {
        self.evict_with(namespace, pod, Some(uid), DRY).await
    }

    async fn evict_with(
        &self,
        namespace: &str,
        pod: &str,
        uid: Option<&str>,
        options: &str,
    ) -> Answer {
        let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}/eviction?{options}");
        let eviction = eviction(namespace, pod, uid);
        self.door.create(&path, &eviction).await
    }
}
