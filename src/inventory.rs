//! Which devices there are: what was read of the GPUs, over time, to the
//! devices of each resource. Pure, but for [`look`](Inventory::look).

mod advertised;
mod node;
mod watched;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::choice::Chooser;
use crate::config::HealthOptions;
use crate::device::{
    Common, Device, DeviceId, DeviceNode, DeviceSnapshot, Health, Snapshots, UnhealthyReason, Unit,
};
use crate::driver::nodes::Needed;
use crate::gpu::topology::{Place, Topology};
use crate::gpu::{Gpu, GpuUuid, Reading};
use crate::health::kmsg::PciAddress;
use crate::health::reducer::{GpuHealth, Kept, Signal};
use crate::health::report::{DeviceStatus, GpuStatus, HealthReport, NodeFault, Sickness};
use crate::health::signals::Kind;
use crate::kubelet::checkpoint::Held;

pub use self::advertised::Rules;
use self::advertised::{Advertised, Part, Seen, Slot};
use self::node::instances;
pub use self::node::{Looked, Node};
pub use self::watched::Watched;

#[derive(Clone, Debug, Default)]
struct Entry {
    /// Of the last enumeration that found it.
    index: Option<u32>,
    gpu: Option<Gpu>,
    /// The last that was named: a GPU that is gone is listed where it was.
    numa_node: Option<u32>,
    /// The kernel had a PCI device for it once: only then is its absence news.
    on_bus: bool,
    health: GpuHealth,
}

/// Every GPU that was ever seen, by UUID. None is ever dropped: a kubelet that
/// is asked about an ID that it gave away and that is listed no more may panic
/// (Kubernetes' pkg/kubelet/cm/devicemanager/manager.go, `filterByAffinity`).
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    gpus: BTreeMap<GpuUuid, Entry>,
    advertised: Advertised,
    options: HealthOptions,
    /// What an earlier process left of GPUs that were not seen yet. One that was
    /// taken out of the node is never seen again, and is not listed.
    kept: BTreeMap<GpuUuid, Kept>,
    chooser: Arc<Chooser>,
    /// Counts the changes.
    revision: u64,
}

impl Inventory {
    /// No GPU yet. `rules` are those of resources; `kept` is the health that an earlier process of the same boot
    /// left.
    #[must_use]
    pub fn new(rules: Rules, options: HealthOptions, kept: BTreeMap<GpuUuid, Kept>) -> Self {
        Self {
            gpus: BTreeMap::new(),
            advertised: Advertised::new(rules),
            options,
            kept,
            chooser: Arc::default(),
            revision: 0,
        }
    }

    /// Another number after each change: until then, whatever is told of the same
    /// node is the same.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// What of all GPUs' health outlives the process.
    #[must_use]
    pub fn keep(&self) -> BTreeMap<GpuUuid, Kept> {
        let known = self.gpus.iter();
        let known = known.map(|(uuid, entry)| (uuid.clone(), entry.health.keep()));
        let mut all = self.kept.clone();
        all.extend(known.filter(|(_, kept)| !kept.is_blank()));
        all
    }

    /// From now on health is judged by these.
    pub fn set_options(&mut self, now: Duration, options: HealthOptions) {
        self.options = options;
        self.revision += 1;
        for entry in self.gpus.values_mut() {
            entry.health.apply(now, &Signal::Tick, &self.options);
        }
    }

    /// Takes note of devices that pods hold: they must be listed though none was read
    /// yet, and are unhealthy unless the first scan finds them. Listed on no NUMA node,
    /// they would cost pods their lives where a kubelet that aligns restarts
    /// (Kubernetes' pkg/kubelet/cm/devicemanager/topology_hints.go).
    pub fn remember(&mut self, now: Duration, held: impl IntoIterator<Item = Held>) {
        self.revision += 1;
        for held in held {
            if let Some(gpu) = self.advertised.remember(&held) {
                let entry = self.entry(now, &gpu);
                entry.numa_node = entry.numa_node.or(held.numa_node);
            }
        }
    }

    fn entry(&mut self, now: Duration, uuid: &GpuUuid) -> &mut Entry {
        let kept = &mut self.kept;
        self.gpus.entry(uuid.clone()).or_insert_with(|| Entry {
            health: kept
                .remove(uuid)
                .map_or_else(GpuHealth::default, |kept| GpuHealth::restore(kept, now)),
            ..Entry::default()
        })
    }

    /// Whether an enumeration, as [`scanned`](Self::scanned) takes it in, misses a GPU
    /// that the last one found.
    #[must_use]
    pub fn misses(&self, readings: &[Reading], silent: &[u32], deadline: Duration) -> bool {
        let found = self
            .gpus
            .iter()
            .filter(|(_, entry)| entry.health.is_found());
        let mut unread = found.filter(|(uuid, _)| {
            let named = |reading| identity(reading) == Some(uuid);
            !readings.iter().any(named)
        });
        unread.any(|(_, entry)| {
            let signal = unseen(entry.index, readings, silent, deadline);
            matches!(signal, Signal::Vanished)
        })
    }

    /// Takes in a whole enumeration. `silent` are the indexes whose reading
    /// did not come back within `deadline`.
    pub fn scanned(
        &mut self,
        now: Duration,
        readings: &[Reading],
        silent: &[u32],
        deadline: Duration,
    ) {
        self.revision += 1;
        for reading in readings {
            match reading {
                Reading::Gpu(gpu) => {
                    let entry = self.entry(now, &gpu.uuid);
                    entry.index = Some(gpu.index);
                    entry.gpu = Some(gpu.clone());
                    entry.numa_node = gpu.numa_node.or(entry.numa_node);
                    self.signal(now, &gpu.uuid, &Signal::Present);
                }
                Reading::Partial { uuid, index, error } => {
                    self.entry(now, uuid).index = Some(*index);
                    self.signal(now, uuid, &Signal::Unreadable(error.clone()));
                }
                Reading::Unidentified { .. } => {}
            }
        }
        for (uuid, entry) in &mut self.gpus {
            if readings
                .iter()
                .any(|reading| identity(reading) == Some(uuid))
            {
                continue;
            }
            let signal = unseen(entry.index, readings, silent, deadline);
            entry.health.apply(now, &signal, &self.options);
        }
        self.advertise();
    }

    /// Where the GPUs are that could be read, those that are gone left out.
    pub fn places(&self) -> Vec<Place> {
        let found = self.gpus.values().filter(|entry| entry.health.is_found());
        let mut places: Vec<_> = found
            .filter_map(|entry| entry.gpu.as_ref())
            .map(Place::of)
            .collect();
        places.sort_by_key(|place| place.index);
        places
    }

    /// How its GPUs are linked, as far as is known.
    pub fn topology(&self) -> &Topology {
        self.chooser.topology()
    }

    /// From now on devices are chosen so.
    pub fn choose_by(&mut self, chooser: Arc<Chooser>) {
        self.chooser = chooser;
        self.revision += 1;
    }

    /// Draws the conclusion for the resources.
    fn advertise(&mut self) {
        let seen = self.gpus.iter().filter_map(|(uuid, entry)| {
            Some(Seen {
                uuid,
                index: entry.index?,
                gpu: entry.gpu.as_ref(),
                found: entry.health.is_found(),
            })
        });
        let mut seen: Vec<_> = seen.collect();
        seen.sort_by_key(|seen| seen.index);
        self.advertised.update(&seen);
    }

    /// Takes in a signal about one GPU. One that is not known is passed over.
    /// Whether its health is another now.
    pub fn signal(&mut self, now: Duration, uuid: &GpuUuid, signal: &Signal) -> bool {
        let Some(entry) = self.gpus.get_mut(uuid) else {
            return false;
        };
        let before = entry.health.clone();
        entry.health.apply(now, signal, &self.options);
        if entry.health == before {
            return false;
        }
        self.revision += 1;
        let told = |health: &GpuHealth| (health.sicknesses(&self.options), health.notes().clone());
        told(&entry.health) != told(&before)
    }

    /// Takes in whether the kernel has a PCI device for each GPU. Whether any
    /// health is another now.
    pub fn on_bus(&mut self, now: Duration, is_there: impl Fn(&Gpu) -> bool) -> bool {
        let mut news = Vec::new();
        for (uuid, entry) in &mut self.gpus {
            let Some(gpu) = &entry.gpu else { continue };
            let there = is_there(gpu);
            entry.on_bus |= there;
            if entry.on_bus {
                news.push((uuid.clone(), Signal::OnBus(there)));
            }
        }
        let changed = news
            .iter()
            .map(|(uuid, signal)| self.signal(now, uuid, signal));
        changed.fold(false, |any, changed| any | changed)
    }

    /// When the next GPU that recovers could be healthy again, if it answers well
    /// then; in time since boot.
    #[must_use]
    pub fn next_recovery(&self, now: Duration) -> Option<Duration> {
        let sick = self
            .gpus
            .values()
            .flat_map(|entry| entry.health.sicknesses(&self.options));
        let times = sick.filter_map(|(_, sickness)| sickness.recovering_until);
        times.filter(|until| *until > now).min()
    }

    /// What is reported of a GPU and not acted on.
    pub fn notes(&self, uuid: &GpuUuid) -> impl Iterator<Item = Kind> {
        let entry = self.gpus.get(uuid).into_iter();
        entry.flat_map(|entry| entry.health.notes().iter().copied())
    }

    /// The GPU that was last seen at this place on the bus.
    #[must_use]
    pub fn at(&self, pci: PciAddress) -> Option<GpuUuid> {
        let gpus = self.gpus.values().filter_map(|entry| entry.gpu.as_ref());
        let mut there = gpus.filter(|gpu| PciAddress::from_nvml(&gpu.pci_bus_id) == Some(pci));
        there.next().map(|gpu| gpu.uuid.clone())
    }

    /// Every GPU that was ever seen.
    pub fn uuids(&self) -> impl Iterator<Item = &GpuUuid> {
        self.gpus.keys()
    }

    /// The GPUs that the last enumeration found and read whole.
    pub fn found(&self) -> Vec<GpuUuid> {
        let found = self
            .gpus
            .iter()
            .filter(|(_, entry)| entry.health.is_found());
        found.map(|(uuid, _)| uuid.clone()).collect()
    }

    /// What the GPUs that the last enumeration found need device nodes for.
    pub fn needed(&self) -> Needed {
        let found = self.gpus.iter();
        let found = found.filter(|(_, entry)| entry.health.is_found());
        let found = found.filter_map(|(uuid, entry)| Some((uuid, entry.gpu.as_ref()?)));
        let gpus: BTreeMap<_, _> = found.collect();
        let migs = self
            .advertised
            .current()
            .filter_map(|slot| match &slot.part {
                Part::Mig(mig) => Some(instances(gpus.get(&mig.parent_uuid)?, mig)),
                Part::Gpu(_) | Part::UnknownMig(_) => None,
            });
        Needed {
            instances: migs.flatten().collect(),
            gpus: gpus.values().map(|gpu| gpu.minor_number).collect(),
        }
    }

    /// Looks for the files on `node` that its snapshots depend on.
    #[must_use]
    pub fn look(&self, node: &Node) -> Looked {
        node.look(&self.device_nodes(node))
    }

    /// What another thread needs to see that nothing has changed.
    #[must_use]
    pub fn watched(&self, node: &Node, looked: Looked) -> Watched {
        let gpus = self.gpus.iter().map(|(uuid, entry)| {
            let on_bus = entry.gpu.clone().filter(|_| entry.on_bus);
            (uuid.clone(), (entry.health.clone(), on_bus))
        });
        Watched {
            gpus: gpus.collect(),
            options: self.options.clone(),
            device_nodes: self.device_nodes(node),
            node: node.clone(),
            looked,
        }
    }

    /// The nodes of devices, those of a GPU that is gone among them.
    fn device_nodes(&self, node: &Node) -> Vec<DeviceNode> {
        let gpus = self.gpus.values().filter_map(|entry| entry.gpu.as_ref());
        let gpus = gpus.map(|gpu| node.dev_root.gpu(gpu.minor_number));
        let instances = self.needed().instances.into_iter();
        let minors = instances.filter_map(|instance| node.mig_minors.of(instance));
        gpus.chain(minors.map(|minor| node.dev_root.capability(minor)))
            .collect()
    }

    /// Whether any device node that is needed is missing or another device's.
    pub fn lacks_nodes(&self, node: &Node, looked: &Looked) -> bool {
        if node.is_whole(looked) {
            return false;
        }
        let Needed { gpus, instances } = self.needed();
        let mut nodes = looked.common.clone();
        nodes.extend(gpus.into_iter().map(|minor| node.dev_root.gpu(minor)));
        let minors = instances.into_iter();
        let minors = minors.filter_map(|instance| node.mig_minors.of(instance));
        nodes.extend(minors.map(|minor| node.dev_root.capability(minor)));
        node.unfit(looked, &nodes).is_some()
    }

    /// Whether any GPU is not healthy.
    pub fn any_amiss(&self) -> bool {
        self.gpus
            .values()
            .any(|entry| entry.health.sickness_of_any(&self.options).is_some())
    }

    /// What the configuration says of resources.
    pub fn rules(&self) -> &Rules {
        self.advertised.rules()
    }

    /// Why no device is advertised at all, if so.
    pub fn refused(&self) -> Option<&str> {
        self.advertised.refused()
    }

    /// What of the GPUs is not advertised, and why, if any.
    pub fn left_out(&self) -> Option<String> {
        self.advertised.left_out()
    }

    /// The devices of every resource.
    pub fn devices(&self, node: &Node, looked: &Looked) -> Snapshots {
        let common = Common {
            one_replica_only: self.rules().sharing.fail_requests_greater_than_one,
            ..node.common(looked)
        };
        let amiss = node.amiss(looked, &common);
        let resources = self.advertised.resources().iter();
        let snapshots = resources.map(|(resource, slots)| {
            let snapshot = DeviceSnapshot {
                complete: true,
                devices: self.units((node, looked), amiss.as_ref(), slots),
                common: common.clone(),
                chooser: self.chooser.clone(),
            };
            (resource.clone(), snapshot)
        });
        snapshots.collect()
    }

    /// Replicas of a unit follow each other, and share it.
    fn units(
        &self,
        on: (&Node, &Looked),
        amiss: Option<&UnhealthyReason>,
        slots: &BTreeMap<DeviceId, Slot>,
    ) -> Vec<Device> {
        let mut last: Option<(&Slot, Arc<Unit>)> = None;
        let devices = slots.iter().map(|(id, slot)| {
            let same = last.take().filter(|(last, _)| *last == slot);
            let unit = match same {
                Some((_, unit)) => unit,
                None => Arc::new(self.unit(on, amiss, slot)),
            };
            last = Some((slot, unit.clone()));
            let id = id.clone();
            Device { id, unit }
        });
        devices.collect()
    }

    fn unit(
        &self,
        (node, looked): (&Node, &Looked),
        amiss: Option<&UnhealthyReason>,
        slot: &Slot,
    ) -> Unit {
        let uuid = slot.part.gpu();
        let gpu = uuid.and_then(|uuid| self.gpus.get(uuid)?.gpu.as_ref());
        let mig = match &slot.part {
            Part::Mig(mig) => Some(mig.clone()),
            Part::Gpu(_) | Part::UnknownMig(_) => None,
        };
        let nodes = gpu.map_or(Ok(Vec::new()), |gpu| node.of(gpu, mig.as_ref()));
        let withdrawn = slot.withdrawn.clone().map(UnhealthyReason::Withdrawn);
        let sick = self.sickness(slot).map(UnhealthyReason::Sick);
        let unfit = || match &nodes {
            Ok(nodes) => node.unfit(looked, nodes),
            Err(reason) => Some(reason.clone()),
        };
        // A lost GPU is lost first of all; a MIG device that is no more is that.
        let own = match mig {
            None => sick.or(withdrawn),
            Some(_) => withdrawn.or(sick),
        };
        let reason = own.or_else(|| amiss.cloned()).or_else(unfit);
        Unit {
            uuid: uuid.cloned(),
            gpu: gpu.cloned(),
            numa_node: self.numa_node(slot),
            mig,
            health: reason.map_or(Health::Healthy, Health::Unhealthy),
            nodes: nodes.unwrap_or_default(),
        }
    }

    fn numa_node(&self, slot: &Slot) -> Option<u32> {
        match &slot.part {
            Part::UnknownMig(numa_node) => *numa_node,
            part => self.gpus.get(part.gpu()?)?.numa_node,
        }
    }

    /// Why what a device stands for is sick. Of what is not advertised any more,
    /// the GPU alone can be: another instance may have its ID now.
    fn sickness(&self, slot: &Slot) -> Option<Sickness> {
        let health = &self.gpus.get(slot.part.gpu()?)?.health;
        match &slot.part {
            _ if slot.withdrawn.is_some() => health.sickness(&self.options),
            Part::Mig(mig) => health.sickness_of(mig.gpu_instance_id, &self.options),
            Part::Gpu(_) | Part::UnknownMig(_) => health.sickness_of_any(&self.options),
        }
    }

    /// What others than the kubelet are told of the same devices.
    pub fn report(&self, node: &Node, looked: &Looked, snapshots: &Snapshots) -> HealthReport {
        let one = snapshots.values().next();
        let amiss = one.and_then(|snapshot| node.amiss(looked, &snapshot.common));
        let mut devices = self.statuses();
        let gpus = self.gpus.iter().map(|(uuid, entry)| GpuStatus {
            uuid: uuid.clone(),
            index: entry.index,
            devices: devices.remove(uuid).unwrap_or_default(),
            sickness: entry.health.sickness(&self.options),
            notes: entry.health.notes().iter().copied().collect(),
        });
        HealthReport {
            complete: one.is_some_and(|snapshot| snapshot.complete),
            node: amiss.map(|reason| NodeFault {
                reason: reason.name(),
                message: reason.to_string(),
            }),
            gpus: gpus.collect(),
        }
    }

    /// The devices of each GPU.
    fn statuses(&self) -> BTreeMap<&GpuUuid, Vec<DeviceStatus>> {
        let mut devices = BTreeMap::<_, Vec<_>>::new();
        for (resource, slots) in self.advertised.resources() {
            for (id, slot) in slots {
                let Some(gpu) = slot.part.gpu() else { continue };
                devices.entry(gpu).or_default().push(DeviceStatus {
                    resource: resource.clone(),
                    id: id.clone(),
                    sickness: self.sickness(slot),
                });
            }
        }
        devices
    }
}

fn identity(reading: &Reading) -> Option<&GpuUuid> {
    match reading {
        Reading::Gpu(gpu) => Some(&gpu.uuid),
        Reading::Partial { uuid, .. } => Some(uuid),
        Reading::Unidentified { .. } => None,
    }
}

/// What became of a GPU that did not say its name in a scan: what stands at
/// its old index failed, or did not answer, or it is gone.
fn unseen(index: Option<u32>, readings: &[Reading], silent: &[u32], deadline: Duration) -> Signal {
    let Some(index) = index else {
        return Signal::Vanished;
    };
    if silent.contains(&index) {
        return Signal::Overdue(deadline);
    }
    readings
        .iter()
        .find_map(|reading| match reading {
            Reading::Unidentified { index: at, error } if *at == index => {
                Some(Signal::Unreadable(error.clone()))
            }
            _ => None,
        })
        .unwrap_or(Signal::Vanished)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{ErrorKind, LibraryError};
    use crate::health::cause::Cause;

    const DEADLINE: Duration = Duration::from_secs(10);

    fn gpu(index: u32, uuid: &str) -> Reading {
        Reading::Gpu(Gpu {
            uuid: uuid.into(),
            index,
            minor_number: index,
            pci_bus_id: format!("00000000:{index:02X}:00.0"),
            numa_node: None,
            memory_bytes: None,
            compute_capability: None,
            product_name: "NVIDIA H200".into(),
            mig_enabled: false,
            mig_devices: Vec::new(),
        })
    }

    fn failed() -> LibraryError {
        LibraryError {
            call: "nvmlDeviceGetUUID",
            kind: ErrorKind::GpuLost,
            message: "".into(),
        }
    }

    fn causes(inventory: &Inventory) -> Vec<(String, Option<Cause>)> {
        inventory
            .gpus
            .iter()
            .map(|(uuid, entry)| {
                let sickness = entry.health.sickness(&inventory.options);
                (uuid.to_string(), sickness.map(|sickness| sickness.cause))
            })
            .collect()
    }

    fn scanned(scans: &[(&[Reading], &[u32])]) -> Inventory {
        let mut inventory = Inventory::default();
        for (readings, silent) in scans {
            inventory.scanned(Duration::ZERO, readings, silent, DEADLINE);
        }
        inventory
    }

    #[test]
    fn a_gpu_that_vanishes_stays_listed() {
        let inventory = scanned(&[(&[gpu(0, "a"), gpu(1, "b")], &[]), (&[gpu(0, "b")], &[])]);
        assert_eq!(
            causes(&inventory),
            [("a".into(), Some(Cause::Vanished)), ("b".into(), None)]
        );
    }

    /// `a` goes between the reading of index 0 and that of index 1, and `b`, which is
    /// still there, is passed over.
    #[test]
    fn an_enumeration_misses_what_an_earlier_one_found_and_nothing_else() {
        let inventory = scanned(&[(&[gpu(0, "a"), gpu(1, "b"), gpu(2, "c")], &[])]);
        let misses =
            |readings: &[Reading], silent: &[u32]| inventory.misses(readings, silent, DEADLINE);
        assert!(misses(&[gpu(0, "a"), gpu(1, "c")], &[]));
        assert!(misses(&[gpu(0, "b"), gpu(1, "c")], &[]));
        assert!(!misses(&[gpu(0, "c"), gpu(1, "b"), gpu(2, "a")], &[]));
        // What does not answer, or not well, is not gone.
        assert!(!misses(&[gpu(0, "a"), gpu(1, "b")], &[2]));
        let lost = Reading::Unidentified {
            index: 2,
            error: failed(),
        };
        assert!(!misses(&[gpu(0, "a"), gpu(1, "b"), lost], &[]));
    }

    #[test]
    fn a_gpu_that_cannot_say_its_name_any_more_is_known_by_its_index() {
        let lost = Reading::Unidentified {
            index: 1,
            error: failed(),
        };
        let inventory = scanned(&[
            (&[gpu(0, "a"), gpu(1, "b")], &[]),
            (&[gpu(0, "a"), lost], &[]),
        ]);
        assert_eq!(
            causes(&inventory)[1],
            ("b".into(), Some(Cause::Lost("nvmlDeviceGetUUID".into())))
        );
    }

    #[test]
    fn a_gpu_that_is_read_in_part_is_listed_with_the_reason_and_the_others_are_served() {
        let part = Reading::Partial {
            uuid: "b".into(),
            index: 1,
            error: failed(),
        };
        let inventory = scanned(&[(&[gpu(0, "a"), part], &[])]);
        assert_eq!(causes(&inventory)[0], ("a".into(), None));
        assert!(causes(&inventory)[1].1.is_some());
    }

    #[test]
    fn a_gpu_whose_reading_hangs_is_not_taken_for_vanished() {
        let inventory = scanned(&[(&[gpu(0, "a"), gpu(1, "b")], &[]), (&[gpu(0, "a")], &[1])]);
        assert_eq!(
            causes(&inventory)[1],
            ("b".into(), Some(Cause::NotAnswering(10)))
        );
    }

    fn held(id: &str) -> Held {
        Held {
            resource: "nvidia.com/gpu".into(),
            id: id.into(),
            numa_node: Some(1),
        }
    }

    #[test]
    fn what_is_gone_is_listed_where_it_was() {
        let mut inventory = Inventory::default();
        inventory.remember(Duration::ZERO, ["GPU-b", "MIG-c"].map(held));
        let mut found = gpu(0, "GPU-a");
        if let Reading::Gpu(gpu) = &mut found {
            gpu.numa_node = Some(0);
        }
        let nodes = |inventory: &Inventory| -> Vec<_> {
            let slots = inventory.advertised.resources()["nvidia.com/gpu"].iter();
            slots
                .map(|(id, slot)| (id.to_string(), inventory.numa_node(slot)))
                .collect()
        };
        let expected = [("GPU-a", 0), ("GPU-b", 1), ("MIG-c", 1)];
        let expected = expected.map(|(id, node)| (id.to_owned(), Some(node)));
        // Read whole; then NVML still answers and sysfs does not; then it is gone.
        for readings in [&[found][..], &[gpu(0, "GPU-a")], &[]] {
            inventory.scanned(Duration::ZERO, readings, &[], DEADLINE);
            assert_eq!(nodes(&inventory), expected);
        }
    }

    #[test]
    fn a_remembered_gpu_is_unhealthy_unless_it_is_found() {
        let mut inventory = Inventory::default();
        inventory.remember(Duration::ZERO, ["GPU-a", "GPU-b"].map(held));
        inventory.scanned(Duration::ZERO, &[gpu(0, "GPU-a")], &[], DEADLINE);
        let expected = [
            ("GPU-a".into(), None),
            ("GPU-b".into(), Some(Cause::Vanished)),
        ];
        assert_eq!(causes(&inventory), expected);
    }
}
