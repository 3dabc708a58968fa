//! What the driver's files are called, and which folders hold them.

use std::path::{Path, PathBuf};

use object::elf;

/// Watching GPUs takes these.
const UTILITY: &[&str] = &["libnvidia-ml", "libnvidia-cfg"];

/// Computing takes these. No branch of the driver has all of them.
const COMPUTE: &[&str] = &[
    "libcuda",
    "libcudadebugger",
    "libnvidia-opencl",
    "libnvidia-gpucomp",
    "libnvidia-ptxjitcompiler",
    "libnvidia-fatbinaryloader",
    "libnvidia-allocator",
    "libnvidia-compiler",
    "libnvidia-pkcs11",
    "libnvidia-pkcs11-openssl3",
    "libnvidia-nvvm",
    "libnvidia-nvvm70",
    "libnvidia-tileiras",
];

/// Libraries whose file may carry a version of its own (470 has
/// `libnvidia-nvvm.so.4.0.0`), which says nothing of the driver's.
const OWN_VERSION: &[&str] = &["libnvidia-nvvm", "libnvidia-nvvm70"];

/// Without these no CUDA program starts; by SONAME.
pub(super) const REQUIRED: &[&str] = &[LIBCUDA, LIBNVIDIA_ML];

/// CUDA's driver interface.
pub(super) const LIBCUDA: &str = "libcuda.so.1";

/// NVML.
pub(super) const LIBNVIDIA_ML: &str = "libnvidia-ml.so.1";

/// Programs that go with the libraries.
pub(super) const BINARIES: &[&str] = &["nvidia-smi"];

/// The architecture that the driver's files are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Architecture {
    X86_64,
    Aarch64,
}

impl Architecture {
    /// This machine's. NVIDIA makes its data centre driver for these two only.
    pub(super) const HERE: Self = if cfg!(target_arch = "aarch64") {
        Self::Aarch64
    } else {
        Self::X86_64
    };

    /// As `uname -m` names it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// As an ELF header names it.
    pub(super) fn machine(self) -> elf::Machine {
        match self {
            Self::X86_64 => elf::EM_X86_64,
            Self::Aarch64 => elf::EM_AARCH64,
        }
    }

    /// Debian's library folder, relative to the root.
    fn multiarch(self) -> &'static Path {
        Path::new(match self {
            Self::X86_64 => "usr/lib/x86_64-linux-gnu",
            Self::Aarch64 => "usr/lib/aarch64-linux-gnu",
        })
    }

    /// Where Debian keeps drivers that are installed side by side, a folder each.
    pub(super) fn flavours(self) -> PathBuf {
        self.multiarch().join("nvidia")
    }

    /// The folders that a container's loader searches with no cache and no
    /// variable: Debian's and its children's, and everyone else's.
    pub(super) fn loader_folders(self) -> [PathBuf; 2] {
        [
            Path::new("/").join(self.multiarch()),
            PathBuf::from("/usr/lib64"),
        ]
    }

    /// The folders to search for libraries, relative to the root, best first.
    ///
    /// `flavours` are the folders in [`flavours`](Self::flavours). The last ones
    /// are for a root that is the driver's own folder, not a whole system's.
    pub(super) fn library_folders(self, flavours: &[String]) -> Vec<PathBuf> {
        let current = self.flavours().join("current");
        let others = flavours.iter().filter(|name| *name != "current");
        let mut folders = vec![self.multiarch().to_path_buf(), current];
        folders.extend(others.map(|name| self.flavours().join(name)));
        folders.extend(LIBRARY_FOLDERS.iter().map(PathBuf::from));
        folders
    }
}

const LIBRARY_FOLDERS: &[&str] = &[
    "usr/lib64",
    "usr/lib64/nvidia",
    "usr/lib",
    "usr/local/nvidia/lib64",
    "usr/local/nvidia/lib",
    "opt/nvidia/lib64",
    "opt/nvidia/lib",
    "lib64",
    "lib",
];

/// The folders to search for programs, relative to the root, best first.
///
/// `flavour` is the name of the folder that holds `libcuda`. On Debian it is
/// also that of the folder with the programs of the same driver, which
/// `usr/bin` shows only where the alternatives are set.
pub(super) fn binary_folders(flavour: Option<&str>) -> Vec<PathBuf> {
    let flavour = flavour.map(|name| Path::new("usr/lib/nvidia").join(name));
    flavour
        .into_iter()
        .chain(BINARY_FOLDERS.iter().map(PathBuf::from))
        .collect()
}

const BINARY_FOLDERS: &[&str] = &[
    "usr/bin",
    "bin",
    "usr/local/nvidia/bin",
    "opt/nvidia/bin",
    "usr/sbin",
];

/// The name of a library's file: `libcuda.so.550.163.01` is `libcuda` and `550.163.01`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LibraryName<'a> {
    library: &'static str,
    pub(super) suffix: &'a str,
}

impl<'a> LibraryName<'a> {
    /// `None` for what is not one of the driver's libraries that are looked for.
    pub(super) fn parse(file: &'a str) -> Option<Self> {
        let (name, suffix) = file.split_once(".so.")?;
        let library = UTILITY
            .iter()
            .chain(COMPUTE)
            .find(|library| **library == name)?;
        Some(Self { library, suffix })
    }

    /// Whether the file says itself that it is of this driver.
    pub(super) fn is_of(self, version: &str) -> bool {
        self.suffix == version
    }

    /// Whether the file's version is its own, so that the driver's is not known.
    pub(super) fn has_own_version(self) -> bool {
        OWN_VERSION.contains(&self.library) && !is_driver_version(self.suffix)
    }

    /// Whether a file of this name may be loaded by `soname`, which becomes a
    /// name in the container: it is of the same library, and no path.
    pub(super) fn fits(self, soname: &str) -> bool {
        soname
            .strip_prefix(self.library)
            .is_some_and(|rest| rest.starts_with(".so."))
            && !soname.contains('/')
    }
}

/// Whether this is the version of a driver, and not that of an interface: three
/// digits or more, then one to three further numbers.
pub(super) fn is_driver_version(text: &str) -> bool {
    let numbers: Vec<_> = text.split('.').collect();
    (2..=4).contains(&numbers.len())
        && numbers[0].len() >= 3
        && numbers
            .iter()
            .all(|n| !n.is_empty() && n.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn driver_versions_are_told_from_those_of_interfaces() {
        for version in ["390.157", "470.256.02", "580.159.04", "1000.1", "550.1.2.3"] {
            assert!(is_driver_version(version), "{version}");
        }
        for other in [
            "",
            "1",
            "4",
            "4.0.0",
            "550",
            "550.",
            ".550",
            "550.x",
            "550.1.2.3.4",
            "x86_64",
        ] {
            assert!(!is_driver_version(other), "{other}");
        }
    }

    #[test]
    fn names_are_of_known_libraries_only() {
        let name = LibraryName::parse("libnvidia-nvvm.so.4.0.0").unwrap();
        assert_eq!(
            name,
            LibraryName {
                library: "libnvidia-nvvm",
                suffix: "4.0.0"
            }
        );
        assert!(name.has_own_version());
        for other in [
            "libcuda.so",
            "libcuda",
            "libcudart.so.12",
            "libnvidia-glcore.so.550.163.01",
        ] {
            assert_eq!(LibraryName::parse(other), None, "{other}");
        }
    }

    #[test]
    fn own_versions_are_a_rare_right() {
        for file in [
            "libnvidia-nvvm.so.535.261.03",
            "libcuda.so.1.1",
            "libnvidia-ml.so.1",
        ] {
            assert!(
                !LibraryName::parse(file).unwrap().has_own_version(),
                "{file}"
            );
        }
        assert!(
            LibraryName::parse("libnvidia-nvvm70.so.4")
                .unwrap()
                .has_own_version()
        );
    }

    #[test]
    fn a_soname_is_of_the_same_library_and_no_path() {
        let name = LibraryName::parse("libcuda.so.550.163.01").unwrap();
        assert!(name.fits("libcuda.so.1"));
        for soname in [
            "",
            "libcuda",
            "libcudadebugger.so.1",
            "libcuda.so.1/../../etc",
            "/libcuda.so.1",
        ] {
            assert!(!name.fits(soname), "{soname}");
        }
    }

    #[test]
    fn debians_current_driver_goes_before_its_others() {
        let flavours = ["current".to_owned(), "tesla-470".to_owned()];
        let folders = Architecture::Aarch64.library_folders(&flavours);
        let expected = ["", "/nvidia/current", "/nvidia/tesla-470"]
            .map(|folder| PathBuf::from(format!("usr/lib/aarch64-linux-gnu{folder}")));
        assert_eq!(folders[..3], expected);
        assert_eq!(
            folders
                .iter()
                .filter(|folder| folder.ends_with("current"))
                .count(),
            1
        );
    }
}
