//! Makes a volume under a name that nobody looks for yet.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::manifest::{self, FORMAT, Manifest, VolumeFile, Way};
use super::{NEW, Source, VolumeError, check, guard, place};
use crate::config::HostFolder;
use crate::driver::elf::ElfFile;

/// How a volume was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Made {
    /// Files by hard link.
    pub links: usize,
    /// Files by reflink.
    pub reflinks: usize,
    /// Files by copy.
    pub copies: usize,
    /// Bytes of the copies.
    pub copied: u64,
    /// Bytes of all files.
    pub size: u64,
    /// From the first look to the end.
    pub duration: Duration,
}

/// A volume that is being made.
pub(super) struct Building {
    folder: Unfinished,
    lock: File,
    made: Made,
    manifest: Manifest,
    /// Where each file of the driver has come, and how.
    placed: BTreeMap<PathBuf, (PathBuf, Way)>,
}

/// A folder that is removed again unless it is finished, but not by a panic,
/// which is as bad as a crash.
struct Unfinished(Option<PathBuf>);

impl Building {
    /// An empty folder beside the volumes, locked.
    pub(super) fn begin(volumes: &HostFolder, name: &str) -> Result<Self, VolumeError> {
        let unique = format!("{NEW}{name}-{:08x}", fastrand::u32(..));
        let folder = volumes.here.join(unique);
        step();
        // Until it is locked, it looks like something left behind.
        let _guard = guard(&volumes.here, File::lock_shared)?;
        make_folder(&folder)?;
        let lock = File::open(&folder).map_err(VolumeError::write(&folder))?;
        lock.lock().map_err(VolumeError::write(&folder))?;
        Ok(Self {
            folder: Unfinished(Some(folder)),
            lock,
            made: Made::default(),
            manifest: Manifest {
                format: FORMAT,
                version: String::new(),
                files: Vec::new(),
            },
            placed: BTreeMap::new(),
        })
    }

    pub(super) fn folder(&self) -> &Path {
        self.folder.0.as_deref().unwrap_or(Path::new(""))
    }

    /// Places the files, writes the manifest, and checks all of it.
    pub(super) fn fill(&mut self, version: &str, sources: &[Source]) -> Result<(), VolumeError> {
        version.clone_into(&mut self.manifest.version);
        let mut folders = BTreeSet::from([self.folder().to_path_buf()]);
        let mut rest = sizes(sources)?;
        for source in sources {
            let parent = source.path.parent().unwrap_or(Path::new(""));
            let parent = self.folder().join(parent);
            fs::create_dir_all(&parent).map_err(VolumeError::write(&parent))?;
            for folder in parent
                .ancestors()
                .take_while(|it| it.starts_with(self.folder()))
            {
                if folders.insert(folder.to_path_buf()) {
                    let like = source.here.parent().unwrap_or(&source.here);
                    place::label_folder(like, folder);
                    open_to_all(folder)?;
                }
            }
            rest = rest.saturating_sub(self.place(source, rest)?);
        }
        if let Some(source) = sources.first() {
            let like = source.here.parent().unwrap_or(&source.here);
            place::label_folder(like, self.folder());
        }
        self.links()?;
        self.write_manifest()?;
        for folder in folders.iter().rev() {
            step();
            sync_folder(folder)?;
        }
        check::check(self.folder())
            .map(|_| ())
            .map_err(|what| VolumeError::Damaged {
                path: self.folder().into(),
                what,
            })
    }

    /// Places one file. The bytes that are not to come any more.
    fn place(&mut self, source: &Source, rest: u64) -> Result<u64, VolumeError> {
        let to = self.folder().join(&source.path);
        let before = stamp(&source.here)?;
        step();
        // A file with several names is one file here too.
        let first = self.placed.get(&source.here).cloned();
        let way = match &first {
            Some((first, way)) => {
                fs::hard_link(first, &to).map_err(VolumeError::write(&to))?;
                *way
            }
            None => place::place(&source.here, &to, rest)?,
        };
        let placed = stamp(&to)?;
        if placed.0 != before.0 || stamp(&source.here)? != before {
            return Err(VolumeError::Changed(source.here.clone()));
        }
        let size = before.0;
        if first.is_none() {
            self.count(way, size);
            self.placed.insert(source.here.clone(), (to.clone(), way));
        }
        self.manifest.files.push(VolumeFile {
            path: source.path.clone(),
            size,
            soname: ElfFile::open(&to).ok().and_then(|elf| elf.soname),
            by: way,
        });
        Ok(if first.is_none() { size } else { 0 })
    }

    fn count(&mut self, way: Way, size: u64) {
        self.made.size += size;
        match way {
            Way::Link => self.made.links += 1,
            Way::Reflink => self.made.reflinks += 1,
            Way::Copy => {
                self.made.copies += 1;
                self.made.copied += size;
            }
        }
    }

    /// Images that look for the driver in a folder of its own know two names.
    fn links(&self) -> Result<(), VolumeError> {
        if !self.folder().join("lib64").is_dir() {
            return Ok(());
        }
        let link = self.folder().join("lib");
        step();
        symlink("lib64", &link).map_err(VolumeError::write(&link))
    }

    fn write_manifest(&self) -> Result<(), VolumeError> {
        let path = self.folder().join(manifest::FILE);
        let write = || {
            let mut file = File::create_new(&path)?;
            file.write_all(&serde_json::to_vec_pretty(&self.manifest)?)?;
            file.sync_all()
        };
        step();
        write().map_err(VolumeError::write(&path))
    }

    /// The lock of what is a volume now.
    pub(super) fn finish(mut self) -> (File, Made, Manifest) {
        self.folder.0 = None;
        (self.lock, self.made, self.manifest)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(folder) = self.0.take()
            && !std::thread::panicking()
            && let Err(error) = fs::remove_dir_all(&folder)
        {
            tracing::debug!(path = %folder.display(), %error, "left behind");
        }
    }
}

fn make_folder(folder: &Path) -> Result<(), VolumeError> {
    fs::create_dir(folder).map_err(VolumeError::write(folder))?;
    open_to_all(folder)
}

/// For everybody to read, whatever the process' own umask.
fn open_to_all(folder: &Path) -> Result<(), VolumeError> {
    let rights = Permissions::from_mode(0o755);
    fs::set_permissions(folder, rights).map_err(VolumeError::write(folder))
}

/// Makes sure that the names in a folder outlast a crash.
pub(super) fn sync_folder(folder: &Path) -> Result<(), VolumeError> {
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(VolumeError::write(folder))
}

fn sizes(sources: &[Source]) -> Result<u64, VolumeError> {
    let files: BTreeSet<_> = sources.iter().map(|source| &source.here).collect();
    files.into_iter().map(|here| Ok(stamp(here)?.0)).sum()
}

/// Size and time, by which a file is known to be the same.
fn stamp(path: &Path) -> Result<(u64, Option<SystemTime>), VolumeError> {
    let metadata = fs::symlink_metadata(path).map_err(VolumeError::source(path))?;
    Ok((metadata.len(), metadata.modified().ok()))
}

/// A place where a crash may come. Tests have one there.
#[cfg(not(test))]
fn step() {}

#[cfg(test)]
pub(super) use crash::step;

#[cfg(test)]
pub(super) mod crash {
    use std::cell::Cell;

    thread_local! {
        static LEFT: Cell<Option<usize>> = const { Cell::new(None) };
    }

    /// Panics, which stands for a crash, after so many steps of this thread.
    pub(in super::super) fn after(steps: Option<usize>) {
        LEFT.set(steps);
    }

    pub(in super::super) fn step() {
        match LEFT.get() {
            Some(0) => panic!("crash"),
            Some(left) => LEFT.set(Some(left - 1)),
            None => {}
        }
    }
}
