//! Whether a volume is what its manifest says.

use std::fs;
use std::path::{Component, Path};

use super::manifest::{FILE, FORMAT, Manifest, VolumeFile};
use crate::driver::elf::ElfFile;

/// Longest manifest that is read: a driver has fewer than 100 files.
const MAX_SIZE: u64 = 1 << 20;

/// Reads the manifest, and looks at each file: a regular one, of its size, with
/// its SONAME. Says what is wrong.
pub(super) fn check(volume: &Path) -> Result<Manifest, String> {
    let manifest = read(&volume.join(FILE))?;
    if manifest.format != FORMAT {
        return Err(format!("its format is {}", manifest.format));
    }
    for file in &manifest.files {
        check_file(volume, file).map_err(|what| format!("{}: {what}", file.path.display()))?;
    }
    Ok(manifest)
}

fn read(path: &Path) -> Result<Manifest, String> {
    let told = |error: &dyn std::fmt::Display| format!("{FILE}: {error}");
    let size = fs::metadata(path).map_err(|error| told(&error))?.len();
    if size > MAX_SIZE {
        return Err(told(&format_args!("{size} bytes")));
    }
    let bytes = fs::read(path).map_err(|error| told(&error))?;
    serde_json::from_slice(&bytes).map_err(|error| told(&error))
}

fn check_file(volume: &Path, file: &VolumeFile) -> Result<(), String> {
    let inside = |part| matches!(part, Component::Normal(_));
    if !file.path.components().all(inside) {
        return Err("outside the volume".into());
    }
    let path = volume.join(&file.path);
    let metadata = fs::symlink_metadata(&path).map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err("no regular file".into());
    }
    if metadata.len() != file.size {
        return Err(format!("{} bytes instead of {}", metadata.len(), file.size));
    }
    if file.soname.is_none() {
        return Ok(());
    }
    match ElfFile::open(&path) {
        Ok(elf) if elf.soname == file.soname => Ok(()),
        Ok(elf) => Err(format!("calls itself {:?}", elf.soname)),
        Err(error) => Err(error.to_string()),
    }
}
