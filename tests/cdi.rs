//! Our CDI spec: what is in it, that a runtime would take it, and when it is
//! written.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "also a test's helpers fail by panicking"
)]

mod common;
#[path = "cdi/rules.rs"]
mod rules;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use common::kubelet::KubeletPeer;
use common::nvml::SimulatedNode;
use common::running::{LONG, Running, options};
use rules::{Spec, valid};
use tonic::Code;

const FILE: &str = "gpu-device-plugin-gpu.json";
const CDI: &str = "--device-list-strategy=cdi-cri";
/// The driver's files as they are installed, which come and go with it.
const IN_PLACE: [&str; 1] = ["--driver-volume=never"];
const EXTRAS: [&str; 4] = [
    "--gds-enabled",
    "--gdrcopy-enabled",
    "--mofed-enabled",
    "--imex-channel-ids=0",
];

fn file(node: &SimulatedNode) -> PathBuf {
    node.cdi_root().join(FILE)
}

/// The spec as a runtime would read it now.
fn spec(node: &SimulatedNode) -> Spec {
    let text = fs::read_to_string(file(node)).unwrap();
    valid(&text).unwrap_or_else(|fault| panic!("{fault}\n{text}"))
}

/// A plugin with a CDI strategy, registered.
async fn start(gpus: usize, more: &[&str]) -> Running {
    on(SimulatedNode::new(gpus), more).await
}

async fn on(node: SimulatedNode, more: &[&str]) -> Running {
    Running::on(node, options(), &[&[CDI][..], more].concat()).await
}

/// Waits until the spec is one that passes.
async fn spec_becomes(running: &Running, what: &str, passes: impl Fn(&Spec) -> bool) {
    running
        .eventually(what, || async {
            passes(&spec(&running.node)).then_some(())
        })
        .await;
}

fn identity(path: &Path) -> (u64, SystemTime) {
    let metadata = fs::metadata(path).unwrap();
    (metadata.ino(), metadata.modified().unwrap())
}

// === What is in it ===

/// One with all that can be in it, down to the letter.
#[tokio::test]
async fn the_spec_of_a_node_with_everything() {
    let node = SimulatedNode::new(2);
    node.add_extras();
    let root = node.as_host_root();
    let flags = root.iter().map(String::as_str).chain(EXTRAS);
    // A volume's name differs with the files' age.
    let flags: Vec<_> = flags.chain(IN_PLACE).collect();
    let running = on(node, &flags).await;
    let text = fs::read_to_string(file(&running.node)).unwrap();
    let golden = include_str!("cdi/golden.json");
    let here = golden.replace("x86_64", std::env::consts::ARCH);
    assert_eq!(text, here, "as it is now:\n{text}");
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn a_runtime_takes_the_spec_of_any_node() {
    for gpus in [1, 8] {
        for extras in [&[][..], &EXTRAS] {
            let node = SimulatedNode::new(gpus);
            if !extras.is_empty() {
                node.add_extras();
            }
            let running = on(node, extras).await;
            running.counts(gpus, gpus).await;
            let spec = spec(&running.node);
            assert_eq!(spec.devices.len(), 2 * gpus + 1);
            assert_eq!(spec.device("all").device_nodes.len(), gpus);
        }
    }
}

#[tokio::test]
async fn every_name_that_is_answered_is_in_the_spec_with_the_devices_own_nodes() {
    for by in ["uuid", "index"] {
        let by = format!("--device-id-strategy={by}");
        let node = SimulatedNode::with(2, |state| {
            state.gpus[0].minor_number = 5;
            state.gpus[1].minor_number = 3;
        });
        let running = on(node, &[&by]).await;
        running.counts(2, 2).await;
        let spec = spec(&running.node);
        for (position, path) in ["/dev/nvidia5", "/dev/nvidia3"].into_iter().enumerate() {
            let answer = running.allocate(&[position]).await.unwrap();
            let name = &answer.container_responses[0].cdi_devices[0].name;
            let (kind, device) = name.split_once('=').unwrap();
            assert_eq!(kind, spec.kind);
            let nodes = &spec.device(device).device_nodes;
            assert_eq!(nodes.len(), 1);
            assert_eq!(nodes[0].path, path);
            let host = format!("{}{path}", running.node.dev_root().display());
            assert_eq!(nodes[0].host_path.as_deref(), Some(host.as_str()));
        }
        running.kubelet.assert_no_violations();
    }
}

#[tokio::test]
async fn a_container_gets_by_the_spec_what_an_answer_would_give_it() {
    let running = start(1, &["--device-list-strategy=mounts"]).await;
    running.counts(1, 1).await;
    let answer = running.allocate(&[0]).await.unwrap();
    let answer = &answer.container_responses[0];
    let spec = spec(&running.node);
    let own = &spec.device(&running.node.uuid(0)).device_nodes;
    let nodes = own.iter().chain(&spec.container_edits.device_nodes);
    let nodes: Vec<_> = nodes
        .map(|n| (n.path.as_str(), n.host_path.as_deref().unwrap()))
        .collect();
    let answered = answer.devices.iter();
    let answered: Vec<_> = answered
        .map(|d| (d.container_path.as_str(), d.host_path.as_str()))
        .collect();
    assert_eq!(nodes, answered);
    let mounts = spec.container_edits.mounts.iter();
    let mounts: Vec<_> = mounts.map(|m| (&m.container_path, &m.host_path)).collect();
    let answered = answer.mounts.iter();
    let answered: Vec<_> = answered
        .map(|m| (&m.container_path, &m.host_path))
        .collect();
    assert_eq!(mounts, answered);
}

#[tokio::test]
async fn a_sick_gpu_keeps_its_name_and_is_not_one_of_all() {
    let running = start(3, &[]).await;
    running.listening(1).await;
    running.node.xid(1, 79);
    running.counts(2, 3).await;
    spec_becomes(&running, "all without the sick one", |spec| {
        spec.device("all").device_nodes.len() == 2
    })
    .await;
    let spec = spec(&running.node);
    assert_eq!(spec.device(&running.node.uuid(1)).device_nodes.len(), 1);
    assert_eq!(spec.device("1").device_nodes.len(), 1);
    running.kubelet.assert_no_violations();
}

// === When it is written ===

#[tokio::test]
async fn it_is_there_before_the_kubelet_hears_of_a_device() {
    let running = start(2, &[]).await;
    let first = &running.lists(0)[0];
    assert!(first.iter().all(|device| device.health == "Healthy"));
    let line = async |text| running.plugin.wait_for_line(text, LONG).await.unwrap().at;
    assert!(line("CDI spec written").await < line("registered with the kubelet").await);
    let mode = fs::metadata(file(&running.node)).unwrap().permissions();
    assert_eq!(mode.mode() & 0o777, 0o644);
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn it_is_written_only_where_it_changes() {
    let mut running = start(2, &[]).await;
    let before = identity(&file(&running.node));
    running.kill_plugin().await;
    running.start_plugin_with(&[CDI]).await;
    running.counts(2, 2).await;
    assert_eq!(identity(&file(&running.node)), before);
    assert!(!running.plugin.log().contains("CDI spec written"));
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn a_new_driver_makes_a_new_spec_before_its_devices_are_given() {
    let running = start(2, &IN_PLACE).await;
    running.counts(2, 2).await;
    for version in ["590.10.01", "590.44.02"] {
        running.node.install_driver(version);
        running
            .eventually("the devices with the new driver", || async {
                let files = spec(&running.node).container_edits.mounts;
                let new = files.iter().any(|m| m.host_path.ends_with(version));
                let given = running.allocate(&[0, 1]).await.is_ok();
                // Whatever is given is in the spec of this moment.
                let files = spec(&running.node).container_edits.mounts;
                let all = files.iter().all(|m| Path::new(&m.host_path).is_file());
                assert!(!given || all, "{files:#?}");
                (new && given).then_some(())
            })
            .await;
    }
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn without_a_driver_the_last_spec_stays() {
    let running = start(2, &IN_PLACE).await;
    running.counts(2, 2).await;
    let before = fs::read_to_string(file(&running.node)).unwrap();
    let libraries = running.node.driver_library_dir();
    let aside = libraries.with_extension("aside");
    fs::rename(&libraries, &aside).unwrap();
    running.counts(0, 2).await;
    assert_eq!(fs::read_to_string(file(&running.node)).unwrap(), before);
    fs::rename(&aside, &libraries).unwrap();
    running.counts(2, 2).await;
    running.ready().await;
    running.kubelet.assert_no_violations();
}

/// While GPUs come and go and drivers change, a runtime that reads the folder
/// at any moment finds one spec and a good one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_never_sees_a_part_of_it() {
    let running = start(4, &[]).await;
    let folder = running.node.cdi_root();
    let done = Arc::new(AtomicBool::new(false));
    let reader = {
        let (folder, done) = (folder.clone(), done.clone());
        tokio::task::spawn_blocking(move || {
            let (mut reads, mut texts) = (0, std::collections::BTreeSet::new());
            while !done.load(Ordering::Relaxed) {
                let specs = loaded(&folder);
                assert_eq!(specs.len(), 1, "{specs:?}");
                texts.insert(fs::read_to_string(&specs[0]).unwrap());
                reads += 1;
            }
            for text in &texts {
                valid(text).unwrap_or_else(|fault| panic!("{fault}\n{text}"));
            }
            (reads, texts.len())
        })
    };
    for round in 0..4 {
        running.node.install_driver(&format!("590.10.0{round}"));
        running.node.lose(round);
        running.counts(3, 4).await;
        running.node.restore(round);
        running.counts(4, 4).await;
        let version = format!("590.10.0{round}");
        spec_becomes(&running, "the new driver's spec", |spec| {
            let mut files = spec.container_edits.mounts.iter();
            files.any(|m| m.host_path.ends_with(&version))
        })
        .await;
    }
    done.store(true, Ordering::Relaxed);
    let (reads, specs) = reader.await.unwrap();
    println!("{reads} reads, {specs} specs");
    assert!(specs >= 5, "only {specs} specs were seen");
    running.kubelet.assert_no_violations();
}

/// What a runtime would load from the folder.
fn loaded(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().flatten();
    let paths = entries.map(|entry| entry.path());
    paths
        .filter(|path| path.extension().is_some_and(|e| e == "json" || e == "yaml"))
        .collect()
}

#[tokio::test]
async fn what_other_specs_there_are_stay_as_they_are() {
    let node = SimulatedNode::new(1);
    fs::create_dir_all(node.cdi_root()).unwrap();
    let other = node.cdi_root().join("nvidia.yaml");
    fs::write(&other, "theirs").unwrap();
    let mut running = on(node, &[]).await;
    assert_eq!(loaded(&running.node.cdi_root()).len(), 2);
    running.kill_plugin().await;
    running.start_plugin().await;
    running.counts(1, 1).await;
    assert_eq!(
        loaded(&running.node.cdi_root()),
        std::slice::from_ref(&other)
    );
    assert_eq!(fs::read_to_string(other).unwrap(), "theirs");
}

// === When it is not there ===

#[tokio::test]
async fn a_spec_that_is_gone_is_refused_by_name_and_written_again() {
    let polls = ["--health-poll-interval", "10m"];
    let running = start(1, &polls).await;
    running.counts(1, 1).await;
    running.allocate(&[0]).await.unwrap();
    let file = file(&running.node);
    fs::remove_file(&file).unwrap();
    let refused = running.allocate(&[0]).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let message = format!("the CDI spec {} does not exist", file.display());
    assert!(refused.message().contains(&message), "{refused}");
    running
        .eventually("the device to be given again", || async {
            running.allocate(&[0]).await.ok()
        })
        .await;
    valid(&fs::read_to_string(&file).unwrap()).unwrap();
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn a_file_that_the_spec_names_and_is_gone_is_refused_too() {
    let polls = ["--health-poll-interval", "10m"];
    let running = start(1, &polls).await;
    running.counts(1, 1).await;
    let gone = running.node.dev().join("nvidia-uvm-tools");
    fs::remove_file(&gone).unwrap();
    let refused = running.allocate(&[0]).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let message = format!("{} does not exist any more", gone.display());
    assert!(refused.message().contains(&message), "{refused}");
    spec_becomes(&running, "the spec without it", |spec| {
        let nodes = &spec.container_edits.device_nodes;
        nodes
            .iter()
            .all(|node| node.path != "/dev/nvidia-uvm-tools")
    })
    .await;
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn a_spec_that_cannot_be_written_withdraws_the_devices_until_it_can() {
    let node = SimulatedNode::new(2);
    // A file stands where the folder should be.
    fs::write(node.cdi_root(), "").unwrap();
    let running = on(node, &[]).await;
    running.counts(0, 2).await;
    for list in running.lists(0) {
        assert!(list.iter().all(|device| device.health == "Unhealthy"));
    }
    let body = running.unready("CDI spec: cannot write the CDI spec").await;
    assert!(body.contains("--cdi-root"), "{body}");
    let refused = running.allocate(&[0]).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("cannot write the CDI spec"));
    fs::remove_file(running.node.cdi_root()).unwrap();
    running.counts(2, 2).await;
    running.ready().await;
    assert_eq!(running.plugin.log().matches("no CDI spec").count(), 1);
    running.allocate(&[0, 1]).await.unwrap();
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn a_folder_that_is_taken_away_is_made_again() {
    let running = start(2, &[]).await;
    running.counts(2, 2).await;
    fs::remove_dir_all(running.node.cdi_root()).unwrap();
    running
        .eventually("the spec in a new folder", || async {
            file(&running.node).exists().then_some(())
        })
        .await;
    spec(&running.node);
    running.kubelet.assert_no_violations();
}

// === Where no answer refers to it ===

#[tokio::test]
async fn it_is_removed_at_the_start_where_cdi_is_off_and_not_made() {
    for strategy in ["mounts", "envvar", "volume-mounts"] {
        let mut running = start(1, &[]).await;
        assert!(file(&running.node).exists());
        running.kill_plugin().await;
        assert!(file(&running.node).exists(), "containers start without us");
        let strategy = format!("--device-list-strategy={strategy}");
        running.start_plugin_with(&[&strategy]).await;
        running.counts(1, 1).await;
        assert!(loaded(&running.node.cdi_root()).is_empty());
        running.ready().await;
        running.kubelet.assert_no_violations();
    }
}

#[tokio::test]
async fn a_node_without_gpus_has_no_spec_and_is_ready() {
    let node = SimulatedNode::new(0);
    let kubelet = KubeletPeer::new(node.device_plugin_dir(), options());
    kubelet.start().await.unwrap();
    let running = Running::unregistered(node, kubelet, &[CDI]).await;
    running.ready().await;
    assert!(!file(&running.node).exists());
    running.kubelet.assert_no_violations();
}
