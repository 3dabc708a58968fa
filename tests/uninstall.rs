//! What the plugin left on a node is taken away again.

#![allow(
    clippy::unwrap_used,
    reason = "also a test's helpers fail by panicking"
)]

mod common;

use std::fs;
use std::os::unix::net::UnixListener;
use std::process::Command;

use common::nvml::SimulatedNode;
use common::running::{LONG, RESOURCE, Running, arguments, program};

/// What the command says, and its exit code.
fn uninstall(node: &SimulatedNode) -> (String, Option<i32>) {
    let mut command = Command::new(program());
    let output = command
        .args(arguments(node, &["--procfs-root", "/proc", "uninstall"]))
        .output()
        .unwrap();
    assert!(output.stderr.is_empty(), "{output:?}");
    (
        String::from_utf8(output.stdout).unwrap(),
        output.status.code(),
    )
}

/// Whether all processes of this machine may be looked at.
fn may_look() -> bool {
    let can = common::system::is_root();
    if !can {
        common::system::skip(
            "uninstall",
            "not root, so that nobody else's mounts are seen",
        );
    }
    can
}

#[tokio::test]
async fn a_node_that_is_left_has_nothing_of_the_plugin_and_asking_again_does_no_harm() {
    if !may_look() {
        return;
    }
    let mut running = Running::start(2).await;
    running.allocate(&[0]).await.unwrap();
    running.kill_plugin().await;
    assert!(running.node.volume().is_dir());
    let (said, code) = uninstall(&running.node);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("removed") && said.contains("/driver/580.159.04-"),
        "{said}"
    );
    assert!(said.contains(".sock"), "{said}");
    assert!(!running.node.state_dir().exists(), "{said}");
    let sockets = fs::read_dir(running.node.device_plugin_dir()).unwrap();
    let ours = sockets.flatten().filter(|entry| {
        entry
            .file_name()
            .to_string_lossy()
            .starts_with("gpu-device-plugin")
    });
    assert_eq!(ours.count(), 0, "{said}");
    let again = uninstall(&running.node);
    assert_eq!(
        again,
        ("nothing of the plugin is on this node\n".into(), Some(0))
    );
    running.start_plugin().await;
    running.counts(2, 2).await;
}

#[tokio::test]
async fn what_a_pod_or_a_plugin_has_is_left_and_why() {
    if !may_look() {
        return;
    }
    let mut running = Running::start(2).await;
    let pod = running.kubelet.allocate(RESOURCE, 1).await.unwrap();
    let (said, code) = uninstall(&running.node);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("a plugin runs; end it first"), "{said}");
    running.counts(2, 2).await;

    running.plugin.terminate().unwrap();
    running.plugin.wait(LONG).await.unwrap();
    let (said, code) = uninstall(&running.node);
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("the kubelet's checkpoint has it for a pod"),
        "{said}"
    );
    assert!(running.node.volume().is_dir());

    // The kubelet's folder for the pod goes with the pod, and its record later.
    let folder = running.node.device_plugin_dir().with_file_name("pods");
    fs::create_dir_all(folder.join(&pod.pod)).unwrap();
    assert_eq!(uninstall(&running.node).1, Some(1));
    fs::remove_dir(folder.join(&pod.pod)).unwrap();
    let (said, code) = uninstall(&running.node);
    assert_eq!(code, Some(0), "{said}");
    assert!(!running.node.state_dir().exists());
}

/// Files that are not ours stay, and so does the folder that they are in.
#[tokio::test]
async fn what_is_not_the_plugins_stays() {
    if !may_look() {
        return;
    }
    let node = SimulatedNode::new(1);
    fs::create_dir_all(node.state_dir()).unwrap();
    fs::write(node.state_dir().join("notes.txt"), "").unwrap();
    fs::create_dir_all(node.device_plugin_dir()).unwrap();
    let other = node.device_plugin_dir().join("nvidia-gpu.sock");
    drop(UnixListener::bind(&other).unwrap());
    let (said, code) = uninstall(&node);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("not empty"), "{said}");
    assert!(other.exists() && node.state_dir().join("notes.txt").exists());
}
