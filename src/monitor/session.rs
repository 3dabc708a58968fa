//! One session with the GPU library, from its opening to its end.

mod sentry;
mod supply;

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use self::sentry::Between;
pub(super) use self::supply::Supplies;
use super::subscription::{Notice, Subscription};
use super::{Ask, GPUS, Monitor};
use crate::choice::Chooser;
use crate::driver::nodes;
use crate::gpu::calls::{Calls, DEADLINE, Outcome};
use crate::gpu::topology::Topology;
use crate::gpu::{ErrorKind, GpuLibrary, GpuUuid, LibraryError, Reading, Vitals};
use crate::health::kept::since_boot;
use crate::health::reducer::Signal;
use crate::inventory::Looked;
use crate::memory;
use crate::ticker::Alarm;

/// Without a reason to look sooner, all GPUs are enumerated again after this.
const RESCAN: Duration = Duration::from_secs(30);

/// Never, where there is no such time.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => pending().await,
    }
}

/// What a call is about, so that none is made twice at once.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Key {
    Driver,
    Nodes,
    Count,
    Read(u32),
    Probe(GpuUuid),
    Links,
    /// The sentry's.
    Round,
}

/// An answer, and the number of the session that asked: an answer to an earlier
/// one says nothing of this.
pub(super) type Numbered = (u64, Answer);

pub(super) enum Answer {
    Driver(Result<String, LibraryError>),
    Nodes(nodes::Report),
    Count(Result<u32, LibraryError>),
    Read(Reading),
    /// When it was asked, in time since boot.
    Probe(Duration, Result<Vitals, LibraryError>),
    Links(Arc<Chooser>),
    /// What is not as it was.
    News(&'static str),
}

/// An enumeration under way: the indexes below `count`.
struct Scan {
    count: u32,
    readings: Vec<Reading>,
}

/// An enumeration that has ended.
struct Scanned {
    at: Instant,
    count: u32,
    /// Every GPU said who it is.
    all_identified: bool,
}

pub(super) struct Session<'a> {
    monitor: &'a mut Monitor,
    library: Arc<dyn GpuLibrary>,
    calls: &'a mut Calls<Key, Numbered>,
    supplies: &'a mut Supplies,
    number: u64,
    events: Subscription,
    /// The driver's version, once it is told.
    version: Option<String>,
    /// When making a volume last failed.
    no_volume: Option<Instant>,
    scan: Option<Scan>,
    last_scan: Option<Scanned>,
    /// An enumeration missed a GPU, and the next one says whether it is gone.
    missing: bool,
    /// Somebody asked for an enumeration, or for the driver. One that is under
    /// way does not count: it may have looked before there was a reason to.
    scan_due: bool,
    driver_due: bool,
    /// It is known what containers get of the driver, or overdue.
    driver_told: bool,
    /// It is known.
    supplied: bool,
    /// The device nodes were made, where any was missing, or that is overdue.
    nodes_told: bool,
    /// Whether each GPU's NVLinks are up, as it was last told.
    nvlinks: BTreeMap<GpuUuid, BTreeMap<u32, bool>>,
    /// Links may be others than those that are known.
    links_due: bool,
    last_poll: Instant,
    next_poll: Alarm,
    /// Who looks until then.
    between: Between,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        monitor: &'a mut Monitor,
        library: Arc<dyn GpuLibrary>,
        calls: &'a mut Calls<Key, Numbered>,
        supplies: &'a mut Supplies,
        number: u64,
    ) -> Self {
        Self {
            next_poll: Alarm::after(monitor.config.poll_interval),
            last_poll: Instant::now(),
            between: Between::Starting,
            monitor,
            library,
            calls,
            supplies,
            number,
            events: Subscription::default(),
            version: None,
            no_volume: None,
            scan: None,
            last_scan: None,
            missing: false,
            scan_due: false,
            driver_due: false,
            driver_told: false,
            supplied: false,
            nodes_told: false,
            nvlinks: BTreeMap::new(),
            links_due: true,
        }
    }

    /// Watches the GPUs until the session breaks. Says why, and whether it had
    /// enumerated them before.
    pub(super) async fn run(mut self) -> (LibraryError, bool) {
        let error = match self.poll() {
            Some(error) => error,
            None => self.watch().await,
        };
        self.calls.repeat_no_more();
        (error, self.last_scan.is_some())
    }

    async fn watch(&mut self) -> LibraryError {
        let rescan = self.monitor.rescan.clone();
        loop {
            let recovery = self.monitor.next_recovery();
            let broken = tokio::select! {
                outcome = self.calls.next() => self.all_came_back(outcome),
                // What began before the session is judged by the version that it tells.
                outcome = self.supplies.next(), if self.version.is_some() => {
                    self.supplied(outcome);
                    None
                }
                notice = self.events.next() => { self.noticed(notice); None }
                woken = self.monitor.next() => {
                    let ask = self.monitor.take(woken);
                    self.probe_as_told(ask);
                    None
                }
                () = self.next_poll.rings() => self.poll(),
                // It need not wait for the next poll.
                () = at(recovery) => {
                    self.probe_all();
                    None
                }
                () = rescan.notified() => {
                    self.scan_due = true;
                    self.driver_due = true;
                    self.poll()
                }
            };
            if let Some(error) = broken {
                return error;
            }
            self.monitor.untold.tell().await;
            self.ask_what_is_due();
            self.see_to_sentry();
        }
    }

    /// Takes in an answer, and those that came with it: to wait for each would take
    /// longer than most.
    fn all_came_back(&mut self, first: Outcome<Key, Numbered>) -> Option<LibraryError> {
        let mut outcome = Some(first);
        while let Some(came_back) = outcome {
            if let Some(error) = self.came_back(came_back) {
                return Some(error);
            }
            outcome = self.calls.returned();
        }
        None
    }

    /// Asks everything that is due. An error ends the session.
    fn poll(&mut self) -> Option<LibraryError> {
        self.put_off_polls();
        if let Some(version) = self.version.clone()
            && let Some(error) = self.other_module(&version)
        {
            return Some(error);
        }
        if self.driver_due || self.version.is_none() {
            self.ask_driver();
        } else if self.supply_due() {
            self.ask_supply();
        }
        self.ask_count();
        self.monitor.look_at_bus();
        // Device nodes come and go without a word from the library. One that is
        // made at once is not worth telling of, so the answer publishes.
        let looked = self.monitor.look();
        let nodes = self.nodes_due(&looked) && self.ask_nodes();
        self.probe_all();
        if !nodes {
            self.monitor.publish_if_changed(looked);
        }
        // Not before it is known what is in use from now on.
        if self.supplied {
            self.monitor.tidy();
        }
        None
    }

    /// Not before the GPUs are known.
    fn nodes_due(&self, looked: &Looked) -> bool {
        self.last_scan.is_some() && (!self.nodes_told || self.monitor.nodes_due(looked))
    }

    /// Asks the library on another thread, unless the same is asked already: then
    /// false.
    fn ask(
        &mut self,
        key: Key,
        question: impl FnOnce(&dyn GpuLibrary) -> Answer + Send + 'static,
    ) -> bool {
        let (library, number) = (self.library.clone(), self.number);
        self.calls
            .start(key, move || (number, question(library.as_ref())))
    }

    fn ask_driver(&mut self) {
        let asked = self.ask(Key::Driver, |library| {
            Answer::Driver(library.driver_version())
        });
        self.driver_due &= !asked;
    }

    fn ask_nodes(&mut self) -> bool {
        let work = self.monitor.nodes_work();
        self.ask(Key::Nodes, move |_| Answer::Nodes(work()))
    }

    fn ask_count(&mut self) {
        self.ask(Key::Count, |library| Answer::Count(library.count()));
    }

    /// Asks what somebody asked for while the same was under way.
    fn ask_what_is_due(&mut self) {
        if self.driver_due {
            self.ask_driver();
        }
        // Not while one is under way: each answer would only ask again.
        if self.scan_due && self.scan.is_none() {
            self.ask_count();
        }
        if self.links_due && self.monitor.complete {
            self.ask_links();
        }
    }

    /// No GPU waits for its links: until they are read, NUMA nodes are what devices
    /// are chosen by.
    fn place_gpus(&mut self) {
        let inventory = &mut self.monitor.inventory;
        let (places, known) = (inventory.places(), inventory.topology());
        self.links_due |= places != known.places() || !known.is_whole();
        if known.is_empty() && !places.is_empty() {
            inventory.choose_by(Arc::new(Chooser::new(Topology::unlinked(places))));
        }
    }

    fn ask_links(&mut self) {
        let places = self.monitor.inventory.places();
        let asked = self.ask(Key::Links, move |library| {
            Answer::Links(Arc::new(Chooser::new(library.topology(places))))
        });
        self.links_due &= !asked;
    }

    fn probe_all(&mut self) {
        let uuids: Vec<_> = self.monitor.inventory.uuids().cloned().collect();
        for uuid in uuids {
            self.probe(uuid);
        }
    }

    fn probe(&mut self, uuid: GpuUuid) {
        let gpu = uuid.clone();
        self.ask(Key::Probe(uuid), move |library| {
            Answer::Probe(since_boot(), library.probe(&gpu))
        });
    }

    /// Takes in what became of a call. An error ends the session.
    fn came_back(&mut self, outcome: Outcome<Key, Numbered>) -> Option<LibraryError> {
        match outcome {
            Outcome::Returned(key, (number, answer)) if number == self.number => {
                return self.answered(&key, answer);
            }
            Outcome::Returned(key, _) => self.ask_again(key),
            Outcome::Overdue(key) => self.overdue(&key),
            Outcome::Panicked(key) => {
                warn!(?key, "a call of the GPU library panicked");
                if key == Key::Round {
                    return self.poll();
                }
            }
        }
        self.end_scan();
        None
    }

    fn answered(&mut self, key: &Key, answer: Answer) -> Option<LibraryError> {
        match answer {
            Answer::Driver(Ok(version)) => {
                if let Some(error) = self.other_module(&version) {
                    return Some(error);
                }
                self.monitor.session_open(&version);
                self.version = Some(version);
                self.ask_supply();
            }
            Answer::Driver(Err(error)) | Answer::Count(Err(error)) => {
                self.monitor.count_error(error.call);
                return Some(error);
            }
            Answer::Nodes(report) => {
                self.nodes_told = true;
                self.monitor.nodes_kept(report);
                self.publish();
            }
            Answer::Count(Ok(count)) => self.counted(count),
            Answer::Read(reading) => {
                if let Some(scan) = &mut self.scan {
                    scan.readings.push(reading);
                }
            }
            Answer::Probe(asked, answer) => return self.probed(key, asked, answer),
            Answer::News(what) => return self.news(what),
            Answer::Links(chooser) => {
                self.monitor.inventory.choose_by(chooser);
                self.publish();
            }
        }
        self.end_scan();
        None
    }

    fn counted(&mut self, count: u32) {
        let due = match &self.last_scan {
            None => true,
            Some(last) => {
                last.count != count
                    || !last.all_identified
                    || last.at.elapsed() >= RESCAN
                    || self.monitor.inventory.any_amiss()
            }
        };
        if self.scan.is_some() || !(due || self.scan_due) {
            return;
        }
        self.scan_due = false;
        self.scan = Some(Scan {
            count,
            readings: Vec::new(),
        });
        for index in 0..count {
            self.ask_reading(index);
        }
    }

    fn ask_reading(&mut self, index: u32) {
        self.ask(Key::Read(index), move |library| {
            Answer::Read(library.read(index))
        });
    }

    /// An earlier session's answer came: what it was in the way of is asked now.
    fn ask_again(&mut self, key: Key) {
        match key {
            Key::Driver => self.ask_driver(),
            Key::Nodes => _ = self.ask_nodes(),
            Key::Count => self.ask_count(),
            Key::Read(index) if self.scan.as_ref().is_some_and(|scan| index < scan.count) => {
                self.ask_reading(index);
            }
            Key::Read(_) | Key::Round => {}
            Key::Probe(uuid) => self.probe(uuid),
            Key::Links => self.links_due = true,
        }
    }

    /// Ends the enumeration when no reading that is in time is out any more.
    fn end_scan(&mut self) {
        if self.calls.any_in_time(|key| matches!(key, Key::Read(_))) {
            return;
        }
        let Some(scan) = self.scan.take() else { return };
        let silent: Vec<_> = (0..scan.count)
            .filter(|index| self.calls.is_overdue(&Key::Read(*index)))
            .collect();
        // Indexes move when a GPU goes while they are read, and one that is still there
        // is passed over.
        let misses = self
            .monitor
            .inventory
            .misses(&scan.readings, &silent, DEADLINE);
        self.missing = misses && !self.missing && self.last_scan.is_some();
        if self.missing {
            self.scan_due = true;
            return;
        }
        for reading in &scan.readings {
            if let Reading::Unidentified { index, error } = reading {
                self.monitor.count_error(error.call);
                debug!(index, %error, "GPU could not be identified");
            }
        }
        let now = since_boot();
        self.monitor
            .inventory
            .scanned(now, &scan.readings, &silent, DEADLINE);
        // Whose place on the bus was seen once is missed there from now on.
        self.monitor.look_at_bus();
        self.place_gpus();
        self.between = self.between.enumerated();
        let first = self.last_scan.is_none();
        self.last_scan = Some(Scanned {
            at: Instant::now(),
            count: scan.count,
            all_identified: self.tell_unidentified(&scan, &silent),
        });
        // In full, as links and capabilities come and go unseen; the answer
        // publishes.
        let nodes = self.ask_nodes();
        if first {
            info!(gpus = scan.count, "GPUs enumerated");
            // A GPU that has just been read needs no probe to be listed.
            self.probe_all();
        }
        if !nodes {
            self.publish();
        }
        let ask = self.monitor.place_xids();
        self.probe_as_told(ask);
        self.subscribe();
        // Not at the start, which has other things to do.
        if !first {
            memory::give_back();
        }
    }

    /// Publishes what is known now, once all is: a list made before would call
    /// the GPUs unhealthy for want of an answer that is on its way.
    fn publish(&mut self) {
        let told = self.driver_told && self.nodes_told;
        self.monitor.complete |= told && self.last_scan.is_some();
        self.monitor.publish();
    }

    /// A GPU without a name cannot be listed, so the operator is told here. The
    /// others are served all the same: this is no reason not to be ready.
    /// Whether there is none.
    fn tell_unidentified(&self, scan: &Scan, silent: &[u32]) -> bool {
        let mut untold: Vec<_> = scan
            .readings
            .iter()
            .filter_map(|reading| match reading {
                Reading::Unidentified { index, error } => Some(format!("index {index}: {error}")),
                _ => None,
            })
            .collect();
        untold.extend(
            silent
                .iter()
                .map(|index| format!("index {index}: NVML does not answer")),
        );
        let count = i64::try_from(untold.len()).unwrap_or(i64::MAX);
        self.monitor.metrics.unidentified.set(count);
        self.monitor.readiness.ready(GPUS);
        let what = (!untold.is_empty())
            .then(|| format!("not readable: {}; the others are served", untold.join("; ")));
        if self.monitor.readiness.note(GPUS, what.as_deref())
            && let Some(what) = what
        {
            warn!(what, "some GPUs cannot be read");
        }
        count == 0
    }

    fn probed(
        &mut self,
        key: &Key,
        asked: Duration,
        answer: Result<Vitals, LibraryError>,
    ) -> Option<LibraryError> {
        let Key::Probe(uuid) = key else { return None };
        match &answer {
            Err(error) => {
                self.monitor.count_error(error.call);
                if error.kind == ErrorKind::Session {
                    return Some(error.clone());
                }
            }
            Ok(vitals) => self.note_nvlinks(uuid, &vitals.nvlinks),
        }
        self.signal(uuid, &Signal::Probed { asked, answer });
        None
    }

    /// One that went down is no way between GPUs any more.
    fn note_nvlinks(&mut self, uuid: &GpuUuid, nvlinks: &BTreeMap<u32, bool>) {
        match self.nvlinks.get_mut(uuid) {
            Some(last) if last == nvlinks => {}
            Some(last) => {
                last.clone_from(nvlinks);
                self.links_due = true;
            }
            None => _ = self.nvlinks.insert(uuid.clone(), nvlinks.clone()),
        }
    }

    fn overdue(&mut self, key: &Key) {
        let call = match key {
            Key::Nodes => return self.nodes_overdue(),
            // A poll has asked the same since, and says what hangs.
            Key::Round => return,
            Key::Driver => "nvmlSystemGetDriverVersion",
            Key::Count => "nvmlDeviceGetCount_v2",
            Key::Read(_) => "enumeration",
            Key::Probe(_) => "probe",
            Key::Links => "nvmlDeviceGetNvLinkState",
        };
        self.monitor.count_error(call);
        warn!(
            ?key,
            seconds = DEADLINE.as_secs(),
            "the driver hangs: a call has not come back"
        );
        match key {
            Key::Probe(uuid) => self.signal(uuid, &Signal::Overdue(DEADLINE)),
            Key::Driver => {
                self.driver_told = true;
                self.monitor.driver_silent(call, DEADLINE);
                self.publish();
            }
            Key::Nodes | Key::Count | Key::Read(_) | Key::Links | Key::Round => {}
        }
    }

    /// What is there is served all the same.
    fn nodes_overdue(&mut self) {
        let seconds = DEADLINE.as_secs();
        warn!(seconds, "making device nodes has not come to an end");
        self.nodes_told = true;
        self.publish();
    }

    /// Takes in a signal about one GPU, and publishes what it changes: most
    /// change nothing, and making a snapshot is work.
    fn signal(&mut self, uuid: &GpuUuid, signal: &Signal) {
        let now = since_boot();
        if self.monitor.inventory.signal(now, uuid, signal) {
            self.monitor.publish();
        }
    }

    fn noticed(&mut self, notice: Notice) {
        match notice {
            // The wait tells nothing of who is sick: ask each.
            Notice::Failed(error) => {
                self.monitor.count_error(error.call);
                warn!(%error, "waiting for XID events failed; asking each GPU");
                self.probe_all();
            }
            Notice::Retry => {
                self.subscribe();
            }
        }
    }

    fn subscribe(&mut self) {
        let found = self.monitor.inventory.found();
        let xids = &self.monitor.xid_sender;
        self.events.subscribe(&self.library, found, xids);
    }

    fn probe_as_told(&mut self, ask: Ask) {
        match ask {
            Ask::All => self.probe_all(),
            Ask::These(gpus) => gpus.into_iter().for_each(|uuid| self.probe(uuid)),
        }
    }
}
