//! Watches the GPUs: keeps a session with the GPU library, enumerates, probes
//! and listens, and publishes what it finds as snapshots.
//!
//! One task owns the inventory. Every call of the library runs on another thread
//! ([`calls`]) and comes back as an answer, so nothing that hangs in the driver
//! holds up the task, and nothing but the task's snapshots is read when the
//! kubelet asks.

mod heard;
mod kept_file;
mod kernel_log;
mod nodes;
mod published;
mod session;
mod spec_file;
mod subscription;
mod tidy;
mod untold;
mod xids;

use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::config::{Config, HealthOptions};
use crate::device::{Snapshots, UnhealthyReason};
use crate::driver;
use crate::driver::nodes::Keeper;
use crate::driver::supply::{InPlace, Origin, Supplier, Supply, SupplyError};
use crate::gpu::calls::{self, Calls, Outcome};
use crate::gpu::loader::Loader;
use crate::gpu::nvml::NvmlLibrary;
use crate::gpu::{ErrorKind, GpuLibrary, LibraryError, OpenError};
use crate::health::kept::since_boot;
use crate::health::report::HealthReport;
use crate::inventory::{Inventory, Looked, Node, Rules, Watched};
use crate::kubelet::checkpoint::Held;
use crate::metrics::{Metrics, NvmlLabels};
use crate::readiness::Readiness;
use nodes::Nodes;

use self::heard::{Ask, Xids};
use self::kept_file::KeptFile;
use self::published::Published;
pub use self::published::Resources;
use self::spec_file::SpecFile;
use self::tidy::Tidy;
use self::untold::Untold;

/// The part of [`Readiness`] that the session is.
const DRIVER: &str = "driver";
/// The part of [`Readiness`] that the first enumeration is.
const GPUS: &str = "gpus";
/// The part of [`Readiness`] that the files for containers are.
const DRIVER_FILES: &str = "driver files";
/// The part of [`Readiness`] that the layout of MIG devices is.
const MIG: &str = "MIG devices";
/// The part of [`Readiness`] that `/dev/nvidiactl` and its like are.
const DEVICE_NODES: &str = "device nodes";

const FIRST_RETRY: Duration = Duration::from_millis(200);
const LONGEST_RETRY: Duration = Duration::from_secs(5);
/// A session that lasted this long was a good one.
const STEADY: Duration = Duration::from_secs(30);

/// Opens a session with the GPU library. May block.
pub type Opener = dyn Fn() -> Result<Arc<dyn GpuLibrary>, OpenError> + Send + Sync;

/// Opens NVML where the configuration says: the library that was named, else
/// the driver root's or that of a driver volume, else the loader's.
pub fn nvml_opener(config: &Config) -> Arc<Opener> {
    let paths = config.paths.clone();
    let supplier = Supplier::new(config);
    let loader = Loader::default();
    Arc::new(move || {
        let library = paths.nvml_library.clone();
        let module = driver::kernel_module_version(&paths.procfs, &paths.sysfs);
        let library = library.or_else(|| supplier.nvml_library(module.as_deref()));
        match NvmlLibrary::open(&loader, library.as_deref(), &paths.sysfs, module) {
            Ok(nvml) => Ok(Arc::new(nvml) as Arc<dyn GpuLibrary>),
            // It was the loader's turn because the driver root has none.
            Err(OpenError::NoLibrary(loader)) if library.is_none() => {
                Err(OpenError::NoLibrary(format!(
                    "none under the driver root {}, and {loader}",
                    paths.driver_root
                )))
            }
            Err(error) => Err(error),
        }
    })
}

/// The task that watches the GPUs.
pub struct Monitor {
    open: Arc<Opener>,
    config: Config,
    metrics: Arc<Metrics>,
    readiness: Readiness,
    /// Woken to look at everything again at once.
    rescan: Arc<Notify>,
    inventory: Inventory,
    /// The XIDs that were heard.
    xids: Xids,
    xid_sender: xids::Sender,
    /// What outlives the process.
    kept: KeptFile,
    options: watch::Receiver<HealthOptions>,
    supplier: Supplier,
    tidy: Tidy,
    node: Node,
    nodes: Nodes,
    /// Our CDI spec.
    spec_file: SpecFile,
    /// Whether every GPU has been looked at once.
    complete: bool,
    published: Published,
    /// What the snapshots that are published were made of.
    basis: Option<Basis>,
    untold: Untold,
    reports: watch::Sender<Arc<HealthReport>>,
}

/// What snapshots are made of: where it is the same, they are. The inventory and
/// the node count their changes.
struct Basis {
    revisions: (u64, u64),
    looked: Looked,
}

/// What the monitor is woken for, with a session or without.
enum Woken {
    Heard(xids::Heard),
    SpecFile(Outcome<(), spec_file::Attempt>),
    Options,
}

impl Monitor {
    /// A monitor that has seen nothing yet. `allocated` are the devices that
    /// the kubelet gave to pods before this process started: they are listed, found
    /// or not. Health is judged by the last of `options`.
    pub fn new(
        config: Config,
        open: Arc<Opener>,
        allocated: Vec<Held>,
        metrics: Arc<Metrics>,
        readiness: Readiness,
        rescan: Arc<Notify>,
        options: watch::Receiver<HealthOptions>,
    ) -> Self {
        readiness.missing(DRIVER, "not asked yet");
        readiness.missing(GPUS, "not enumerated yet");
        let (kept, left) = KeptFile::open(&config.paths, readiness.clone());
        let (xid_sender, xids) = Xids::new(left.kernel_log_seq);
        let rules = Rules::new(&config);
        let published = Published::new(rules.first_resource());
        let mut inventory = Inventory::new(rules, options.borrow().clone(), left.gpus);
        inventory.remember(since_boot(), allocated);
        let supplier = Supplier::new(&config);
        let tidy = Tidy::new(config.driver.volume_grace);
        let keeper = Keeper::new(&config);
        let driver = Err(UnhealthyReason::NoDriver("driver not asked yet".into()));
        let node = Node::new(&config, driver);
        Self {
            spec_file: SpecFile::new(node.cdi_spec().cloned(), readiness.clone()),
            open,
            config,
            metrics,
            readiness,
            rescan,
            inventory,
            xids,
            xid_sender,
            kept,
            options,
            supplier,
            tidy,
            nodes: Nodes::new(keeper),
            node,
            complete: false,
            published,
            basis: None,
            untold: Untold::default(),
            reports: watch::Sender::default(),
        }
    }

    /// What is published. The first complete snapshot of a resource comes after the
    /// first enumeration, and more resources may come with it or later.
    pub fn resources(&self) -> watch::Receiver<Resources> {
        self.published.resources()
    }

    /// The same for all who are not the kubelet.
    pub fn reports(&self) -> watch::Receiver<Arc<HealthReport>> {
        self.reports.subscribe()
    }

    /// Watches for ever.
    pub async fn run(mut self) {
        let kernel_log = kernel_log::listen(
            self.config.paths.kmsg.clone(),
            self.xids.seen(),
            self.xid_sender.clone(),
            self.readiness.clone(),
        );
        tokio::join!(kernel_log, self.watch());
    }

    async fn watch(&mut self) {
        let mut retry = retries();
        let mut opening = Calls::new(calls::DEADLINE);
        // Calls outlive a session: one that hangs is not made again in the next.
        let mut calls = Calls::steady(calls::DEADLINE);
        let mut supplies = Calls::new(calls::DEADLINE);
        self.begin_supply(&mut supplies);
        let mut failures = 0_u32;
        for number in 0.. {
            let library = self.open(&mut opening, &mut retry).await;
            let start = Instant::now();
            let session = session::Session::new(self, library, &mut calls, &mut supplies, number);
            let (error, scanned) = session.run().await;
            self.metrics.session.set(0);
            warn!(%error, "session with the driver ended");
            if scanned && start.elapsed() >= STEADY {
                // It worked for a while: a new session at once, and the devices
                // keep their health until that fails too.
                retry = retries();
                failures = 0;
                continue;
            }
            failures += 1;
            if failures > 1 || !scanned {
                self.no_driver(&OpenError::Failed(error));
            }
            self.pause(retry.next().unwrap_or(LONGEST_RETRY)).await;
        }
    }

    /// The module's version is known before NVML is loaded, and finding the driver's
    /// files takes as long as that: both at once. The session asks for them again,
    /// by the version that NVML tells.
    fn begin_supply(&self, supplies: &mut session::Supplies) {
        let paths = &self.config.paths;
        if let Some(version) = driver::kernel_module_version(&paths.procfs, &paths.sysfs) {
            let (supplier, of) = (self.supplier.clone(), version.clone());
            supplies.start(version, move || supplier.supply(&of));
            supplies.go();
        }
    }

    /// What there is to do with a session or without. Cancel safe.
    async fn next(&mut self) -> Woken {
        self.untold.tell().await;
        tokio::select! {
            heard = self.xids.next() => Woken::Heard(heard),
            written = self.spec_file.next() => Woken::SpecFile(written),
            Ok(()) = self.options.changed() => Woken::Options,
            never = self.kept.run() => match never {},
        }
    }

    /// Does it. Which GPUs are to be asked how they are.
    fn take(&mut self, woken: Woken) -> Ask {
        match woken {
            Woken::Heard(heard) => return self.heard(heard),
            Woken::SpecFile(written) => self.spec_file.came_back(written),
            Woken::Options => {
                let options = self.options.borrow_and_update().clone();
                self.inventory.set_options(since_boot(), options);
            }
        }
        self.publish();
        Ask::default()
    }

    /// Waits, and does meanwhile what there is to do.
    async fn pause(&mut self, time: Duration) {
        let end = sleep(time);
        tokio::pin!(end);
        loop {
            tokio::select! {
                () = &mut end => return,
                woken = self.next() => { self.take(woken); }
            }
        }
    }

    /// Opens a session, however long that takes.
    async fn open(
        &mut self,
        opening: &mut Calls<(), Result<Arc<dyn GpuLibrary>, OpenError>>,
        retry: &mut impl Iterator<Item = Duration>,
    ) -> Arc<dyn GpuLibrary> {
        loop {
            let open = self.open.clone();
            opening.start((), move || open());
            let outcome = tokio::select! {
                outcome = opening.next() => outcome,
                woken = self.next() => {
                    self.take(woken);
                    continue;
                }
            };
            match outcome {
                Outcome::Returned((), Ok(library)) => return library,
                Outcome::Returned((), Err(error)) => self.no_driver(&error),
                Outcome::Overdue(()) => {
                    self.no_driver(&OpenError::Hung("nvmlInit_v2", calls::DEADLINE));
                    continue;
                }
                Outcome::Panicked(()) => {
                    let error = LibraryError {
                        call: "nvmlInit_v2",
                        kind: ErrorKind::Other,
                        message: "panicked".into(),
                    };
                    self.no_driver(&OpenError::Failed(error));
                }
            }
            let rescan = self.rescan.clone();
            tokio::select! {
                () = self.pause(retry.next().unwrap_or(LONGEST_RETRY)) => {}
                () = rescan.notified() => {}
            }
        }
    }

    /// Says that there is no session, and why, and withdraws the devices.
    fn no_driver(&mut self, error: &OpenError) {
        self.metrics.session.set(0);
        if let Some(call) = error.call() {
            self.count_error(call);
        }
        if self.readiness.missing(DRIVER, error.to_string()) {
            warn!(%error, "no driver");
        }
        self.replace_driver(Err(UnhealthyReason::NoDriver(error.to_string())));
        self.publish();
    }

    /// Says that there is a session, with a driver of this version.
    fn session_open(&mut self, version: &str) {
        self.metrics.session.set(1);
        if self.readiness.ready(DRIVER) {
            info!(version, "driver found");
        }
        let of_another = |supply: &Arc<Supply>| supply.files.version != version;
        if self.node.driver().is_ok_and(of_another) {
            let what = format!("driver {version} is being made ready for containers");
            self.replace_driver(Err(UnhealthyReason::NoDriverFiles(what)));
            self.publish();
        }
    }

    /// Removes driver volumes that nothing can name any more, if it is time.
    fn tidy(&mut self) {
        self.tidy.tidy(&self.config, &self.supplier);
    }

    /// Says that module and library are of different drivers: whatever is
    /// started now fails.
    fn driver_changed(&mut self, error: &LibraryError) {
        self.replace_driver(Err(UnhealthyReason::NoDriver(error.to_string())));
        self.publish();
    }

    /// Says what containers get of the driver of this version.
    fn driver_found(&mut self, version: &str, supply: Result<Supply, SupplyError>) {
        match &supply {
            Ok(supply) => {
                let news = self.readiness.ready(DRIVER_FILES) || self.node.driver().is_err();
                let note = match &supply.from {
                    Origin::InPlace(InPlace::NoVolume(error)) => Some(error.to_string()),
                    _ => None,
                };
                let failed = self.readiness.note(DRIVER_FILES, note.as_deref());
                let (files, from) = (supply.files.files.len(), &supply.from);
                if let Some(error) = note.filter(|_| failed) {
                    warn!(
                        version,
                        error, "no driver volume; containers get the files in place"
                    );
                } else if news {
                    info!(version, files, %from, "driver files found");
                }
            }
            // NVIDIA's container runtime finds them by itself.
            Err(_) if !self.node.allocation().gives_driver() => {}
            Err(error) => {
                if self.readiness.missing(DRIVER_FILES, error.to_string()) {
                    warn!(version, %error, "no driver files");
                }
            }
        }
        let supply = supply
            .map(Arc::new)
            .map_err(|error| UnhealthyReason::NoDriverFiles(error.to_string()));
        self.replace_driver(supply);
    }

    /// What was answered from until now may be needed for a little longer.
    fn replace_driver(&mut self, supply: Result<Arc<Supply>, UnhealthyReason>) {
        let is_volume = supply
            .as_ref()
            .is_ok_and(|supply| supply.volume().is_some());
        self.metrics.volume.set(i64::from(is_volume));
        if let Ok(old) = self.node.set_driver(supply) {
            self.tidy.retire(old);
        }
        if let Some(volume) = self.node.driver().ok().and_then(|new| new.volume()) {
            self.tidy.release(volume);
        }
    }

    /// Says that the driver's files are not ready, if there are none of before.
    fn no_supply_yet(&mut self) {
        if self.node.driver().is_err() {
            let what = "the driver's files are still being made ready for containers";
            self.readiness.missing(DRIVER_FILES, what);
            let reason = UnhealthyReason::NoDriverFiles(what.into());
            _ = self.node.set_driver(Err(reason));
        }
    }

    /// Says that there is a session, with a driver that does not tell its
    /// version: its files cannot be told from another driver's.
    fn driver_silent(&mut self, call: &'static str, deadline: Duration) {
        let error = OpenError::Hung(call, deadline);
        self.readiness.missing(DRIVER, error.to_string());
        self.replace_driver(Err(UnhealthyReason::NoDriver(error.to_string())));
    }

    fn count_error(&self, call: &'static str) {
        self.metrics
            .nvml_errors
            .get_or_create(&NvmlLabels { call })
            .inc();
    }

    /// Publishes what is known now, if that is news.
    fn publish(&mut self) {
        self.publish_with(self.look());
    }

    /// Publishes what is known now, if it can be news at all: polls find nothing new,
    /// and making snapshots would be most of their work.
    fn publish_if_changed(&mut self, looked: Looked) {
        let revisions = self.revisions();
        let same = |basis: &Basis| basis.revisions == revisions && basis.looked == looked;
        // To publish is to look after the spec's file as well.
        if !self.spec_file.is_kept() || !self.basis.as_ref().is_some_and(same) {
            self.publish_with(looked);
        }
    }

    /// Others after each change.
    fn revisions(&self) -> (u64, u64) {
        (self.inventory.revision(), self.node.revision())
    }

    /// Whether everything was looked at, and nothing is amiss.
    fn is_well(&self) -> bool {
        let lacks_nodes = |basis: &Basis| self.inventory.lacks_nodes(&self.node, &basis.looked);
        self.complete
            && self.spec_file.is_kept()
            && self.node.driver().is_ok()
            && !self.inventory.any_amiss()
            && self.basis.as_ref().is_some_and(|basis| !lacks_nodes(basis))
    }

    /// What there is to watch, once anything was published.
    fn watched(&self) -> Option<Watched> {
        let looked = self.basis.as_ref()?.looked.clone();
        Some(self.inventory.watched(&self.node, looked))
    }

    /// Looks for the files that snapshots depend on.
    fn look(&self) -> Looked {
        self.inventory.look(&self.node)
    }

    fn publish_with(&mut self, looked: Looked) {
        self.keep_health();
        if !self.complete {
            return;
        }
        let snapshots = self.inventory.devices(&self.node, &looked);
        self.tell_nodes(&looked, &snapshots);
        self.tell_mig();
        let report = self.inventory.report(&self.node, &looked, &snapshots);
        self.basis = Some(Basis {
            revisions: self.revisions(),
            looked,
        });
        self.publish_devices(snapshots);
        // After the kubelet.
        self.reports.send_if_modified(|last| {
            if **last == report {
                return false;
            }
            self.metrics.tell_health(&report);
            *last = Arc::new(report);
            true
        });
    }

    fn publish_devices(&mut self, mut snapshots: Snapshots) {
        if self.spec_file.keep(&mut snapshots) {
            self.published
                .publish(snapshots, &self.metrics, &mut self.untold);
        }
    }

    /// Without the nodes that every container gets, no GPU is served.
    fn tell_nodes(&self, looked: &Looked, snapshots: &Snapshots) {
        // They are the same for all.
        let mut nodes = snapshots.values().map(|snapshot| &snapshot.common.nodes);
        match nodes
            .next()
            .and_then(|nodes| self.node.unfit(looked, nodes))
        {
            Some(reason) => {
                self.readiness.missing(DEVICE_NODES, reason.to_string());
            }
            None => {
                self.readiness.ready(DEVICE_NODES);
            }
        }
    }

    /// Says why MIG devices, or all devices, are not advertised, where that is so.
    fn tell_mig(&self) {
        match self.inventory.refused() {
            Some(why) => {
                if self.readiness.missing(MIG, why) {
                    warn!(why, "no device is advertised");
                }
            }
            None => _ = self.readiness.ready(MIG),
        }
        let left_out = self.inventory.left_out();
        if self.readiness.note(MIG, left_out.as_deref())
            && let Some(what) = left_out
        {
            warn!(what, "some MIG devices are not advertised");
        }
    }
}

fn retries() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_min_delay(FIRST_RETRY)
        .with_max_delay(LONGEST_RETRY)
        .with_jitter()
        .without_max_times()
        .build()
}

#[cfg(test)]
mod tests;
