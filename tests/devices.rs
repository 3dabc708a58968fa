//! The `devices` command.

#![allow(clippy::expect_used, reason = "a test's helper ends the test")]

mod common;

use std::process::{Command, Output};

use common::nvml::{Return, SimulatedNode};
use serde_json::Value;

fn devices(node: &SimulatedNode, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_gpu-device-plugin"))
        .arg("devices")
        .args(arguments)
        .args(node.plugin_arguments())
        .output()
        .expect("start the plugin")
}

fn json(node: &SimulatedNode) -> Value {
    let output = devices(node, &["--output", "json"]);
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("JSON on standard output")
}

fn paths(device: &Value, kind: &str) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().expect("a string").to_owned();
    let entries = device["allocate"][kind].as_array().expect("an answer");
    entries
        .iter()
        .map(|e| (text(&e["container_path"]), text(&e["host_path"])))
        .collect()
}

#[test]
fn every_gpu_is_described() {
    let node = SimulatedNode::with(2, |state| {
        state.gpus[0].numa_node = Some(1);
        state.gpus[1].numa_node = None;
    });
    let report = json(&node);
    assert_eq!(report["resources"], serde_json::json!(["nvidia.com/gpu"]));
    let devices = report["devices"].as_array().unwrap();
    assert_eq!(devices.len(), 2);
    for (index, device) in devices.iter().enumerate() {
        let simulated = &node.state().gpus[index];
        let gpu = &device["gpu"];
        assert_eq!(device["id"], simulated.uuid);
        assert_eq!(device["health"], "Healthy");
        assert_eq!(gpu["index"], index);
        assert_eq!(gpu["minor_number"], simulated.minor_number);
        assert_eq!(gpu["pci_bus_id"], simulated.pci_bus_id);
        assert_eq!(gpu["memory_bytes"], simulated.memory_bytes);
        assert_eq!(gpu["product_name"], simulated.name);
        assert_eq!(
            gpu["numa_node"].as_u64(),
            simulated.numa_node.map(u64::from)
        );
    }
}

#[test]
fn the_answer_names_nodes_and_libraries_that_exist() {
    let node = SimulatedNode::new(2);
    let report = json(&node);
    let device = &report["devices"][1];
    let nodes = paths(device, "devices");
    let inside: Vec<_> = nodes
        .iter()
        .map(|(container, _)| container.as_str())
        .collect();
    let expected = [
        "/dev/nvidia1",
        "/dev/nvidiactl",
        "/dev/nvidia-uvm",
        "/dev/nvidia-uvm-tools",
    ];
    assert_eq!(inside, expected);
    for (container, host) in nodes {
        assert_eq!(host, format!("{}{container}", node.dev_root().display()));
    }
    let mounts = paths(device, "mounts");
    for folder in ["/usr/lib/x86_64-linux-gnu", "/usr/lib64"] {
        for soname in [
            "libcuda.so.1",
            "libnvidia-ml.so.1",
            "libnvidia-ptxjitcompiler.so.1",
        ] {
            let inside = format!("{folder}/{soname}");
            assert!(
                mounts.iter().any(|(container, _)| *container == inside),
                "{inside}"
            );
        }
    }
    assert!(
        mounts
            .iter()
            .any(|(container, _)| container == "/usr/bin/nvidia-smi")
    );
    for (_, host) in mounts {
        assert!(std::path::Path::new(&host).is_file(), "{host}");
    }
}

#[test]
fn the_answer_by_other_ways_is_shown_and_no_spec_is_written() {
    let node = SimulatedNode::new(2);
    let strategies = "--device-list-strategy=volume-mounts,cdi-cri,cdi-annotations";
    let output = devices(&node, &["--output", "json", strategies]);
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let answer = &report["devices"][1]["allocate"];
    let name = format!("gpu-device-plugin/gpu={}", node.uuid(1));
    assert_eq!(answer["cdi_devices"], serde_json::json!([name]));
    let annotations = answer["annotations"].as_object().unwrap();
    assert_eq!(annotations.values().collect::<Vec<_>>(), [&name]);
    let folder = "/var/run/nvidia-container-devices";
    assert_eq!(answer["environment"]["NVIDIA_VISIBLE_DEVICES"], folder);
    let volume = (format!("{folder}/{}", node.uuid(1)), "/dev/null".to_owned());
    assert_eq!(paths(&report["devices"][1], "mounts"), [volume]);
    assert_eq!(answer["devices"], serde_json::json!([]));
    assert!(!node.cdi_root().exists());

    let output = devices(&node, &[strategies]);
    let text = String::from_utf8_lossy(&output.stdout);
    for (gpu, what, line) in [
        (
            0,
            "mounts",
            format!("{folder}/{}  rw  /dev/null", node.uuid(0)),
        ),
        (
            1,
            "mounts",
            format!("{folder}/{}  rw  /dev/null", node.uuid(1)),
        ),
        (1, "environment", format!("NVIDIA_VISIBLE_DEVICES={folder}")),
        (
            1,
            "annotations",
            format!("cdi.k8s.io/gpu-device-plugin_{}={name}", key(annotations)),
        ),
        (1, "CDI devices", name.clone()),
    ] {
        let section = format!("\nAllocate {}: {what}\n  {line}\n", node.uuid(gpu));
        assert!(text.contains(&section), "no {section}in {text}");
    }
}

/// What tells the key of the one annotation from others.
fn key(annotations: &serde_json::Map<String, Value>) -> &str {
    let key = annotations.keys().next().expect("an annotation");
    key.rsplit('_').next().expect("a part")
}

#[test]
fn one_gpu_that_cannot_be_read_leaves_the_others_and_is_listed_with_the_reason() {
    let node = SimulatedNode::new(3);
    node.fail(1, "nvmlDeviceGetMinorNumber", Return::Unknown);
    let report = json(&node);
    let devices = report["devices"].as_array().unwrap();
    let health: Vec<_> = devices
        .iter()
        .map(|d| d["health"].as_str().unwrap())
        .collect();
    assert_eq!(health, ["Healthy", "Unhealthy", "Healthy"]);
    assert!(
        devices[1]["reason"]
            .as_str()
            .unwrap()
            .contains("nvmlDeviceGetMinorNumber")
    );
    assert!(devices[1].get("allocate").is_none());
}

#[test]
fn a_gpu_without_an_identity_is_a_problem_and_the_others_are_served() {
    let node = SimulatedNode::new(3);
    node.fail(1, "nvmlDeviceGetUUID", Return::GpuIsLost);
    let report = json(&node);
    assert_eq!(report["devices"].as_array().unwrap().len(), 2);
    assert!(
        report["problems"][0].as_str().unwrap().contains("index 1"),
        "{report}"
    );
}

#[test]
fn a_lost_gpu_is_told_though_the_library_knows_its_name() {
    let node = SimulatedNode::new(2);
    node.lose(0);
    let report = json(&node);
    assert_eq!(report["devices"][0]["health"], "Unhealthy");
    assert!(
        report["devices"][0]["reason"]
            .as_str()
            .unwrap()
            .contains("lost"),
        "{report}"
    );
    assert_eq!(report["devices"][1]["health"], "Healthy");
}

#[test]
fn a_device_node_that_is_missing_is_named_with_the_remedy() {
    let node = SimulatedNode::new(1);
    std::fs::remove_file(node.dev().join("nvidia-uvm")).unwrap();
    let report = json(&node);
    let reason = report["devices"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("dev/nvidia-uvm does not exist"), "{reason}");
    assert!(reason.contains("nvidia-modprobe"), "{reason}");
}

#[test]
fn nothing_is_made_by_looking() {
    let node = SimulatedNode::new(1);
    node.load_modules(&[("nvidia", 195), ("nvidia-uvm", 238)]);
    let uvm = node.dev().join("nvidia-uvm");
    std::fs::remove_file(&uvm).unwrap();
    let report = json(&node);
    let reason = report["devices"][0]["reason"].as_str().unwrap();
    assert!(
        reason.contains("the plugin makes it when it serves"),
        "{reason}"
    );
    assert!(!uvm.exists());
    assert!(!node.dev().join("char").exists());
}

#[test]
fn without_a_driver_it_says_which_part_is_missing_and_fails() {
    let node = SimulatedNode::new(1);
    let refused = |with: Return, words: &str| {
        node.edit(|state| state.init = with);
        let output = devices(&node, &[]);
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains(words), "{text}");
    };
    refused(Return::DriverNotLoaded, "kernel module is not loaded");
    refused(Return::LibRmVersionMismatch, "driver version mismatch");
    refused(Return::NoPermission, "no permission");
}

#[test]
fn the_table_is_for_people() {
    let node = SimulatedNode::new(2);
    node.lose(1);
    let output = devices(&node, &[]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.starts_with("nvidia.com/gpu: 2 devices, 1 healthy\n"),
        "{text}"
    );
    assert!(
        text.contains(&format!("{}: GPU is lost", node.uuid(1))),
        "{text}"
    );
    assert!(text.contains("/usr/lib64/libcuda.so.1"), "{text}");
}
