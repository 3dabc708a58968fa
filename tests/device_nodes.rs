//! Device nodes that are missing, or left over, and their links in /dev/char.
//!
//! The simulated node's own device nodes are plain files, which the plugin takes
//! as they are. Only root makes real ones.

#![allow(
    clippy::unwrap_used,
    reason = "also a test's helpers fail by panicking"
)]

mod common;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use common::nvml::SimulatedNode;
use common::running::{LONG, Running, options};
use common::system::{is_root, output, skip};
use tonic::Code;

const HEALTHY: &str = "Healthy";

const LOADED: [(&str, u32); 3] = [("nvidia", 195), ("nvidiactl", 195), ("nvidia-uvm", 238)];

/// A node of two GPUs without /dev/nvidia-uvm.
fn without_uvm() -> SimulatedNode {
    let node = SimulatedNode::new(2);
    for name in ["nvidia-uvm", "nvidia-uvm-tools"] {
        fs::remove_file(node.dev().join(name)).unwrap();
    }
    node.load_modules(&LOADED);
    node
}

async fn run(node: SimulatedNode, extra: &[&str]) -> Running {
    let state = node.root().join("state").display().to_string();
    let flags = [&["--state-dir", &state], extra].concat();
    Running::on(node, options(), &flags).await
}

/// A device node's numbers, and whether everybody may use it.
fn numbers(path: &Path) -> Option<(u32, u32, bool)> {
    let node = fs::metadata(path).ok()?;
    assert!(node.file_type().is_char_device(), "{}", path.display());
    let device = node.rdev();
    let everybody = node.mode() & 0o777 == 0o666;
    Some((libc::major(device), libc::minor(device), everybody))
}

async fn refusal(running: &Running) -> String {
    let status = running.allocate(&[0]).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    status.message().to_owned()
}

async fn refused(running: &Running, words: &str) {
    let what = format!("a refusal with {words:?}");
    running
        .eventually(&what, || async {
            refusal(running).await.contains(words).then_some(())
        })
        .await;
}

#[tokio::test]
async fn a_node_that_is_missing_is_made_before_the_first_list() {
    let running = run(without_uvm(), &[]).await;
    let (uvm, char) = (
        running.node.dev().join("nvidia-uvm"),
        running.node.dev().join("char"),
    );
    if !is_root() {
        let reason = refusal(&running).await;
        let words = "dev/nvidia-uvm does not exist; it cannot be made: Operation not permitted";
        assert!(reason.contains(words), "{reason}");
        let test = "a_node_that_is_missing_is_made_before_the_first_list";
        return skip(test, "not root; only the reason is checked");
    }
    let first = &running.lists(0)[0];
    assert!(
        first.iter().all(|device| device.health == HEALTHY),
        "{first:?}"
    );
    assert_eq!(numbers(&uvm), Some((238, 0, true)));
    assert_eq!(numbers(&char.join("238:0")), Some((238, 0, true)));
    assert_eq!(
        fs::read_link(char.join("238:0")).unwrap(),
        Path::new("../nvidia-uvm")
    );
    running.ready().await;
    let answer = running.allocate(&[0]).await.unwrap();
    let devices = &answer.container_responses[0].devices;
    let named = |name: &str| devices.iter().any(|device| device.container_path == name);
    assert!(
        named("/dev/nvidia-uvm") && named("/dev/nvidia-uvm-tools"),
        "{devices:?}"
    );
    let record = fs::read_to_string(running.node.root().join("state/made-in-dev")).unwrap();
    assert!(record.contains("link 238:0 ../nvidia-uvm\n"), "{record}");

    // Gone, and back with the next poll: nobody is told of it.
    let mark = running.kubelet.mark();
    fs::remove_file(&uvm).unwrap();
    running
        .eventually("the node", || async { numbers(&uvm) })
        .await;
    // The module is loaded anew, with another number.
    running
        .node
        .load_modules(&[("nvidia", 195), ("nvidia-uvm", 511)]);
    running
        .eventually("the new node", || async {
            numbers(&char.join("511:0")).filter(|numbers| *numbers == (511, 0, true))
        })
        .await;
    assert_eq!(numbers(&uvm), Some((511, 0, true)));
    running.pass_time().await;
    let (listed, uuid) = (running.lists(mark), running.node.uuid(1));
    let other = listed.iter().flatten().filter(|device| device.id == uuid);
    let lost: Vec<_> = other.filter(|device| device.health != HEALTHY).collect();
    assert!(lost.is_empty(), "{lost:?}");
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn what_keeps_a_node_from_being_made_is_said() {
    let running = run(without_uvm(), &["--make-device-nodes=false"]).await;
    running.counts(0, 2).await;
    running.unready("--make-device-nodes=false keeps").await;
    let reason = refusal(&running).await;
    assert!(
        reason.contains("dev/nvidia-uvm does not exist; --make-device-nodes=false"),
        "{reason}"
    );

    running.node.load_modules(&LOADED[..2]);
    running.unready("modprobe nvidia-uvm").await;
    let uvm = running.node.dev().join("nvidia-uvm");
    assert!(!uvm.exists());
    assert!(!running.node.root().join("state/made-in-dev").exists());

    // Somebody else makes it.
    fs::write(&uvm, "").unwrap();
    running.counts(2, 2).await;
    running.ready().await;
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn what_the_driver_forbids_is_not_made_and_told_once() {
    let node = without_uvm();
    let params = node.proc().join("driver/nvidia/params");
    fs::write(&params, "ModifyDeviceFiles: 0\n").unwrap();
    let running = run(node, &[]).await;
    running.counts(0, 2).await;
    running.unready("NVreg_ModifyDeviceFiles=0").await;
    // Polls pass, which the other GPU's reason shows.
    for _ in 0..3 {
        running.node.lose(0);
        refused(&running, "GPU is lost").await;
        running.node.restore(0);
        refused(&running, "NVreg_ModifyDeviceFiles=0").await;
    }
    let (log, uuid) = (running.plugin.log(), running.node.uuid(1));
    let of_it = log.lines().filter(|line| line.contains(&uuid));
    assert_eq!(of_it.count(), 1, "{log}");

    fs::write(&params, "ModifyDeviceFiles: 1\n").unwrap();
    if is_root() {
        running.counts(2, 2).await;
        running.ready().await;
    }
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn a_look_at_device_nodes_that_hangs_holds_up_the_first_list_for_a_time_only() {
    let node = SimulatedNode::new(2);
    node.load_modules(&LOADED);
    // Nobody will ever write into it.
    let params = node.proc().join("driver/nvidia/params");
    output(Command::new("mkfifo").arg(&params));
    let running = run(node, &[]).await;
    running.counts(2, 2).await;
    running.ready().await;
    let told = "making device nodes has not come to an end";
    running.plugin.wait_for_line(told, LONG).await.unwrap();
    running.kubelet.assert_no_violations();
}
