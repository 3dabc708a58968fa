//! The kubelet comes and goes, and the plugin is registered with it again.
//!
//! The numbers are those of Kubernetes' own scenarios, as this project counts
//! them; each is named once, here or in the file of its behaviour.

#![allow(
    clippy::unwrap_used,
    reason = "also a test's helpers fail by panicking"
)]

mod common;

use std::fs;
use std::time::{Duration, Instant};

use gpu_device_plugin::api::v1beta1::Empty;

use common::kubelet::{AllocateError, Event, KubeletPeer, Record, RegisterFault, Times};
use common::nvml::SimulatedNode;
use common::running::{LONG, RESOURCE, Running, measured, options};

/// From the kubelet's accepting to the registration, after any fault.
const REGISTERED: Duration = Duration::from_millis(250);
/// The same after a plain restart.
const RESTARTED: Duration = Duration::from_millis(50);
/// How long a kubelet that took a registration has for asking for the list.
const STREAM_DEADLINE: Duration = Duration::from_secs(10);
/// How long Register may take: the kubelet dials for 10 s within it.
const REGISTER_DEADLINE: Duration = Duration::from_secs(15);

fn stopped_kubelet(node: &SimulatedNode) -> KubeletPeer {
    KubeletPeer::new(node.device_plugin_dir(), options())
}

/// A plugin beside a kubelet that never ran.
async fn alone(gpus: usize) -> Running {
    let node = SimulatedNode::new(gpus);
    let kubelet = stopped_kubelet(&node);
    Running::unregistered(node, kubelet, &[]).await
}

/// The time from each kubelet's accepting to the first registration with it.
fn times_to_register(records: &[Record]) -> Vec<Duration> {
    let mut accepting = None;
    let mut times = Vec::new();
    for Record { at, event } in records {
        match event {
            Event::SocketAccepting { .. } => accepting = Some(*at),
            Event::Registered { .. } => times.extend(accepting.take().map(|since| *at - since)),
            _ => {}
        }
    }
    times
}

fn is_registered(event: &Event) -> bool {
    matches!(event, Event::Registered { .. })
}

// === The start ===

#[tokio::test]
async fn scenario_01_on_a_fresh_node_every_gpu_is_allocatable() {
    let running = Running::start(8).await;
    running.ready().await;
    assert_eq!(running.register_calls(0), 1);
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn scenario_02_a_kubelet_that_is_not_there_yet_is_waited_for_without_effort() {
    let running = alone(2).await;
    running.unready("kubelet.sock does not exist").await;
    let effort = running.effort();
    running.pass_time().await;
    running.kubelet.bind_only().await.unwrap();
    running.unready("nobody accepts").await;
    effort.assert_idle();

    running.kubelet.start().await.unwrap();
    running.counts(2, 2).await;
    let times = times_to_register(&running.kubelet.events());
    measured("registered with a first kubelet", &times, REGISTERED);
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn scenario_02_a_stale_kubelet_socket_is_tried_until_a_kubelet_takes_its_place() {
    let node = SimulatedNode::new(2);
    let kubelet = stopped_kubelet(&node);
    kubelet.leave_stale_socket().await.unwrap();
    let begun = Instant::now();
    let running = Running::unregistered(node, kubelet, &[]).await;
    let effort = running.effort();
    let refused = r#"registrations_total{resource="nvidia.com/gpu",result="refused"}"#;
    running.metric_reaches(refused, 15.0).await;
    effort.assert_idle();
    // 1, 2, 4 … 128 and six times 160 ms, less a quarter at the most.
    let time = begun.elapsed();
    assert!(time >= Duration::from_millis(900), "15 tries in {time:?}");
    let told = running.plugin.log().matches("nobody accepts").count();
    assert_eq!(told, 1, "{}", running.plugin.log());

    running.kubelet.start().await.unwrap();
    running.counts(2, 2).await;
    let times = times_to_register(&running.kubelet.events());
    measured("registered after a stale socket", &times, REGISTERED);
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn a_kubelet_that_listens_and_does_not_answer_yet_is_registered_with_when_it_does() {
    let running = alone(2).await;
    running.kubelet.listen_only().await.unwrap();
    running.unready("registering").await;
    let effort = running.effort();
    running.pass_time().await;
    effort.assert_idle();
    running.kubelet.start().await.unwrap();
    running.counts(2, 2).await;
    let times = times_to_register(&running.kubelet.events());
    measured("registered with a slow starter", &times, REGISTERED);
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn a_kubelet_that_was_slow_to_listen_and_refuses_once_is_tried_again_soon() {
    let running = alone(2).await;
    running.kubelet.bind_only().await.unwrap();
    let refused = r#"registrations_total{resource="nvidia.com/gpu",result="refused"}"#;
    running.metric_reaches(refused, 12.0).await;
    let fault = RegisterFault::Error("not now".into());
    running.kubelet.fault(fault, Times::N(1));
    running.kubelet.start().await.unwrap();
    running.counts(2, 2).await;
    let times = times_to_register(&running.kubelet.events());
    measured("registered after refusals and an error", &times, REGISTERED);
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn a_folder_that_is_not_there_yet_is_waited_for() {
    let node = SimulatedNode::new(2);
    fs::remove_dir(node.device_plugin_dir()).unwrap();
    let kubelet = stopped_kubelet(&node);
    let running = Running::unregistered(node, kubelet, &[]).await;
    running.unready("is a kubelet running").await;
    let effort = running.effort();
    running.pass_time().await;
    effort.assert_idle();
    running.kubelet.start().await.unwrap();
    running.counts(2, 2).await;
    let times = times_to_register(&running.kubelet.events());
    measured("registered in a new folder", &times, REGISTERED);
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn scenario_26_nothing_is_registered_before_the_gpus_are_known() {
    let node = SimulatedNode::new(2);
    node.edit(|state| state.hang.insert("nvmlInit".into()));
    let kubelet = stopped_kubelet(&node);
    kubelet.start().await.unwrap();
    let running = Running::unregistered(node, kubelet, &[]).await;
    running.unready("no devices to advertise yet").await;
    assert_eq!(running.register_calls(0), 0);
    assert!(running.sockets().is_empty());

    running.node.edit(|state| state.hang.clear());
    running.counts(2, 2).await;
    assert_eq!(running.lists(0).len(), 1, "one list, and that complete");
    running.kubelet.assert_no_violations();
}

// === Restarts ===

#[tokio::test]
async fn scenario_03_after_a_restart_the_same_devices_are_back_at_once() {
    let running = Running::start(2).await;
    for _ in 0..100 {
        let mark = running.kubelet.mark();
        running.kubelet.restart().await.unwrap();
        running.listed_since(mark).await;
        running.counts(2, 2).await;
    }
    let times = times_to_register(&running.kubelet.events());
    assert_eq!(times.len(), 101);
    measured("registered after a restart", &times[1..], RESTARTED);
    assert_eq!(running.register_calls(0), 101);
    assert_eq!(running.sockets().len(), 1);
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn a_hundred_restarts_in_a_row_end_registered() {
    let running = Running::start(2).await;
    running.kubelet.recreate(100).await.unwrap();
    running.counts(2, 2).await;
    let calls = running.register_calls(0);
    assert!(calls <= 2 * 101, "{calls} registrations with 101 kubelets");
    let times = times_to_register(&running.kubelet.events());
    let last = &times[times.len() - 1..];
    measured("registered after 100 restarts in a row", last, REGISTERED);
    assert_eq!(running.sockets().len(), 1);
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn a_kubelet_that_restarts_faster_than_we_register_is_followed() {
    let running = Running::start(2).await;
    let slow = RegisterFault::Slow(LONG);
    running.kubelet.fault(slow, Times::UntilCleared);
    for _ in 0..20 {
        let mark = running.kubelet.mark();
        running.kubelet.restart().await.unwrap();
        let called = |event: &Event| matches!(event, Event::RegisterCalled { .. });
        let wait = running.kubelet.wait_event("Register", mark, LONG, called);
        wait.await.unwrap();
    }
    running.kubelet.clear_faults();
    let mark = running.kubelet.mark();
    running.kubelet.restart().await.unwrap();
    running.counts(2, 2).await;
    let times = times_to_register(&running.kubelet.events()[mark..]);
    measured("registered after 20 cut registrations", &times, REGISTERED);
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn scenario_04_and_05_pods_keep_their_devices_and_nobody_is_asked_again() {
    let running = Running::start(2).await;
    let first = running.kubelet.allocate(RESOURCE, 1).await.unwrap();
    running.kubelet.restart().await.unwrap();
    running.counts(2, 2).await;
    let mark = running.kubelet.mark();
    let again = running.kubelet.restart_container(&first.pod).await.unwrap();
    assert_eq!(again, first);
    let asked = |event: &Event| matches!(event, Event::AllocateCalled { .. });
    let since = &running.kubelet.events()[mark..];
    assert!(!since.iter().any(|record| asked(&record.event)));

    let second = running.kubelet.allocate(RESOURCE, 1).await.unwrap();
    assert_ne!(second.ids, first.ids);
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn scenario_06_a_plugin_that_was_killed_is_replaced_and_pods_keep_their_devices() {
    let mut running = Running::start(2).await;
    let pod = running.kubelet.allocate(RESOURCE, 1).await.unwrap();
    running.kill_plugin().await;
    running.counts(0, 2).await;
    running.start_plugin().await;
    running.counts(2, 2).await;
    assert_eq!(running.sockets().len(), 1, "the killed one's is removed");
    let again = running.kubelet.restart_container(&pod.pod).await.unwrap();
    assert_eq!(again, pod);
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn scenario_07_a_kubelet_that_restarts_and_then_the_plugin_leave_pods_alone() {
    let mut running = Running::start(2).await;
    let pod = running.kubelet.allocate(RESOURCE, 2).await.unwrap();
    running.kubelet.restart().await.unwrap();
    running.counts(2, 2).await;
    running.kill_plugin().await;
    running.start_plugin().await;
    running.counts(2, 2).await;
    let running_pod = running.kubelet.readmit_running(&pod.pod).await.unwrap();
    assert_eq!(running_pod, pod);
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn scenario_08_and_38_a_plugin_that_is_long_gone_takes_its_capacity_along_until_it_is_back() {
    let mut running = Running::start(2).await;
    let pod = running.kubelet.allocate(RESOURCE, 1).await.unwrap();
    running.plugin.terminate().unwrap();
    running.plugin.wait(LONG).await.unwrap();
    running.counts(0, 2).await;
    running.kubelet.advance_clock(options().grace);
    running.counts(0, 0).await;
    let refused = running.kubelet.restart_container(&pod.pod).await;
    assert!(matches!(refused, Err(AllocateError::ContainerConfig(_))));

    running.start_plugin().await;
    running.counts(2, 2).await;
    let again = running.kubelet.restart_container(&pod.pod).await.unwrap();
    assert_eq!(again, pod);
    running.kubelet.assert_no_violations();
}

// === Sockets and folders ===

#[tokio::test]
async fn scenario_24_a_socket_that_is_deleted_under_us_is_made_anew_and_registered() {
    let running = Running::start(2).await;
    let mut times = Vec::new();
    for _ in 0..10 {
        let mark = running.kubelet.mark();
        let deleted = Instant::now();
        fs::remove_file(&running.sockets()[0]).unwrap();
        let wait = running
            .kubelet
            .wait_event("Registered", mark, LONG, is_registered);
        times.push(wait.await.unwrap().at - deleted);
        running.listed_since(mark).await;
        running.counts(2, 2).await;
    }
    measured("registered after our socket's end", &times, REGISTERED);
    assert_eq!(running.register_calls(0), 11);
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn scenario_25_a_kubelet_socket_that_is_deleted_changes_nothing_while_the_stream_lives() {
    let running = Running::start(2).await;
    let effort = running.effort();
    running.kubelet.remove_socket().unwrap();
    running.pass_time().await;
    running.counts(2, 2).await;
    running.ready().await;
    effort.assert_idle();
    assert_eq!(running.register_calls(0), 1);
    assert_eq!(running.kubelet.streams(RESOURCE), 1);

    running.kubelet.restart().await.unwrap();
    running.counts(2, 2).await;
    let times = times_to_register(&running.kubelet.events());
    measured("registered after a deleted socket", &times[1..], REGISTERED);
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn a_folder_that_is_deleted_and_made_again_is_found_again() {
    let running = Running::start(2).await;
    for _ in 0..5 {
        running.kubelet.stop().await;
        running.remove_folder();
        running.unready("is a kubelet running").await;
        running.kubelet.start().await.unwrap();
        running.counts(2, 2).await;
    }
    let times = times_to_register(&running.kubelet.events());
    measured("registered in a new folder", &times[1..], REGISTERED);
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn a_folder_that_is_replaced_in_one_breath_is_watched_all_the_same() {
    let running = Running::start(2).await;
    for _ in 0..20 {
        running.kubelet.stop().await;
        running.remove_folder();
        // A file system gives the new folder the old one's inode number.
        fs::create_dir(running.kubelet.folder()).unwrap();
        let bound = || async { (!running.sockets().is_empty()).then_some(()) };
        running.eventually("a socket of ours", bound).await;
        running.kubelet.start().await.unwrap();
        running.counts(2, 2).await;
    }
    let times = times_to_register(&running.kubelet.events());
    let what = "registered in a replaced folder";
    measured(what, &times[1..], REGISTERED);
    running.kubelet.assert_no_violations();
}

// === Kubelets that misbehave ===

#[tokio::test]
async fn scenario_09_a_stream_that_the_kubelet_cancels_is_followed_by_a_registration() {
    let running = Running::start(2).await;
    let mark = running.kubelet.mark();
    let cancelled = Instant::now();
    running.kubelet.cancel_streams(RESOURCE);
    let wait = running
        .kubelet
        .wait_event("Registered", mark, LONG, is_registered);
    let time = wait.await.unwrap().at - cancelled;
    running.counts(2, 2).await;
    measured("registered after a cancelled stream", &[time], REGISTERED);
    running.pass_time().await;
    assert_eq!(running.register_calls(mark), 1);
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn scenario_09_the_stream_of_another_client_is_not_taken_for_the_kubelets() {
    let running = Running::start(2).await;
    // Time for the other to be the first.
    let slow = RegisterFault::Slow(Duration::from_secs(2));
    running.kubelet.fault(slow, Times::N(1));
    let mark = running.kubelet.mark();
    running.kubelet.restart().await.unwrap();
    let called = |event: &Event| matches!(event, Event::RegisterCalled { .. });
    let wait = running.kubelet.wait_event("Register", mark, LONG, called);
    wait.await.unwrap();
    let mut guest = running.guest().await;
    let _list = guest.list_and_watch(Empty {}).await.unwrap();
    running.counts(2, 2).await;

    let mark = running.kubelet.mark();
    running.kubelet.cancel_streams(RESOURCE);
    let wait = running
        .kubelet
        .wait_event("Registered", mark, LONG, is_registered);
    wait.await.unwrap();
    running.counts(2, 2).await;
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn scenario_09_a_kubelet_that_cancels_each_stream_is_not_stormed() {
    let running = alone(2).await;
    let cancels = 6;
    let fault = RegisterFault::CancelStream;
    running.kubelet.fault(fault, Times::N(cancels));
    running.kubelet.start().await.unwrap();
    let start = Instant::now();
    running.counts(2, 2).await;
    assert_eq!(running.register_calls(0), cancels + 1);
    // 50, 100, 200, 400, 800 and 1600 ms, less a quarter at the most.
    let least = Duration::from_millis(3150) * 3 / 4;
    assert!(start.elapsed() >= least, "{:?}", start.elapsed());
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn scenario_10_a_kubelet_that_answers_with_errors_is_asked_again_with_growing_pauses() {
    let running = alone(2).await;
    let (refusal, errors) = ("the ResourceName is not to my taste", 5);
    let fault = RegisterFault::Error(refusal.into());
    running.kubelet.fault(fault, Times::N(errors));
    running.kubelet.start().await.unwrap();
    running.unready(refusal).await;
    running.counts(2, 2).await;
    running.ready().await;

    let records = running.kubelet.events();
    let calls: Vec<_> = records
        .iter()
        .filter(|record| matches!(record.event, Event::RegisterCalled { .. }))
        .map(|record| record.at)
        .collect();
    assert_eq!(calls.len(), errors + 1);
    let pauses: Vec<_> = calls.windows(2).map(|pair| pair[1] - pair[0]).collect();
    println!("pauses {pauses:?}");
    for (pause, doubled) in pauses.iter().zip([50, 100, 200, 400, 800]) {
        assert!(
            *pause >= Duration::from_millis(doubled) * 3 / 4,
            "{pauses:?}"
        );
    }
    let told = running.plugin.log().matches(refusal).count();
    assert_eq!(told, 1, "{}", running.plugin.log());
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn a_new_kubelet_is_not_made_to_wait_for_what_the_old_one_did() {
    let running = alone(2).await;
    let fault = RegisterFault::Error("no".into());
    running.kubelet.fault(fault, Times::UntilCleared);
    running.kubelet.start().await.unwrap();
    let failed = r#"registrations_total{resource="nvidia.com/gpu",result="error"}"#;
    running.metric_reaches(failed, 6.0).await;
    running.kubelet.clear_faults();
    let mark = running.kubelet.mark();
    running.kubelet.restart().await.unwrap();
    running.counts(2, 2).await;
    let times = times_to_register(&running.kubelet.events()[mark..]);
    measured("registered with a better kubelet", &times, REGISTERED);
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn a_kubelet_that_never_asks_for_the_list_is_registered_with_again_after_10_s() {
    let running = alone(2).await;
    running.kubelet.fault(RegisterFault::NoStream, Times::N(1));
    running.kubelet.start().await.unwrap();
    running.unready("has not asked for the list").await;
    let effort = running.effort();
    running.counts(2, 2).await;
    effort.assert_idle();
    let registered: Vec<_> = running
        .kubelet
        .events()
        .into_iter()
        .filter(|record| is_registered(&record.event))
        .map(|record| record.at)
        .collect();
    assert_eq!(registered.len(), 2);
    assert!(registered[1] - registered[0] >= STREAM_DEADLINE);
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn a_kubelet_that_hangs_is_asked_again_after_15_s_and_a_new_one_at_once() {
    let running = alone(2).await;
    let hang = RegisterFault::Hang;
    running.kubelet.fault(hang, Times::UntilCleared);
    running.kubelet.start().await.unwrap();
    running.unready("registering").await;
    let effort = running.effort();
    let begun = Instant::now();
    running.unready("did not answer within 15s").await;
    effort.assert_idle();
    println!("given up after {:?}", begun.elapsed());
    let called = |event: &Event| matches!(event, Event::RegisterCalled { .. });
    let records = running.kubelet.events();
    let calls: Vec<_> = records.iter().filter(|r| called(&r.event)).collect();
    if let [first, second, ..] = calls[..] {
        assert!(second.at - first.at >= REGISTER_DEADLINE);
    }

    let wait = |mark| running.kubelet.wait_event("Register", mark, LONG, called);
    wait(records.len()).await.unwrap();
    running.kubelet.clear_faults();
    let mark = running.kubelet.mark();
    running.kubelet.restart().await.unwrap();
    running.counts(2, 2).await;
    let times = times_to_register(&running.kubelet.events()[mark..]);
    measured("registered after a hanging kubelet", &times, REGISTERED);
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn a_kubelet_that_dials_back_for_longer_than_10_s_is_waited_for() {
    let running = alone(2).await;
    let slow = RegisterFault::Slow(Duration::from_millis(10_500));
    running.kubelet.fault(slow, Times::N(1));
    running.kubelet.start().await.unwrap();
    running.counts(2, 2).await;
    assert_eq!(running.register_calls(0), 1, "no second call meanwhile");
    running.kubelet.assert_no_violations();
}
