//! The plugin under a real kubelet, with a real container runtime, on simulated
//! GPUs.
//!
//! Runs where `KUBELET` names a kubelet binary, as root, with containerd, ctr
//! and runc on PATH; cc, ldd, tar and sha256sum make the pods' image, unshare and
//! mount the NUMA nodes that a kubelet sees. The pods take 30 s. `E2E_DRIVER_ROOT`
//! names a folder with the files of a real driver, such as Debian's packages
//! unpacked, for the test of their loading:
//!
//! ```sh
//! KUBELET=/usr/bin/kubelet E2E_DRIVER_ROOT=/tmp/driver cargo test --test e2e -- --nocapture
//! ```
//!
//! There can be one kubelet on a machine, for its folder of device plugins is
//! fixed; so the tests take turns, and refuse where a kubelet runs already.

#![allow(
    unreachable_pub,
    clippy::expect_used,
    clippy::panic,
    reason = "also a test's helpers fail by panicking"
)]

mod common;
#[path = "e2e/host.rs"]
mod host;
#[path = "e2e/image.rs"]
mod image;
#[allow(dead_code, reason = "tests/cluster_e2e.rs uses the rest")]
#[path = "e2e/kubelet.rs"]
mod kubelet;
#[path = "e2e/machine.rs"]
mod machine;
#[path = "e2e/node.rs"]
mod node;
#[path = "e2e/numa.rs"]
mod numa;
#[path = "e2e/pod.rs"]
mod pod;
#[path = "e2e/runtime.rs"]
mod runtime;
#[path = "e2e/which_gpus.rs"]
mod which_gpus;

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::nvml::{DRIVER_LIBRARIES, Purpose};
use common::probe::{Findings, LIBRARY_FOLDER};
use common::system::skip;
use common::wait::{self, eventually};
use node::Node;
use pod::Pod;

/// A plugin that is asked to end does so, whatever the kubelet does.
const END: Duration = Duration::from_secs(2);

/// A kubelet that comes back must not wait for its devices.
const REGISTRATION: Duration = Duration::from_secs(5);

/// GPUs are polled every 100 ms here.
const POLLS: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn all_gpus_are_allocatable() {
    let Some(mut node) = Node::new("all GPUs are allocatable", 8) else {
        return;
    };
    // A node's kubelet has made it long ago.
    fs::create_dir_all("/var/lib/kubelet/device-plugins").expect("make the kubelet's folder");
    let started = Instant::now();
    node.start_plugin();
    let waits = node
        .plugin()
        .wait_for_line("waiting for a kubelet", wait::LONG);
    waits.await.unwrap_or_else(|timeout| panic!("{timeout}"));
    node.say(&format!(
        "the plugin waits for a kubelet {} ms after its start",
        started.elapsed().as_millis()
    ));
    assert_eq!(node.http_get("/readyz").await.0, 503);

    node.start_kubelet().await;
    let devices = node.machine.kubelet.wait_allocatable(8).await;
    node.say("8 GPUs are allocatable");
    // What its stream is told by from those of other clients.
    let stream = node
        .plugin()
        .wait_for_line("list stream opened", wait::LONG);
    let stream = stream.await.unwrap_or_else(|timeout| panic!("{timeout}"));
    assert!(stream.text.contains("agent=\"grpc-go/"), "{stream:?}");
    let uuids: BTreeSet<_> = (0..8).map(|gpu| node.gpus.uuid(gpu)).collect();
    assert_eq!(devices, uuids);
    let registrations =
        "kubelet_device_plugin_registration_total{resource_name=\"nvidia.com/gpu\"}";
    assert_eq!(node.machine.kubelet.metric(registrations).await, Some(1.0));
    eventually("the plugin is ready", async || {
        match node.http_get("/readyz").await {
            (200, _) => Ok(()),
            other => Err(other),
        }
    })
    .await;
    node.say(&format!("the plugin is ready; it takes {}", memory(&node)));
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_get_gpus_of_their_own_and_the_driver() {
    let Some(mut node) = Node::new("pods get GPUs of their own and the driver", 4) else {
        return;
    };
    node.start().await;
    let first = node.run_pod("first", 1).await;
    let second = node.run_pod("second", 1).await;
    assert!(first.devices.is_disjoint(&second.devices));
    assert_served(&node, [&first, &second]).await;
}

/// Checks what each pod sees of its GPUs, of others and of the driver.
async fn assert_served(node: &Node, pods: [&Pod; 2]) {
    for pod in pods {
        let findings = pod::findings(&node.machine.kubelet, &pod.name, 0).await;
        node.assert_nodes(pod, &findings);
        assert_simulated_driver(&node.gpus.state().driver_version, &findings);
        assert_plain_environment(&findings);
    }
    node.say("each sees its own device nodes and may use no other; the driver's libraries load");
}

/// The plugin in a container, as its DaemonSet has it: it sees the host below a
/// folder, and makes links there of the host's files.
#[tokio::test(flavor = "multi_thread")]
async fn the_plugin_itself_is_a_pod() {
    const ROOT: &str = "/driver-root";
    let Some(mut node) = Node::new("the plugin itself is a pod", 4) else {
        return;
    };
    node.machine.kubelet.start().await;
    let kubelet = &node.machine.kubelet;
    kubelet.wait_healthy().await;
    pod::start_program(kubelet, "plugin", &node.plugin_pod_arguments(ROOT), ROOT);
    kubelet.wait_allocatable(4).await;
    node.say("4 GPUs are allocatable");
    let first = node.run_pod("first", 1).await;
    let second = node.run_pod("second", 2).await;
    assert_served(&node, [&first, &second]).await;
    assert_eq!(node.volume_ways(), ["\"link\"".to_owned()].into());
    node.say("the driver volume is of hard links");
}

/// As deploy/uninstall.yaml has it.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_takes_away_what_the_plugin_left() {
    const ROOT: &str = "/driver-root";
    let Some(mut node) = Node::new("a pod takes away what the plugin left", 2) else {
        return;
    };
    node.machine.kubelet.start().await;
    let kubelet = &node.machine.kubelet;
    kubelet.wait_healthy().await;
    let mut arguments = node.plugin_pod_arguments(ROOT);
    pod::start_program(kubelet, "plugin", &arguments, ROOT);
    kubelet.wait_allocatable(2).await;
    let volumes = node.volumes();
    assert_eq!(volumes.len(), 1);
    kubelet.remove_pod("plugin");
    kubelet.wait_allocatable(0).await;

    arguments.push("uninstall".into());
    pod::start_program(kubelet, "uninstall", &arguments, ROOT);
    let said = pod::wait_said(kubelet, "uninstall", "removed").await;
    let state_dir = node.state_dir();
    eventually("nothing is left", async || {
        if state_dir.exists() {
            Err(said.clone())
        } else {
            Ok(())
        }
    })
    .await;
    node.say(&said);
}

/// By what the runtime reads in our CDI spec, and nothing else in the answer;
/// also a container that starts again after the plugin's end.
#[tokio::test(flavor = "multi_thread")]
async fn pods_get_gpus_by_cdi() {
    for strategy in ["cdi-cri", "cdi-annotations"] {
        let Some(mut node) = Node::new(&format!("pods get GPUs by {strategy}"), 4) else {
            return;
        };
        node.strategy = strategy;
        node.start().await;
        let first = node.run_pod("first", 1).await;
        let second = node.run_pod("second", 2).await;
        assert!(first.devices.is_disjoint(&second.devices));
        assert_served(&node, [&first, &second]).await;
        node.end_plugin(libc::SIGTERM).await;
        node.machine.kubelet.wait_allocatable(0).await;
        node.say("the plugin is ended");
        assert_restarts_with_its_device(&node, &first, &node.gpus.state().driver_version).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_gets_as_many_as_it_asks_for_or_none() {
    let Some(mut node) = Node::new("a pod gets as many as it asks for or none", 4) else {
        return;
    };
    node.start().await;
    let pair = node.run_pod("pair", 2).await;
    let findings = pod::findings(&node.machine.kubelet, &pair.name, 0).await;
    node.assert_nodes(&pair, &findings);

    pod::start(&node.machine.kubelet, "three", &pod::limits(3), &[]);
    let (reason, message) = pod::wait_refused(&node.machine.kubelet, "three").await;
    node.say(&format!("pod three is refused: {reason}: {message}"));
    assert_eq!(reason, "UnexpectedAdmissionError");
    assert!(message.contains("requested number of devices unavailable for nvidia.com/gpu"));
    assert!(message.contains("Requested: 3, Available: 2"), "{message}");
    node.assert_untouched(&pair).await;

    node.machine.kubelet.remove_pod("three");
    node.remove_pod(&pair).await;
    node.run_pod("all", 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_kubelet_is_survived() {
    let Some(mut node) = Node::new("a restart of the kubelet is survived", 4) else {
        return;
    };
    node.start().await;
    let pod = node.run_pod("before", 1).await;
    for _ in 0..3 {
        node.machine.kubelet.stop();
        node.say("the kubelet is stopped");
        let took = node.start_kubelet().await;
        assert!(took < REGISTRATION, "registered after {took:?}");
        node.machine.kubelet.wait_allocatable(4).await;
        node.assert_untouched(&pod).await;
        node.say("4 GPUs are allocatable; the pod has the same container and device");
    }
    let after = node.run_pod("after", 3).await;
    assert!(after.devices.is_disjoint(&pod.devices));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_plugin_is_survived() {
    let Some(mut node) = Node::new("a restart of the plugin is survived", 4) else {
        return;
    };
    node.start().await;
    let pod = node.run_pod("before", 1).await;
    for (signal, name) in [(libc::SIGTERM, "SIGTERM"), (libc::SIGKILL, "SIGKILL")] {
        let (status, took) = node.end_plugin(signal).await;
        node.say(&format!(
            "{name}: the plugin ended {} ms later, {status}",
            took.as_millis()
        ));
        if signal == libc::SIGTERM {
            assert!(status.success() && took < END, "{status} after {took:?}");
            assert_eq!(plugin_sockets(), Vec::<PathBuf>::new());
        }
        node.machine.kubelet.wait_allocatable(0).await;
        node.say("no GPU is allocatable");
        node.assert_untouched(&pod).await;

        let started = Instant::now();
        node.start_plugin();
        let took = node.wait_registered(0).await - started;
        node.say(&format!(
            "registered {} ms after the plugin's start",
            took.as_millis()
        ));
        assert!(took < REGISTRATION, "registered after {took:?}");
        node.machine.kubelet.wait_allocatable(4).await;
        node.assert_untouched(&pod).await;
        node.say("4 GPUs are allocatable; the pod has the same container and device");
    }
    let after = node.run_pod("after", 3).await;
    assert!(after.devices.is_disjoint(&pod.devices));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_gpu_is_not_allocatable_until_it_is_back() {
    let Some(mut node) = Node::new("a lost GPU is not allocatable until it is back", 4) else {
        return;
    };
    node.start().await;
    let pod = node.run_pod("holder", 1).await;
    let lost = pod.devices.first().expect("a device").clone();
    let asked = Instant::now();
    node.gpus.lose(&lost);
    let left = node.machine.kubelet.wait_allocatable(3).await;
    let took = asked.elapsed();
    node.say(&format!(
        "the pod's GPU is lost; {} ms later 3 GPUs are allocatable",
        took.as_millis()
    ));
    assert!(!left.contains(&lost), "{lost} is lost, not among {left:?}");
    assert!(took < POLLS, "after {took:?}");
    node.assert_untouched(&pod).await;
    node.say("the pod runs on");
    let others = node.run_pod("others", 3).await;
    assert!(!others.devices.contains(&lost));

    let asked = Instant::now();
    node.gpus.restore(&lost);
    node.machine.kubelet.wait_allocatable(4).await;
    let took = asked.elapsed();
    node.say(&format!(
        "the GPU is back; {} ms later 4 GPUs are allocatable",
        took.as_millis()
    ));
    assert!(took < POLLS, "after {took:?}");
    node.assert_untouched(&pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_restarts_keeps_its_gpu() {
    let Some(mut node) = Node::new("a container that restarts keeps its GPU", 4) else {
        return;
    };
    node.start().await;
    let driver = node.gpus.state().driver_version;
    let first = node.run_pod("first", 1).await;
    let second = node.run_pod("second", 1).await;
    assert_eq!(node.calls("Allocate").await, 2);
    assert_restarts_with_its_device(&node, &first, &driver).await;
    assert_eq!(node.calls("Allocate").await, 2, "asked for devices again");
    node.say("the plugin was not asked for it again");

    node.end_plugin(libc::SIGTERM).await;
    node.machine.kubelet.wait_allocatable(0).await;
    node.say("the plugin is ended");
    assert_restarts_with_its_device(&node, &second, &driver).await;
}

/// The kubelet starts containers by an answer of old: what that names is kept as
/// long as its real checkpoint has it for a pod, and no longer.
#[tokio::test(flavor = "multi_thread")]
async fn a_driver_upgrade_leaves_pods_their_volume() {
    let Some(mut node) = Node::new("a driver upgrade leaves pods their volume", 2) else {
        return;
    };
    node.start().await;
    let old = node.run_pod("old", 1).await;
    let (before, driver) = (node.volumes(), node.gpus.state().driver_version);
    node.say(&format!("the pod has the driver of {before:?}"));
    node.gpus.install_driver("590.44.01");
    node.gpus
        .edit(|state| state.driver_version = "590.44.01".into());
    // A plugin of the new driver; the old one's answer is in the checkpoint alone.
    node.end_plugin(libc::SIGTERM).await;
    node.machine.kubelet.wait_allocatable(0).await;
    node.start_plugin();
    node.machine.kubelet.wait_allocatable(2).await;
    assert_eq!(node.volumes().len(), 2, "{:?}", node.volumes());
    node.say(&format!("now there are {:?}", node.volumes()));
    assert_restarts_with_its_device(&node, &old, &driver).await;
    assert!(node.volumes().is_superset(&before));

    node.machine.kubelet.remove_pod("old");
    // A kubelet writes its record anew with the next pod that is given a device
    // (here its pods are elsewhere than beside the plugins' folder, where the
    // plugin would see at once that one is gone).
    node.run_pod("new", 1).await;
    wait::eventually("the old volume is collected", async || {
        let volumes = node.volumes();
        let left = volumes.intersection(&before).count();
        if left == 0 {
            Ok(())
        } else {
            Err(format!("{volumes:?}"))
        }
    })
    .await;
    node.say("the pod is gone, and so is its volume");
}

/// Kills the pod's container and sees what the next one has.
async fn assert_restarts_with_its_device(node: &Node, pod: &Pod, driver: &str) {
    node.machine.runtime.kill_container(&pod.container);
    let now = pod::wait_running(&node.machine.kubelet, &pod.name, 1).await;
    node.say(&format!(
        "the container of pod {} was killed and runs again",
        pod.name
    ));
    assert_ne!(now.container, pod.container);
    assert_eq!(now.devices, pod.devices);
    let findings = pod::findings(&node.machine.kubelet, &pod.name, 1).await;
    node.assert_nodes(&now, &findings);
    assert_simulated_driver(driver, &findings);
    node.say("it has the same device");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_libraries_of_a_real_driver_load() {
    const TEST: &str = "the libraries of a real driver load";
    let Some(root) = env::var_os("E2E_DRIVER_ROOT") else {
        return skip(TEST, "needs E2E_DRIVER_ROOT=<folder with a driver's files>");
    };
    let root = fs::canonicalize(root).expect("the folder of E2E_DRIVER_ROOT");
    let version = driver_version(&root).expect("libcuda.so.<version> below E2E_DRIVER_ROOT");
    let Some(mut node) = Node::with_driver(TEST, 4, Some((root, &version))) else {
        return;
    };
    node.start().await;
    let kubelet = &node.machine.kubelet;
    let questions = [
        "libcuda.so.1:cuInit",
        "libnvidia-ml.so.1:nvmlInit_v2",
        "/usr/bin/nvidia-smi",
    ];
    pod::start(kubelet, "driver", &pod::limits(1), &questions);
    let pod = pod::wait_running(kubelet, "driver", 0).await;
    let findings = pod::findings(kubelet, "driver", 0).await;
    node.assert_nodes(&pod, &findings);
    let loaded = findings.all("loaded");
    for soname in [
        "libcuda.so.1",
        "libnvidia-ml.so.1",
        "libnvidia-ptxjitcompiler.so.1",
    ] {
        assert_loaded(&findings, soname);
    }
    let unloadable: BTreeMap<_, _> = findings.all("unloadable");
    node.say(&format!("driver {version}: loaded {:?}", loaded.keys()));
    node.say(&format!("not loaded: {unloadable:?}"));
    // OpenSSL is not the driver's.
    assert!(
        unloadable.values().all(|why| why.contains("libcrypto.so")),
        "{unloadable:?}"
    );

    let calls = findings.all("call");
    let runs = findings.all("run");
    node.say(&format!(
        "without a kernel module they answer: {calls:?}, {runs:?}"
    ));
    assert_eq!(calls["libcuda.so.1:cuInit"], "100", "CUDA_ERROR_NO_DEVICE");
    // Unknown where it could make the control node, which it then may not use.
    assert!(
        ["9", "999"].contains(&calls["libnvidia-ml.so.1:nvmlInit_v2"]),
        "{calls:?}"
    );
    assert!(
        ["9", "255"].contains(&runs["/usr/bin/nvidia-smi"]),
        "{runs:?}"
    );
}

/// Every library for computing and managing is there by its SONAME in each
/// folder that loaders search, with nvidia-smi, all read-only, and no other.
fn assert_simulated_driver(version: &str, findings: &Findings) {
    let libraries = DRIVER_LIBRARIES
        .iter()
        .filter(|library| library.purpose != Purpose::Graphics);
    let sonames: Vec<_> = libraries.map(|library| library.soname(version)).collect();
    let in_folder = |folder: &'static str| {
        let sonames = sonames.iter();
        sonames.map(move |soname| format!("{folder}/{soname}"))
    };
    let expected: BTreeSet<_> = in_folder(LIBRARY_FOLDER)
        .chain(in_folder("/usr/lib64"))
        .chain(["/usr/bin/nvidia-smi".to_owned()])
        // By which some programs load it.
        .chain([LIBRARY_FOLDER, "/usr/lib64"].map(|folder| format!("{folder}/libcuda.so")))
        .collect();
    let files = findings.all("file");
    let found: BTreeSet<_> = files.keys().map(|file| (*file).to_owned()).collect();
    assert_eq!(found, expected);
    assert!(
        files.values().all(|writable| *writable == "EROFS"),
        "{files:?}"
    );
    for soname in &sonames {
        assert_loaded(findings, soname);
    }
}

/// The loader found the library by its SONAME, in the folder that we mean: it
/// calls that /lib where the image links that to /usr/lib.
fn assert_loaded(findings: &Findings, soname: &str) {
    let path = format!("{LIBRARY_FOLDER}/{soname}");
    let loaded = findings.all("loaded").get(soname).copied();
    let loaded = loaded.unwrap_or_else(|| panic!("{soname} did not load: {findings:?}"));
    assert!(path.ends_with(loaded), "{loaded} is not {path}");
}

/// The loader's variable and the search path for programs are the image's.
fn assert_plain_environment(findings: &Findings) {
    let environment = findings.all("env");
    let ours = environment
        .keys()
        .filter(|variable| variable.starts_with("LD_") || variable.starts_with("NVIDIA_"));
    assert_eq!(ours.count(), 0, "{environment:?}");
    assert!(
        environment.contains_key("PATH=/usr/local/bin:/usr/bin:/bin"),
        "{environment:?}"
    );
}

/// The sockets in the kubelet's folder but its own.
fn plugin_sockets() -> Vec<PathBuf> {
    let files = fs::read_dir(host::DEVICE_PLUGINS).expect("the kubelet's folder");
    let files = files.flatten().map(|file| file.path());
    files
        .filter(|file| {
            file.extension()
                .is_some_and(|extension| extension == "sock")
        })
        .filter(|file| !file.ends_with("kubelet.sock"))
        .collect()
}

/// The version of the driver whose files are somewhere below the folder.
fn driver_version(folder: &Path) -> Option<String> {
    let entries: Vec<_> = fs::read_dir(folder).ok()?.flatten().collect();
    let version = entries.iter().find_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let version = name.strip_prefix("libcuda.so.")?;
        version.contains('.').then(|| version.to_owned())
    });
    let folders = || {
        let folders = entries
            .iter()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        folders.map(std::fs::DirEntry::path)
    };
    version.or_else(|| folders().find_map(|folder| driver_version(&folder)))
}

/// The memory and threads of the plugin, as the kernel counts them.
fn memory(node: &Node) -> String {
    let pid = node.plugin().pid().expect("a plugin that runs");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let fields = status
        .lines()
        .filter(|line| line.starts_with("VmRSS") || line.starts_with("Threads"));
    let fields: Vec<_> = fields
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    fields.join(", ")
}
