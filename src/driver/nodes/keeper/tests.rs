use std::io::{Write, stderr};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Command;
use std::thread;

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use tempfile::TempDir;

use super::*;
use crate::config::HostFolder;
use crate::driver::nodes::{Removal, remove_made};

const DEVICES: &str = "Character devices:\n195 nvidia\n195 nvidiactl\n238 nvidia-uvm\n241 nvidia-caps\n\nBlock devices:\n";

/// A node's `/dev` and what the kernel says, in a folder.
struct Host(TempDir);

impl Host {
    fn new(devices: &str) -> Self {
        let host = Self(tempfile::tempdir().unwrap());
        for folder in ["dev/char", "proc/driver/nvidia", "sys"] {
            fs::create_dir_all(host.path(folder)).unwrap();
        }
        host.write("proc/devices", devices);
        host
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn keeper(&self) -> Keeper {
        Keeper {
            dev_root: DevRoot::new("/", self.0.path()),
            procfs: self.path("proc"),
            sysfs: self.path("sys"),
            state_dir: self.path("state"),
            make: true,
            imex: false,
            mig: false,
        }
    }

    /// Somebody made a node.
    fn node(&self, name: &str, major: u32, minor: u32) {
        let device = makedev(major, minor);
        let path = self.path("dev").join(name);
        mknodat(
            CWD,
            path,
            FileType::CharacterDevice,
            Mode::from(0o644),
            device,
        )
        .unwrap();
    }

    /// All of `/dev`: nodes with numbers and access, links with where they lead.
    fn dev(&self) -> Vec<String> {
        let mut found = Vec::new();
        for folder in ["dev", "dev/char", "dev/nvidia-caps"] {
            for entry in fs::read_dir(self.path(folder)).into_iter().flatten() {
                let path = entry.unwrap().path();
                let name = path
                    .strip_prefix(self.path("dev"))
                    .unwrap()
                    .display()
                    .to_string();
                let itself = fs::symlink_metadata(&path).unwrap();
                if let Ok(target) = fs::read_link(&path) {
                    found.push(format!("{name} -> {}", target.display()));
                } else if let Seen::Node { number, .. } = see(&path) {
                    let mode = itself.permissions().mode() & 0o7777;
                    found.push(format!("{name} {number} {mode:o} {}", itself.gid()));
                } else if !itself.is_dir() {
                    found.push(name);
                }
            }
        }
        found.sort();
        found
    }

    fn remove_made(&self) -> Removal {
        remove_made(&self.path("state"), &DevRoot::new("/", self.0.path()))
    }
}

/// Only root makes device nodes.
fn root(test: &str) -> bool {
    let root = fs::metadata("/proc/self").unwrap().uid() == 0;
    if !root {
        skip(test, "not root");
    }
    root
}

fn skip(test: &str, why: &str) {
    let line = format!("\n*** SKIPPED {test}: {why}\n");
    stderr().write_all(line.as_bytes()).unwrap();
}

fn faults(report: &Report) -> Vec<String> {
    let faults = report.faults.0.iter();
    faults
        .map(|(path, fault)| format!("{} {fault}", path.display()))
        .collect()
}

fn problems(report: &Report) -> Vec<&str> {
    report.problems.iter().map(String::as_str).collect()
}

fn made(report: &Report) -> usize {
    report.made.len()
}

const ALL: [&str; 10] = [
    "char/195:0 -> ../nvidia0",
    "char/195:255 -> ../nvidiactl",
    "char/238:0 -> ../nvidia-uvm",
    "char/238:1 -> ../nvidia-uvm-tools",
    "char/241:1 -> ../nvidia-caps/nvidia-cap1",
    "nvidia-caps/nvidia-cap1 241:1 400 0",
    "nvidia-uvm 238:0 666 0",
    "nvidia-uvm-tools 238:1 666 0",
    "nvidia0 195:0 660 44",
    "nvidiactl 195:255 660 44",
];

fn whole() -> Host {
    let host = Host::new(DEVICES);
    let params = "ModifyDeviceFiles: 1\nDeviceFileUID: 0\nDeviceFileGID: 44\nDeviceFileMode: 432\n";
    host.write("proc/driver/nvidia/params", params);
    let config = "DeviceFileMinor: 1\nDeviceFileMode: 256\nDeviceFileModify: 1\n";
    host.write("proc/driver/nvidia/capabilities/mig/config", config);
    host
}

#[test]
fn what_is_missing_is_made_once_and_noted() {
    if !root("what_is_missing_is_made_once_and_noted") {
        return;
    }
    let host = whole();
    let report = host.keeper().keep(&[0].into());
    assert_eq!((faults(&report), problems(&report)), (vec![], vec![]));
    assert_eq!(host.dev(), ALL);
    assert_eq!(made(&report), ALL.len());
    assert!(!host.keeper().is_outdated(&report));

    let again = host.keeper().keep(&[0].into());
    assert_eq!(made(&again), 0);
    fs::remove_file(host.path("dev/char/195:0")).unwrap();
    assert_eq!(made(&host.keeper().keep(&[0].into())), 1);
    let record = fs::read_to_string(host.path("state/made-in-dev")).unwrap();
    assert_eq!(record.lines().count(), ALL.len(), "{record}");
}

#[test]
fn a_node_that_is_whole_needs_no_state() {
    if !root("a_node_that_is_whole_needs_no_state") {
        return;
    }
    let host = whole();
    assert_eq!(made(&host.keeper().keep(&[0].into())), ALL.len());
    fs::remove_dir_all(host.path("state")).unwrap();
    assert_eq!(made(&host.keeper().keep(&[0].into())), 0);
    assert!(!host.path("state").exists());
}

#[test]
fn what_is_switched_off_is_only_looked_at() {
    let host = Host::new(DEVICES);
    for (make, words) in [
        (false, "--make-device-nodes=false"),
        (true, "when it serves"),
    ] {
        let keeper = Keeper {
            make,
            ..host.keeper()
        };
        let report = if make {
            keeper.look(&[3].into())
        } else {
            keeper.keep(&[3].into())
        };
        let faults = faults(&report);
        assert_eq!(faults.len(), 3, "{faults:?}");
        assert!(
            faults.iter().all(|fault| fault.contains(words)),
            "{faults:?}"
        );
        assert_eq!(host.dev(), [""; 0]);
        assert!(!host.path("state").exists());
    }
}

#[test]
fn a_module_that_is_not_loaded_is_named() {
    let host = Host::new("Character devices:\n195 nvidia\n");
    let keeper = Keeper {
        make: false,
        ..host.keeper()
    };
    let loaded = keeper.keep(&Needed::default());
    let uvm = "/dev/nvidia-uvm does not exist: the nvidia-uvm module is not loaded";
    let said = faults(&loaded);
    assert!(said[0].starts_with(uvm), "{said:?}");
    host.write("proc/devices", DEVICES);
    assert!(keeper.is_outdated(&loaded));
    let said = faults(&keeper.keep(&Needed::default()));
    assert!(said[0].contains("--make-device-nodes=false"), "{said:?}");
    // Nothing is known without the file.
    fs::remove_file(host.path("proc/devices")).unwrap();
    assert_eq!(faults(&keeper.keep(&[0].into())), [""; 0]);
}

#[test]
fn a_node_without_a_module_is_told_of() {
    if !root("a_node_without_a_module_is_told_of") {
        return;
    }
    let host = Host::new("Character devices:\n195 nvidia\n");
    host.node("nvidia-uvm", 238, 0);
    let said = faults(&host.keeper().keep(&Needed::default()));
    let uvm = "/dev/nvidia-uvm leads to no driver: the nvidia-uvm module is not loaded";
    assert!(said[0].starts_with(uvm), "{said:?}");
}

#[test]
fn a_node_of_another_load_is_replaced_and_no_other() {
    if !root("a_node_of_another_load_is_replaced_and_no_other") {
        return;
    }
    let host = Host::new(DEVICES);
    host.node("nvidia-uvm", 235, 0);
    host.node("nvidia0", 195, 1);
    host.node("elsewhere", 1, 3);
    symlink("elsewhere", host.path("dev/nvidia1")).unwrap();
    host.write("dev/nvidiactl", "");
    symlink("nowhere", host.path("dev/nvidia-uvm-tools")).unwrap();
    let report = host.keeper().keep(&[0, 1].into());
    let said = faults(&report);
    assert_eq!(said.len(), 2, "{said:?}");
    let zero = "/dev/nvidia0 is device 195:1, and the driver's is 195:0; remove it";
    assert!(said[0].starts_with(zero), "{said:?}");
    let one = "/dev/nvidia1 is device 1:3, and the driver's is 195:1; remove it";
    assert!(said[1].starts_with(one), "{said:?}");
    let odd = problems(&report);
    assert_eq!(odd.len(), 2, "{odd:?}");
    assert!(
        odd[0].starts_with("/dev/nvidia-uvm-tools is a link that leads nowhere"),
        "{odd:?}"
    );
    assert!(
        odd[1].starts_with("/dev/nvidiactl is no device node"),
        "{odd:?}"
    );
    assert_eq!(
        host.dev(),
        [
            "char/238:0 -> ../nvidia-uvm",
            "elsewhere 1:3 644 0",
            "nvidia-uvm 238:0 666 0",
            "nvidia-uvm-tools -> nowhere",
            "nvidia0 195:1 644 0",
            "nvidia1 -> elsewhere",
            "nvidiactl",
        ]
    );
}

#[test]
fn where_the_driver_forbids_it_only_links_are_made() {
    if !root("where_the_driver_forbids_it_only_links_are_made") {
        return;
    }
    let host = Host::new(DEVICES);
    host.write("proc/driver/nvidia/params", "ModifyDeviceFiles: 0\n");
    host.node("nvidia0", 195, 0);
    host.node("nvidia-uvm", 235, 0);
    let report = host.keeper().keep(&[0].into());
    let said = faults(&report);
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(
        said.iter()
            .all(|fault| fault.contains("NVreg_ModifyDeviceFiles=0")),
        "{said:?}"
    );
    assert_eq!(
        host.dev(),
        [
            "char/195:0 -> ../nvidia0",
            "nvidia-uvm 235:0 644 0",
            "nvidia0 195:0 644 0"
        ]
    );
}

#[test]
fn a_link_is_made_right_where_it_is_the_drivers() {
    if !root("a_link_is_made_right_where_it_is_the_drivers") {
        return;
    }
    let host = Host::new(DEVICES);
    for (name, major, minor) in [
        ("nvidia0", 195, 0),
        ("nvidia1", 195, 1),
        ("nvidia2", 195, 2),
        ("nvidiactl", 195, 255),
        ("nvidia-uvm", 238, 0),
        ("nvidia-uvm-tools", 238, 1),
    ] {
        host.node(name, major, minor);
    }
    // Right, as nvidia-ctk makes them; stale; of another; no link.
    symlink("/dev/nvidia0", host.path("dev/char/195:0")).unwrap();
    symlink("/dev/nvidia-uvm", host.path("dev/char/195:1")).unwrap();
    symlink("../nvidia9", host.path("dev/char/195:2")).unwrap();
    symlink("../bus/usb/001", host.path("dev/char/238:0")).unwrap();
    host.write("dev/char/238:1", "");
    let report = host.keeper().keep(&[0, 1, 2].into());
    let links: Vec<_> = host
        .dev()
        .into_iter()
        .filter(|name| name.starts_with("char"))
        .collect();
    assert_eq!(
        links,
        [
            "char/195:0 -> /dev/nvidia0",
            "char/195:1 -> ../nvidia1",
            "char/195:2 -> ../nvidia2",
            "char/195:255 -> ../nvidiactl",
            "char/238:0 -> ../bus/usb/001",
            "char/238:1",
        ]
    );
    let odd = problems(&report);
    assert_eq!(odd.len(), 2, "{odd:?}");
    assert!(odd[0].starts_with("/dev/char/238:0 leads to ../bus/usb/001, not to nvidia-uvm"));
    assert!(odd[1].starts_with("/dev/char/238:1 is no link"), "{odd:?}");
    assert_eq!(made(&report), 3);
}

#[test]
fn nodes_elsewhere_are_linked_from_the_hosts_own_folder() {
    if !root("nodes_elsewhere_are_linked_from_the_hosts_own_folder") {
        return;
    }
    let (host, driver) = (Host::new(DEVICES), Host::new(DEVICES));
    driver.node("nvidia0", 195, 0);
    driver.node("nvidiactl", 195, 255);
    host.node("nvidiactl", 195, 255);
    symlink("/dev/nvidiactl", host.path("dev/char/195:255")).unwrap();
    let links = HostFolder {
        host: "/dev/char".into(),
        here: host.path("dev/char"),
    };
    let dev_root = DevRoot::new("/run/nvidia/driver", driver.0.path()).with_links(links);
    let keeper = Keeper {
        dev_root,
        ..host.keeper()
    };
    for _ in 0..2 {
        let report = keeper.keep(&[0].into());
        assert_eq!(problems(&report), [""; 0]);
    }
    let links = host.dev();
    assert_eq!(
        links[..4],
        [
            "char/195:0 -> /run/nvidia/driver/dev/nvidia0",
            "char/195:255 -> /dev/nvidiactl",
            "char/238:0 -> /run/nvidia/driver/dev/nvidia-uvm",
            "char/238:1 -> /run/nvidia/driver/dev/nvidia-uvm-tools",
        ]
    );
}

#[test]
fn what_cannot_be_made_is_told_with_the_reason() {
    const TEST: &str = "what_cannot_be_made_is_told_with_the_reason";
    let host = Host::new(DEVICES);
    let mount = Mount::read_only(&host.path("dev"));
    let reason = match (&mount, fs::metadata("/proc/self").unwrap().uid()) {
        (Some(_), _) => "Read-only file system",
        (None, 0) => return skip(TEST, "nothing can be mounted"),
        (None, _) => "Operation not permitted",
    };
    let keeper = host.keeper();
    let first = keeper.keep(&[0].into());
    let said = faults(&first);
    assert_eq!(said.len(), 3, "{said:?}");
    assert!(said.iter().all(|fault| fault.contains(reason)), "{said:?}");
    let optional = problems(&first);
    assert_eq!(optional.len(), 1, "{optional:?}");
    assert!(optional[0].contains("nvidia-uvm-tools"), "{optional:?}");
    assert_eq!(
        keeper.keep(&[0].into()),
        first,
        "nothing is news the second time"
    );
    assert!(!host.path("state").exists());
}

/// An empty file system that nobody writes.
struct Mount(PathBuf);

impl Mount {
    fn read_only(place: &Path) -> Option<Self> {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "ro", "tmpfs"]).arg(place);
        let done = mount.output().ok()?;
        done.status.success().then(|| Self(place.into()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let done = Command::new("umount").arg(&self.0).status().unwrap();
        assert!(done.success());
    }
}

#[test]
fn two_at_once_make_the_same() {
    if !root("two_at_once_make_the_same") {
        return;
    }
    for _ in 0..50 {
        let host = whole();
        host.node("nvidia-uvm", 235, 0);
        let reports = thread::scope(|scope| {
            let keepers = [(); 3].map(|()| scope.spawn(|| host.keeper().keep(&[0].into())));
            keepers.map(|keeper| keeper.join().unwrap())
        });
        for report in &reports {
            assert_eq!((faults(report), problems(report)), (vec![], vec![]));
        }
        assert_eq!(made(&host.keeper().keep(&[0].into())), 0);
        assert_eq!(host.dev(), ALL);
        let removal = host.remove_made();
        assert_eq!(removal.removed.len(), 5, "{removal:?}");
    }
}

#[test]
fn links_that_were_made_are_taken_away_again() {
    if !root("links_that_were_made_are_taken_away_again") {
        return;
    }
    let host = whole();
    assert_eq!(made(&host.keeper().keep(&[0].into())), ALL.len());
    // Since then: another's, gone, and a node replaced.
    fs::remove_file(host.path("dev/char/195:0")).unwrap();
    symlink("/dev/nvidia0", host.path("dev/char/195:0")).unwrap();
    fs::remove_file(host.path("dev/char/238:1")).unwrap();
    fs::remove_file(host.path("dev/nvidiactl")).unwrap();
    let removal = host.remove_made();
    assert_eq!(removal.failed, []);
    let removed: Vec<_> = removal
        .removed
        .iter()
        .map(|path| path.to_str().unwrap())
        .collect();
    assert_eq!(
        removed,
        ["/dev/char/195:255", "/dev/char/238:0", "/dev/char/241:1"]
    );
    let kept: Vec<_> = removal
        .kept
        .iter()
        .map(|(path, _)| path.to_str().unwrap())
        .collect();
    assert_eq!(
        kept,
        [
            "/dev/nvidia-caps/nvidia-cap1",
            "/dev/nvidia-uvm",
            "/dev/nvidia-uvm-tools",
            "/dev/nvidia0",
            "/dev/char/195:0",
        ]
    );
    assert!(removal.kept[0].1.contains("next boot"));
    assert!(removal.kept[4].1.contains("leads elsewhere"));
    assert!(!host.path("state/made-in-dev").exists());
    let again = host.remove_made();
    assert!(again.removed.is_empty() && again.kept.is_empty() && again.failed.is_empty());
}

#[test]
fn a_record_that_was_cut_off_or_tampered_with_takes_nothing_else_away() {
    let host = Host::new(DEVICES);
    for link in ["195:0", "195:1"] {
        symlink("../nvidia0", host.path("dev/char").join(link)).unwrap();
    }
    symlink("../nvidia0", host.path("dev/other")).unwrap();
    host.write(
        "state/made-in-dev",
        "link ../other ../nvidia0\nlink 195:0 ../nvi",
    );
    let made = Made::link(
        DeviceNumber {
            major: 195,
            minor: 1,
        },
        Path::new("../nvidia0"),
    );
    record(&host.path("state"), &[made]).unwrap();
    let removal = host.remove_made();
    assert_eq!(removal.removed, [Path::new("/dev/char/195:1")]);
    assert_eq!(
        host.dev(),
        ["char/195:0 -> ../nvidia0", "other -> ../nvidia0"]
    );
}

#[test]
fn links_are_made_where_nothing_can_be_noted() {
    if !root("links_are_made_where_nothing_can_be_noted") {
        return;
    }
    let host = whole();
    host.write("state", "a file in the way");
    let report = host.keeper().keep(&[0].into());
    assert_eq!(host.dev(), ALL);
    let said = problems(&report);
    assert!(said[0].contains("uninstall will not find it"), "{said:?}");
}
