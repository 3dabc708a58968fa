//! The ways in which a container is given its devices, singly and together.

#![allow(
    clippy::unwrap_used,
    reason = "also a test's helpers fail by panicking"
)]

mod common;

use std::collections::BTreeMap;
use std::fs;

use common::kubelet::KubeletPeer;
use common::nvml::SimulatedNode;
use common::running::{Running, allocate, options};
use gpu_device_plugin::api::v1beta1::ContainerAllocateResponse;
use tonic::Code;

const VOLUMES: &str = "/var/run/nvidia-container-devices";

/// A plugin with these flags on a node that is its host's `/`, all devices
/// healthy.
async fn served(node: SimulatedNode, gpus: usize, flags: &[&str]) -> Running {
    let root = node.as_host_root();
    let flags: Vec<_> = root
        .iter()
        .map(String::as_str)
        .chain(flags.iter().copied())
        .collect();
    let running = Running::on(node, options(), &flags).await;
    running.counts(gpus, gpus).await;
    running
}

async fn start(gpus: usize, flags: &[&str]) -> Running {
    served(SimulatedNode::new(gpus), gpus, flags).await
}

/// The same on a node with all that may be beside the GPUs, all of it wanted.
async fn with_extras(strategies: &str, more: &[&str]) -> Running {
    let node = SimulatedNode::new(2);
    node.add_extras();
    let strategies = format!("--device-list-strategy={strategies}");
    let flags = [
        &strategies,
        "--gds-enabled",
        "--gdrcopy-enabled=true",
        "--mofed-enabled",
        "--imex-channel-ids=0",
    ];
    served(node, 2, &[&flags[..], more].concat()).await
}

/// The answer for one container, and that no violation was seen.
async fn answer(running: &Running, positions: &[usize]) -> ContainerAllocateResponse {
    let mut answer = running.allocate(positions).await.unwrap();
    assert_eq!(answer.container_responses.len(), 1);
    running.kubelet.assert_no_violations();
    answer.container_responses.remove(0)
}

fn nodes(answer: &ContainerAllocateResponse) -> Vec<&str> {
    let devices = answer.devices.iter();
    devices.map(|d| d.container_path.as_str()).collect()
}

fn mounts(answer: &ContainerAllocateResponse) -> Vec<&str> {
    let mounts = answer.mounts.iter();
    mounts.map(|m| m.container_path.as_str()).collect()
}

fn names(answer: &ContainerAllocateResponse) -> Vec<&str> {
    let devices = answer.cdi_devices.iter();
    devices.map(|d| d.name.as_str()).collect()
}

fn variables<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
    pairs
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// Nothing but variables.
#[track_caller]
fn assert_only_variables(answer: &ContainerAllocateResponse) {
    let variables = ContainerAllocateResponse {
        envs: answer.envs.clone(),
        ..ContainerAllocateResponse::default()
    };
    assert_eq!(*answer, variables);
}

// === Singly ===

#[tokio::test]
async fn envvar_is_the_list_of_uuids_and_nothing_else() {
    let running = start(4, &["--device-list-strategy=envvar"]).await;
    let answer = answer(&running, &[3, 1]).await;
    let ids = format!("{},{}", running.node.uuid(1), running.node.uuid(3));
    assert_eq!(answer.envs, variables([("NVIDIA_VISIBLE_DEVICES", &ids)]));
    assert_only_variables(&answer);
}

#[tokio::test]
async fn indexes_are_those_of_nvml_in_their_order() {
    // The order of the UUIDs is another one.
    let node = SimulatedNode::with(3, |state| {
        let (first, last) = (state.gpus[0].uuid.clone(), state.gpus[2].uuid.clone());
        state.gpus[0].uuid = last;
        state.gpus[2].uuid = first;
    });
    let flags = [
        "--device-list-strategy=envvar,cdi-cri",
        "--device-id-strategy=index",
    ];
    let running = served(node, 3, &flags).await;
    let two = answer(&running, &[0, 2]).await;
    assert_eq!(two.envs, variables([("NVIDIA_VISIBLE_DEVICES", "0,2")]));
    assert_eq!(
        names(&two),
        ["gpu-device-plugin/gpu=0", "gpu-device-plugin/gpu=2"]
    );
    let one = answer(&running, &[1]).await;
    assert_eq!(one.envs, variables([("NVIDIA_VISIBLE_DEVICES", "1")]));
}

#[tokio::test]
async fn volume_mounts_are_a_mount_of_dev_null_a_device() {
    let running = start(2, &["--device-list-strategy=volume-mounts"]).await;
    let answer = answer(&running, &[0, 1]).await;
    assert_eq!(
        answer.envs,
        variables([("NVIDIA_VISIBLE_DEVICES", VOLUMES)])
    );
    let expected = [0, 1].map(|gpu| format!("{VOLUMES}/{}", running.node.uuid(gpu)));
    assert_eq!(mounts(&answer), expected);
    assert!(answer.mounts.iter().all(|m| m.host_path == "/dev/null"));
    assert!(answer.devices.is_empty());
}

#[tokio::test]
async fn cdi_cri_names_devices_of_our_spec_and_nothing_else() {
    let running = start(2, &["--device-list-strategy=cdi-cri"]).await;
    let answer = answer(&running, &[1, 0]).await;
    let expected = [0, 1].map(|gpu| format!("gpu-device-plugin/gpu={}", running.node.uuid(gpu)));
    assert_eq!(names(&answer), expected);
    let only = ContainerAllocateResponse {
        cdi_devices: answer.cdi_devices.clone(),
        ..ContainerAllocateResponse::default()
    };
    assert_eq!(answer, only);
}

#[tokio::test]
async fn cdi_annotations_have_a_key_of_their_own_for_each_set_of_devices() {
    let running = start(3, &["--device-list-strategy=cdi-annotations"]).await;
    let key = |answer: &ContainerAllocateResponse| {
        assert_eq!(answer.annotations.len(), 1);
        let key = answer.annotations.keys().next().unwrap();
        let name = key.strip_prefix("cdi.k8s.io/gpu-device-plugin_").unwrap();
        assert!(name.bytes().all(|letter| letter.is_ascii_alphanumeric()));
        assert!(key.len() - "cdi.k8s.io/".len() <= 63, "{key}");
        key.clone()
    };
    let both = answer(&running, &[0, 1]).await;
    let ids = [0, 1].map(|gpu| format!("gpu-device-plugin/gpu={}", running.node.uuid(gpu)));
    assert_eq!(both.annotations[&key(&both)], ids.join(","));
    let only = ContainerAllocateResponse {
        annotations: both.annotations.clone(),
        ..ContainerAllocateResponse::default()
    };
    assert_eq!(both, only);
    assert_eq!(answer(&running, &[1, 0]).await, both);
    let mut keys = vec![key(&both)];
    for others in [&[0][..], &[1], &[0, 2], &[0, 1, 2]] {
        keys.push(key(&answer(&running, others).await));
    }
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), 5, "{keys:?}");
}

#[tokio::test]
async fn cdi_annotations_begin_as_the_operator_says() {
    let flags = [
        "--device-list-strategy=cdi-annotations",
        "--cdi-annotation-prefix=example.com/own-",
    ];
    let running = start(1, &flags).await;
    let answer = answer(&running, &[0]).await;
    let key = answer.annotations.keys().next().unwrap();
    assert!(
        key.starts_with("example.com/own-gpu-device-plugin_"),
        "{key}"
    );
}

// === Together ===

#[tokio::test]
async fn several_are_each_in_the_answer() {
    let all = "--device-list-strategy=mounts,envvar,cdi-annotations,cdi-cri";
    let running = start(2, &[all]).await;
    let both = answer(&running, &[0]).await;
    let alone = Running::start(2).await;
    let driver = answer(&alone, &[0]).await;
    assert_eq!(mounts(&both), mounts(&driver));
    assert_eq!(nodes(&both), nodes(&driver));
    assert_eq!(both.envs["NVIDIA_VISIBLE_DEVICES"], running.node.uuid(0));
    assert_eq!(names(&both).len(), 1);
    let annotation = both.annotations.values().next().unwrap();
    assert_eq!(names(&both), [annotation]);
}

#[tokio::test]
async fn beside_volumes_the_variable_says_where_they_are() {
    let flags = [
        "--device-list-strategy=volume-mounts",
        "--device-list-strategy=envvar",
    ];
    let running = start(1, &flags).await;
    let answer = answer(&running, &[0]).await;
    assert_eq!(
        answer.envs,
        variables([("NVIDIA_VISIBLE_DEVICES", VOLUMES)])
    );
    let volume = format!("{VOLUMES}/{}", running.node.uuid(0));
    assert_eq!(mounts(&answer), [volume]);
}

#[tokio::test]
async fn device_nodes_are_given_beside_nvidias_ways_where_asked_for_and_once() {
    const EXPECTED: [&str; 4] = [
        "/dev/nvidia0",
        "/dev/nvidiactl",
        "/dev/nvidia-uvm",
        "/dev/nvidia-uvm-tools",
    ];
    for (strategies, expected) in [
        ("envvar", &EXPECTED[..]),
        ("volume-mounts", &EXPECTED[..]),
        ("mounts,envvar", &EXPECTED[..]),
        ("envvar,cdi-cri", &EXPECTED[..]),
        // The spec has them.
        ("cdi-cri,cdi-annotations", &[]),
    ] {
        let strategies = format!("--device-list-strategy={strategies}");
        let running = start(1, &[&strategies, "--pass-device-specs"]).await;
        let answer = answer(&running, &[0]).await;
        assert_eq!(nodes(&answer), expected, "{strategies}");
        for device in &answer.devices {
            assert_eq!(
                device.host_path,
                format!("/dev-root{}", device.container_path)
            );
            assert_eq!(device.permissions, "rw");
        }
    }
}

#[tokio::test]
async fn the_same_devices_are_the_same_answer_by_any_way() {
    let all = "mounts,envvar,volume-mounts,cdi-annotations,cdi-cri";
    let running = with_extras(all, &["--pass-device-specs"]).await;
    let first = answer(&running, &[0, 1]).await;
    assert_eq!(answer(&running, &[1, 0]).await, first);
    let mut client = running.client().await;
    let id = |position| running.node.uuid(position);
    let twice = vec![vec![id(1), id(0), id(1)], vec![id(0), id(1)]];
    let twice = allocate(&mut client, twice).await.unwrap();
    assert_eq!(twice.container_responses, [first.clone(), first]);
}

// === What has to be there ===

#[tokio::test]
async fn nvidias_ways_need_neither_device_nodes_nor_the_drivers_files() {
    for strategy in ["envvar", "volume-mounts"] {
        let node = SimulatedNode::new(2);
        fs::remove_dir_all(node.driver_root()).unwrap();
        for name in ["nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"] {
            fs::remove_file(node.dev().join(name)).unwrap();
        }
        let strategy = format!("--device-list-strategy={strategy}");
        let running = served(node, 2, &[&strategy]).await;
        running.ready().await;
        answer(&running, &[0, 1]).await;
        // But they need GPUs that are well.
        running.node.lose(1);
        running.counts(1, 2).await;
        let refused = running.allocate(&[1]).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        running.kubelet.assert_no_violations();
    }
}

#[tokio::test]
async fn device_specs_have_to_be_there_also_beside_nvidias_ways() {
    let flags = ["--device-list-strategy=envvar", "--pass-device-specs"];
    let running = start(1, &flags).await;
    fs::remove_file(running.node.dev().join("nvidia-uvm")).unwrap();
    let refused = running.allocate(&[0]).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    running.counts(0, 1).await;
    running.kubelet.assert_no_violations();
}

// === What goes beside the GPUs ===

#[tokio::test]
async fn for_nvidias_runtime_extras_are_variables() {
    let running = with_extras("envvar", &[]).await;
    let answer = answer(&running, &[0]).await;
    let expected = variables([
        ("NVIDIA_VISIBLE_DEVICES", &running.node.uuid(0)),
        ("NVIDIA_GDS", "enabled"),
        ("NVIDIA_GDRCOPY", "enabled"),
        ("NVIDIA_MOFED", "enabled"),
        ("NVIDIA_IMEX_CHANNELS", "0"),
    ]);
    assert_eq!(answer.envs, expected);
    assert_only_variables(&answer);
}

#[tokio::test]
async fn among_volumes_the_imex_channel_is_one() {
    let running = with_extras("volume-mounts", &[]).await;
    let answer = answer(&running, &[1]).await;
    let expected = variables([
        ("NVIDIA_VISIBLE_DEVICES", VOLUMES),
        ("NVIDIA_GDS", "enabled"),
        ("NVIDIA_GDRCOPY", "enabled"),
        ("NVIDIA_MOFED", "enabled"),
    ]);
    assert_eq!(answer.envs, expected);
    let volume = format!("{VOLUMES}/{}", running.node.uuid(1));
    let channel = format!("{VOLUMES}/imex/0");
    assert_eq!(mounts(&answer), [volume, channel]);
}

#[tokio::test]
async fn for_mounts_extras_are_nodes_and_files() {
    const EXTRAS: [&str; 6] = [
        "/dev/nvidia-fs0",
        "/dev/nvidia-fs1",
        "/dev/gdrdrv",
        "/dev/infiniband/uverbs0",
        "/dev/infiniband/rdma_cm",
        "/dev/nvidia-caps-imex-channels/channel0",
    ];
    let running = with_extras("mounts", &[]).await;
    let answer = answer(&running, &[0]).await;
    let nodes = nodes(&answer);
    assert_eq!(nodes[nodes.len() - EXTRAS.len()..], EXTRAS);
    assert!(answer.envs.is_empty());
    for path in ["/run/udev", "/etc/cufile.json"] {
        let mut mounts = answer.mounts.iter();
        let mount = mounts.find(|m| m.container_path == path).unwrap();
        assert_eq!(mount.host_path, path);
        assert!(mount.read_only);
    }
}

#[tokio::test]
async fn of_device_specs_beside_nvidias_ways_the_channel_is_one() {
    let running = with_extras("envvar", &["--pass-device-specs"]).await;
    let answer = answer(&running, &[0]).await;
    let expected = [
        "/dev/nvidia0",
        "/dev/nvidiactl",
        "/dev/nvidia-uvm",
        "/dev/nvidia-uvm-tools",
        "/dev/nvidia-caps-imex-channels/channel0",
    ];
    assert_eq!(nodes(&answer), expected);
}

#[tokio::test]
async fn what_a_node_has_not_is_left_out() {
    let flags = [
        "--device-list-strategy=mounts,envvar,volume-mounts,cdi-cri",
        "--gds-enabled",
        "--gdrcopy-enabled",
        "--mofed-enabled",
        "--imex-channel-ids=0",
    ];
    let running = start(1, &flags).await;
    let without = answer(&running, &[0]).await;
    assert_eq!(nodes(&without).len(), 4, "{without:?}");
    assert!(!without.envs.contains_key("NVIDIA_IMEX_CHANNELS"));
    assert!(
        mounts(&without)
            .iter()
            .all(|mount| !mount.contains("imex") && !mount.contains("udev"))
    );
    // And given once it is there.
    running.node.add_extras();
    running
        .eventually("the extras in the answer", || async {
            let answer = running.allocate(&[0]).await.ok()?;
            let answer = &answer.container_responses[0];
            let imex = answer.envs.get("NVIDIA_IMEX_CHANNELS")?;
            (imex == "0" && nodes(answer).len() == 10).then_some(())
        })
        .await;
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn no_gpu_is_given_without_an_imex_channel_that_is_required() {
    for strategy in ["mounts", "envvar", "cdi-cri"] {
        let node = SimulatedNode::new(2);
        let kubelet = KubeletPeer::new(node.device_plugin_dir(), options());
        kubelet.start().await.unwrap();
        let strategy = format!("--device-list-strategy={strategy}");
        let flags = [&strategy, "--imex-channel-ids=0", "--imex-required"];
        let running = Running::unregistered(node, kubelet, &flags).await;
        running.counts(0, 2).await;
        let refused = running.allocate(&[0]).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        let reason = "nvidia-caps-imex-channels/channel0 does not exist, and --imex-required";
        assert!(refused.message().contains(reason), "{refused}");
        running.node.add_extras();
        running.counts(2, 2).await;
        answer(&running, &[0, 1]).await;
    }
}
