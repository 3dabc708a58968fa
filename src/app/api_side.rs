//! What is done at the API server, for as long as eviction is not `off`: until
//! then there is no connection to it, and none of this runs.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::cluster::ApiServer;
use crate::cluster::api::Told;
use crate::cluster::backoff::Backoff;
use crate::cluster::reporter::{Reporter, ReporterOptions};
use crate::config::{ClusterOptions, Config, EvictionMode, EvictionOptions, HostPaths};
use crate::eviction::{Evictor, Places};
use crate::health::report::HealthReport;
use crate::metrics::Metrics;
use crate::readiness::Readiness;

/// The part of [`Readiness`] that has a note where the API server cannot be asked.
const API_SERVER: &str = "API server";

/// What was missing (a token, a file) is looked for again after this.
const RETRY: Duration = Duration::from_secs(60);

/// Between two tries to tell of a fault in the configuration file.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// All that this part of the process goes by.
pub(super) struct ApiSide {
    cluster: ClusterOptions,
    paths: HostPaths,
    metrics: Arc<Metrics>,
    readiness: Readiness,
}

/// What it is told while it runs.
pub(super) struct News {
    pub(super) reports: watch::Receiver<Arc<HealthReport>>,
    pub(super) options: watch::Receiver<EvictionOptions>,
    /// Of the configuration file.
    pub(super) faults: watch::Receiver<Vec<String>>,
}

impl ApiSide {
    pub(super) fn new(config: &Config, metrics: Arc<Metrics>, readiness: Readiness) -> Self {
        Self {
            cluster: config.cluster.clone(),
            paths: config.paths.clone(),
            metrics,
            readiness,
        }
    }

    /// Does it for ever.
    pub(super) async fn run(self, mut news: News) {
        loop {
            let options = news.options.borrow_and_update().clone();
            if options.mode == EvictionMode::Off {
                self.readiness.note(API_SERVER, None);
            } else if let Some(api) = self.connect() {
                let others = others_needed(news.options.clone(), &options);
                tokio::select! {
                    () = self.work(api, &options, &news) => {}
                    () = others => continue,
                }
            } else {
                // Whether the time is over or the options are others.
                drop(timeout(RETRY, news.options.changed()).await);
                continue;
            }
            if news.options.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    fn connect(&self) -> Option<ApiServer> {
        let instance = self.cluster.node_name.as_deref().unwrap_or_default();
        let metrics = self.metrics.cluster.clone();
        match ApiServer::connect(&self.cluster, instance, metrics) {
            Ok(api) => {
                self.readiness.note(API_SERVER, None);
                info!(node = api.node_name(), "health is told to the API server");
                Some(api)
            }
            Err(error) => {
                if self.readiness.note(API_SERVER, Some(&error.to_string())) {
                    warn!(%error, "the API server cannot be asked");
                }
                None
            }
        }
    }

    /// Tells and evicts. Each part survives its being dropped at any point.
    async fn work(&self, api: ApiServer, options: &EvictionOptions, news: &News) {
        let pace = ReporterOptions {
            taint: options.taint,
            state_dir: Some(self.paths.state_dir.here.clone()),
            ..ReporterOptions::default()
        };
        let reporter = Reporter::new(api.clone(), news.reports.clone(), &pace);
        let evictor = Evictor::new(
            api.clone(),
            Places::of(&self.paths),
            self.metrics.eviction.clone(),
        );
        tokio::join!(
            reporter.run(),
            evictor.run(news.reports.clone(), news.options.clone()),
            tell_faults(&api, news.faults.clone()),
        );
    }
}

/// Waits until what runs has to be made anew. The evictor sees the rest itself.
async fn others_needed(mut options: watch::Receiver<EvictionOptions>, now: &EvictionOptions) {
    let is_other = |new: &EvictionOptions| new.mode == EvictionMode::Off || new.taint != now.taint;
    if options.wait_for(is_other).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// An event of this node for each reading of the configuration file that had
/// faults.
async fn tell_faults(api: &ApiServer, mut faults: watch::Receiver<Vec<String>>) {
    let mut backoff = Backoff::new(FIRST_PAUSE);
    loop {
        let found = faults.borrow_and_update().clone();
        if !found.is_empty() {
            let told = configuration_fault(&found);
            while let Err(error) = api.tell_node(&told).await {
                if !error.is_worth_retrying() {
                    break;
                }
                let pause = backoff.next(LONGEST_PAUSE, error.retry_after(), fastrand::u8(..));
                // A newer reading is worth more than this one.
                if let Ok(_news) = timeout(pause, faults.changed()).await {
                    break;
                }
            }
            backoff.reset();
        }
        if faults.changed().await.is_err() {
            return sleep(Duration::MAX).await;
        }
    }
}

fn configuration_fault(faults: &[String]) -> Told {
    let at = SystemTime::now();
    let since_epoch = at
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    Told {
        reason: "ConfigurationFault",
        message: format!("{}; what it said before holds", faults.join("; ")),
        warning: true,
        action: "Reload",
        incident: format!("configuration {}", since_epoch.as_millis()),
        at,
    }
}
