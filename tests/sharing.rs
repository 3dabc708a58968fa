//! GPUs that several containers share by turns.

#![allow(
    clippy::unwrap_used,
    reason = "also a test's helpers fail by panicking"
)]

mod common;

use std::fs;

use common::nvml::SimulatedNode;
use common::running::{LONG, RESOURCE, Running, allocate, options};
use gpu_device_plugin::api::v1beta1::ContainerAllocateResponse;
use tonic::Code;

/// Flags of a plugin whose file has this under `sharing.timeSlicing`.
fn file(node: &SimulatedNode, time_slicing: &str) -> String {
    let path = node.root().join("config.yaml");
    let text = format!("version: v1\nsharing: {{timeSlicing: {{{time_slicing}}}}}\n");
    fs::write(&path, text).unwrap();
    format!("--config-file={}", path.display())
}

async fn start(gpus: usize, time_slicing: &str, more: &[&str]) -> Running {
    let node = SimulatedNode::new(gpus);
    let flag = file(&node, time_slicing);
    Running::on(node, options(), &[&[flag.as_str()], more].concat()).await
}

fn replica(running: &Running, gpu: usize, number: u32) -> String {
    format!("{}::{number}", running.node.uuid(gpu))
}

async fn answer(running: &Running, ids: &[String]) -> ContainerAllocateResponse {
    let mut client = running.client().await;
    let answer = allocate(&mut client, vec![ids.to_vec()]).await.unwrap();
    answer.container_responses.into_iter().next().unwrap()
}

#[tokio::test]
async fn replicas_of_a_gpu_are_devices_and_several_of_them_are_that_gpu_once() {
    let flags = ["--device-list-strategy=mounts,envvar,cdi-cri"];
    let running = start(2, "resources: [{name: gpu, replicas: 3}]", &flags).await;
    running.counts(6, 6).await;
    let listed: Vec<_> = running.kubelet.devices(RESOURCE).into_iter().collect();
    let ids: Vec<_> = listed.iter().map(|device| device.id.clone()).collect();
    let expected: Vec<_> = (0..2)
        .flat_map(|gpu| (0..3).map(move |number| (gpu, number)))
        .map(|(gpu, number)| replica(&running, gpu, number))
        .collect();
    assert_eq!(ids, expected);
    assert!(listed.iter().all(|device| device.topology.is_some()));

    let three = [(1, 0), (0, 2), (1, 2)].map(|(gpu, number)| replica(&running, gpu, number));
    let answer = answer(&running, &three).await;
    let nodes: Vec<_> = answer
        .devices
        .iter()
        .map(|d| d.container_path.as_str())
        .collect();
    assert_eq!(
        nodes[..3],
        ["/dev/nvidia0", "/dev/nvidia1", "/dev/nvidiactl"]
    );
    let uuids = [0, 1].map(|gpu| running.node.uuid(gpu));
    assert_eq!(answer.envs["NVIDIA_VISIBLE_DEVICES"], uuids.join(","));
    let names: Vec<_> = answer.cdi_devices.iter().map(|d| d.name.clone()).collect();
    let expected = uuids.map(|uuid| format!("gpu-device-plugin/gpu={uuid}"));
    assert_eq!(names, expected);
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn all_replicas_of_a_gpu_are_as_healthy_as_it_is() {
    let running = start(2, "resources: [{name: nvidia.com/gpu, replicas: 4}]", &[]).await;
    running.counts(8, 8).await;
    running.listening(1).await;
    running.node.xid(1, 79);
    running.counts(4, 8).await;
    let sick = running.kubelet.devices(RESOURCE).into_iter();
    let sick: Vec<_> = sick
        .filter(|d| d.health != "Healthy")
        .map(|d| d.id)
        .collect();
    let expected = [0, 1, 2, 3].map(|number| replica(&running, 1, number));
    assert_eq!(sick, expected);
    running.node.lose(0);
    running.counts(0, 8).await;
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn more_than_one_share_is_refused_where_that_is_said() {
    let said = "failRequestsGreaterThanOne: true, resources: [{name: gpu, replicas: 2}]";
    let running = start(2, said, &[]).await;
    running.counts(4, 4).await;
    let mut client = running.client().await;
    let two = vec![replica(&running, 0, 0), replica(&running, 1, 0)];
    let refused = allocate(&mut client, vec![two.clone()]).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("ask for 1"), "{refused}");
    // Each of two containers may have one.
    let each = two.into_iter().map(|id| vec![id]).collect();
    allocate(&mut client, each).await.unwrap();
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn some_gpus_are_shared_under_another_name() {
    let said = "renameByDefault: true, resources: [{name: gpu, devices: [1], replicas: 2}]";
    let running = start(2, said, &[]).await;
    running.counts(1, 1).await;
    let renamed = "nvidia.com/gpu.shared";
    let counts = running.kubelet.wait_counts(renamed, (2, 2), LONG);
    counts.await.unwrap();
    let ids = running.kubelet.devices(renamed).into_iter().map(|d| d.id);
    let expected = [0, 1].map(|number| replica(&running, 1, number));
    assert_eq!(ids.collect::<Vec<_>>(), expected);
    running.ready().await;
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn a_replica_that_a_pod_holds_stays_listed_though_its_gpu_is_gone_at_the_start() {
    let mut running = start(2, "resources: [{name: gpu, replicas: 2}]", &[]).await;
    running.counts(4, 4).await;
    let pod = running.kubelet.allocate(RESOURCE, 4).await.unwrap();
    running.kill_plugin().await;
    running.node.vanish(1);
    let flag = file(&running.node, "resources: [{name: gpu, replicas: 2}]");
    running.start_plugin_with(&[&flag]).await;
    running.counts(2, 4).await;
    running.kubelet.restart_container(&pod.pod).await.unwrap();
    running.kubelet.assert_no_violations();
}
