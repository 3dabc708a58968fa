//! The file in which health outlives the process: what was sick stays sick over
//! a restart within the same boot.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::reducer::Kept;
use crate::files;
use crate::gpu::GpuUuid;

/// The file's name in the state folder.
pub const FILE: &str = "health.json";
/// Where one that could not be understood is put.
pub const DAMAGED: &str = "health.json.damaged";

/// A file that is longer is none of ours: 16 GPUs take a few kilobytes.
const LONGEST: u64 = 1 << 20;
const VERSION: u32 = 1;
/// Nobody else has to read it.
const MODE: u32 = 0o600;

/// What the file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct File {
    version: u32,
    /// Of the boot that it is about.
    boot_id: String,
    /// The last record of the kernel log that was taken in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_log_seq: Option<u64>,
    /// What there is to keep of each GPU.
    #[serde(default)]
    pub gpus: BTreeMap<GpuUuid, Kept>,
}

/// Why a file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// It could not be read.
    #[error("cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    /// It is not what this program writes.
    #[error("is damaged: {0}")]
    Damaged(String),
}

impl File {
    /// Of this boot, with nothing in it.
    #[must_use]
    pub fn new(boot_id: &str) -> Self {
        Self {
            version: VERSION,
            boot_id: boot_id.into(),
            ..Self::default()
        }
    }

    /// Understands what was read. One of another boot, or of another version of
    /// this program, says nothing of now.
    ///
    /// # Errors
    ///
    /// [`Fault::Damaged`].
    pub fn parse(text: &[u8], boot_id: &str) -> Result<Self, Fault> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let damaged = |error: serde_json::Error| Fault::Damaged(error.to_string());
        let Version { version } = serde_json::from_slice(text).map_err(damaged)?;
        if version != VERSION {
            return Ok(Self::new(boot_id));
        }
        let file: Self = serde_json::from_slice(text).map_err(damaged)?;
        if file.boot_id == boot_id {
            Ok(file)
        } else {
            Ok(Self::new(boot_id))
        }
    }

    /// Reads the file in `folder`; none is an empty one. One that is damaged is
    /// put aside, so that it is told of once and can be looked at.
    ///
    /// # Errors
    ///
    /// [`Fault`], for the log: there is nothing to be done about it.
    pub fn read(folder: &Path, boot_id: &str) -> Result<Self, Fault> {
        let path = folder.join(FILE);
        let text = match read_bounded(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::new(boot_id)),
            read => read?,
        };
        let file = Self::parse(&text, boot_id);
        if file.is_err() {
            std::fs::rename(&path, folder.join(DAMAGED))?;
        }
        file
    }

    /// Writes the file in `folder`, which is made where it is missing. Either the
    /// old file is there afterwards or the new one.
    ///
    /// # Errors
    ///
    /// The file system's.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        let text = serde_json::to_vec(self).map_err(io::Error::other)?;
        files::replace(&folder.join(FILE), &text, MODE)
    }
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut text = Vec::new();
    let file = std::fs::File::open(path)?;
    file.take(LONGEST + 1).read_to_end(&mut text)?;
    Ok(text)
}

/// The ID of this boot: the kernel makes another one at each
/// (Documentation/admin-guide/sysctl/kernel.rst, `random`).
///
/// # Errors
///
/// The file system's.
pub fn boot_id(procfs: &Path) -> io::Result<String> {
    let text = std::fs::read_to_string(procfs.join("sys/kernel/random/boot_id"))?;
    Ok(text.trim().into())
}

/// Time since boot, in suspend too: `CLOCK_BOOTTIME`. Every process of the boot
/// has the same.
#[must_use]
pub fn since_boot() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanoseconds = u32::try_from(time.tv_nsec).unwrap_or(0);
    Duration::new(seconds, nanoseconds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::HealthOptions;
    use crate::health::reducer::{GpuHealth, Signal};

    fn sick() -> File {
        let mut health = GpuHealth::default();
        let xid = Signal::Xid {
            xid: 79,
            instance: Some(3),
            at: Duration::from_secs(5),
        };
        health.apply(Duration::from_secs(5), &xid, &HealthOptions::default());
        File {
            kernel_log_seq: Some(7),
            gpus: [(GpuUuid::from("GPU-a"), health.keep())].into(),
            ..File::new("boot")
        }
    }

    #[test]
    fn what_is_written_is_read_and_only_in_the_same_boot() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("state");
        assert_eq!(File::read(&folder, "boot").unwrap(), File::new("boot"));
        sick().write(&folder).unwrap();
        assert_eq!(File::read(&folder, "boot").unwrap(), sick());
        let other = File::read(&folder, "another").unwrap();
        assert_eq!(other, File::new("another"));
    }

    #[test]
    fn a_damaged_file_is_put_aside_and_told_of_once() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path();
        std::fs::write(folder.join(FILE), "{\"version\":1,").unwrap();
        assert!(matches!(File::read(folder, "boot"), Err(Fault::Damaged(_))));
        assert_eq!(File::read(folder, "boot").unwrap(), File::new("boot"));
        let aside = std::fs::read(folder.join(DAMAGED)).unwrap();
        assert_eq!(aside, b"{\"version\":1,");
    }

    #[test]
    fn a_file_of_another_version_is_not_damaged() {
        let text = b"{\"version\":2,\"what\":[]}";
        assert_eq!(File::parse(text, "boot").unwrap(), File::new("boot"));
    }

    #[test]
    fn the_clock_goes_on() {
        assert!(since_boot() > Duration::ZERO);
        assert!(since_boot() <= since_boot());
    }

    proptest::proptest! {
        #[test]
        fn no_file_is_too_much(text: Vec<u8>) {
            let _either = File::parse(&text, "boot");
        }
    }
}
