//! The driver and its GPUs come, go and fail, and the process stays up.

#![allow(
    clippy::unwrap_used,
    reason = "also a test's helpers fail by panicking"
)]

mod common;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use common::kubelet::KubeletPeer;
use common::nvml::{DRIVER_LIBRARIES, Return, SimulatedNode, State, simulated_nvml_library};
use common::open_files::open_files;
use common::running::{LONG, RESOURCE, Running, measured, options};
use tonic::Code;

/// A few of the tests' polls.
const NOTICED: Duration = Duration::from_secs(1);

/// A plugin beside a kubelet on a node that may have no driver.
async fn beside(node: SimulatedNode) -> Running {
    let kubelet = KubeletPeer::new(node.device_plugin_dir(), options());
    kubelet.start().await.unwrap();
    Running::unregistered(node, kubelet, &[]).await
}

async fn refusal(running: &Running, position: usize) -> String {
    let status = running.allocate(&[position]).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    status.message().to_owned()
}

/// What NVML's initialisation fails with, and what is said of it.
async fn waits_for_a_driver_that(fails: Return, words: &str) {
    let node = SimulatedNode::with(2, |state| state.init = fails);
    let running = beside(node).await;
    let body = running.unready(words).await;
    let line = body.lines().find(|line| line.starts_with("driver: "));
    assert!(line.is_some_and(|line| line.contains(words)), "{body}");
    assert_eq!(running.get("/livez").await.0, 200);
    assert_eq!(running.metric("nvml_session").await, Some(0.0));
    assert_eq!(running.register_calls(0), 0);

    running.node.edit(|state| state.init = Return::Success);
    let there = Instant::now();
    running.counts(2, 2).await;
    println!("served {:?} after the driver came", there.elapsed());
    running.ready().await;
    assert_eq!(running.metric("nvml_session").await, Some(1.0));
    let told = running.plugin.log().matches("no driver").count();
    assert_eq!(told, 1, "{}", running.plugin.log());
    running.kubelet.assert_no_violations();
}

/// The kernel module goes, under a session that is open.
fn unload_driver(running: &Running) {
    running.node.edit(|state| {
        state.init = Return::DriverNotLoaded;
        for call in [
            "SystemGetDriverVersion",
            "DeviceGetCount",
            "DeviceGetHandleByUUID",
        ] {
            let failure = (format!("nvml{call}"), Return::DriverNotLoaded);
            state.fail.extend([failure]);
        }
    });
}

fn load_driver(running: &Running) {
    running.node.edit(|state| {
        state.init = Return::Success;
        state.fail.clear();
    });
}

// === No driver ===

#[tokio::test]
async fn without_a_kernel_module_it_says_so_and_serves_when_there_is_one() {
    waits_for_a_driver_that(Return::DriverNotLoaded, "kernel module is not loaded").await;
}

#[tokio::test]
async fn a_library_and_a_module_of_different_versions_are_named() {
    let words = "driver version mismatch";
    waits_for_a_driver_that(Return::LibRmVersionMismatch, words).await;
    waits_for_a_driver_that(Return::LibRmVersionMismatch, "(580.159.04)").await;
}

#[tokio::test]
async fn device_nodes_that_may_not_be_opened_are_named() {
    waits_for_a_driver_that(Return::NoPermission, "run privileged").await;
}

#[tokio::test]
async fn without_a_library_it_says_so_and_serves_when_there_is_one() {
    let node = SimulatedNode::new(2);
    fs::remove_file(node.nvml_library()).unwrap();
    let running = beside(node).await;
    running.unready("driver: no NVML library").await;
    // In one step, as a package manager does it.
    let library = running.node.nvml_library();
    let new = library.with_extension("new");
    fs::copy(simulated_nvml_library(), &new).unwrap();
    fs::rename(new, library).unwrap();
    running.counts(2, 2).await;
    running.ready().await;
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn a_driver_that_fails_is_tried_again_with_growing_pauses() {
    let node = SimulatedNode::with(1, |state| state.init = Return::OperatingSystem);
    let running = beside(node).await;
    let effort = running.effort();
    let begun = Instant::now();
    let failures = r#"nvml_errors_total{call="nvmlInit_v2"}"#;
    running.metric_reaches(failures, 5.0).await;
    // 200, 400, 800 and 1600 ms at least, from the first one.
    let time = begun.elapsed();
    println!("5 tries in {time:?}");
    assert!(time >= Duration::from_millis(2500), "5 tries in {time:?}");
    effort.assert_idle();
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn an_initialisation_that_hangs_is_told_and_served_when_it_returns() {
    let node = SimulatedNode::with(2, |state| {
        state.hang.insert("nvmlInit".into());
    });
    let running = beside(node).await;
    running.unready("driver: not asked yet").await;
    running.unready("did not come back within 10s").await;
    assert_eq!(running.get("/livez").await.0, 200);
    running.node.edit(|state| state.hang.clear());
    running.counts(2, 2).await;
    running.ready().await;
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn a_driver_that_is_unloaded_withdraws_its_devices_and_they_come_back_with_it() {
    let running = Running::start(2).await;
    for _ in 0..2 {
        unload_driver(&running);
        running.counts(0, 2).await;
        running.unready("kernel module is not loaded").await;
        let reason = refusal(&running, 0).await;
        assert!(reason.contains("kernel module is not loaded"), "{reason}");
        load_driver(&running);
        running.counts(2, 2).await;
        running.ready().await;
        // Once, and not once for each time that it came.
        let files = open_files(running.plugin.pid().unwrap()).into_iter();
        let held = files.filter(|file| Path::new(&file.path).starts_with(running.node.volumes()));
        assert_eq!(held.count(), 1, "locks on its volume");
    }
    assert_eq!(running.register_calls(0), 1, "the kubelet is not bothered");
    running.kubelet.assert_no_violations();
}

/// The simulated NVML leaves a file open each time it is unloaded, as the real one does.
#[tokio::test]
async fn sessions_that_fail_at_once_cost_no_files() {
    let running = Running::start(2).await;
    let eventfds = || {
        let files = open_files(running.plugin.pid().unwrap()).into_iter();
        files
            .filter(|file| file.path == "anon_inode:[eventfd]")
            .count()
    };
    let before = eventfds();
    let call = "nvmlSystemGetDriverVersion";
    let fail = |state: &mut State| state.fail.insert(call.to_owned(), Return::Uninitialized);
    running.node.edit(|state| _ = fail(state));
    // A rescan asks again.
    running.plugin.signal(libc::SIGHUP).unwrap();
    let failures = format!(r#"nvml_errors_total{{call="{call}"}}"#);
    running.metric_reaches(&failures, 5.0).await;
    load_driver(&running);
    running.counts(2, 2).await;
    running.ready().await;
    assert_eq!(eventfds(), before);
    running.kubelet.assert_no_violations();
}

// === The driver's files ===

#[tokio::test]
async fn without_the_drivers_libraries_devices_are_unhealthy_and_healthy_with_them() {
    let node = SimulatedNode::new(2);
    let library = node.driver_library_dir().join("libcuda.so.580.159.04");
    let aside = node.root().join("aside");
    fs::rename(&library, &aside).unwrap();
    let running = Running::on(node, options(), &[]).await;
    running.counts(0, 2).await;
    running
        .unready("no libcuda.so.1 of driver 580.159.04")
        .await;
    let reason = refusal(&running, 0).await;
    assert!(reason.contains("no libcuda.so.1"), "{reason}");
    fs::rename(&aside, &library).unwrap();
    running.counts(2, 2).await;
    running.ready().await;
    running.kubelet.assert_no_violations();
}

/// Files of this version in place of all others, as a package manager leaves
/// them: the module is still of the old version, and so is the loaded library.
fn replace_files(running: &Running, version: &str) {
    let folder = running.node.driver_library_dir();
    fs::remove_dir_all(&folder).unwrap();
    fs::create_dir(&folder).unwrap();
    for library in DRIVER_LIBRARIES {
        let file = folder.join(library.file_name(version));
        library.shared_object(version).write(&file);
    }
}

/// A volume outlives the files that it was made of.
#[tokio::test]
async fn files_that_are_replaced_under_a_running_module_do_not_matter_to_a_volume() {
    let running = Running::start(2).await;
    let before = running.allocate(&[0]).await.unwrap();
    replace_files(&running, "590.44.01");
    running.plugin.signal(libc::SIGHUP).unwrap();
    running
        .plugin
        .wait_for_line("as asked", LONG)
        .await
        .unwrap();
    running.pass_time().await;
    assert_eq!(running.allocate(&[0]).await.unwrap(), before);
    running.counts(2, 2).await;
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn files_that_are_replaced_under_a_running_module_are_told_and_found_again() {
    let in_place = ["--driver-volume=never"];
    let running = Running::on(SimulatedNode::new(2), options(), &in_place).await;
    running.counts(2, 2).await;
    replace_files(&running, "590.44.01");
    running.counts(0, 2).await;
    running.unready("found 590.44.01 instead").await;

    running.node.install_driver("580.159.04");
    running.counts(2, 2).await;
    running.allocate(&[0]).await.unwrap();
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn a_new_driver_gives_new_files() {
    let running = Running::start(1).await;
    unload_driver(&running);
    running.counts(0, 1).await;
    running.node.install_driver("590.44.01");
    load_driver(&running);
    running.counts(1, 1).await;
    let answer = running.allocate(&[0]).await.unwrap();
    let mounts = &answer.container_responses[0].mounts;
    let old: Vec<_> = mounts
        .iter()
        .filter(|mount| !mount.host_path.contains("/driver/590.44.01-"))
        .collect();
    assert!(old.is_empty(), "{old:#?}");
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn a_device_node_that_is_missing_makes_its_devices_unhealthy_with_the_remedy() {
    let node = SimulatedNode::new(2);
    fs::remove_file(node.dev().join("nvidia1")).unwrap();
    let running = Running::on(node, options(), &[]).await;
    running.counts(1, 2).await;
    let reason = refusal(&running, 1).await;
    assert!(reason.contains("dev/nvidia1 does not exist"), "{reason}");
    assert!(reason.contains("nvidia-modprobe"), "{reason}");
    fs::write(running.node.dev().join("nvidia1"), "").unwrap();
    running.counts(2, 2).await;

    fs::remove_file(running.node.dev().join("nvidiactl")).unwrap();
    running.counts(0, 2).await;
    running.unready("dev/nvidiactl does not exist").await;
    fs::write(running.node.dev().join("nvidiactl"), "").unwrap();
    running.counts(2, 2).await;
    running.ready().await;
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn an_answer_that_is_not_true_any_more_is_looked_into_without_waiting_for_a_poll() {
    let seldom = ["--health-poll-interval", "10m", "--driver-volume=never"];
    let running = Running::on(SimulatedNode::new(2), options(), &seldom).await;
    running.counts(2, 2).await;
    fs::remove_dir_all(running.node.driver_library_dir()).unwrap();
    let refused = running.allocate(&[0]).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(
        refused.message().contains("does not exist any more"),
        "{refused}"
    );
    running.counts(0, 2).await;
    running.kubelet.assert_no_violations();
}

// === GPUs ===

#[tokio::test]
async fn a_gpu_that_appears_is_served_without_a_new_registration() {
    let running = Running::start(2).await;
    running.node.edit(|state| {
        let grown = State::healthy(3);
        state.gpus.push(grown.gpus[2].clone());
    });
    let there = Instant::now();
    running.counts(3, 3).await;
    let time = [there.elapsed()];
    measured("a GPU served once it is there", &time, NOTICED);
    running.allocate(&[2]).await.unwrap();
    running.listening(2).await;
    running.node.xid(2, 79);
    running.counts(2, 3).await;
    assert_eq!(running.register_calls(0), 1);
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn scenario_22_sighup_looks_again_at_once_and_leaves_the_kubelet_alone() {
    let polls = ["--health-poll-interval", "10m"];
    let running = Running::on(SimulatedNode::new(2), options(), &polls).await;
    running.counts(2, 2).await;
    running.node.edit(|state| {
        let grown = State::healthy(3);
        state.gpus.push(grown.gpus[2].clone());
    });
    running.plugin.signal(libc::SIGHUP).unwrap();
    running.counts(3, 3).await;
    assert_eq!(running.register_calls(0), 1);
    assert_eq!(running.kubelet.streams(RESOURCE), 1);
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn one_gpu_that_cannot_be_read_is_listed_with_the_reason_and_the_others_are_served() {
    let node = SimulatedNode::new(3);
    node.fail(1, "nvmlDeviceGetMinorNumber", Return::Unknown);
    let running = Running::on(node, options(), &[]).await;
    running.counts(2, 3).await;
    let reason = refusal(&running, 1).await;
    assert!(reason.contains("nvmlDeviceGetMinorNumber"), "{reason}");
    running.allocate(&[0, 2]).await.unwrap();
    running.node.restore(1);
    running.counts(3, 3).await;
    running.allocate(&[1]).await.unwrap();
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn a_gpu_that_does_not_say_its_name_is_told_and_the_others_are_served() {
    let node = SimulatedNode::new(3);
    node.fail(1, "nvmlDeviceGetUUID", Return::GpuIsLost);
    let running = Running::on(node, options(), &[]).await;
    running.counts(2, 2).await;
    let body = running.noted("index 1: nvmlDeviceGetUUID").await;
    assert!(body.contains("the others are served"), "{body}");
    assert_eq!(running.metric("unidentified_gpus").await, Some(1.0));
    running.node.restore(1);
    let mended = Instant::now();
    running.counts(3, 3).await;
    let time = [mended.elapsed()];
    measured("a GPU served once it can be read", &time, NOTICED);
    running.ready().await;
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn a_gpu_whose_reading_hangs_holds_the_others_up_for_10_s_at_the_most() {
    let node = SimulatedNode::new(3);
    node.hang(1, &["nvmlDeviceGetName"]);
    let running = Running::on(node, options(), &[]).await;
    let devices = running.kubelet.devices(RESOURCE);
    let served = devices.iter().filter(|device| device.health == "Healthy");
    assert_eq!(served.count(), 2);
    running.noted("index 1: NVML does not answer").await;
    running.node.restore(1);
    let mended = Instant::now();
    running.counts(3, 3).await;
    let time = [mended.elapsed()];
    measured("a GPU served once it can be read", &time, NOTICED);
    running.ready().await;
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn scenario_33_a_gpu_that_a_pod_holds_is_listed_though_it_is_lost_when_the_plugin_starts() {
    let mut running = Running::start(3).await;
    let pod = running.kubelet.allocate(RESOURCE, 3).await.unwrap();
    running.kill_plugin().await;
    running.node.vanish(1);
    running.start_plugin().await;
    running.counts(2, 3).await;
    let reason = refusal(&running, 1).await;
    assert!(reason.contains("not enumerated"), "{reason}");
    running.kubelet.restart().await.unwrap();
    running.counts(2, 3).await;
    let again = running.kubelet.restart_container(&pod.pod).await.unwrap();
    assert_eq!(again, pod);
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn the_process_ends_in_time_though_the_driver_never_came() {
    let node = SimulatedNode::with(1, |state| {
        state.hang.insert("nvmlInit".into());
    });
    let mut running = beside(node).await;
    running.unready("driver: not asked yet").await;
    running.plugin.terminate().unwrap();
    let asked = Instant::now();
    let ended = running.plugin.wait(LONG).await.unwrap();
    println!("ended {:?} after SIGTERM", asked.elapsed());
    assert_eq!(ended.code(), Some(0));
    running.kubelet.assert_no_violations();
}
