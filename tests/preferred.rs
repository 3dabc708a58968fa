//! Which GPUs are preferred, and what becomes of it where the driver does not tell
//! how they are linked.

#![allow(
    clippy::unwrap_used,
    reason = "also a test's helpers fail by panicking"
)]

mod common;

use std::fs;
use std::process::{Command, Output};

use common::cube_mesh::cube_mesh;
use common::nvml::SimulatedNode;
use common::nvml::state::{EVERY_FUNCTION, Return};
use common::running::{RESOURCE, Running, arguments, options, program};
use gpu_device_plugin::api::v1beta1::{
    ContainerPreferredAllocationRequest, PreferredAllocationRequest,
};

/// The positions that are preferred of those that are free.
async fn preferred(running: &Running, free: &[usize], must: &[usize], size: i32) -> Vec<usize> {
    let uuids = |gpus: &[usize]| gpus.iter().map(|gpu| running.node.uuid(*gpu)).collect();
    let request = ContainerPreferredAllocationRequest {
        available_device_i_ds: uuids(free),
        must_include_device_i_ds: uuids(must),
        allocation_size: size,
    };
    let request = PreferredAllocationRequest {
        container_requests: vec![request],
    };
    let mut client = running.client().await;
    let answer = client.get_preferred_allocation(request).await.unwrap();
    let mut answers = answer.into_inner().container_responses;
    assert_eq!(answers.len(), 1);
    let ids = answers.remove(0).device_i_ds;
    let position = |id: &String| (0..8).find(|gpu| running.node.uuid(*gpu) == *id).unwrap();
    let mut positions: Vec<_> = ids.iter().map(position).collect();
    positions.sort_unstable();
    positions
}

/// Waits until that is what is preferred: links are read after the first list.
async fn prefers(running: &Running, free: &[usize], size: i32, expected: &[usize]) {
    let what = format!("{expected:?} of {free:?}");
    let asked = || async {
        let now = preferred(running, free, &[], size).await;
        (now == expected).then_some(())
    };
    running.eventually(&what, asked).await;
}

const ALL: [usize; 8] = [0, 1, 2, 3, 4, 5, 6, 7];

#[tokio::test]
async fn a_pod_gets_the_gpus_that_are_linked_best() {
    let node = SimulatedNode::with(8, cube_mesh);
    let running = Running::on(node, options(), &[]).await;
    prefers(&running, &ALL, 2, &[2, 3]).await;
    prefers(&running, &ALL, 4, &[0, 1, 2, 3]).await;
    prefers(&running, &[0, 4, 5, 6, 7], 4, &[4, 5, 6, 7]).await;
    assert_eq!(preferred(&running, &ALL, &[5], 2).await, [5, 6]);
    // As the kubelet asks, and takes it.
    let pod = running.kubelet.allocate(RESOURCE, 2).await.unwrap();
    let given = pod.ids.to_vec();
    assert_eq!(given, [2, 3].map(|gpu| running.node.uuid(gpu)));
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn a_link_that_goes_down_is_no_way_any_more() {
    let node = SimulatedNode::with(8, cube_mesh);
    let running = Running::on(node, options(), &[]).await;
    prefers(&running, &[0, 1, 3], 2, &[0, 3]).await;
    // GPU 0's links are numbered in the order of its peers: 2 and 3 lead to GPU 3.
    let down = |gpu: &mut common::nvml::state::Gpu| gpu.nvlinks_down = [2, 3].into();
    running.node.edit_gpu(0, down);
    prefers(&running, &[0, 1, 3], 2, &[0, 1]).await;
    running.node.edit_gpu(0, |gpu| gpu.nvlinks_down.clear());
    prefers(&running, &[0, 1, 3], 2, &[0, 3]).await;
}

#[tokio::test]
async fn what_the_driver_does_not_tell_of_links_makes_the_choice_worse_and_no_error() {
    let node = SimulatedNode::with(8, |state| {
        cube_mesh(state);
        for function in [
            "nvmlDeviceGetNvLinkState",
            "nvmlDeviceGetNvLinkRemoteDeviceType",
            "nvmlDeviceGetTopologyCommonAncestor",
        ] {
            state.fail.insert(function.to_owned(), Return::Unknown);
        }
        // One that falls off the bus while it is asked.
        state.gpus[6]
            .fail
            .insert(EVERY_FUNCTION.to_owned(), Return::GpuIsLost);
    });
    let running = Running::on(node, options(), &[]).await;
    // NUMA nodes are of sysfs.
    prefers(&running, &[1, 2, 4, 5], 2, &[1, 2]).await;
    prefers(&running, &[3, 4, 5, 7], 3, &[4, 5, 7]).await;
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn a_driver_that_hangs_over_a_link_holds_up_no_list_and_no_answer() {
    let node = SimulatedNode::with(8, |state| {
        cube_mesh(state);
        state
            .hang
            .insert("nvmlDeviceGetTopologyCommonAncestor".to_owned());
    });
    let running = Running::on(node, options(), &[]).await;
    running.counts(8, 8).await;
    assert_eq!(preferred(&running, &[1, 2, 4, 5], &[], 2).await, [1, 2]);
}

#[tokio::test]
async fn replicas_are_preferred_by_the_policy() {
    for (policy, expected) in [
        ("distributed", [(1, 0), (1, 1)]),
        ("packed", [(0, 1), (0, 2)]),
        ("different-gpus", [(0, 1), (1, 0)]),
    ] {
        let node = SimulatedNode::new(2);
        let file = node.root().join("config.yaml");
        let text = format!(
            "version: v1\nflags: {{plugin: {{sharedDevicesAllocationPolicy: {policy}}}}}\n\
             sharing: {{timeSlicing: {{resources: [{{name: gpu, replicas: 4}}]}}}}\n"
        );
        fs::write(&file, text).unwrap();
        let flag = format!("--config-file={}", file.display());
        let running = Running::on(node, options(), &[&flag]).await;
        running.counts(8, 8).await;
        let id = |(gpu, number): (usize, u32)| format!("{}::{number}", running.node.uuid(gpu));
        // Of the first GPU two are in use, of the second none; or one, for each on
        // another GPU to be another answer than the most even one.
        let used: &[_] = if policy == "packed" {
            &[(0, 0)]
        } else {
            &[(0, 0), (0, 3)]
        };
        let all = (0..2).flat_map(|gpu| (0..4).map(move |number| (gpu, number)));
        let free = all.filter(|device| !used.contains(device)).map(id);
        let request = ContainerPreferredAllocationRequest {
            available_device_i_ds: free.collect(),
            must_include_device_i_ds: Vec::new(),
            allocation_size: 2,
        };
        let request = PreferredAllocationRequest {
            container_requests: vec![request],
        };
        let mut client = running.client().await;
        let answer = client.get_preferred_allocation(request).await.unwrap();
        let mut ids = answer
            .into_inner()
            .container_responses
            .remove(0)
            .device_i_ds;
        ids.sort();
        assert_eq!(ids, expected.map(id), "{policy}");
    }
}

// === The command ===

fn topology(node: &SimulatedNode, extra: &[&str]) -> Output {
    let mut command = Command::new(program());
    command
        .args(arguments(node, &[]))
        .arg("topology")
        .args(extra);
    command.output().unwrap()
}

fn printed(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn the_matrix_is_printed_and_gpus_are_suggested_with_their_score_and_the_next_best() {
    let node = SimulatedNode::with(8, cube_mesh);
    let text = printed(&topology(&node, &["--suggest=2", "--available=0,1,3,4"]));
    let mut lines = text.lines();
    let words = |line: Option<&str>| -> Vec<String> {
        line.unwrap()
            .split_whitespace()
            .map(str::to_owned)
            .collect()
    };
    let gpus = (0..8).map(|gpu| format!("GPU{gpu}"));
    let head: Vec<_> = gpus
        .chain(["NUMA", "CPUS", "UUID"].map(str::to_owned))
        .collect();
    assert_eq!(words(lines.next()), head);
    let uuid = node.uuid(0);
    let first = [
        "GPU0", "X", "NV1", "NV1", "NV2", "NV2", "SYS", "SYS", "SYS", "0", "-",
    ];
    assert_eq!(words(lines.next()), [&first[..], &[uuid.as_str()]].concat());
    assert!(
        text.contains("NV2    2 NVLinks, 50.0 GB/s each way\n"),
        "{text}"
    );
    assert!(
        text.contains("SYS    the link between NUMA nodes\n"),
        "{text}"
    );
    let suggested = "\
2 of 4 GPUs: GPU0 GPU3
  links among them: 50 GB/s of NVLink, 1 x PHB
  left for the next request: 0 GB/s of NVLink, 1 x SYS
  NUMA nodes: 1
next best: GPU0 GPU4
  links among them: 50 GB/s of NVLink, 1 x SYS
";
    assert!(text.contains(suggested), "{text}");
    assert!(
        text.ends_with("  its links are fewer or longer\n"),
        "{text}"
    );
}

#[test]
fn the_same_for_programs() {
    let node = SimulatedNode::new(4);
    let text = printed(&topology(
        &node,
        &["-o=json", "--suggest=2", "--must-include=3"],
    ));
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["gpus"][1]["uuid"], node.uuid(1));
    assert_eq!(json["gpus"][3]["numa_node"], 1);
    assert_eq!(json["links"][0][0], serde_json::Value::Null);
    assert_eq!(json["links"][0][1]["nvlinks"], 18);
    assert_eq!(json["links"][0][1]["nvlink_bandwidth"], 18 * 26_562);
    assert_eq!(json["links"][0][3]["pcie"], "SYS");
    let suggested = [2, 3].map(|gpu| node.uuid(gpu));
    assert_eq!(json["suggestion"]["gpus"], serde_json::json!(suggested));
    assert_eq!(json["suggestion"]["own"]["nvlink_gb_s"], 478);
    assert_eq!(json["next_best"]["own"]["sys"], 1);
}

#[test]
fn what_cannot_be_suggested_is_said_with_its_flag() {
    let node = SimulatedNode::new(2);
    for (flags, code, expected) in [
        (
            &["--suggest=3"][..],
            1,
            "--suggest 3: only 2 GPUs are available",
        ),
        (
            &["--suggest=1", "--available=7"],
            1,
            "--available: this node has no GPU \"7\"",
        ),
        (
            &["--suggest=1", "--must-include=0,1"],
            1,
            "--must-include names 2 GPUs, --suggest asks for 1",
        ),
        (
            &["--suggest=none"],
            64,
            "--suggest: \"none\" is no number of GPUs",
        ),
        (&["--available=1"], 64, "--available: needs --suggest N"),
    ] {
        let output = topology(&node, flags);
        assert_eq!(output.status.code(), Some(code), "{flags:?}");
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(told.contains(&format!("error: {expected}\n")), "{told}");
    }
}
