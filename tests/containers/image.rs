//! Images: the probe with one C library or another, and no NVIDIA software.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use tempfile::TempDir;

use crate::common::probe::{LIBRARY_FOLDER, bare_root, compile, root};
use crate::common::system::{on_path, output};

/// Where the loaders of Red Hat's kind look.
pub const LIB64: &str = "/usr/lib64";

/// An image's files, to be unpacked as often as needed: a runtime leaves the
/// places of its mounts behind in them.
#[derive(Debug)]
pub struct Image {
    /// The C library that it has: an unpacked one, or this machine's own.
    library: Option<PathBuf>,
    /// The system that the probe is built against.
    system: Option<PathBuf>,
}

impl Image {
    /// With this machine's own C library.
    pub fn of_this_machine() -> Self {
        Self {
            library: None,
            system: None,
        }
    }

    /// With each of the unpacked C libraries. What is built against the oldest
    /// runs with all of them, so there is one that has what building takes.
    pub fn with_libraries(folders: &[PathBuf]) -> Vec<Self> {
        let builds = |folder: &&PathBuf| folder.join("usr/include/stdio.h").exists();
        let system = folders.iter().find(builds);
        let images = folders.iter().map(|folder| Self {
            library: Some(folder.clone()),
            system: system.cloned(),
        });
        images.collect()
    }

    /// What tests call it.
    pub fn name(&self) -> String {
        let name = self.library.as_ref().and_then(|folder| folder.file_name());
        name.map_or("this machine".into(), |name| {
            name.to_string_lossy().into_owned()
        })
    }

    /// Where its loader looks, of the folders that a mount is in.
    pub fn library_folder(&self) -> &'static str {
        let here = self.library.as_deref().unwrap_or(Path::new("/"));
        let debian = here.join(LIBRARY_FOLDER.trim_start_matches('/'));
        if debian.join("libc.so.6").exists() {
            LIBRARY_FOLDER
        } else {
            LIB64
        }
    }

    /// Makes its files in a new folder.
    pub fn unpack(&self, place: &Path) {
        let probe = probe(self.system.as_deref());
        match &self.library {
            None => root(place, &probe),
            Some(library) => {
                bare_root(place, &probe);
                let folder = self.library_folder().trim_start_matches('/');
                copy_libraries(&library.join(folder), &place.join(folder));
                link_loader(place, folder);
            }
        }
        write_cache(place);
    }
}

/// The loader is named by one path in every program of an architecture, and in
/// Debian's folder it is a link.
fn link_loader(place: &Path, folder: &str) {
    const LOADERS: [(&str, &str); 2] = [
        ("ld-linux-x86-64.so.2", "usr/lib64"),
        ("ld-linux-aarch64.so.1", "usr/lib"),
    ];
    for (loader, named) in LOADERS {
        let link = place.join(named).join(loader);
        if place.join(folder).join(loader).exists() && !link.exists() {
            symlink(Path::new("/").join(folder).join(loader), link).expect("link the loader");
        }
    }
}

/// The libraries and the loader, by the names that programs know.
fn copy_libraries(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("create a library folder");
    for entry in fs::read_dir(from).expect("an unpacked C library").flatten() {
        let name = entry.file_name();
        if name.to_string_lossy().contains(".so.") {
            fs::copy(entry.path(), to.join(name)).expect("copy a library");
        }
    }
}

/// Images come with the loader's cache, made when no driver was there: what is
/// not in it must still be found.
fn write_cache(place: &Path) {
    if on_path("ldconfig").is_none() {
        return;
    }
    fs::create_dir_all(place.join("etc")).expect("create /etc");
    let folders = format!("{LIBRARY_FOLDER}\n{LIB64}\n");
    fs::write(place.join("etc/ld.so.conf"), folders).expect("write the loader's folders");
    let mut ldconfig = Command::new("ldconfig");
    output(ldconfig.arg("-r").arg(place));
    fs::remove_file(place.join("etc/ld.so.conf")).expect("remove the loader's folders");
}

/// The probe, built once for each system.
fn probe(system: Option<&Path>) -> PathBuf {
    static FOLDER: OnceLock<(TempDir, PathBuf, OnceLock<PathBuf>)> = OnceLock::new();
    let (folder, own, other) = FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().expect("create a folder for the probe");
        let own = folder.path().join("probe");
        compile(&own, None);
        (folder, own, OnceLock::new())
    });
    if system.is_none() {
        return own.clone();
    }
    let built = other.get_or_init(|| {
        let program = folder.path().join("probe-of-another-system");
        compile(&program, system);
        program
    });
    built.clone()
}
