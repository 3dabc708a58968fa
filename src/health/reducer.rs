//! Signals about one GPU to its health: a pure function of signals and time.
//!
//! Signals are of two kinds. An *event* (an XID) happened once and is latched
//! until its class says that it is over. A *level* (lost, a recovery action, a
//! failed remapping) holds from the answer that told of it to the answer that
//! takes it back. While either holds, the GPU is sick; when neither does, it is
//! watched for a quiet time before it is healthy again.
//!
//! Nothing but a sign of health makes a GPU healthier: a signal that is lost,
//! late or told twice leaves it at least as sick as it is.

mod scope;
mod vitals;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::scope::Scope;
use super::cause::Cause;
use super::report::Sickness;
use super::signals::Kind;
use crate::config::HealthOptions;
use crate::gpu::{ErrorKind, LibraryError, Vitals};

/// Something that was learnt about one GPU. Times are since boot
/// (`CLOCK_BOOTTIME`), as everywhere here.
#[derive(Clone, Debug)]
pub enum Signal {
    /// A critical XID.
    Xid {
        /// Which.
        xid: u64,
        /// The GPU instance (MIG) that it names.
        instance: Option<u32>,
        /// When it happened.
        at: Duration,
    },
    /// The kernel log says that the driver's recovery action has changed (XID
    /// 154), to which and when.
    Announced {
        /// As of field 230.
        action: u32,
        /// When it was logged.
        at: Duration,
    },
    /// A scan of all GPUs found it, and read it whole.
    Present,
    /// A scan of all GPUs did not find it.
    Vanished,
    /// A scan found it and could not read it, or could not read what stands in
    /// its place.
    Unreadable(LibraryError),
    /// Whether the kernel has a PCI device where the GPU is.
    OnBus(bool),
    /// It was asked how it is.
    Probed {
        /// When. What happened since is not in the answer.
        asked: Duration,
        /// What it answered.
        answer: Result<Vitals, LibraryError>,
    },
    /// A call about it is out for longer than this.
    Overdue(Duration),
    /// Time has passed, or the options are others.
    Tick,
}

/// The state of one GPU's health.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GpuHealth {
    /// What is true of the GPU, and so of every part of it.
    whole: Scope,
    /// What is true of one GPU instance (MIG) only.
    instances: BTreeMap<u32, Scope>,
    /// What the last scan found amiss.
    scan: Option<Cause>,
    /// Its place on the bus is empty.
    bus: Option<Cause>,
    /// How the last probe failed.
    failure: Option<Cause>,
    /// What the last answer to a probe found amiss.
    vitals: BTreeSet<Cause>,
    /// What the kernel log announced, while no later answer of the driver's own
    /// says otherwise.
    announced: Option<(u32, Duration)>,
    /// NVLinks that were up since the boot.
    links_up: BTreeSet<u32>,
    /// What is reported and not acted on.
    notes: BTreeSet<Kind>,
}

/// What of it outlives the process, within one boot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Kept {
    #[serde(default, skip_serializing_if = "Scope::is_blank")]
    whole: Scope,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    instances: BTreeMap<u32, Scope>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    links_up: BTreeSet<u32>,
}

impl Kept {
    /// Whether there is nothing to keep.
    #[must_use]
    pub fn is_blank(&self) -> bool {
        *self == Self::default()
    }
}

impl GpuHealth {
    /// Health as an earlier process of the same boot left it. Whatever was sick
    /// is sick until this process has seen that it is not.
    #[must_use]
    pub fn restore(kept: Kept, now: Duration) -> Self {
        let mut health = Self {
            whole: kept.whole,
            instances: kept.instances,
            links_up: kept.links_up,
            ..Self::default()
        };
        for scope in health.scopes() {
            scope.restored(now);
        }
        health
    }

    /// What outlives the process: nothing of a GPU that was never sick.
    #[must_use]
    pub fn keep(&self) -> Kept {
        // Else a link that is down would be one that never was up.
        let links_up = if self.whole.is_blank() {
            BTreeSet::new()
        } else {
            self.links_up.clone()
        };
        Kept {
            whole: self.whole.clone(),
            instances: self.instances.clone(),
            links_up,
        }
    }

    /// Takes in one signal.
    pub fn apply(&mut self, now: Duration, signal: &Signal, options: &HealthOptions) {
        let mut well = false;
        match signal {
            Signal::Xid { xid, instance, at } => self.xid(*xid, *instance, *at, options),
            Signal::Announced { action, at } => {
                if self.announced.is_none_or(|(_, last)| last <= *at) {
                    self.announced = Some((*action, *at));
                }
            }
            Signal::Present => self.scan = None,
            Signal::Vanished => self.scan = Some(Cause::Vanished),
            Signal::Unreadable(error) => self.scan = Some(cause(error)),
            Signal::OnBus(there) => self.bus = (!there).then_some(Cause::OffBus),
            Signal::Probed { answer, asked } => match answer {
                Err(error) => self.failure = Some(cause(error)),
                Ok(vitals) => {
                    self.probed(*asked, vitals, options);
                    well = true;
                }
            },
            Signal::Overdue(deadline) => {
                self.failure = Some(Cause::NotAnswering(deadline.as_secs()));
            }
            Signal::Tick => {}
        }
        self.settle(now, well, options);
    }

    /// Whether the last scan found it, and read it whole.
    #[must_use]
    pub fn is_found(&self) -> bool {
        self.scan.is_none()
    }

    /// Why the GPU as a whole is sick.
    #[must_use]
    pub fn sickness(&self, options: &HealthOptions) -> Option<Sickness> {
        self.whole.sickness(options)
    }

    /// Why a GPU instance is sick: it alone, or with its GPU.
    #[must_use]
    pub fn sickness_of(&self, instance: u32, options: &HealthOptions) -> Option<Sickness> {
        let own = self.instances.get(&instance);
        let own = own.and_then(|scope| scope.sickness(options));
        self.sickness(options).or(own)
    }

    /// Why the GPU as one device is sick: as a whole, or any instance within it.
    #[must_use]
    pub fn sickness_of_any(&self, options: &HealthOptions) -> Option<Sickness> {
        let instances = self.instances.values();
        let parts = instances.filter_map(|scope| scope.sickness(options));
        self.sickness(options)
            .or_else(|| parts.max_by_key(|sickness| sickness.class))
    }

    /// Everything that is sick: the whole first, then each instance by its ID.
    #[must_use]
    pub fn sicknesses(&self, options: &HealthOptions) -> Vec<(Option<u32>, Sickness)> {
        let whole = self.whole.sickness(options);
        let whole = whole.map(|sickness| (None, sickness));
        let instances = self
            .instances
            .iter()
            .filter_map(|(instance, scope)| Some((Some(*instance), scope.sickness(options)?)));
        whole.into_iter().chain(instances).collect()
    }

    /// What is reported and not acted on.
    #[must_use]
    pub fn notes(&self) -> &BTreeSet<Kind> {
        &self.notes
    }

    fn scopes(&mut self) -> impl Iterator<Item = &mut Scope> {
        std::iter::once(&mut self.whole).chain(self.instances.values_mut())
    }

    fn xid(&mut self, xid: u64, instance: Option<u32>, at: Duration, options: &HealthOptions) {
        let cause = Cause::Xid(xid);
        if !cause.class(&options.policy).acts() {
            return;
        }
        let scope = match instance {
            None => &mut self.whole,
            Some(instance) => self.instances.entry(instance).or_default(),
        };
        scope.latch(cause, at);
    }

    /// An event is forgiven by the driver's own word only: a driver that does not
    /// know the recovery action never gives it.
    fn probed(&mut self, asked: Duration, vitals: &Vitals, options: &HealthOptions) {
        self.failure = None;
        if vitals.recovery_action.is_some() && self.announced.is_some_and(|(_, at)| at < asked) {
            self.announced = None;
        }
        let up = vitals.nvlinks.iter().filter(|(_, up)| **up);
        self.links_up.extend(up.map(|(link, _)| *link));
        let (causes, notes) = vitals::read(vitals, &self.links_up);
        let lasting = |cause: &&Cause| {
            options.policy.acts_on_polls() && cause.class(&options.policy).is_lasting()
        };
        for cause in causes.iter().filter(lasting) {
            self.whole.latch(cause.clone(), asked);
        }
        self.vitals = causes;
        self.notes = notes;
        if vitals.recovery_action == Some(0) {
            for scope in self.scopes() {
                scope.forgive(asked, options);
            }
        }
    }

    fn levels(&self, options: &HealthOptions) -> Vec<Cause> {
        if !options.policy.acts_on_polls() {
            return Vec::new();
        }
        let announced = self.announced.filter(|(action, _)| *action != 0);
        let announced = announced.map(|(action, _)| Cause::RecoveryAction(action));
        let single = [&self.scan, &self.bus, &self.failure, &announced];
        let levels = single.into_iter().flatten().chain(&self.vitals);
        levels.cloned().collect()
    }

    fn settle(&mut self, now: Duration, well: bool, options: &HealthOptions) {
        let levels = self.levels(options);
        self.whole.settle(now, &levels, well, options);
        for scope in self.instances.values_mut() {
            scope.settle(now, &[], well && levels.is_empty(), options);
        }
        self.instances.retain(|_, scope| !scope.is_blank());
    }
}

fn cause(error: &LibraryError) -> Cause {
    match error.kind {
        ErrorKind::GpuLost => Cause::Lost(error.call.into()),
        ErrorKind::ResetRequired => Cause::ResetRequired(error.call.into()),
        ErrorKind::NotFound => Cause::Vanished,
        _ => Cause::Unreadable(error.to_string()),
    }
}

#[cfg(test)]
mod tests;
