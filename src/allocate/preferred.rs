//! Which devices the kubelet had better take: GetPreferredAllocation's answer.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::api::v1beta1::{
    ContainerPreferredAllocationRequest, ContainerPreferredAllocationResponse,
    PreferredAllocationRequest, PreferredAllocationResponse,
};
use crate::choice::shared::{self, Load};
use crate::device::{Device, DeviceSnapshot, Health, Unit};

/// One answer for each container request, in their order. There is one for every
/// request: the kubelet rejects a pod for an error (Kubernetes'
/// pkg/kubelet/cm/devicemanager/manager.go, `callGetPreferredAllocationIfAvailable`).
/// Where a request cannot be met in full, the answer is what comes nearest.
#[must_use]
pub fn preferred(
    snapshot: &DeviceSnapshot,
    request: &PreferredAllocationRequest,
) -> PreferredAllocationResponse {
    let requests = request.container_requests.iter();
    PreferredAllocationResponse {
        container_responses: requests
            .map(|request| container(snapshot, request))
            .collect(),
    }
}

fn container(
    snapshot: &DeviceSnapshot,
    request: &ContainerPreferredAllocationRequest,
) -> ContainerPreferredAllocationResponse {
    let size = usize::try_from(request.allocation_size).unwrap_or(0);
    let must = sorted(&request.must_include_device_i_ds, &[]);
    let available = sorted(
        &request.available_device_i_ds,
        &request.must_include_device_i_ds,
    );
    // Otherwise there is nothing to choose.
    let is_choice = must.len() < size && size < available.len();
    let mut answer = match is_choice {
        true => choose(snapshot, &available, &must, size),
        false => must.clone(),
    };
    answer.truncate(size);
    if answer.len() < size {
        // What was not chosen fills up: a GPU that is not known, for one.
        let taken: BTreeSet<_> = answer.iter().copied().collect();
        let left = available.into_iter().filter(|id| !taken.contains(id));
        answer.extend(left.take(size - taken.len()));
    }
    ContainerPreferredAllocationResponse {
        device_i_ds: answer.into_iter().map(str::to_owned).collect(),
    }
}

/// Both, each ID once.
fn sorted<'a>(ids: &'a [String], others: &'a [String]) -> Vec<&'a str> {
    let mut sorted: Vec<_> = ids.iter().chain(others).map(String::as_str).collect();
    sorted.sort_unstable();
    sorted.dedup();
    sorted
}

/// A GPU's devices that may be given.
#[derive(Clone, Debug, Default)]
struct Group<'a> {
    must: Vec<&'a str>,
    others: Vec<&'a str>,
    /// Healthy devices, given or not.
    healthy: usize,
}

/// `size` of `available`, `must` among them; fewer where some are of no GPU that
/// is known. All are sorted.
fn choose<'a>(
    snapshot: &DeviceSnapshot,
    available: &[&'a str],
    must: &[&'a str],
    size: usize,
) -> Vec<&'a str> {
    let mut groups = groups(snapshot, available, must);
    let loads: Vec<_> = groups
        .iter()
        .enumerate()
        .filter(|(_, group)| group.must.len() + group.others.len() > 0)
        .map(|(gpu, group)| load(gpu, group))
        .collect();
    let mut chosen = must.to_vec();
    if groups.iter().all(|group| group.healthy <= 1) {
        let of = |wanted: fn(&Load) -> bool| -> Vec<_> {
            let loads = loads.iter().filter(|load| wanted(load));
            loads.map(|load| load.gpu).collect()
        };
        let choice = snapshot
            .chooser
            .choose(&of(|_| true), &of(|load| load.must > 0), size);
        let others = choice.gpus.iter().flat_map(|gpu| &groups[*gpu].others);
        chosen.extend(others);
        return chosen;
    }
    let policy = snapshot.common.allocation.shared_devices;
    let given = shared::spread(&snapshot.chooser, policy, &loads, size);
    for (load, given) in loads.iter().zip(given) {
        let others = std::mem::take(&mut groups[load.gpu].others);
        chosen.extend(others.into_iter().take(given - load.must));
    }
    chosen
}

fn load(gpu: usize, group: &Group<'_>) -> Load {
    let free = group.must.len() + group.others.len();
    Load {
        gpu,
        free,
        must: group.must.len(),
        used: group.healthy.saturating_sub(free),
    }
}

/// By the GPUs' positions, in one pass over the devices.
fn groups<'a>(
    snapshot: &DeviceSnapshot,
    available: &[&'a str],
    must: &[&'a str],
) -> Vec<Group<'a>> {
    let mut groups = vec![Group::default(); snapshot.chooser.topology().len()];
    let mut available = available.iter().copied().peekable();
    let mut last = None;
    for device in snapshot
        .devices
        .iter()
        .filter(|d| d.health == Health::Healthy)
    {
        let Some(group) = position(snapshot, device, &mut last).and_then(|at| groups.get_mut(at))
        else {
            continue;
        };
        group.healthy += 1;
        let own = device.id.as_str();
        while available.next_if(|id| *id < own).is_some() {}
        let Some(id) = available.next_if_eq(&own) else {
            continue;
        };
        match must.binary_search(&id) {
            Ok(_) => group.must.push(id),
            Err(_) => group.others.push(id),
        }
    }
    groups
}

/// Replicas of a GPU follow each other, so `last` spares most searches.
fn position<'a>(
    snapshot: &DeviceSnapshot,
    device: &'a Device,
    last: &mut Option<(&'a Arc<Unit>, Option<usize>)>,
) -> Option<usize> {
    let same = |(unit, _): &&(&Arc<Unit>, _)| Arc::ptr_eq(unit, &device.unit);
    if let Some((_, position)) = last.as_ref().filter(same) {
        return *position;
    }
    let position = device.uuid.as_ref();
    let position = position.and_then(|uuid| snapshot.chooser.position(uuid));
    *last = Some((&device.unit, position));
    position
}

#[cfg(test)]
mod tests;
