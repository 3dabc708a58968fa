//! What of a driver containers get, and from where: a volume of ours, or the
//! place where it is installed.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::statfs;

use super::capabilities::{Capabilities, Capability};
use super::catalog;
use super::sockets::Sockets;
use super::volume::{Source, Volume, VolumeError, Volumes};
use super::{DriverError, DriverFiles, DriverMount, DriverRoot, nvml_library};
use crate::config::{Config, VolumeMode};
use crate::seen::Seen;

/// What containers get of one driver.
#[derive(Debug)]
pub struct Supply {
    /// The files as they are installed.
    pub files: DriverFiles,
    /// Where a container sees them.
    pub mounts: Vec<DriverMount>,
    /// Where they are taken from.
    pub from: Origin,
    /// Folders of the driver's daemons that were there.
    sockets: Vec<&'static str>,
    /// The files where a container gets them from.
    seen: Mutex<Seen>,
}

/// Where containers get a driver's files from.
#[derive(Debug)]
pub enum Origin {
    /// A volume, which stays as long as this is held.
    Volume(Volume),
    /// Where they are installed, and why.
    InPlace(InPlace),
}

/// Why containers get files from where they are installed.
#[derive(Debug)]
pub enum InPlace {
    /// That was asked for.
    Asked,
    /// They cannot change there: this file system is never written.
    Immutable(&'static str),
    /// No volume was made yet.
    NotYet,
    /// No volume could be made.
    NoVolume(VolumeError),
}

/// Why containers get nothing.
#[derive(Debug, thiserror::Error)]
pub enum SupplyError {
    /// There are no files to give.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// Only a volume will do, and there is none.
    #[error("no driver volume: {0}")]
    Volume(#[from] VolumeError),
}

/// Finds a driver's files and makes volumes of them, as the configuration says.
#[derive(Clone, Debug)]
pub struct Supplier {
    root: DriverRoot,
    capabilities: Capabilities,
    mode: VolumeMode,
    volumes: Volumes,
    /// Where containers are given them.
    sockets: Option<Sockets>,
}

impl Supplier {
    /// As the configuration says. Touches nothing.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        // NVIDIA's container runtime brings the files by itself.
        let mode = if config.allocation.gives_driver() {
            config.driver.volume
        } else {
            VolumeMode::Never
        };
        let utility = config.driver.capabilities.contains(Capability::Utility);
        let sockets = utility && mode != VolumeMode::Never;
        Self {
            root: config.paths.driver_root.clone(),
            capabilities: config.driver.capabilities.clone(),
            mode,
            volumes: Volumes::new(config.paths.state_dir.join("driver")),
            sockets: sockets.then(|| Sockets::new(&config.paths)),
        }
    }

    /// The volumes of this node.
    #[must_use]
    pub fn volumes(&self) -> &Volumes {
        &self.volumes
    }

    /// What containers get of the driver of this version. Makes a volume where
    /// there is none yet, which takes as long as it takes to copy the files.
    ///
    /// # Errors
    ///
    /// [`SupplyError`]: no files, or no volume where nothing else will do.
    pub fn supply(&self, version: &str) -> Result<Supply, SupplyError> {
        let supply = self.taken(version, |sources| {
            match self.volumes.make(version, sources) {
                Ok(volume) => Ok(Origin::Volume(volume)),
                Err(error) if self.mode == VolumeMode::Auto => {
                    Ok(Origin::InPlace(InPlace::NoVolume(error)))
                }
                Err(error) => Err(error.into()),
            }
        })?;
        Ok(self.with_sockets(supply))
    }

    /// The files from where they have to be taken; `volume` says what of where
    /// that is a volume.
    fn taken(
        &self,
        version: &str,
        volume: impl FnOnce(&[Source]) -> Result<Origin, SupplyError>,
    ) -> Result<Supply, SupplyError> {
        let files = match DriverFiles::find(&self.root, version, &self.capabilities) {
            Ok(files) => files,
            Err(error) => return self.left_over(version).ok_or(error.into()),
        };
        let from = match (self.mode, immutable(&files)) {
            (VolumeMode::Never, _) => Origin::InPlace(InPlace::Asked),
            (VolumeMode::Auto, Some(kind)) => Origin::InPlace(InPlace::Immutable(kind)),
            _ => volume(&sources(&files))?,
        };
        Ok(Supply::new(files, from))
    }

    /// Adds the folders of the driver's daemons.
    fn with_sockets(&self, mut supply: Supply) -> Supply {
        if let Some(sockets) = &self.sockets {
            supply.sockets = sockets.there();
            supply.mounts.extend(sockets.mounts());
        }
        supply
    }

    /// Whether `supply` is what containers would be given now, too.
    #[must_use]
    pub fn is_current(&self, supply: &Supply) -> bool {
        let sockets = self.sockets.as_ref();
        supply.is_there() && sockets.is_none_or(|sockets| sockets.there() == supply.sockets)
    }

    /// The same without making anything: where there is no volume yet, the files
    /// in place.
    ///
    /// # Errors
    ///
    /// [`SupplyError::Driver`].
    pub fn preview(&self, version: &str) -> Result<Supply, SupplyError> {
        self.taken(version, |sources| {
            let volume = self.volumes.find(version, sources);
            Ok(volume.map_or(Origin::InPlace(InPlace::NotYet), Origin::Volume))
        })
    }

    /// NVML's library for a module of this version: the driver root's. Where that
    /// has been replaced by another driver's, which does not work with the module,
    /// it is a volume's.
    #[must_use]
    pub fn nvml_library(&self, module: Option<&str>) -> Option<PathBuf> {
        let installed = nvml_library(&self.root, module);
        let module = module.filter(|_| self.mode != VolumeMode::Never);
        let kept = module.filter(|version| {
            let name = installed.as_deref().and_then(Path::file_name);
            name.is_none_or(|name| name != OsStr::new(&format!("libnvidia-ml.so.{version}")))
        });
        let kept = kept.and_then(|version| {
            let volume = self.volumes.of_version(version)?;
            let library = volume.folder.here.join("lib64").join(catalog::LIBNVIDIA_ML);
            library.is_file().then_some(library)
        });
        kept.or(installed)
    }

    /// What there still is of a driver whose files were replaced under its
    /// loaded module: the node serves on until the new module is loaded.
    fn left_over(&self, version: &str) -> Option<Supply> {
        if self.mode == VolumeMode::Never {
            return None;
        }
        let volume = self.volumes.of_version(version)?;
        let files = DriverFiles::of_volume(&volume).complete().ok()?;
        Some(Supply::new(files, Origin::Volume(volume)))
    }
}

impl Supply {
    fn new(files: DriverFiles, from: Origin) -> Self {
        let volume = match &from {
            Origin::Volume(volume) => Some(&volume.folder),
            Origin::InPlace(_) => None,
        };
        Self {
            mounts: files.mounts(volume),
            files,
            from,
            sockets: Vec::new(),
            seen: Mutex::default(),
        }
    }

    /// The folder of the volume that containers get the files from, as this process
    /// sees it; none where they are taken in place.
    #[must_use]
    pub fn volume(&self) -> Option<&Path> {
        match &self.from {
            Origin::Volume(volume) => Some(&volume.folder.here),
            Origin::InPlace(_) => None,
        }
    }

    /// Whether everything that containers would get is still there.
    #[must_use]
    pub fn is_there(&self) -> bool {
        let files = || self.mounts.iter().map(|mount| mount.here.as_path());
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.still_there() || seen.look(files()) || files().all(Path::exists)
    }
}

/// Where they are taken from, and if not from a volume why.
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Volume(volume) => write!(f, "volume {}", volume.folder.host.display()),
            Self::InPlace(InPlace::Asked) => f.write_str("in place, as asked"),
            Self::InPlace(InPlace::Immutable(kind)) => {
                write!(f, "in place, where {kind} keeps them from change")
            }
            Self::InPlace(InPlace::NotYet) => {
                f.write_str("in place until the plugin has made a volume")
            }
            Self::InPlace(InPlace::NoVolume(error)) => write!(f, "in place: {error}"),
        }
    }
}

fn sources(files: &DriverFiles) -> Vec<Source> {
    let sources = files.files.iter().map(|file| Source {
        path: file.in_volume(),
        here: file.here.clone(),
    });
    sources.collect()
}

/// The kind of file system that holds all files, if it is one that is made
/// once and never written: only another image changes them, by a mount or a
/// start of the node.
fn immutable(files: &DriverFiles) -> Option<&'static str> {
    let mut kinds = files.files.iter().map(|file| read_only_kind(&file.here));
    let first = kinds.next()??;
    kinds.all(|kind| kind == Some(first)).then_some(first)
}

/// By the numbers of linux/magic.h. A read-only mount says nothing: what is
/// written elsewhere shows through it.
fn read_only_kind(path: &Path) -> Option<&'static str> {
    const KINDS: &[(u64, &str)] = &[
        (0x7371_7368, "squashfs"),
        (0xe0f5_e1e2, "erofs"),
        (0x9660, "isofs"),
        (0x28cd_3d45, "cramfs"),
    ];
    let kind = u64::try_from(statfs(path).ok()?.f_type).ok()?;
    let known = KINDS.iter().find(|(number, _)| *number == kind);
    known.map(|(_, name)| *name)
}
