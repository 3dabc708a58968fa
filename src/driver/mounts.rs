//! Where a container sees the driver's files.

use std::path::{Path, PathBuf};

use super::files::{DriverFile, FileKind};
use super::layout::Architecture;
use crate::config::HostFolder;

const PROGRAMS: &str = "/usr/bin";

/// Where images look for a driver that was made for it by their makers:
/// CUDA's have `LD_LIBRARY_PATH=/usr/local/nvidia/lib:/usr/local/nvidia/lib64`.
const OWN_FOLDER: &str = "/usr/local/nvidia";

/// A file or folder of the host bound into a container, read-only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverMount {
    /// What is bound, as the host names it.
    pub host: PathBuf,
    /// The same as this process sees it. A runtime makes a folder on the
    /// host where a bound file is missing, so look before handing the mount out.
    pub here: PathBuf,
    /// Where the container sees it.
    pub container: PathBuf,
}

/// Ordered by file, then folder.
pub(super) fn mounts(
    files: &[DriverFile],
    volume: Option<&HostFolder>,
    architecture: Architecture,
) -> Vec<DriverMount> {
    let mut mounts = Vec::new();
    for file in files {
        let source = volume.map_or_else(
            || HostFolder {
                host: file.host.clone(),
                here: file.here.clone(),
            },
            |volume| volume.join(file.in_volume()),
        );
        let own = match volume {
            Some(_) => None,
            None => own_folder(file),
        };
        let folders = folders(file, architecture).into_iter().chain(own);
        mounts.extend(folders.map(|folder| DriverMount {
            host: source.host.clone(),
            here: source.here.clone(),
            container: folder.join(&file.name),
        }));
    }
    mounts.extend(volume.map(|volume| DriverMount {
        host: volume.host.clone(),
        here: volume.here.clone(),
        container: OWN_FOLDER.into(),
    }));
    mounts
}

/// The folders where a container looks for a file.
fn folders(file: &DriverFile, architecture: Architecture) -> Vec<PathBuf> {
    let loaders = architecture.loader_folders();
    match &file.kind {
        FileKind::Library | FileKind::Alias => loaders.into(),
        FileKind::Beside(sub) => loaders.map(|folder| folder.join(sub)).into(),
        FileKind::Program => vec![PROGRAMS.into()],
        FileKind::Fixed(folders) => folders.iter().map(PathBuf::from).collect(),
        FileKind::Firmware(version) => vec![Path::new("/lib/firmware/nvidia").join(version)],
    }
}

/// Where the file is below a folder of the driver's own, which no volume gives.
fn own_folder(file: &DriverFile) -> Option<PathBuf> {
    match file.kind {
        FileKind::Library | FileKind::Alias | FileKind::Program => {
            let place = Path::new(OWN_FOLDER).join(file.in_volume());
            place.parent().map(Path::to_path_buf)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::capabilities::Capability;

    fn file(name: &str, kind: FileKind) -> DriverFile {
        DriverFile {
            name: name.to_owned(),
            capability: Capability::Compute,
            kind,
            host: Path::new("/opt").join(name),
            here: Path::new("/driver-root/opt").join(name),
            size: 1,
        }
    }

    fn listing(volume: Option<&HostFolder>, architecture: Architecture) -> Vec<String> {
        let files = [
            file("libcuda.so.1", FileKind::Library),
            file("libvdpau_nvidia.so.1", FileKind::Beside("vdpau")),
            file("nvidia-smi", FileKind::Program),
            file("nvidia.icd", FileKind::Fixed(&["/etc/OpenCL/vendors"])),
            file("gsp.bin", FileKind::Firmware("550.1".into())),
        ];
        let mounts = mounts(&files, volume, architecture);
        let line = |mount: &DriverMount| {
            assert_eq!(
                mount.here,
                Path::new("/driver-root").join(mount.host.strip_prefix("/").unwrap())
            );
            format!("{} {}", mount.host.display(), mount.container.display())
        };
        mounts.iter().map(line).collect()
    }

    #[test]
    fn each_file_of_a_volume_is_where_a_container_looks_and_all_of_it_in_one_folder() {
        let volume = HostFolder {
            host: "/state/550.1".into(),
            here: "/driver-root/state/550.1".into(),
        };
        let expected = [
            "/state/550.1/lib64/libcuda.so.1 /usr/lib/x86_64-linux-gnu/libcuda.so.1",
            "/state/550.1/lib64/libcuda.so.1 /usr/lib64/libcuda.so.1",
            "/state/550.1/lib64/vdpau/libvdpau_nvidia.so.1 /usr/lib/x86_64-linux-gnu/vdpau/libvdpau_nvidia.so.1",
            "/state/550.1/lib64/vdpau/libvdpau_nvidia.so.1 /usr/lib64/vdpau/libvdpau_nvidia.so.1",
            "/state/550.1/bin/nvidia-smi /usr/bin/nvidia-smi",
            "/state/550.1/share/etc/OpenCL/vendors/nvidia.icd /etc/OpenCL/vendors/nvidia.icd",
            "/state/550.1/firmware/nvidia/550.1/gsp.bin /lib/firmware/nvidia/550.1/gsp.bin",
            "/state/550.1 /usr/local/nvidia",
        ];
        assert_eq!(listing(Some(&volume), Architecture::X86_64), expected);
        assert_eq!(
            listing(Some(&volume), Architecture::Aarch64),
            expected.map(|line| line.replace("x86_64", "aarch64"))
        );
    }

    #[test]
    fn without_a_volume_libraries_and_programs_are_in_that_folder_one_by_one() {
        let lines = listing(None, Architecture::X86_64);
        for expected in [
            "/opt/libcuda.so.1 /usr/lib64/libcuda.so.1",
            "/opt/libcuda.so.1 /usr/local/nvidia/lib64/libcuda.so.1",
            "/opt/nvidia-smi /usr/local/nvidia/bin/nvidia-smi",
        ] {
            assert!(lines.contains(&expected.to_owned()), "{lines:?}");
        }
        assert!(!lines.iter().any(|line| line.ends_with("/usr/local/nvidia")));
    }
}
