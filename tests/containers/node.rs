//! A node with simulated GPUs and a real driver's files, and what its containers
//! find.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use gpu_device_plugin::api::v1beta1::ContainerAllocateResponse;

use crate::common::device_nodes::{DeviceNodes, forbidden};
use crate::common::nvml::SimulatedNode;
use crate::common::probe::Findings;
use crate::common::running::{Running, options};
use crate::driver::{Driver, Way, identity, look};
use crate::image::Image;
use crate::runtime::{EVERY_GPU, Setting, User, run};

pub const GPUS: usize = 4;

/// Where images look that were made for NVIDIA's container runtime.
pub const OWN_FOLDER: &str = "/usr/local/nvidia";

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
    ("run", "nvidia-smi", "9"),
];

/// The first that nvidia-smi says then.
const SAID: &str = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.";

/// What may fail to load, and for want of what alone: a system's own libraries,
/// that an image has which wants these.
const EXCUSED: [(&str, &[&str]); 10] = [
    ("libGLX_nvidia.so", &["libX11.so.6", "libXext.so.6"]),
    ("libGLX_indirect.so", &["libX11.so.6", "libXext.so.6"]),
    ("libnvidia-egl-gbm.so", &["libgbm.so.1", "libdrm.so.2"]),
    (
        "libnvidia-egl-wayland.so",
        &[
            "libwayland-server.so.0",
            "libwayland-client.so.0",
            "libdrm.so.2",
        ],
    ),
    (
        "libnvidia-fbc.so",
        &["libGL.so.1", "libX11.so.6", "libXext.so.6"],
    ),
    (
        "libnvidia-ifr.so",
        &["libGL.so.1", "libX11.so.6", "libXext.so.6"],
    ),
    ("libnvidia-pkcs11.so", &["libcrypto.so.1.1"]),
    ("libnvidia-pkcs11-openssl3.so", &["libcrypto.so.3"]),
    (
        "libnvidia-vulkan-producer.so",
        &["libEGL.so.1", "libwayland-client.so.0"],
    ),
    ("libvdpau_nvidia.so", &["libX11.so.6", "libXext.so.6"]),
];

/// How a plugin is started.
#[derive(Debug)]
pub struct Setup {
    pub capabilities: &'static str,
    /// `--driver-volume`.
    pub volume: &'static str,
    pub strategy: &'static str,
    /// `--cdi-root`, if not the node's own folder.
    pub cdi: Option<PathBuf>,
    /// Where the state is, if not in the node's own folder.
    pub state: Option<PathBuf>,
    /// Whether device nodes are there, or only their modules.
    pub nodes: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            capabilities: "compute,utility",
            volume: "always",
            strategy: "mounts",
            cdi: None,
            state: None,
            nodes: true,
        }
    }
}

/// A node with simulated GPUs and a real driver's files.
pub struct Node {
    pub driver: Driver,
    pub running: Running,
    pub nodes: DeviceNodes,
    pub dev: PathBuf,
    state: PathBuf,
    in_place: bool,
}

impl Node {
    pub async fn start(driver: &Driver) -> Self {
        Self::start_with(driver, Setup::default()).await
    }

    pub async fn start_with(driver: &Driver, setup: Setup) -> Self {
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
        let nodes = if setup.nodes {
            DeviceNodes::make(&dev, GPUS)
        } else {
            fs::create_dir_all(&dev).expect("create the folder of device nodes");
            let nodes = DeviceNodes::to_be_made();
            node.load_modules(&nodes.modules());
            nodes
        };
        let state = setup.state.unwrap_or_else(|| node.root().join("state"));
        let cdi = setup.cdi.unwrap_or_else(|| node.root().join("cdi"));
        let folders = [&driver.root, &dev_root, &state, &cdi];
        let [driver_root, dev_root, state_dir, cdi] =
            folders.map(|folder| folder.display().to_string());
        let flags = [
            ["--driver-root", &driver_root],
            ["--dev-root", &dev_root],
            ["--state-dir", &state_dir],
            ["--cdi-root", &cdi],
            ["--driver-capabilities", setup.capabilities],
            ["--driver-volume", setup.volume],
            ["--device-list-strategy", setup.strategy],
        ];
        let running = Running::on(node, options(), flags.as_flattened()).await;
        running.counts(GPUS, GPUS).await;
        Self {
            driver: driver.clone(),
            running,
            nodes,
            dev,
            state,
            in_place: setup.volume == "never",
        }
    }

    /// What Allocate answers for the GPUs at these positions.
    pub async fn allocate(&self, gpus: &[usize]) -> ContainerAllocateResponse {
        let answer = self.running.allocate(gpus).await.expect("an answer");
        let mut containers = answer.container_responses;
        assert_eq!(containers.len(), 1, "one answer a container");
        containers.remove(0)
    }

    pub fn minors(&self, gpus: &[usize]) -> BTreeSet<u32> {
        let state = self.running.node.state();
        let minors = gpus.iter().map(|at| state.gpus[*at].minor_number);
        minors.collect()
    }

    /// Every file of the answer is there, is the driver's own, and works.
    pub async fn assert_driver(&self, image: &Image, setting: Setting) {
        let version = &self.driver.version;
        println!("driver {version}, image {}, {setting:?}", image.name());
        let answer = self.allocate(&[0]).await;
        // Nothing here would apply those.
        assert!(answer.cdi_devices.is_empty(), "{answer:?}");
        let findings = self.run(&answer, image, setting);
        assert_plain_environment(image, &findings);
        self.assert_findings(&answer, image, setting.user, &findings);
    }

    /// What a container with that answer finds.
    pub fn run(
        &self,
        answer: &ContainerAllocateResponse,
        image: &Image,
        setting: Setting,
    ) -> Findings {
        run(answer, image, &self.dev, setting, &questions(answer, image))
    }

    /// The same of what a container that had the answer found, but for its
    /// variables.
    pub fn assert_findings(
        &self,
        answer: &ContainerAllocateResponse,
        image: &Image,
        user: User,
        findings: &Findings,
    ) {
        self.assert_files(answer, image, user, findings);
        self.nodes.assert_given(&self.minors(&[0]), findings);
        assert_loaded(answer, image, findings);
        assert_without_module(findings);
    }

    /// The container has the answer's files and nothing else of a driver's,
    /// read-only, and each is the one file of that name among the driver's.
    fn assert_files(
        &self,
        answer: &ContainerAllocateResponse,
        image: &Image,
        user: User,
        findings: &Findings,
    ) {
        let given = given(answer);
        let way = if self.in_place {
            Way::Link
        } else {
            Way::between(&self.driver.root, &self.state)
        };
        let sources: BTreeSet<_> = given.values().collect();
        let from = if self.in_place {
            &self.driver.root
        } else {
            &self.state
        };
        for source in sources {
            assert!(source.starts_with(from), "{}", source.display());
            self.driver.assert_owns(source, way);
        }
        let found = findings.all("is");
        for (place, source) in &given {
            let expected = identity(&look(source));
            assert_eq!(found.get(&**place), Some(&&*expected), "{place}");
        }
        if !image.has_driver() {
            let found: BTreeSet<_> = found.into_keys().collect();
            let given: BTreeSet<_> = given.keys().map(String::as_str).collect();
            assert_eq!(found, given);
        }
        let word = if user == User::Other {
            "EACCES"
        } else {
            "EROFS"
        };
        let writable = findings.all("file");
        for place in given.keys() {
            assert_eq!(writable.get(&**place), Some(&word), "{place}");
        }
    }

    /// The container sees the nodes of its GPUs, and cannot use those of others,
    /// neither where somebody gave them nor where it makes them.
    pub async fn assert_own_gpus(&self, gpus: &[usize], user: User) {
        let minors = self.minors(gpus);
        println!("GPUs {minors:?}, {user:?}");
        let answer = self.allocate(gpus).await;
        let image = Image::of_this_machine();
        let every = format!("{EVERY_GPU}/");
        let questions = [every.clone()];
        let mut findings = run(&answer, &image, &self.dev, user.into(), &questions);
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

/// What the probe is to be asked of an answer: each file, libraries that no loader
/// finds by their SONAMEs alone, and the driver itself.
pub fn questions(answer: &ContainerAllocateResponse, image: &Image) -> Vec<String> {
    let files = given(answer).into_keys().map(|place| format!("?{place}"));
    let loads = libraries(answer, image)
        .into_iter()
        .map(|name| format!("+{name}"));
    let driver = WITHOUT_MODULE.map(|(_, question, _)| question.to_owned());
    files.chain(loads).chain(driver).collect()
}

/// Every file that an answer gives, by its place in the container, with the
/// host's file.
fn given(answer: &ContainerAllocateResponse) -> BTreeMap<String, PathBuf> {
    let mut given = BTreeMap::new();
    for mount in &answer.mounts {
        assert!(mount.read_only, "{mount:?}");
        let host = Path::new(&mount.host_path);
        if !host.is_dir() {
            given.insert(mount.container_path.clone(), host.into());
            continue;
        }
        let mut folders = vec![host.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).expect("a volume's folder").flatten() {
                let path = entry.path();
                let below = path.strip_prefix(host).expect("a file of the volume");
                if path.is_dir() {
                    folders.push(path);
                } else if below.components().count() > 1 {
                    // What lies beside the folders is the volume's own.
                    let place = Path::new(&mount.container_path).join(below);
                    given.insert(place.display().to_string(), path);
                }
            }
        }
    }
    given
}

/// The libraries of an answer as programs in the image open them: by the SONAME,
/// or by the path below the loader's folder.
fn libraries(answer: &ContainerAllocateResponse, image: &Image) -> Vec<String> {
    let folder = Path::new(image.library_folder());
    let libraries = answer.mounts.iter().filter_map(|mount| {
        let place = Path::new(&mount.container_path);
        let below = place.strip_prefix(folder).ok()?.to_str()?;
        let below = below.contains(".so").then_some(below)?;
        // X.Org's modules are of use to X.Org alone.
        Some(match below.split_once('/') {
            None => below.to_owned(),
            Some(_) => mount.container_path.clone(),
        })
    });
    libraries.collect()
}

/// Neither the loader's variable nor any other is set.
fn assert_plain_environment(image: &Image, findings: &Findings) {
    let environment = findings.all("env");
    let ours: BTreeSet<_> = environment.into_keys().collect();
    let images: BTreeSet<_> = image.environment().iter().map(String::as_str).collect();
    assert_eq!(ours, images);
}

/// Each library of the answer was opened by its SONAME, from the folder that its
/// image's loader searches.
fn assert_loaded(answer: &ContainerAllocateResponse, image: &Image, findings: &Findings) {
    let libraries = libraries(answer, image);
    for least in LEAST {
        let least = least.to_owned();
        assert!(libraries.contains(&least), "no {least} in {libraries:?}");
    }
    let loaded = findings.all("loaded");
    let unloadable = findings.all("unloadable");
    for name in &libraries {
        let name = name.as_str();
        if let Some(why) = unloadable.get(name) {
            assert!(excused(name, why), "{name}: {why}");
            println!("{name} takes what this image lacks: {why}");
            continue;
        }
        let path = loaded
            .get(name)
            .unwrap_or_else(|| panic!("{name}: {findings:?}"));
        if !name.starts_with('/') {
            assert_comes_from(image, name, path);
        }
    }
    for required in LEAST {
        assert!(loaded.contains_key(required), "{required}: {findings:?}");
    }
}

fn excused(name: &str, why: &str) -> bool {
    let file = name.rsplit('/').next().unwrap_or_default();
    let (stem, _) = file.split_once(".so").unwrap_or_default();
    let own = EXCUSED
        .iter()
        .find(|(name, _)| name.strip_suffix(".so") == Some(stem));
    own.is_some_and(|(_, foreign)| {
        foreign
            .iter()
            .any(|lacking| why.starts_with(&format!("{lacking}: cannot open shared object file")))
    })
}

/// A loader may call /usr/lib64 /lib64, where that is a link.
fn assert_comes_from(image: &Image, name: &str, path: &str) {
    let folder = image.loads_from(name);
    let short = folder.strip_prefix("/usr").unwrap_or(folder);
    let from = Path::new(path).parent().expect("a library's folder");
    assert!(
        [Path::new(folder), Path::new(short)].contains(&from),
        "{name} from {path}, and not from {folder}"
    );
}

/// The driver's code ran, and answers that there is no module.
pub fn assert_without_module(findings: &Findings) {
    for (kind, question, answer) in WITHOUT_MODULE {
        let said = findings.all(kind).get(question).copied();
        assert_eq!(said, Some(answer), "{question}: {findings:?}");
    }
    let said = findings.all("said")["nvidia-smi"];
    assert!(said.starts_with(SAID), "{said}");
}
