//! Which devices each resource has: the GPUs' modes and the configuration, to a
//! list that only grows. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use crate::config::sharing::{DeviceName, SharedDevices, SharedResource, Sharing};
use crate::config::{Config, MigStrategy};
use crate::device::DeviceId;
use crate::gpu::{Gpu, GpuUuid, MigDevice};
use crate::kubelet::checkpoint::Held;

const MIG_MODE: &str = "the GPU is in MIG mode, and its MIG devices are advertised in its place";
const NO_MIG_DEVICE: &str = "there is no such MIG device any more";
const SHARED_ANEW: &str = "the configuration does not advertise it any more";

/// What the configuration says of resources and their devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// The resource of whole GPUs.
    pub resource_name: String,
    /// What GPUs in MIG mode are advertised as.
    pub mig_strategy: MigStrategy,
    /// What is shared.
    pub sharing: Sharing,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            resource_name: "nvidia.com/gpu".into(),
            mig_strategy: MigStrategy::default(),
            sharing: Sharing::default(),
        }
    }
}

impl Rules {
    /// Those of a configuration.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self {
            resource_name: config.resource_name.clone(),
            mig_strategy: config.mig_strategy,
            sharing: config.sharing.clone(),
        }
    }

    /// The resource that is advertised though it has no devices: a node may have
    /// none yet.
    #[must_use]
    pub fn first_resource(&self) -> &str {
        match self.sharing.of(&self.resource_name) {
            Some(shared) if *shared.devices() == SharedDevices::All => shared.shared_as(),
            _ => &self.resource_name,
        }
    }

    /// Whether devices of this resource may be of ours. Another plugin's are not.
    #[must_use]
    pub fn may_advertise(&self, resource: &str) -> bool {
        let mixed = self.mig_strategy == MigStrategy::Mixed;
        resource == self.resource_name
            || self.sharing.shared_names().any(|name| name == resource)
            || (mixed && resource.starts_with(&self.mig_resource("")))
    }

    /// What MIG devices of this profile are advertised as beside whole GPUs. A
    /// name may have no plus sign.
    fn mig_resource(&self, profile: &str) -> String {
        let domain = self.resource_name.split('/').next().unwrap_or_default();
        format!("{domain}/mig-{}", profile.replace('+', "."))
    }
}

/// A GPU as it was last seen.
pub(super) struct Seen<'a> {
    pub(super) uuid: &'a GpuUuid,
    pub(super) index: u32,
    /// What is known of it.
    pub(super) gpu: Option<&'a Gpu>,
    /// The last enumeration found it, and read it whole.
    pub(super) found: bool,
}

/// What a device is, or is a share of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Gpu(GpuUuid),
    Mig(MigDevice),
    /// A MIG device that a pod holds and that was never seen; its NUMA node.
    UnknownMig(Option<u32>),
}

/// A device of a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) part: Part,
    /// Why it is not to be given any more.
    pub(super) withdrawn: Option<Arc<str>>,
}

/// A device before it is shared.
struct Base<'a> {
    resource: String,
    part: Part,
    uuid: &'a str,
    index: (u32, Option<u32>),
}

/// Every device that was ever advertised, by resource. None is ever dropped, as
/// no GPU is.
#[derive(Clone, Debug, Default)]
pub(super) struct Advertised {
    rules: Rules,
    resources: BTreeMap<String, BTreeMap<DeviceId, Slot>>,
    /// What became of each device by UUID, when it was first seen: another answer
    /// later, for an index that moved, would take it from those who hold it.
    decided: BTreeMap<String, (String, Option<u32>)>,
    /// Why no device is advertised.
    refused: Option<String>,
    /// What is left out.
    left_out: BTreeSet<String>,
}

impl Part {
    /// The GPU that it is of.
    pub(super) fn gpu(&self) -> Option<&GpuUuid> {
        match self {
            Self::Gpu(uuid) => Some(uuid),
            Self::Mig(mig) => Some(&mig.parent_uuid),
            Self::UnknownMig(_) => None,
        }
    }
}

impl Advertised {
    pub(super) fn new(rules: Rules) -> Self {
        let first = rules.first_resource().to_owned();
        Self {
            rules,
            resources: [(first, BTreeMap::new())].into(),
            ..Self::default()
        }
    }

    pub(super) fn rules(&self) -> &Rules {
        &self.rules
    }

    pub(super) fn resources(&self) -> &BTreeMap<String, BTreeMap<DeviceId, Slot>> {
        &self.resources
    }

    /// Why no device is advertised, by the last enumeration.
    pub(super) fn refused(&self) -> Option<&str> {
        self.refused.as_deref()
    }

    /// What of the GPUs is not advertised, and why.
    pub(super) fn left_out(&self) -> Option<String> {
        let what: Vec<_> = self.left_out.iter().map(String::as_str).collect();
        (!what.is_empty()).then(|| what.join("; "))
    }

    /// The devices that are to be given, or could be.
    pub(super) fn current(&self) -> impl Iterator<Item = &Slot> {
        let slots = self.resources.values().flat_map(BTreeMap::values);
        slots.filter(|slot| slot.withdrawn.is_none())
    }

    /// Lists a device that a pod holds, found or not. The GPU that it is of, if it
    /// tells.
    pub(super) fn remember(&mut self, held: &Held) -> Option<GpuUuid> {
        let id = DeviceId::from(held.id.as_str());
        let gpu = id.uuid().starts_with("GPU-").then(|| id.uuid().into());
        let (part, why) = match &gpu {
            Some(gpu) => (Part::Gpu(GpuUuid::clone(gpu)), SHARED_ANEW),
            None => (Part::UnknownMig(held.numa_node), NO_MIG_DEVICE),
        };
        let slot = Slot {
            part,
            withdrawn: Some(why.into()),
        };
        let slots = self.resources.entry(held.resource.clone()).or_default();
        slots.entry(id).or_insert(slot);
        gpu
    }

    /// Takes in the GPUs after an enumeration, in the order of their indexes.
    pub(super) fn update(&mut self, gpus: &[Seen<'_>]) {
        self.left_out.clear();
        let by_mig = by_mig(self.rules.mig_strategy, gpus);
        self.refused = by_mig.as_ref().err().cloned();
        self.withdraw_all(gpus);
        let bases = by_mig.map(|by_mig| self.bases(by_mig, gpus));
        for base in bases.into_iter().flatten() {
            self.advertise(&base);
        }
    }

    /// Until it is found among those of today.
    fn withdraw_all(&mut self, gpus: &[Seen<'_>]) {
        let in_mig_mode = |uuid: &GpuUuid| {
            let mut gpus = gpus.iter().filter(|gpu| gpu.uuid == uuid);
            gpus.any(|gpu| gpu.gpu.is_some_and(|gpu| gpu.mig_enabled))
        };
        let refused: Option<Arc<str>> = self.refused.as_deref().map(Arc::from);
        for slot in self.resources.values_mut().flat_map(BTreeMap::values_mut) {
            let why = || match &slot.part {
                Part::Gpu(uuid) if in_mig_mode(uuid) => MIG_MODE.into(),
                Part::Gpu(_) => SHARED_ANEW.into(),
                Part::Mig(_) | Part::UnknownMig(_) => NO_MIG_DEVICE.into(),
            };
            slot.withdrawn = Some(refused.clone().unwrap_or_else(why));
        }
    }

    fn bases<'a>(&mut self, by_mig: ByMig, gpus: &[Seen<'a>]) -> Vec<Base<'a>> {
        let mut bases = Vec::new();
        for seen in gpus {
            match seen.gpu.filter(|gpu| gpu.mig_enabled) {
                Some(gpu) if by_mig != ByMig::Ignored => {
                    self.mig_bases(by_mig, seen, gpu, &mut bases);
                }
                _ if by_mig == ByMig::InPlace => {}
                _ => bases.push(Base {
                    resource: self.rules.resource_name.clone(),
                    part: Part::Gpu(seen.uuid.clone()),
                    uuid: seen.uuid.as_str(),
                    index: (seen.index, None),
                }),
            }
        }
        bases
    }

    fn mig_bases<'a>(
        &mut self,
        by_mig: ByMig,
        seen: &Seen<'a>,
        gpu: &'a Gpu,
        bases: &mut Vec<Base<'a>>,
    ) {
        for mig in &gpu.mig_devices {
            if !mig.is_whole_instance() {
                let (uuid, profile) = (&mig.uuid, &mig.profile);
                self.left_out.insert(format!(
                    "{uuid} has profile {profile}, a part of a GPU instance"
                ));
                continue;
            }
            bases.push(Base {
                resource: match by_mig {
                    ByMig::Beside => self.rules.mig_resource(&mig.profile),
                    _ => self.rules.resource_name.clone(),
                },
                part: Part::Mig(mig.clone()),
                uuid: &mig.uuid,
                index: (seen.index, Some(mig.index)),
            });
        }
    }

    fn advertise(&mut self, base: &Base<'_>) {
        let (resource, replicas) = self.decide(base);
        let slots = self.resources.entry(resource).or_default();
        let numbers = match replicas {
            None => vec![None],
            Some(replicas) => (0..replicas).map(Some).collect(),
        };
        for replica in numbers {
            let slot = Slot {
                part: base.part.clone(),
                withdrawn: None,
            };
            slots.insert(DeviceId::new(base.uuid, replica), slot);
        }
    }

    /// The resource that a device is of, and how many replicas there are of it.
    fn decide(&mut self, base: &Base<'_>) -> (String, Option<u32>) {
        if let Some(decided) = self.decided.get(base.uuid) {
            return decided.clone();
        }
        let shared = self.rules.sharing.of(&base.resource);
        let shared = shared.filter(|shared| self.is_shared(shared, base));
        let decided = match shared {
            Some(shared) => (shared.shared_as().to_owned(), Some(shared.replicas())),
            None => (base.resource.clone(), None),
        };
        self.decided.insert(base.uuid.into(), decided.clone());
        decided
    }

    fn is_shared(&self, shared: &SharedResource, base: &Base<'_>) -> bool {
        let is = |name: &DeviceName| match name {
            DeviceName::Gpu(gpu) => base.index == (*gpu, None),
            DeviceName::Mig(gpu, mig) => base.index == (*gpu, Some(*mig)),
            DeviceName::Uuid(uuid) => uuid == base.uuid,
        };
        match shared.devices() {
            SharedDevices::All => true,
            SharedDevices::List(names) => names.iter().any(is),
            SharedDevices::Count(count) => {
                let decided = self.decided.values();
                let of_it = decided.filter(|(resource, replicas)| {
                    resource == shared.shared_as() && replicas.is_some()
                });
                u32::try_from(of_it.count()).is_ok_and(|shared| shared < *count)
            }
        }
    }
}

/// What a GPU in MIG mode is advertised as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ByMig {
    /// As one device.
    Ignored,
    /// Its MIG devices, as all GPUs'.
    InPlace,
    /// Its MIG devices by their profiles.
    Beside,
}

/// How a GPU is divided.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Layout {
    /// Not at all.
    Whole,
    /// It has no MIG device.
    Empty,
    /// Into MIG devices, this among them.
    Profile(String),
    /// The same, and the device is a part of a GPU instance.
    Part(String),
}

impl Layout {
    fn of(gpu: &Gpu) -> BTreeSet<Self> {
        let profile = |mig: &MigDevice| match mig.is_whole_instance() {
            true => Self::Profile(mig.profile.clone()),
            false => Self::Part(mig.profile.clone()),
        };
        match (gpu.mig_enabled, gpu.mig_devices.as_slice()) {
            (false, _) => [Self::Whole].into(),
            (true, []) => [Self::Empty].into(),
            (true, devices) => devices.iter().map(profile).collect(),
        }
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole => f.write_str("not in MIG mode"),
            Self::Empty => f.write_str("in MIG mode without a MIG device"),
            Self::Profile(profile) => write!(f, "with {profile}"),
            Self::Part(profile) => write!(f, "with {profile} (a part of a GPU instance)"),
        }
    }
}

/// What the strategy makes of these GPUs. One that cannot be read now counts for
/// nothing while others can.
///
/// # Errors
///
/// In words: `single` wants all GPUs alike.
fn by_mig(strategy: MigStrategy, gpus: &[Seen<'_>]) -> Result<ByMig, String> {
    match strategy {
        MigStrategy::None => return Ok(ByMig::Ignored),
        MigStrategy::Mixed => return Ok(ByMig::Beside),
        MigStrategy::Single => {}
    }
    let any_found = gpus.iter().any(|seen| seen.found);
    let counting = gpus.iter().filter(|seen| seen.found || !any_found);
    let mut layouts = BTreeMap::<Layout, BTreeSet<u32>>::new();
    for (index, gpu) in counting.filter_map(|seen| Some((seen.index, seen.gpu?))) {
        for layout in Layout::of(gpu) {
            layouts.entry(layout).or_default().insert(index);
        }
    }
    let mut kinds = layouts.keys();
    match (kinds.next(), kinds.next()) {
        (None | Some(Layout::Whole), None) => Ok(ByMig::Ignored),
        (Some(Layout::Profile(_)), None) => Ok(ByMig::InPlace),
        _ => Err(unlike(&layouts)),
    }
}

fn unlike(layouts: &BTreeMap<Layout, BTreeSet<u32>>) -> String {
    let gpus = layouts.iter().map(|(layout, indexes)| {
        let indexes: Vec<_> = indexes.iter().map(u32::to_string).collect();
        let gpus = if indexes.len() == 1 { "GPU" } else { "GPUs" };
        format!("{gpus} {} {layout}", indexes.join(", "))
    });
    let gpus: Vec<_> = gpus.collect();
    format!(
        "--mig-strategy=single wants MIG devices of one profile on every GPU, or none in MIG mode, \
         and there are: {}; make them alike (nvidia-smi mig) or choose mixed",
        gpus.join("; ")
    )
}

#[cfg(test)]
mod tests;
