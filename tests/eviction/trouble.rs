//! A kubelet and an API server that are away, slow or short of words.

use std::time::Duration;

use crate::common::api_server::{Fault, On};
use crate::common::pod_resources::Fault as KubeletFault;
use crate::common::running::LONG;
use crate::rig::{NAMESPACE, Rig, evict};

#[tokio::test]
async fn an_api_server_that_was_away_is_asked_again() {
    let rig = Rig::start(1, evict());
    rig.pod("train", &[0]);
    rig.cluster.stop().await;
    rig.sicken(&[0]);
    rig.pods_on_sick_gpus(1).await;
    rig.some_time().await;
    rig.cluster.resume().await.unwrap();
    rig.evicted(1).await;
}

/// Arms a fault for each of the requests of one eviction, and waits for its end.
async fn evicts_in_spite_of(fault: Fault, times: usize, resources: &[&'static str]) {
    let rig = Rig::start(1, evict());
    rig.pod("train", &[0]);
    for &resource in resources {
        let verb = if resource == "pods" { "get" } else { "create" };
        rig.cluster
            .fault(fault.clone(), On::only(verb, resource), times);
    }
    rig.sicken(&[0]);
    let gone = |rig: &Rig| rig.cluster.pod(NAMESPACE, "train").is_none().then_some(());
    rig.wait("the pod to go", gone).await;
    rig.kubelet.forget(NAMESPACE, "train");
    let ended = |rig: &Rig| rig.counted("evicted") + rig.counted("gone");
    rig.measured(|rig| ended(rig) > 0).await;
    rig.some_time().await;
    let summary = rig.cluster.summary();
    assert_eq!(rig.told("train"), ["WillEvict"], "{fault:?}: {summary:#?}");
    assert_eq!(ended(&rig), 1, "{fault:?}: {summary:#?}");
}

#[tokio::test]
async fn whatever_the_api_server_fails_at_is_tried_again() {
    let all = ["pods", "events", "pods/eviction"];
    evicts_in_spite_of(Fault::Status(503), 2, &all).await;
    evicts_in_spite_of(Fault::TooMany(0), 2, &all).await;
    evicts_in_spite_of(Fault::Slow(Duration::from_millis(50)), 2, &all).await;
    evicts_in_spite_of(Fault::Garble, 2, &["pods"]).await;
}

#[tokio::test]
async fn an_event_whose_answer_is_lost_is_one_event() {
    evicts_in_spite_of(Fault::LoseAnswer, 1, &["events"]).await;
}

#[tokio::test]
async fn an_eviction_whose_answer_is_lost_is_one_eviction() {
    evicts_in_spite_of(Fault::LoseAnswer, 1, &["pods/eviction"]).await;
}

#[tokio::test]
async fn an_event_that_cannot_be_written_holds_up_nothing_for_ever() {
    let rig = Rig::start(1, evict());
    rig.pod("train", &[0]);
    rig.cluster.forbid("create", "events");
    rig.sicken(&[0]);
    rig.evicted(1).await;
    let refused = rig.cluster.summary();
    let refused = refused.iter().filter(|one| *one == "create events 403");
    assert!(refused.count() > 3);
}

#[tokio::test]
async fn one_pod_that_may_not_be_evicted_holds_up_no_other() {
    let rig = Rig::start(1, evict());
    rig.pod("a-first", &[0]);
    rig.cluster.end_namespace(NAMESPACE);
    rig.sicken(&[0]);
    let mut other = crate::common::api_server::pod("other", "b-second", "app", crate::rig::NODE);
    other["metadata"]["namespace"] = "other".into();
    rig.cluster.add_pod(other);
    rig.kubelet
        .hold("other", "b-second", crate::rig::RESOURCE, &["GPU-0"]);
    rig.evicted(1).await;
}

#[tokio::test]
async fn a_kubelet_that_is_away_or_overloaded_is_asked_again() {
    let rig = Rig::start(1, evict());
    rig.pod("train", &[0]);
    rig.kubelet.fault(KubeletFault::RateLimit, 3);
    rig.kubelet.fault(KubeletFault::Flood, 1);
    rig.sicken(&[0]);
    rig.kubelet.more_lists(4, LONG).await;
    rig.kubelet.stop();
    rig.kubelet.resume().unwrap();
    rig.evicted(1).await;
}
