//! A driver's real files by what they are, wherever its package has them: what
//! the layouts are built from.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::system::skip;

/// Debian's library folder on this machine's architecture.
pub const MULTIARCH: &str = if cfg!(target_arch = "aarch64") {
    "usr/lib/aarch64-linux-gnu"
} else {
    "usr/lib/x86_64-linux-gnu"
};

/// What a file of the driver is, and by that where an installer puts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Library,
    /// libvdpau_nvidia, which most put below the libraries.
    Vdpau,
    /// For 32-bit programs.
    Library32,
    Program,
    /// X.Org's video driver.
    XDriver,
    /// X.Org's module for OpenGL.
    XExtension,
    XConfiguration,
    /// NGX for Wine.
    Wine,
    Firmware,
    /// Its ICD for OpenCL.
    OpenCl,
    VulkanIcd,
    VulkanLayer,
    EglVendor,
    EglPlatform,
    /// OptiX's data.
    Optix,
}

/// A real file, by the name that NVIDIA's own package has it by.
#[derive(Clone, Debug)]
pub struct PartFile {
    pub part: Part,
    pub name: String,
    pub real: PathBuf,
}

/// One driver.
#[derive(Debug)]
pub struct Kit {
    /// Its packages, unpacked. Never written to.
    pub root: PathBuf,
    pub version: String,
    pub files: Vec<PartFile>,
}

impl Kit {
    fn of(root: &Path) -> Self {
        let version = root.file_name().unwrap().to_str().unwrap().to_owned();
        let mut files = Vec::new();
        for (part, folder, fits) in PLACES {
            for folder in folders(root, folder) {
                for (name, real) in files_in(&folder) {
                    if fits(&name) && part_of(*part, &name) == *part {
                        files.push(PartFile {
                            part: *part,
                            name,
                            real,
                        });
                    }
                }
            }
        }
        let (root, libcuda) = (root.to_path_buf(), format!("libcuda.so.{version}"));
        assert!(
            files.iter().any(|file| file.name == libcuda),
            "{} has no {libcuda}",
            root.display()
        );
        Self {
            root,
            version,
            files,
        }
    }

    /// `550` of `550.163.01`.
    pub fn branch(&self) -> &str {
        self.version.split('.').next().unwrap()
    }

    pub fn parts(&self, part: Part) -> impl Iterator<Item = &PartFile> {
        self.files.iter().filter(move |file| file.part == part)
    }
}

/// The drivers that `DRIVER_ROOTS` names.
fn all() -> Vec<Kit> {
    let roots = std::env::var_os("DRIVER_ROOTS").unwrap_or_default();
    let roots = std::env::split_paths(&roots).filter(|root| !root.as_os_str().is_empty());
    roots.map(|root| Kit::of(&root)).collect()
}

const NONE: &str = "DRIVER_ROOTS names no unpacked driver";

/// Runs `check` with each driver; says loudly when there is none.
pub fn each(test: &str, check: impl Fn(&Kit)) {
    match all().as_slice() {
        [] => skip(test, NONE),
        kits => kits.iter().for_each(check),
    }
}

/// The last of them only, for what is the same with all.
pub fn last(test: &str, check: impl Fn(&Kit)) {
    match all().last() {
        Some(kit) => check(kit),
        None => skip(test, NONE),
    }
}

/// The first and the last.
pub fn two(test: &str, check: impl Fn(&Kit, &Kit)) {
    match all().as_slice() {
        [first, .., last] => check(first, last),
        _ => skip(test, "DRIVER_ROOTS names no two unpacked drivers"),
    }
}

type Place = (Part, &'static str, fn(&str) -> bool);

/// Where Debian has them; `*` is `current` or `tesla-470`, and `#` the version.
const PLACES: &[Place] = &[
    (Part::Library, "LIB", is_library),
    (Part::Library, "LIB/nvidia/*", is_library),
    (Part::Vdpau, "LIB/nvidia/*", is_library),
    (
        Part::Library32,
        "usr/lib/i386-linux-gnu/nvidia/*",
        is_library,
    ),
    (Part::Wine, "LIB/nvidia/*/nvidia/wine", any),
    (Part::Optix, "LIB/nvidia/*", |name| name == "nvoptix.bin"),
    (Part::Program, "usr/bin", is_program),
    (Part::Program, "usr/sbin", is_program),
    (Part::Program, "usr/lib/nvidia/*", is_program),
    (Part::XDriver, "usr/lib/nvidia/*", |name| {
        name == "nvidia_drv.so"
    }),
    (Part::XExtension, "usr/lib/nvidia/*", |name| {
        name.starts_with("libglxserver_nvidia.so.")
    }),
    (Part::XConfiguration, "etc/nvidia/*", |name| {
        name == "nvidia-drm-outputclass.conf"
    }),
    (Part::Firmware, "lib/firmware/nvidia/#", any),
    (Part::Firmware, "usr/lib/firmware/nvidia/#", any),
    (Part::OpenCl, "etc/OpenCL/vendors", any),
    (Part::VulkanIcd, "usr/share/vulkan/icd.d", any),
    (Part::VulkanLayer, "usr/share/vulkan/implicit_layer.d", any),
    (Part::EglVendor, "usr/share/glvnd/egl_vendor.d", any),
    (
        Part::EglPlatform,
        "usr/share/egl/egl_external_platform.d",
        any,
    ),
];

fn any(_: &str) -> bool {
    true
}

fn is_library(name: &str) -> bool {
    name.starts_with("lib") && name.contains(".so.")
}

/// Also those that no container gets.
fn is_program(name: &str) -> bool {
    [
        "nvidia-cuda-mps-control",
        "nvidia-cuda-mps-server",
        "nvidia-debugdump",
        "nvidia-modprobe",
        "nvidia-persistenced",
        "nvidia-smi",
        "nvidia-xconfig",
    ]
    .contains(&name)
}

fn part_of(part: Part, name: &str) -> Part {
    match part {
        Part::Library | Part::Vdpau if name.starts_with("libvdpau_nvidia") => Part::Vdpau,
        Part::Vdpau => Part::Library,
        part => part,
    }
}

/// The folders that a place stands for.
fn folders(root: &Path, place: &str) -> Vec<PathBuf> {
    let version = root.file_name().unwrap().to_str().unwrap();
    let place = place.replace("LIB", MULTIARCH).replace('#', version);
    let Some((parent, rest)) = place.split_once("/*") else {
        return vec![root.join(place)];
    };
    let flavours = entries(&root.join(parent));
    let flavours = flavours
        .into_iter()
        .filter(|flavour| flavour.is_dir() && !flavour.is_symlink());
    let folders = flavours.map(|flavour| flavour.join(rest.trim_start_matches('/')));
    folders.collect()
}

/// The files of a folder, without links; none where there is no folder.
fn files_in(folder: &Path) -> Vec<(String, PathBuf)> {
    let files = entries(folder).into_iter().filter_map(|path| {
        let name = path.file_name()?.to_str()?.to_owned();
        let is_file = path.symlink_metadata().ok()?.is_file();
        is_file.then_some((name, path))
    });
    files.collect()
}

/// What is in a folder, sorted.
pub fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}
