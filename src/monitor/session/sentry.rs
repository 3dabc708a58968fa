//! What looks between two polls while all is well.
//!
//! A poll wakes the monitor's task, which wakes the thread that calls the library,
//! which wakes the task; and on many machines it takes longer to wake another thread
//! than to do what a poll does. So while all is well the thread looks by itself at
//! all that a poll looks at. As long as it finds everything as it was, it puts off the
//! next poll; when it finds anything else, or does not come to an end, that poll is
//! made, and acts. Nothing is concluded here.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::debug;

use super::super::Monitor;
use super::super::spec_file::There;
use super::{Answer, Key, RESCAN, Scanned, Session};
use crate::driver::kernel_module_version;
use crate::driver::nodes::{Keeper, Report};
use crate::driver::supply::{Supplier, Supply};
use crate::gpu::{Gpu, GpuLibrary, GpuUuid, LibraryError};
use crate::health::kept::since_boot;
use crate::health::reducer::Signal;
use crate::inventory::Watched;
use crate::ticker::Put;

/// A round that takes longer is not waited for.
const LATE: Duration = Duration::from_secs(1);

/// What the sentry has to find, and how to put off the next poll.
pub(super) struct Sentry {
    library: Arc<dyn GpuLibrary>,
    procfs: PathBuf,
    sysfs: PathBuf,
    version: String,
    count: u32,
    watched: Watched,
    nvlinks: BTreeMap<GpuUuid, BTreeMap<u32, bool>>,
    keeper: Arc<Keeper>,
    device_nodes: Report,
    supplier: Supplier,
    supply: Arc<Supply>,
    cdi_spec: Option<There>,
    poll: Put,
    /// From one round to the latest time of the next.
    longest: Duration,
    /// Then there is a poll in any case.
    until: Instant,
}

impl Sentry {
    /// One round. The first thing that is not as it was.
    fn round(&self) -> Option<&'static str> {
        let news = self.news();
        if news.is_none() {
            let rest = self.until.saturating_duration_since(Instant::now());
            if self.poll.off(self.longest.min(rest)).is_err() {
                return Some("time");
            }
        }
        news
    }

    fn news(&self) -> Option<&'static str> {
        let module = kernel_module_version(&self.procfs, &self.sysfs);
        let other_module = module.is_some_and(|module| module != self.version);
        let on_bus = |gpu: &Gpu| {
            let device = gpu.sysfs_device(&self.sysfs);
            device.is_some_and(|path| path.exists())
        };
        let news = [
            ("kernel module", other_module),
            ("driver files", !self.supplier.is_current(&self.supply)),
            (
                "CDI spec",
                !self.cdi_spec.as_ref().is_none_or(There::is_there),
            ),
            ("bus", !self.watched.all_on_bus(on_bus)),
            ("device nodes", !self.watched.looks_the_same()),
            ("modules", self.keeper.is_outdated(&self.device_nodes)),
            ("count", self.library.count() != Ok(self.count)),
        ];
        let gpu = || self.watched.uuids().any(|uuid| self.is_other(uuid));
        let news = news.into_iter().find(|(_, other)| *other);
        news.map(|(what, _)| what).or(gpu().then_some("GPU"))
    }

    fn is_other(&self, uuid: &GpuUuid) -> bool {
        let asked = since_boot();
        let answer = self.library.probe(uuid);
        let links = answer.as_ref().map(|vitals| &vitals.nvlinks);
        let same = links.ok() == self.nvlinks.get(uuid);
        !same || {
            let signal = Signal::Probed { asked, answer };
            self.watched.is_news(since_boot(), uuid, &signal)
        }
    }
}

/// Who looks from one poll to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Between {
    /// Nobody until there was a poll after the first enumeration: a start has other
    /// things to do than to set up a sentry.
    Starting,
    /// Nobody: something is amiss, or on its way.
    Unguarded,
    /// Nobody until the next enumeration: a round did not come to an end in time.
    RoundLate,
    /// The sentry, as it was told at these [`Monitor::revisions`], unless a poll comes
    /// before it would look.
    Guarded((u64, u64)),
}

impl Between {
    /// What it is when a poll begins, and the sentry is dismissed.
    fn polled(self, enumerated: bool, round_out: bool) -> Self {
        match self {
            _ if round_out => Self::RoundLate,
            Self::Starting if enumerated => Self::Unguarded,
            Self::Guarded(_) => Self::Unguarded,
            other => other,
        }
    }

    /// What it is when all GPUs were enumerated.
    pub(super) fn enumerated(self) -> Self {
        match self {
            Self::RoundLate => Self::Unguarded,
            other => other,
        }
    }
}

impl Session<'_> {
    /// The next poll comes after the whole interval, unless there is a reason.
    pub(super) fn put_off_polls(&mut self) {
        let round_out = self.calls.any_out(|key| *key == Key::Round);
        if round_out {
            debug!("a round has not come to its end; polling until all GPUs are enumerated");
        }
        self.calls.repeat_no_more();
        self.between = self.between.polled(self.last_scan.is_some(), round_out);
        self.last_poll = Instant::now();
        let interval = self.monitor.config.poll_interval;
        self.next_poll.set(self.last_poll + interval);
    }

    /// Has the sentry look while all is well.
    pub(super) fn see_to_sentry(&mut self) {
        let between = match self.between {
            Between::Starting | Between::RoundLate => return,
            _ if self.is_at_rest() => Between::Guarded(self.monitor.revisions()),
            _ => Between::Unguarded,
        };
        if between == self.between {
            return;
        }
        self.between = between;
        self.calls.repeat_no_more();
        let period = self.monitor.config.poll_interval;
        self.next_poll.set(self.last_poll + period);
        if between == Between::Unguarded {
            return;
        }
        let number = self.number;
        if let Some(sentry) = self.sentry() {
            debug!("all is well: polls are put off for as long as nothing is other than now");
            self.calls.repeat(Key::Round, period, move || {
                sentry.round().map(|what| (number, Answer::News(what)))
            });
        }
    }

    /// Takes in that a round found something.
    pub(super) fn news(&mut self, what: &'static str) -> Option<LibraryError> {
        debug!(what, "not as it was; polling");
        self.poll()
    }

    /// Whether nothing is amiss and nothing is on its way.
    fn is_at_rest(&self) -> bool {
        let told = self.driver_told && self.supplied && self.nodes_told;
        let due = self.driver_due || self.scan_due || self.links_due || self.missing;
        let another = |key: &Key| *key != Key::Round;
        let all_identified = |scan: &Scanned| scan.all_identified;
        told && !due
            && self.scan.is_none()
            && self.last_scan.as_ref().is_some_and(all_identified)
            && self.no_volume.is_none()
            && !self.calls.any_out(another)
            && self.monitor.is_well()
    }

    /// The next poll is then when it has to have put it off. None where a poll is due
    /// before it would look, or it could not put it off.
    fn sentry(&mut self) -> Option<Sentry> {
        let scan = self.last_scan.as_ref()?;
        let until = self.monitor.tidy.due().min(scan.at + RESCAN);
        let Monitor { config, node, .. } = &*self.monitor;
        let period = config.poll_interval;
        if until <= self.last_poll + period {
            return None;
        }
        let longest = period + period.min(LATE);
        let (keeper, device_nodes) = self.monitor.nodes.kept();
        Some(Sentry {
            library: self.library.clone(),
            procfs: config.paths.procfs.clone(),
            sysfs: config.paths.sysfs.clone(),
            version: self.version.clone()?,
            count: scan.count,
            watched: self.monitor.watched()?,
            nvlinks: self.nvlinks.clone(),
            keeper,
            device_nodes,
            supplier: self.monitor.supplier.clone(),
            supply: node.driver().ok()?.clone(),
            cdi_spec: self.monitor.spec_file.there(),
            longest,
            until,
            poll: self.next_poll.lend(until.min(self.last_poll + longest))?,
        })
    }
}
