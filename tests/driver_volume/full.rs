//! No room for a volume, and folders that cannot be written.

use std::fs;
use std::path::Path;

use tonic::Code;

use crate::common::kubelet::KubeletPeer;
use crate::common::nvml::State;
use crate::common::running::{LONG, RESOURCE, Running};
use crate::rig::{
    Mounted, assert_all_below, look_again, may_mount, mounts, names, node_of_size, running,
    start_again, volume_made, volumes, ways,
};

/// Of polls nothing is to be expected in these tests.
const SELDOM: [&str; 2] = ["--health-poll-interval", "10m"];
const ONLY_VOLUMES: [&str; 2] = ["--driver-volume", "always"];

const ROOM: &str = "size=64m,nr_inodes=1000";
/// A driver of 256 KiB a library.
const LIBRARY: usize = 256 << 10;

/// Without a volume the plugin serves the files in place, and says why. Once the
/// obstacle is removed a volume is made at the next look.
async fn serves_in_place(state: &Mounted, words: &[&str], removed: &str) -> Running {
    let node = node_of_size(LIBRARY);
    let running = running(node, state.path(), &SELDOM).await;
    running.counts(2, 2).await;
    let body = running.noted("driver files: ").await;
    for words in [words, &[state.text(), "--state-dir"]].concat() {
        assert!(body.contains(words), "{words:?} is not in {body}");
    }
    assert!(!body.contains(".new-"), "of no use to anybody: {body}");
    assert_eq!(running.metric("driver_volume").await, Some(0.0));
    assert!(names(state.path()).is_empty(), "{:?}", names(state.path()));
    let answer = running.allocate(&[0]).await.unwrap();
    assert_all_below(mounts(&answer), &running.node.driver_root());

    state.remount(removed);
    look_again(&running);
    volume_made(&running).await;
    running.ready().await;
    assert_eq!(ways(&running.node, state.path()), ["Copy"]);
    let answer = running.allocate(&[0]).await.unwrap();
    assert_all_below(mounts(&answer), state.path());
    assert_eq!(running.register_calls(0), 1, "the kubelet is not bothered");
    running.kubelet.assert_no_violations();
    running
}

#[tokio::test]
async fn on_a_full_disk_the_files_are_served_in_place_until_there_is_room() {
    if !may_mount("on_a_full_disk_the_files_are_served_in_place_until_there_is_room") {
        return;
    }
    let state = Mounted::tmpfs("size=1m");
    let words = ["a copy of the driver takes ", " bytes free at "];
    let running = serves_in_place(&state, &words, ROOM).await;
    let volume = volumes(state.path()).of_version("580.159.04").unwrap();
    // Another name of a library's is not copied.
    let files = volume.manifest.files.iter();
    let files = files.filter(|file| !file.path.ends_with("libcuda.so"));
    let sizes = files.map(|file| file.size);
    let needed = format!("takes {} bytes", sizes.sum::<u64>());
    assert!(running.plugin.log().contains(&needed), "{needed}");
}

#[tokio::test]
async fn without_inodes_the_files_are_served_in_place_until_there_are_some() {
    if !may_mount("without_inodes_the_files_are_served_in_place_until_there_are_some") {
        return;
    }
    // Enough for some of the files.
    let state = Mounted::tmpfs("size=64m,nr_inodes=9");
    serves_in_place(&state, &["No space left on device"], ROOM).await;
}

#[tokio::test]
async fn below_a_read_only_folder_the_files_are_served_in_place_until_it_can_be_written() {
    if !may_mount("below_a_read_only_folder_the_files_are_served_in_place_until_it_can_be_written")
    {
        return;
    }
    let state = Mounted::tmpfs("size=64m,ro");
    serves_in_place(&state, &["Read-only file system"], "rw").await;
}

#[tokio::test]
async fn where_no_library_can_be_mapped_from_the_files_are_served_in_place() {
    if !may_mount("where_no_library_can_be_mapped_from_the_files_are_served_in_place") {
        return;
    }
    let state = Mounted::tmpfs("size=64m,noexec");
    serves_in_place(&state, &["noexec"], "exec").await;
}

async fn refusal(running: &Running) -> String {
    let status = running.allocate(&[0]).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    status.message().to_owned()
}

#[tokio::test]
async fn where_only_a_volume_will_do_a_full_disk_makes_devices_unhealthy_until_there_is_room() {
    let test =
        "where_only_a_volume_will_do_a_full_disk_makes_devices_unhealthy_until_there_is_room";
    if !may_mount(test) {
        return;
    }
    for options in ["size=1m", "size=64m,nr_inodes=9"] {
        let state = Mounted::tmpfs(options);
        let flags = [SELDOM, ONLY_VOLUMES].concat();
        let running = running(node_of_size(LIBRARY), state.path(), &flags).await;
        running.counts(0, 2).await;
        let body = running.unready("driver files: no driver volume: ").await;
        let reason = refusal(&running).await;
        for text in [&body, &reason] {
            assert!(text.contains(state.text()), "{text}");
            assert!(text.contains("make room"), "{text}");
        }
        assert_eq!(running.metric("driver_volume").await, Some(0.0));
        assert!(names(state.path()).is_empty());

        state.remount(ROOM);
        look_again(&running);
        running.counts(2, 2).await;
        running.ready().await;
        let answer = running.allocate(&[0]).await.unwrap();
        assert_all_below(mounts(&answer), state.path());
        running.kubelet.assert_no_violations();
    }
}

/// Each try makes a folder and removes it again, which the time of the folder of
/// volumes tells.
async fn tried_again(running: &Running, folder: &Path) {
    let time = || fs::metadata(folder).unwrap().modified().unwrap();
    let before = time();
    look_again(running);
    running
        .eventually("another try", || async {
            (time() != before && names(folder.parent().unwrap()).is_empty()).then_some(())
        })
        .await;
}

#[tokio::test]
async fn a_volume_that_cannot_be_made_is_told_once_and_not_tried_at_each_poll() {
    if !may_mount("a_volume_that_cannot_be_made_is_told_once_and_not_tried_at_each_poll") {
        return;
    }
    for (mode, told) in [("auto", "no driver volume;"), ("always", "no driver files")] {
        let state = Mounted::tmpfs("size=64m,nr_inodes=9");
        let flags = ["--driver-volume", mode];
        let running = running(node_of_size(LIBRARY), state.path(), &flags).await;
        running.plugin.wait_for_line(told, LONG).await.unwrap();
        let folder = state.path().join("driver");
        let time = || fs::metadata(&folder).unwrap().modified().unwrap();
        let before = time();
        // Each takes a poll to be seen.
        for gpus in 3..6 {
            let more = State::healthy(gpus).gpus.remove(gpus - 1);
            running.node.edit(|state| state.gpus.push(more));
            let seen =
                |kubelet: &KubeletPeer| (kubelet.counts(RESOURCE).capacity == gpus).then_some(());
            running
                .kubelet
                .wait_for("a GPU more", LONG, seen)
                .await
                .unwrap();
        }
        assert_eq!(time(), before, "{mode}: tried again at a poll");
        for _ in 0..3 {
            tried_again(&running, &folder).await;
        }
        let log = running.plugin.log();
        assert_eq!(log.matches(told).count(), 1, "{log}");
    }
}

/// What is there needs no room.
#[tokio::test]
async fn a_volume_that_is_there_is_served_from_a_disk_that_cannot_be_written_any_more() {
    if !may_mount("a_volume_that_is_there_is_served_from_a_disk_that_cannot_be_written_any_more") {
        return;
    }
    let state = Mounted::tmpfs("size=64m");
    let flags = ["--state-dir", state.text(), "--driver-volume", "always"];
    let mut running = running(node_of_size(LIBRARY), state.path(), &[]).await;
    running.counts(2, 2).await;
    let before = running.allocate(&[0]).await.unwrap();
    running.kill_plugin().await;
    // Whatever has it open for writing would be in the way.
    state.remount("ro");
    start_again(&mut running, &flags).await;
    volume_made(&running).await;
    running.counts(2, 2).await;
    assert_eq!(running.allocate(&[0]).await.unwrap(), before);
    running.kubelet.assert_no_violations();
}
