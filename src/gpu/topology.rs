//! How the GPUs of a node are connected, as far as it is known: plain data, and
//! what follows from the two ends of each NVLink.

use std::fmt;

use serde::{Serialize, Serializer};

use super::{Gpu, GpuUuid};

/// The nearest thing that two GPUs share on PCIe, from near to far: NVML's
/// `nvmlGpuTopologyLevel_t`, in the words of `nvidia-smi topo -m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PcieLevel {
    /// One board (`NVML_TOPOLOGY_INTERNAL`).
    Board,
    /// One PCIe switch (`NVML_TOPOLOGY_SINGLE`).
    Pix,
    /// Several PCIe switches (`NVML_TOPOLOGY_MULTIPLE`).
    Pxb,
    /// One host bridge (`NVML_TOPOLOGY_HOSTBRIDGE`).
    Phb,
    /// One NUMA node (`NVML_TOPOLOGY_NODE`).
    Node,
    /// Only the machine: the way leads over the link between NUMA nodes
    /// (`NVML_TOPOLOGY_SYSTEM`).
    Sys,
}

impl PcieLevel {
    /// All, from near to far.
    pub const ALL: [Self; 6] = [
        Self::Board,
        Self::Pix,
        Self::Pxb,
        Self::Phb,
        Self::Node,
        Self::Sys,
    ];

    /// As `nvidia-smi topo -m` has it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Board => "PSB",
            Self::Pix => "PIX",
            Self::Pxb => "PXB",
            Self::Phb => "PHB",
            Self::Node => "NODE",
            Self::Sys => "SYS",
        }
    }
}

impl fmt::Display for PcieLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl Serialize for PcieLevel {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// Where an NVLink leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remote {
    /// To the GPU with this PCI bus ID, as NVML prints it.
    Gpu(String),
    /// To an NVSwitch, and by it to every GPU with such a link. Virtual machines
    /// are not told which.
    Switch,
}

/// One end of an NVLink that is up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NvLink {
    /// Where it leads.
    pub remote: Remote,
    /// In MB/s, each way.
    pub bandwidth: u32,
}

/// The NVLinks of one GPU that are up. None: it did not tell.
pub type NvLinks = Option<Vec<NvLink>>;

/// A GPU's place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// Which GPU.
    pub uuid: GpuUuid,
    /// NVML's index.
    pub index: u32,
    /// As NVML prints it.
    pub pci_bus_id: String,
    /// The nearest NUMA node; absent where firmware does not tell.
    pub numa_node: Option<u32>,
}

/// What lies between two GPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Pair {
    /// NVLinks between them, directly or by NVSwitches.
    pub nvlinks: u32,
    /// Of all of them together in MB/s, each way.
    pub nvlink_bandwidth: u32,
    /// Their distance on PCIe, where it is known.
    pub pcie: Option<PcieLevel>,
}

/// The GPUs of a node, in the order of their indexes, and what lies between each
/// two of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    places: Vec<Place>,
    /// A row for each GPU.
    pairs: Vec<Pair>,
    /// Every GPU told of its NVLinks.
    whole: bool,
}

impl Topology {
    /// What is known before a link was asked for: NUMA nodes.
    #[must_use]
    pub fn unlinked(places: Vec<Place>) -> Self {
        let unasked = vec![None; places.len()];
        Self::new(places, &unasked, |_, _| None)
    }

    /// Joins what each GPU told. `nvlinks` are theirs, in the order of `places`;
    /// `pcie` is the distance of the GPUs at two positions.
    ///
    /// NVLinks that only one end tells of count; where both tell, as many as both
    /// tell of. Without a distance their NUMA nodes tell one.
    #[must_use]
    pub fn new(
        places: Vec<Place>,
        nvlinks: &[NvLinks],
        pcie: impl Fn(usize, usize) -> Option<PcieLevel>,
    ) -> Self {
        let count = places.len();
        let mut pairs = vec![Pair::default(); count * count];
        for a in 0..count {
            for b in a + 1..count {
                let level = pcie(a, b).or_else(|| by_numa_node(&places[a], &places[b]));
                let pair = Pair {
                    pcie: level,
                    ..joined(
                        towards(&places, nvlinks, a, b),
                        towards(&places, nvlinks, b, a),
                    )
                };
                pairs[a * count + b] = pair;
                pairs[b * count + a] = pair;
            }
        }
        let whole = nvlinks.iter().all(Option::is_some);
        Self {
            places,
            pairs,
            whole,
        }
    }

    /// Whether every GPU told of its NVLinks, if only that it has none.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// How many GPUs there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The GPUs' places, by position.
    #[must_use]
    pub fn places(&self) -> &[Place] {
        &self.places
    }

    /// What lies between the GPUs at two positions: nothing that is known, where
    /// there is no such GPU.
    #[must_use]
    pub fn pair(&self, a: usize, b: usize) -> Pair {
        let within = a.max(b) < self.len();
        let pair = self.pairs.get(a * self.len() + b).filter(|_| within);
        pair.copied().unwrap_or_default()
    }
}

impl Place {
    /// That of a GPU.
    #[must_use]
    pub fn of(gpu: &Gpu) -> Self {
        Self {
            uuid: gpu.uuid.clone(),
            index: gpu.index,
            pci_bus_id: gpu.pci_bus_id.clone(),
            numa_node: gpu.numa_node,
        }
    }
}

fn by_numa_node(a: &Place, b: &Place) -> Option<PcieLevel> {
    let same = a.numa_node? == b.numa_node?;
    Some(if same {
        PcieLevel::Node
    } else {
        PcieLevel::Sys
    })
}

/// Links and bandwidth from one GPU to another, as the first tells them.
fn towards(places: &[Place], nvlinks: &[NvLinks], from: usize, to: usize) -> Option<(u32, u32)> {
    let own = nvlinks.get(from)?.as_ref()?;
    let to_switches = |link: &&NvLink| link.remote == Remote::Switch;
    let bus_id = &places[to].pci_bus_id;
    let direct = own
        .iter()
        .filter(|link| matches!(&link.remote, Remote::Gpu(id) if id.eq_ignore_ascii_case(bus_id)));
    let direct = sum(direct);
    // A switch leads to whoever has a link to one as well.
    let other = nvlinks.get(to).and_then(Option::as_ref);
    let reaches = |links: &Vec<NvLink>| links.iter().any(|link| to_switches(&link));
    if direct.0 > 0 || !other.is_none_or(reaches) {
        return Some(direct);
    }
    Some(sum(own.iter().filter(to_switches)))
}

fn sum<'a>(links: impl Iterator<Item = &'a NvLink>) -> (u32, u32) {
    links.fold((0, 0), |(count, bandwidth), link| {
        (count + 1, bandwidth.saturating_add(link.bandwidth))
    })
}

fn joined(one: Option<(u32, u32)>, other: Option<(u32, u32)>) -> Pair {
    let (nvlinks, nvlink_bandwidth) = match (one, other) {
        (Some(one), Some(other)) => (one.0.min(other.0), one.1.min(other.1)),
        (Some(told), None) | (None, Some(told)) => told,
        (None, None) => (0, 0),
    };
    Pair {
        nvlinks,
        nvlink_bandwidth,
        pcie: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(index: u32, numa_node: Option<u32>) -> Place {
        Place {
            uuid: format!("GPU-{index}").as_str().into(),
            index,
            pci_bus_id: format!("00000000:{index:02X}:00.0"),
            numa_node,
        }
    }

    fn to_gpu(index: u32) -> NvLink {
        NvLink {
            remote: Remote::Gpu(format!("00000000:{index:02x}:00.0")),
            bandwidth: 25_000,
        }
    }

    fn to_switch() -> NvLink {
        NvLink {
            remote: Remote::Switch,
            bandwidth: 26_562,
        }
    }

    fn two(a: NvLinks, b: NvLinks) -> Pair {
        let places = vec![place(10, None), place(11, None)];
        Topology::new(places, &[a, b], |_, _| None).pair(0, 1)
    }

    fn nvlinks(pair: Pair) -> (u32, u32) {
        (pair.nvlinks, pair.nvlink_bandwidth)
    }

    #[test]
    fn links_count_that_both_ends_tell_of() {
        let pair = two(Some(vec![to_gpu(11); 2]), Some(vec![to_gpu(10); 2]));
        assert_eq!(nvlinks(pair), (2, 50_000));
        let uneven = two(Some(vec![to_gpu(11); 2]), Some(vec![to_gpu(10); 1]));
        assert_eq!(nvlinks(uneven), (1, 25_000));
        assert_eq!(
            nvlinks(two(Some(vec![to_gpu(11)]), Some(Vec::new()))),
            (0, 0)
        );
    }

    #[test]
    fn a_gpu_that_does_not_tell_is_known_by_the_other_end() {
        assert_eq!(nvlinks(two(Some(vec![to_gpu(11)]), None)), (1, 25_000));
        assert_eq!(nvlinks(two(None, None)), (0, 0));
    }

    #[test]
    fn whoever_reaches_a_switch_reaches_all_who_do_by_the_links_of_the_weaker() {
        let pair = two(Some(vec![to_switch(); 18]), Some(vec![to_switch(); 16]));
        assert_eq!(nvlinks(pair), (16, 16 * 26_562));
        assert_eq!(
            nvlinks(two(Some(vec![to_switch()]), Some(vec![to_gpu(12)]))),
            (0, 0)
        );
    }

    #[test]
    fn numa_nodes_tell_the_distance_where_nvml_does_not() {
        let places = vec![
            place(0, Some(0)),
            place(1, Some(0)),
            place(2, Some(1)),
            place(3, None),
        ];
        let topology = Topology::new(places, &[None, None, None, None], |_, _| None);
        assert_eq!(topology.pair(0, 1).pcie, Some(PcieLevel::Node));
        assert_eq!(topology.pair(0, 2).pcie, Some(PcieLevel::Sys));
        assert_eq!(topology.pair(3, 0).pcie, None);
        assert_eq!(topology.pair(0, 9), Pair::default());
    }
}
