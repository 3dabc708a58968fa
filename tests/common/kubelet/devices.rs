//! What the kubelet believes of each resource: pkg/kubelet/cm/devicemanager,
//! manager.go and endpoint.go, as plain data.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gpu_device_plugin::api::v1beta1::{ContainerAllocateResponse, Device, DevicePluginOptions};
use tonic::transport::Channel;

use super::events::Violation;

/// The only word the kubelet takes for health.
const HEALTHY: &str = "Healthy";
/// Where devices without topology are filed (manager.go, nodeWithoutTopology).
const NO_NODE: i64 = -1;

pub(super) type Ids = BTreeSet<String>;

/// A resource's numbers in the node's status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    pub allocatable: usize,
    pub capacity: usize,
}

/// A plugin's last known connection (endpoint.go, endpointImpl).
#[derive(Clone, Default)]
pub(super) struct Endpoint {
    pub(super) socket: PathBuf,
    pub(super) channel: Option<Channel>,
    pub(super) options: Option<DevicePluginOptions>,
    stopped: Option<Instant>,
}

impl Endpoint {
    pub(super) fn connected(
        socket: PathBuf,
        channel: Channel,
        options: DevicePluginOptions,
    ) -> Self {
        Self {
            socket,
            channel: Some(channel),
            options: Some(options),
            stopped: None,
        }
    }

    /// The channel, unless the endpoint has been stopped.
    pub(super) fn channel(&self, resource: &str) -> Result<Channel, String> {
        match (&self.channel, self.stopped) {
            (Some(channel), None) => Ok(channel.clone()),
            _ => Err(format!("endpoint {resource} has been stopped")),
        }
    }
}

/// What a pod's container was given (pod_devices.go, deviceAllocateInfo).
#[derive(Clone, PartialEq)]
pub(super) struct Held {
    pub(super) resource: String,
    pub(super) per_numa: BTreeMap<i64, Vec<String>>,
    pub(super) response: ContainerAllocateResponse,
}

impl Held {
    pub(super) fn ids(&self) -> Ids {
        self.per_numa.values().flatten().cloned().collect()
    }
}

/// The device manager's memory; a restart keeps only `pods` and the names.
#[derive(Default)]
pub(super) struct Manager {
    pub(super) endpoints: BTreeMap<String, Endpoint>,
    pub(super) all: BTreeMap<String, BTreeMap<String, Device>>,
    pub(super) healthy: BTreeMap<String, Ids>,
    pub(super) unhealthy: BTreeMap<String, Ids>,
    /// Held by pods or being given to one.
    pub(super) allocated: BTreeMap<String, Ids>,
    pub(super) pods: BTreeMap<String, Held>,
}

impl Manager {
    /// readCheckpoint: known resources have no devices until they re-register.
    pub(super) fn restored(
        pods: BTreeMap<String, Held>,
        resources: impl IntoIterator<Item = String>,
        now: Instant,
    ) -> Self {
        let mut manager = Self {
            pods,
            ..Self::default()
        };
        manager.restore_allocated();
        for resource in resources {
            manager.healthy.entry(resource.clone()).or_default();
            manager.unhealthy.entry(resource.clone()).or_default();
            let stopped = Endpoint {
                stopped: Some(now),
                ..Endpoint::default()
            };
            manager.endpoints.insert(resource, stopped);
        }
        manager
    }

    /// genericDeviceUpdateCallback: the list replaces all that was known.
    pub(super) fn receive(&mut self, resource: &str, devices: &[Device]) {
        let (mut healthy, mut unhealthy) = (Ids::new(), Ids::new());
        for device in devices {
            // An ID listed with both words is in both sets, and counts twice.
            let set = if device.health == HEALTHY {
                &mut healthy
            } else {
                &mut unhealthy
            };
            set.insert(device.id.clone());
        }
        let by_id = devices.iter().map(|d| (d.id.clone(), d.clone())).collect();
        self.all.insert(resource.to_owned(), by_id);
        self.healthy.insert(resource.to_owned(), healthy);
        self.unhealthy.insert(resource.to_owned(), unhealthy);
    }

    /// PluginDisconnected. `only` narrows it to the endpoint on that socket.
    pub(super) fn disconnected(
        &mut self,
        resource: &str,
        only: Option<&Path>,
        now: Instant,
    ) -> bool {
        let Some(endpoint) = self.endpoints.get_mut(resource) else {
            return false;
        };
        if only.is_some_and(|socket| socket != endpoint.socket) {
            return false;
        }
        endpoint.stopped = Some(now);
        let lost = self
            .healthy
            .get_mut(resource)
            .map(std::mem::take)
            .unwrap_or_default();
        self.unhealthy
            .entry(resource.to_owned())
            .or_default()
            .extend(lost);
        true
    }

    /// GetCapacity: forgets endpoints whose grace is over, counts the rest.
    /// True where something was forgotten, which the kubelet checkpoints.
    pub(super) fn forget_expired(&mut self, grace: Duration, now: Instant) -> bool {
        let expired = |endpoint: &Endpoint| {
            endpoint
                .stopped
                .is_some_and(|at| now.saturating_duration_since(at) > grace)
        };
        let listed: Ids = self
            .healthy
            .keys()
            .chain(self.unhealthy.keys())
            .cloned()
            .collect();
        let gone: Vec<_> = listed
            .into_iter()
            .filter(|r| self.endpoints.get(r).is_none_or(expired))
            .collect();
        for resource in &gone {
            self.endpoints.remove(resource);
            self.healthy.remove(resource);
            self.unhealthy.remove(resource);
        }
        !gone.is_empty()
    }

    pub(super) fn counts(&self, resource: &str) -> Counts {
        let len = |sets: &BTreeMap<String, Ids>| sets.get(resource).map_or(0, Ids::len);
        let allocatable = len(&self.healthy);
        Counts {
            allocatable,
            capacity: allocatable + len(&self.unhealthy),
        }
    }

    /// When the next stopped endpoint's grace will be over.
    pub(super) fn next_expiry(&self, grace: Duration) -> Option<Instant> {
        self.endpoints
            .values()
            .filter_map(|e| e.stopped?.checked_add(grace))
            .min()
    }

    /// isDevicePluginResource: listed now, or given to somebody before.
    pub(super) fn is_device_plugin_resource(&self, resource: &str) -> bool {
        self.healthy.contains_key(resource) || self.allocated.contains_key(resource)
    }

    /// podDevices.devices: only what pods hold, without what is under way.
    pub(super) fn restore_allocated(&mut self) {
        self.allocated.clear();
        for held in self.pods.values() {
            self.allocated
                .entry(held.resource.clone())
                .or_default()
                .extend(held.ids());
        }
    }

    /// UpdateAllocatedDevices: pods that are gone give back what they held.
    pub(super) fn free_inactive(&mut self, active: impl Fn(&str) -> bool) {
        let before = self.pods.len();
        self.pods.retain(|pod, _| active(pod));
        if self.pods.len() != before {
            self.restore_allocated();
        }
    }

    /// allocateContainerResources, its last part: devices filed by NUMA node.
    pub(super) fn per_numa(&self, resource: &str, ids: &Ids) -> BTreeMap<i64, Vec<String>> {
        let mut filed: BTreeMap<i64, Vec<String>> = BTreeMap::new();
        for id in ids {
            let device = self.all.get(resource).and_then(|devices| devices.get(id));
            let nodes = device
                .and_then(|d| d.topology.as_ref())
                .map(|t| t.nodes.as_slice());
            match nodes {
                None | Some([]) => filed.entry(NO_NODE).or_default().push(id.clone()),
                Some(nodes) => {
                    for node in nodes {
                        filed.entry(node.id).or_default().push(id.clone());
                    }
                }
            }
        }
        filed
    }

    /// What is wrong with a list, given the one before it on the same stream.
    pub(super) fn judge(
        &self,
        resource: &str,
        devices: &[Device],
        previous: Option<&[Device]>,
    ) -> Vec<Violation> {
        let resource = || resource.to_owned();
        let mut found = Vec::new();
        let listed: BTreeSet<&str> = devices.iter().map(|d| d.id.as_str()).collect();
        let held = self.allocated.get(&resource()).into_iter().flatten();
        let ids: Vec<_> = held
            .filter(|id| !listed.contains(id.as_str()))
            .cloned()
            .collect();
        if !ids.is_empty() {
            found.push(Violation::AllocatedIdVanished {
                resource: resource(),
                ids,
            });
        }
        if !devices.is_sorted_by(|a, b| a.id <= b.id) {
            found.push(Violation::UnsortedList {
                resource: resource(),
            });
        }
        let mut seen = BTreeSet::new();
        for device in devices {
            let id = || device.id.clone();
            if !seen.insert(&device.id) {
                found.push(Violation::DuplicateId {
                    resource: resource(),
                    id: id(),
                });
            }
            if device
                .topology
                .as_ref()
                .is_some_and(|t| t.nodes.is_empty() || t.nodes.iter().any(|node| node.id < 0))
            {
                found.push(Violation::MeaninglessTopology {
                    resource: resource(),
                    id: id(),
                });
            }
        }
        if previous == Some(devices) {
            found.push(Violation::RepeatedList {
                resource: resource(),
            });
        }
        found
    }
}
