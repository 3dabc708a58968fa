//! What the monitor publishes: the devices of each resource, and which resources
//! there are.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;
use tracing::{info, warn};

use super::untold::Untold;
use crate::device::{DeviceSnapshot, Snapshots};
use crate::metrics::{HealthLabels, Metrics};

/// The devices of each resource, as they change. A resource that is there stays.
pub type Resources = BTreeMap<String, watch::Receiver<Arc<DeviceSnapshot>>>;

pub(super) struct Published {
    devices: BTreeMap<String, watch::Sender<Arc<DeviceSnapshot>>>,
    resources: watch::Sender<Resources>,
}

impl Published {
    /// Of one resource, with nothing known of its devices.
    pub(super) fn new(resource: &str) -> Self {
        let mut published = Self {
            devices: BTreeMap::new(),
            resources: watch::Sender::default(),
        };
        published.add(resource);
        published
    }

    pub(super) fn resources(&self) -> watch::Receiver<Resources> {
        self.resources.subscribe()
    }

    /// Publishes what is news.
    pub(super) fn publish(&mut self, snapshots: Snapshots, metrics: &Metrics, untold: &mut Untold) {
        for (resource, snapshot) in snapshots {
            if !self.devices.contains_key(&resource) {
                self.add(&resource);
            }
            let Some(devices) = self.devices.get(&resource) else {
                continue;
            };
            devices.send_if_modified(|last| {
                if **last == snapshot {
                    return false;
                }
                count_devices(metrics, &resource, &snapshot);
                let now = Arc::new(snapshot);
                let before = std::mem::replace(last, now.clone());
                let resource = resource.clone();
                untold.push(move || log_changes(&resource, &before, &now));
                true
            });
        }
    }

    fn add(&mut self, resource: &str) {
        let sender = watch::Sender::default();
        let devices = sender.subscribe();
        self.devices.insert(resource.into(), sender);
        self.resources.send_modify(|resources| {
            resources.insert(resource.into(), devices);
        });
    }
}

fn count_devices(metrics: &Metrics, resource: &str, snapshot: &DeviceSnapshot) {
    for health in ["Healthy", "Unhealthy"] {
        let devices = snapshot.devices.iter();
        let count = devices.filter(|device| device.health.as_str() == health);
        let resource = resource.to_owned();
        let labels = HealthLabels { resource, health };
        let gauge = metrics.devices.get_or_create(&labels);
        gauge.set(i64::try_from(count.count()).unwrap_or(i64::MAX));
    }
}

/// A line for each device that is new, or whose health changed: of replicas for
/// the first, as they have their health in common.
fn log_changes(resource: &str, last: &DeviceSnapshot, now: &DeviceSnapshot) {
    for device in now
        .devices
        .iter()
        .filter(|d| d.replica().is_none_or(|n| n == 0))
    {
        let before = last.get(device.id.as_str()).map(|before| &before.health);
        if before == Some(&device.health) {
            continue;
        }
        let (id, health) = (device.id.as_str(), device.health.as_str());
        match device.health.reason() {
            None => info!(resource, device = id, health, "device is healthy"),
            Some(reason) => warn!(resource, device = id, health, %reason, "device is unhealthy"),
        }
    }
}
