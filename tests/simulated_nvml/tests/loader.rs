//! Which library is loaded for a session, and what becomes of it after.

use std::fs;
use std::os::unix::fs::MetadataExt;

use gpu_device_plugin::gpu::loader::Loader;
use gpu_device_plugin::gpu::nvml::NvmlLibrary;
use gpu_device_plugin::gpu::{GpuLibrary, OpenError};

use super::common::nvml::{Return, SimulatedNode};

const VERSION: &str = "580.159.04";

struct Rig {
    node: SimulatedNode,
    loader: Loader,
}

impl Rig {
    fn new() -> Self {
        Self {
            node: SimulatedNode::new(1),
            loader: Loader::default(),
        }
    }

    fn open<'a>(&self, module: impl Into<Option<&'a str>>) -> Result<NvmlLibrary, OpenError> {
        let (library, sysfs) = (self.node.nvml_library(), self.node.sys());
        let module = module.into().map(str::to_owned);
        NvmlLibrary::open(&self.loader, Some(&library), &sysfs, module)
    }

    fn session(&self, module: &str) {
        drop(self.open(module).expect("a session"));
    }

    fn no_session<'a>(&self, module: impl Into<Option<&'a str>>) {
        assert!(self.open(module).is_err());
    }

    fn fails_to_end(&self, session: NvmlLibrary, failure: Return) {
        let fail = [("nvmlShutdown".to_owned(), failure)];
        self.node.edit(|state| state.fail.extend(fail));
        drop(session);
        self.node.edit(|state| state.fail.clear());
    }

    /// As an upgrade does: the new file has the old one's path.
    fn upgrade(&self) {
        let (library, beside) = (self.node.nvml_library(), self.node.root().join("new"));
        fs::copy(&library, &beside).expect("copy");
        fs::rename(&beside, &library).expect("rename");
    }

    /// Whether the file that the library's path leads to now is loaded.
    fn is_current_loaded(&self) -> bool {
        let inode = fs::metadata(self.node.nvml_library()).expect("metadata");
        let inode = inode.ino().to_string();
        self.loaded()
            .any(|line| line.split_whitespace().any(|word| word == inode))
    }

    fn is_any_loaded(&self) -> bool {
        self.loaded().next().is_some()
    }

    /// The lines of proc_pid_maps(5) that are about any library of this node.
    fn loaded(&self) -> impl Iterator<Item = String> {
        let maps = fs::read_to_string("/proc/self/maps").expect("maps");
        let root = self.node.root().display().to_string();
        let lines: Vec<_> = maps.lines().map(str::to_owned).collect();
        lines.into_iter().filter(move |line| line.contains(&root))
    }
}

#[test]
fn the_library_stays_loaded_for_the_next_session() {
    let rig = Rig::new();
    rig.session(VERSION);
    assert!(rig.is_any_loaded());
    let first = rig.loaded().count();
    rig.session(VERSION);
    assert_eq!(rig.loaded().count(), first, "not twice");
}

#[test]
fn another_kernel_module_has_its_library_loaded() {
    let rig = Rig::new();
    rig.session(VERSION);
    rig.upgrade();
    rig.session(VERSION);
    assert!(!rig.is_current_loaded(), "the kernel module is the old one");
    rig.session("580.200.00");
    assert!(rig.is_current_loaded());
}

#[test]
fn a_library_that_cannot_be_initialised_any_more_is_unloaded() {
    for (failure, tries) in [(Return::LibRmVersionMismatch, 1), (Return::Unknown, 10)] {
        let rig = Rig::new();
        rig.session(VERSION);
        rig.node.edit(|state| state.init = failure);
        for _ in 1..tries {
            rig.no_session(VERSION);
            assert!(rig.is_any_loaded(), "{failure:?}");
        }
        rig.no_session(VERSION);
        assert!(!rig.is_any_loaded(), "{failure:?}");
        rig.upgrade();
        rig.node.edit(|state| state.init = Return::Success);
        rig.session(VERSION);
        assert!(rig.is_current_loaded(), "{failure:?}");
    }
}

#[test]
fn a_driver_that_is_away_for_a_while_finds_its_library_loaded() {
    let rig = Rig::new();
    for _ in 0..2 {
        rig.session(VERSION);
        rig.node.edit(|state| state.init = Return::DriverNotLoaded);
        rig.no_session(None);
        (1..9).for_each(|_| rig.no_session(VERSION));
        rig.node.edit(|state| state.init = Return::Success);
        rig.upgrade();
        rig.session(VERSION);
        assert!(!rig.is_current_loaded());
    }
}

#[test]
fn a_session_that_cannot_be_shut_down_is_left_behind_with_its_library() {
    for (failure, stays) in [(Return::Unknown, false), (Return::Uninitialized, true)] {
        let rig = Rig::new();
        let session = rig.open(VERSION).expect("a session");
        rig.fails_to_end(session, failure);
        rig.upgrade();
        rig.session(VERSION);
        assert_eq!(rig.is_current_loaded(), !stays, "{failure:?}");
    }
}

#[test]
fn a_shutdown_that_fails_ends_no_other_session() {
    let rig = Rig::new();
    let first = rig.open(VERSION).expect("a session");
    let second = rig.open(VERSION).expect("a session");
    rig.fails_to_end(first, Return::Uninitialized);
    assert_eq!(second.count(), Ok(1));
}
