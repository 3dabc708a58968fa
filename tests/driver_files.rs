//! The driver's real files in each layout that nodes have: what is chosen, what
//! is left out and why, what is missing.
//!
//! `DRIVER_ROOTS` names folders, separated by colons, each with the unpacked
//! packages of one driver and called by its version, such as
//! `/tmp/drivers/550.163.01`; `.ci/driver-packages` unpacks three. Nothing is
//! installed and no GPU is needed. The layouts are built of hard links to these
//! files, in a temporary folder.
//!
//! What is found is held to the lists in tests/driver_files/golden, one a layout
//! and branch of the driver; `UPDATE_GOLDEN=1` writes them anew.

#![allow(
    unreachable_pub,
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on says so"
)]

#[path = "driver_files/command.rs"]
mod command;
mod common;
#[path = "driver_files/golden.rs"]
mod golden;
#[path = "driver_files/kit.rs"]
mod kit;
#[path = "driver_files/layouts.rs"]
mod layouts;
#[path = "driver_files/oracle.rs"]
mod oracle;
#[path = "driver_files/tree.rs"]
mod tree;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::system::skip;
use gpu_device_plugin::driver::capabilities::Capabilities;
use gpu_device_plugin::driver::{DriverFiles, LeftOut, Reason, nvml_library};
use kit::Kit;
use layouts::Layout;
use layouts::distributions::{DEBIAN, DEBIAN_UNPACKED, RED_HAT, SUSE, UBUNTU, flavour};
use layouts::images::{BOTTLEROCKET, FLATCAR, NIXOS, TALOS, TALOS_1_13};
use layouts::installers::{
    CACHED, COS, COS_WITHOUT_GKE, DRIVER_CONTAINER, DRIVER_CONTAINERS_ROOT, OWN_FOLDER, RUN,
};
use tree::Tree;

// === The layouts ===

#[test]
fn debian_as_unpacked() {
    holds("debian_as_unpacked", &DEBIAN_UNPACKED);
}

#[test]
fn debian_with_its_alternatives() {
    holds("debian_with_its_alternatives", &DEBIAN);
}

#[test]
fn ubuntu() {
    holds("ubuntu", &UBUNTU);
}

#[test]
fn red_hat() {
    holds("red_hat", &RED_HAT);
}

#[test]
fn suse() {
    holds("suse", &SUSE);
}

#[test]
fn nvidias_installer_over_an_older_driver_beside_cudas_toolkit() {
    holds(
        "nvidias_installer_over_an_older_driver_beside_cudas_toolkit",
        &RUN,
    );
}

#[test]
fn a_driver_container_below_the_hosts_root() {
    holds("a_driver_container_below_the_hosts_root", &DRIVER_CONTAINER);
}

#[test]
fn a_driver_containers_root_by_itself() {
    holds(
        "a_driver_containers_root_by_itself",
        &DRIVER_CONTAINERS_ROOT,
    );
}

#[test]
fn container_optimized_os() {
    holds("container_optimized_os", &COS);
}

#[test]
fn container_optimized_os_without_gke() {
    let test = "container_optimized_os_without_gke";
    kit::each(test, |kit| {
        let listing = |layout: &Layout, folder: &str| {
            let tree = Tree::new();
            (layout.build)(kit, &tree);
            golden::text(&found(&tree, layout, kit, &Capabilities::all())).replace(folder, "/*/")
        };
        assert_eq!(
            listing(&COS_WITHOUT_GKE, "/var/lib/nvidia/"),
            listing(&COS, "/home/kubernetes/bin/nvidia/")
        );
    });
}

#[test]
fn a_driver_in_a_folder_of_its_own() {
    holds("a_driver_in_a_folder_of_its_own", &OWN_FOLDER);
}

#[test]
fn nixos() {
    holds("nixos", &NIXOS);
}

#[test]
fn talos() {
    holds("talos", &TALOS);
}

#[test]
fn talos_since_1_13() {
    holds("talos_since_1_13", &TALOS_1_13);
}

#[test]
fn bottlerocket() {
    holds("bottlerocket", &BOTTLEROCKET);
}

#[test]
fn flatcar() {
    holds("flatcar", &FLATCAR);
}

#[test]
fn a_folder_that_only_the_loaders_cache_names() {
    let test = "a_folder_that_only_the_loaders_cache_names";
    let may = Tree::new().ldconfig("etc/ld.so.cache", &[]);
    if may {
        holds(test, &CACHED);
    } else {
        skip(test, "takes ldconfig, and root to run it");
    }
}

/// Holds each driver in this layout to its golden lists and to what its files
/// say of themselves.
fn holds(test: &str, layout: &Layout) {
    if !cfg!(target_arch = "x86_64") {
        return skip(test, "the golden lists are of x86-64");
    }
    kit::each(test, |kit| {
        let tree = Tree::new();
        (layout.build)(kit, &tree);
        let default = found(&tree, layout, kit, &Capabilities::default());
        let all = found(&tree, layout, kit, &Capabilities::all());
        for file in &default.files {
            assert!(all.files.contains(file), "{} is not of all", file.name);
        }
        let name = format!("{}.{}", layout.name, kit.branch());
        let [of_default, of_all] = layout.lists.of(kit.branch());
        if of_default {
            golden::check(&name, kit, &default);
        }
        if of_all {
            golden::check(&format!("{name}.all"), kit, &all);
        }
    });
}

/// What is found, held to the oracle.
fn found(tree: &Tree, layout: &Layout, kit: &Kit, capabilities: &Capabilities) -> DriverFiles {
    let root = tree.root(layout.root);
    let files = DriverFiles::find(&root, &kit.version, capabilities).unwrap();
    oracle::check(tree, kit, &files);
    let nvml = nvml_library(&root, Some(&kit.version));
    assert_eq!(
        nvml.as_ref(),
        files.library("libnvidia-ml.so.1").map(|it| &it.here)
    );
    let versions = DriverFiles::versions(&root).unwrap();
    assert_eq!(versions.last(), Some(&kit.version), "{versions:?}");
    files
}

/// A list that no test reads is one that nothing holds.
#[test]
fn golden_lists_are_all_read() {
    let layouts = [
        DEBIAN,
        DEBIAN_UNPACKED,
        UBUNTU,
        RED_HAT,
        SUSE,
        RUN,
        DRIVER_CONTAINER,
        COS,
        OWN_FOLDER,
        NIXOS,
        TALOS,
        TALOS_1_13,
        BOTTLEROCKET,
        FLATCAR,
        CACHED,
    ];
    // Those that .ci/driver-packages unpacks.
    let branches = ["470", "535", "550"];
    let lists = layouts.iter().flat_map(|layout| {
        let of = branches.map(|branch| (layout, branch, layout.lists.of(branch)));
        of.into_iter().flat_map(|(layout, branch, [default, all])| {
            let name = format!("{}.{branch}", layout.name);
            let all = all.then(|| format!("{name}.all.txt"));
            let default = default.then(|| format!("{name}.txt"));
            default.into_iter().chain(all)
        })
    });
    let mut lists: Vec<_> = lists.collect();
    lists.sort();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/driver_files/golden");
    let there = kit::entries(Path::new(folder));
    let there: Vec<_> = there
        .iter()
        .map(|path| path.file_name().unwrap().to_str().unwrap())
        .collect();
    assert_eq!(
        lists, there,
        "lists that a test reads, and those that are there"
    );
}

// === What comes of it ===

/// Debian can have several installed, each in folders of its own: what is found
/// of one is not the other's.
#[test]
fn two_drivers_of_debian_side_by_side() {
    let test = "two_drivers_of_debian_side_by_side";
    kit::two(test, |first, second| {
        if flavour(first) == flavour(second) {
            return skip(test, "they have the same folders");
        }
        let both = Tree::new();
        for kit in [first, second] {
            (DEBIAN_UNPACKED.build)(kit, &both);
        }
        for (kit, other) in [(first, second), (second, first)] {
            let all = Capabilities::all();
            let root = both.root("/");
            let together = DriverFiles::find(&root, &kit.version, &all).unwrap();
            oracle::check(&both, kit, &together);
            let alone = Tree::new();
            (DEBIAN_UNPACKED.build)(kit, &alone);
            let alone = found(&alone, &DEBIAN_UNPACKED, kit, &all);
            let hosts = |files: &DriverFiles| -> Vec<_> {
                let files = files.files.iter().filter(|it| is_of_a_version(&it.host));
                files.map(|it| (it.name.clone(), it.host.clone())).collect()
            };
            assert_eq!(hosts(&together), hosts(&alone), "{}", kit.version);
            let libcuda = format!("libcuda.so.{}", other.version);
            let reason = Reason::OtherVersion(other.version.clone());
            let left_out = |left: &LeftOut| left.host.ends_with(&libcuda) && left.reason == reason;
            assert!(
                together.left_out.iter().any(left_out),
                "{:?}",
                together.left_out
            );
        }
        let versions = DriverFiles::versions(&both.root("/")).unwrap();
        let mut expected = vec![first.version.clone(), second.version.clone()];
        expected.sort();
        assert_eq!(versions, expected);
    });
}

/// Whether the path says so: the rest is one for all drivers.
fn is_of_a_version(host: &Path) -> bool {
    let host = host.to_string_lossy();
    let name = host.rsplit('/').next().unwrap();
    let version = name.rsplit(".so.").next().unwrap();
    let digits = version.split('.').next().unwrap();
    ["nvidia/current/", "nvidia/tesla-", "firmware/nvidia/"]
        .iter()
        .any(|folder| host.contains(folder))
        || (name.contains(".so.") && digits.len() >= 3)
}

#[test]
fn another_version_is_not_taken_for_the_one_wanted() {
    kit::last("another_version_is_not_taken_for_the_one_wanted", |kit| {
        let root = Tree::new();
        (UBUNTU.build)(kit, &root);
        let root = root.root("/");
        let error = DriverFiles::find(&root, "999.99", &Capabilities::default());
        let error = error.unwrap_err().to_string();
        let instead = format!("found {} instead", kit.version);
        assert!(
            error.contains("999.99") && error.contains(&instead),
            "{error}"
        );
    });
}

/// Without a volume, each library is where a loader looks and in the folder of
/// CUDA's images, by its SONAME.
#[test]
fn mounts_are_at_the_soname_in_the_loaders_folders() {
    kit::last("mounts_are_at_the_soname_in_the_loaders_folders", |kit| {
        let tree = Tree::new();
        (RED_HAT.build)(kit, &tree);
        let root = tree.root("/");
        let files = DriverFiles::find(&root, &kit.version, &Capabilities::default()).unwrap();
        let mut folders: BTreeMap<PathBuf, usize> = BTreeMap::new();
        for mount in files.mounts(None) {
            let name = mount.container.file_name().unwrap().to_str().unwrap();
            if let Some(soname) = oracle::Elf::read(&mount.here).soname {
                assert_eq!(soname, name);
            }
            let folder = mount.container.parent().unwrap();
            *folders.entry(folder.to_path_buf()).or_default() += 1;
        }
        let libraries = files.libraries().count();
        let programs = files.programs().count();
        let firmware = format!("/lib/firmware/nvidia/{}", kit.version);
        let gsp = files.files.iter().filter(|it| it.name.starts_with("gsp"));
        let expected = [
            ("/etc/OpenCL/vendors", 1),
            (&firmware, gsp.count()),
            ("/usr/bin", programs),
            (&format!("/{}", kit::MULTIARCH), libraries),
            ("/usr/lib64", libraries),
            ("/usr/local/nvidia/bin", programs),
            ("/usr/local/nvidia/lib64", libraries),
        ];
        let expected = expected.map(|(path, count)| (PathBuf::from(path), count));
        assert_eq!(folders, expected.into());
    });
}

/// The driver that an image mounted read-only holds, as on a node.
#[test]
fn a_read_only_mount_changes_nothing() {
    let test = "a_read_only_mount_changes_nothing";
    kit::last(test, |kit| {
        let tree = Tree::new();
        (OWN_FOLDER.build)(kit, &tree);
        let node = command::Node::new(&kit.version);
        let plain = node.driver(tree.here()).json();
        match node.driver(tree.here()).read_only("usr/local/nvidia") {
            Ok(run) => assert_eq!(run.json(), plain),
            Err(why) => skip(test, &why),
        }
    });
}
