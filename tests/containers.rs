//! The answer of Allocate in real containers, with a real driver's files and
//! without a kubelet: the plugin's binary answers, runc applies.
//!
//! Runs as root where runc, cc and ldd are, and `DRIVER_ROOTS` names unpacked
//! drivers as in tests/driver_files.rs. `LIBC_ROOTS` names unpacked C libraries
//! of distributions, in the same way, for the images that this machine cannot
//! stand for; `.ci/driver-packages` and `.ci/libc-packages` make both.
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
#[path = "containers/image.rs"]
mod image;
#[path = "containers/runtime.rs"]
mod runtime;

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use common::device_nodes::{DeviceNodes, forbidden};
use common::nvml::SimulatedNode;
use common::probe::Findings;
use common::running::{Running, options};
use common::system::{is_root, on_path, skip};
use gpu_device_plugin::api::v1beta1::ContainerAllocateResponse;
use image::{Image, LIB64};
use runtime::{ENVIRONMENT, EVERY_GPU, User, run};

const GPUS: usize = 4;

/// What no container can do without; which libraries a branch has is
/// tests/driver_files.rs's to say.
const LEAST: [&str; 4] = [
    "libcuda.so.1",
    "libnvidia-ml.so.1",
    "libnvidia-nvvm.so.4",
    "libnvidia-ptxjitcompiler.so.1",
];

/// `cuInit`: `CUDA_ERROR_NO_DEVICE`. `nvmlInit_v2` and nvidia-smi:
/// `NVML_ERROR_DRIVER_NOT_LOADED`.
const WITHOUT_MODULE: [(&str, &str, &str); 3] = [
    ("call", "libcuda.so.1:cuInit", "100"),
    ("call", "libnvidia-ml.so.1:nvmlInit_v2", "9"),
    ("run", "/usr/bin/nvidia-smi", "9"),
];

// === Libraries ===

#[tokio::test(flavor = "multi_thread")]
async fn every_library_loads_by_its_soname() {
    for driver in drivers("every_library_loads_by_its_soname") {
        let node = Node::start(&driver).await;
        let image = Image::of_this_machine();
        node.assert_driver(&image, User::Root).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_library_loads_for_a_user_who_is_not_root() {
    for driver in drivers("every_library_loads_for_a_user_who_is_not_root") {
        let node = Node::start(&driver).await;
        let image = Image::of_this_machine();
        node.assert_driver(&image, User::Other).await;
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
    let mut images = Image::with_libraries(&paths("LIBC_ROOTS"));
    images.retain(which);
    if images.is_empty() {
        return skip(test, "LIBC_ROOTS names no such C library");
    }
    for driver in drivers {
        let node = Node::start(&driver).await;
        for image in &images {
            node.assert_driver(image, User::Root).await;
        }
    }
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
        let node = Node::start_without_nodes(&driver).await;
        for user in [User::Root, User::Other] {
            for gpus in [&[3][..], &[0, 2]] {
                node.assert_own_gpus(gpus, user).await;
                let links = node.running.node.dev().join("char");
                node.nodes.assert_linked(&node.minors(gpus), &links);
            }
        }
    }
}

// === The node ===

/// Unpacked packages of one driver.
struct Driver {
    root: PathBuf,
    version: String,
}

/// The drivers to test with. None where this machine lacks what it takes, which
/// is said.
fn drivers(test: &str) -> Vec<Driver> {
    let lacking = ["runc", "cc", "ldd"]
        .into_iter()
        .find(|program| on_path(program).is_none());
    let why = if !is_root() {
        "not root".to_owned()
    } else if let Some(program) = lacking {
        format!("no {program} on PATH")
    } else if Path::new("/sys/module/nvidia").exists() {
        "a kernel module of NVIDIA's is loaded, which tests/real_gpu is for".to_owned()
    } else if paths("DRIVER_ROOTS").is_empty() {
        "DRIVER_ROOTS names no unpacked driver".to_owned()
    } else if let Some(why) = runtime::unable() {
        format!("runc runs no container here: {why}")
    } else {
        let drivers = paths("DRIVER_ROOTS").into_iter().map(|root| {
            let version = root.file_name().expect("a root called by its version");
            let version = version.to_string_lossy().into_owned();
            Driver { root, version }
        });
        return drivers.collect();
    };
    skip(test, &why);
    Vec::new()
}

/// The folders that a variable names.
fn paths(variable: &str) -> Vec<PathBuf> {
    let paths = env::var_os(variable).unwrap_or_default();
    let paths = env::split_paths(&paths).filter(|path| !path.as_os_str().is_empty());
    let real = |path: PathBuf| match fs::canonicalize(&path) {
        Ok(real) => real,
        Err(error) => panic!("{variable}: {}: {error}", path.display()),
    };
    paths.map(real).collect()
}

/// A node with simulated GPUs and a real driver's files.
struct Node<'d> {
    driver: &'d Driver,
    running: Running,
    nodes: DeviceNodes,
    dev: PathBuf,
}

impl<'d> Node<'d> {
    async fn start(driver: &'d Driver) -> Self {
        Self::start_with(driver, |dev, _| DeviceNodes::make(dev, GPUS)).await
    }

    /// With modules loaded, and nothing in /dev.
    async fn start_without_nodes(driver: &'d Driver) -> Self {
        let load = |dev: &Path, node: &SimulatedNode| {
            fs::create_dir_all(dev).expect("create the folder of device nodes");
            let nodes = DeviceNodes::to_be_made();
            node.load_modules(&nodes.modules());
            nodes
        };
        Self::start_with(driver, load).await
    }

    async fn start_with(
        driver: &'d Driver,
        nodes: impl FnOnce(&Path, &SimulatedNode) -> DeviceNodes,
    ) -> Self {
        let node = SimulatedNode::with(GPUS, |state| {
            state.driver_version.clone_from(&driver.version);
            // A GPU's number is not its index.
            let minors: Vec<_> = state.gpus.iter().map(|gpu| gpu.minor_number).collect();
            for (gpu, minor) in state.gpus.iter_mut().zip(minors.into_iter().rev()) {
                gpu.minor_number = minor;
            }
        });
        let dev_root = node.root().join("real-nodes");
        let dev = dev_root.join("dev");
        let nodes = nodes(&dev, &node);
        let state = node.root().join("state");
        let folders = [&driver.root, &dev_root, &state];
        let [driver_root, dev_root, state] = folders.map(|folder| folder.display().to_string());
        let flags = ["--driver-root", &driver_root, "--dev-root", &dev_root];
        let flags = [&flags[..], &["--state-dir", &state]].concat();
        let running = Running::on(node, options(), &flags).await;
        running.counts(GPUS, GPUS).await;
        Self {
            driver,
            running,
            nodes,
            dev,
        }
    }

    /// What Allocate answers for the GPUs at these positions.
    async fn allocate(&self, gpus: &[usize]) -> ContainerAllocateResponse {
        let answer = self.running.allocate(gpus).await.expect("an answer");
        let mut containers = answer.container_responses;
        assert_eq!(containers.len(), 1, "one answer a container");
        let answer = containers.remove(0);
        // Nothing here would apply those.
        assert!(answer.cdi_devices.is_empty(), "{answer:?}");
        answer
    }

    fn minors(&self, gpus: &[usize]) -> BTreeSet<u32> {
        let state = self.running.node.state();
        let minors = gpus.iter().map(|at| state.gpus[*at].minor_number);
        minors.collect()
    }

    /// Every file of the answer is there, is the driver's own, and works.
    async fn assert_driver(&self, image: &Image, user: User) {
        let version = &self.driver.version;
        println!("driver {version}, C library of {}, {user:?}", image.name());
        let answer = self.allocate(&[0]).await;
        let questions = WITHOUT_MODULE.map(|(_, question, _)| question);
        let findings = run(&answer, image, &self.dev, user, &questions);
        assert_plain_environment(&findings);
        self.nodes.assert_given(&self.minors(&[0]), &findings);
        self.assert_files(&answer, image, user, &findings);
        assert_loaded(&answer, image, &findings);
        for (kind, question, answer) in WITHOUT_MODULE {
            let said = findings.all(kind).get(question).copied();
            assert_eq!(said, Some(answer), "{question}: {findings:?}");
        }
    }

    /// The container has the answer's files, read-only, and each is the one file
    /// of that name among the driver's.
    fn assert_files(
        &self,
        answer: &ContainerAllocateResponse,
        image: &Image,
        user: User,
        findings: &Findings,
    ) {
        // Where the probe looks: a loader's other folder is not on its way.
        let folders = [image.library_folder(), LIB64, "/usr/bin"].map(Path::new);
        let places = answer.mounts.iter().map(|mount| &*mount.container_path);
        let places = places.filter(|place| {
            let folder = Path::new(place).parent();
            folder.is_some_and(|folder| folders.contains(&folder))
        });
        let real: BTreeMap<_, _> = places
            .map(|place| (place, identity(&self.driver.root, place)))
            .collect();
        let found = findings.all("is");
        let found = found
            .into_iter()
            .map(|(place, identity)| (place, identity.to_owned()));
        assert_eq!(found.collect::<BTreeMap<_, _>>(), real);
        let writable = findings.all("file");
        let word = if user == User::Other {
            "EACCES"
        } else {
            "EROFS"
        };
        assert!(writable.values().all(|is| *is == word), "{writable:?}");
    }

    /// The container sees the nodes of its GPUs, and cannot use those of others,
    /// neither where somebody gave them nor where it makes them.
    async fn assert_own_gpus(&self, gpus: &[usize], user: User) {
        let minors = self.minors(gpus);
        println!("GPUs {minors:?}, {user:?}");
        let answer = self.allocate(gpus).await;
        let image = Image::of_this_machine();
        let every = format!("{EVERY_GPU}/");
        let mut findings = run(&answer, &image, &self.dev, user, &[&every]);
        let given = findings.take("node", &every);
        self.nodes.assert_given(&minors, &findings);
        assert_eq!(given.len(), GPUS + 3, "{given:?}");
        for (path, found) in given {
            let (numbers, opened) = found.split_once(' ').expect("numbers and a word");
            let gpu = numbers
                .strip_prefix("195:")
                .and_then(|gpu| gpu.parse().ok());
            let others = gpu.is_some_and(|gpu: u32| gpu != 255 && !minors.contains(&gpu));
            assert_eq!(opened == "EPERM", others, "{path} {found}");
            assert_eq!(forbidden(opened), others, "{path} {found}");
        }
        if user == User::RootWithNodes {
            self.nodes.assert_makes_none(&minors, &findings);
        }
    }
}

/// Neither the loader's variable nor any other is set.
fn assert_plain_environment(findings: &Findings) {
    let environment = findings.all("env");
    let variables: Vec<_> = environment.into_keys().collect();
    assert_eq!(variables, ENVIRONMENT);
}

/// Each library of the answer was opened by its SONAME, from the folder that its
/// image's loader searches.
fn assert_loaded(answer: &ContainerAllocateResponse, image: &Image, findings: &Findings) {
    let folder = Path::new(image.library_folder());
    let mounts = answer.mounts.iter();
    let places = mounts.filter_map(|mount| {
        let place = Path::new(&mount.container_path);
        (place.parent() == Some(folder)).then(|| place.file_name()?.to_str())?
    });
    let sonames: BTreeSet<_> = places.collect();
    for least in LEAST {
        assert!(sonames.contains(least), "no {least} in {sonames:?}");
    }
    let loaded = findings.all("loaded");
    let unloadable = findings.all("unloadable");
    for soname in sonames {
        if let Some(why) = unloadable.get(soname) {
            // OpenSSL is not the driver's: an image that wants this one has it.
            let openssl = soname.contains("pkcs11") && why.contains("libcrypto.so");
            assert!(openssl, "{soname}: {why}");
            continue;
        }
        let from = loaded.get(soname).map(|path| Path::new(path).parent());
        // A loader may call /usr/lib64 /lib64, where that is a link.
        let short = Path::new("/").join(folder.strip_prefix("/usr").expect("a folder of /usr"));
        let expected = [Some(Some(folder)), Some(Some(&short))];
        assert!(expected.contains(&from), "{soname}: {findings:?}");
    }
}

/// Device and inode of the driver's one file for that place. Libraries go by
/// their names up to `.so.`: this asks nothing of the plugin's own search.
fn identity(root: &Path, place: &str) -> String {
    let name = Path::new(place).file_name().expect("a file's name");
    let name = name.to_string_lossy();
    let stem = name.find(".so.").map(|end| &name[..end + 4]);
    let wanted = |other: &str| stem.map_or(other == name, |stem| other.starts_with(stem));
    let mut found = Vec::new();
    for folder in ["usr/bin", "usr/lib", "usr/lib64"] {
        collect(&root.join(folder), &wanted, &mut found);
    }
    let [file] = &found[..] else {
        panic!("not one {name} in {}: {found:?}", root.display());
    };
    let file = fs::metadata(file).expect("a file of the driver's");
    format!("{}:{}", file.dev(), file.ino())
}

fn collect(folder: &Path, wanted: &impl Fn(&str) -> bool, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let kind = entry.file_type().expect("a file's kind");
        let name = entry.file_name();
        if kind.is_dir() {
            collect(&entry.path(), wanted, found);
        } else if kind.is_file() && wanted(&name.to_string_lossy()) {
            found.push(entry.path());
        }
    }
}
