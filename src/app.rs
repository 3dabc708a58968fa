//! Puts the parts together and keeps them running.

mod api_side;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, bail};
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::api_side::{ApiSide, News};
use crate::config::reload::{Reloader, Reloads};
use crate::config::{Config, HostFolder};
use crate::driver::cdi;
use crate::http;
use crate::inventory::Rules;
use crate::kubelet::checkpoint::{self, Held};
use crate::kubelet::watch as folder_watch;
use crate::metrics::Metrics;
use crate::monitor::{Monitor, Opener};
use crate::plugin::resources::Actors;
use crate::readiness::Readiness;

/// The running process, as a value: tests start the real thing and ask it what
/// it bound.
pub struct App {
    /// Where HTTP is served.
    pub http_address: SocketAddr,
    rescan: Arc<Notify>,
    reloads: Arc<Reloads>,
    shutdown: CancellationToken,
    /// End on `shutdown` only.
    tasks: JoinSet<&'static str>,
    /// End never, and are dropped.
    background: JoinSet<&'static str>,
}

impl App {
    /// Starts everything; `reloader` where there is a configuration file to follow.
    ///
    /// # Errors
    ///
    /// The address for HTTP could not be bound.
    pub async fn start(
        config: Config,
        open: Arc<Opener>,
        reloader: Option<Reloader>,
    ) -> anyhow::Result<Self> {
        let address = config.http_listen;
        let listener = TcpListener::bind(address).await.with_context(|| {
            format!("cannot listen on {address}; choose another with --http-listen (HTTP_LISTEN)")
        })?;
        let http_address = listener.local_addr()?;
        let metrics = Arc::new(Metrics::new());
        let readiness = Readiness::default();
        let rescan = Arc::new(Notify::new());
        let shutdown = CancellationToken::new();
        let folder = config.paths.device_plugin_dir.clone();
        if !config.allocation.uses_cdi() {
            remove_stale_spec(&config.paths.cdi_root);
        }

        let held = held(&folder, &Rules::new(&config));
        let reloads = Arc::new(Reloads::new(&config, metrics.clone(), readiness.clone()));
        let api_side = ApiSide::new(&config, metrics.clone(), readiness.clone());
        let monitor = Monitor::new(
            config,
            open,
            held,
            metrics.clone(),
            readiness.clone(),
            rescan.clone(),
            reloads.health(),
        );
        let (hint, hints) = watch::channel(0);
        let resources = monitor.resources();
        let news = News {
            reports: monitor.reports(),
            options: reloads.eviction(),
            faults: reloads.faults(),
        };
        let (outside, seen) = (metrics.clone(), readiness.clone());
        let actors = Actors {
            folder: folder.clone(),
            hints,
            rescan: rescan.clone(),
            metrics,
            readiness,
        };

        let mut tasks = JoinSet::new();
        let stop = shutdown.clone();
        tasks.spawn(part("plugin", actors.run(resources, stop)));
        let mut background = JoinSet::new();
        background.spawn(part("monitor", monitor.run()));
        background.spawn(part("API server", api_side.run(news)));
        background.spawn(part("folder watch", folder_watch::watch(folder, hint)));
        let served = http::serve(listener, outside, seen);
        background.spawn(part("http", async { report_end(served.await) }));
        if let Some(reloader) = reloader {
            let reloads = reloads.clone();
            let follow = async move { reloads.follow(reloader).await };
            background.spawn(part("configuration file", follow));
        }
        Ok(Self {
            http_address,
            rescan,
            reloads,
            shutdown,
            tasks,
            background,
        })
    }

    /// Looks at all GPUs, at the driver and at the configuration file again, now.
    pub fn rescan(&self) {
        info!("looking at all GPUs and at the driver again, as asked");
        self.rescan.notify_one();
        self.reloads.ask();
    }

    /// Waits until a part ends, which none does by itself.
    ///
    /// # Errors
    ///
    /// Always, naming the part.
    pub async fn failed(&mut self) -> anyhow::Result<()> {
        let ended = tokio::select! {
            Some(ended) = self.tasks.join_next() => ended,
            Some(ended) = self.background.join_next() => ended,
            else => bail!("nothing runs any more"),
        };
        bail!(
            "{} ended unexpectedly",
            ended.context("a part of the process panicked")?
        )
    }

    /// Ends streams and removes sockets.
    pub async fn stop(mut self) {
        self.shutdown.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

/// Whose end it is.
async fn part(name: &'static str, work: impl Future<Output = ()>) -> &'static str {
    work.await;
    name
}

/// The devices of ours that pods of this node hold, by the kubelet's record.
fn held(folder: &std::path::Path, rules: &Rules) -> Vec<Held> {
    // Another plugin's may stand there under the name of ours.
    let ours = |held: &Held| {
        let id = &held.id;
        rules.may_advertise(&held.resource) && (id.starts_with("GPU-") || id.starts_with("MIG-"))
    };
    match checkpoint::allocated(folder) {
        Ok(held) => {
            let held: Vec<_> = held.into_iter().filter(ours).collect();
            if !held.is_empty() {
                info!(devices = held.len(), "devices held by pods");
            }
            held
        }
        Err(error) => {
            let file = checkpoint::FILE;
            warn!(%error, file, "cannot read the kubelet's record; a lost GPU that a pod holds may not be listed");
            Vec::new()
        }
    }
}

/// A spec that nobody keeps would go on naming files of a driver that is gone.
fn remove_stale_spec(folder: &HostFolder) {
    let file = folder.join(cdi::FILE);
    let file = file.host.display();
    match cdi::file::remove(&folder.here) {
        Ok(true) => info!(%file, "CDI spec of an earlier run removed"),
        Ok(false) => {}
        Err(error) => warn!(%file, %error, "cannot remove the CDI spec of an earlier run"),
    }
}

fn report_end(ended: io::Result<()>) {
    if let Err(error) = ended {
        warn!(%error, "HTTP server ended");
    }
}
