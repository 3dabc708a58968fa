//! Drivers that are replaced, and volumes that were damaged.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use gpu_device_plugin::api::v1beta1::Device;

use crate::common::nvml::{DRIVER_LIBRARIES, Return, SimulatedNode};
use crate::common::plugin::PluginProcess;
use crate::common::running::{LONG, RESOURCE, Running, options, program};
use crate::rig::{
    EAGER, NEWER, VERSION, assert_all_below, kept, mounts, names, node_of_size, only, running,
    start_again, text, volume_made, ways,
};

/// Another kernel module is loaded, and nothing else changes.
fn load_module(node: &SimulatedNode, version: &str) {
    let line =
        format!("NVRM version: NVIDIA UNIX x86_64 Kernel Module  {version}  Release Build\n");
    for (path, text) in [
        (node.proc().join("driver/nvidia/version"), line),
        (
            node.sys().join("module/nvidia/version"),
            format!("{version}\n"),
        ),
    ] {
        // In one step, as the kernel does it.
        let new = path.with_extension("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, path).unwrap();
    }
}

/// The libraries of this version in place of all others, under the old module.
fn replace_files(node: &SimulatedNode, version: &str) {
    let folder = node.driver_library_dir();
    fs::remove_dir_all(&folder).unwrap();
    fs::create_dir(&folder).unwrap();
    for library in DRIVER_LIBRARIES {
        let file = folder.join(library.file_name(version));
        library.shared_object(version).write(&file);
    }
}

/// Every file below the folder.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut contents = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            contents.append(&mut self::contents(&entry.path()));
        } else if kind.is_file() {
            contents.insert(entry.path(), fs::read(entry.path()).unwrap());
        }
    }
    contents
}

/// Waits until every device is refused, for a reason that has both versions.
async fn both_versions_are_named(running: &Running) {
    running.counts(0, 2).await;
    let what = "a refusal that names both versions";
    running
        .eventually(what, || async {
            let refused = running.allocate(&[0]).await.unwrap_err();
            let named = |version| refused.message().contains(version);
            (named(VERSION) && named(NEWER)).then_some(())
        })
        .await;
}

#[tokio::test]
async fn an_upgrade_gives_a_new_volume_and_leaves_pods_the_old_one() {
    let running = Running::on(SimulatedNode::new(2), options(), &EAGER).await;
    running.counts(2, 2).await;
    let state = running.node.state_dir();
    let old = only(&state);
    let pod = running.kubelet.allocate(RESOURCE, 1).await.unwrap();
    assert_all_below(&pod.response.mounts, &old);
    let before = contents(&old);

    // The package comes first. The module is the old one, and so is the answer.
    replace_files(&running.node, NEWER);
    running.pass_time().await;
    assert_eq!(only(&state), old);
    let answer = running.allocate(&[0]).await.unwrap();
    assert_all_below(mounts(&answer), &old);

    // Then the module, and the process has loaded the old library.
    running
        .node
        .edit(|state| state.init = Return::LibRmVersionMismatch);
    load_module(&running.node, NEWER);
    both_versions_are_named(&running).await;

    running.node.install_driver(NEWER);
    running.node.edit(|state| state.init = Return::Success);
    running.counts(2, 2).await;
    running.ready().await;
    let answer = running.allocate(&[0]).await.unwrap();
    let volume = mounts(&answer).last().unwrap().host_path.clone();
    assert!(volume.contains(&format!("/driver/{NEWER}-")), "{volume}");
    assert_all_below(mounts(&answer), Path::new(&volume));

    kept(&running.plugin, &old, "the kubelet's checkpoint has it").await;
    assert_eq!(names(&state).len(), 2);
    assert!(contents(&old) == before, "a pod's files changed");
    assert_eq!(running.register_calls(0), 1);
    running.kubelet.assert_no_violations();
}

/// A library that goes on answering says nothing of the module.
#[tokio::test]
async fn devices_stay_unhealthy_as_long_as_library_and_module_are_of_two_drivers() {
    let running = Running::start(2).await;
    let mark = running.kubelet.mark();
    load_module(&running.node, NEWER);
    both_versions_are_named(&running).await;
    let ends = "session with the driver ended";
    running
        .eventually("some sessions", || async {
            (running.plugin.log().matches(ends).count() > 3).then_some(())
        })
        .await;
    // Not for a moment, and told once.
    let log = running.plugin.log();
    let told = |what| log.matches(what).count();
    assert_eq!(
        (told("device is healthy"), told("device is unhealthy")),
        (2, 2)
    );
    assert_eq!(told("driver found"), 1);
    let healthy = |list: &Vec<Device>| list.iter().any(|device| device.health == "Healthy");
    assert!(!running.lists(mark).iter().any(healthy));
    both_versions_are_named(&running).await;
    running.node.install_driver(NEWER);
    running.counts(2, 2).await;
    running.ready().await;
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn a_plugin_that_starts_between_the_new_files_and_the_new_module_serves_the_old_volume() {
    let mut running = Running::on(SimulatedNode::new(2), options(), &EAGER).await;
    running.counts(2, 2).await;
    let state = running.node.state_dir();
    let old = only(&state);
    let before = running.allocate(&[0]).await.unwrap();
    let content = contents(&old);
    running.kill_plugin().await;
    replace_files(&running.node, NEWER);

    start_again(&mut running, &EAGER).await;
    volume_made(&running).await;
    running.counts(2, 2).await;
    running.ready().await;
    assert_eq!(running.allocate(&[0]).await.unwrap(), before);
    // Nobody else names it now.
    kept(&running.plugin, &old, "a plugin that runs answers with it").await;
    assert_eq!(only(&state), old);
    assert!(contents(&old) == content);

    running.node.install_driver(NEWER);
    running
        .eventually("the new volume alone", || async {
            matches!(&names(&state)[..], [name] if name.starts_with(NEWER)).then_some(())
        })
        .await;
    running.counts(2, 2).await;
    running.kubelet.assert_no_violations();
}

/// Before it is known what containers get, nothing is known to be in nobody's use.
#[tokio::test]
async fn the_old_volume_waits_for_a_driver_that_does_not_tell_its_version() {
    let mut running = Running::on(SimulatedNode::new(2), options(), &EAGER).await;
    running.counts(2, 2).await;
    let old = only(&running.node.state_dir());
    running.kill_plugin().await;
    replace_files(&running.node, NEWER);
    let call = "nvmlSystemGetDriverVersion";
    let fails = (call.to_owned(), Return::Unknown);
    running.node.edit(|state| state.fail.extend([fails]));
    start_again(&mut running, &EAGER).await;
    let sessions = format!("nvml_errors_total{{call=\"{call}\"}}");
    running.metric_reaches(&sessions, 8.0).await;
    running.node.edit(|state| state.fail.clear());
    running.counts(2, 2).await;
    let answer = running.allocate(&[0]).await.unwrap();
    assert_all_below(mounts(&answer), &old);
    running.kubelet.assert_no_violations();
}

/// The library of the new files would refuse to work with the old module. Here
/// none works: what is told is which was taken.
#[tokio::test]
async fn a_plugin_that_starts_between_new_files_and_new_module_takes_nvml_from_the_old_volume() {
    let mut running = Running::start(2).await;
    let volume = only(&running.node.state_dir());
    running.kill_plugin().await;
    let mut arguments = running.node.plugin_arguments();
    let named = arguments.iter().position(|flag| flag == "--nvml-library");
    arguments.drain(named.unwrap()..named.unwrap() + 2);
    let installed = running.node.driver_library_dir();
    let installed = installed.join(format!("libnvidia-ml.so.{VERSION}"));
    let volumes = volume.join("lib64/libnvidia-ml.so.1");
    for expected in [&installed, &volumes] {
        running.plugin = PluginProcess::spawn(program(), &arguments, &[]).unwrap();
        let tried = format!("{}: ", expected.display());
        running.plugin.wait_for_line(&tried, LONG).await.unwrap();
        running.kill_plugin().await;
        replace_files(&running.node, NEWER);
    }
}

// === Damaged ===

/// Starts the plugin again after the harm.
async fn is_mended(mut running: Running, state: &Path, harm: impl Fn(&Path)) {
    volume_made(&running).await;
    running.counts(2, 2).await;
    let volume = only(state);
    let before = running.allocate(&[0]).await.unwrap();
    let content = contents(&volume);
    running.kill_plugin().await;
    harm(&volume);

    let flags = [&["--state-dir", text(state)], &EAGER[..]].concat();
    start_again(&mut running, &flags).await;
    volume_made(&running).await;
    running.counts(2, 2).await;
    assert_eq!(running.allocate(&[0]).await.unwrap(), before);
    assert!(contents(&volume) == content, "it is not mended");
    ways(&running.node, state);
    running
        .eventually("the damaged one to go", || async {
            (names(state).len() == 1).then_some(())
        })
        .await;
    assert_eq!(only(state), volume);
    running.kubelet.assert_no_violations();
}

#[tokio::test]
async fn a_link_that_became_another_file_is_mended_under_the_same_path() {
    let node = node_of_size(0);
    let state = node.state_dir();
    let running = running(node, &state, &EAGER).await;
    is_mended(running, &state.clone(), |volume| {
        let file = volume.join("lib64/libcuda.so.1");
        let bytes = fs::read(&file).unwrap();
        fs::remove_file(&file).unwrap();
        fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_copy_that_lost_its_end_is_mended_under_the_same_path() {
    let Ok(state) = tempfile::tempdir_in("/dev/shm") else {
        return crate::common::system::skip("a_copy_that_lost_its_end_is_mended", "no /dev/shm");
    };
    let running = running(node_of_size(1 << 16), state.path(), &EAGER).await;
    is_mended(running, state.path(), |volume| {
        let file = volume.join("lib64/libcuda.so.1");
        fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
        let open = fs::File::options().write(true).open(file).unwrap();
        open.set_len(1000).unwrap();
    })
    .await;
}
