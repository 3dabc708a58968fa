//! What the record and the plan know things by.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cluster::api::PodFacts;

/// A pod as the kubelet names it: whoever goes by this name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PodName {
    /// The pod's namespace.
    pub namespace: String,
    /// Its name there.
    pub name: String,
}

impl PodName {
    /// The name of `pod`.
    #[must_use]
    pub fn of(pod: &PodFacts) -> Self {
        Self {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
        }
    }
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A device in the kubelet's eyes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DeviceName {
    /// The resource that it is advertised as.
    pub resource: String,
    /// Its ID there.
    pub id: String,
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.resource, self.id)
    }
}

/// One sickness of one device, from its beginning to its end. Ordered by its
/// beginning.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Incident {
    /// When the device turned sick, in time since boot.
    pub since: Duration,
    /// The device.
    pub device: DeviceName,
}
