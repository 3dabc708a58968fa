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
pub mod supply;
pub mod volume;

mod catalog;
mod elf;
mod files;
mod kernel_module;
mod layout;
mod ldcache;
mod left_out;
mod look;
mod mounts;
mod names;
mod resolver;
mod root;
mod search;
pub(crate) mod sockets;

#[cfg(test)]
mod fixture;

use std::io;
use std::path::PathBuf;

pub use self::files::{DriverFile, DriverFiles, FileKind, FromImage, Missing};
pub use self::kernel_module::kernel_module_version;
pub use self::left_out::{LeftOut, Reason};
pub use self::mounts::DriverMount;
pub use self::root::DriverRoot;
pub use self::search::nvml_library;

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
        /// The folders that were searched and are there, relative to the root.
        folders: Box<[PathBuf]>,
        /// Versions of this library that are there instead.
        other_versions: Box<[String]>,
    },
    /// A library without which no CUDA program starts would not load.
    #[error(
        "{library} of driver {version} does not load: {needed}, which it needs, is not under the \
         driver root {root}; install the driver as a whole"
    )]
    NeedMissing {
        /// The library's SONAME.
        library: String,
        /// That of the library that it needs.
        needed: String,
        /// The driver's version.
        version: String,
        /// The root that was searched.
        root: Box<DriverRoot>,
    },
}

fn searched(folders: &[PathBuf]) -> String {
    if folders.is_empty() {
        return "none of the folders that drivers are known to be in".into();
    }
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
