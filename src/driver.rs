//! The NVIDIA driver's user-space files: where they are on the host, and where
//! a container finds them.
//!
//! A driver is a set of shared libraries and programs that must match the
//! kernel module's version exactly. Distributions put them in different
//! folders, sometimes several versions and architectures side by side, so a
//! file is chosen by the version in its name and by its ELF header together.
//!
//! [`DriverFiles::find`] searches a [`DriverRoot`]; [`DriverFiles::mounts`]
//! says where each file goes. Both are plain data: what was found can vanish
//! with the next driver upgrade, so whoever hands out a [`DriverMount`] first
//! looks whether its [`here`](DriverMount::here) is still a file.

pub mod capabilities;
pub mod cdi;
pub mod extras;
pub mod nodes;

mod elf;
mod kernel_module;
mod layout;
mod mounts;
mod root;
mod search;

#[cfg(test)]
mod fixture;

use std::io;
use std::path::PathBuf;

pub use self::kernel_module::kernel_module_version;
pub use self::mounts::DriverMount;
pub use self::root::DriverRoot;
pub use self::search::nvml_library;

use self::layout::Architecture;
use self::search::Search;

/// A file of the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverFile {
    /// The library's SONAME, which programs load it by, or the program's name.
    pub name: String,
    /// The file itself, links followed within the root, as the host names it.
    pub host: PathBuf,
    /// The same file as this process sees it.
    pub here: PathBuf,
}

/// The files of one driver that computing and watching GPUs take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverFiles {
    /// The driver's version, such as `550.163.01`.
    pub version: String,
    /// Sorted by name, one a SONAME; `libcuda.so.1` and `libnvidia-ml.so.1` are always there.
    pub libraries: Vec<DriverFile>,
    /// Sorted by name; empty where the driver came without programs.
    pub binaries: Vec<DriverFile>,
}

impl DriverFiles {
    /// Finds the files of driver `version` for this machine's architecture.
    ///
    /// A library is taken from the first folder that has it. What another
    /// version, another architecture or no library at all hides behind a fitting
    /// name is passed over, and named in the debug log.
    ///
    /// # Errors
    ///
    /// [`DriverError::Root`] where the root is no readable folder, and
    /// [`DriverError::LibraryMissing`] where no folder holds a library without
    /// which no CUDA program starts.
    pub fn find(root: &DriverRoot, version: &str) -> Result<Self, DriverError> {
        Search::new(root, Architecture::HERE)?.files(version)
    }

    /// Whether every file that was found is still there.
    #[must_use]
    pub fn are_there(&self) -> bool {
        let mut files = self.libraries.iter().chain(&self.binaries);
        files.all(|file| file.here.is_file())
    }

    /// Where a container sees each file.
    ///
    /// Every library is bound at its SONAME in each folder that a loader of this
    /// machine's architecture searches by default, so that it is found without a
    /// variable or a cache, whatever distribution the image is of. Programs go to
    /// `/usr/bin`. All of them are meant read-only. Ordered by name, then folder,
    /// libraries first.
    #[must_use]
    pub fn mounts(&self) -> Vec<DriverMount> {
        mounts::mounts(self, Architecture::HERE)
    }
}

/// Why no driver was found.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The root is missing, unreadable, or no folder.
    #[error(
        "cannot read the driver root {root}: mount that folder of the host into the plugin's \
         container, or name another with --driver-root"
    )]
    Root {
        /// The root that was asked for.
        root: Box<DriverRoot>,
        /// What the system answered.
        source: io::Error,
    },
    /// A library that every CUDA program needs is in none of the folders.
    #[error(
        "no {library} of driver {version} for {architecture} under the driver root {root}; \
         searched {}{}; name the folder of the host that holds this driver with --driver-root",
        searched(.folders),
        others(.other_versions)
    )]
    LibraryMissing {
        /// The library's SONAME.
        library: &'static str,
        /// The version that was wanted.
        version: String,
        /// The architecture that was wanted, such as `x86_64`.
        architecture: &'static str,
        /// The root that was searched.
        root: Box<DriverRoot>,
        /// The folders that were searched, relative to the root.
        folders: Box<[PathBuf]>,
        /// Versions of this library that are there instead.
        other_versions: Box<[String]>,
    },
}

fn searched(folders: &[PathBuf]) -> String {
    let folders: Vec<_> = folders
        .iter()
        .map(|folder| folder.display().to_string())
        .collect();
    folders.join(", ")
}

fn others(versions: &[String]) -> String {
    match versions {
        [] => String::new(),
        versions => format!(" and found {} instead", versions.join(", ")),
    }
}
