//! The search for one driver's files under a root.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use object::elf;
use tracing::debug;

use super::elf::ElfFile;
use super::layout::{
    Architecture, BINARIES, LIBCUDA, LIBNVIDIA_ML, LibraryName, REQUIRED, binary_folders,
    is_driver_version,
};
use super::{DriverError, DriverFile, DriverFiles, DriverRoot};

/// Where NVML's library is under the root, for `dlopen`.
///
/// The first file that calls itself `libnvidia-ml.so.1` and is for this
/// machine's architecture, as this process sees it. In each folder, what the
/// loader would take goes before libraries of any version beside it.
#[must_use]
pub fn nvml_library(root: &DriverRoot) -> Option<PathBuf> {
    Search::new(root, Architecture::HERE).ok()?.nvml()
}

/// Files found so far, by SONAME.
type Found = BTreeMap<String, DriverFile>;

/// A search under one root for files of one architecture.
pub(super) struct Search<'a> {
    root: &'a DriverRoot,
    architecture: Architecture,
    folders: Vec<PathBuf>,
}

impl<'a> Search<'a> {
    pub(super) fn new(
        root: &'a DriverRoot,
        architecture: Architecture,
    ) -> Result<Self, DriverError> {
        fs::read_dir(root.here()).map_err(|source| DriverError::Root {
            root: Box::new(root.clone()),
            source,
        })?;
        let flavours = names(root, &architecture.flavours());
        Ok(Self {
            root,
            architecture,
            folders: architecture.library_folders(&flavours),
        })
    }

    pub(super) fn files(&self, version: &str) -> Result<DriverFiles, DriverError> {
        let mut found = Found::new();
        for folder in &self.folders {
            self.collect(folder, |name| name.is_of(version), &mut found);
        }
        if let Some(missing) = REQUIRED
            .iter()
            .find(|library| !found.contains_key(**library))
        {
            return Err(self.missing(missing, version));
        }
        let folder = found
            .get(LIBCUDA)
            .and_then(|file| file.here.parent())
            .map(Path::to_path_buf);
        if let Some(folder) = folder.as_deref().and_then(|folder| self.relative(folder)) {
            // A name without the driver's version proves nothing, but what lies
            // beside this driver's libcuda came with it.
            self.collect(folder, |name| name.has_own_version(), &mut found);
        }
        Ok(DriverFiles {
            version: version.to_owned(),
            libraries: found.into_values().collect(),
            binaries: self.binaries(folder.as_deref()),
        })
    }

    fn nvml(&self) -> Option<PathBuf> {
        self.folders.iter().find_map(|folder| {
            let is_nvml = |name: &String| {
                LibraryName::parse(name).is_some_and(|name| name.fits(LIBNVIDIA_ML))
            };
            let beside = names(self.root, folder).into_iter().filter(is_nvml);
            std::iter::once(LIBNVIDIA_ML.to_owned())
                .chain(beside)
                .find_map(|name| {
                    let here = self.real(&folder.join(name))?;
                    (self.soname(&here)? == LIBNVIDIA_ML).then_some(here)
                })
        })
    }

    /// Adds the folder's wanted libraries, leaving those that a better folder had.
    fn collect(&self, folder: &Path, wanted: impl Fn(LibraryName<'_>) -> bool, found: &mut Found) {
        for entry in names(self.root, folder) {
            if LibraryName::parse(&entry).is_none() {
                continue;
            }
            if let Some(file) = self.library(&folder.join(entry), &wanted) {
                found.entry(file.name.clone()).or_insert(file);
            }
        }
    }

    /// The library that `path` leads to. Its own name counts, not the link's: a
    /// link is what goes stale.
    fn library(&self, path: &Path, wanted: impl Fn(LibraryName<'_>) -> bool) -> Option<DriverFile> {
        let here = self.real(path)?;
        let name = LibraryName::parse(here.file_name()?.to_str()?)?;
        if !wanted(name) {
            return None;
        }
        let soname = self.soname(&here)?;
        if !name.fits(&soname) {
            debug!(path = %here.display(), soname, "skipped: calls itself another library");
            return None;
        }
        self.file(soname, here)
    }

    /// The programs of the driver whose libcuda is in `libcuda_folder`.
    fn binaries(&self, libcuda_folder: Option<&Path>) -> Vec<DriverFile> {
        let flavour = libcuda_folder.and_then(|folder| folder.file_name()?.to_str());
        let folders = binary_folders(flavour);
        let find = |name: &&str| {
            folders.iter().find_map(|folder| {
                let here = self.real(&folder.join(name))?;
                let file = self.elf(&here)?;
                let runs = file.kind == elf::ET_EXEC || file.kind == elf::ET_DYN;
                runs.then(|| self.file((*name).to_owned(), here))?
            })
        };
        BINARIES.iter().filter_map(find).collect()
    }

    /// The SONAME of a shared library for the wanted architecture.
    fn soname(&self, here: &Path) -> Option<String> {
        let file = self.elf(here)?;
        let soname = file.soname.filter(|_| file.kind == elf::ET_DYN);
        if soname.is_none() {
            debug!(path = %here.display(), "skipped: no shared library with a SONAME");
        }
        soname
    }

    /// The ELF file, if it is for the wanted architecture.
    fn elf(&self, here: &Path) -> Option<ElfFile> {
        match ElfFile::open(here) {
            Ok(file) if file.machine == self.architecture.machine() => Some(file),
            Ok(file) => {
                let machine = file.machine.0;
                debug!(path = %here.display(), machine, "skipped: for another architecture");
                None
            }
            Err(error) => {
                debug!(path = %here.display(), %error, "skipped");
                None
            }
        }
    }

    fn real(&self, path: &Path) -> Option<PathBuf> {
        real(self.root, path)
    }

    fn file(&self, name: String, here: PathBuf) -> Option<DriverFile> {
        Some(DriverFile {
            name,
            host: self.root.to_host(&here)?,
            here,
        })
    }

    fn relative<'p>(&self, here: &'p Path) -> Option<&'p Path> {
        here.strip_prefix(self.root.here()).ok()
    }

    fn missing(&self, library: &'static str, version: &str) -> DriverError {
        DriverError::LibraryMissing {
            library,
            version: version.to_owned(),
            architecture: self.architecture.name(),
            root: Box::new(self.root.clone()),
            folders: self.folders.clone().into(),
            other_versions: self.versions(library, version).into_iter().collect(),
        }
    }

    /// The versions of a library that are there for the wanted architecture,
    /// other than `version`: the way out of most missing drivers.
    fn versions(&self, soname: &str, version: &str) -> BTreeSet<String> {
        let mut versions = BTreeSet::new();
        for folder in &self.folders {
            for entry in names(self.root, folder) {
                let Some(name) = LibraryName::parse(&entry) else {
                    continue;
                };
                let other = is_driver_version(name.suffix) && !name.is_of(version);
                if other
                    && name.fits(soname)
                    && self.library(&folder.join(&entry), |_| true).is_some()
                {
                    versions.insert(name.suffix.to_owned());
                }
            }
        }
        versions
    }
}

/// The real file behind a path, or nothing, in the debug log if it is odd.
fn real(root: &DriverRoot, path: &Path) -> Option<PathBuf> {
    root.resolve(path)
        .inspect_err(|error| note(path, error))
        .ok()
}

/// The names in a folder under the root, sorted, so that the same folder
/// always gives the same answer.
fn names(root: &DriverRoot, folder: &Path) -> Vec<String> {
    let Some(folder) = real(root, folder) else {
        return Vec::new();
    };
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) => {
            note(&folder, &error);
            return Vec::new();
        }
    };
    let mut names: Vec<_> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort_unstable();
    names
}

/// Most folders of the list are on no one host: that is not worth a line.
fn note(path: &Path, error: &io::Error) {
    if error.kind() != io::ErrorKind::NotFound {
        debug!(path = %path.display(), %error, "skipped");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::fixture::{AARCH64, Elf, Tree};

    const VERSION: &str = "550.163.01";
    const MULTIARCH: &str = "usr/lib/x86_64-linux-gnu";

    fn find(tree: &Tree) -> Result<DriverFiles, DriverError> {
        find_for(tree, Architecture::X86_64)
    }

    fn find_for(tree: &Tree, architecture: Architecture) -> Result<DriverFiles, DriverError> {
        Search::new(&tree.root, architecture)?.files(VERSION)
    }

    /// `name -> host path` of every file, libraries first.
    fn listing(files: &DriverFiles) -> Vec<String> {
        let files = files.libraries.iter().chain(&files.binaries);
        files
            .map(|file| format!("{} -> {}", file.name, file.host.display()))
            .collect()
    }

    fn found(tree: &Tree) -> Vec<String> {
        listing(&find(tree).unwrap())
    }

    #[test]
    fn a_plain_installation() {
        let tree = Tree::new();
        tree.required("usr/lib64", VERSION)
            .elf("usr/bin/nvidia-smi", &Elf::program())
            .elf(
                "usr/lib64/libnvidia-glcore.so.550.163.01",
                &Elf::library("libnvidia-glcore.so.1"),
            );
        let files = find(&tree).unwrap();
        assert_eq!(files.version, VERSION);
        let expected = [
            "libcuda.so.1 -> /usr/lib64/libcuda.so.550.163.01",
            "libnvidia-ml.so.1 -> /usr/lib64/libnvidia-ml.so.550.163.01",
            "nvidia-smi -> /usr/bin/nvidia-smi",
        ];
        assert_eq!(listing(&files), expected);
        for file in files.libraries.iter().chain(&files.binaries) {
            assert_eq!(tree.root.to_host(&file.here).unwrap(), file.host);
            assert!(file.here.is_file());
        }
    }

    #[test]
    fn debians_alternatives() {
        let tree = Tree::new();
        let current = format!("{MULTIARCH}/nvidia/current");
        tree.required(&current, VERSION);
        for library in ["libcuda.so.1", "libnvidia-ml.so.1"] {
            let alternative = format!("etc/alternatives/glx--{library}-x86_64-linux-gnu");
            tree.link(&alternative, format!("/{current}/{library}"))
                .link(&format!("{MULTIARCH}/{library}"), format!("/{alternative}"));
        }
        tree.elf("usr/lib/nvidia/current/nvidia-smi", &Elf::program())
            .link(
                "etc/alternatives/nvidia--nvidia-smi",
                "/usr/lib/nvidia/current/nvidia-smi",
            )
            .link("usr/bin/nvidia-smi", "/etc/alternatives/nvidia--nvidia-smi");
        let expected = [
            format!("libcuda.so.1 -> /{current}/libcuda.so.550.163.01"),
            format!("libnvidia-ml.so.1 -> /{current}/libnvidia-ml.so.550.163.01"),
            "nvidia-smi -> /usr/lib/nvidia/current/nvidia-smi".to_owned(),
        ];
        assert_eq!(found(&tree), expected);
        let nvml = Search::new(&tree.root, Architecture::X86_64)
            .unwrap()
            .nvml()
            .unwrap();
        assert_eq!(
            tree.root.to_host(&nvml).unwrap(),
            Path::new("/")
                .join(current)
                .join("libnvidia-ml.so.550.163.01")
        );
    }

    #[test]
    fn drivers_side_by_side_are_not_mixed() {
        let tree = Tree::new();
        let (current, legacy) = ("nvidia/current", "nvidia/tesla-550");
        tree.required(&format!("{MULTIARCH}/{current}"), "580.159.04")
            .required(&format!("{MULTIARCH}/{legacy}"), VERSION)
            .elf(
                &format!("{MULTIARCH}/{current}/libnvidia-nvvm.so.4.0.0"),
                &Elf::library("libnvidia-nvvm.so.4"),
            )
            .elf(
                &format!("{MULTIARCH}/{legacy}/libnvidia-nvvm70.so.4"),
                &Elf::library("libnvidia-nvvm70.so.4"),
            )
            .elf("usr/lib/nvidia/tesla-550/nvidia-smi", &Elf::program())
            .elf("usr/bin/nvidia-smi", &Elf::program());
        let expected = [
            "libcuda.so.1 -> /usr/lib/x86_64-linux-gnu/nvidia/tesla-550/libcuda.so.550.163.01",
            "libnvidia-ml.so.1 -> /usr/lib/x86_64-linux-gnu/nvidia/tesla-550/libnvidia-ml.so.550.163.01",
            "libnvidia-nvvm70.so.4 -> /usr/lib/x86_64-linux-gnu/nvidia/tesla-550/libnvidia-nvvm70.so.4",
            "nvidia-smi -> /usr/lib/nvidia/tesla-550/nvidia-smi",
        ];
        assert_eq!(found(&tree), expected);
    }

    #[test]
    fn the_drivers_own_version_goes_before_one_that_proves_nothing() {
        let tree = Tree::new();
        tree.required("usr/lib64", VERSION)
            .elf(
                "usr/lib64/libnvidia-nvvm.so.4.0.0",
                &Elf::library("libnvidia-nvvm.so.4"),
            )
            .elf(
                "lib/libnvidia-nvvm.so.550.163.01",
                &Elf::library("libnvidia-nvvm.so.4"),
            );
        assert!(
            found(&tree)
                .contains(&"libnvidia-nvvm.so.4 -> /lib/libnvidia-nvvm.so.550.163.01".to_owned())
        );
    }

    #[test]
    fn a_root_that_is_the_drivers_folder() {
        let tree = Tree::new();
        tree.required("lib64", VERSION)
            .link("lib", "lib64")
            .elf("bin/nvidia-smi", &Elf::program());
        let root = DriverRoot::new("/home/kubernetes/bin/nvidia", tree.root.here());
        let files = Search::new(&root, Architecture::X86_64)
            .unwrap()
            .files(VERSION)
            .unwrap();
        let expected = [
            "libcuda.so.1 -> /home/kubernetes/bin/nvidia/lib64/libcuda.so.550.163.01",
            "libnvidia-ml.so.1 -> /home/kubernetes/bin/nvidia/lib64/libnvidia-ml.so.550.163.01",
            "nvidia-smi -> /home/kubernetes/bin/nvidia/bin/nvidia-smi",
        ];
        assert_eq!(listing(&files), expected);
    }

    #[test]
    fn the_first_folder_wins_file_by_file() {
        let tree = Tree::new();
        let compiler = Elf::library("libnvidia-ptxjitcompiler.so.1");
        tree.required(MULTIARCH, VERSION)
            .required("usr/lib64", VERSION)
            .elf(
                "usr/lib64/libnvidia-ptxjitcompiler.so.550.163.01",
                &compiler,
            );
        let expected = [
            "libcuda.so.1 -> /usr/lib/x86_64-linux-gnu/libcuda.so.550.163.01",
            "libnvidia-ml.so.1 -> /usr/lib/x86_64-linux-gnu/libnvidia-ml.so.550.163.01",
            "libnvidia-ptxjitcompiler.so.1 -> /usr/lib64/libnvidia-ptxjitcompiler.so.550.163.01",
        ];
        assert_eq!(found(&tree), expected);
        assert_eq!(find(&tree).unwrap(), find(&tree).unwrap());
    }

    /// Everything that has the name and is not it, in a folder that goes first.
    #[test]
    fn impostors_are_passed_over() {
        let cuda = Elf::library("libcuda.so.1");
        let impostors = [
            Elf {
                class: 1,
                ..cuda.clone()
            }
            .bytes(),
            Elf {
                machine: AARCH64,
                ..cuda.clone()
            }
            .bytes(),
            Elf {
                kind: 2,
                ..cuda.clone()
            }
            .bytes(),
            Elf {
                soname: None,
                ..cuda.clone()
            }
            .bytes(),
            Elf::library("libcudadebugger.so.1").bytes(),
            Elf::library("libcuda.so.1/../../../etc/passwd").bytes(),
            b"INPUT(/usr/lib64/libcuda.so.1)".to_vec(),
            Vec::new(),
        ];
        for impostor in impostors {
            let tree = Tree::new();
            tree.file(&format!("{MULTIARCH}/libcuda.so.{VERSION}"), &impostor)
                .required("usr/lib64", VERSION);
            assert_eq!(
                found(&tree)[0],
                "libcuda.so.1 -> /usr/lib64/libcuda.so.550.163.01"
            );
            assert_eq!(found(&tree).len(), 2);
        }
    }

    #[test]
    fn links_that_lead_astray_are_passed_over() {
        let tree = Tree::new();
        let outside = tempfile::tempdir().unwrap();
        let escape = outside.path().join(format!("libcuda.so.{VERSION}"));
        fs::write(&escape, Elf::library("libcuda.so.1").bytes()).unwrap();
        tree.link(&format!("{MULTIARCH}/libcuda.so.1"), escape)
            .link(&format!("{MULTIARCH}/libcuda.so.{VERSION}"), "gone")
            .link(
                &format!("{MULTIARCH}/libnvidia-ml.so.{VERSION}"),
                format!("libnvidia-ml.so.{VERSION}"),
            )
            .required("usr/lib64", VERSION);
        assert_eq!(
            found(&tree)[0],
            "libcuda.so.1 -> /usr/lib64/libcuda.so.550.163.01"
        );
    }

    /// Left by an upgrade: the link already leads to the next driver.
    #[test]
    fn a_link_to_another_version_does_not_hide_the_file() {
        let tree = Tree::new();
        tree.required("usr/lib64", "580.159.04")
            .elf(
                "usr/lib64/libcuda.so.550.163.01",
                &Elf::library("libcuda.so.1"),
            )
            .elf(
                "usr/lib64/libnvidia-ml.so.550.163.01",
                &Elf::library("libnvidia-ml.so.1"),
            );
        assert_eq!(
            found(&tree)[0],
            "libcuda.so.1 -> /usr/lib64/libcuda.so.550.163.01"
        );
    }

    #[test]
    fn each_architecture_finds_its_own() {
        let tree = Tree::new();
        let folder = "usr/lib/aarch64-linux-gnu";
        tree.required(MULTIARCH, VERSION);
        for library in ["libcuda", "libnvidia-ml"] {
            let elf = Elf {
                machine: AARCH64,
                ..Elf::library(&format!("{library}.so.1"))
            };
            tree.elf(&format!("{folder}/{library}.so.{VERSION}"), &elf);
        }
        let files = find_for(&tree, Architecture::Aarch64).unwrap();
        assert!(
            files
                .libraries
                .iter()
                .all(|file| file.host.starts_with(Path::new("/").join(folder)))
        );
        let files = find(&tree).unwrap();
        assert!(
            files
                .libraries
                .iter()
                .all(|file| file.host.starts_with(Path::new("/").join(MULTIARCH)))
        );
    }

    #[test]
    fn a_missing_library_is_named_with_the_folders_and_what_is_there() {
        let tree = Tree::new();
        tree.required("usr/lib64", "535.261.03").elf(
            "usr/lib64/libcuda.so.550.163.01",
            &Elf::library("libcuda.so.1"),
        );
        let message = find(&tree).unwrap_err().to_string();
        let here = tree.root.here().display();
        let expected = format!(
            "no libnvidia-ml.so.1 of driver 550.163.01 for x86_64 under the driver root {here} \
             (/ on the host); searched usr/lib/x86_64-linux-gnu, \
             usr/lib/x86_64-linux-gnu/nvidia/current, usr/lib64, usr/lib64/nvidia, usr/lib, \
             usr/local/nvidia/lib64, usr/local/nvidia/lib, opt/nvidia/lib64, opt/nvidia/lib, \
             lib64, lib and found 535.261.03 instead; name the folder of the host that holds \
             this driver with --driver-root"
        );
        assert_eq!(message, expected);
    }

    #[test]
    fn an_empty_root_and_one_that_is_not_there() {
        let tree = Tree::new();
        let error = find(&tree).unwrap_err();
        assert!(matches!(
            error,
            DriverError::LibraryMissing {
                library: "libcuda.so.1",
                ..
            }
        ));
        let root = DriverRoot::new("/", tree.root.here().join("gone"));
        let error = DriverFiles::find(&root, VERSION).unwrap_err();
        assert!(matches!(error, DriverError::Root { .. }), "{error}");
        assert!(error.to_string().contains("--driver-root"), "{error}");
        assert_eq!(nvml_library(&root), None);
    }

    #[test]
    fn nvml_is_what_the_loader_would_take_or_any_version() {
        let tree = Tree::new();
        let nvml = || {
            Search::new(&tree.root, Architecture::X86_64)
                .unwrap()
                .nvml()
        };
        assert_eq!(nvml(), None);
        tree.elf(
            "usr/lib64/libnvidia-ml.so.535.261.03",
            &Elf::library("libnvidia-ml.so.1"),
        );
        assert!(
            nvml()
                .unwrap()
                .ends_with("usr/lib64/libnvidia-ml.so.535.261.03")
        );
        tree.required("usr/lib64", VERSION);
        assert!(
            nvml()
                .unwrap()
                .ends_with("usr/lib64/libnvidia-ml.so.550.163.01")
        );
        tree.file(
            "usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1",
            b"INPUT(libnvidia-ml.so.1)",
        );
        assert!(
            nvml()
                .unwrap()
                .ends_with("usr/lib64/libnvidia-ml.so.550.163.01")
        );
    }
}
