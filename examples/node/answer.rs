//! The answer to Allocate, as a person would read it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::common::kubelet::Allocation;

/// Device nodes, and the mounted files by the folders that they are found in.
pub(crate) fn describe(allocation: &Allocation) -> Vec<String> {
    let response = &allocation.response;
    let nodes: Vec<_> = response
        .devices
        .iter()
        .map(|device| device.container_path.as_str())
        .collect();
    let mut lines = vec![
        format!("{} gets {}", allocation.pod, allocation.ids.join(", ")),
        format!("device nodes: {}", nodes.join(" ")),
    ];
    let mounts = &response.mounts;
    let files = mounts.iter().map(|mount| {
        let (folder, name) = split(&mount.container_path);
        (name, folder)
    });
    for (folders, names) in by_folders(files) {
        let names: Vec<_> = names.into_iter().collect();
        lines.push(format!("in {}: {}", folders.join(" and "), names.join(" ")));
    }
    let sources = mounts.iter().map(|mount| Path::new(&mount.host_path));
    if let Some(root) = common_folder(sources) {
        let access = if mounts.iter().all(|mount| mount.read_only) {
            "read-only"
        } else {
            "writable"
        };
        let count = mounts.len();
        lines.push(format!("{count} mounts, {access}, from {}", root.display()));
    }
    let variables: BTreeSet<_> = response.envs.keys().map(String::as_str).collect();
    let variables: Vec<_> = variables.into_iter().collect();
    if variables.is_empty() {
        lines.push("no variable of the image is touched".to_owned());
    } else {
        lines.push(format!("variables: {}", variables.join(" ")));
    }
    lines
}

fn split(path: &str) -> (String, String) {
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    (folder.to_owned(), name.to_owned())
}

/// Files that stand in the same folders, together.
fn by_folders(
    files: impl Iterator<Item = (String, String)>,
) -> BTreeMap<Vec<String>, BTreeSet<String>> {
    let mut folders: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (name, folder) in files {
        folders.entry(name).or_default().insert(folder);
    }
    let mut grouped: BTreeMap<Vec<String>, BTreeSet<String>> = BTreeMap::new();
    for (name, folders) in folders {
        let folders = folders.into_iter().collect();
        grouped.entry(folders).or_default().insert(name);
    }
    grouped
}

fn common_folder<'a>(paths: impl Iterator<Item = &'a Path>) -> Option<PathBuf> {
    let folders = paths.filter_map(Path::parent).map(Path::to_path_buf);
    folders.reduce(|common, folder| {
        let both = common.components().zip(folder.components());
        both.take_while(|(a, b)| a == b).map(|(a, _)| a).collect()
    })
}
