//! Each request and each of its outcomes.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use gpu_device_plugin::cluster::ClusterError;
use gpu_device_plugin::cluster::api::{ApiServer, Eviction, TAINT_KEY, TAINT_VALUE};
use gpu_device_plugin::cluster::condition::{Condition, Status};
use gpu_device_plugin::cluster::metrics::{ClusterMetrics, NoLabels, RequestLabels};
use gpu_device_plugin::config::ClusterOptions;
use serde_json::{Value, json};
use tracing_subscriber::fmt::MakeWriter;

use crate::common::api_server::{ApiServerPeer, Budget, Fault, On, Options, node, pod};
use crate::common::running::LONG;
use crate::rig::{NODE, cluster, connect, connect_counted, options, pod_facts, told};

const SECOND: Duration = Duration::from_secs(1);

fn refused(options: &ClusterOptions) -> String {
    let connected = ApiServer::connect(options, "x", ClusterMetrics::default());
    match connected {
        Err(ClusterError::NotConfigured(what)) => what,
        other => panic!("{other:?}"),
    }
}

fn sick() -> Condition {
    Condition {
        status: Status::False,
        reason: "GpuLost",
        message: "1 of 2 GPUs sick".into(),
    }
}

/// A cluster whose pods end when the test says so.
fn cluster_of_slow_pods() -> ApiServerPeer {
    ApiServerPeer::with(Options {
        pod_end: None,
        ..Options::default()
    })
    .unwrap()
}

// === The way in ===

#[tokio::test]
async fn what_is_missing_is_named() {
    let peer = cluster();
    let good = options(&peer);
    let unnamed = ClusterOptions {
        node_name: None,
        ..good.clone()
    };
    assert!(refused(&unnamed).contains("--node-name (NODE_NAME)"));
    let misnamed = ClusterOptions {
        node_name: Some("n1/../n2".into()),
        ..good.clone()
    };
    assert!(refused(&misnamed).contains("no name of a node"));
    let nowhere = ClusterOptions {
        kubeconfig: Some("/nowhere/kubeconfig".into()),
        ..good.clone()
    };
    assert!(refused(&nowhere).contains("/nowhere/kubeconfig"));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kubeconfig");
    for text in ["", "{", "kind: Config", "\u{0}"] {
        std::fs::write(&file, text).unwrap();
        let garbled = ClusterOptions {
            kubeconfig: Some(file.clone()),
            ..good.clone()
        };
        assert!(refused(&garbled).contains("cannot use the kubeconfig"));
    }
    assert_eq!(peer.summary(), [""; 0], "nothing was asked");
}

#[tokio::test]
async fn without_a_service_account_a_kubeconfig_is_asked_for() {
    if std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() {
        println!("*** SKIPPED a pod without a service account: this is a pod with one");
        return;
    }
    let outside = ClusterOptions {
        node_name: Some(NODE.into()),
        kubeconfig: None,
    };
    assert!(refused(&outside).contains("--kubeconfig"));
}

#[tokio::test]
async fn nothing_is_asked_before_something_is_asked() {
    let peer = cluster();
    let api = connect(&peer);
    assert_eq!(api.node_name(), NODE);
    assert_eq!(peer.summary(), [""; 0]);
    peer.stop().await;
    // Nor does it have to be there.
    connect(&peer);
}

#[tokio::test]
async fn a_request_says_who_asks() {
    let peer = cluster();
    connect(&peer).node().await.unwrap();
    let agent = concat!("gpu-device-plugin/", env!("CARGO_PKG_VERSION"));
    assert_eq!(peer.requests()[0].agent, agent);
}

// === Pods ===

#[tokio::test]
async fn a_pod_is_there_or_not() {
    let peer = cluster();
    let uid = peer.add_pod(pod("default", "train", "train", NODE));
    let api = connect(&peer);
    let facts = pod_facts(&api, "train").await;
    assert_eq!((facts.uid, facts.node_name.as_deref()), (uid, Some(NODE)));
    assert!(!facts.finished && !facts.terminating && facts.started.is_some());
    assert_eq!(api.pod("default", "other").await, Ok(None));
    assert_eq!(api.pod("other", "train").await, Ok(None));
    let summary = ["get pods 200", "get pods 404", "get pods 404"];
    assert_eq!(peer.summary(), summary);
}

#[tokio::test]
async fn what_is_no_name_is_not_asked_for() {
    let peer = cluster();
    let api = connect(&peer);
    for (namespace, name) in [
        ("default", ""),
        ("default", "../nodes"),
        ("a/b", "c"),
        ("A", "b"),
    ] {
        let answer = api.pod(namespace, name).await;
        assert!(
            matches!(answer, Err(ClusterError::InvalidName(_))),
            "{answer:?}"
        );
    }
    assert_eq!(peer.summary(), [""; 0]);
}

// === Eviction ===

#[tokio::test]
async fn an_evicted_pod_ends_and_its_controller_makes_another() {
    let peer = cluster();
    let uid = peer.add_pod(pod("default", "train", "train", NODE));
    let api = connect(&peer);
    let facts = pod_facts(&api, "train").await;
    assert_eq!(api.evict(&facts).await, Ok(Eviction::Accepted));
    let new = |peer: &ApiServerPeer| match &peer.pods()[..] {
        [pod] if pod["metadata"]["uid"] != uid.as_str() => Some(pod.clone()),
        _ => None,
    };
    let new = peer.wait_for("another pod", LONG, new).await.unwrap();
    assert!(new["spec"]["nodeName"].is_null() && new["metadata"]["name"] != "train");
    let asked = &peer.requests()[1];
    assert_eq!(asked.path, "/api/v1/namespaces/default/pods/train/eviction");
    assert_eq!(asked.body["apiVersion"], "policy/v1");
    assert_eq!(
        asked.body["deleteOptions"]["preconditions"]["uid"],
        uid.as_str()
    );
    assert_eq!(api.evict(&facts).await, Ok(Eviction::Gone));
}

#[tokio::test]
async fn a_pod_that_is_being_deleted_is_evicted_again_with_no_harm() {
    let peer = cluster_of_slow_pods();
    peer.add_pod(pod("default", "train", "train", NODE));
    let api = connect(&peer);
    let facts = pod_facts(&api, "train").await;
    for _ in 0..2 {
        assert_eq!(api.evict(&facts).await, Ok(Eviction::Accepted));
    }
    assert!(pod_facts(&api, "train").await.terminating);
    peer.end_deleted_pods();
    assert_eq!(api.pod("default", "train").await, Ok(None));
}

#[tokio::test]
async fn another_pod_of_the_name_is_left_alone() {
    let peer = cluster();
    let mut first = pod("default", "train-0", "train", NODE);
    first["metadata"]["ownerReferences"][0]["kind"] = "StatefulSet".into();
    peer.add_pod(first);
    let api = connect(&peer);
    let facts = pod_facts(&api, "train-0").await;
    peer.end_pod("default", "train-0");
    assert_eq!(api.evict(&facts).await, Ok(Eviction::Gone));
    assert!(!pod_facts(&api, "train-0").await.terminating);
}

#[tokio::test]
async fn a_pod_whose_namespace_goes_goes_along() {
    let peer = cluster();
    peer.add_pod(pod("default", "train", "train", NODE));
    let api = connect(&peer);
    let facts = pod_facts(&api, "train").await;
    peer.end_namespace("default");
    assert_eq!(api.evict(&facts).await, Ok(Eviction::Gone));
    assert_eq!(api.tell_pod(&facts, &told("1")).await, Ok(()));
}

#[tokio::test]
async fn a_budget_holds_and_lets_go() {
    let peer = cluster_of_slow_pods();
    peer.add_pod(pod("default", "train", "train", NODE));
    peer.set_budget("budget", Budget::of("default", "train", 0));
    let api = connect(&peer);
    let facts = pod_facts(&api, "train").await;
    let held = api.evict(&facts).await.unwrap();
    let message = "The disruption budget budget needs 1 healthy pods and has 1 currently";
    assert_eq!(
        held,
        Eviction::HeldByBudget {
            retry_after: None,
            message: message.into()
        }
    );
    let unobserved = Budget {
        observed: false,
        ..Budget::of("default", "train", 1)
    };
    peer.set_budget("budget", unobserved);
    let held = api.evict(&facts).await.unwrap();
    let Eviction::HeldByBudget { retry_after, .. } = held else {
        panic!("{held:?}");
    };
    assert_eq!(retry_after, Some(SECOND * 10));
    peer.set_budget("budget", Budget::of("default", "train", 1));
    assert_eq!(api.evict(&facts).await, Ok(Eviction::Accepted));
    assert_eq!(peer.allowed("budget"), Some(0));
    peer.end_deleted_pods();
    assert_eq!(peer.allowed("budget"), Some(1), "the new pod is ready");
}

#[tokio::test]
async fn a_budget_is_asked_before_the_uid_is_looked_at() {
    let peer = cluster();
    peer.add_pod(pod("default", "train", "train", NODE));
    peer.set_budget("budget", Budget::of("default", "train", 1));
    let api = connect(&peer);
    let mut facts = pod_facts(&api, "train").await;
    facts.uid = "another".into();
    assert_eq!(api.evict(&facts).await, Ok(Eviction::Gone));
    assert_eq!(
        peer.allowed("budget"),
        Some(0),
        "it was charged all the same"
    );
    let held = api.evict(&facts).await;
    assert!(
        matches!(held, Ok(Eviction::HeldByBudget { .. })),
        "{held:?}"
    );
}

#[tokio::test]
async fn two_budgets_are_an_error_of_the_cluster() {
    let peer = cluster();
    peer.add_pod(pod("default", "train", "train", NODE));
    for name in ["one", "two"] {
        peer.set_budget(name, Budget::of("default", "train", 1));
    }
    let api = connect(&peer);
    let error = api
        .evict(&pod_facts(&api, "train").await)
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("more than one PodDisruptionBudget"),
        "{error}"
    );
    assert!(error.is_worth_retrying());
}

#[tokio::test]
async fn a_refusal_for_lack_of_room_is_no_budgets() {
    let peer = cluster();
    peer.add_pod(pod("default", "train", "train", NODE));
    let api = connect(&peer);
    let facts = pod_facts(&api, "train").await;
    peer.fault(Fault::TooMany(7), On::any(), 2);
    let retry_after = Some(SECOND * 7);
    let busy = ClusterError::TooManyRequests { retry_after };
    assert_eq!(api.evict(&facts).await, Err(busy.clone()));
    assert_eq!(api.pod("default", "train").await, Err(busy));
    assert_eq!(api.evict(&facts).await, Ok(Eviction::Accepted));
}

// === What goes wrong ===

#[tokio::test]
async fn a_refusal_names_the_right_that_is_missing() {
    let peer = cluster();
    peer.add_pod(pod("default", "train", "train", NODE));
    let api = connect(&peer);
    let facts = pod_facts(&api, "train").await;
    for (verb, resource) in [
        ("get", "pods"),
        ("create", "pods/eviction"),
        ("create", "events"),
        ("patch", "nodes/status"),
        ("get", "nodes"),
        ("patch", "nodes"),
    ] {
        peer.forbid(verb, resource);
        let error = match (verb, resource) {
            ("get", "pods") => api.pod("default", "train").await.unwrap_err(),
            ("create", "pods/eviction") => api.evict(&facts).await.unwrap_err(),
            ("create", "events") => api.tell_pod(&facts, &told("1")).await.unwrap_err(),
            ("patch", "nodes/status") => {
                let condition = sick();
                let written = api.set_condition(&condition, SystemTime::now());
                written.await.unwrap_err()
            }
            _ => api.set_taint(true).await.unwrap_err(),
        };
        let words = format!("may not {verb} {resource} (");
        assert!(error.to_string().starts_with(&words), "{error}");
        peer.allow_all();
    }
}

#[tokio::test]
async fn credentials_that_are_not_taken_are_named() {
    let peer = cluster();
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = folder.path().join("kubeconfig");
    std::fs::write(&kubeconfig, peer.kubeconfig_with("old")).unwrap();
    let options = ClusterOptions {
        kubeconfig: Some(kubeconfig),
        ..options(&peer)
    };
    let api = ApiServer::connect(&options, "x", ClusterMetrics::default());
    let error = api.unwrap().node().await.unwrap_err();
    assert_eq!(error, ClusterError::Unauthorized("Unauthorized".into()));
    assert!(error.to_string().contains("token"));
}

#[tokio::test]
async fn an_api_server_that_fails_is_not_asked_twice() {
    let peer = cluster();
    let metrics = ClusterMetrics::default();
    let api = connect_counted(&peer, &metrics);
    for code in [500, 503, 504] {
        peer.fault(Fault::Status(code), On::any(), 1);
        let error = api.node().await.unwrap_err();
        let failed = matches!(error, ClusterError::Failed { code: it, .. } if it == code);
        assert!(failed && error.is_worth_retrying(), "{error:?}");
    }
    peer.fault(Fault::Garble, On::any(), 1);
    let error = api.node().await.unwrap_err();
    assert!(matches!(error, ClusterError::Unreadable(_)), "{error:?}");
    peer.fault(Fault::TooMany(1), On::any(), 1);
    api.node().await.unwrap_err();
    assert_eq!(peer.requests().len(), 5, "who asks knows when to ask again");
    peer.stop().await;
    let error = api.node().await.unwrap_err();
    assert!(error.to_string().contains("Connection refused"), "{error}");
    let labels = |code: &str| RequestLabels {
        verb: "get",
        resource: "nodes",
        code: code.into(),
    };
    for code in ["500", "503", "504", "200", "429", "none"] {
        assert_eq!(
            metrics.requests.get_or_create(&labels(code)).get(),
            1,
            "{code}"
        );
    }
    let answering = || metrics.answering.get_or_create(&NoLabels {}).get();
    assert_eq!(answering(), 0);
    peer.resume().await.unwrap();
    api.node().await.unwrap();
    assert_eq!(answering(), 1);
}

#[tokio::test]
async fn the_library_says_nothing_of_what_the_caller_says() {
    let lines = Lines::default();
    let subscriber = tracing_subscriber::fmt().with_writer(lines.clone());
    let _guard = tracing::subscriber::set_default(subscriber.finish());
    let peer = cluster();
    let api = connect(&peer);
    peer.fault(Fault::Status(500), On::any(), 1);
    api.node().await.unwrap_err();
    peer.stop().await;
    api.node().await.unwrap_err();
    tracing::warn!("this is heard");
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    assert!(text.contains("this is heard"));
    assert_eq!(text.lines().count(), 1, "{text}");
}

/// What is logged, in memory.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl MakeWriter<'_> for Lines {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Nothing else is ready, so the clock runs as fast as it can.
#[tokio::test(start_paused = true)]
async fn an_api_server_that_hangs_is_given_up() {
    let peer = cluster();
    peer.add_pod(pod("default", "train", "train", NODE));
    let api = connect(&peer);
    peer.fault(Fault::Hang, On::any(), usize::MAX);
    let start = tokio::time::Instant::now();
    let error = api.node().await.unwrap_err();
    assert_eq!(error, ClusterError::Unreachable("no answer in 10 s".into()));
    assert!(start.elapsed() < SECOND * 11, "{:?}", start.elapsed());
}

#[tokio::test]
async fn requests_keep_to_a_rate() {
    let peer = cluster();
    let api = connect(&peer);
    let start = Instant::now();
    // A clone is no way around it.
    for _ in 0..7 {
        let (one, other) = (api.clone(), api.clone());
        let (one, other) = tokio::join!(one.node(), other.node());
        assert!(one.is_ok() && other.is_ok());
    }
    let least = Duration::from_millis(200) * 4;
    assert!(start.elapsed() >= least, "{:?}", start.elapsed());
}

// === Events ===

#[tokio::test]
async fn an_event_on_a_pod_is_one_event_however_often_it_is_told() {
    let peer = cluster();
    let uid = peer.add_pod(pod("default", "train", "train", NODE));
    let api = connect(&peer);
    let facts = pod_facts(&api, "train").await;
    api.tell_pod(&facts, &told("1")).await.unwrap();
    api.tell_pod(&facts, &told("1")).await.unwrap();
    // After a restart, too.
    connect(&peer).tell_pod(&facts, &told("1")).await.unwrap();
    let events = peer.events("Pod", "train");
    assert_eq!(events.len(), 1, "{events:#?}");
    let event = &events[0];
    assert_eq!(event["involvedObject"]["uid"], uid.as_str());
    assert_eq!(event["metadata"]["namespace"], "default");
    assert_eq!(
        (&event["reason"], &event["type"]),
        (&json!("GPUUnhealthy"), &json!("Warning"))
    );
    assert_eq!(event["source"]["host"], NODE);
    assert_eq!(event["reportingInstance"], "plugin-x");
    api.tell_pod(&facts, &told("2")).await.unwrap();
    assert_eq!(peer.events("Pod", "train").len(), 2);
}

#[tokio::test]
async fn an_event_whose_answer_was_lost_is_told_once() {
    let peer = cluster();
    let api = connect(&peer);
    peer.fault(Fault::LoseAnswer, On::any(), 1);
    let stored = |peer: &ApiServerPeer| (peer.count("create", "events") == 1).then_some(());
    let first = told("1");
    tokio::select! {
        told = api.tell_node(&first) => panic!("{told:?}"),
        stored = peer.wait_for("the event", LONG, stored) => stored.unwrap(),
    }
    api.tell_node(&told("1")).await.unwrap();
    assert_eq!(peer.summary(), ["create events 201", "create events 409"]);
    assert_eq!(peer.events("Node", NODE).len(), 1);
}

#[tokio::test]
async fn an_event_on_the_node_is_where_events_on_nodes_are() {
    let peer = cluster();
    connect(&peer).tell_node(&told("1")).await.unwrap();
    let event = &peer.events("Node", NODE)[0];
    assert_eq!(event["metadata"]["namespace"], "default");
    assert_eq!(
        event["involvedObject"]["uid"], NODE,
        "as the kubelet has it"
    );
}

#[tokio::test]
async fn an_event_on_a_pod_of_a_namespace_that_is_gone_is_nobodys() {
    let peer = cluster();
    peer.add_pod(pod("default", "train", "train", NODE));
    let api = connect(&peer);
    let mut facts = pod_facts(&api, "train").await;
    facts.namespace = "gone".into();
    assert_eq!(api.tell_pod(&facts, &told("1")).await, Ok(()));
}

// === The node ===

#[tokio::test]
async fn the_condition_stands_beside_those_of_others() {
    let peer = cluster();
    let api = connect(&peer);
    let since = SystemTime::UNIX_EPOCH + SECOND * 1_800_000_000;
    let node = api.set_condition(&sick(), since).await.unwrap();
    assert!(!node.is_tainted());
    let condition = peer.condition(NODE, "GPUHealthy").unwrap();
    assert_eq!(condition["status"], "False");
    assert_eq!(condition["reason"], "GpuLost");
    assert_eq!(condition["message"], "1 of 2 GPUs sick");
    assert_eq!(condition["lastTransitionTime"], "2027-01-15T08:00:00Z");
    assert!(condition["lastHeartbeatTime"].is_string());
    let ready = peer.condition(NODE, "Ready").unwrap();
    assert_eq!(ready["message"], "kubelet is posting ready status");
    assert_eq!(peer.summary(), ["patch nodes/status 200"]);
}

#[tokio::test]
async fn a_node_that_is_not_there_is_named() {
    let peer = cluster();
    peer.remove_node(NODE);
    let api = connect(&peer);
    let error = api
        .set_condition(&sick(), SystemTime::now())
        .await
        .unwrap_err();
    assert_eq!(
        error,
        ClusterError::NotFound(r#"nodes "n1" not found"#.into())
    );
    assert!(error.is_worth_retrying(), "it may come yet");
}

fn others() -> Value {
    json!({
        "key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule",
        "timeAdded": "2026-01-01T00:00:00Z",
    })
}

#[tokio::test]
async fn the_taint_comes_and_goes_and_others_stay() {
    let peer = ApiServerPeer::start().unwrap();
    let mut tainted = node(NODE);
    tainted["spec"]["taints"] = json!([others()]);
    peer.add_node(tainted);
    let api = connect(&peer);
    let ours = json!({ "key": TAINT_KEY, "value": TAINT_VALUE, "effect": "NoSchedule" });
    for _ in 0..2 {
        api.set_taint(true).await.unwrap();
        assert_eq!(peer.taints(NODE), [others(), ours.clone()]);
    }
    assert!(api.node().await.unwrap().is_tainted());
    for _ in 0..2 {
        api.set_taint(false).await.unwrap();
        assert_eq!(peer.taints(NODE), [others()]);
    }
    assert_eq!(
        peer.count("patch", "nodes"),
        2,
        "nothing is written that is there"
    );
}

#[tokio::test]
async fn a_taint_of_the_same_key_that_is_not_ours_stays() {
    let peer = cluster();
    let by_hand = json!([{ "key": TAINT_KEY, "value": "by-hand", "effect": "NoSchedule" }]);
    peer.edit_node(NODE, |node| node["spec"]["taints"] = by_hand.clone());
    let api = connect(&peer);
    for wanted in [true, false] {
        api.set_taint(wanted).await.unwrap();
        assert_eq!(json!(peer.taints(NODE)), by_hand);
    }
    assert_eq!(peer.count("patch", "nodes"), 0);
}

#[tokio::test]
async fn a_node_that_changes_meanwhile_loses_nothing() {
    let peer = cluster();
    let api = connect(&peer);
    peer.fault(Fault::Hold, On::only("patch", "nodes"), 1);
    let patched = |peer: &ApiServerPeer| {
        let requests = peer.requests();
        requests
            .iter()
            .any(|asked| asked.is("patch", "nodes"))
            .then_some(())
    };
    let meddle = async {
        peer.wait_for("the patch", LONG, patched).await.unwrap();
        peer.edit_node(NODE, |node| node["spec"]["taints"] = json!([others()]));
        peer.release();
    };
    let (tainted, ()) = tokio::join!(api.set_taint(true), meddle);
    tainted.unwrap();
    let keys: Vec<_> = peer
        .taints(NODE)
        .iter()
        .map(|one| one["key"].clone())
        .collect();
    assert_eq!(keys, [others()["key"].clone(), json!(TAINT_KEY)]);
    let summary = [
        "get nodes 200",
        "patch nodes 409",
        "get nodes 200",
        "patch nodes 200",
    ];
    assert_eq!(peer.summary(), summary);
}

#[tokio::test]
async fn a_node_that_never_holds_still_is_given_up() {
    let peer = cluster();
    let api = connect(&peer);
    peer.fault(Fault::Hold, On::only("patch", "nodes"), usize::MAX);
    let meddle = async {
        for patch in 1.. {
            let patched = |peer: &ApiServerPeer| {
                let requests = peer.requests();
                let patches = requests.iter().filter(|asked| asked.is("patch", "nodes"));
                (patches.count() >= patch).then_some(())
            };
            peer.wait_for("a patch", LONG, patched).await.unwrap();
            peer.edit_node(NODE, |node| {
                node["metadata"]["labels"] = json!({ "n": patch });
            });
            peer.release();
        }
    };
    let tainted = tokio::select! {
        tainted = api.set_taint(true) => tainted,
        () = meddle => unreachable!(),
    };
    assert!(
        matches!(tainted, Err(ClusterError::Conflict(_))),
        "{tainted:?}"
    );
    assert_eq!(peer.requests().len(), 8);
}
