//! The eviction of the pods on a sick GPU.
//!
//! [`plan`] decides, from the health of the GPUs, the kubelet's pod-resources API
//! and the API server; [`ledger`] is what it has to remember; the task here does
//! what it says. Nothing is asked, and no timer runs, while no GPU is sick or
//! eviction is off.

pub mod ledger;
pub mod metrics;
pub mod names;
pub mod notice;
pub mod plan;
pub mod retry;
pub mod rules;

#[cfg(test)]
mod fixture;
mod sick;
mod tell;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use self::ledger::Ledger;
use self::ledger::file::{FILE, LOCK, Store};
use self::metrics::EvictionMetrics;
use self::plan::{Action, Pace, Plan, Unanswered};
use self::tell::{Complaints, told};
use crate::cluster::ApiServer;
use crate::cluster::error::ClusterError;
use crate::config::{EvictionMode, EvictionOptions, HostPaths};
use crate::health::kept::{boot_id, since_boot};
use crate::health::report::HealthReport;
use crate::kubelet::podresources;

/// A state folder that cannot be had is tried again after this.
const FOLDER_RETRY: Duration = Duration::from_secs(10);

/// A record that is written takes milliseconds; after this it is said that it
/// does not.
const SLOW: Duration = Duration::from_secs(10);

/// Where things are, as this process sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// The kubelet's pod-resources socket.
    pub pod_resources: PathBuf,
    /// The folder of the record.
    pub state_dir: PathBuf,
    /// The ID of this boot: the record of another one says nothing of now.
    pub boot_id: String,
}

impl Places {
    /// Of this node, and of its present boot.
    #[must_use]
    pub fn of(paths: &HostPaths) -> Self {
        let boot_id = boot_id(&paths.procfs).unwrap_or_else(|error| {
            let procfs = paths.procfs.display();
            warn!(%procfs, %error, "no boot ID: evictions before a reboot are told from those after it by time alone");
            String::new()
        });
        Self {
            pod_resources: paths.pod_resources.here.clone(),
            state_dir: paths.state_dir.here.clone(),
            boot_id,
        }
    }
}

/// Evicts the pods on sick GPUs.
#[derive(Debug)]
pub struct Evictor {
    api: ApiServer,
    places: Places,
    metrics: EvictionMetrics,
    pace: Pace,
    complaints: Complaints,
}

/// What the evictor goes by.
struct Inputs {
    reports: watch::Receiver<Arc<HealthReport>>,
    options: watch::Receiver<EvictionOptions>,
}

impl Inputs {
    fn now(&mut self) -> (Arc<HealthReport>, EvictionOptions) {
        let report = self.reports.borrow_and_update().clone();
        (report, self.options.borrow_and_update().clone())
    }

    /// Waits for another report or other options. False once there will be no
    /// report any more. Cancel safe.
    async fn changed(&mut self) -> bool {
        tokio::select! {
            changed = self.reports.changed() => changed.is_ok(),
            // Options that nobody changes any more hold for ever.
            Ok(()) = self.options.changed() => true,
        }
    }

    /// The same, until `wake` at the latest, in time since boot.
    async fn changed_until(&mut self, wake: Option<Duration>) -> bool {
        let Some(wake) = wake else {
            return self.changed().await;
        };
        tokio::select! {
            changed = self.changed() => changed,
            () = sleep(wake.saturating_sub(since_boot())) => true,
        }
    }
}

impl Evictor {
    /// An evictor that has asked for nothing yet.
    #[must_use]
    pub fn new(api: ApiServer, places: Places, metrics: EvictionMetrics) -> Self {
        Self {
            api,
            places,
            metrics,
            pace: Pace::default(),
            complaints: Complaints::default(),
        }
    }

    /// The same at another pace.
    #[must_use]
    pub fn with_pace(mut self, pace: Pace) -> Self {
        self.pace = pace;
        self
    }

    /// Evicts until there are no more reports. To stop it, drop it: at any await,
    /// the record has what the next one needs to go on.
    pub async fn run(
        mut self,
        reports: watch::Receiver<Arc<HealthReport>>,
        options: watch::Receiver<EvictionOptions>,
    ) {
        let mut inputs = Inputs { reports, options };
        let mut goes_on = true;
        while goes_on {
            let (report, options) = inputs.now();
            goes_on = if !is_wanted(&report, &options) {
                inputs.changed().await
            } else if let Some(store) = self.take_folder().await {
                self.attend(&store, &mut inputs).await
            } else {
                let wake = since_boot().saturating_add(FOLDER_RETRY);
                inputs.changed_until(Some(wake)).await
            };
        }
    }

    /// Looks after the pods until no GPU is sick, or eviction is off. False once
    /// there are no more reports.
    async fn attend(&mut self, store: &Store, inputs: &mut Inputs) -> bool {
        let mut written = self.load(store).await;
        let node = self.api.node_name().to_owned();
        let (ledger, pace) = (written.clone(), self.pace.clone());
        let mut plan = Plan::new(node, ledger, pace, since_boot(), fastrand::u64(..));
        loop {
            let (report, options) = inputs.now();
            let step = plan.step(since_boot(), &report, &options);
            let saved = self.save(store, plan.ledger(), &mut written).await;
            if !is_wanted(&report, &options) {
                self.metrics.pods.set(0);
                self.complaints = Complaints::default();
                return true;
            }
            match step.action {
                // What is not on disk would be forgotten by a crash.
                Some(Action::Evict { pod, .. }) if !saved => {
                    self.metrics.count("failed");
                    plan.not_asked(since_boot(), &pod);
                }
                Some(action) => self.perform(&mut plan, &report, action).await,
                None if inputs.changed_until(step.wake).await => {}
                None => return false,
            }
        }
    }

    async fn perform(&mut self, plan: &mut Plan, report: &HealthReport, action: Action) {
        match action {
            Action::List => self.list(plan, report).await,
            Action::Look(name) => {
                let answer = self.api.pod(&name.namespace, &name.name).await;
                let answer = self.answer("cannot look a pod up", &name, answer);
                let said = plan.looked(since_boot(), &name, answer);
                tell::account(said, &self.metrics);
            }
            Action::Tell(telling) => {
                let name = names::PodName::of(&telling.pod);
                let answer = self.api.tell_pod(&telling.pod, &told(&telling)).await;
                let answer = self.answer("cannot write an event on a pod", &name, answer);
                let said = plan.told(since_boot(), &telling, answer);
                tell::account(said, &self.metrics);
            }
            Action::Evict { pod, incident } => {
                let name = names::PodName::of(&pod);
                let (uid, device) = (&pod.uid, &incident.device);
                debug!(pod = %name, uid, resource = device.resource, device = device.id, "asking for an eviction");
                let answer = self.api.evict(&pod).await;
                if answer.is_err() {
                    self.metrics.count("failed");
                }
                let answer = self.answer("cannot evict a pod", &name, answer);
                let said = plan.evicted(since_boot(), &pod, answer);
                tell::account(said, &self.metrics);
            }
        }
    }

    async fn list(&mut self, plan: &mut Plan, report: &HealthReport) {
        let answer = podresources::list(&self.places.pod_resources).await;
        let answer = answer.map_err(|error| {
            let socket = self.places.pod_resources.display();
            if self.complaints.is_news("list", &error.to_string()) {
                warn!(%socket, %error, "cannot ask the kubelet which pods hold sick GPUs");
            }
            Unanswered::default()
        });
        plan.listed(since_boot(), report, answer);
        let pods = plan.pods_on_sick(report);
        self.metrics
            .pods
            .set(i64::try_from(pods).unwrap_or(i64::MAX));
    }

    fn answer<T>(
        &mut self,
        what: &'static str,
        pod: &names::PodName,
        answer: Result<T, ClusterError>,
    ) -> Result<T, Unanswered> {
        answer.map_err(|error| {
            if self.complaints.is_news(what, &format!("{pod} {error}")) {
                warn!(%pod, %error, "{what}");
            }
            Unanswered {
                concerns_all: error.concerns_all(),
                retry_after: error.retry_after(),
            }
        })
    }

    /// The state folder, unless another process has it or it cannot be had.
    async fn take_folder(&mut self) -> Option<Store> {
        let folder = self.places.state_dir.clone();
        let taken = spawn_blocking(move || Store::take(&folder)).await;
        let trouble = match taken {
            Ok(Ok(Some(store))) => return Some(store),
            Ok(Ok(None)) => "another process evicts".to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        if self.complaints.is_news("folder", &trouble) {
            let lock = self.places.state_dir.join(LOCK);
            warn!(path = %lock.display(), error = trouble, "no pod is evicted by this process yet");
        }
        None
    }

    async fn load(&mut self, store: &Store) -> Ledger {
        let (store, boot_id) = (store.clone(), self.places.boot_id.clone());
        let loaded = spawn_blocking(move || store.load(&boot_id)).await;
        let (ledger, damage) = match loaded {
            Ok(loaded) => (loaded.ledger, loaded.damage),
            Err(error) => (Ledger::default(), Some(error.to_string())),
        };
        if let Some(error) = damage {
            let path = self.places.state_dir.join(FILE);
            warn!(path = %path.display(), error, "the record of evictions is not understood; begun anew");
        }
        ledger
    }

    /// Whether the record is on disk. `written` is what is there.
    async fn save(&mut self, store: &Store, ledger: &Ledger, written: &mut Ledger) -> bool {
        if written == ledger {
            return true;
        }
        let (store, boot_id) = (store.clone(), self.places.boot_id.clone());
        let new = ledger.clone();
        let mut writing = spawn_blocking(move || store.save(&boot_id, &new).map(|()| new));
        let path = self.places.state_dir.join(FILE);
        let result = match timeout(SLOW, &mut writing).await {
            Ok(result) => result,
            Err(_) => {
                warn!(path = %path.display(), "the record of evictions is still not written; no pod is evicted before");
                writing.await
            }
        };
        let trouble = match result {
            Ok(Ok(ledger)) => {
                *written = ledger;
                return true;
            }
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        if self.complaints.is_news("record", &trouble) {
            warn!(path = %path.display(), error = trouble, "the record of evictions cannot be written; no pod is evicted before");
        }
        false
    }
}

/// Who is dropped knows of no pod any more.
impl Drop for Evictor {
    fn drop(&mut self) {
        self.metrics.pods.set(0);
    }
}

/// Whether there may be anything to do.
fn is_wanted(report: &HealthReport, options: &EvictionOptions) -> bool {
    let on = options.mode != EvictionMode::Off;
    on && report.complete && report.sick().next().is_some()
}
