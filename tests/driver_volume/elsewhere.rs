//! Drivers and volumes on file systems that have no links in common.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use tonic::Code;

use crate::common::nvml::SimulatedNode;
use crate::common::running::Running;
use crate::common::system::{output, skip};
use crate::rig::{
    Mounted, assert_all_below, folder, may_mount, mounts, names, node_of_size, only, running, text,
    volume_made, ways,
};

/// Serves from a volume that came about in this way, wherever the driver is.
async fn serves(node: SimulatedNode, state: &Path, extra: &[&str], way: &str) -> Running {
    let running = running(node, state, extra).await;
    volume_made(&running).await;
    running.counts(2, 2).await;
    running.ready().await;
    assert_eq!(ways(&running.node, state), [way]);
    let answer = running.allocate(&[0]).await.unwrap();
    assert_all_below(mounts(&answer), &only(state));
    running.kubelet.assert_no_violations();
    running
}

fn device(path: &Path) -> u64 {
    fs::metadata(path).unwrap().dev()
}

/// `/dev/shm` is a file system of its own on nearly every Linux, and anybody's.
#[tokio::test]
async fn copies_are_made_on_another_file_system_by_anybody() {
    let test = "copies_are_made_on_another_file_system_by_anybody";
    let Ok(state) = tempfile::tempdir_in("/dev/shm") else {
        return skip(test, "no /dev/shm");
    };
    let node = node_of_size(1 << 20);
    if device(state.path()) == device(node.root()) {
        return skip(test, "/dev/shm is where temporary files are");
    }
    let running = serves(node, state.path(), &[], "Copy").await;
    // Nothing that happens to the driver reaches a copy.
    let library = running.node.driver_library_dir();
    let library = library.join("libcuda.so.580.159.04");
    let copy = only(state.path()).join("lib64/libcuda.so.1");
    let before = fs::read(&copy).unwrap();
    fs::write(library, "overwritten in place").unwrap();
    assert!(before == fs::read(&copy).unwrap());
}

#[tokio::test]
async fn copies_are_made_on_another_mounted_file_system() {
    if !may_mount("copies_are_made_on_another_mounted_file_system") {
        return;
    }
    let state = Mounted::tmpfs("size=64m");
    serves(node_of_size(1 << 20), state.path(), &[], "Copy").await;
}

#[tokio::test]
async fn a_driver_on_an_overlay_is_copied() {
    let test = "a_driver_on_an_overlay_is_copied";
    if !may_mount(test) {
        return;
    }
    let node = node_of_size(1 << 20);
    let above = Mounted::tmpfs("size=64m");
    let Some(overlay) = overlay(test, &node, &above) else {
        return;
    };
    let state = folder();
    let flags = ["--driver-root", overlay.text()];
    let _running = serves(node, state.path(), &flags, "Copy").await;
    // A link would have brought the file up.
    let brought_up = above.path().join("upper/usr");
    assert!(!brought_up.exists(), "{}", brought_up.display());
}

/// As in a container whose image has the driver, and no folder of the host.
#[tokio::test]
async fn a_driver_and_its_volume_on_one_overlay_are_a_volume_all_the_same() {
    let test = "a_driver_and_its_volume_on_one_overlay_are_a_volume_all_the_same";
    if !may_mount(test) {
        return;
    }
    let node = node_of_size(1 << 20);
    let above = Mounted::tmpfs("size=64m");
    let Some(overlay) = overlay(test, &node, &above) else {
        return;
    };
    let state = overlay.path().join("state");
    let flags = ["--driver-root", overlay.text()];
    let running = running(node, &state, &flags).await;
    volume_made(&running).await;
    running.counts(2, 2).await;
    ways(&running.node, &state);
    running.kubelet.assert_no_violations();
}

/// The node's driver root under a layer that can be written.
fn overlay(test: &str, node: &SimulatedNode, above: &Mounted) -> Option<Mounted> {
    for name in ["upper", "work"] {
        fs::create_dir(above.path().join(name)).unwrap();
    }
    let layers = format!(
        "lowerdir={},upperdir={above}/upper,workdir={above}/work",
        node.driver_root().display(),
        above = above.text()
    );
    let mounted = Mounted::try_new(["-t", "overlay", "-o", &layers, "overlay"]);
    mounted.map_err(|error| skip(test, &error)).ok()
}

/// What a pod has of the host's driver: one mount of it, and another for the
/// volumes, between which the kernel makes no links.
#[tokio::test]
async fn a_driver_behind_a_read_only_bind_mount_is_copied() {
    if !may_mount("a_driver_behind_a_read_only_bind_mount_is_copied") {
        return;
    }
    let node = node_of_size(1 << 20);
    let state = node.state_dir();
    let bound = Mounted::new([Path::new("--bind"), &node.driver_root()]);
    let mut mount = Command::new("mount");
    output(
        mount
            .args(["-o", "remount,bind,ro"])
            .arg(text(bound.path())),
    );
    let flags = ["--driver-root", bound.text()];
    serves(node, &state, &flags, "Copy").await;
}

#[tokio::test]
async fn one_file_system_has_links() {
    let node = node_of_size(0);
    let state = node.state_dir();
    let running = serves(node, &state, &[], "Link").await;
    let file = only(&state).join("bin/nvidia-smi");
    assert_eq!(fs::metadata(file).unwrap().nlink(), 2);
    assert_eq!(names(&state).len(), 1);
    drop(running);
}

/// No file goes and no folder, and yet none is there: a driver's container may unmount
/// its root at any time.
#[tokio::test]
async fn what_was_on_an_unmounted_file_system_is_not_given() {
    if !may_mount("what_was_on_an_unmounted_file_system_is_not_given") {
        return;
    }
    let state = Mounted::tmpfs("size=64m");
    let running = serves(node_of_size(0), state.path(), &[], "Copy").await;
    output(Command::new("umount").arg("--lazy").arg(state.path()));
    match running.allocate(&[0]).await {
        // Looked for between the two: a new volume.
        Ok(answer) => assert_all_below(mounts(&answer), state.path()),
        Err(status) => assert_eq!(status.code(), Code::FailedPrecondition, "{status}"),
    }
}
