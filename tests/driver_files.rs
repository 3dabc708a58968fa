//! The driver's real files, as distributions package them.
//!
//! `DRIVER_ROOTS` names folders, separated by colons, each with the unpacked
//! packages of one driver and called by its version, such as
//! `/tmp/drivers/550.163.01`; `.ci/driver-packages` unpacks three. Nothing is
//! installed and no GPU is needed.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on says so"
)]

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use common::system::skip;
use gpu_device_plugin::driver::{DriverFiles, DriverRoot, nvml_library};
use object::LittleEndian;
use object::elf::{DT_SONAME, FileHeader64};
use object::read::elf::FileHeader;
use object::read::{Error, ReadCache};

/// The SONAMEs that computing and watching take, by branch, as Debian packages
/// them for x86-64; `*` is the driver's version.
const GOLDEN: &[(&str, &[&str])] = &[
    (
        "470",
        &[
            "libcuda.so.1",
            "libnvidia-allocator.so.1",
            "libnvidia-cfg.so.1",
            "libnvidia-compiler.so.*",
            "libnvidia-ml.so.1",
            "libnvidia-nvvm.so.4",
            "libnvidia-opencl.so.1",
            "libnvidia-ptxjitcompiler.so.1",
        ],
    ),
    (
        "535",
        &[
            "libcuda.so.1",
            "libcudadebugger.so.1",
            "libnvidia-allocator.so.1",
            "libnvidia-cfg.so.1",
            "libnvidia-ml.so.1",
            "libnvidia-nvvm.so.4",
            "libnvidia-opencl.so.1",
            "libnvidia-pkcs11-openssl3.so.*",
            "libnvidia-ptxjitcompiler.so.1",
        ],
    ),
    (
        "550",
        &[
            "libcuda.so.1",
            "libcudadebugger.so.1",
            "libnvidia-allocator.so.1",
            "libnvidia-cfg.so.1",
            "libnvidia-gpucomp.so.*",
            "libnvidia-ml.so.1",
            "libnvidia-nvvm.so.4",
            "libnvidia-opencl.so.1",
            "libnvidia-pkcs11-openssl3.so.*",
            "libnvidia-ptxjitcompiler.so.1",
        ],
    ),
];

/// Runs `check` on each root with its version; says loudly when there is none.
fn each_root(test: &str, check: impl Fn(&Path, &str)) {
    let Some(roots) = std::env::var_os("DRIVER_ROOTS").filter(|roots| !roots.is_empty()) else {
        skip(test, "DRIVER_ROOTS names no unpacked driver");
        return;
    };
    for root in std::env::split_paths(&roots) {
        let version = root.file_name().unwrap().to_str().unwrap().to_owned();
        check(&root, &version);
    }
}

/// A root as a plugin in a container has it: the host's `/` at another place.
fn host_root(here: &Path) -> DriverRoot {
    DriverRoot::new("/", here)
}

/// The SONAME by way of the sections, as a linker reads it, where the plugin
/// goes by the segments.
fn soname(path: &Path) -> Result<String, Error> {
    let cache = ReadCache::new(File::open(path).unwrap());
    let header = FileHeader64::<LittleEndian>::parse(&cache)?;
    let sections = header.sections(LittleEndian, &cache)?;
    let dynamic = sections.dynamic_table(LittleEndian, &cache)?;
    let soname = dynamic.iter().find(|entry| entry.tag == DT_SONAME).unwrap();
    Ok(String::from_utf8(dynamic.string(soname)?.to_vec()).unwrap())
}

#[test]
fn every_branch_has_the_libraries_known_of_it() {
    each_root(
        "every_branch_has_the_libraries_known_of_it",
        |root, version| {
            let files = DriverFiles::find(&host_root(root), version).unwrap();
            let sonames: Vec<_> = files
                .libraries
                .iter()
                .map(|file| file.name.replace(version, "*"))
                .collect();
            let branch = version.split('.').next().unwrap();
            match GOLDEN.iter().find(|(known, _)| *known == branch) {
                Some((_, golden)) => assert_eq!(sonames, *golden, "{version}"),
                // A branch not seen before is a line to add above.
                None => panic!("no golden list for {version}; found {sonames:?}"),
            }
            let binaries: Vec<_> = files
                .binaries
                .iter()
                .map(|file| file.name.as_str())
                .collect();
            assert_eq!(binaries, ["nvidia-smi"], "{version}");
        },
    );
}

#[test]
fn files_are_of_the_version_and_below_the_root() {
    each_root(
        "files_are_of_the_version_and_below_the_root",
        |root, version| {
            let files = DriverFiles::find(&host_root(root), version).unwrap();
            assert_eq!(files.version, version);
            for file in files.libraries.iter().chain(&files.binaries) {
                let name = file.here.file_name().unwrap().to_str().unwrap();
                let own = name == "nvidia-smi" || name == "libnvidia-nvvm.so.4.0.0";
                assert!(own || name.ends_with(&format!(".so.{version}")), "{name}");
                assert!(file.here.symlink_metadata().unwrap().is_file(), "{name}");
                assert_eq!(
                    Path::new("/").join(file.here.strip_prefix(root).unwrap()),
                    file.host
                );
            }
        },
    );
}

#[test]
fn mounts_are_at_the_soname_in_both_of_the_loaders_folders() {
    each_root(
        "mounts_are_at_the_soname_in_both_of_the_loaders_folders",
        |root, version| {
            let files = DriverFiles::find(&host_root(root), version).unwrap();
            let mut folders: BTreeMap<PathBuf, usize> = BTreeMap::new();
            for mount in files.mounts() {
                let name = mount.container.file_name().unwrap().to_str().unwrap();
                if name != "nvidia-smi" {
                    assert_eq!(soname(&mount.here).unwrap(), name);
                }
                *folders
                    .entry(mount.container.parent().unwrap().to_path_buf())
                    .or_default() += 1;
            }
            let libraries = files.libraries.len();
            let multiarch = format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
            let expected = [
                ("/usr/bin", 1),
                (multiarch.as_str(), libraries),
                ("/usr/lib64", libraries),
            ];
            assert_eq!(
                folders,
                expected
                    .map(|(path, count)| (PathBuf::from(path), count))
                    .into()
            );
        },
    );
}

#[test]
fn nvml_is_the_packages_own() {
    each_root("nvml_is_the_packages_own", |root, version| {
        let nvml = nvml_library(&host_root(root)).unwrap();
        assert!(
            nvml.ends_with(format!("libnvidia-ml.so.{version}")),
            "{}",
            nvml.display()
        );
    });
}

#[test]
fn another_version_is_not_taken_for_the_one_wanted() {
    each_root(
        "another_version_is_not_taken_for_the_one_wanted",
        |root, version| {
            let error = DriverFiles::find(&host_root(root), "999.99")
                .unwrap_err()
                .to_string();
            assert!(error.contains("999.99"), "{error}");
            assert!(
                error.contains(&format!("found {version} instead")),
                "{error}"
            );
        },
    );
}

/// Debian's packages set their links when they are configured, not when they are
/// unpacked: with all of them set, the same files are found.
#[test]
fn debians_alternatives_change_nothing() {
    each_root("debians_alternatives_change_nothing", |root, version| {
        let plain = DriverFiles::find(&host_root(root), version).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let here = dir.path();
        let host = |path: &Path| here.join(path.strip_prefix("/").unwrap());
        for file in plain.libraries.iter().chain(&plain.binaries) {
            fs::create_dir_all(host(file.host.parent().unwrap())).unwrap();
            fs::copy(&file.here, host(&file.host)).unwrap();
        }
        fs::create_dir_all(here.join("etc/alternatives")).unwrap();
        fs::create_dir_all(here.join("usr/bin")).unwrap();
        for mount in plain.mounts() {
            let link = host(&mount.container);
            // Some libraries are packaged at the place that programs look for them.
            if mount.container.starts_with("/usr/lib64") || link.exists() {
                continue;
            }
            let name = mount.container.file_name().unwrap().to_str().unwrap();
            let alternative = format!("/etc/alternatives/nvidia--{name}");
            symlink(&mount.host, host(Path::new(&alternative))).unwrap();
            symlink(&alternative, link).unwrap();
        }
        let linked = DriverFiles::find(&host_root(here), version).unwrap();
        let hosts = |files: &DriverFiles| {
            let files = files.libraries.iter().chain(&files.binaries);
            files
                .map(|file| (file.name.clone(), file.host.clone()))
                .collect::<Vec<_>>()
        };
        assert_eq!(hosts(&linked), hosts(&plain));
    });
}
