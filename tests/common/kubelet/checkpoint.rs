//! The file that lets allocations outlive a kubelet: checkpoint/checkpoint.go.
//!
//! The layout is Kubernetes', but there is no checksum (Go computes it over a
//! dump of Go's own types).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use gpu_device_plugin::api::v1beta1::ContainerAllocateResponse;
use prost::Message;
use serde::{Deserialize, Serialize};

use super::CONTAINER;
use super::devices::{Held, Manager};

pub(super) const FILE: &str = "kubelet_internal_checkpoint";
/// FileStore's names for unfinished files start with a dot.
const UNFINISHED: &str = ".1";

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Checkpoint {
    data: Data,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Data {
    pod_device_entries: Vec<Entry>,
    registered_devices: BTreeMap<String, Vec<String>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    #[serde(rename = "PodUID")]
    pod_uid: String,
    container_name: String,
    resource_name: String,
    #[serde(rename = "DeviceIDs")]
    device_ids: BTreeMap<i64, Vec<String>>,
    /// As Go writes bytes: in base64.
    alloc_resp: String,
}

/// writeCheckpoint: a new file is renamed over the old one, so that whoever
/// watches the folder sees the noise that a kubelet makes there.
pub(super) fn write(folder: &Path, manager: &Manager) -> io::Result<()> {
    let entries = manager.pods.iter().map(|(pod, held)| Entry {
        pod_uid: pod.clone(),
        container_name: CONTAINER.to_owned(),
        resource_name: held.resource.clone(),
        device_ids: held.per_numa.clone(),
        alloc_resp: STANDARD.encode(held.response.encode_to_vec()),
    });
    let registered = manager.healthy.iter();
    let data = Data {
        pod_device_entries: entries.collect(),
        registered_devices: registered
            .map(|(resource, ids)| (resource.clone(), ids.iter().cloned().collect()))
            .collect(),
    };
    let unfinished = folder.join(UNFINISHED);
    let mut file = File::create(&unfinished)?;
    file.write_all(&serde_json::to_vec(&Checkpoint { data })?)?;
    file.sync_all()?;
    drop(file);
    fs::rename(unfinished, folder.join(FILE))
}

/// readCheckpoint: no file is an empty start; a broken one is an error here,
/// where the kubelet would go on without its allocations.
pub(super) fn read(folder: &Path, now: Instant) -> io::Result<Manager> {
    let bytes = match fs::read(folder.join(FILE)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Manager::default()),
        Err(error) => return Err(error),
    };
    let Checkpoint { data } = serde_json::from_slice(&bytes)?;
    let mut pods = BTreeMap::new();
    for entry in data.pod_device_entries {
        let response = STANDARD
            .decode(&entry.alloc_resp)
            .map_err(io::Error::other)?;
        let response = ContainerAllocateResponse::decode(&*response).map_err(io::Error::other)?;
        let (resource, per_numa) = (entry.resource_name, entry.device_ids);
        pods.insert(
            entry.pod_uid,
            Held {
                resource,
                per_numa,
                response,
            },
        );
    }
    Ok(Manager::restored(
        pods,
        data.registered_devices.into_keys(),
        now,
    ))
}
