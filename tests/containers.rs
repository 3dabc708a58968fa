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

mod common;
#[path = "containers/driver.rs"]
mod driver;
#[path = "containers/image.rs"]
mod image;
#[path = "containers/node.rs"]
mod node;
#[path = "containers/runtime.rs"]
mod runtime;

use common::system::skip;
use driver::{drivers, newest};
use image::{Image, LIB64, Layout};
use node::{Node, Setup};
use runtime::{Setting, User};

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
    for driver in drivers("computing_works_in_whole_images") {
        let node = Node::start(&driver).await;
        for image in images("computing_works_in_whole_images") {
            for (user, read_only) in users {
                node.assert_driver(&image, Setting { user, read_only })
                    .await;
            }
        }
    }
}

/// All that a driver has, in the oldest image and the newest: which libraries a
/// C library of this age may lack, the ends show.
#[tokio::test(flavor = "multi_thread")]
async fn every_library_of_the_whole_driver_loads_in_whole_images() {
    const TEST: &str = "every_library_of_the_whole_driver_loads_in_whole_images";
    for driver in drivers(TEST) {
        let capabilities = "all";
        let setup = Setup {
            capabilities,
            ..Setup::default()
        };
        let node = Node::start_with(&driver, setup).await;
        for image in images(TEST) {
            node.assert_driver(&image, User::Root.into()).await;
        }
    }
}

/// Distributions' root file systems; where there are none, that is said.
fn images(test: &str) -> Vec<Image> {
    let images = Image::whole();
    if images.is_empty() {
        skip(
            test,
            "needs IMAGE_ROOTS, a LIBC_ROOTS to build for them, and unshare",
        );
    }
    images
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
