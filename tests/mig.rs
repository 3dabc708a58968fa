//! GPUs in MIG mode: what is advertised of them, given, and taken for sick.

#![allow(
    clippy::unwrap_used,
    reason = "also a test's helpers fail by panicking"
)]

mod common;

use std::fs;
use std::process::{Command, Output};

use common::nvml::{Mig, SimulatedNode};
use common::running::{LONG, RESOURCE, Running, allocate, arguments, options, program};
use gpu_device_plugin::api::v1beta1::ContainerAllocateResponse;
use serde_json::Value;

const SLICE: &str = "nvidia.com/mig-1g.18gb";
const HALF: &str = "nvidia.com/mig-3g.71gb";

/// Two GPUs in MIG mode, and one that is not.
fn node() -> SimulatedNode {
    let node = SimulatedNode::new(3);
    node.enable_mig(0, &["1g.18gb", "1g.18gb", "3g.71gb"]);
    node.enable_mig(1, &["1g.18gb", "1g.18gb+me"]);
    node
}

async fn mixed(node: SimulatedNode, more: &[&str]) -> Running {
    let flags = [&["--mig-strategy=mixed"], more].concat();
    Running::on(node, options(), &flags).await
}

fn mig(running: &Running, gpu: usize, index: usize) -> String {
    running.node.state().gpus[gpu].mig.instances[index]
        .uuid
        .clone()
}

async fn counts(running: &Running, resource: &str, counts: (usize, usize)) {
    let counts = running.kubelet.wait_counts(resource, counts, LONG);
    counts.await.unwrap();
}

fn sick(running: &Running, resource: &str) -> Vec<String> {
    let devices = running.kubelet.devices(resource).into_iter();
    let sick = devices.filter(|device| device.health != "Healthy");
    sick.map(|device| device.id).collect()
}

async fn answer(running: &Running, resource: &str, ids: &[String]) -> ContainerAllocateResponse {
    let mut client = running.kubelet.client(resource).await.unwrap();
    let answer = allocate(&mut client, vec![ids.to_vec()]).await.unwrap();
    answer.container_responses.into_iter().next().unwrap()
}

fn nodes(answer: &ContainerAllocateResponse) -> Vec<&str> {
    let devices = answer.devices.iter();
    devices.map(|d| d.container_path.as_str()).collect()
}

// === What is advertised ===

#[tokio::test]
async fn mixed_registers_each_profile_beside_whole_gpus() {
    let running = mixed(node(), &[]).await;
    running.counts(1, 1).await;
    counts(&running, SLICE, (3, 3)).await;
    counts(&running, HALF, (1, 1)).await;
    counts(&running, "nvidia.com/mig-1g.18gb.me", (1, 1)).await;
    let ids = running.kubelet.devices(SLICE).into_iter().map(|d| d.id);
    let expected = [(0, 0), (0, 1), (1, 0)].map(|(gpu, index)| mig(&running, gpu, index));
    assert_eq!(ids.collect::<Vec<_>>(), expected);
    let topology = &running.kubelet.devices(HALF)[0].topology;
    assert_eq!(topology.as_ref().unwrap().nodes[0].id, 0, "its GPU's");
    running.ready().await;
    running.kubelet.restart().await.unwrap();
    counts(&running, SLICE, (3, 3)).await;
    running.counts(1, 1).await;
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn without_a_strategy_gpus_are_whole() {
    let running = Running::on(node(), options(), &[]).await;
    running.counts(3, 3).await;
    assert!(running.kubelet.devices(SLICE).is_empty());
    // It is a device as a whole, and so is whatever falls sick in it.
    running.listening(0).await;
    running.node.xid_of_mig(0, 79, (1, 0));
    running.counts(2, 3).await;
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn single_advertises_mig_devices_as_gpus_and_nothing_while_they_differ() {
    let node = SimulatedNode::new(2);
    node.enable_mig(0, &["1g.18gb", "1g.18gb"]);
    node.enable_mig(1, &["1g.18gb"]);
    let running = Running::on(node, options(), &["--mig-strategy=single"]).await;
    running.counts(3, 3).await;
    let pod = running.kubelet.allocate(RESOURCE, 1).await.unwrap();

    running.node.edit_gpu(1, |gpu| gpu.mig = Mig::default());
    running.plugin.signal(libc::SIGHUP).unwrap();
    let body = running.unready("MIG devices: --mig-strategy=single").await;
    assert!(
        body.contains("GPU 1 not in MIG mode; GPU 0 with 1g.18gb"),
        "{body}"
    );
    running.counts(0, 3).await;

    running.node.enable_mig(1, &["1g.18gb", "1g.18gb"]);
    running.plugin.signal(libc::SIGHUP).unwrap();
    running.ready().await;
    running.counts(4, 4).await;
    running.kubelet.restart_container(&pod.pod).await.unwrap();
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn a_layout_that_changes_leaves_old_devices_listed_and_unhealthy() {
    let running = mixed(node(), &[]).await;
    counts(&running, SLICE, (3, 3)).await;
    let old = mig(&running, 0, 2);
    running.node.edit_gpu(0, |gpu| {
        gpu.mig.instances.pop();
        gpu.mig.instances[0].uuid = "MIG-11111111-2222-3333-4444-555555555555".into();
        gpu.mig.instances[0].profile = "2g.35gb".into();
        gpu.mig.instances[0].memory_bytes *= 2;
    });
    running.plugin.signal(libc::SIGHUP).unwrap();
    counts(&running, SLICE, (2, 3)).await;
    counts(&running, HALF, (0, 1)).await;
    counts(&running, "nvidia.com/mig-2g.35gb", (1, 1)).await;
    let mut client = running.kubelet.client(HALF).await.unwrap();
    let refused = allocate(&mut client, vec![vec![old]]).await.unwrap_err();
    assert!(
        refused.message().contains("no such MIG device"),
        "{refused}"
    );
    running.ready().await;
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn a_mig_device_that_a_pod_holds_is_listed_after_a_restart_though_it_is_gone() {
    let mut running = mixed(node(), &[]).await;
    counts(&running, HALF, (1, 1)).await;
    running.kubelet.allocate(HALF, 1).await.unwrap();
    running.kill_plugin().await;
    running.node.edit_gpu(0, |gpu| gpu.mig = Mig::default());
    running.start_plugin_with(&["--mig-strategy=mixed"]).await;
    counts(&running, HALF, (0, 1)).await;
    running.counts(2, 2).await;
    running.kubelet.assert_no_violations();
}

// === What is given ===

#[tokio::test]
async fn a_container_gets_the_gpus_node_and_those_of_its_instances() {
    let running = mixed(node(), &[]).await;
    counts(&running, SLICE, (3, 3)).await;
    let ids = [
        mig(&running, 0, 1),
        mig(&running, 0, 0),
        mig(&running, 1, 0),
    ];
    // Nine capabilities a GPU instance, from 3 on, and fifteen instances a GPU.
    let one = answer(&running, SLICE, &ids[..1]).await;
    let expected = [
        "/dev/nvidia0",
        "/dev/nvidia-caps/nvidia-cap21",
        "/dev/nvidia-caps/nvidia-cap22",
        "/dev/nvidiactl",
    ];
    assert_eq!(nodes(&one)[..4], expected);
    let all = answer(&running, SLICE, &ids).await;
    let expected = [
        "/dev/nvidia0",
        "/dev/nvidia-caps/nvidia-cap12",
        "/dev/nvidia-caps/nvidia-cap13",
        "/dev/nvidia-caps/nvidia-cap21",
        "/dev/nvidia-caps/nvidia-cap22",
        "/dev/nvidia1",
        "/dev/nvidia-caps/nvidia-cap147",
        "/dev/nvidia-caps/nvidia-cap148",
        "/dev/nvidiactl",
    ];
    assert_eq!(nodes(&all)[..9], expected);
    let whole = answer(&running, RESOURCE, &[running.node.uuid(2)]).await;
    assert_eq!(nodes(&whole)[..2], ["/dev/nvidia2", "/dev/nvidiactl"]);

    let cap = running.node.dev().join("nvidia-caps/nvidia-cap12");
    fs::remove_file(cap).unwrap();
    counts(&running, SLICE, (2, 3)).await;
    assert_eq!(sick(&running, SLICE), [mig(&running, 0, 0)]);
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn runtimes_know_mig_devices_by_uuid_or_index() {
    let strategies = "--device-list-strategy=envvar,volume-mounts,cdi-cri";
    let running = mixed(node(), &[strategies]).await;
    counts(&running, SLICE, (3, 3)).await;
    let uuid = mig(&running, 0, 1);
    let by_uuid = answer(&running, SLICE, std::slice::from_ref(&uuid)).await;
    let volume = format!("/var/run/nvidia-container-devices/{uuid}");
    assert_eq!(by_uuid.mounts[0].container_path, volume);
    let name = format!("gpu-device-plugin/gpu={uuid}");
    assert_eq!(by_uuid.cdi_devices[0].name, name);
    let spec = running.node.cdi_root().join("gpu-device-plugin-gpu.json");
    let spec: Value = serde_json::from_slice(&fs::read(spec).unwrap()).unwrap();
    let devices = spec["devices"].as_array().unwrap();
    for name in [uuid.as_str(), "0:1"] {
        let device = devices
            .iter()
            .find(|device| device["name"] == name)
            .unwrap();
        let nodes = device["containerEdits"]["deviceNodes"].as_array().unwrap();
        let paths: Vec<_> = nodes
            .iter()
            .map(|node| node["path"].as_str().unwrap())
            .collect();
        let caps = [
            "/dev/nvidia-caps/nvidia-cap21",
            "/dev/nvidia-caps/nvidia-cap22",
        ];
        assert_eq!(paths, ["/dev/nvidia0", caps[0], caps[1]]);
    }
    running.kubelet.assert_no_violations();

    let flags = [
        "--device-list-strategy=envvar",
        "--device-id-strategy=index",
    ];
    let running = mixed(node(), &flags).await;
    counts(&running, SLICE, (3, 3)).await;
    let ids = [mig(&running, 1, 0), mig(&running, 0, 1)];
    let by_index = answer(&running, SLICE, &ids).await;
    assert_eq!(by_index.envs["NVIDIA_VISIBLE_DEVICES"], "0:1,1:0");
}

// === What is sick ===

#[tokio::test]
async fn a_mig_device_is_sick_alone_where_the_event_names_its_instance() {
    let polls = ["--health-poll-interval", "10m"];
    let running = mixed(node(), &polls).await;
    counts(&running, SLICE, (3, 3)).await;
    running.listening(0).await;
    running.node.xid_of_mig(0, 79, (2, 0));
    counts(&running, SLICE, (2, 3)).await;
    assert_eq!(sick(&running, SLICE), [mig(&running, 0, 1)]);
    counts(&running, HALF, (1, 1)).await;

    // Now the GPU as a whole.
    running.node.xid(0, 79);
    counts(&running, SLICE, (1, 3)).await;
    counts(&running, HALF, (0, 1)).await;
    assert_eq!(
        sick(&running, SLICE),
        [mig(&running, 0, 0), mig(&running, 0, 1)]
    );
    running.counts(1, 1).await;
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn all_replicas_of_a_mig_device_are_as_healthy_as_it_is() {
    let node = node();
    let file = node.root().join("config.yaml");
    let text = "flags: {migStrategy: mixed}\n\
                sharing: {timeSlicing: {resources: [{name: mig-1g.18gb, replicas: 2}]}}\n";
    fs::write(&file, text).unwrap();
    let flag = format!("--config-file={}", file.display());
    let running = Running::on(node, options(), &[&flag]).await;
    counts(&running, SLICE, (6, 6)).await;
    counts(&running, HALF, (1, 1)).await;
    running.listening(0).await;
    running.node.xid_of_mig(0, 79, (1, 0));
    counts(&running, SLICE, (4, 6)).await;
    let uuid = mig(&running, 0, 0);
    let expected = [0, 1].map(|number| format!("{uuid}::{number}"));
    assert_eq!(sick(&running, SLICE), expected);
    running.node.lose(1);
    counts(&running, SLICE, (2, 6)).await;
    running.kubelet.assert_no_violations();
}

// === What is printed ===

fn devices(node: &SimulatedNode, more: &[&str]) -> Output {
    let mut command = Command::new(program());
    command.arg("devices").args(arguments(node, more));
    command.output().unwrap()
}

#[test]
fn devices_shows_them() {
    let node = node();
    let output = devices(&node, &["--mig-strategy=mixed"]);
    let text = String::from_utf8_lossy(&output.stdout);
    let uuid = &node.state().gpus[0].mig.instances[2].uuid;
    for line in [
        "nvidia.com/gpu: 1 devices, 1 healthy\n".to_owned(),
        "nvidia.com/mig-1g.18gb: 3 devices, 3 healthy\n".to_owned(),
        "NVIDIA H200 MIG 3g.71gb".to_owned(),
        format!("\nAllocate {uuid}: device nodes\n"),
    ] {
        assert!(text.contains(&line), "no {line} in {text}");
    }
    let output = devices(&node, &["--mig-strategy=mixed", "--output=json"]);
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    let found = json["devices"].as_array().unwrap();
    let found = found.iter().find(|device| device["id"] == **uuid).unwrap();
    assert_eq!(found["resource"], HALF);
    assert_eq!(found["mig"]["gpu_instance_id"], 3);
    assert_eq!(found["mig"]["parent_uuid"], node.uuid(0));
    let output = devices(&node, &["--mig-strategy=single", "--output=json"]);
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    let problem = json["problems"][0].as_str().unwrap();
    assert!(problem.contains("GPU 2 not in MIG mode"), "{problem}");
    assert_eq!(json["devices"].as_array().unwrap().len(), 0);
}
