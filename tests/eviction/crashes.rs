//! A process that ends at any point, and its successor.

use std::fs;

use gpu_device_plugin::eviction::ledger::file::{DAMAGED, FILE};

use crate::common::api_server::{Fault, On};
use crate::rig::{NAMESPACE, Rig, evict};

/// The requests of one eviction, in their order.
const REQUESTS: [(&str, &str); 3] = [
    ("get", "pods"),
    ("create", "events"),
    ("create", "pods/eviction"),
];

/// Holds the request of this place, and ends the evictor while it waits.
async fn crash_at(rig: &mut Rig, place: usize) {
    let (verb, resource) = REQUESTS[place];
    rig.cluster.fault(Fault::Hold, On::only(verb, resource), 1);
    rig.sicken(&[0]);
    let asked = |rig: &Rig| {
        let mut asked = rig.cluster.requests().into_iter();
        asked.find(|asked| asked.is(verb, resource)).map(drop)
    };
    rig.wait("the request", asked).await;
    rig.crash().await;
}

fn gone(rig: &Rig) -> Option<()> {
    rig.cluster.pod(NAMESPACE, "train").is_none().then_some(())
}

#[tokio::test]
async fn whoever_comes_after_a_crash_evicts_once_whether_or_not_the_request_was_done() {
    for place in 0..REQUESTS.len() {
        for done in [true, false] {
            let mut rig = Rig::start(1, evict());
            rig.pod("train", &[0]);
            crash_at(&mut rig, place).await;
            if done {
                rig.cluster.release();
            }
            rig.start_evictor();
            rig.wait("the pod to go", gone).await;
            rig.cluster.release();
            rig.kubelet.forget(NAMESPACE, "train");
            rig.some_time().await;
            let summary = rig.cluster.summary();
            assert_eq!(rig.told("train"), ["WillEvict"], "{summary:#?}");
            // The answer to one that was done may have been lost with the crash.
            assert!(rig.evictions() <= 1, "{place} {done}: {summary:#?}");
        }
    }
}

#[tokio::test]
async fn it_is_stopped_again_and_again_and_gets_there_all_the_same() {
    let mut rig = Rig::start(1, evict());
    rig.pod("train", &[0]);
    rig.sicken(&[0]);
    let mut lives = 0;
    while gone(&rig).is_none() {
        lives += 1;
        let before = rig.cluster.requests().len();
        // Each gets one request further than the one before.
        let enough = |rig: &Rig| {
            let requests = rig.cluster.requests().len();
            (requests >= before + lives || gone(rig).is_some()).then_some(())
        };
        rig.wait("a request", enough).await;
        rig.crash().await;
        rig.start_evictor();
    }
    assert!(lives >= 3);
    rig.kubelet.forget(NAMESPACE, "train");
    rig.some_time().await;
    assert_eq!(rig.told("train"), ["WillEvict"]);
    // The answer to the one that was done may have been lost with its life.
    assert!(rig.evictions() <= 1, "{:#?}", rig.cluster.summary());
}

#[tokio::test]
async fn an_eviction_without_an_answer_is_looked_up_and_not_repeated() {
    let mut rig = Rig::start(1, evict());
    rig.pod("train", &[0]);
    rig.cluster
        .fault(Fault::LoseAnswer, On::only("create", "pods/eviction"), 1);
    rig.sicken(&[0]);
    rig.wait("the pod to go", gone).await;
    rig.crash().await;
    rig.kubelet.forget(NAMESPACE, "train");
    rig.start_evictor();
    rig.some_time().await;
    let evictions = |rig: &Rig| {
        let requests = rig.cluster.requests();
        requests
            .iter()
            .filter(|one| one.is("create", "pods/eviction"))
            .count()
    };
    assert_eq!(evictions(&rig), 1, "{:#?}", rig.cluster.summary());
    assert_eq!(rig.counted("evicted") + rig.counted("gone"), 1);
}

#[tokio::test]
async fn two_processes_do_not_evict_at_once() {
    let mut rig = Rig::start(1, evict());
    rig.pod("train", &[0]);
    rig.cluster
        .fault(Fault::Hold, On::only("create", "pods/eviction"), 1);
    rig.sicken(&[0]);
    let asked = |rig: &Rig| {
        let requests = rig.cluster.requests();
        requests
            .iter()
            .find(|one| one.is("create", "pods/eviction"))
            .map(drop)
    };
    rig.wait("the eviction", asked).await;
    let requests = rig.cluster.requests().len();
    let other = rig.another_evictor();
    for _ in 0..100 {
        rig.reports.send_modify(|_| {});
        tokio::task::yield_now().await;
    }
    assert_eq!(rig.cluster.requests().len(), requests);
    rig.cluster.release();
    rig.evicted(1).await;
    rig.crash().await;
    other.abort();
}

#[tokio::test]
async fn a_damaged_record_is_put_aside() {
    let rig = Rig::start(1, evict());
    let state = rig.folder.path().join("state");
    fs::create_dir_all(&state).unwrap();
    fs::write(state.join(FILE), "no record").unwrap();
    rig.pod("train", &[0]);
    rig.sicken(&[0]);
    rig.evicted(1).await;
    assert_eq!(
        fs::read_to_string(state.join(DAMAGED)).unwrap(),
        "no record"
    );
}

#[tokio::test]
async fn what_cannot_be_written_down_is_not_done() {
    let rig = Rig::start(1, evict());
    let record = rig.folder.path().join("state").join(FILE);
    rig.pod("train", &[0]);
    rig.cluster.fault(Fault::Hold, On::only("get", "pods"), 1);
    rig.sicken(&[0]);
    let asked = |rig: &Rig| (!rig.cluster.requests().is_empty()).then_some(());
    rig.wait("a request", asked).await;
    fs::create_dir(&record).unwrap();
    rig.cluster.release();
    rig.tells("train", "WillEvict").await;
    rig.some_time().await;
    assert_eq!(rig.evictions(), 0);
    assert!(rig.counted("failed") > 0);
    fs::remove_dir(&record).unwrap();
    rig.evicted(1).await;
}
