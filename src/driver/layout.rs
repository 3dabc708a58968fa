//! Which folders hold a driver's files, by distribution.

use std::path::{Path, PathBuf};

use object::elf;

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
    pub(super) fn library_folders<'n>(
        self,
        flavours: impl Iterator<Item = &'n str>,
    ) -> Vec<PathBuf> {
        let current = self.flavours().join("current");
        // Ubuntu has folders for other things there.
        let others = flavours.filter(|name| !["current", "wine", "xorg"].contains(name));
        let mut folders = vec![self.multiarch().to_path_buf(), current];
        folders.extend(others.map(|name| self.flavours().join(name)));
        folders.extend(LIBRARY_FOLDERS.iter().map(PathBuf::from));
        folders.push(self.bottlerocket("usr/lib/nvidia/tesla"));
        folders
    }

    /// The folders to search for programs, relative to the root, best first.
    ///
    /// `libcuda` is the folder that holds it. On Debian its name is also that of
    /// the folder with the programs of the same driver, which `usr/bin` shows
    /// only where the alternatives are set.
    pub(super) fn program_folders(self, libcuda: Option<&Path>) -> Vec<PathBuf> {
        let mut folders = Vec::new();
        if let Some(folder) = libcuda {
            folders.extend(debian_programs(folder));
            folders.extend(folder.parent().map(|parent| parent.join("bin")));
        }
        folders.extend(PROGRAM_FOLDERS.iter().map(PathBuf::from));
        folders.push(self.bottlerocket("usr/libexec/nvidia/tesla/bin"));
        folders
    }

    fn bottlerocket(self, folder: &str) -> PathBuf {
        let system = format!("{}-bottlerocket-linux-gnu/sys-root", self.name());
        Path::new(&system).join(folder)
    }
}

/// Where Debian has what belongs to the driver whose libraries are in `libcuda`
/// and is no library: `usr/lib/nvidia/current`.
fn debian_programs(libcuda: &Path) -> Option<PathBuf> {
    let flavour = libcuda.file_name()?;
    Some(Path::new("usr/lib/nvidia").join(flavour))
}

/// Where the driver whose libraries are in `libcuda` may have modules and data:
/// of the same driver for certain, which their names do not say. `usual` are the
/// folders in a whole system.
pub(super) fn own_folders(libcuda: &Path, usual: &[&str]) -> Vec<PathBuf> {
    let mut folders = Vec::from_iter(debian_programs(libcuda));
    let flavour = libcuda.file_name();
    folders.extend(flavour.map(|name| Path::new("etc/nvidia").join(name)));
    // Ubuntu's folder of X.Org's modules is the second.
    let modules = [
        "",
        "nvidia/xorg",
        "xorg/modules/drivers",
        "xorg/modules/extensions",
    ];
    folders.extend(modules.map(|folder| libcuda.join(folder)));
    // A driver in one folder has `share` in place of `usr/share`.
    if let Some(root) = libcuda.parent() {
        for folder in usual.iter().map(Path::new) {
            folders.push(root.join(folder));
            folders.extend(folder.strip_prefix("usr").map(|folder| root.join(folder)));
        }
    }
    folders
}

/// The folders of the firmware of the driver whose libraries are in `libcuda`.
pub(super) fn firmware_folders(libcuda: Option<&Path>, version: &str) -> Vec<PathBuf> {
    let root = libcuda.and_then(Path::parent);
    let own = root.map(|root| root.join("firmware/nvidia"));
    let folders = own
        .into_iter()
        .chain(FIRMWARE_FOLDERS.iter().map(PathBuf::from));
    folders.map(|folder| folder.join(version)).collect()
}

/// What NixOS kept of a program before it gave it a loader of its own, for
/// containers.
pub(super) fn unpatched(program: &Path) -> Option<PathBuf> {
    let package = program.parent()?.parent()?;
    Some(package.join("origBin").join(program.file_name()?))
}

const LIBRARY_FOLDERS: &[&str] = &[
    // Red Hat's, SUSE's, Amazon's; the .run installer's there.
    "usr/lib64",
    "usr/lib64/nvidia",
    "usr/lib",
    // A driver in a folder of its own, also as an image mounted there.
    "usr/local/nvidia/lib64",
    "usr/local/nvidia/lib",
    // Flatcar's.
    "opt/nvidia/lib64",
    "opt/nvidia/lib",
    "opt/nvidia/current/usr/lib64",
    "opt/nvidia/current/lib64",
    "opt/nvidia/current/lib",
    // NixOS's links into its store.
    "run/opengl-driver/lib",
    // Talos's, whose own C library is another: until 1.12, and since.
    "usr/local/glibc/usr/lib",
    "usr/local/glibc/lib",
    "usr/local/lib64",
    "usr/local/lib",
    // Bottlerocket's, of today.
    "usr/lib/nvidia/tesla",
    // A root that is the driver's own folder.
    "lib64",
    "lib",
    // For 32-bit programs: nothing in there is taken, but it is said why.
    "usr/lib32",
    "usr/lib/i386-linux-gnu",
    "usr/lib/i386-linux-gnu/nvidia/current",
];

const PROGRAM_FOLDERS: &[&str] = &[
    "usr/bin",
    "bin",
    "usr/sbin",
    "usr/local/nvidia/bin",
    "opt/nvidia/bin",
    "opt/nvidia/current/bin",
    "opt/bin",
    "usr/local/bin",
    "run/current-system/sw/bin",
    "usr/libexec/nvidia/tesla/bin",
];

/// Folders below a root that are the root of a driver, for a node whose driver
/// is not its distribution's: a driver container's, and those of
/// Container-Optimized OS, with GKE and without.
pub(super) const ROOTS_BELOW: &[&str] = &[
    "run/nvidia/driver",
    "home/kubernetes/bin/nvidia",
    "var/lib/nvidia",
];

/// Where the cache of the loader is, and that of Talos's second C library.
pub(super) const CACHES: &[&str] = &["etc/ld.so.cache", "usr/local/glibc/etc/ld.so.cache"];

/// The folders with a folder of firmware for each version; the last is NixOS's.
const FIRMWARE_FOLDERS: &[&str] = &[
    "usr/lib/firmware/nvidia",
    "lib/firmware/nvidia",
    "run/current-system/firmware/nvidia",
];

/// Which distribution's or installer's layout it is that has libcuda in this
/// folder of the host.
pub(super) fn name(folder: &Path) -> &'static str {
    const NAMES: &[(&str, &str)] = &[
        ("run/nvidia/driver", "driver container"),
        ("home/kubernetes/bin/nvidia", "Container-Optimized OS"),
        ("var/lib/nvidia", "Container-Optimized OS"),
        ("bottlerocket", "Bottlerocket"),
        ("nix/store", "NixOS"),
        ("run/opengl-driver", "NixOS"),
        ("usr/local/glibc", "Talos"),
        ("opt/nvidia", "Flatcar"),
        ("usr/local/nvidia", "folder of its own"),
        (
            "usr/local/lib",
            "Talos's or another folder below /usr/local",
        ),
        ("linux-gnu/nvidia/", "Debian"),
        ("lib/nvidia/tesla", "Bottlerocket"),
        ("linux-gnu", "Debian's or Ubuntu's folder"),
        ("lib64", "Red Hat's or SUSE's folder"),
    ];
    let text = folder.to_string_lossy();
    let known = NAMES.iter().find(|(part, _)| text.contains(part));
    known.map_or("other", |(_, name)| name)
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
    fn debians_current_driver_goes_before_its_others() {
        let flavours = ["current", "tesla-470"].into_iter();
        let folders = Architecture::Aarch64.library_folders(flavours);
        let expected = ["", "/nvidia/current", "/nvidia/tesla-470"]
            .map(|folder| PathBuf::from(format!("usr/lib/aarch64-linux-gnu{folder}")));
        assert_eq!(folders[..3], expected);
        let again = folders[3..].iter().any(|folder| expected.contains(folder));
        assert!(!again, "{folders:?}");
    }

    #[test]
    fn programs_are_looked_for_beside_their_libraries_first() {
        let libcuda = Path::new("usr/lib/x86_64-linux-gnu/nvidia/current");
        let folders = Architecture::X86_64.program_folders(Some(libcuda));
        assert_eq!(folders[0], Path::new("usr/lib/nvidia/current"));
        assert!(folders.contains(&"usr/bin".into()));
        let own = Path::new("usr/local/nvidia/lib64");
        let folders = Architecture::X86_64.program_folders(Some(own));
        assert_eq!(folders[1], Path::new("usr/local/nvidia/bin"));
    }

    #[test]
    fn what_belongs_to_a_driver_is_looked_for_by_where_its_libraries_are() {
        let folders = |libcuda: &str| own_folders(Path::new(libcuda), &["usr/share/a", "etc/a"]);
        let debian = folders("usr/lib/x86_64-linux-gnu/nvidia/tesla-470");
        let flavour = ["usr/lib/nvidia/tesla-470", "etc/nvidia/tesla-470"].map(PathBuf::from);
        assert_eq!(debian[..2], flavour);
        for (libcuda, expected) in [
            ("usr/local/nvidia/lib64", "usr/local/nvidia/share/a"),
            ("usr/local/nvidia/lib64", "usr/local/nvidia/etc/a"),
            ("usr/lib64", "usr/lib64/xorg/modules/drivers"),
            ("lib64", "share/a"),
        ] {
            assert!(folders(libcuda).contains(&expected.into()), "{libcuda}");
        }
        let firmware = firmware_folders(Some(Path::new("opt/it/lib")), "550.1");
        assert_eq!(firmware[0], Path::new("opt/it/firmware/nvidia/550.1"));
        assert_eq!(
            unpatched(Path::new("/nix/store/a-bin/bin/nvidia-smi")).as_deref(),
            Some(Path::new("/nix/store/a-bin/origBin/nvidia-smi"))
        );
    }

    #[test]
    fn layouts_are_known_by_their_folders() {
        for (folder, layout) in [
            ("/usr/lib/x86_64-linux-gnu/nvidia/current", "Debian"),
            ("/usr/lib/x86_64-linux-gnu/nvidia/tesla-470", "Debian"),
            ("/usr/lib/nvidia/tesla", "Bottlerocket"),
            ("/usr/lib/x86_64-linux-gnu", "Debian's or Ubuntu's folder"),
            ("/usr/lib64", "Red Hat's or SUSE's folder"),
            (
                "/run/nvidia/driver/usr/lib/x86_64-linux-gnu",
                "driver container",
            ),
            (
                "/home/kubernetes/bin/nvidia/lib64",
                "Container-Optimized OS",
            ),
            ("/usr/local/nvidia/lib64", "folder of its own"),
            ("/nix/store/abc-nvidia-x11-550.163.01/lib", "NixOS"),
            ("/usr/local/glibc/usr/lib", "Talos"),
            ("/var/lib/nvidia/lib64", "Container-Optimized OS"),
            (
                "/usr/local/lib",
                "Talos's or another folder below /usr/local",
            ),
            ("/elsewhere", "other"),
        ] {
            assert_eq!(name(Path::new(folder)), layout, "{folder}");
        }
    }
}
