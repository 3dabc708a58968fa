//! What a volume says of itself.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Of the manifest and of the layout of a volume. A part of its name.
pub(super) const FORMAT: u32 = 1;

/// The manifest's file in a volume. Written last, so that a folder without is
/// no volume.
pub(super) const FILE: &str = "manifest.json";

/// What a volume consists of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Always 1 today.
    pub format: u32,
    /// The driver's version.
    pub version: String,
    /// In the order in which they were placed.
    pub files: Vec<VolumeFile>,
}

/// A file of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeFile {
    /// Below the volume.
    pub path: PathBuf,
    /// In bytes.
    pub size: u64,
    /// A library's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soname: Option<String>,
    /// How it came there.
    pub by: Way,
}

/// How a file came into a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// A hard link: the file itself, under a name more.
    Link,
    /// A copy that shares its blocks with the file (`FICLONE`).
    Reflink,
    /// A copy.
    Copy,
}
