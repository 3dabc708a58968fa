//! Which pods are evicted, and what the others are told.

use std::time::Duration;

use gpu_device_plugin::config::{EvictionMode, EvictionOptions};
use gpu_device_plugin::eviction::rules::{EVICTION, EVICTION_GRACE};
use serde_json::json;

use crate::common::api_server::{Budget, Options};
use crate::rig::{NAMESPACE, NODE, Rig, evict, stateful};

fn report() -> EvictionOptions {
    EvictionOptions {
        mode: EvictionMode::Report,
        ..evict()
    }
}

fn hours() -> EvictionOptions {
    EvictionOptions {
        grace: Duration::from_secs(3600),
        ..evict()
    }
}

#[tokio::test]
async fn a_pod_is_told_and_evicted_by_its_uid_and_the_one_beside_it_is_not() {
    let rig = Rig::start(2, evict());
    let uid = rig.pod("train", &[0]);
    rig.pod("beside", &[1]);
    rig.sicken(&[0]);
    rig.evicted(1).await;
    let asked = [
        "get pods 200",
        "create events 201",
        "create pods/eviction 201",
    ];
    assert_eq!(rig.cluster.summary(), asked);
    let requests = rig.cluster.requests();
    let body = &requests[2].body;
    assert_eq!(body["deleteOptions"]["preconditions"]["uid"], uid);
    let event = rig.tells("train", "WillEvict").await;
    let message = event["message"].as_str().unwrap();
    for part in ["nvidia.com/gpu GPU-0", "XID 79", "remedy", "evicted now"] {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(event["involvedObject"]["uid"], uid);
    rig.some_time().await;
    assert_eq!(rig.evictions(), 1);
    assert_eq!(rig.told("beside"), [""; 0]);
    assert_eq!(rig.counted("evicted"), 1);
}

#[tokio::test]
async fn nobody_is_asked_while_all_is_well_or_eviction_is_off() {
    let off = EvictionOptions {
        mode: EvictionMode::Off,
        ..evict()
    };
    let rig = Rig::start(2, off);
    rig.pod("train", &[0]);
    rig.sicken(&[0]);
    rig.heal(&[0]);
    rig.options.send_replace(report());
    rig.sicken(&[1]);
    rig.options.send_replace(EvictionOptions::default());
    rig.heal(&[1]);
    rig.options.send_replace(evict());
    for _ in 0..100 {
        rig.reports.send_modify(|_| {});
        tokio::task::yield_now().await;
    }
    assert_eq!(rig.cluster.summary(), [""; 0]);
    let lists = rig.kubelet.lists();
    rig.sicken(&[0]);
    rig.evicted(1).await;
    assert!(rig.kubelet.lists() > lists);
}

#[tokio::test]
async fn a_pod_with_several_sick_devices_is_evicted_once() {
    let options = EvictionOptions {
        max_sick_percent: 100,
        ..evict()
    };
    let rig = Rig::start(2, options);
    rig.pod("train", &[0, 1]);
    rig.sicken(&[0, 1]);
    rig.evicted(1).await;
    rig.some_time().await;
    assert_eq!(rig.evictions(), 1);
    assert_eq!(rig.told("train"), ["WillEvict"]);
}

#[tokio::test]
async fn a_gpu_that_is_well_again_within_the_grace_keeps_its_pod() {
    let rig = Rig::start(2, hours());
    rig.pod("train", &[0]);
    rig.annotated("hasty", &[1], json!({ EVICTION_GRACE: "0s" }));
    rig.sicken(&[0]);
    let event = rig.tells("train", "WillEvict").await;
    let message = event["message"].as_str().unwrap();
    assert!(message.contains("in 3600 s"), "{message}");
    rig.pods_on_sick_gpus(1).await;
    rig.heal(&[0]);
    rig.pods_on_sick_gpus(0).await;
    // What has a grace of its own goes by that.
    rig.sicken(&[1]);
    rig.evicted(1).await;
    assert!(rig.cluster.pod(NAMESPACE, "train").is_some());
    assert!(
        rig.cluster
            .pod(NAMESPACE, "hasty")
            .is_none_or(|pod| { pod["metadata"]["deletionTimestamp"].is_string() })
    );
}

#[tokio::test]
async fn a_gpu_that_recovers_moves_nobody_any_more() {
    let rig = Rig::start(2, hours());
    rig.pod("train", &[0]);
    rig.sicken(&[0]);
    rig.tells("train", "WillEvict").await;
    rig.change(&[0], |sickness| {
        if let Some(sickness) = sickness {
            sickness.recovering_until = Some(sickness.since + Duration::from_secs(7200));
        }
    });
    rig.options.send_replace(evict());
    rig.annotated("hasty", &[1], json!({}));
    rig.sicken(&[1]);
    rig.options
        .send_modify(|options| options.max_sick_percent = 100);
    rig.evicted(1).await;
    rig.some_time().await;
    assert_eq!(rig.evictions(), 1);
    assert_eq!(rig.told("train"), ["WillEvict"]);
}

#[tokio::test]
async fn pods_that_stay_are_told_why() {
    let rig = Rig::start(1, evict());
    rig.annotated("opted-out", &[0], json!({ EVICTION: "false" }));
    rig.annotated("unclear", &[0], json!({ EVICTION: "never" }));
    rig.annotated("undated", &[0], json!({ EVICTION_GRACE: "10min" }));
    rig.annotated(
        "static",
        &[0],
        json!({ "kubernetes.io/config.mirror": "x" }),
    );
    rig.pod_like("daemon", &[0], |pod| {
        pod["metadata"]["ownerReferences"][0]["kind"] = json!("DaemonSet");
    });
    rig.sicken(&[0]);
    for (pod, reason, words) in [
        ("opted-out", "NotEvicted", EVICTION),
        ("unclear", "BadEvictionAnnotation", "\"never\""),
        ("undated", "BadEvictionAnnotation", EVICTION_GRACE),
        ("static", "NotEvicted", "static"),
        ("daemon", "NotEvicted", "DaemonSet"),
    ] {
        let event = rig.tells(pod, reason).await;
        let message = event["message"].as_str().unwrap();
        assert!(message.contains(words), "{message}");
    }
    rig.some_time().await;
    for (outcome, pods) in [
        ("opted_out", 1),
        ("bad_annotation", 2),
        ("static", 1),
        ("daemon_set", 1),
        ("evicted", 0),
    ] {
        assert_eq!(rig.counted(outcome), pods, "{outcome}");
    }
    assert_eq!(rig.evictions(), 0);
    assert_eq!(rig.metrics.pods.get(), 5);
}

#[tokio::test]
async fn a_pod_that_ends_by_itself_is_left_alone() {
    let mut rig = Rig::start(1, evict());
    rig.pod_like("done", &[0], |pod| {
        pod["status"]["phase"] = json!("Succeeded");
    });
    rig.pod_like("going", &[0], |pod| {
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    });
    rig.pod_like("elsewhere", &[0], |pod| {
        pod["spec"]["nodeName"] = json!("n2");
    });
    rig.pod_like("pending", &[0], |pod| {
        drop(pod["status"].as_object_mut().unwrap().remove("startTime"));
    });
    rig.hold("gone", &[0]);
    rig.sicken(&[0]);
    rig.pods_on_sick_gpus(5).await;
    rig.some_time().await;
    assert_eq!(rig.cluster.count("create", "events"), 0);
    assert_eq!(rig.evictions(), 0);
    rig.crash().await;
    assert_eq!(rig.metrics.pods.get(), 0, "nobody knows");
}

#[tokio::test]
async fn where_it_only_reports_a_pod_is_told_what_would_be_and_goes_when_it_evicts() {
    let rig = Rig::start(1, report());
    rig.pod("train", &[0]);
    rig.sicken(&[0]);
    rig.tells("train", "WouldEvict").await;
    rig.some_time().await;
    assert_eq!(rig.told("train"), ["WouldEvict"]);
    assert_eq!((rig.counted("would_evict"), rig.evictions()), (1, 0));
    rig.options.send_replace(evict());
    rig.evicted(1).await;
    assert_eq!(rig.told("train"), ["WillEvict", "WouldEvict"]);
}

#[tokio::test]
async fn a_disruption_budget_holds_for_as_long_as_it_wants_and_is_told_of_once() {
    let rig = Rig::start(1, evict());
    rig.pod("train", &[0]);
    rig.cluster
        .set_budget("all", Budget::of(NAMESPACE, "app", 0));
    rig.sicken(&[0]);
    let event = rig.tells("train", "EvictionHeldByBudget").await;
    let message = event["message"].as_str().unwrap();
    assert!(message.contains("budget all needs"), "{message}");
    let refused = |rig: &Rig| {
        let summary = rig.cluster.summary();
        let refused = summary
            .iter()
            .filter(|one| *one == "create pods/eviction 429");
        (refused.count() >= 4).then_some(())
    };
    rig.wait("four refusals", refused).await;
    assert_eq!(rig.told("train"), ["EvictionHeldByBudget", "WillEvict"]);
    rig.cluster
        .set_budget("all", Budget::of(NAMESPACE, "app", 1));
    rig.evicted(1).await;
    assert!(rig.counted("held_by_budget") >= 4);
    assert_eq!(rig.cluster.count("create", "events"), 2);
}

#[tokio::test]
async fn while_too_many_gpus_are_sick_nobody_is_evicted() {
    let rig = Rig::start(2, evict());
    rig.pod("first", &[0]);
    rig.pod("second", &[1]);
    rig.sicken(&[0, 1]);
    let event = rig.tells("first", "TooManySickGPUs").await;
    let message = event["message"].as_str().unwrap();
    assert!(message.contains("2 of 2 GPUs are sick"), "{message}");
    rig.tells("second", "TooManySickGPUs").await;
    rig.some_time().await;
    assert_eq!((rig.evictions(), rig.counted("share_exceeded")), (0, 2));
    rig.heal(&[1]);
    rig.evicted(1).await;
    assert!(rig.cluster.pod(NAMESPACE, "second").is_some());
}

#[tokio::test]
async fn the_only_gpu_of_a_node_is_no_share() {
    let options = EvictionOptions {
        max_sick_percent: 1,
        ..evict()
    };
    let rig = Rig::start(1, options);
    rig.pod("train", &[0]);
    rig.sicken(&[0]);
    rig.evicted(1).await;
}

#[tokio::test]
async fn no_more_are_evicted_than_the_rate_allows() {
    let options = EvictionOptions {
        per_minute: 2,
        ..evict()
    };
    let rig = Rig::start(1, options);
    for name in ["a", "b", "c", "d"] {
        rig.pod(name, &[0]);
    }
    rig.sicken(&[0]);
    rig.evicted(2).await;
    rig.some_time().await;
    assert_eq!(rig.evictions(), 2);
    rig.options.send_modify(|options| options.per_minute = 3);
    rig.evicted(3).await;
}

#[tokio::test]
async fn a_successor_of_the_same_name_is_not_taken_for_its_predecessor() {
    let cluster = Options {
        new_pods_on: Some(NODE.into()),
        ..Options::default()
    };
    let rig = Rig::with(2, hours(), cluster);
    let first = rig.pod_like("web-0", &[0], stateful);
    rig.sicken(&[0]);
    rig.tells("web-0", "WillEvict").await;
    // The kubelet is behind: it still lists the one that is gone.
    rig.cluster.end_pod(NAMESPACE, "web-0");
    let second = rig.cluster.pod(NAMESPACE, "web-0").unwrap();
    assert_ne!(second["metadata"]["uid"], first);
    rig.hold("web-0", &[1]);
    rig.options.send_replace(evict());
    rig.some_time().await;
    assert_eq!(rig.evictions(), 0);
    assert_eq!(rig.told("web-0"), ["WillEvict"]);
    // But if it got the sick GPU, it goes as any other.
    rig.hold("web-0", &[0]);
    rig.evicted(1).await;
}
