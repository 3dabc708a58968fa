//! Machines, as `nvidia-smi topo -m` shows them.

use crate::gpu::topology::{NvLink, NvLinks, PcieLevel, Place, Remote, Topology};

/// A machine to be described.
pub(super) struct Machine {
    /// How many NVLinks each two GPUs have; nothing where there are NVSwitches.
    pub(super) nvlinks: Vec<Vec<usize>>,
    /// How many NVLinks each GPU has to NVSwitches.
    pub(super) to_switches: usize,
    /// Of each NVLink in MB/s.
    pub(super) bandwidth: u32,
    /// For each NUMA node, its PCIe switches with their GPUs.
    pub(super) numa_nodes: Vec<Vec<Vec<usize>>>,
    /// Between the switches of a NUMA node.
    pub(super) between: PcieLevel,
}

impl Machine {
    fn place(&self, gpu: usize) -> (usize, usize) {
        for (numa_node, switches) in self.numa_nodes.iter().enumerate() {
            if let Some(switch) = switches.iter().position(|gpus| gpus.contains(&gpu)) {
                return (numa_node, switch);
            }
        }
        panic!("GPU {gpu} has no place");
    }

    fn links(&self, gpu: usize) -> NvLinks {
        let link = |remote| NvLink {
            remote,
            bandwidth: self.bandwidth,
        };
        if self.to_switches > 0 {
            return Some(vec![link(Remote::Switch); self.to_switches]);
        }
        let to_others = self.nvlinks.get(gpu).into_iter().flatten().enumerate();
        let links = to_others
            .flat_map(|(other, count)| vec![link(Remote::Gpu(bus_id(other))); *count])
            .collect();
        Some(links)
    }

    pub(super) fn topology(&self) -> Topology {
        let count = self.numa_nodes.iter().flatten().flatten().count();
        let places = (0..count).map(|gpu| Place {
            uuid: format!("GPU-{gpu:02}").as_str().into(),
            index: gpu as u32,
            pci_bus_id: bus_id(gpu),
            numa_node: Some(self.place(gpu).0 as u32),
        });
        let nvlinks: Vec<_> = (0..count).map(|gpu| self.links(gpu)).collect();
        Topology::new(places.collect(), &nvlinks, |a, b| {
            let (a, b) = (self.place(a), self.place(b));
            Some(match (a == b, a.0 == b.0) {
                (true, _) => PcieLevel::Pix,
                (false, true) => self.between,
                (false, false) => PcieLevel::Sys,
            })
        })
    }
}

fn bus_id(gpu: usize) -> String {
    format!("00000000:{:02X}:00.0", gpu + 1)
}

fn with_switches(
    links: usize,
    bandwidth: u32,
    numa_nodes: Vec<Vec<Vec<usize>>>,
    between: PcieLevel,
) -> Topology {
    let machine = Machine {
        nvlinks: Vec::new(),
        to_switches: links,
        bandwidth,
        numa_nodes,
        between,
    };
    machine.topology()
}

/// Eight V100 in a hybrid cube mesh of six NVLinks each.
pub(super) fn dgx1_v100() -> Topology {
    let machine = Machine {
        nvlinks: vec![
            vec![0, 1, 1, 2, 2, 0, 0, 0],
            vec![1, 0, 2, 1, 0, 2, 0, 0],
            vec![1, 2, 0, 2, 0, 0, 1, 0],
            vec![2, 1, 2, 0, 0, 0, 0, 1],
            vec![2, 0, 0, 0, 0, 1, 1, 2],
            vec![0, 2, 0, 0, 1, 0, 2, 1],
            vec![0, 0, 1, 0, 1, 2, 0, 2],
            vec![0, 0, 0, 1, 2, 1, 2, 0],
        ],
        to_switches: 0,
        bandwidth: 25_781,
        numa_nodes: vec![vec![vec![0, 1], vec![2, 3]], vec![vec![4, 5], vec![6, 7]]],
        between: PcieLevel::Phb,
    };
    machine.topology()
}

/// Sixteen V100, each with six NVLinks to NVSwitches.
pub(super) fn dgx2() -> Topology {
    let pairs = |first: usize| (0..4).map(move |pair| vec![first + 2 * pair, first + 2 * pair + 1]);
    let numa_nodes = vec![pairs(0).collect(), pairs(8).collect()];
    with_switches(6, 25_781, numa_nodes, PcieLevel::Phb)
}

/// Eight A100, two on each of four NUMA nodes.
pub(super) fn dgx_a100() -> Topology {
    let numa_nodes = (0..4).map(|node| vec![vec![2 * node, 2 * node + 1]]);
    with_switches(12, 25_000, numa_nodes.collect(), PcieLevel::Phb)
}

/// Eight H100, four on each socket.
pub(super) fn hgx_h100() -> Topology {
    let socket = |first: usize| (first..first + 4).map(|gpu| vec![gpu]).collect();
    with_switches(18, 26_562, vec![socket(0), socket(4)], PcieLevel::Node)
}

/// The four GPUs of one tray, two at each processor.
pub(super) fn gb200_nvl() -> Topology {
    let numa_nodes = vec![vec![vec![0], vec![1]], vec![vec![2], vec![3]]];
    with_switches(18, 50_000, numa_nodes, PcieLevel::Node)
}

/// Eight GPUs on PCIe alone, in pairs below four switches.
pub(super) fn two_sockets() -> Topology {
    let machine = Machine {
        nvlinks: Vec::new(),
        to_switches: 0,
        bandwidth: 0,
        numa_nodes: vec![vec![vec![0, 1], vec![2, 3]], vec![vec![4, 5], vec![6, 7]]],
        between: PcieLevel::Node,
    };
    machine.topology()
}

/// Four T4, all of them below one host bridge.
pub(super) fn four_t4() -> Topology {
    let machine = Machine {
        nvlinks: Vec::new(),
        to_switches: 0,
        bandwidth: 0,
        numa_nodes: vec![(0..4).map(|gpu| vec![gpu]).collect()],
        between: PcieLevel::Phb,
    };
    machine.topology()
}

/// Eight GPUs on PCIe, of which bridges of NVLink join 0 and 1, 2 and 4, which are
/// on different sockets, and 6 and 7 by fewer links.
pub(super) fn bridged() -> Topology {
    let mut nvlinks = vec![vec![0; 8]; 8];
    for (a, b, count) in [(0, 1, 12), (2, 4, 12), (6, 7, 4)] {
        nvlinks[a][b] = count;
        nvlinks[b][a] = count;
    }
    let socket = |first: usize| (first..first + 4).map(|gpu| vec![gpu]).collect();
    let machine = Machine {
        nvlinks,
        to_switches: 0,
        bandwidth: 26_562,
        numa_nodes: vec![socket(0), socket(4)],
        between: PcieLevel::Node,
    };
    machine.topology()
}

/// All of them, with their names.
pub(super) fn all() -> Vec<(&'static str, Topology)> {
    vec![
        ("DGX-1 V100", dgx1_v100()),
        ("DGX-2", dgx2()),
        ("DGX A100", dgx_a100()),
        ("HGX H100", hgx_h100()),
        ("GB200 NVL", gb200_nvl()),
        ("two sockets", two_sockets()),
        ("four T4", four_t4()),
        ("bridged", bridged()),
    ]
}
