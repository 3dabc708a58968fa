//! The configuration file, read again while the process runs.
//!
//! What decides is [`Reloader`], by the command line, the environment and the
//! file's bytes alone. [`Reloads`] is around it: when to look, and who is told.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::Event;
use notify::event::{AccessKind, AccessMode, EventKind};
use tokio::sync::{Notify, watch};
use tokio::time::sleep;
use tracing::{error, info};

use super::{Config, EvictionOptions, HealthOptions, file};
use crate::cli::{self, Effective, Given, Invocation, Said, Stop};
use crate::kubelet::watch::{Subject, watch_for};
use crate::metrics::{Metrics, ReloadLabels};
use crate::readiness::Readiness;
use crate::telemetry;

/// The flags that may change while the process runs. Paths, names and sockets are
/// what its tasks were made of.
const WHILE_RUNNING: [&str; 9] = [
    "eviction",
    "eviction_grace",
    "eviction_max_sick_percent",
    "eviction_rate",
    "health_longest_quiet",
    "health_quiet",
    "health_relapse_window",
    "log_level",
    "node_taint",
];

/// The part of [`Readiness`] that has a note while the file has faults.
const CONFIGURATION: &str = "configuration file";

/// From a hint to a look: who writes a file in place may be at it still.
const SETTLED: Duration = Duration::from_millis(200);

const FOLDER: Subject = Subject {
    name: "the configuration file's folder",
    matters: is_change,
    unwatched: Duration::from_secs(10),
};

/// What came of a reading of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReloadOutcome {
    /// It says what holds already.
    Unchanged,
    /// It says something else, which holds from now on.
    Applied(Box<Invocation>),
    /// Nothing of it holds: every fault, a line each. What held before still does.
    Failed(Vec<String>),
}

/// Reads the file again, and says what is to hold.
#[derive(Debug)]
pub struct Reloader {
    given: Given,
    path: PathBuf,
    running: Invocation,
    /// What the file held when it was last looked at.
    seen: Result<Vec<u8>, String>,
}

impl Reloader {
    /// None where no file was named.
    #[must_use]
    pub fn new(given: Given, running: &Invocation) -> Option<Self> {
        let file = running.file.as_ref()?;
        Some(Self {
            given,
            path: file.path.clone(),
            seen: Ok(file.content.clone()),
            running: running.clone(),
        })
    }

    /// Reads the file, as somebody asked for it. May block.
    pub fn reload(&mut self) -> ReloadOutcome {
        self.reload_with(file::read(&self.path))
    }

    /// Looks at the file: None where it is as it was at the last look. May block.
    pub fn look(&mut self) -> Option<ReloadOutcome> {
        let content = file::read(&self.path);
        (content != self.seen).then(|| self.reload_with(content))
    }

    /// What comes of a file with this content.
    pub fn reload_with(&mut self, content: Result<Vec<u8>, String>) -> ReloadOutcome {
        let reader = |_: &Path| content.clone();
        let read = cli::interpret(&self.given, &reader);
        self.seen = content;
        let new = match read {
            Ok(new) => new,
            Err(Stop::Usage(errors)) => return ReloadOutcome::Failed(errors.into_lines()),
            // It was not asked for at the start, by the same arguments.
            Err(Stop::Help(_)) => return ReloadOutcome::Unchanged,
        };
        let mut fixed = too_late(&self.running.effective, &new.effective);
        if new.config.sharing != self.running.config.sharing {
            let path = self.path.display();
            fixed.push(format!(
                "{path}: sharing: what it says now needs a restart; until then the old one holds"
            ));
        }
        if !fixed.is_empty() {
            return ReloadOutcome::Failed(fixed);
        }
        self.take(new)
    }

    /// Takes over what may change. Of the rest the texts are the same; what was
    /// made of them by a look at the node may be another today.
    fn take(&mut self, new: Invocation) -> ReloadOutcome {
        let Config {
            health, eviction, ..
        } = new.config;
        let config = Config {
            health,
            eviction,
            ..self.running.config.clone()
        };
        let changed = config != self.running.config || new.log_level != self.running.log_level;
        self.running = Invocation { config, ..new };
        if changed {
            ReloadOutcome::Applied(Box::new(self.running.clone()))
        } else {
            ReloadOutcome::Unchanged
        }
    }
}

/// A line for each flag that says something else and may not.
fn too_late(old: &Effective, new: &Effective) -> Vec<String> {
    let ids: BTreeSet<_> = old.keys().chain(new.keys()).collect();
    let ids = ids.into_iter().filter(|id| !WHILE_RUNNING.contains(id));
    ids.filter_map(|id| takes_a_restart(old.get(id), new.get(id)))
        .collect()
}

fn takes_a_restart(old: Option<&Said>, new: Option<&Said>) -> Option<String> {
    let held = old.map_or("it is not set".into(), |old| {
        format!("{:?} holds", old.text)
    });
    match new {
        Some(new) if old.is_none_or(|old| old.text != new.text) => Some(format!(
            "{}: {:?} needs a restart; until then {held}",
            new.place, new.text
        )),
        None => old.map(|old| {
            let place = &old.place;
            format!("{place}: to take it out needs a restart; until then {held}")
        }),
        Some(_) => None,
    }
}

/// What may change while the process runs, as it is now, for all who go by it.
#[derive(Debug)]
pub struct Reloads {
    asked: Notify,
    health: watch::Sender<HealthOptions>,
    eviction: watch::Sender<EvictionOptions>,
    faults: watch::Sender<Vec<String>>,
    metrics: Arc<Metrics>,
    readiness: Readiness,
}

impl Reloads {
    /// As it is at the start.
    #[must_use]
    pub fn new(config: &Config, metrics: Arc<Metrics>, readiness: Readiness) -> Self {
        Self {
            asked: Notify::new(),
            health: watch::Sender::new(config.health.clone()),
            eviction: watch::Sender::new(config.eviction.clone()),
            faults: watch::Sender::default(),
            metrics,
            readiness,
        }
    }

    /// What is taken for sick, and when for well again.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<HealthOptions> {
        self.health.subscribe()
    }

    /// What is done about the pods on a sick GPU.
    #[must_use]
    pub fn eviction(&self) -> watch::Receiver<EvictionOptions> {
        self.eviction.subscribe()
    }

    /// What is wrong with the file as it is now; nothing while what it says holds.
    #[must_use]
    pub fn faults(&self) -> watch::Receiver<Vec<String>> {
        self.faults.subscribe()
    }

    /// Has the file read now, whether it changed or not.
    pub fn ask(&self) {
        self.asked.notify_one();
    }

    /// Follows the file for ever.
    pub async fn follow(&self, reloader: Reloader) {
        let (hint, hints) = watch::channel(0);
        let folder = folder_of(&reloader.path);
        tokio::join!(
            watch_for(FOLDER, folder, hint),
            self.look_when_due(reloader, hints)
        );
    }

    async fn look_when_due(&self, mut reloader: Reloader, mut hints: watch::Receiver<u64>) {
        loop {
            let asked = tokio::select! {
                () = self.asked.notified() => true,
                Ok(()) = hints.changed() => false,
                else => return,
            };
            if !asked {
                sleep(SETTLED).await;
            }
            let path = reloader.path.clone();
            // A file system that hangs may hold up this task, and no other.
            let look = tokio::task::spawn_blocking(move || {
                let outcome = if asked {
                    Some(reloader.reload())
                } else {
                    reloader.look()
                };
                (reloader, outcome)
            });
            let Ok((back, outcome)) = look.await else {
                return;
            };
            reloader = back;
            if let Some(outcome) = outcome {
                self.tell(&path, &outcome);
            }
        }
    }

    /// Tells everybody.
    fn tell(&self, path: &Path, outcome: &ReloadOutcome) {
        let file = path.display();
        let faults = match outcome {
            ReloadOutcome::Unchanged => {
                info!(%file, "the configuration file says nothing new");
                Vec::new()
            }
            ReloadOutcome::Applied(new) => {
                self.apply(new);
                let Config {
                    health, eviction, ..
                } = &new.config;
                info!(%file, %health, %eviction, "the configuration file has changed");
                Vec::new()
            }
            ReloadOutcome::Failed(faults) => {
                let error = faults.join("; ");
                error!(%file, error, "the configuration file has faults; what it said before holds");
                faults.clone()
            }
        };
        self.tell_faults(faults);
    }

    fn apply(&self, new: &Invocation) {
        telemetry::set_level(new.log_level);
        send_if_new(&self.health, new.config.health.clone());
        send_if_new(&self.eviction, new.config.eviction.clone());
    }

    fn tell_faults(&self, faults: Vec<String>) {
        let good = faults.is_empty();
        let result = if good { "ok" } else { "failed" };
        let count = self
            .metrics
            .config_reloads
            .get_or_create(&ReloadLabels { result });
        count.inc();
        self.metrics.config_last_reload.set(i64::from(good));
        let note = format!("{}; what it said before holds", faults.join("; "));
        self.readiness.note(CONFIGURATION, (!good).then_some(&note));
        send_if_new(&self.faults, faults);
    }
}

fn send_if_new<T: PartialEq>(sender: &watch::Sender<T>, new: T) {
    sender.send_if_modified(|last| {
        let news = *last != new;
        *last = new;
        news
    });
}

fn folder_of(file: &Path) -> PathBuf {
    match file.parent() {
        Some(folder) if folder != Path::new("") => folder.into(),
        _ => ".".into(),
    }
}

/// A file that is written, or renamed into place: a volume of a ConfigMap swaps a
/// link whose name begins with a dot. To read it is no change.
fn is_change(event: &Event) -> bool {
    match event.kind {
        EventKind::Access(kind) => kind == AccessKind::Close(AccessMode::Write),
        _ => true,
    }
}
