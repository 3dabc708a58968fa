use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::subsequence;

use super::*;
use crate::choice::Chooser;
use crate::choice::shared::Policy;
use crate::config::AllocationOptions;
use crate::device::{Common, DeviceId, UnhealthyReason, Unit};
use crate::gpu::topology::{PcieLevel, Place, Topology};

fn uuid(gpu: usize) -> String {
    format!("GPU-{gpu}")
}

/// GPUs in pairs below PCIe switches.
fn chooser(gpus: usize) -> Arc<Chooser> {
    let places = (0..gpus).map(|gpu| Place {
        uuid: uuid(gpu).as_str().into(),
        index: gpu as u32,
        pci_bus_id: gpu.to_string(),
        numa_node: None,
    });
    let level = |a: usize, b: usize| {
        Some(if a / 2 == b / 2 {
            PcieLevel::Pix
        } else {
            PcieLevel::Sys
        })
    };
    let untold = vec![None; gpus];
    Arc::new(Chooser::new(Topology::new(
        places.collect(),
        &untold,
        level,
    )))
}

fn device(gpu: usize, replica: Option<u32>) -> Device {
    Device {
        id: DeviceId::new(&uuid(gpu), replica),
        unit: Arc::new(Unit {
            uuid: Some(uuid(gpu).as_str().into()),
            gpu: None,
            numa_node: None,
            mig: None,
            health: Health::Healthy,
            nodes: Vec::new(),
        }),
    }
}

fn fall_sick(device: &mut Device) {
    let reason = UnhealthyReason::NoMigMinor;
    Arc::make_mut(&mut device.unit).health = Health::Unhealthy(reason);
}

fn snapshot(gpus: usize, replicas: u32, policy: Policy) -> DeviceSnapshot {
    let mut devices: Vec<_> = match replicas {
        0 => (0..gpus).map(|gpu| device(gpu, None)).collect(),
        _ => (0..gpus)
            .flat_map(|gpu| (0..replicas).map(move |replica| device(gpu, Some(replica))))
            .collect(),
    };
    devices.sort_by(|a, b| a.id.cmp(&b.id));
    let allocation = AllocationOptions {
        shared_devices: policy,
        ..AllocationOptions::default()
    };
    DeviceSnapshot {
        complete: true,
        devices,
        common: Common {
            allocation: Arc::new(allocation),
            ..Common::default()
        },
        chooser: chooser(gpus),
    }
}

fn whole(gpus: usize) -> DeviceSnapshot {
    snapshot(gpus, 0, Policy::Distributed)
}

fn ask(snapshot: &DeviceSnapshot, available: &[&str], must: &[&str], size: i32) -> Vec<String> {
    let owned = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect();
    let request = PreferredAllocationRequest {
        container_requests: vec![ContainerPreferredAllocationRequest {
            available_device_i_ds: owned(available),
            must_include_device_i_ds: owned(must),
            allocation_size: size,
        }],
    };
    let mut answer = preferred(snapshot, &request).container_responses;
    assert_eq!(answer.len(), 1);
    answer.remove(0).device_i_ds
}

#[test]
fn gpus_that_belong_together_are_preferred_in_whatever_order_they_come() {
    let node = whole(6);
    let available = ["GPU-5", "GPU-1", "GPU-2", "GPU-3"];
    assert_eq!(ask(&node, &available, &[], 2), ["GPU-2", "GPU-3"]);
    assert_eq!(ask(&node, &available, &["GPU-1"], 1), ["GPU-1"]);
    assert_eq!(
        ask(&node, &available, &["GPU-5"], 3),
        ["GPU-5", "GPU-2", "GPU-3"]
    );
}

#[test]
fn a_request_that_cannot_be_met_is_answered_with_what_there_is() {
    let node = whole(4);
    assert_eq!(ask(&node, &["GPU-1", "GPU-0"], &[], 3), ["GPU-0", "GPU-1"]);
    assert_eq!(ask(&node, &[], &["GPU-2"], 1), ["GPU-2"]);
    assert_eq!(ask(&node, &["GPU-1"], &[], 0), [""; 0]);
    assert_eq!(ask(&node, &["GPU-1"], &[], -1), [""; 0]);
    let both = ["GPU-1", "GPU-3"];
    assert_eq!(ask(&node, &both, &both, 1), ["GPU-1"]);
    assert_eq!(
        preferred(&node, &PreferredAllocationRequest::default()),
        PreferredAllocationResponse::default()
    );
}

#[test]
fn a_gpu_that_nobody_knows_comes_last() {
    let mut node = whole(2);
    let two = ["GPU-0", "GPU-9", "GPU-1"];
    assert_eq!(ask(&node, &two, &[], 2), ["GPU-0", "GPU-1"]);
    assert_eq!(ask(&DeviceSnapshot::default(), &two, &[], 1), ["GPU-0"]);
    // One that fell ill since the kubelet asked, too.
    fall_sick(&mut node.devices[0]);
    assert_eq!(ask(&node, &["GPU-0", "GPU-1"], &[], 1), ["GPU-1"]);
}

#[test]
fn replicas_are_given_by_the_policy() {
    // One of GPU 0 is in use.
    let available = [
        "GPU-0::1", "GPU-0::2", "GPU-1::0", "GPU-1::1", "GPU-1::2", "GPU-2::0", "GPU-2::1",
        "GPU-2::2", "GPU-3::0", "GPU-3::1", "GPU-3::2",
    ];
    for (policy, size, expected) in [
        (Policy::Distributed, 1, vec!["GPU-1::0"]),
        (Policy::Distributed, 2, vec!["GPU-2::0", "GPU-3::0"]),
        (Policy::Packed, 2, vec!["GPU-0::1", "GPU-0::2"]),
        (Policy::DifferentGpus, 2, vec!["GPU-2::0", "GPU-3::0"]),
    ] {
        let node = snapshot(4, 3, policy);
        assert_eq!(ask(&node, &available, &[], size), expected, "{policy:?}");
    }
}

proptest! {
    /// Never fewer than there could be, never one twice or one that is not free,
    /// and always what must be.
    #[test]
    fn every_request_that_can_be_met_is_met(
        replicas in 0..3_u32,
        policy in proptest::sample::select(Policy::ALL.to_vec()),
        available in subsequence((0..12_usize).collect::<Vec<_>>(), 0..=12),
        sick in subsequence((0..12_usize).collect::<Vec<_>>(), 0..=3),
        must in 0..3_usize,
        size in 0..14_i32,
    ) {
        let mut node = snapshot(4, replicas, policy);
        let known = node.devices.len();
        for sick in sick.into_iter().filter(|sick| *sick < known) {
            fall_sick(&mut node.devices[sick]);
        }
        // Some that the node does not have.
        let id = |at: usize| node.devices.get(at).map_or(format!("x{at}"), |d| d.id.to_string());
        let available: Vec<_> = available.into_iter().map(id).collect();
        let available: Vec<_> = available.iter().map(String::as_str).collect();
        let must = &available[..must.min(available.len())];
        let answer = ask(&node, &available, must, size);
        let size = size as usize;
        prop_assert_eq!(answer.len(), size.min(available.len()));
        prop_assert!(answer.iter().all(|id| available.contains(&id.as_str())));
        let mut once = answer.clone();
        once.sort();
        once.dedup();
        prop_assert_eq!(once.len(), answer.len());
        if must.len() <= size {
            prop_assert!(must.iter().all(|id| answer.iter().any(|given| given == id)));
        }
        let mut other_order = available.clone();
        other_order.reverse();
        prop_assert_eq!(ask(&node, &other_order, must, size as i32), answer);
    }
}
