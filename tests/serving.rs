//! What the kubelet hears of the devices: lists, and who may listen.

#![allow(
    clippy::unwrap_used,
    reason = "also a test's helpers fail by panicking"
)]

mod common;

use std::pin::pin;
use std::time::{Duration, Instant};

use common::kubelet::{Event, KubeletPeer};
use common::nvml::SimulatedNode;
use common::running::{LONG, RESOURCE, Running, allocate, measured, options};
use gpu_device_plugin::api::v1beta1::{
    ContainerPreferredAllocationRequest, Device, Empty, ListAndWatchResponse,
    PreStartContainerRequest, PreferredAllocationRequest,
};
use tokio::time::{interval, timeout};
use tonic::{Code, Streaming};

async fn next(stream: &mut Streaming<ListAndWatchResponse>) -> Vec<Device> {
    let list = timeout(LONG, stream.message()).await;
    list.unwrap().unwrap().unwrap().devices
}

fn healthy(list: &[Device]) -> usize {
    list.iter().filter(|d| d.health == "Healthy").count()
}

#[tokio::test]
async fn scenario_11_and_12_each_flap_is_one_list_and_every_list_is_whole() {
    let running = Running::start(4).await;
    let mark = running.kubelet.mark();
    running.node.lose(1);
    running.counts(3, 4).await;
    running.node.restore(1);
    running.counts(4, 4).await;
    // In one step as the library sees it, in one list or in two as we do.
    running.node.edit(|state| {
        state.gpus[0].lost = true;
        state.gpus[3].lost = true;
    });
    running.counts(2, 4).await;
    running.node.restore(0);
    running.counts(3, 4).await;
    running.node.restore(3);
    running.counts(4, 4).await;

    let lists = running.lists(mark);
    let told: Vec<_> = lists.iter().map(|list| healthy(list)).collect();
    assert!(
        told == [3, 4, 2, 3, 4] || told == [3, 4, 3, 2, 3, 4],
        "{told:?}"
    );
    assert!(lists.iter().all(|list| list.len() == 4));
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn lists_are_sorted_whatever_the_order_of_the_gpus() {
    let node = SimulatedNode::with(6, |state| {
        state.gpus.reverse();
        for (position, gpu) in state.gpus.iter_mut().enumerate() {
            gpu.minor_number = position as u32;
        }
    });
    let running = Running::on(node, options(), &[]).await;
    let ids: Vec<_> = running.lists(0)[0].iter().map(|d| d.id.clone()).collect();
    assert_eq!(ids.len(), 6);
    assert!(ids.is_sorted(), "{ids:?}");
    assert_eq!(ids[0], running.node.uuid(5));
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn scenario_13_a_device_that_a_pod_holds_may_be_unhealthy_and_stays_listed() {
    let running = Running::start(1).await;
    let pod = running.kubelet.allocate(RESOURCE, 1).await.unwrap();
    running.node.lose(0);
    running.counts(0, 1).await;
    // The container restarts from the kubelet's own memory.
    let again = running.kubelet.restart_container(&pod.pod).await.unwrap();
    assert_eq!(again, pod);
    running.kubelet.free(&pod.pod);
    assert!(running.kubelet.allocate(RESOURCE, 1).await.is_err());
    running.counts(0, 1).await;
    running.node.restore(0);
    running.counts(1, 1).await;
    running.kubelet.allocate(RESOURCE, 1).await.unwrap();
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn scenario_14_the_kubelet_knows_which_device_is_unhealthy() {
    let running = Running::start(3).await;
    running.node.lose(1);
    running.health(1, "Unhealthy").await;
    running.health(0, "Healthy").await;
    running.health(2, "Healthy").await;
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn scenario_23_any_number_of_streams_get_the_same_lists() {
    let running = Running::start(4).await;
    let mut client = running.client().await;
    let mut streams = Vec::new();
    for _ in 0..50 {
        streams.push(client.list_and_watch(Empty {}).await.unwrap().into_inner());
    }
    for stream in &mut streams {
        assert_eq!(next(stream).await, running.kubelet.devices(RESOURCE));
    }
    running.node.lose(2);
    running.counts(3, 4).await;
    for stream in &mut streams {
        assert_eq!(next(stream).await, running.kubelet.devices(RESOURCE));
    }
    drop(streams);
    assert_eq!(running.kubelet.streams(RESOURCE), 1);
    assert_eq!(running.register_calls(0), 1, "more streams are no news");
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn a_stream_that_nobody_reads_holds_up_no_other() {
    let running = Running::start(2).await;
    let unread = running.kubelet.open_stream(RESOURCE).await.unwrap();
    for _ in 0..5 {
        running.node.lose(1);
        running.counts(1, 2).await;
        running.node.restore(1);
        running.counts(2, 2).await;
    }
    running.kubelet.restart().await.unwrap();
    running.counts(2, 2).await;
    drop(unread);
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn scenario_27_a_slow_enumeration_gives_no_list_rather_than_half_a_list() {
    let node = SimulatedNode::new(4);
    node.hang(3, &["nvmlDeviceGetMinorNumber"]);
    let kubelet = KubeletPeer::new(node.device_plugin_dir(), options());
    kubelet.start().await.unwrap();
    let running = Running::unregistered(node, kubelet, &[]).await;
    running.unready("not enumerated yet").await;
    let found = running.plugin.wait_for_line("driver files found", LONG);
    found.await.unwrap();
    assert_eq!(running.register_calls(0), 0);

    running.node.restore(3);
    running.counts(4, 4).await;
    let sizes: Vec<_> = running.lists(0).iter().map(Vec::len).collect();
    assert_eq!(sizes, [4]);
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn scenario_31_and_40_preferences_are_offered_and_no_container_waits_for_a_start_call() {
    let running = Running::start(2).await;
    let mut client = running.client().await;
    let options = client.get_device_plugin_options(Empty {}).await.unwrap();
    let options = options.into_inner();
    assert!(!options.pre_start_required);
    assert!(options.get_preferred_allocation_available);
    let pod = running.kubelet.allocate(RESOURCE, 1).await.unwrap();
    running.kubelet.restart_container(&pod.pod).await.unwrap();
    let events: Vec<_> = running.kubelet.events().into_iter().collect();
    let asked = |is: fn(&Event) -> bool| events.iter().any(|record| is(&record.event));
    assert!(asked(|event| matches!(
        event,
        Event::PreferredCalled { size: 1, .. }
    )));
    assert!(!asked(|event| matches!(
        event,
        Event::PreStartCalled { .. }
    )));

    // What cannot be met is not answered with an error: the kubelet rejects the pod
    // for one.
    let impossible = ContainerPreferredAllocationRequest {
        available_device_i_ds: vec![running.node.uuid(0)],
        must_include_device_i_ds: vec![running.node.uuid(1)],
        allocation_size: 7,
    };
    let request = PreferredAllocationRequest {
        container_requests: vec![impossible],
    };
    let answer = client.get_preferred_allocation(request).await.unwrap();
    let answer = answer.into_inner().container_responses;
    // What must be comes first.
    let all = [1, 0].map(|position| running.node.uuid(position));
    assert_eq!(answer.len(), 1);
    assert_eq!(answer[0].device_i_ds, all);
    let request = PreStartContainerRequest {
        devices_ids: vec![running.node.uuid(0)],
    };
    client.pre_start_container(request).await.unwrap();
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn scenario_32_hints_are_those_of_sysfs_and_none_where_it_says_nothing() {
    let node = SimulatedNode::with(3, |state| {
        state.gpus[0].numa_node = Some(0);
        state.gpus[1].numa_node = Some(7);
        state.gpus[2].numa_node = None;
    });
    let running = Running::on(node, options(), &[]).await;
    let nodes: Vec<Option<Vec<i64>>> = running
        .kubelet
        .devices(RESOURCE)
        .into_iter()
        .map(|device| Some(device.topology?.nodes.iter().map(|node| node.id).collect()))
        .collect();
    assert_eq!(nodes, [Some(vec![0]), Some(vec![7]), None]);
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn scenario_35_a_node_without_gpus_is_registered_and_may_grow() {
    let node = SimulatedNode::new(0);
    let running = Running::on(node, options(), &[]).await;
    running.counts(0, 0).await;
    running.ready().await;
    assert_eq!(running.lists(0), [Vec::new()]);
    let grown = common::nvml::State::healthy(2);
    running.node.edit(|state| state.gpus = grown.gpus);
    running.counts(2, 2).await;
    assert_eq!(running.register_calls(0), 1);
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn no_request_waits_for_nvml_though_it_hangs_for_good() {
    let mut running = Running::start(2).await;
    running.node.edit(|state| state.hang.insert("*".into()));
    // Which takes 10 s.
    let times = ask_until(&running, "the driver hangs").await;
    assert!(times.len() > 50, "{} rounds of requests", times.len());
    let bound = Duration::from_millis(50);
    measured("a list and an allocation", &times, bound);

    running.counts(0, 2).await;
    let refused = running.allocate(&[0]).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("does not answer"), "{refused}");

    // Threads that will never return do not hold up the end either.
    running.plugin.terminate().unwrap();
    let ended = running.plugin.wait(LONG).await.unwrap();
    assert_eq!(ended.code(), Some(0));
    running.kubelet.assert_no_violations();
}

/// Asks for lists and devices until the plugin writes a line, and how long each
/// round took.
async fn ask_until(running: &Running, line: &str) -> Vec<Duration> {
    let mut client = running.client().await;
    let ids = vec![running.node.uuid(0), running.node.uuid(1)];
    let mut written = pin!(running.plugin.wait_for_line(line, LONG));
    let mut pace = interval(Duration::from_millis(20));
    let mut times = Vec::new();
    loop {
        let ask = async {
            pace.tick().await;
            let asked = Instant::now();
            let mut stream = client.list_and_watch(Empty {}).await.unwrap().into_inner();
            assert_eq!(next(&mut stream).await.len(), 2);
            let answer = allocate(&mut client, vec![ids.clone()]).await;
            answer.map(|_| asked.elapsed())
        };
        tokio::select! {
            line = &mut written => {
                line.unwrap();
                return times;
            }
            answer = ask => match answer {
                Ok(time) => times.push(time),
                // Noticed, and not yet read in the log.
                Err(status) => assert!(status.message().contains("does not answer"), "{status}"),
            },
        }
    }
}
