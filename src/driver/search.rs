//! The search for one driver's files under a root.

use std::fs;
use std::path::{Path, PathBuf};

use super::capabilities::Capabilities;
use super::catalog::{self, LIBNVIDIA_ML};
use super::elf::ElfFile;
use super::files::DriverFiles;
use super::layout::{Architecture, CACHES, ROOTS_BELOW};
use super::look::Look;
use super::names::LibraryName;
use super::resolver::Resolver;
use super::{DriverError, DriverRoot, ldcache};

/// Where NVML's library is under the root, for `dlopen`.
///
/// That of the driver of this `version`, if there is one; else the first file
/// that calls itself `libnvidia-ml.so.1` and is for this machine's
/// architecture. In each folder, what the loader would take goes before
/// libraries of any version beside it. As this process sees it.
#[must_use]
pub fn nvml_library(root: &DriverRoot, version: Option<&str>) -> Option<PathBuf> {
    Search::new(root, Architecture::HERE).ok()?.nvml(version)
}

/// A search under one root for files of one architecture.
pub(super) struct Search {
    /// The root itself, then those below it that could hold a driver too.
    places: Vec<Place>,
    architecture: Architecture,
}

/// One root and the folders of it that are there.
pub(super) struct Place {
    pub(super) resolver: Resolver,
    /// Relative to the root, best first; each real folder once.
    pub(super) folders: Vec<PathBuf>,
}

impl Search {
    pub(super) fn new(root: &DriverRoot, architecture: Architecture) -> Result<Self, DriverError> {
        fs::read_dir(root.here()).map_err(|source| DriverError::Root {
            root: Box::new(root.clone()),
            source,
        })?;
        let first = Place::new(root.clone(), architecture);
        let below = ROOTS_BELOW.iter().filter_map(|path| {
            let here = first.resolver.resolve(Path::new(path)).ok()?;
            let root = || DriverRoot::new(root.host().join(path), &here);
            here.is_dir().then(|| Place::new(root(), architecture))
        });
        let below: Vec<_> = below.collect();
        Ok(Self {
            places: std::iter::once(first).chain(below).collect(),
            architecture,
        })
    }

    /// The files of the first place that has the driver; of the root itself
    /// where none has.
    pub(super) fn files(&self, version: &str, capabilities: &Capabilities) -> DriverFiles {
        let mut looks = self.places.iter().map(|place| {
            let look = Look::new(place, self.architecture, version);
            look.files(capabilities)
        });
        let Some(first) = looks.next() else {
            return DriverFiles::none(version);
        };
        if first.has_required() {
            return first;
        }
        looks.find(DriverFiles::has_required).unwrap_or(first)
    }

    /// The version of every libcuda, by its name.
    pub(super) fn versions(&self) -> Vec<String> {
        let mut versions = Vec::new();
        for place in &self.places {
            for folder in &place.folders {
                let names = place.resolver.names(folder);
                let libraries = names.iter().filter_map(LibraryName::parse);
                let libcudas = libraries.filter(|library| library.stem == "libcuda");
                let of_driver = libcudas.filter_map(LibraryName::driver_version);
                versions.extend(of_driver.map(str::to_owned));
            }
        }
        versions
    }

    pub(super) fn nvml(&self, version: Option<&str>) -> Option<PathBuf> {
        let exact = version.map(|version| format!("libnvidia-ml.so.{version}"));
        let folders = || {
            let places = self.places.iter();
            places.flat_map(|place| place.folders.iter().map(|folder| (&place.resolver, folder)))
        };
        let of_version = exact.and_then(|name| {
            folders().find_map(|(resolver, folder)| self.is_nvml(resolver, &folder.join(&name)))
        });
        of_version.or_else(|| {
            folders().find_map(|(resolver, folder)| {
                let is_nvml = |name: &&str| {
                    LibraryName::parse(name).is_some_and(|name| name.stem == "libnvidia-ml")
                };
                let names = resolver.names(folder);
                std::iter::once(LIBNVIDIA_ML)
                    .chain(names.iter().filter(is_nvml))
                    .find_map(|name| self.is_nvml(resolver, &folder.join(name)))
            })
        })
    }

    /// The real file, if it is NVML's library.
    fn is_nvml(&self, resolver: &Resolver, path: &Path) -> Option<PathBuf> {
        let here = resolver.resolve(path).ok()?;
        let file = ElfFile::open(&here).ok()?;
        let is_nvml = file.is_library()
            && file.machine == self.architecture.machine()
            && file.soname.as_deref() == Some(LIBNVIDIA_ML);
        is_nvml.then_some(here)
    }
}

impl Place {
    fn new(root: DriverRoot, architecture: Architecture) -> Self {
        let resolver = Resolver::new(root);
        let flavours = resolver.names(&architecture.flavours());
        let mut folders = architecture.library_folders(flavours.iter());
        for cache in CACHES {
            folders.extend(cached(&resolver, cache, architecture));
        }
        let mut seen = Vec::new();
        folders.retain(|folder| {
            let real = resolver.resolve(folder).ok().filter(|real| real.is_dir());
            real.is_some_and(|real| {
                let new = !seen.contains(&real);
                seen.push(real);
                new
            })
        });
        Self { resolver, folders }
    }

    pub(super) fn root(&self) -> &DriverRoot {
        self.resolver.root()
    }
}

/// The folders that a loader's cache names for libraries of the driver, relative
/// to the root.
fn cached(resolver: &Resolver, cache: &str, architecture: Architecture) -> Vec<PathBuf> {
    let Ok(cache) = resolver.resolve(Path::new(cache)) else {
        return Vec::new();
    };
    let folders = ldcache::folders(&cache, architecture, catalog::is_of_the_driver);
    let relative = |folder: PathBuf| folder.strip_prefix("/").map(Path::to_path_buf);
    folders
        .into_iter()
        .filter_map(|f| relative(f).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::files::FileKind;
    use crate::driver::fixture::{AARCH64, Elf, Tree};

    const VERSION: &str = "550.163.01";
    const MULTIARCH: &str = "usr/lib/x86_64-linux-gnu";

    fn find(tree: &Tree) -> Result<DriverFiles, DriverError> {
        find_for(tree, Architecture::X86_64)
    }

    fn find_for(tree: &Tree, architecture: Architecture) -> Result<DriverFiles, DriverError> {
        let search = Search::new(&tree.root, architecture)?;
        search.files(VERSION, &Capabilities::default()).complete()
    }

    fn nvml(tree: &Tree, version: Option<&str>) -> Option<PathBuf> {
        let search = Search::new(&tree.root, Architecture::X86_64).unwrap();
        search.nvml(version)
    }

    /// `name -> host path` of every file, libraries first.
    fn listing(files: &DriverFiles) -> Vec<String> {
        let files = files.files.iter();
        files
            .filter(|file| file.kind != FileKind::Alias)
            .map(|file| format!("{} -> {}", file.name, file.host.display()))
            .collect()
    }

    #[test]
    fn a_library_has_the_other_name_that_programs_load_it_by() {
        let tree = Tree::new();
        tree.required("usr/lib64", VERSION);
        let files = find(&tree).unwrap();
        let aliases = files
            .files
            .iter()
            .filter(|file| file.kind == FileKind::Alias);
        let aliases: Vec<_> = aliases
            .map(|file| (file.name.as_str(), &file.host))
            .collect();
        let libcuda = &files.library("libcuda.so.1").unwrap().host;
        assert_eq!(aliases, [("libcuda.so", libcuda)]);
        let places = files.mounts(None).into_iter().map(|mount| mount.container);
        let places: Vec<_> = places.collect();
        assert!(
            places.contains(&"/usr/lib64/libcuda.so".into()),
            "{places:?}"
        );
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
        for file in &files.files {
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
        let nvml = nvml(&tree, None).unwrap();
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
            .files(VERSION, &Capabilities::default());
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
                .libraries()
                .all(|file| file.host.starts_with(Path::new("/").join(folder)))
        );
        let files = find(&tree).unwrap();
        assert!(
            files
                .libraries()
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
             (/ on the host); searched usr/lib64 and found 535.261.03 instead; name the folder \
             of the host that holds this driver with --driver-root"
        );
        assert_eq!(message, expected);
    }

    #[test]
    fn nvml_of_the_modules_version_goes_first() {
        let tree = Tree::new();
        tree.required("usr/lib64", "580.159.04")
            .required("usr/local/nvidia/lib64", VERSION);
        let found = nvml(&tree, Some(VERSION)).unwrap();
        assert!(found.ends_with("usr/local/nvidia/lib64/libnvidia-ml.so.550.163.01"));
        let found = nvml(&tree, Some("390.157")).unwrap();
        assert!(found.ends_with("usr/lib64/libnvidia-ml.so.580.159.04"));
    }

    #[test]
    fn a_driver_containers_root_below_the_hosts() {
        let tree = Tree::new();
        let folder = "run/nvidia/driver/usr/lib/x86_64-linux-gnu";
        tree.required(folder, VERSION)
            .required("usr/lib64", "535.261.03");
        // A link that is whole leads on inside of that root.
        tree.elf("run/nvidia/driver/usr/bin/real", &Elf::program())
            .link("run/nvidia/driver/usr/bin/nvidia-smi", "/usr/bin/real");
        let files = find(&tree).unwrap();
        let expected = [
            format!("libcuda.so.1 -> /{folder}/libcuda.so.550.163.01"),
            format!("libnvidia-ml.so.1 -> /{folder}/libnvidia-ml.so.550.163.01"),
            "nvidia-smi -> /run/nvidia/driver/usr/bin/real".to_owned(),
        ];
        assert_eq!(listing(&files), expected);
        assert_eq!(files.layout(), "driver container");
    }

    #[test]
    fn folders_that_only_the_loaders_cache_names() {
        let tree = Tree::new();
        tree.required("srv/driver", VERSION).file(
            "etc/ld.so.cache",
            &crate::driver::ldcache::of("libcuda.so.1", "/srv/driver/libcuda.so.1"),
        );
        assert_eq!(
            found(&tree)[0],
            "libcuda.so.1 -> /srv/driver/libcuda.so.550.163.01"
        );
    }

    /// Each with its reason, by path.
    #[test]
    fn what_is_left_out_is_told_with_the_reason() {
        let tree = Tree::new();
        let cuda = Elf::library("libcuda.so.1");
        let other = |elf: Elf| elf.bytes();
        let files: [(&str, Vec<u8>, &str); 8] = [
            (
                "usr/lib64/libcuda.so.535.261.03",
                other(cuda.clone()),
                "of driver 535.261.03",
            ),
            ("usr/lib64/stubs/libcuda.so", other(cuda.clone()), "a stub"),
            (
                "usr/lib/libcuda.so.550.163.01",
                other(Elf {
                    class: 1,
                    ..cuda.clone()
                }),
                "32-bit",
            ),
            (
                "opt/nvidia/lib/libcuda.so.550.163.01",
                other(Elf {
                    machine: AARCH64,
                    ..cuda.clone()
                }),
                "aarch64",
            ),
            (
                "usr/lib64/libnvidia-opencl.so.550.163.01",
                b"/* GNU ld script */".to_vec(),
                "linker script",
            ),
            (
                "usr/lib64/libnvidia-nvvm.so.550.163.01",
                other(Elf::library("libother.so.1")),
                "calls itself libother.so.1",
            ),
            (
                "lib64/libcuda.so.550.163.01",
                other(cuda.clone()),
                "another copy: /usr/lib64/libcuda.so.550.163.01",
            ),
            ("usr/bin/nvidia-smi", b"#!/bin/sh".to_vec(), "a script"),
        ];
        tree.required("usr/lib64", VERSION)
            .link(
                "usr/lib64/libcudadebugger.so.1",
                "libcudadebugger.so.550.163.01",
            )
            .link("usr/lib/libcuda.so.1", "../lib64/stubs/libcuda.so");
        for (path, bytes, _) in &files {
            tree.file(path, bytes);
        }
        let found = find(&tree).unwrap();
        let reason = |path: &str| {
            let left = found
                .left_out
                .iter()
                .find(|left| left.host == Path::new("/").join(path));
            left.map(|left| left.reason.to_string())
        };
        for (path, _, expected) in &files {
            let reason = reason(path).unwrap_or_else(|| panic!("{path}: {:?}", found.left_out));
            assert!(reason.contains(expected), "{path}: {reason}");
        }
        let dangling = reason("usr/lib64/libcudadebugger.so.1").unwrap();
        assert_eq!(dangling, "a link that leads nowhere");
        assert_eq!(found.left_out.len(), files.len() + 1);
        assert_eq!(listing(&found).len(), 2);
    }

    fn all(tree: &Tree) -> DriverFiles {
        let search = Search::new(&tree.root, Architecture::X86_64).unwrap();
        search.files(VERSION, &Capabilities::all())
    }

    #[test]
    fn what_is_no_library_is_found_beside_the_libraries_that_a_cache_names() {
        let tree = Tree::new();
        let module = Elf {
            soname: None,
            ..Elf::library("")
        };
        let cache = ldcache::of("libcuda.so.1", "/srv/driver/lib64/libcuda.so.1");
        tree.required("srv/driver/lib64", VERSION)
            .file("etc/ld.so.cache", &cache)
            .file("srv/driver/share/vulkan/icd.d/nvidia_icd.json", b"{}")
            .file(
                "srv/driver/etc/OpenCL/vendors/nvidia.icd",
                b"libnvidia-opencl.so.1",
            )
            .file("srv/driver/firmware/nvidia/550.163.01/gsp_tu10x.bin", b"")
            .file("srv/driver/firmware/nvidia/535.261.03/gsp_tu10x.bin", b"")
            .elf("srv/driver/lib64/nvidia/xorg/nvidia_drv.so", &module)
            .elf(
                "srv/driver/lib64/nvidia/xorg/libglxserver_nvidia.so.550.163.01",
                &module,
            )
            // Of another driver, as Debian has several.
            .elf("usr/lib/nvidia/current/nvidia_drv.so", &module);
        let expected = [
            "nvidia.icd -> /srv/driver/etc/OpenCL/vendors/nvidia.icd",
            "nvidia_icd.json -> /srv/driver/share/vulkan/icd.d/nvidia_icd.json",
            "nvidia_drv.so -> /srv/driver/lib64/nvidia/xorg/nvidia_drv.so",
            "libglxserver_nvidia.so -> /srv/driver/lib64/nvidia/xorg/libglxserver_nvidia.so.550.163.01",
            "gsp_tu10x.bin -> /srv/driver/firmware/nvidia/550.163.01/gsp_tu10x.bin",
        ];
        assert_eq!(listing(&all(&tree))[2..], expected);
    }

    #[test]
    fn a_vendors_file_with_a_path_that_containers_lack_is_left_out() {
        let tree = Tree::new();
        let icd = |path: &str| format!("{{ \"library_path\": \"{path}libGLX_nvidia.so.0\" }}");
        tree.required("usr/lib64", VERSION)
            .file(
                "etc/OpenCL/vendors/nvidia.icd",
                b"/nix/lib/libnvidia-opencl.so.1\n",
            )
            .file(
                "usr/share/vulkan/icd.d/nvidia_icd.json",
                icd("/opt/lib/").as_bytes(),
            )
            .file(
                "usr/share/vulkan/icd.d/nvidia_icd.x86_64.json",
                icd("/usr/lib64/").as_bytes(),
            )
            .file(
                "usr/share/vulkan/implicit_layer.d/nvidia_layers.json",
                icd("").as_bytes(),
            );
        let found = all(&tree);
        let expected = [
            "nvidia_icd.x86_64.json -> /usr/share/vulkan/icd.d/nvidia_icd.x86_64.json",
            "nvidia_layers.json -> /usr/share/vulkan/implicit_layer.d/nvidia_layers.json",
        ];
        assert_eq!(listing(&found)[2..], expected);
        let left_out = found.left_out.iter();
        let left_out: Vec<_> = left_out.map(|left| left.reason.to_string()).collect();
        let expected = [
            "names /nix/lib/libnvidia-opencl.so.1, which images lack",
            "names /opt/lib/libGLX_nvidia.so.0, which images lack",
        ];
        assert_eq!(left_out, expected);
    }

    /// NVIDIA's installer makes the one link, and users the other.
    #[test]
    fn what_links_make_of_a_file_is_not_said_of_the_file() {
        let tree = Tree::new();
        tree.required("usr/lib64", VERSION)
            .elf(
                "usr/lib64/libGLX_nvidia.so.550.163.01",
                &Elf::library("libGLX_nvidia.so.0"),
            )
            .link(
                "usr/lib64/libGLX_indirect.so.0",
                "libGLX_nvidia.so.550.163.01",
            )
            .file("usr/lib64/libcuda.so", b"INPUT ( libcuda.so.1 )");
        let found = all(&tree);
        let glx = "libGLX_nvidia.so.0 -> /usr/lib64/libGLX_nvidia.so.550.163.01";
        assert_eq!(listing(&found)[0], glx);
        let left_out = found.left_out.iter();
        let left_out: Vec<_> = left_out.map(|left| left.reason.to_string()).collect();
        assert_eq!(left_out, ["a linker script, not a library"]);
    }

    #[test]
    fn what_a_library_needs_comes_with_it_whatever_its_capability() {
        let tree = Tree::new();
        let needs = |name: &str, needed: &[&str]| Elf {
            needed: needed.iter().map(|name| (*name).to_owned()).collect(),
            ..Elf::library(name)
        };
        tree.required("usr/lib64", VERSION)
            .elf(
                "usr/lib64/libnvidia-encode.so.550.163.01",
                &needs(
                    "libnvidia-encode.so.1",
                    &[
                        "libnvidia-gpucomp.so.550.163.01",
                        "libX11.so.6",
                        "libc.so.6",
                    ],
                ),
            )
            .elf(
                "usr/lib64/libnvidia-gpucomp.so.550.163.01",
                &needs(
                    "libnvidia-gpucomp.so.550.163.01",
                    &["libnvidia-tls.so.550.163.01"],
                ),
            )
            .elf(
                "usr/lib64/libnvidia-opencl.so.550.163.01",
                &needs("libnvidia-opencl.so.1", &[]),
            );
        let search = Search::new(&tree.root, Architecture::X86_64).unwrap();
        let files = search.files(VERSION, &"video".parse().unwrap());
        let names: Vec<_> = files.libraries().map(|file| file.name.as_str()).collect();
        let expected = [
            "libcuda.so.1",
            "libnvidia-encode.so.1",
            "libnvidia-gpucomp.so.550.163.01",
            "libnvidia-ml.so.1",
        ];
        assert_eq!(names, expected);
        let missing = files
            .missing
            .iter()
            .map(|it| (it.name.as_str(), it.cost.as_str()));
        let missing: Vec<_> = missing.collect();
        assert!(
            missing.contains(&(
                "libnvidia-tls.so.550.163.01",
                "libnvidia-gpucomp.so.550.163.01 does not load"
            )),
            "{missing:?}"
        );
        assert!(
            missing.contains(&("libnvcuvid.so", "no decoding of video (NVDEC)")),
            "{missing:?}"
        );
        assert_eq!(files.from_image[0].name, "libX11.so.6");
        assert_eq!(files.from_image.len(), 1);
    }

    #[test]
    fn a_libcuda_that_would_not_load_is_no_driver() {
        let tree = Tree::new();
        let needing = Elf {
            needed: vec!["libnvidia-gpucomp.so.550.163.01".into()],
            ..Elf::library("libcuda.so.1")
        };
        tree.required("usr/lib64", VERSION)
            .elf("usr/lib64/libcuda.so.550.163.01", &needing);
        let message = find(&tree).unwrap_err().to_string();
        assert!(
            message.contains("libcuda.so.1 of driver 550.163.01 does not load"),
            "{message}"
        );
        assert!(
            message.contains("libnvidia-gpucomp.so.550.163.01"),
            "{message}"
        );
        let whole = Elf::library("libnvidia-gpucomp.so.550.163.01");
        tree.elf("usr/lib64/libnvidia-gpucomp.so.550.163.01", &whole);
        assert!(find(&tree).is_ok());
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
        let error = DriverFiles::find(&root, VERSION, &Capabilities::default()).unwrap_err();
        assert!(matches!(error, DriverError::Root { .. }), "{error}");
        assert!(error.to_string().contains("--driver-root"), "{error}");
        assert_eq!(nvml_library(&root, None), None);
    }

    #[test]
    fn nvml_is_what_the_loader_would_take_or_any_version() {
        let tree = Tree::new();
        let nvml = || nvml(&tree, None);
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
