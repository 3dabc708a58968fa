//! Who may use a device node, and who may make it: the driver's parameters and
//! the files of its capabilities.

use std::fs;
use std::path::{Path, PathBuf};

/// What a device node must be like, and whether the driver lets it be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Access {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Permission bits alone.
    pub(super) mode: u32,
    /// False where whoever set up the driver makes the nodes himself.
    pub(super) may_make: bool,
}

/// What holds where the driver says nothing else.
impl Default for Access {
    fn default() -> Self {
        Self {
            uid: 0,
            gid: 0,
            mode: 0o666,
            may_make: true,
        }
    }
}

impl Access {
    /// Reads `/proc/driver/nvidia/params`, or the file of a capability. The
    /// numbers are decimal, the mode too. Lines that are none of ours are passed
    /// over.
    pub(super) fn parse(text: &str) -> Self {
        let mut access = Self::default();
        for (name, value) in fields(text) {
            match name {
                "DeviceFileUID" => access.uid = value,
                "DeviceFileGID" => access.gid = value,
                "DeviceFileMode" => access.mode = value & 0o777,
                "ModifyDeviceFiles" | "DeviceFileModify" => access.may_make = value == 1,
                _ => {}
            }
        }
        access
    }
}

/// Something that the driver lets one do who can open a device node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Capability {
    pub(super) minor: u32,
    pub(super) access: Access,
}

/// Linux gives a minor number twenty bits.
const MINORS: u32 = 1 << 20;

impl Capability {
    fn parse(text: &str) -> Option<Self> {
        let minor = fields(text).find(|(name, _)| *name == "DeviceFileMinor");
        let (_, minor) = minor.filter(|(_, minor)| *minor < MINORS)?;
        let access = Access::parse(text);
        Some(Self { minor, access })
    }

    /// Reads every file below `/proc/driver/nvidia/capabilities` that is one. A
    /// folder that is not there has none.
    pub(super) fn read_all(folder: &Path) -> Vec<Self> {
        let mut files = Vec::new();
        collect(folder, DEPTH, &mut files);
        files.sort_unstable();
        let texts = files.iter().filter_map(|file| fs::read(file).ok());
        texts
            .filter_map(|text| Self::parse(&String::from_utf8_lossy(&text)))
            .collect()
    }
}

/// The driver's own are `gpu0/mig/gi0/ci0/access` deep.
const DEPTH: usize = 8;

fn collect(folder: &Path, depth: usize, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && depth > 0 => collect(&entry.path(), depth - 1, files),
            Ok(kind) if kind.is_file() => files.push(entry.path()),
            _ => {}
        }
    }
}

fn fields(text: &str) -> impl Iterator<Item = (&str, u32)> {
    text.lines().filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        Some((name.trim(), value.trim().parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PARAMS: &str = "\
ResmanDebugLevel: 4294967295
ModifyDeviceFiles: 1
DeviceFileUID: 0
DeviceFileGID: 44
DeviceFileMode: 432
InitializeSystemMemoryAllocations: 1
RegistryDwords: \"\"
";

    #[test]
    fn of_the_drivers_parameters() {
        let access = Access::parse(PARAMS);
        assert_eq!((access.uid, access.gid), (0, 44));
        assert_eq!(access.mode, 0o660);
        assert!(access.may_make);
        let forbidden =
            Access::parse(&PARAMS.replace("ModifyDeviceFiles: 1", "ModifyDeviceFiles: 0"));
        assert!(!forbidden.may_make);
        assert_eq!(Access::parse(""), Access::default());
    }

    #[test]
    fn of_the_capabilities_that_have_a_file() {
        let root = tempfile::tempdir().unwrap();
        let capability = |path: &str, text: &str| {
            let file = root.path().join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        };
        let text = "DeviceFileMinor: 1\nDeviceFileMode: 256\nDeviceFileModify: 1\n";
        capability("mig/config", text);
        let closed = "DeviceFileMinor: 30\nDeviceFileMode: 292\nDeviceFileModify: 0\n";
        capability("gpu0/mig/gi3/ci0/access", closed);
        capability("gpu0/mig/other", "no capability\n");
        capability("gpu0/mig/huge", "DeviceFileMinor: 1048576\n");
        std::os::unix::fs::symlink(root.path(), root.path().join("mig/again")).unwrap();
        let found = Capability::read_all(root.path());
        let found: Vec<_> = found
            .iter()
            .map(|capability| {
                let access = capability.access;
                (capability.minor, access.mode, access.may_make)
            })
            .collect();
        assert_eq!(found, [(30, 0o444, false), (1, 0o400, true)]);
        assert_eq!(Capability::read_all(&root.path().join("gone")), []);
    }

    proptest! {
        #[test]
        fn noise_is_passed_over(text in "((DeviceFileM(inor|ode)|ModifyDeviceFiles)?:? ?-?[0-9]{0,12}[ -~\n\u{1F980}]{0,9}){0,9}") {
            let access = Access::parse(&text);
            prop_assert!(access.mode <= 0o777);
            if let Some(capability) = Capability::parse(&text) {
                prop_assert!(capability.minor < MINORS);
            }
        }
    }
}
