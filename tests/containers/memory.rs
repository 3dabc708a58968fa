//! A file system of its own.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::common::system::{output, try_output};

/// In memory; goes when dropped.
#[derive(Debug)]
pub struct Memory(TempDir);

impl Memory {
    pub fn mount() -> Self {
        let folder = tempfile::tempdir().expect("create a folder to mount on");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "nosuid,nodev", "memory"]);
        output(mount.arg(folder.path()));
        Self(folder)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // Whatever still uses it keeps it until its own end.
        drop(try_output(
            Command::new("umount").arg("--lazy").arg(self.0.path()),
        ));
    }
}
