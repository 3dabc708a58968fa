//! Real device nodes, as a runtime passes them on, of GPUs that there are not.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use super::probe::Findings;
use super::system::output;

/// NVIDIA's character devices.
const MAJOR: u32 = 195;

/// The nodes of some GPUs. No driver is behind them: who may open one gets
/// ENXIO, who may not EPERM.
#[derive(Debug)]
pub struct DeviceNodes {
    uvm_major: u32,
}

impl DeviceNodes {
    /// Makes those of so many GPUs in `dev`, which takes root.
    pub fn make(dev: &Path, gpus: usize) -> Self {
        fs::create_dir_all(dev).expect("create the folder of device nodes");
        let nodes = Self::to_be_made();
        let gpus = u32::try_from(gpus).expect("a few GPUs");
        for (name, (major, minor)) in nodes.of(&(0..gpus).collect()) {
            let mut mknod = Command::new("mknod");
            mknod.arg("--mode=0666").arg(dev.join(name)).arg("c");
            output(mknod.args([major.to_string(), minor.to_string()]));
        }
        nodes
    }

    /// Those that a plugin will make where these modules are loaded.
    pub fn to_be_made() -> Self {
        Self {
            uvm_major: free_major(),
        }
    }

    /// The modules, as /proc/devices lists their devices.
    pub fn modules(&self) -> [(&'static str, u32); 3] {
        [
            ("nvidia", MAJOR),
            ("nvidiactl", MAJOR),
            ("nvidia-uvm", self.uvm_major),
        ]
    }

    /// Checks that each device is found by its numbers in this folder, as runc
    /// looks for it on behalf of systemd.
    pub fn assert_linked(&self, minors: &BTreeSet<u32>, links: &Path) {
        for (name, (major, minor)) in self.of(minors) {
            let link = links.join(format!("{major}:{minor}"));
            let device = fs::metadata(&link).unwrap_or_else(|error| {
                panic!("{} for {name}: {error}", link.display());
            });
            assert!(device.file_type().is_char_device(), "{name}");
            assert_eq!(device.rdev(), libc::makedev(major, minor), "{name}");
        }
    }

    /// What a container with these GPUs has: names and numbers.
    fn of(&self, minors: &BTreeSet<u32>) -> BTreeMap<String, (u32, u32)> {
        let gpus = minors
            .iter()
            .map(|minor| (format!("nvidia{minor}"), (MAJOR, *minor)));
        let common = [
            ("nvidiactl".to_owned(), (MAJOR, 255)),
            ("nvidia-uvm".to_owned(), (self.uvm_major, 0)),
            ("nvidia-uvm-tools".to_owned(), (self.uvm_major, 1)),
        ];
        gpus.chain(common).collect()
    }

    /// Checks that the container sees the nodes of these GPUs and of no other,
    /// and may use those alone.
    pub fn assert_given(&self, minors: &BTreeSet<u32>, findings: &Findings) {
        let expected = self.of(minors).into_iter();
        let expected = expected
            .map(|(name, (major, minor))| (format!("/dev/{name}"), format!("{major}:{minor}")));
        let nodes = findings.all("node");
        let numbers = nodes.iter().map(|(path, found)| {
            let (numbers, opened) = found.split_once(' ').expect("numbers and a word");
            assert!(!forbidden(opened), "may not use {path}: {opened}");
            ((*path).to_owned(), numbers.to_owned())
        });
        let expected: BTreeMap<_, _> = expected.collect();
        assert_eq!(numbers.collect::<BTreeMap<_, _>>(), expected);
    }

    /// Checks the nodes that the container made itself: of GPUs that are not its
    /// own, they are of no use.
    pub fn assert_makes_none(&self, minors: &BTreeSet<u32>, findings: &Findings) {
        let made = findings.all("made");
        assert!(!made.is_empty(), "{findings:?}");
        for (numbers, opened) in made {
            let minor = numbers.split(':').nth(1).expect("a minor number");
            let minor = minor.parse::<u32>().expect("a number");
            let may = minor == 255 || minors.contains(&minor);
            assert_eq!(!forbidden(opened), may, "{numbers}: {opened}");
        }
    }
}

/// Whether a container is kept from what it tried.
pub fn forbidden(word: &str) -> bool {
    ["EPERM", "EACCES"].contains(&word)
}

/// A major number that no driver has, among those that Linux gives away itself
/// (Documentation/admin-guide/devices.txt).
fn free_major() -> u32 {
    let taken = fs::read_to_string("/proc/devices").expect("read /proc/devices");
    let taken: BTreeSet<u32> = taken
        .lines()
        .filter_map(|line| line.split_whitespace().next()?.parse().ok())
        .collect();
    let free = (384..=511).rev().find(|major| !taken.contains(major));
    free.expect("a free major number")
}
