//! The API server of these tests answers as a real one does.
//!
//! `KUBE_APISERVER=/path cargo test --test cluster contract` asks a real one the
//! same, with the rights of an administrator: one that is thrown away after, and has
//! no controllers, as they would undo what is set up here. etcd, of `ETCD` or on
//! PATH, and openssl are needed too.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use gpu_device_plugin::cluster::ClusterError;
use gpu_device_plugin::cluster::api::{ApiServer, Eviction};
use gpu_device_plugin::cluster::client::Client;
use gpu_device_plugin::cluster::condition::{Condition, Status};
use gpu_device_plugin::cluster::metrics::ClusterMetrics;
use gpu_device_plugin::config::ClusterOptions;
use http::Request;
use serde_json::{Value, json};

use crate::common::api_server::{ApiServerPeer, Budget, Options, node, pod};
use crate::common::system::skip;
use crate::control_plane::{ControlPlane, Programs};
use crate::rig::told;

const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const NOBODY: &str = "00000000-0000-0000-0000-000000000000";

/// Either API server, and names that nobody has used there.
struct World {
    client: Client,
    api: ApiServer,
    peer: Option<ApiServerPeer>,
    run: String,
}

/// An answer.
#[derive(Debug)]
struct Said {
    code: u16,
    retry_after: Option<String>,
    object: Value,
}

impl Said {
    /// The status, its reason, and the reason of its cause.
    fn refusal(&self) -> (u16, &str, &str) {
        let text = |value: &'static str| self.object[value].as_str().unwrap_or_default();
        let cause = &self.object["details"]["causes"][0]["reason"];
        (
            self.code,
            text("reason"),
            cause.as_str().unwrap_or_default(),
        )
    }

    fn message(&self) -> &str {
        self.object["message"].as_str().unwrap_or_default()
    }
}

impl World {
    fn new(kubeconfig: &Path, peer: Option<ApiServerPeer>) -> Self {
        let run = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let run = format!("t{}", run.as_micros());
        let options = ClusterOptions {
            node_name: Some(format!("node-{run}")),
            kubeconfig: Some(kubeconfig.into()),
        };
        let api = ApiServer::connect(&options, "contract", ClusterMetrics::default());
        Self {
            client: Client::by_kubeconfig(kubeconfig).unwrap(),
            api: api.unwrap(),
            peer,
            run,
        }
    }

    fn name(&self, name: &str) -> String {
        format!("{name}-{}", self.run)
    }

    async fn ask(&self, method: &str, path: &str, media_type: &str, body: &Value) -> Said {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", media_type)
            .body(body.to_string().into_bytes())
            .unwrap();
        let (head, bytes) = self.client.send(request).await.unwrap().into_parts();
        let retry_after = head.headers.get("retry-after");
        Said {
            code: head.status.as_u16(),
            retry_after: retry_after.map(|value| value.to_str().unwrap().into()),
            object: serde_json::from_slice(&bytes).unwrap_or_default(),
        }
    }

    async fn made(&self, method: &str, path: &str, media_type: &str, body: &Value) -> Value {
        let said = self.ask(method, path, media_type, body).await;
        assert!((200..300).contains(&said.code), "{method} {path}: {said:?}");
        said.object
    }

    // === What is there before ===

    async fn add_node(&self) {
        let node = node(self.api.node_name());
        match &self.peer {
            Some(peer) => peer.add_node(node),
            None => {
                self.made("POST", "/api/v1/nodes", JSON, &node).await;
                let status = json!({ "status": node["status"] });
                let path = self.node_path() + "/status";
                self.made("PATCH", &path, STRATEGIC, &status).await;
                // A new node is not ready, and is tainted for that.
                let untainted = json!({ "spec": { "taints": null } });
                self.made("PATCH", &self.node_path(), MERGE, &untainted)
                    .await;
            }
        }
    }

    /// Its UID.
    async fn add_pod(&self, name: &str, app: &str, phase: &str) -> String {
        let mut pod = pod("default", name, app, self.api.node_name());
        pod["status"]["phase"] = phase.into();
        if let Some(peer) = &self.peer {
            return peer.add_pod(pod);
        }
        let account = json!({ "metadata": { "name": "default" } });
        let accounts = "/api/v1/namespaces/default/serviceaccounts";
        self.ask("POST", accounts, JSON, &account).await;
        pod["metadata"]["ownerReferences"] = json!([]);
        pod["spec"]["automountServiceAccountToken"] = false.into();
        let made = self.made("POST", "/api/v1/namespaces/default/pods", JSON, &pod);
        let made = made.await;
        let status = json!({ "status": pod["status"] });
        self.made("PATCH", &(pod_path(name) + "/status"), MERGE, &status)
            .await;
        made["metadata"]["uid"].as_str().unwrap().into()
    }

    async fn set_budget(&self, name: &str, app: &str, allowed: u32, observed: bool) {
        let budget = Budget {
            observed,
            ..Budget::of("default", app, allowed)
        };
        if let Some(peer) = &self.peer {
            return peer.set_budget(name, budget);
        }
        let folder = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
        let selector = json!({ "matchLabels": { "app": app } });
        let spec = json!({ "minAvailable": budget.desired, "selector": selector });
        let object = json!({ "metadata": { "name": name }, "spec": spec });
        self.ask("POST", folder, JSON, &object).await;
        let status = json!({ "status": {
            "observedGeneration": u32::from(observed), "disruptionsAllowed": allowed,
            "currentHealthy": budget.healthy, "desiredHealthy": budget.desired,
            "expectedPods": budget.healthy, "disruptedPods": null,
        } });
        self.made("PATCH", &format!("{folder}/{name}/status"), MERGE, &status)
            .await;
    }

    // === What is asked ===

    fn node_path(&self) -> String {
        format!("/api/v1/nodes/{}", self.api.node_name())
    }

    async fn evict(&self, pod: &str, uid: &str) -> Said {
        let eviction = json!({
            "apiVersion": "policy/v1", "kind": "Eviction",
            "metadata": { "namespace": "default", "name": pod },
            "deleteOptions": { "preconditions": { "uid": uid } },
        });
        let path = pod_path(pod) + "/eviction";
        self.ask("POST", &path, JSON, &eviction).await
    }

    async fn patch_condition(&self, condition: &Value) -> Said {
        let patch = json!({ "status": { "conditions": [condition] } });
        let path = self.node_path() + "/status";
        self.ask("PATCH", &path, STRATEGIC, &patch).await
    }
}

fn pod_path(name: &str) -> String {
    format!("/api/v1/namespaces/default/pods/{name}")
}

fn double() -> World {
    let peer = ApiServerPeer::with(Options {
        pod_end: None,
        ..Options::default()
    })
    .unwrap();
    World::new(&peer.kubeconfig(), Some(peer))
}

// === What both answer ===

async fn evictions(world: &World) {
    let (name, app) = (world.name("pod"), world.name("app"));
    let none = world.evict(&world.name("none"), NOBODY).await;
    assert_eq!(none.refusal(), (404, "NotFound", ""));
    let uid = world.add_pod(&name, &app, "Running").await;
    let other = world.evict(&name, NOBODY).await;
    assert_eq!(other.refusal(), (409, "Conflict", ""));
    assert!(
        other.message().contains("the UID in the precondition"),
        "{other:?}"
    );
    let taken = world.evict(&name, &uid).await;
    assert_eq!(
        (taken.code, &taken.object["status"]),
        (201, &json!("Success"))
    );
    let again = world.evict(&name, &uid).await;
    assert_eq!(again.code, 201);
    // A real API server takes ten seconds for this one.
    let other = world.evict(&name, NOBODY).await;
    assert_eq!(other.refusal(), (409, "Conflict", ""));
    let pod = world.ask("GET", &pod_path(&name), JSON, &json!({})).await;
    assert!(pod.object["metadata"]["deletionTimestamp"].is_string());
}

async fn budgets(world: &World) {
    let (pod, app, budget) = (world.name("held"), world.name("held"), world.name("held"));
    let uid = world.add_pod(&pod, &app, "Running").await;
    world.set_budget(&budget, &app, 0, false).await;
    let refusal = (429, "TooManyRequests", "DisruptionBudget");
    let said = world.evict(&pod, &uid).await;
    assert_eq!(
        (said.refusal(), said.retry_after.as_deref()),
        (refusal, Some("10"))
    );
    world.set_budget(&budget, &app, 0, true).await;
    for uid in [&uid, NOBODY] {
        let said = world.evict(&pod, uid).await;
        assert_eq!(
            (said.refusal(), said.retry_after.as_deref()),
            (refusal, None)
        );
        let why =
            format!("The disruption budget {budget} needs 1 healthy pods and has 1 currently");
        assert_eq!(said.object["details"]["causes"][0]["message"], why);
    }
    world.set_budget(&budget, &app, 1, true).await;
    // Another pod's eviction is paid for.
    assert_eq!(world.evict(&pod, NOBODY).await.refusal().0, 409);
    assert_eq!(world.evict(&pod, &uid).await.refusal(), refusal);
    world.set_budget(&budget, &app, 1, true).await;
    assert_eq!(world.evict(&pod, &uid).await.code, 201);

    let (pod, app) = (world.name("twice"), world.name("twice"));
    let uid = world.add_pod(&pod, &app, "Running").await;
    for name in ["twice-a", "twice-b"] {
        world.set_budget(&world.name(name), &app, 1, true).await;
    }
    let said = world.evict(&pod, &uid).await;
    assert_eq!(said.refusal(), (500, "", ""));
    assert!(said.message().contains("more than one PodDisruptionBudget"));
    let finished = world.name("finished");
    let uid = world.add_pod(&finished, &app, "Succeeded").await;
    assert_eq!(
        world.evict(&finished, &uid).await.code,
        201,
        "no budget is asked"
    );
}

async fn conditions(world: &World) {
    let new = world
        .patch_condition(&json!({ "type": "GPUHealthy", "status": "True", "reason": "A" }))
        .await;
    let condition = |said: &Said| said.object["status"]["conditions"][0].clone();
    assert_eq!(new.code, 200);
    assert!(
        condition(&new)["lastTransitionTime"].is_null(),
        "what is left out is null"
    );
    let time = "2026-01-01T00:00:00Z";
    let changed = world
        .patch_condition(&json!({ "type": "GPUHealthy", "lastTransitionTime": time }))
        .await;
    assert_eq!(condition(&changed)["reason"], "A", "what is left out stays");
    assert_eq!(condition(&changed)["lastTransitionTime"], time);
    let conditions = changed.object["status"]["conditions"].as_array().unwrap();
    assert_eq!(conditions.len(), 2, "the kubelet's is still there");
    let version = |said: &Said| said.object["metadata"]["resourceVersion"].clone();
    let same = world
        .patch_condition(&json!({ "type": "GPUHealthy", "reason": "A" }))
        .await;
    assert_eq!(
        version(&same),
        version(&changed),
        "nothing is written that is there"
    );
    assert_eq!(
        world
            .patch_condition(&json!({ "reason": "A" }))
            .await
            .refusal()
            .0,
        500
    );
    let bad = json!({ "type": "GPUHealthy", "lastTransitionTime": "yesterday" });
    let bad = world.patch_condition(&bad).await;
    assert_eq!(bad.refusal(), (422, "Invalid", "FieldValueInvalid"));
    // Nor is anything but the status changed by this way in.
    let taints = json!({ "spec": { "taints": [{ "key": "a", "effect": "NoSchedule" }] } });
    let path = world.node_path() + "/status";
    let said = world.ask("PATCH", &path, STRATEGIC, &taints).await;
    assert_eq!(
        (said.code, &said.object["spec"]["taints"]),
        (200, &Value::Null)
    );
}

async fn taints(world: &World) {
    let path = world.node_path();
    let old = world.ask("GET", &path, JSON, &json!({})).await.object;
    let version = &old["metadata"]["resourceVersion"];
    let taint = json!({ "key": "gpu-device-plugin/unhealthy", "effect": "NoSchedule" });
    let patch = |version: &Value, taints: Value| json!({ "metadata": { "resourceVersion": version }, "spec": { "taints": taints } });
    let first = patch(version, json!([taint]));
    assert_eq!(world.ask("PATCH", &path, MERGE, &first).await.code, 200);
    let stale = world
        .ask("PATCH", &path, MERGE, &patch(version, json!([])))
        .await;
    assert_eq!(stale.refusal(), (409, "Conflict", ""));
    let twice = json!({ "spec": { "taints": [taint, taint] } });
    let twice = world.ask("PATCH", &path, MERGE, &twice).await;
    assert_eq!((twice.code, twice.refusal().1), (422, "Invalid"));
    let none = world
        .ask("PATCH", "/api/v1/nodes/none", MERGE, &json!({}))
        .await;
    assert_eq!(none.refusal(), (404, "NotFound", ""));
    let untainted = json!({ "spec": { "taints": null } });
    assert_eq!(world.ask("PATCH", &path, MERGE, &untainted).await.code, 200);
}

async fn events(world: &World) {
    let name = world.name("event");
    let event = |namespace: &str, about: &Value| {
        json!({
            "metadata": { "namespace": namespace, "name": name },
            "involvedObject": about, "reason": "A", "message": "a", "type": "Normal",
        })
    };
    let node = json!({ "apiVersion": "v1", "kind": "Node", "name": world.api.node_name() });
    let path = |namespace: &str| format!("/api/v1/namespaces/{namespace}/events");
    let said = world
        .ask("POST", &path("none"), JSON, &event("none", &node))
        .await;
    assert_eq!(said.refusal(), (404, "NotFound", ""));
    let system = "kube-system";
    let said = world
        .ask("POST", &path(system), JSON, &event(system, &node))
        .await;
    assert_eq!(said.refusal(), (422, "Invalid", "FieldValueInvalid"));
    let here = "default";
    assert_eq!(
        world
            .ask("POST", &path(here), JSON, &event(here, &node))
            .await
            .code,
        201
    );
    let said = world
        .ask("POST", &path(here), JSON, &event(here, &node))
        .await;
    assert_eq!(said.refusal(), (409, "AlreadyExists", ""));
}

/// And what comes out of our own end.
async fn ours(world: &World) {
    let api = &world.api;
    let sick = Condition {
        status: Status::False,
        reason: "GpuLost",
        message: "1 of 2 GPUs sick".into(),
    };
    let since = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    assert!(!api.set_condition(&sick, since).await.unwrap().is_tainted());
    let node = world
        .ask("GET", &world.node_path(), JSON, &json!({}))
        .await
        .object;
    let conditions = node["status"]["conditions"].as_array().unwrap();
    let condition = conditions
        .iter()
        .find(|one| one["type"] == "GPUHealthy")
        .unwrap();
    assert_eq!(condition["status"], "False");
    assert_eq!(condition["lastTransitionTime"], "2027-01-15T08:00:00Z");
    for wanted in [true, true, false, false] {
        api.set_taint(wanted).await.unwrap();
        assert_eq!(api.node().await.unwrap().is_tainted(), wanted);
    }
    for _ in 0..2 {
        api.tell_node(&told("1")).await.unwrap();
    }
    let name = world.name("ours");
    world.add_pod(&name, &name, "Pending").await;
    let facts = api.pod("default", &name).await.unwrap().unwrap();
    assert_eq!(facts.node_name.as_deref(), Some(api.node_name()));
    for _ in 0..2 {
        api.tell_pod(&facts, &told("1")).await.unwrap();
    }
    // Tried for ten seconds by a real API server, and waited for.
    let mut other = facts.clone();
    other.uid = NOBODY.into();
    assert_eq!(api.evict(&other).await, Ok(Eviction::Gone));
    assert_eq!(api.evict(&facts).await, Ok(Eviction::Accepted));
    let none = api.pod("default", &world.name("none")).await;
    assert_eq!(none, Ok::<_, ClusterError>(None));
}

async fn hold(world: &World) {
    world.add_node().await;
    evictions(world).await;
    budgets(world).await;
    conditions(world).await;
    taints(world).await;
    events(world).await;
    ours(world).await;
}

#[tokio::test]
async fn the_api_server_of_these_tests_holds_the_contract() {
    hold(&double()).await;
}

#[tokio::test]
async fn a_real_api_server_holds_the_contract() {
    let programs = match Programs::find() {
        Ok(programs) => programs,
        Err(missing) => return skip("a real API server holds the contract", &missing),
    };
    let folder = tempfile::tempdir().unwrap();
    let control_plane = ControlPlane::start(&programs, folder.path()).await;
    let kubeconfig = control_plane.kubeconfig("admin");
    hold(&World::new(&kubeconfig, None)).await;
}
