//! Which GPUs a real kubelet gives: those of the NUMA node that its topology
//! manager settled on, and of these the ones that the plugin prefers.

use std::collections::BTreeSet;

use gpu_device_plugin::api::v1beta1::device_plugin_client::DevicePluginClient;
use gpu_device_plugin::api::v1beta1::{
    ContainerPreferredAllocationRequest, PreferredAllocationRequest,
};
use tonic::transport::Endpoint;

use crate::common::cube_mesh::cube_mesh;
use crate::common::system::skip;
use crate::common::wait::eventually;
use crate::node::Node;
use crate::numa::TwoNodes;
use crate::pod::{self, Pod};

/// A node whose kubelet aligns what a pod gets, and the only processor that it
/// gives to a pod alone. That is on NUMA node 1, as is the second half of the GPUs.
fn aligning(test: &str, gpus: usize) -> Option<(Node, u32)> {
    let Some(numa) = TwoNodes::of_this_machine() else {
        skip(test, "needs two processors");
        return None;
    };
    let mut node = Node::new(test, gpus)?;
    let alignment = numa.lay_out(node.machine.folder());
    node.machine.kubelet.align(alignment);
    Some((node, numa.last))
}

#[tokio::test(flavor = "multi_thread")]
async fn gpus_are_of_the_numa_node_of_the_processor() {
    let test = "GPUs are of the NUMA node of the processor";
    let Some((mut node, cpu)) = aligning(test, 4) else {
        return;
    };
    node.start().await;
    let aligned = node.run_limited("aligned", &pod::with_a_cpu(1)).await;
    assert_has_cpu(&node, &aligned, cpu);
    let of_node_1 = uuids(&node, &[2, 3]);
    assert!(aligned.devices.is_subset(&of_node_1), "{aligned:?}");

    assert_not_aligned(&node, "three", &pod::limits(3)).await;
    node.assert_untouched(&aligned).await;
    let pair = node.run_pod("pair", 2).await;
    assert_eq!(pair.devices, uuids(&node, &[0, 1]), "both of node 0");

    // Two GPUs are free, neither where the processor is.
    node.remove_pod(&aligned).await;
    let other = node.run_pod("other", 2).await;
    assert_eq!(other.devices, of_node_1);
    node.remove_pod(&pair).await;
    assert_not_aligned(&node, "apart", &pod::with_a_cpu(1)).await;
    node.remove_pod(&other).await;
    let again = node.run_limited("again", &pod::with_a_cpu(2)).await;
    assert_has_cpu(&node, &again, cpu);
    assert_eq!(again.devices, of_node_1);
}

/// Where sysfs names no NUMA node the plugin names none, and a kubelet that wants a
/// single one leaves GPUs out of it.
#[tokio::test(flavor = "multi_thread")]
async fn gpus_without_a_numa_node_are_given_all_the_same() {
    let test = "GPUs without a NUMA node are given all the same";
    let Some((mut node, cpu)) = aligning(test, 4) else {
        return;
    };
    node.gpus.edit(|state| {
        for gpu in &mut state.gpus {
            gpu.numa_node = None;
        }
    });
    node.start().await;
    let all = node.run_limited("all", &pod::with_a_cpu(4)).await;
    assert_has_cpu(&node, &all, cpu);
}

/// A kubelet that aligns looks up, when it restarts, where the devices of running
/// pods are. It ends where one is not listed, and the pod where the device is on no
/// NUMA node but others are (Kubernetes'
/// pkg/kubelet/cm/devicemanager/topology_hints.go).
#[tokio::test(flavor = "multi_thread")]
async fn a_gpu_that_is_gone_is_listed_where_it_was() {
    let test = "a GPU that is gone is listed where it was";
    let Some((mut node, cpu)) = aligning(test, 4) else {
        return;
    };
    node.start().await;
    let holder = node.run_limited("holder", &pod::with_a_cpu(1)).await;
    node.gpus.vanish(holder.devices.first().expect("a device"));
    node.machine.kubelet.wait_allocatable(3).await;
    node.say("the pod's GPU is gone");
    node.end_plugin(libc::SIGTERM).await;
    node.machine.kubelet.wait_allocatable(0).await;
    node.start_plugin();
    node.machine.kubelet.wait_allocatable(3).await;
    node.say("the plugin has restarted");
    for _ in 0..5 {
        node.machine.kubelet.stop();
        node.start_kubelet().await;
        node.machine.kubelet.wait_allocatable(3).await;
        node.assert_untouched(&holder).await;
        assert_has_cpu(&node, &holder, cpu);
        node.say("the kubelet has restarted; the pod runs on");
    }
    let free = node.run_pod("free", 2).await;
    assert_eq!(free.devices, uuids(&node, &[0, 1]), "both of node 0");
}

/// Checks that the kernel lets the pod run on that processor alone.
fn assert_has_cpu(node: &Node, pod: &Pod, cpu: u32) {
    let cpus = node.machine.runtime.cpus_of(&pod.container);
    node.say(&format!("pod {} may run on processors {cpus}", pod.name));
    assert_eq!(cpus, cpu.to_string());
}

/// Checks that the kubelet refuses such a pod as one that it cannot align, and
/// that it and the plugin live on; then takes the pod away.
async fn assert_not_aligned(node: &Node, name: &str, limits: &serde_json::Value) {
    let kubelet = &node.machine.kubelet;
    let allocations = node.calls("Allocate").await;
    pod::start(kubelet, name, limits, &[]);
    let (reason, message) = pod::wait_refused(kubelet, name).await;
    node.say(&format!("pod {name} is refused: {reason}: {message}"));
    assert_eq!(reason, "TopologyAffinityError");
    assert_eq!(node.calls("Allocate").await, allocations);
    kubelet.wait_healthy().await;
    assert_eq!(node.http_get("/readyz").await.0, 200);
    kubelet.remove_pod(name);
}

/// Of all sets that are free the kubelet gives the one that the plugin prefers.
#[tokio::test(flavor = "multi_thread")]
async fn pods_get_the_gpus_that_are_linked_best() {
    let Some(mut node) = Node::new("pods get the GPUs that are linked best", 8) else {
        return;
    };
    node.gpus.edit(cube_mesh);
    node.start().await;
    wait_preferred(&node, 2, &[2, 3]).await;
    for (name, gpus) in [
        ("first", &[2, 3][..]),
        ("second", &[6, 7]),
        ("third", &[0, 4]),
        ("rest", &[1, 5]),
    ] {
        let asked = node.calls("GetPreferredAllocation").await;
        let pod = node.run_pod(name, gpus.len()).await;
        assert_eq!(pod.devices, uuids(&node, gpus));
        let more = node.calls("GetPreferredAllocation").await - asked;
        assert_eq!(more, 1, "calls for pod {name}");
    }
}

/// Waits until that is preferred of all GPUs: how they are linked is read after
/// the first list.
async fn wait_preferred(node: &Node, size: usize, gpus: &[usize]) {
    let sockets = crate::plugin_sockets();
    let endpoint = format!("unix://{}", sockets[0].display());
    let endpoint = Endpoint::try_from(endpoint).expect("an address");
    let channel = endpoint.connect().await.expect("connect to the plugin");
    let all: Vec<_> = (0..node.gpus.state().gpus.len()).collect();
    let request = PreferredAllocationRequest {
        container_requests: vec![ContainerPreferredAllocationRequest {
            available_device_i_ds: uuids(node, &all).into_iter().collect(),
            must_include_device_i_ds: Vec::new(),
            allocation_size: i32::try_from(size).expect("a few GPUs"),
        }],
    };
    let expected = uuids(node, gpus);
    let mut client = DevicePluginClient::new(channel);
    eventually("the plugin knows the links", async || {
        let answer = client.get_preferred_allocation(request.clone()).await;
        let answer = answer.map_err(|status| status.to_string())?.into_inner();
        let ids = answer.container_responses.into_iter();
        let ids: BTreeSet<_> = ids.flat_map(|answer| answer.device_i_ds).collect();
        if ids == expected {
            Ok(())
        } else {
            Err(format!("{ids:?}"))
        }
    })
    .await;
}

fn uuids(node: &Node, gpus: &[usize]) -> BTreeSet<String> {
    gpus.iter().map(|gpu| node.gpus.uuid(*gpu)).collect()
}
