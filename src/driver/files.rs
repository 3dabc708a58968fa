//! The files of one driver: what was found, and what was not.

use std::path::{Path, PathBuf};

use super::capabilities::{Capabilities, Capability};
use super::catalog;
use super::layout::{self, Architecture};
use super::left_out::LeftOut;
use super::look;
use super::mounts;
use super::search::Search;
use super::volume::{Volume, VolumeFile};
use super::{DriverError, DriverMount, DriverRoot};
use crate::config::HostFolder;

/// A file of the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverFile {
    /// The library's SONAME, which programs load it by, or the file's name.
    pub name: String,
    /// What it is for.
    pub capability: Capability,
    /// What it is.
    pub kind: FileKind,
    /// The file itself, links followed within the root, as the host names it.
    pub host: PathBuf,
    /// The same file as this process sees it.
    pub here: PathBuf,
    /// In bytes.
    pub size: u64,
}

/// What a driver's file is, and by that where a container looks for it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FileKind {
    /// A library that is loaded by its SONAME.
    Library,
    /// Another name for one, by which some programs load it.
    Alias,
    /// A library or data in a folder of this name below the loader's.
    Beside(&'static str),
    /// A program.
    Program,
    /// Anything that is looked for in these folders only.
    Fixed(&'static [&'static str]),
    /// Firmware of the driver of this version.
    Firmware(String),
}

/// Something of the driver that is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The file's name; a library's as far as it is known without the library.
    pub name: String,
    /// What it is for.
    pub capability: Capability,
    /// What containers cannot do without it.
    pub cost: String,
    /// The library or program that does not load without it, if it is there.
    pub needed_by: Option<String>,
}

/// A library that an image has to bring for some of the driver's to load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FromImage {
    /// Its SONAME.
    pub name: String,
    /// The SONAMEs or names of what needs it.
    pub needed_by: Vec<String>,
}

/// The files of one driver that some capabilities take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverFiles {
    /// The driver's version, such as `550.163.01`.
    pub version: String,
    /// Where they were found.
    pub root: DriverRoot,
    /// The folders of the root that were searched and are there.
    pub folders: Vec<PathBuf>,
    /// Sorted by kind and name; a library's SONAME is there once.
    pub files: Vec<DriverFile>,
    /// What was looked at and left out, by path.
    pub left_out: Vec<LeftOut>,
    /// What these capabilities take, this branch of the driver has, and is not
    /// there.
    pub missing: Vec<Missing>,
    /// What images have to bring, by name.
    pub from_image: Vec<FromImage>,
}

impl DriverFiles {
    /// Finds the files of driver `version` for this machine's architecture.
    ///
    /// A file is taken from the first folder that has it. What another version,
    /// another architecture or no library at all hides behind a fitting name is
    /// left out, with the reason.
    ///
    /// # Errors
    ///
    /// [`DriverError::Root`] where the root is no readable folder, and
    /// [`DriverError::LibraryMissing`] where no folder holds a library without
    /// which no CUDA program starts.
    pub fn find(
        root: &DriverRoot,
        version: &str,
        capabilities: &Capabilities,
    ) -> Result<Self, DriverError> {
        Self::look(root, version, capabilities)?.complete()
    }

    /// The files of a volume, which may be all that is left of the driver.
    #[must_use]
    pub fn of_volume(volume: &Volume) -> Self {
        let file = |file: &VolumeFile| {
            let name = file.path.file_name()?.to_str()?.to_owned();
            let (capability, kind) = look::known(&name, &volume.manifest.version)?;
            let HostFolder { host, here } = volume.folder.join(&file.path);
            let size = file.size;
            Some(DriverFile {
                name,
                capability,
                kind,
                host,
                here,
                size,
            })
        };
        let HostFolder { host, here } = &volume.folder;
        Self {
            root: DriverRoot::new(host, here),
            files: volume.manifest.files.iter().filter_map(file).collect(),
            ..Self::none(&volume.manifest.version)
        }
    }

    /// The same, found or not: for a report.
    ///
    /// # Errors
    ///
    /// [`DriverError::Root`] where the root is no readable folder.
    pub fn look(
        root: &DriverRoot,
        version: &str,
        capabilities: &Capabilities,
    ) -> Result<Self, DriverError> {
        let search = Search::new(root, Architecture::HERE)?;
        Ok(search.files(version, capabilities))
    }

    /// Nothing of this driver.
    pub(super) fn none(version: &str) -> Self {
        Self {
            version: version.to_owned(),
            root: DriverRoot::new("/", "/"),
            folders: Vec::new(),
            files: Vec::new(),
            left_out: Vec::new(),
            missing: Vec::new(),
            from_image: Vec::new(),
        }
    }

    /// Whether there is all without which no CUDA program starts.
    pub(super) fn has_required(&self) -> bool {
        let mut required = catalog::REQUIRED.iter();
        required.all(|name| self.library(name).is_some())
    }

    /// The versions of libcuda under the root, oldest first.
    ///
    /// # Errors
    ///
    /// [`DriverError::Root`] where the root is no readable folder.
    pub fn versions(root: &DriverRoot) -> Result<Vec<String>, DriverError> {
        let search = Search::new(root, Architecture::HERE)?;
        let mut versions = search.versions();
        versions.sort_by_cached_key(|version| {
            let numbers = version.split('.').map(|number| number.parse::<u32>().ok());
            numbers.collect::<Vec<_>>()
        });
        versions.dedup();
        Ok(versions)
    }

    /// The files, if no CUDA program fails to start for want of one.
    ///
    /// # Errors
    ///
    /// [`DriverError::LibraryMissing`] and [`DriverError::NeedMissing`].
    pub fn complete(self) -> Result<Self, DriverError> {
        let mut required = catalog::REQUIRED.iter();
        let missing = required.find(|name| self.library(name).is_none());
        let is_required = |name: &String| catalog::REQUIRED.contains(&name.as_str());
        let mut needs = self.missing.iter();
        let needs = needs.find(|missing| missing.needed_by.as_ref().is_some_and(is_required));
        match (missing, needs) {
            (None, None) => Ok(self),
            (None, Some(needed)) => Err(DriverError::NeedMissing {
                library: needed.needed_by.clone().unwrap_or_default(),
                needed: needed.name.clone(),
                version: self.version,
                root: Box::new(self.root),
            }),
            (Some(library), _) => Err(DriverError::LibraryMissing {
                library,
                other_versions: self.other_versions(library).into(),
                version: self.version,
                architecture: Architecture::HERE.name(),
                root: Box::new(self.root),
                folders: self.folders.into(),
            }),
        }
    }

    /// The library with this SONAME.
    #[must_use]
    pub fn library(&self, soname: &str) -> Option<&DriverFile> {
        let mut libraries = self.libraries();
        libraries.find(|file| file.name == soname)
    }

    /// What is loaded by its SONAME.
    pub fn libraries(&self) -> impl Iterator<Item = &DriverFile> {
        let library = |file: &&DriverFile| file.kind == FileKind::Library;
        self.files.iter().filter(library)
    }

    /// What is run.
    pub fn programs(&self) -> impl Iterator<Item = &DriverFile> {
        let program = |file: &&DriverFile| file.kind == FileKind::Program;
        self.files.iter().filter(program)
    }

    /// Whose layout it is, as far as the place of libcuda shows.
    #[must_use]
    pub fn layout(&self) -> &'static str {
        let folder = self.library(catalog::LIBCUDA).and_then(|f| f.host.parent());
        folder.map_or("none", layout::name)
    }

    /// Bytes of all files.
    #[must_use]
    pub fn size(&self) -> u64 {
        let files = self.files.iter();
        let files = files.filter(|file| file.kind != FileKind::Alias);
        files.map(|file| file.size).sum()
    }

    /// Where a container sees each file, bound from `volume`, or where there is
    /// none from where it is installed.
    ///
    /// A library is bound at its SONAME in each folder that a loader of this
    /// machine's architecture searches by default, so that it is found without a
    /// variable or a cache, whatever distribution the image is of; a program in
    /// `/usr/bin`. `/usr/local/nvidia` has all of them too, for images that look
    /// there by themselves. All are meant read-only.
    #[must_use]
    pub fn mounts(&self, volume: Option<&HostFolder>) -> Vec<DriverMount> {
        mounts::mounts(&self.files, volume, Architecture::HERE)
    }

    /// Versions of a library that were left out for another version's.
    fn other_versions(&self, soname: &str) -> Vec<String> {
        let stem = soname.split_once(".so").map_or(soname, |(stem, _)| stem);
        let mut versions: Vec<_> = self
            .left_out
            .iter()
            .filter_map(|left| left.version_of(stem))
            .collect();
        versions.sort();
        versions.dedup();
        versions
    }
}

impl DriverFile {
    /// Where a volume has it.
    #[must_use]
    pub fn in_volume(&self) -> PathBuf {
        let folder = match &self.kind {
            FileKind::Library | FileKind::Alias => PathBuf::from("lib64"),
            FileKind::Beside(folder) => Path::new("lib64").join(folder),
            FileKind::Program => PathBuf::from("bin"),
            FileKind::Fixed(folders) => {
                let folder = folders.first().unwrap_or(&"");
                Path::new("share").join(folder.trim_start_matches('/'))
            }
            FileKind::Firmware(version) => Path::new("firmware/nvidia").join(version),
        };
        folder.join(&self.name)
    }
}
