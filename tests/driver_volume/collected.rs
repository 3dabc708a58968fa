//! Volumes that something on the node can still name, and those that nothing can.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::nvml::SimulatedNode;
use crate::common::running::{RESOURCE, Running, options};
use crate::containers::Machine;
use crate::rig::{
    EAGER, NEWER, VERSION, assert_all_below, kept, mounts, names, only, start_again, volume_made,
};

/// A plugin that sees these processes, and its volume.
async fn beside(machine: &Machine) -> (Running, PathBuf) {
    let flags = [&["--procfs-root", machine.proc()], &EAGER[..]].concat();
    let running = Running::on(SimulatedNode::new(2), options(), &flags).await;
    volume_made(&running).await;
    running.counts(2, 2).await;
    let volume = only(&running.node.state_dir());
    (running, volume)
}

/// Another driver, from whose volume new containers get their files.
async fn upgrade(running: &Running) {
    running.node.install_driver(NEWER);
    let what = "an answer from the new volume";
    running
        .eventually(what, || async {
            let answer = running.allocate(&[0]).await.ok()?;
            mounts(&answer)
                .last()?
                .host_path
                .contains(NEWER)
                .then_some(())
        })
        .await;
}

async fn is_collected(running: &Running, volume: &Path) {
    running
        .eventually("the new volume alone", || async {
            let names = names(&running.node.state_dir());
            matches!(&names[..], [name] if name.starts_with(NEWER)).then_some(())
        })
        .await;
    assert!(!volume.exists());
}

#[tokio::test]
async fn a_volume_goes_when_the_last_container_that_has_something_of_it_mounted_ends() {
    let test = "a_volume_goes_when_the_last_container_that_has_something_of_it_mounted_ends";
    let Some(machine) = Machine::start(test) else {
        return;
    };
    let (running, volume) = beside(&machine).await;
    let one_file = machine.container(&volume.join("lib64/libcuda.so.1"));
    let all_of_it = machine.container(&volume);
    upgrade(&running).await;
    kept(
        &running.plugin,
        &volume,
        "mounted in the container of process",
    )
    .await;
    drop(all_of_it);
    kept(
        &running.plugin,
        &volume,
        "mounted in the container of process",
    )
    .await;
    assert!(volume.join("lib64/libcuda.so.1").exists());
    drop(one_file);
    is_collected(&running, &volume).await;
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn a_volume_stays_as_long_as_a_container_of_runc_runs() {
    let test = "a_volume_stays_as_long_as_a_container_of_runc_runs";
    let Some(machine) = Machine::start(test) else {
        return;
    };
    let (running, volume) = beside(&machine).await;
    let answer = running.allocate(&[0]).await.unwrap();
    assert_all_below(mounts(&answer), &volume);
    let Some(container) = machine.runc(test, mounts(&answer)) else {
        return;
    };
    upgrade(&running).await;
    kept(
        &running.plugin,
        &volume,
        "mounted in the container of process",
    )
    .await;
    drop(container);
    is_collected(&running, &volume).await;
    running.kubelet.assert_no_violations();
}

/// What a container has of a volume that was mended is what it had before.
#[tokio::test]
async fn a_damaged_volume_stays_for_the_container_that_has_it() {
    let test = "a_damaged_volume_stays_for_the_container_that_has_it";
    let Some(machine) = Machine::start(test) else {
        return;
    };
    let (mut running, volume) = beside(&machine).await;
    let container = machine.container(&volume);
    running.kill_plugin().await;
    fs::remove_file(volume.join("bin/nvidia-smi")).unwrap();
    let flags = [&["--procfs-root", machine.proc()], &EAGER[..]].concat();
    start_again(&mut running, &flags).await;
    volume_made(&running).await;
    assert!(volume.join("bin/nvidia-smi").exists());
    let state = running.node.state_dir();
    let both = names(&state);
    let [damaged, mended] = &both[..] else {
        panic!("{both:?}");
    };
    assert_eq!(state.join("driver").join(mended), volume);
    let damaged = state.join("driver").join(damaged);
    kept(
        &running.plugin,
        &damaged,
        "mounted in the container of process",
    )
    .await;
    drop(container);
    running
        .eventually("the damaged one to go", || async {
            (names(&state).len() == 1).then_some(())
        })
        .await;
    assert_eq!(only(&state), volume);
}

/// The kubelet starts containers again by its record, whatever became of it, of
/// the plugin, and of the driver.
#[tokio::test]
async fn a_pod_of_the_kubelets_record_finds_every_file_of_its_answer_until_it_is_gone() {
    let mut running = Running::on(SimulatedNode::new(2), options(), &EAGER).await;
    running.counts(2, 2).await;
    let volume = only(&running.node.state_dir());
    let pod = running.kubelet.allocate(RESOURCE, 1).await.unwrap();
    assert_all_below(&pod.response.mounts, &volume);
    let checkpoint = "the kubelet's checkpoint has it";
    upgrade(&running).await;
    kept(&running.plugin, &volume, checkpoint).await;

    running.kubelet.stop().await;
    kept(&running.plugin, &volume, checkpoint).await;
    running.kill_plugin().await;
    start_again(&mut running, &EAGER).await;
    kept(&running.plugin, &volume, checkpoint).await;
    running.kubelet.start().await.unwrap();
    running.counts(2, 2).await;
    let again = running.kubelet.restart_container(&pod.pod).await.unwrap();
    assert_eq!(again, pod);
    assert_all_below(&again.response.mounts, &volume);
    kept(&running.plugin, &volume, checkpoint).await;

    // The kubelet writes its record at the next admission.
    running.kubelet.free(&pod.pod);
    let next = running.kubelet.allocate(RESOURCE, 1).await.unwrap();
    let theirs = next.response.mounts.last().unwrap().host_path.clone();
    assert!(!theirs.contains(VERSION), "{theirs}");
    is_collected(&running, &volume).await;
    running.kubelet.assert_no_violations();
}
