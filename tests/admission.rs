//! What the manifests in deploy/ let a plugin do, by the word of a real API server.
//!
//! Runs where `KUBE_APISERVER` names one; etcd, of `ETCD` or on PATH, and openssl
//! are needed too. No kubelet and no root:
//!
//! ```sh
//! KUBE_APISERVER=/usr/bin/kube-apiserver cargo test --test admission -- --nocapture
//! ```

#![allow(
    unreachable_pub,
    clippy::expect_used,
    clippy::panic,
    reason = "also a test's helpers fail by panicking"
)]

#[path = "admission/cluster.rs"]
mod cluster;
mod common;
#[path = "common/control_plane.rs"]
mod control_plane;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::SystemTime;

use cluster::{Cluster, Plugin};
use control_plane::door::{Answer, Patch, eviction, objects};
use gpu_device_plugin::cluster::ClusterError;
use gpu_device_plugin::cluster::api::{Eviction, Told};
use gpu_device_plugin::cluster::condition::{Condition, Status};
use serde_json::{Value, json};

/// What tells an eviction's DaemonSet from the plain one.
const ARGUMENT: &str = "--eviction=evict";

/// A field of a plugin's pod; the rest is there twice, word by word.
#[test]
fn eviction_changes_four_lines_of_the_daemon_set() {
    let plain = daemon_set("daemonset.yaml");
    let mut evicting = daemon_set("eviction.yaml");
    let pod = &mut evicting["spec"]["template"]["spec"];
    let account = take(pod, "serviceAccountName");
    assert_eq!(account, "gpu-device-plugin");
    assert_eq!(pod["automountServiceAccountToken"], true);
    pod["automountServiceAccountToken"] = false.into();
    let container = &mut pod["containers"][0];
    let name = take(container, "env");
    assert_eq!(name[0]["name"], "NODE_NAME");
    let arguments = container["args"].as_array_mut().expect("arguments");
    let before = arguments.len();
    arguments.retain(|argument| argument != ARGUMENT);
    assert_eq!(arguments.len() + 1, before, "{ARGUMENT}");
    assert_eq!(evicting, plain);
}

/// A rule on a metric that is called otherwise would never say anything. A metric is
/// written out only once it has a value, so they are looked for where they are defined.
#[test]
fn alerts_are_of_metrics_that_there_are() {
    let sources = ["metrics.rs", "cluster/metrics.rs", "eviction/metrics.rs"];
    let sources = sources.map(|file| read(&format!("src/{file}"))).concat();
    let rules = read("deploy/alerts.yaml");
    let word = |letter: char| letter.is_ascii_lowercase() || letter == '_';
    let named = rules.split(|letter| !word(letter));
    let named = named.filter(|name| name.starts_with("gpu_device_plugin_"));
    let named: BTreeSet<_> = named.collect();
    assert!(named.len() > 10, "{named:?}");
    let missing = named.iter().filter(|name| {
        let documented = format!("/// `{name}`");
        !sources.contains(&documented)
    });
    let missing: Vec<_> = missing.collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// A file of the repository.
fn read(file: &str) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

fn daemon_set(file: &str) -> Value {
    let manifests = read(&format!("deploy/{file}"));
    let mut sets = objects(&manifests).into_iter();
    sets.find(|object| object["kind"] == "DaemonSet")
        .expect("a DaemonSet")
}

fn take(object: &mut Value, field: &str) -> Value {
    let object = object.as_object_mut().expect("an object");
    object.remove(field).expect("a field")
}

#[tokio::test(flavor = "multi_thread")]
async fn each_plugin_is_held_to_its_own_node() {
    let Some(cluster) = Cluster::start("each plugin is held to its own node").await else {
        return;
    };
    let plugin = cluster.plugin("a").await;
    rights(&plugin).await;
    own_requests(&cluster, &plugin).await;
    conditions(&cluster, &plugin).await;
    tokens_without_a_node(&cluster).await;
    taints(&cluster, &plugin).await;
    events(&plugin).await;
    evictions(&cluster, &plugin).await;
    evictions_of_own_pods(&cluster, &plugin).await;
}

#[track_caller]
fn accepted(what: &str, answer: Answer) -> Value {
    match answer {
        Ok(object) => {
            println!("accepted: {what}");
            object
        }
        Err(refusal) => panic!("{what} is refused: {refusal}"),
    }
}

/// By the API server, with these words.
#[track_caller]
fn refused(what: &str, words: &str, answer: Answer) {
    let refusal = answer.expect_err(what);
    println!("refused: {what}: {refusal}");
    assert_eq!(refusal.code, 403, "{what}: {refusal}");
    assert!(refusal.message.contains(words), "{what}: {refusal}");
}

// === Roles ===

/// The roles give what stands here, and nothing else.
async fn rights(plugin: &Plugin) {
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": "default"},
    });
    let path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
    let review = accepted("a review", plugin.door.create(path, &review).await);
    let rules = review["status"]["resourceRules"].as_array();
    let rules = rules.expect("rules").iter().filter(|rule| {
        // What everybody may: ask who one is and what one may.
        let group = rule["apiGroups"][0].as_str().unwrap_or_default();
        !["authorization.k8s.io", "authentication.k8s.io"].contains(&group)
    });
    let rules: BTreeSet<_> = rules
        .map(|rule| {
            format!(
                "{} {} {}",
                rule["apiGroups"], rule["resources"], rule["verbs"]
            )
        })
        .collect();
    let expected = [
        r#"[""] ["events"] ["create"]"#,
        r#"[""] ["nodes"] ["get","patch"]"#,
        r#"[""] ["nodes/status"] ["patch"]"#,
        r#"[""] ["pods"] ["get"]"#,
        r#"[""] ["pods/eviction"] ["create"]"#,
    ];
    assert_eq!(rules, expected.map(str::to_owned).into());
    for path in [
        "/api/v1/pods",
        "/api/v1/namespaces/default/secrets",
        "/api/v1/namespaces/default/secrets/any",
        "/api/v1/namespaces/default/configmaps",
        "/api/v1/nodes",
    ] {
        refused(path, "cannot", plugin.door.get(path).await);
    }
    let path = "/api/v1/namespaces/default/pods/on-a";
    refused(
        "delete a pod",
        "cannot delete",
        plugin.door.delete(path).await,
    );
}

// === The plugin's own requests ===

/// What the plugin's code asks for is let through on its own node, and is an error
/// that names the right where it is not.
async fn own_requests(cluster: &Cluster, plugin: &Plugin) {
    let api = plugin.api("a");
    let condition = Condition {
        status: Status::False,
        reason: "Xid",
        message: "GPU 0: XID 79".into(),
    };
    let now = SystemTime::now();
    let told = Told {
        reason: "GPUUnhealthy",
        message: "GPU 0: XID 79".into(),
        warning: true,
        action: "Reporting",
        incident: "GPU-0 1".into(),
        at: now,
    };
    cluster.make_pod("default", "own", "a").await;
    let pod = api.pod("default", "own").await.expect("get a pod");
    let pod = pod.expect("a pod");
    let done = api.set_condition(&condition, now).await;
    done.expect("its node's condition");
    api.tell_node(&told).await.expect("an event on its node");
    api.tell_pod(&pod, &told).await.expect("an event on a pod");
    for wanted in [true, true, false, false] {
        api.set_taint(wanted).await.expect("its node's taint");
    }
    let evicted = api.evict(&pod).await.expect("an eviction");
    assert_eq!(evicted, Eviction::Accepted);

    let other = plugin.api("b");
    let refused = other.set_condition(&condition, now).await;
    let refused = refused.expect_err("another node's condition");
    println!("{refused}");
    let ClusterError::Forbidden { verb, resource, .. } = refused else {
        panic!("{refused:?}");
    };
    assert_eq!((verb, resource), ("patch", "nodes/status"));
}

// === Conditions ===

fn condition(kind: &str, status: &str) -> Value {
    let condition = json!({
        "type": kind, "status": status, "reason": "Xid", "message": "GPU 0: XID 79",
        "lastHeartbeatTime": "2026-01-01T00:00:00Z",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    });
    json!({"status": {"conditions": [condition]}})
}

async fn conditions(cluster: &Cluster, plugin: &Plugin) {
    for status in ["True", "False", "Unknown"] {
        let own = plugin.status("a", &condition("GPUHealthy", status)).await;
        let node = accepted("the condition of its own node", own);
        let conditions = node["status"]["conditions"].as_array();
        let types = conditions.expect("conditions").iter();
        let types: BTreeSet<_> = types.filter_map(|one| one["type"].as_str()).collect();
        assert_eq!(types, ["GPUHealthy", "Ready"].into());
    }
    let label = json!({"metadata": {"labels": {"zone": "mine"}}});
    let words = "the plugin may write the condition GPUHealthy of a node, and no other";
    for (what, node, patch, words) in [
        (
            "the condition of another node",
            "b",
            condition("GPUHealthy", "True"),
            "the plugin of node \"a\" may not write node \"b\"",
        ),
        ("another condition", "a", condition("Ready", "False"), words),
        ("one more condition", "a", condition("Mine", "True"), words),
        (
            "another condition's end",
            "a",
            json!({"status": {"conditions": [{"$patch": "delete", "type": "Ready"}]}}),
            words,
        ),
        (
            "a resource",
            "a",
            json!({"status": {"capacity": {"nvidia.com/gpu": "16"}}}),
            "not capacity",
        ),
        (
            "an address",
            "a",
            json!({"status": {"addresses": [{"type": "InternalIP", "address": "10.9.9.9"}]}}),
            "not addresses",
        ),
        ("a label", "a", label, "metadata of a node: labels"),
        (
            "a finalizer",
            "a",
            json!({"metadata": {"finalizers": ["mine/x"]}}),
            "metadata of a node: finalizers",
        ),
    ] {
        refused(what, words, plugin.status(node, &patch).await);
    }
    let only = condition("GPUHealthy", "True");
    let path = "/api/v1/nodes/a/status";
    let merge = plugin.door.patch(path, Patch::Merge, &only);
    refused("conditions without the others'", words, merge.await);
    cluster.fill_node("a").await;
    let own = plugin.status("a", &condition("GPUHealthy", "False")).await;
    accepted("the condition of a node with a long status", own);
}

/// A token that somebody got for the account, and not for a pod on a node.
async fn tokens_without_a_node(cluster: &Cluster) {
    let plugin = cluster.anywhere().await;
    let words = "the plugin of node \"\" may not write node \"a\"";
    let own = plugin.status("a", &condition("GPUHealthy", "True")).await;
    refused("a condition, by a token without a node", words, own);
    let told = plugin.tell(&event("a", "Pod", "on-a")).await;
    refused("an event, by a token without a node", "speak for", told);
    let evicted = plugin.evict("default", "on-a", Some("any")).await;
    refused("an eviction, by a token without a node", "no node", evicted);
}

// === Taints ===

fn taint(key: &str, value: &str, effect: &str) -> Value {
    json!({"key": key, "value": value, "effect": effect})
}

async fn taints(cluster: &Cluster, plugin: &Plugin) {
    let ours = || taint("gpu-device-plugin/unhealthy", "all-gpus", "NoSchedule");
    let others = || taint("team/theirs", "", "NoSchedule");
    cluster.taint("a", &json!([others()])).await;
    let list = |taints: Value| json!({"spec": {"taints": taints}});
    for (what, taints) in [
        ("our taint beside another", json!([others(), ours()])),
        ("no taint of ours any more", json!([others()])),
        ("our taint before another", json!([ours(), others()])),
    ] {
        let node = accepted(what, plugin.node("a", &list(taints.clone())).await);
        assert_eq!(
            node["spec"]["taints"].as_array().map(Vec::len),
            taints.as_array().map(Vec::len)
        );
    }
    let words = "the taint gpu-device-plugin/unhealthy of a node, and no other";
    let wrong = |value, effect| taint("gpu-device-plugin/unhealthy", value, effect);
    for (what, taints) in [
        ("another's taint taken away", json!([ours()])),
        (
            "another taint",
            json!([others(), taint("mine", "", "NoSchedule")]),
        ),
        (
            "a taint that ends pods",
            json!([others(), wrong("all-gpus", "NoExecute")]),
        ),
        (
            "our taint with a value of somebody's",
            json!([others(), wrong("x", "NoSchedule")]),
        ),
    ] {
        refused(what, words, plugin.node("a", &list(taints)).await);
    }
    for (what, node, patch, words) in [
        (
            "a taint of another node",
            "b",
            list(json!([ours()])),
            "may not write node \"b\"",
        ),
        (
            "a cordon",
            "a",
            json!({"spec": {"unschedulable": true}}),
            "not unschedulable",
        ),
        (
            "a label",
            "a",
            json!({"metadata": {"labels": {"zone": "mine"}}}),
            "labels",
        ),
    ] {
        refused(what, words, plugin.node(node, &patch).await);
    }
}

// === Events ===

fn event(host: &str, kind: &str, name: &str) -> Value {
    let namespace = (kind == "Pod").then_some("default");
    json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"namespace": "default", "generateName": "event-"},
        "involvedObject": {
            "apiVersion": "v1", "kind": kind, "namespace": namespace, "name": name, "uid": name,
        },
        "reason": "GPUUnhealthy", "message": "GPU 0: XID 79", "type": "Warning",
        "source": {"component": "gpu-device-plugin", "host": host},
        "reportingComponent": "gpu-device-plugin", "reportingInstance": "gpu-device-plugin-x",
    })
}

async fn events(plugin: &Plugin) {
    let told = plugin.tell(&event("a", "Node", "a")).await;
    accepted("an event on its own node", told);
    let told = plugin.tell(&event("a", "Pod", "on-a")).await;
    accepted("an event on a pod", told);
    let mut kubelets = event("a", "Node", "a");
    kubelets["source"]["component"] = "kubelet".into();
    kubelets["reportingComponent"] = "kubelet".into();
    for (what, event, words) in [
        (
            "an event on another node",
            event("a", "Node", "b"),
            "its own node",
        ),
        (
            "an event in another's name",
            event("b", "Node", "a"),
            "speak for another",
        ),
        (
            "an event in the kubelet's name",
            kubelets,
            "for itself alone",
        ),
        (
            "an event on something else",
            event("a", "Secret", "x"),
            "and of pods",
        ),
    ] {
        refused(what, words, plugin.tell(&event).await);
    }
}

// === Evictions ===

async fn evictions(cluster: &Cluster, plugin: &Plugin) {
    let uid = cluster.make_pod("default", "on-a", "a").await;
    let uid = Some(uid.as_str());
    let words = "by its UID, or not at all";
    for uid in [None, Some("")] {
        let evicted = plugin.evict("default", "on-a", uid).await;
        refused("an eviction without a UID", words, evicted);
    }
    let mut at_once = eviction("default", "on-a", uid);
    at_once["deleteOptions"]["gracePeriodSeconds"] = 0.into();
    let path = "/api/v1/namespaces/default/pods/on-a/eviction";
    let at_once = plugin.door.create(path, &at_once).await;
    refused("an eviction at once", "no options", at_once);

    let system = cluster.make_pod("kube-system", "dns", "b").await;
    let evicted = plugin.evict("kube-system", "dns", Some(&system)).await;
    refused("an eviction from kube-system", "kube-system", evicted);

    let other = cluster.make_pod("default", "on-b", "b").await;
    let evicted = plugin.evict("default", "on-a", uid).await;
    accepted("an eviction by the UID", evicted);
    // What SECURITY.md says is left open.
    let evicted = plugin.evict("default", "on-b", Some(&other)).await;
    accepted("an eviction on another node", evicted);
}

async fn evictions_of_own_pods(cluster: &Cluster, plugin: &Plugin) {
    let own = cluster.make_pod("default", "a-again", "a").await;
    let other = cluster.make_pod("default", "b-again", "b").await;
    cluster.apply("policy-own-pods.yaml").await;
    let ask = async || plugin.try_evict("default", "b-again", &other).await;
    cluster.wait_refusal("own-pods", ask).await;
    let evicted = plugin.evict("default", "b-again", Some(&other)).await;
    let words = "may not evict a pod of another";
    refused("an eviction on another node", words, evicted);
    let evicted = plugin.evict("default", "a-again", Some(&own)).await;
    accepted("an eviction on its own node", evicted);
    let path = "/api/v1/namespaces/default/pods/b-again/eviction";
    let by_hand = eviction("default", "b-again", None);
    let evicted = cluster.admin().create(path, &by_hand);
    accepted("an eviction by somebody else", evicted.await);
}
