//! Driver volumes: folders of a driver's files that stay as they are, whatever
//! becomes of the driver's installation.
//!
//! The kubelet keeps what Allocate answered and starts containers by it again,
//! after a restart and after a reboot, without asking. So an answer must not name
//! the files of a package, which the next upgrade replaces. A volume is made
//! once, of hard links where that is possible, under a name that tells its
//! content, and is removed when nothing can name it any more ([`collect`]).
//!
//! Made beside and renamed into place, so that a name is either a whole volume
//! or not there. A live process holds a shared lock (flock) on the folder of the
//! volume that it answers with, and an exclusive one on what it is making; for the
//! moments in which a folder has neither there is one on the folder of volumes.

pub mod collect;
pub mod uses;

mod build;
mod check;
mod manifest;
mod place;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::fs::{RenameFlags, StatVfsMountFlags, renameat_with, statvfs};

use self::build::Building;
pub use self::build::Made;
pub use self::manifest::{Manifest, VolumeFile};
use crate::config::HostFolder;
use crate::digest::Fnv1a;

/// What is being made, or was when its maker died.
const NEW: &str = ".new-";
/// What is being removed.
const OLD: &str = ".old-";

/// A file that goes into a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Where the volume has it, such as `lib64/libcuda.so.1`.
    pub path: PathBuf,
    /// The file, no link, as this process sees it.
    pub here: PathBuf,
}

/// The folder of all volumes.
#[derive(Clone, Debug)]
pub struct Volumes {
    folder: HostFolder,
}

/// A volume that is there as long as this is held.
#[derive(Debug)]
pub struct Volume {
    /// Its folder.
    pub folder: HostFolder,
    /// What it consists of.
    pub manifest: Manifest,
    /// How it was made, if it was just now.
    pub made: Option<Made>,
    _lock: File,
}

/// Why there is no volume.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The version would be no name of a folder.
    #[error("{0:?} is no version of a driver")]
    Version(String),
    /// The folder of volumes cannot be made or written.
    #[error(
        "cannot write the driver volume below {path}: {source}; make room or name a folder that \
         can be written with --state-dir"
    )]
    Write {
        /// What was being written.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// Libraries cannot be mapped from there.
    #[error(
        "{0} is on a file system that is mounted noexec, from which no library can be loaded; \
         name another folder with --state-dir"
    )]
    NoExec(PathBuf),
    /// Copies would fill the disk.
    #[error(
        "a copy of the driver takes {needed} bytes, and of the {available} bytes free at {path} \
         {reserve} are left to others; make room or name another folder with --state-dir"
    )]
    NoRoom {
        /// The folder of volumes.
        path: PathBuf,
        /// What is to be copied.
        needed: u64,
        /// What is free.
        available: u64,
        /// What must stay free.
        reserve: u64,
    },
    /// A file of the driver cannot be read.
    #[error("cannot read {path} of the driver: {source}")]
    Source {
        /// The file.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// A file of the driver is another than when it was looked at.
    #[error("{0} changed while it was copied; is the driver being installed?")]
    Changed(PathBuf),
    /// What was made is not what it should be.
    #[error("the driver volume {path} is damaged: {what}")]
    Damaged {
        /// The volume.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
}

impl VolumeError {
    fn write(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Write { path, source }
    }

    fn source(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Source { path, source }
    }

    /// Of the volume that was to be, and as the host names it: what is being made
    /// has another name at each try, and is gone when somebody looks.
    fn told_of(mut self, folder: &HostFolder, name: &str) -> Self {
        match &mut self {
            Self::NoRoom { path, .. } => path.clone_from(&folder.host),
            Self::Write { path, .. } | Self::Damaged { path, .. } => {
                if let Ok(below) = path.strip_prefix(&folder.here) {
                    *path = told(below, folder, name);
                }
            }
            Self::Version(_) | Self::NoExec(_) | Self::Source { .. } | Self::Changed(_) => {}
        }
        self
    }
}

fn told(below: &Path, folder: &HostFolder, name: &str) -> PathBuf {
    let mut parts = below.iter();
    match parts.next().and_then(OsStr::to_str) {
        Some(unfinished) if is_left_over(unfinished) => {
            let volume = folder.host.join(name);
            volume.iter().chain(parts).collect()
        }
        _ => folder.host.iter().chain(below).collect(),
    }
}

impl Volumes {
    /// The volumes in this folder. Touches nothing.
    #[must_use]
    pub fn new(folder: HostFolder) -> Self {
        Self { folder }
    }

    /// Where they are.
    #[must_use]
    pub fn folder(&self) -> &HostFolder {
        &self.folder
    }

    /// The volume of exactly these files: the one that is there, if it is whole,
    /// or a new one. Blocks as long as it takes to copy the files, where they
    /// cannot be linked.
    ///
    /// # Errors
    ///
    /// [`VolumeError`]. Nothing is left behind then that [`collect`] would not
    /// remove.
    pub fn make(&self, version: &str, sources: &[Source]) -> Result<Volume, VolumeError> {
        let name = name(version, sources)?;
        let made = self.make_as(&name, version, sources);
        made.map_err(|error| error.told_of(&self.folder, &name))
    }

    fn make_as(
        &self,
        name: &str,
        version: &str,
        sources: &[Source],
    ) -> Result<Volume, VolumeError> {
        if let Some(volume) = self.open(name)
            && self.may_run()?
        {
            return Ok(volume);
        }
        let begun = Instant::now();
        fs::create_dir_all(&self.folder.here).map_err(VolumeError::write(&self.folder.here))?;
        if !self.may_run()? {
            return Err(VolumeError::NoExec(self.folder.host.clone()));
        }
        let mut building = Building::begin(&self.folder, name)?;
        building.fill(version, sources)?;
        self.install(building, name, begun)
    }

    /// The volume of exactly these files, if it is there and whole.
    #[must_use]
    pub fn find(&self, version: &str, sources: &[Source]) -> Option<Volume> {
        self.open(&name(version, sources).ok()?)
    }

    /// A whole volume of the driver of this version, the newest if there are
    /// several: what is left of a driver whose files were replaced.
    #[must_use]
    pub fn of_version(&self, version: &str) -> Option<Volume> {
        let mut names = self.names();
        names.retain(|name| !is_left_over(name));
        let made =
            |name: &String| fs::metadata(self.folder.here.join(name)).and_then(|m| m.modified());
        names.sort_by_cached_key(|name| made(name).ok());
        let mut volumes = names.iter().rev().filter_map(|name| self.open(name));
        volumes.find(|volume| volume.manifest.version == version)
    }

    /// The names of all folders that are ours, whole or not, sorted. What else is
    /// there is somebody's who shares the folder.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.folder.here)
            .into_iter()
            .flatten()
            .flatten();
        let mut names: Vec<_> = entries
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| is_ours(name))
            .collect();
        names.sort_unstable();
        names
    }

    /// Opens the volume of this name, if it is whole, and holds it.
    fn open(&self, name: &str) -> Option<Volume> {
        let folder = self.folder.join(name);
        let lock = File::open(&folder.here).ok()?;
        lock.lock_shared().ok()?;
        // Whoever had it exclusively may have removed it.
        if !is_same(&lock, &folder.here) {
            return None;
        }
        let manifest = check::check(&folder.here).ok()?;
        Some(Volume {
            folder,
            manifest,
            made: None,
            _lock: lock,
        })
    }

    /// Gives what was made its name, unless another has made the same.
    fn install(
        &self,
        building: Building,
        name: &str,
        begun: Instant,
    ) -> Result<Volume, VolumeError> {
        let folder = self.folder.join(name);
        let rename = |flags| {
            let (from, to) = (building.folder(), &folder.here);
            renameat_with(rustix::fs::CWD, from, rustix::fs::CWD, to, flags)
        };
        // Between its maker's lock and its user's it has none for a moment.
        let _guard = guard(&self.folder.here, File::lock_shared)?;
        if rename(RenameFlags::NOREPLACE).is_err() {
            if let Some(volume) = self.open(name) {
                return Ok(volume);
            }
            // One that is damaged keeps its name throughout: answers have it.
            let exchanged = rename(RenameFlags::EXCHANGE).or_else(|_| {
                fs::rename(building.folder(), &folder.here).map_err(|_| rustix::io::Errno::EXIST)
            });
            exchanged
                .map_err(io::Error::from)
                .map_err(VolumeError::write(&folder.here))?;
        }
        build::sync_folder(&self.folder.here)?;
        let (lock, made, manifest) = building.finish();
        lock.lock_shared()
            .map_err(VolumeError::write(&folder.here))?;
        Ok(Volume {
            folder,
            manifest,
            made: Some(Made {
                duration: begun.elapsed(),
                ..made
            }),
            _lock: lock,
        })
    }

    /// Whether programs and libraries may be mapped from there.
    fn may_run(&self) -> Result<bool, VolumeError> {
        let here = &self.folder.here;
        let status = statvfs(here).map_err(io::Error::from);
        let status = status.map_err(VolumeError::write(here))?;
        Ok(!status.f_flag.contains(StatVfsMountFlags::NOEXEC))
    }
}

/// Locks the folder of volumes until this is dropped: shared by those who have
/// something in it that is not locked yet, alone by those who take what nobody
/// has locked.
fn guard(folder: &Path, lock: fn(&File) -> io::Result<()>) -> Result<File, VolumeError> {
    let open = || {
        let folder = File::open(folder)?;
        lock(&folder)?;
        Ok(folder)
    };
    open().map_err(VolumeError::write(folder))
}

/// Whether it is a name that we give: a volume's, or with a mark before it and
/// digits behind it that of one which is being made or removed.
fn is_ours(name: &str) -> bool {
    let marked = name.strip_prefix(NEW).or_else(|| name.strip_prefix(OLD));
    let volume = match marked {
        None => Some(name),
        Some(marked) => digits(marked),
    };
    volume.and_then(digits).is_some_and(is_version)
}

/// What stands before a hyphen and 8 hex digits.
fn digits(name: &str) -> Option<&str> {
    let (before, digits) = name.rsplit_once('-')?;
    let hex = |digit: u8| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit);
    (digits.len() == 8 && digits.bytes().all(hex)).then_some(before)
}

fn is_version(text: &str) -> bool {
    let letters = |letter: char| letter.is_ascii_alphanumeric() || letter == '.' || letter == '_';
    text.starts_with(|letter: char| letter.is_ascii_digit()) && text.chars().all(letters)
}

/// What is no volume: unfinished, replaced, or on its way out.
fn is_left_over(name: &str) -> bool {
    name.starts_with(NEW) || name.starts_with(OLD)
}

/// Whether the open folder is the one at the path.
fn is_same(open: &File, path: &Path) -> bool {
    match (open.metadata(), fs::symlink_metadata(path)) {
        (Ok(open), Ok(there)) => (open.dev(), open.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

/// A folder's name that tells its content: the driver's version and 8 hex digits
/// of what the files are. The same files give the same name for ever.
fn name(version: &str, sources: &[Source]) -> Result<String, VolumeError> {
    if !is_version(version) {
        return Err(VolumeError::Version(version.into()));
    }
    let mut sources: Vec<_> = sources.iter().collect();
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    let mut digest = Fnv1a::default();
    digest.add_field(manifest::FORMAT.to_string().as_bytes());
    for source in sources {
        let metadata = fs::metadata(&source.here).map_err(VolumeError::source(&source.here))?;
        digest.add_field(source.path.as_os_str().as_encoded_bytes());
        let times = [metadata.mtime(), metadata.mtime_nsec()];
        digest.add_field(&metadata.len().to_le_bytes());
        times
            .iter()
            .for_each(|time| digest.add_field(&time.to_le_bytes()));
    }
    let short = (digest.hash() >> 32) ^ (digest.hash() & 0xffff_ffff);
    Ok(format!("{version}-{short:08x}"))
}

#[cfg(test)]
mod tests;
