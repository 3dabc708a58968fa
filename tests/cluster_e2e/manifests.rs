//! What is made in the cluster.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;

use serde_json::{Value, json};

use super::image::{NAME, PLUGIN};
use crate::common::probe::{LIBRARY_FOLDER, PROBE};
use crate::control_plane::door;

/// Where the DaemonSet sees the host's `/`.
pub const ROOT: &str = "/driver-root";

/// The workload's label.
pub const APP: &str = "train";

/// The objects of a file in deploy/.
pub fn of_deploy(file: &str) -> Vec<Value> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    let text = fs::read_to_string(folder.join(file)).expect("a file of deploy/");
    door::objects(&text)
}

/// Fits the plugin's DaemonSet to this machine: our image, simulated GPUs, the
/// host's network, as there is no other and no service leads anywhere, and no mounts
/// that come later, which want the host's `/` to be a shared mount.
pub fn fit_daemon_set(set: &mut Value, arguments: &[String], http: u16, server: u16) {
    let pod = &mut set["spec"]["template"]["spec"];
    pod["hostNetwork"] = true.into();
    let container = &mut pod["containers"][0];
    container["image"] = NAME.into();
    container["command"] = json!([PLUGIN]);
    container["ports"][0]["containerPort"] = http.into();
    let name = |argument: &str| argument.split('=').next().unwrap_or_default().to_owned();
    let all = container["args"].as_array_mut().expect("arguments");
    all.retain(|argument| {
        let given = argument.as_str().map(name);
        !arguments.iter().any(|own| Some(name(own)) == given)
    });
    all.extend(arguments.iter().map(|argument| argument.as_str().into()));
    let environment = container["env"].as_array_mut().expect("an environment");
    environment.push(json!({"name": "KUBERNETES_SERVICE_HOST", "value": "127.0.0.1"}));
    environment.push(json!({"name": "KUBERNETES_SERVICE_PORT", "value": server.to_string()}));
    for mount in container["volumeMounts"].as_array_mut().expect("mounts") {
        let mount = mount.as_object_mut().expect("a mount");
        mount.remove("mountPropagation");
    }
}

/// A workload of pods with a GPU each.
pub fn deployment(replicas: usize) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": APP, "namespace": "default"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": APP}},
            "template": {
                "metadata": {"labels": {"app": APP}},
                "spec": {
                    "hostNetwork": true,
                    "terminationGracePeriodSeconds": 1,
                    "automountServiceAccountToken": false,
                    "containers": [{
                        "name": "probe",
                        "image": NAME,
                        "imagePullPolicy": "Never",
                        "command": [PROBE, LIBRARY_FOLDER],
                        "resources": {"limits": {"nvidia.com/gpu": 1}},
                    }],
                },
            },
        },
    })
}

/// A budget that lets none of so many pods go.
pub fn budget(pods: usize) -> Value {
    json!({
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": APP, "namespace": "default"},
        "spec": {"minAvailable": pods, "selector": {"matchLabels": {"app": APP}}},
    })
}

/// Has the node ready without a network for pods.
pub fn join_networks(folder: &Path) {
    let network = json!({
        "cniVersion": "1.0.0", "name": "none", "plugins": [{"type": "loopback"}],
    });
    let networks = folder.join("networks");
    fs::create_dir(&networks).expect("create the folder of networks");
    fs::write(networks.join("10-none.conflist"), network.to_string()).expect("write a network");
}

/// The logs of the pods whose folders begin so.
pub fn logs(folder: &Path, prefix: &str) -> String {
    let entries = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten();
    let pods = entries(folder).filter(|pod| pod.file_name().to_string_lossy().starts_with(prefix));
    let containers = pods.flat_map(|pod| entries(&pod.path()));
    let mut lives: Vec<_> = containers
        .flat_map(|container| entries(&container.path()))
        .map(|life| life.path())
        .collect();
    lives.sort();
    let lives = lives
        .iter()
        .filter_map(|life| fs::read_to_string(life).ok());
    lives.collect()
}

/// One that was free a moment ago.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a free port");
    listener.local_addr().expect("its address").port()
}
