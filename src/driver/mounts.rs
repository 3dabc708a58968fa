//! Where a container sees the driver's files.

use std::path::{Path, PathBuf};

use super::layout::Architecture;
use super::{DriverFile, DriverFiles};

const PROGRAMS: &str = "/usr/bin";

/// A file of the host bound into a container, read-only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverMount {
    /// The file as the host names it.
    pub host: PathBuf,
    /// The same file as this process sees it. A runtime makes a folder on the
    /// host where a bound file is missing, so look before handing the mount out.
    pub here: PathBuf,
    /// The file as the container names it.
    pub container: PathBuf,
}

impl DriverMount {
    fn new(file: &DriverFile, folder: &Path) -> Self {
        Self {
            host: file.host.clone(),
            here: file.here.clone(),
            container: folder.join(&file.name),
        }
    }
}

pub(super) fn mounts(files: &DriverFiles, architecture: Architecture) -> Vec<DriverMount> {
    let folders = architecture.loader_folders();
    let libraries = files.libraries.iter().flat_map(|file| {
        folders
            .iter()
            .map(move |folder| DriverMount::new(file, folder))
    });
    let binaries = files
        .binaries
        .iter()
        .map(|file| DriverMount::new(file, Path::new(PROGRAMS)));
    libraries.chain(binaries).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str) -> DriverFile {
        DriverFile {
            name: name.to_owned(),
            host: Path::new("/opt").join(name),
            here: Path::new("/driver-root/opt").join(name),
        }
    }

    fn containers(architecture: Architecture) -> Vec<String> {
        let files = DriverFiles {
            version: "550.163.01".to_owned(),
            libraries: vec![file("libcuda.so.1"), file("libnvidia-ml.so.1")],
            binaries: vec![file("nvidia-smi")],
        };
        let mounts = mounts(&files, architecture);
        assert!(
            mounts
                .iter()
                .all(|mount| mount.host.file_name() == mount.container.file_name())
        );
        assert!(
            mounts
                .iter()
                .all(|mount| mount.here.starts_with("/driver-root"))
        );
        mounts
            .iter()
            .map(|mount| mount.container.display().to_string())
            .collect()
    }

    #[test]
    fn libraries_are_in_every_folder_that_a_loader_searches() {
        let expected = [
            "/usr/lib/x86_64-linux-gnu/libcuda.so.1",
            "/usr/lib64/libcuda.so.1",
            "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1",
            "/usr/lib64/libnvidia-ml.so.1",
            "/usr/bin/nvidia-smi",
        ];
        assert_eq!(containers(Architecture::X86_64), expected);
        assert_eq!(
            containers(Architecture::Aarch64),
            expected.map(|path| path.replace("x86_64", "aarch64"))
        );
    }
}
