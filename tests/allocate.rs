//! What a container gets with its devices, and what is refused.

#![allow(
    clippy::unwrap_used,
    reason = "also a test's helpers fail by panicking"
)]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::path::PathBuf;

use common::nvml::{DRIVER_LIBRARIES, Purpose, SimulatedNode};
use common::running::{RESOURCE, Running, allocate, options};
use gpu_device_plugin::api::v1beta1::{AllocateResponse, ContainerAllocateResponse};
use tonic::Code;

fn only(response: AllocateResponse) -> ContainerAllocateResponse {
    let mut responses = response.container_responses;
    assert_eq!(responses.len(), 1, "one answer a container request");
    responses.remove(0)
}

fn nodes(answer: &ContainerAllocateResponse) -> Vec<&str> {
    let devices = answer.devices.iter();
    devices.map(|d| d.container_path.as_str()).collect()
}

/// The node's only loader folder of Debian's kind, as a container sees it.
fn multiarch(running: &Running) -> String {
    let folder = running.node.driver_library_dir();
    let inside = folder.strip_prefix(running.node.driver_root()).unwrap();
    format!("/{}", inside.display())
}

// === What is given ===

#[tokio::test]
async fn a_container_gets_its_gpus_nodes_and_the_drivers_read_and_write() {
    let running = Running::start(4).await;
    let answer = only(running.allocate(&[2]).await.unwrap());
    let expected = [
        "/dev/nvidia2",
        "/dev/nvidiactl",
        "/dev/nvidia-uvm",
        "/dev/nvidia-uvm-tools",
    ];
    assert_eq!(nodes(&answer), expected);
    let dev_root = running.node.dev_root();
    for device in &answer.devices {
        assert_eq!(device.permissions, "rw");
        let host = format!("{}{}", dev_root.display(), device.container_path);
        assert_eq!(device.host_path, host);
        assert!(Path::new(&host).exists());
    }
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn optional_nodes_are_given_where_they_exist_and_only_there() {
    let running = Running::start(1).await;
    fs::write(running.node.dev().join("nvidia-modeset"), "").unwrap();
    fs::remove_file(running.node.dev().join("nvidia-uvm-tools")).unwrap();
    let expected = [
        "/dev/nvidia0",
        "/dev/nvidiactl",
        "/dev/nvidia-uvm",
        "/dev/nvidia-modeset",
    ];
    running
        .eventually("the nodes that there are", || async {
            let answer = only(running.allocate(&[0]).await.ok()?);
            (nodes(&answer) == expected).then_some(())
        })
        .await;
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn every_library_is_bound_read_only_at_its_soname_in_each_loader_folder() {
    let running = Running::start(1).await;
    let answer = only(running.allocate(&[0]).await.unwrap());
    let version = running.node.state().driver_version;
    let whole = "/usr/local/nvidia";
    let mut expected = BTreeSet::from(["/usr/bin/nvidia-smi", whole].map(str::to_owned));
    // By which some programs load it.
    expected.insert(format!("{}/libcuda.so", multiarch(&running)));
    expected.insert("/usr/lib64/libcuda.so".into());
    for library in DRIVER_LIBRARIES {
        if library.purpose != Purpose::Graphics {
            let soname = library.soname(&version);
            expected.insert(format!("{}/{soname}", multiarch(&running)));
            expected.insert(format!("/usr/lib64/{soname}"));
        }
    }
    let inside: Vec<_> = answer
        .mounts
        .iter()
        .map(|m| m.container_path.clone())
        .collect();
    assert_eq!(inside.len(), expected.len(), "each path once: {inside:#?}");
    assert_eq!(inside.into_iter().collect::<BTreeSet<_>>(), expected);
    for mount in &answer.mounts {
        assert!(mount.read_only, "{mount:?}");
        let file = fs::symlink_metadata(&mount.host_path).unwrap();
        let is_whole = mount.container_path == whole;
        assert_eq!(file.is_dir(), is_whole, "no link: {mount:?}");
        assert_eq!(file.is_file(), !is_whole, "no link: {mount:?}");
        assert!(Path::new(&mount.host_path).starts_with(running.node.volumes()));
    }
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn no_variable_is_set_so_that_the_images_own_stay() {
    let running = Running::start(2).await;
    let answer = only(running.allocate(&[0, 1]).await.unwrap());
    assert!(answer.envs.is_empty(), "{:?}", answer.envs);
    assert!(answer.annotations.is_empty());
    assert!(answer.cdi_devices.is_empty());
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn a_device_node_is_named_by_its_minor_number_and_not_by_its_index() {
    let node = SimulatedNode::with(2, |state| {
        state.gpus[0].minor_number = 5;
        state.gpus[1].minor_number = 3;
    });
    let running = Running::on(node, options(), &[]).await;
    let answer = only(running.allocate(&[0, 1]).await.unwrap());
    assert_eq!(nodes(&answer)[..2], ["/dev/nvidia5", "/dev/nvidia3"]);
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn the_driver_root_of_the_host_is_what_the_kubelet_hears_of() {
    let node = SimulatedNode::new(1);
    let here = node.driver_root().display().to_string();
    let extra = [
        "--driver-root",
        "/run/nvidia/driver",
        "--driver-root-ctr-path",
        &here,
        "--driver-volume=never",
    ];
    let running = Running::on(node, options(), &extra).await;
    running.counts(1, 1).await;
    let answer = only(running.allocate(&[0]).await.unwrap());
    assert!(!answer.mounts.is_empty());
    for mount in &answer.mounts {
        let host = Path::new(&mount.host_path);
        let inside = host.strip_prefix("/run/nvidia/driver").unwrap();
        assert!(running.node.driver_root().join(inside).is_file());
    }
    running.kubelet.assert_no_violations();
}

// === How it is asked ===

#[tokio::test]
async fn scenario_29_the_same_devices_in_any_order_are_the_same_answer() {
    let running = Running::start(4).await;
    let first = running.allocate(&[0, 1, 2, 3]).await.unwrap();
    let own: Vec<_> = (0..4).map(|minor| format!("/dev/nvidia{minor}")).collect();
    assert_eq!(nodes(&only(first.clone()))[..4], own);
    for order in [[3, 2, 1, 0], [2, 0, 3, 1], [1, 3, 0, 2]] {
        assert_eq!(running.allocate(&order).await.unwrap(), first);
    }
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn scenario_30_the_same_device_may_be_allocated_again() {
    let running = Running::start(2).await;
    let first = running.allocate(&[1]).await.unwrap();
    assert_eq!(running.allocate(&[1]).await.unwrap(), first);
    // And named twice, it is one device.
    assert_eq!(running.allocate(&[1, 1]).await.unwrap(), first);
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn each_container_request_has_one_answer_in_its_place() {
    let running = Running::start(3).await;
    let id = |position| running.node.uuid(position);
    let mut client = running.client().await;
    let containers = vec![vec![id(2)], vec![id(0), id(1)], vec![id(2)]];
    let answer = allocate(&mut client, containers).await.unwrap();
    let answers = &answer.container_responses;
    assert_eq!(answers.len(), 3);
    assert_eq!(nodes(&answers[0])[0], "/dev/nvidia2");
    assert_eq!(nodes(&answers[1])[..2], ["/dev/nvidia0", "/dev/nvidia1"]);
    assert_eq!(answers[2], answers[0]);
    let none = allocate(&mut client, Vec::new()).await.unwrap();
    assert!(none.container_responses.is_empty());
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn pods_are_admitted_side_by_side() {
    let running = Running::start(8).await;
    let mut clients = Vec::new();
    for position in 0..8 {
        clients.push((running.client().await, running.node.uuid(position)));
    }
    let mut tasks = tokio::task::JoinSet::new();
    for (mut client, id) in clients {
        tasks.spawn(async move {
            for _ in 0..20 {
                allocate(&mut client, vec![vec![id.clone()]]).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    let sample = r#"allocated_devices_total{resource="nvidia.com/gpu"}"#;
    assert_eq!(running.metric(sample).await, Some(160.0));
    running.kubelet.assert_no_violations();
}

// === What is refused ===

#[tokio::test]
async fn scenario_28_an_unknown_device_is_refused_and_changes_nothing() {
    let running = Running::start(2).await;
    let known = running.node.uuid(0);
    let mut client = running.client().await;
    for unknown in [
        "GPU-unknown",
        "",
        &known[..known.len() - 1],
        "GPU-00000000::0",
    ] {
        let ids = vec![known.clone(), unknown.to_owned()];
        let refused = allocate(&mut client, vec![ids]).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(
            refused.message().contains(&format!("{unknown:?}")),
            "{refused}"
        );
    }
    let nothing = allocate(&mut client, vec![Vec::new()]).await.unwrap_err();
    assert_eq!(nothing.code(), Code::InvalidArgument);
    let sample = r#"allocated_devices_total{resource="nvidia.com/gpu"}"#;
    assert_eq!(running.metric(sample).await, None);
    running.counts(2, 2).await;
    running.kubelet.allocate(RESOURCE, 2).await.unwrap();
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn scenario_28_an_unhealthy_device_is_refused_with_the_reason() {
    let running = Running::start(2).await;
    running.listening(1).await;
    running.node.xid(1, 79);
    running.counts(1, 2).await;
    let mut client = running.client().await;
    let containers = [
        vec![vec![running.node.uuid(1)]],
        vec![vec![running.node.uuid(0), running.node.uuid(1)]],
        vec![vec![running.node.uuid(0)], vec![running.node.uuid(1)]],
    ];
    for containers in containers {
        let refused = allocate(&mut client, containers).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        let uuid = running.node.uuid(1);
        let reason = "XID 79 (GPU has fallen off the bus)";
        let expected = format!("device {uuid} is unhealthy: {reason}");
        assert_eq!(refused.message(), expected);
    }
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn a_file_that_is_gone_is_refused_and_never_made_by_a_runtime() {
    type Place = fn(&SimulatedNode) -> PathBuf;
    let gone: [(&str, Place); 7] = [
        ("auto", |node| node.dev().join("nvidia1")),
        ("auto", |node| node.dev().join("nvidia-uvm")),
        ("auto", |node| node.dev().join("nvidia-uvm-tools")),
        ("auto", |node| node.volume().join("bin/nvidia-smi")),
        ("auto", |node| node.volume().join("lib64/libcuda.so.1")),
        ("never", |node| {
            node.driver_root().join("usr/bin/nvidia-smi")
        }),
        ("never", |node| {
            let version = node.state().driver_version;
            let folder = node.driver_library_dir();
            folder.join(format!("libcuda.so.{version}"))
        }),
    ];
    for (volume, path) in gone {
        // Nothing is looked at between two polls but by Allocate itself.
        let flags = [
            "--health-poll-interval",
            "10m",
            "--make-device-nodes=false",
            "--driver-volume",
            volume,
        ];
        let running = Running::on(SimulatedNode::new(2), options(), &flags).await;
        running.counts(2, 2).await;
        running.allocate(&[1]).await.unwrap();
        let path = path(&running.node);
        fs::rename(&path, path.with_extension("aside")).unwrap();
        let refused = running.allocate(&[1]).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        let message = format!("{} does not exist any more", path.display());
        assert!(refused.message().contains(&message), "{refused}");
        running.kubelet.assert_no_violations();
    }
}

// === What the kubelet keeps ===

#[tokio::test]
async fn scenario_16_after_a_reboot_pods_start_from_the_kubelets_record_and_it_still_holds() {
    let mut running = Running::start(2).await;
    let pod = running.kubelet.allocate(RESOURCE, 2).await.unwrap();
    running.kill_plugin().await;
    running.kubelet.stop().await;
    running.start_plugin().await;
    running.kubelet.start().await.unwrap();
    running.counts(2, 2).await;
    let again = running.kubelet.admit(&pod.pod, RESOURCE, 2).await.unwrap();
    assert_eq!(again, pod);
    let fresh = only(running.allocate(&[0, 1]).await.unwrap());
    assert_eq!(again.response, fresh, "what it would be given today");
    running.kubelet.assert_no_violations();
}
