//! The kubelet's record of the devices that it gave to pods.
//!
//! Read once, at the start: a GPU that a pod holds must be listed even where it
//! fell off the bus before this process started. The file is the kubelet's own
//! (Kubernetes' pkg/kubelet/cm/devicemanager/checkpoint/checkpoint.go) and no
//! published interface, so whatever is not understood counts as nothing.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use serde::Deserialize;

/// The file's name in the kubelet's device plugin folder.
pub const FILE: &str = "kubelet_internal_checkpoint";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Checkpoint {
    data: Data,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Data {
    #[serde(default)]
    pod_device_entries: Option<Vec<Entry>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    resource_name: String,
    /// By NUMA node.
    #[serde(rename = "DeviceIDs", default)]
    device_ids: Option<HashMap<String, Vec<String>>>,
}

/// The IDs of `resource` that pods hold, by the checkpoint in `folder`.
///
/// # Errors
///
/// The file is there and could not be read or understood.
pub fn allocated(folder: &Path, resource: &str) -> anyhow::Result<BTreeSet<String>> {
    let bytes = match std::fs::read(folder.join(FILE)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) => return Err(error.into()),
    };
    let checkpoint: Checkpoint = serde_json::from_slice(&bytes)?;
    let entries = checkpoint.data.pod_device_entries.unwrap_or_default();
    Ok(entries
        .into_iter()
        .filter(|entry| entry.resource_name == resource)
        .flat_map(|entry| entry.device_ids.unwrap_or_default().into_values().flatten())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allocated_in(text: &str) -> anyhow::Result<BTreeSet<String>> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE), text).unwrap();
        allocated(folder.path(), "nvidia.com/gpu")
    }

    #[test]
    fn devices_of_pods_are_found_on_every_numa_node() {
        let text = r#"{"Data":{"PodDeviceEntries":[
            {"PodUID":"1","ContainerName":"c","ResourceName":"nvidia.com/gpu",
             "DeviceIDs":{"-1":["GPU-b"],"0":["GPU-a"]},"AllocResp":"Cg=="},
            {"PodUID":"2","ContainerName":"c","ResourceName":"example.com/nic",
             "DeviceIDs":{"0":["nic"]},"AllocResp":""}],
            "RegisteredDevices":{"nvidia.com/gpu":["GPU-a","GPU-b","GPU-c"]}},"Checksum":1}"#;
        let ids: Vec<_> = allocated_in(text).unwrap().into_iter().collect();
        assert_eq!(ids, ["GPU-a", "GPU-b"]);
    }

    #[test]
    fn a_kubelet_that_gave_nothing_away_has_no_entries() {
        let text = r#"{"Data":{"PodDeviceEntries":null,"RegisteredDevices":{}},"Checksum":1}"#;
        assert!(allocated_in(text).unwrap().is_empty());
        let folder = tempfile::tempdir().unwrap();
        assert!(
            allocated(folder.path(), "nvidia.com/gpu")
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn nonsense_is_an_error_and_no_panic() {
        for text in [
            "",
            "{}",
            "[]",
            r#"{"Data":7}"#,
            r#"{"Data":{"PodDeviceEntries":{}}}"#,
        ] {
            assert!(allocated_in(text).is_err(), "{text}");
        }
    }
}
