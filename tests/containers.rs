//! The answer of Allocate in real containers, with a real driver's files and
//! without a kubelet: the plugin's binary answers, runc applies.
//!
//! Runs as root where runc, cc and ldd are, and `DRIVER_ROOTS` names unpacked
//! drivers as in tests/driver_files.rs. `LIBC_ROOTS` names unpacked C libraries
//! of distributions, in the same way, for the images that this machine cannot
//! stand for, and `IMAGE_ROOTS` whole root file systems; `.ci/driver-packages`,
//! `.ci/libc-packages` and `.ci/images` make them.
//!
//! No kernel module is there, so that the libraries' answers say that there is no
//! driver or no device: what is shown is that they are found, load and run.

#![allow(
    unreachable_pub,
    clippy::expect_used,
    clippy::panic,
    reason = "also a test's helpers fail by panicking"
)]

#[path = "e2e/image.rs"]
mod archive;
mod common;
#[path = "containers/containerd.rs"]
mod containerd;
#[path = "containers/cri.rs"]
mod cri;
#[path = "containers/driver.rs"]
mod driver;
#[allow(dead_code, reason = "tests/e2e.rs uses all of it")]
#[path = "e2e/host.rs"]
mod host;
#[path = "containers/image.rs"]
mod image;
#[path = "containers/memory.rs"]
mod memory;
#[path = "containers/node.rs"]
mod node;
#[path = "containers/runtime.rs"]
mod runtime;

use std::fs;

use common::probe::{Findings, LIBRARY_FOLDER};
use common::system::skip;
use containerd::Containerd;
use driver::{Driver, drivers, newest};
use image::{Image, LIB64, Layout};
use memory::Memory;
use node::{Node, OWN_FOLDER, Setup, assert_without_module, questions};
use runtime::{Setting, User, run, time_to_start};
use tonic::Code;

// === Libraries ===

#[tokio::test(flavor = "multi_thread")]
async fn every_library_loads_by_its_soname() {
    for driver in drivers("every_library_loads_by_its_soname") {
        let node = Node::start(&driver).await;
        let image = Image::of_this_machine();
        node.assert_driver(&image, User::Root.into()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_library_loads_for_a_user_who_is_not_root() {
    for driver in drivers("every_library_loads_for_a_user_who_is_not_root") {
        let node = Node::start(&driver).await;
        let image = Image::of_this_machine();
        node.assert_driver(&image, User::Other.into()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_library_loads_with_the_c_libraries_of_debians_releases() {
    const TEST: &str = "every_library_loads_with_the_c_libraries_of_debians_releases";
    every_library_loads_with(TEST, |image| image.library_folder() != LIB64).await;
}

/// Images of Red Hat's kind have their libraries in /usr/lib64, and a loader that
/// searches no folder of Debian's. This one does the same, but is built by Debian
/// (its 64-bit library for 32-bit systems): it shows that the mounts in
/// /usr/lib64 are enough, and nothing of Red Hat's own patches or versions.
#[tokio::test(flavor = "multi_thread")]
async fn every_library_loads_with_a_loader_that_searches_lib64_only() {
    const TEST: &str = "every_library_loads_with_a_loader_that_searches_lib64_only";
    every_library_loads_with(TEST, |image| image.library_folder() == LIB64).await;
}

async fn every_library_loads_with(test: &str, which: impl Fn(&Image) -> bool) {
    let drivers = drivers(test);
    if drivers.is_empty() {
        return;
    }
    let mut images = Image::with_libraries();
    images.retain(which);
    if images.is_empty() {
        return skip(test, "LIBC_ROOTS names no such C library");
    }
    for driver in drivers {
        let node = Node::start(&driver).await;
        for image in &images {
            node.assert_driver(image, User::Root.into()).await;
        }
    }
}

// === Whole images ===

#[tokio::test(flavor = "multi_thread")]
async fn computing_works_in_whole_images() {
    let users = [
        (User::Root, true),
        (User::Root, false),
        (User::Other, true),
        (User::Other, false),
    ];
    let (drivers, images) = drivers_and_images("computing_works_in_whole_images");
    for driver in drivers {
        let node = Node::start(&driver).await;
        for image in &images {
            for (user, read_only) in users {
                node.assert_driver(image, Setting { user, read_only }).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_library_of_the_whole_driver_loads_in_whole_images() {
    const TEST: &str = "every_library_of_the_whole_driver_loads_in_whole_images";
    let (drivers, images) = drivers_and_images(TEST);
    for driver in drivers {
        let capabilities = "all";
        let setup = Setup {
            capabilities,
            ..Setup::default()
        };
        let node = Node::start_with(&driver, setup).await;
        for image in &images {
            node.assert_driver(image, User::Root.into()).await;
        }
    }
}

/// Drivers, and distributions' root file systems. Neither where one is missing,
/// which is said once: the skipped are counted.
fn drivers_and_images(test: &str) -> (Vec<Driver>, Vec<Image>) {
    let drivers = drivers(test);
    let images = Image::whole();
    if drivers.is_empty() || !images.is_empty() {
        return (drivers, images);
    }
    skip(
        test,
        "needs IMAGE_ROOTS, a LIBC_ROOTS to build for them, and unshare",
    );
    (Vec::new(), Vec::new())
}

// === Images with ways of their own ===

/// As CUDA's images say it (`nvidia/cuda` on Docker's hub), and the half of it.
const OWN_LIBRARIES: &str = "/usr/local/nvidia/lib:/usr/local/nvidia/lib64";
const OWN_LIB64: &str = "/usr/local/nvidia/lib64";

/// With nothing but the one folder: that it is enough is to be shown.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_looks_in_the_folder_of_nvidias_runtime_finds_all_there() {
    const TEST: &str = "an_image_that_looks_in_the_folder_of_nvidias_runtime_finds_all_there";
    let (drivers, images) = drivers_and_images(TEST);
    let Some(driver) = drivers.last() else {
        return;
    };
    // A volume has both; files in place are in the one that all images name.
    for (volume, variable, from) in [
        ("always", OWN_LIBRARIES, "/usr/local/nvidia/lib"),
        ("always", OWN_LIB64, OWN_LIB64),
        ("never", OWN_LIBRARIES, OWN_LIB64),
    ] {
        let setup = Setup {
            volume,
            ..Setup::default()
        };
        let node = Node::start_with(driver, setup).await;
        let path = format!("{OWN_FOLDER}/bin:/usr/local/bin:/usr/bin:/bin");
        for image in images.clone() {
            let image = image
                .with_variable("LD_LIBRARY_PATH", variable)
                .with_variable("PATH", &path)
                .loading(from);
            node.assert_driver(&image, User::Root.into()).await;
            let mut answer = node.allocate(&[0]).await;
            answer
                .mounts
                .retain(|mount| mount.container_path.starts_with(OWN_FOLDER));
            let findings = node.run(&answer, &image, User::Root.into());
            assert_without_module(&findings);
        }
    }
}

/// CUDA's packages for compatibility bring a libcuda for other drivers, and a user
/// who wants it names its folder.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_names_its_own_libcuda_gets_it_and_the_drivers_nvml() {
    const TEST: &str = "an_image_that_names_its_own_libcuda_gets_it_and_the_drivers_nvml";
    const COMPAT: &str = "/usr/local/cuda/compat";
    let (drivers, images) = drivers_and_images(TEST);
    let Some((driver, others)) = drivers.split_first() else {
        return;
    };
    let Some(newer) = others.last() else {
        return skip(TEST, "DRIVER_ROOTS names one driver alone");
    };
    let node = Node::start(driver).await;
    let libcuda = newer.file("libcuda.so.1");
    let name = libcuda.file_name().expect("a name").to_string_lossy();
    for image in images {
        let image = image
            .with_own("libcuda.so.1", libcuda, COMPAT)
            .with_variable("LD_LIBRARY_PATH", COMPAT)
            .loading_one("libcuda.so.1", COMPAT);
        node.assert_driver(&image, User::Root.into()).await;
        let answer = node.allocate(&[0]).await;
        let questions = [
            format!("?{COMPAT}/{name}"),
            format!("?{COMPAT}/libcuda.so.1"),
        ];
        let findings = run(&answer, &image, &node.dev, User::Root.into(), &questions);
        let found = findings.all("is");
        assert_eq!(found[&questions[0][1..]], found[&questions[1][1..]]);
    }
}

/// Left by who installed a driver in the image, and in its loader's cache.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_with_a_stale_driver_where_loaders_look_gets_the_nodes() {
    const TEST: &str = "an_image_with_a_stale_driver_where_loaders_look_gets_the_nodes";
    for (node, image) in with_stale(TEST, LIBRARY_FOLDER).await {
        node.assert_driver(&image, User::Root.into()).await;
    }
}

/// What the loader's own configuration names comes before the folders where a
/// mount could be, and nothing here changes an image's cache: a limit, of which the
/// documentation speaks.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_whose_loader_is_told_of_a_stale_driver_elsewhere_keeps_it() {
    const TEST: &str = "an_image_whose_loader_is_told_of_a_stale_driver_elsewhere_keeps_it";
    const ELSEWHERE: &str = "/opt/driver";
    for (node, image) in with_stale(TEST, ELSEWHERE).await {
        let image = image
            .with_line("/etc/ld.so.conf.d/0-driver.conf", ELSEWHERE)
            .loading_one("libcuda.so.1", ELSEWHERE)
            .loading_one("libnvidia-ml.so.1", ELSEWHERE);
        node.assert_driver(&image, User::Root.into()).await;
    }
}

/// Nodes with a driver each, and an image each with another driver's libraries in a
/// folder.
async fn with_stale(test: &str, folder: &str) -> Vec<(Node, Image)> {
    let (drivers, images) = drivers_and_images(test);
    if drivers.len() == 1 {
        skip(test, "DRIVER_ROOTS names one driver alone");
        return Vec::new();
    }
    let mut all = Vec::new();
    for (at, (driver, mut image)) in drivers.iter().zip(images).enumerate() {
        let other = &drivers[(at + 1) % drivers.len()];
        for soname in ["libcuda.so.1", "libnvidia-ml.so.1"] {
            image = image.with_own(soname, other.file(soname), folder);
        }
        all.push((Node::start(driver).await, image));
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_finds_the_driver_whatever_its_lib64_is() {
    const TEST: &str = "an_image_finds_the_driver_whatever_its_lib64_is";
    let Some(driver) = newest(TEST) else {
        return;
    };
    let node = Node::start(&driver).await;
    let images = [vec![Image::of_this_machine()], Image::with_libraries()].concat();
    for image in images {
        for layout in [Layout::NoLib64, Layout::Lib64IsLib] {
            // That one has nothing but the folder.
            if layout == Layout::NoLib64 && image.library_folder() == LIB64 {
                continue;
            }
            let image = image.clone().with_layout(layout);
            node.assert_driver(&image, User::Root.into()).await;
        }
    }
}

// === Where the files come from ===

/// A node whose /var is another file system than /usr.
#[tokio::test(flavor = "multi_thread")]
async fn copies_of_another_file_system_work_the_same() {
    const TEST: &str = "copies_of_another_file_system_work_the_same";
    let Some(driver) = drivers(TEST).into_iter().next() else {
        return;
    };
    let memory = Memory::mount();
    let setup = Setup {
        state: Some(memory.path().join("state")),
        ..Setup::default()
    };
    let node = Node::start_with(&driver, setup).await;
    for user in [User::Root, User::Other] {
        let image = Image::of_this_machine();
        node.assert_driver(&image, user.into()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_in_place_work_the_same() {
    for driver in drivers("files_in_place_work_the_same") {
        let setup = Setup {
            volume: "never",
            ..Setup::default()
        };
        let node = Node::start_with(&driver, setup).await;
        let images = [vec![Image::of_this_machine()], Image::whole()].concat();
        for image in images {
            node.assert_driver(&image, User::Root.into()).await;
        }
    }
}

// === containerd, as a kubelet asks it ===

/// By each way in that needs no software of NVIDIA's: the same answer of the same
/// volume, as runc alone applies it.
#[tokio::test(flavor = "multi_thread")]
async fn containerd_gives_what_runc_alone_gives() {
    const TEST: &str = "containerd_gives_what_runc_alone_gives";
    let Some(driver) = newest(TEST) else {
        return;
    };
    let Some(mut containerd) = Containerd::start(TEST).await else {
        return;
    };
    let state = tempfile::tempdir().expect("create a state folder");
    let setup = |strategy, capabilities| Setup {
        strategy,
        capabilities,
        cdi: Some(containerd.cdi_folder()),
        state: Some(state.path().to_owned()),
        ..Setup::default()
    };
    let setups = ["compute,utility", "all"].map(|capabilities| {
        ["mounts", "cdi-cri", "cdi-annotations"].map(|strategy| setup(strategy, capabilities))
    });
    let image = Image::of_this_machine();
    for [mounts, cri, annotations] in setups {
        let node = Node::start_with(&driver, mounts).await;
        let mounts = node.allocate(&[0]).await;
        let questions = questions(&mounts, &image);
        let settings = [(User::Root, true), (User::Other, false)];
        let settings = settings.map(|(user, read_only)| Setting { user, read_only });
        let by_runc = settings.map(|setting| node.run(&mounts, &image, setting));
        for (setting, by_runc) in settings.into_iter().zip(&by_runc) {
            let found = containerd.run(&mounts, setting, &questions).await;
            let found = found.expect("a container");
            node.assert_findings(&mounts, &image, setting.user, &found);
            assert_no_variable(&found);
            assert_same(&found, by_runc);
        }
        drop(node);
        for setup in [cri, annotations] {
            println!("{}", setup.strategy);
            let node = Node::start_with(&driver, setup).await;
            let answer = node.allocate(&[0]).await;
            assert!(
                answer.mounts.is_empty() && answer.devices.is_empty(),
                "{answer:?}"
            );
            for (setting, by_runc) in settings.into_iter().zip(&by_runc) {
                let found = containerd.run(&answer, setting, &questions).await;
                let found = found.expect("a container");
                assert_no_variable(&found);
                assert_same(&found, by_runc);
            }
        }
    }
}

/// That the devices came by the spec: without it there is no container.
#[tokio::test(flavor = "multi_thread")]
async fn containerd_refuses_a_container_whose_cdi_spec_is_gone() {
    const TEST: &str = "containerd_refuses_a_container_whose_cdi_spec_is_gone";
    let Some(driver) = newest(TEST) else {
        return;
    };
    let Some(mut containerd) = Containerd::start(TEST).await else {
        return;
    };
    for strategy in ["cdi-cri", "cdi-annotations"] {
        let setup = Setup {
            strategy,
            cdi: Some(containerd.cdi_folder()),
            ..Setup::default()
        };
        let node = Node::start_with(&driver, setup).await;
        let answer = node.allocate(&[0]).await;
        drop(node);
        for spec in fs::read_dir(containerd.cdi_folder())
            .expect("specs")
            .flatten()
        {
            fs::remove_file(spec.path()).expect("remove the spec");
        }
        let refused = containerd.run(&answer, User::Root.into(), &[]).await;
        let why = refused.expect_err("no container");
        assert!(why.contains("unresolvable CDI devices"), "{why}");
    }
}

/// What is gone on the host becomes a folder there by the next container that is
/// to have it; so the plugin answers nothing that is not there.
#[tokio::test(flavor = "multi_thread")]
async fn a_missing_file_would_become_a_folder_and_is_not_answered() {
    const TEST: &str = "a_missing_file_would_become_a_folder_and_is_not_answered";
    let Some(driver) = newest(TEST) else {
        return;
    };
    let Some(mut containerd) = Containerd::start(TEST).await else {
        return;
    };
    let folder = tempfile::tempdir().expect("create a folder for a driver");
    let driver = driver.copied(folder.path());
    let setup = Setup {
        volume: "never",
        ..Setup::default()
    };
    let node = Node::start_with(&driver, setup).await;
    let before = node.allocate(&[0]).await;
    let libcuda = driver.file("libcuda.so.1").to_owned();
    fs::remove_file(&libcuda).expect("remove libcuda");
    let refused = node.running.allocate(&[0]).await;
    let refused = refused.expect_err("no answer without libcuda");
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(refused.message().contains("libcuda.so"), "{refused}");
    assert!(!libcuda.exists(), "the plugin made it");

    let found = containerd.run(&before, User::Root.into(), &[]).await;
    println!("a container with what is gone: {:?}", found.err());
    assert!(libcuda.is_dir(), "containerd does so no more");
}

/// The runtime's own and the image's, and none that a loader or a driver reads.
fn assert_no_variable(findings: &Findings) {
    for variable in findings.all("env").keys() {
        let name = variable.split('=').next().unwrap_or_default();
        assert!(["HOME", "HOSTNAME", "PATH"].contains(&name), "{variable}");
    }
}

fn assert_same(one: &Findings, other: &Findings) {
    let (one, other) = (one.but_environment(), other.but_environment());
    let differing: Vec<_> = one.symmetric_difference(&other).collect();
    assert!(differing.is_empty(), "{differing:?}");
}

// === Device nodes ===

#[tokio::test(flavor = "multi_thread")]
async fn a_container_may_use_its_own_gpus_alone() {
    for driver in drivers("a_container_may_use_its_own_gpus_alone") {
        let node = Node::start(&driver).await;
        for user in [User::RootWithNodes, User::Other] {
            for gpus in [&[1][..], &[0, 2]] {
                node.assert_own_gpus(gpus, user).await;
            }
        }
    }
}

/// A reload of systemd's is not tried here: it takes systemd as the first process,
/// and `runc update` alone leaves the devices out of what it applies again.
#[tokio::test(flavor = "multi_thread")]
async fn a_container_gets_the_device_nodes_that_the_plugin_made() {
    for driver in drivers("a_container_gets_the_device_nodes_that_the_plugin_made") {
        let node = {
            let nodes = false;
            Node::start_with(
                &driver,
                Setup {
                    nodes,
                    ..Setup::default()
                },
            )
            .await
        };
        for user in [User::Root, User::Other] {
            for gpus in [&[3][..], &[0, 2]] {
                node.assert_own_gpus(gpus, user).await;
                let links = node.running.node.dev().join("char");
                node.nodes.assert_linked(&node.minors(gpus), &links);
            }
        }
    }
}

// === Figures ===

/// What the mounts of an answer add to a container's start. A figure, and no bound:
/// `DRIVER_ROOTS=… cargo test --test containers -- --ignored --nocapture`
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn what_mounts_add_to_the_start_of_a_container() {
    const TIMES: usize = 20;
    let Some(driver) = newest("what_mounts_add_to_the_start_of_a_container") else {
        return;
    };
    let mut answers = Vec::new();
    for capabilities in ["compute,utility", "all"] {
        let setup = Setup {
            capabilities,
            ..Setup::default()
        };
        let node = Node::start_with(&driver, setup).await;
        answers.push((capabilities, node.allocate(&[0]).await, node));
    }
    let mut none = answers[0].1.clone();
    none.mounts.clear();
    let mut cases = vec![("no mounts", none)];
    let given = answers.iter();
    cases.extend(given.map(|(name, answer, _)| (*name, answer.clone())));
    let image = Image::of_this_machine();
    let mut times = vec![Vec::new(); cases.len()];
    // In turns: what else the machine does hits all alike.
    for _ in 0..TIMES {
        for (times, (_, answer)) in times.iter_mut().zip(&cases) {
            times.push(time_to_start(answer, &image));
        }
    }
    for (times, (name, answer)) in times.iter_mut().zip(&cases) {
        times.sort();
        println!(
            "{name}: {} mounts, runc create and start {:?} (median of {TIMES}; {:?} to {:?})",
            answer.mounts.len(),
            times[TIMES / 2],
            times[0],
            times[TIMES - 1]
        );
    }
}
