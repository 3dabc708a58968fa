//! The kubelet's record of the devices that it gave to pods.
//!
//! A GPU that a pod holds must be listed even where it fell off the bus before
//! this process started, and a driver volume that an answer names must be there
//! as long as the kubelet can start a container by that answer. The file is the kubelet's own
//! (Kubernetes' pkg/kubelet/cm/devicemanager/checkpoint/checkpoint.go) and no
//! published interface, so whatever is not understood counts as nothing.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::Message as _;
use serde::Deserialize;

use crate::api::v1beta1::ContainerAllocateResponse;

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
    #[serde(rename = "PodUID", default)]
    pod_uid: String,
    resource_name: String,
    /// By NUMA node.
    #[serde(rename = "DeviceIDs", default)]
    device_ids: Option<HashMap<String, Vec<String>>>,
    /// A `ContainerAllocateResponse` in base64. Whatever else it is, is no matter
    /// to those who ask for the devices alone.
    #[serde(default)]
    alloc_resp: serde_json::Value,
}

/// A device that a pod holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Held {
    /// The resource that it is of.
    pub resource: String,
    /// As the kubelet knows it.
    pub id: String,
    /// Where it was when it was given.
    pub numa_node: Option<u32>,
}

/// The devices that pods hold, by the checkpoint in `folder`.
///
/// # Errors
///
/// The file is there and could not be read or understood.
pub fn allocated(folder: &Path) -> anyhow::Result<BTreeSet<Held>> {
    let held = entries(folder)?.into_iter().flat_map(|entry| {
        let resource = entry.resource_name;
        let nodes = entry.device_ids.unwrap_or_default().into_iter();
        nodes.flat_map(move |(node, ids)| {
            let held = |id| Held {
                resource: resource.clone(),
                id,
                // -1 where none was named.
                numa_node: node.parse().ok(),
            };
            ids.into_iter().map(held).collect::<Vec<_>>()
        })
    });
    Ok(held.collect())
}

/// What of the host the kubelet would mount for pods again, of all resources,
/// by the answers in the checkpoint in `folder`.
///
/// The kubelet forgets a pod that is gone at once, but writes so only with its
/// next allocation (Kubernetes' pkg/kubelet/cm/devicemanager/manager.go,
/// `UpdateAllocatedDevices`). So a pod counts as gone where the kubelet has a
/// folder of `pods`, one a pod by its UID, and none for it.
///
/// # Errors
///
/// The file is there and could not be read or understood in full, or the folder
/// is not there: then the file may be where this process does not see it.
pub fn host_paths(folder: &Path, pods: &Path) -> anyhow::Result<BTreeSet<PathBuf>> {
    std::fs::metadata(folder)?;
    let known = pods.is_dir();
    let gone = |uid: &str| known && !uid.is_empty() && !pods.join(uid).exists();
    let mut paths = BTreeSet::new();
    for entry in entries(folder)? {
        if gone(&entry.pod_uid) {
            continue;
        }
        let answer = match entry.alloc_resp {
            serde_json::Value::Null => continue,
            serde_json::Value::String(text) => STANDARD.decode(text)?,
            _ => anyhow::bail!("an answer that is no text"),
        };
        let answer = ContainerAllocateResponse::decode(&*answer)?;
        paths.extend(
            answer
                .mounts
                .into_iter()
                .map(|mount| mount.host_path.into()),
        );
    }
    Ok(paths)
}

fn entries(folder: &Path) -> anyhow::Result<Vec<Entry>> {
    let bytes = match std::fs::read(folder.join(FILE)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let checkpoint: Checkpoint = serde_json::from_slice(&bytes)?;
    Ok(checkpoint.data.pod_device_entries.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allocated_in(text: &str) -> anyhow::Result<BTreeSet<Held>> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE), text).unwrap();
        allocated(folder.path())
    }

    #[test]
    fn devices_of_pods_are_found_on_every_numa_node() {
        let text = r#"{"Data":{"PodDeviceEntries":[
            {"PodUID":"1","ContainerName":"c","ResourceName":"nvidia.com/gpu",
             "DeviceIDs":{"-1":["GPU-b::1"],"0":["GPU-a"]},"AllocResp":"Cg=="},
            {"PodUID":"2","ContainerName":"c","ResourceName":"example.com/nic",
             "DeviceIDs":{"0":["nic"]},"AllocResp":""}],
            "RegisteredDevices":{"nvidia.com/gpu":["GPU-a","GPU-b","GPU-c"]}},"Checksum":1}"#;
        let held = allocated_in(text).unwrap();
        let held: Vec<_> = held
            .iter()
            .map(|held| (held.resource.as_str(), held.id.as_str(), held.numa_node))
            .collect();
        let expected = [
            ("example.com/nic", "nic", Some(0)),
            ("nvidia.com/gpu", "GPU-a", Some(0)),
            ("nvidia.com/gpu", "GPU-b::1", None),
        ];
        assert_eq!(held, expected);
    }

    #[test]
    fn a_kubelet_that_gave_nothing_away_has_no_entries() {
        let text = r#"{"Data":{"PodDeviceEntries":null,"RegisteredDevices":{}},"Checksum":1}"#;
        assert!(allocated_in(text).unwrap().is_empty());
        let folder = tempfile::tempdir().unwrap();
        assert!(allocated(folder.path()).unwrap().is_empty());
    }

    #[test]
    fn what_answers_would_mount_again_is_read_from_their_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let answer = ContainerAllocateResponse {
            mounts: vec![crate::api::v1beta1::Mount {
                host_path: "/state/driver/550.1-aa/lib64/libcuda.so.1".into(),
                ..Default::default()
            }],
            ..Default::default()
        };
        let entries = |answer: &str| {
            let text = format!(
                r#"{{"Data":{{"PodDeviceEntries":[{{"PodUID":"uid","ResourceName":"a/b","AllocResp":"{answer}"}}]}}}}"#
            );
            std::fs::write(dir.path().join(FILE), text).unwrap();
            host_paths(dir.path(), &dir.path().join("pods"))
        };
        let paths = entries(&STANDARD.encode(answer.encode_to_vec())).unwrap();
        assert!(paths.contains(Path::new("/state/driver/550.1-aa/lib64/libcuda.so.1")));
        let held = STANDARD.encode(answer.encode_to_vec());
        std::fs::create_dir_all(dir.path().join("pods/uid")).unwrap();
        assert_eq!(entries(&held).unwrap().len(), 1);
        std::fs::remove_dir(dir.path().join("pods/uid")).unwrap();
        assert_eq!(entries(&held).unwrap().len(), 0, "of a pod that is gone");
        std::fs::remove_dir(dir.path().join("pods")).unwrap();
        assert_eq!(entries("").unwrap().len(), 0);
        assert!(entries("no base64").is_err());
        assert!(entries("AAAA").is_err(), "no answer");
        std::fs::remove_file(dir.path().join(FILE)).unwrap();
        assert!(host_paths(dir.path(), dir.path()).unwrap().is_empty());
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
