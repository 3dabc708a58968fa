//! Eight simulated GPUs whose links differ.

use super::nvml::{Link, Peer, State, TopologyLevel};

/// `NVML_NVLINK_VERSION_2_0`.
const NVLINK_2: u32 = 2;

/// The hybrid cube mesh of a DGX-1 with V100: each GPU's links to those after it.
const CUBE_MESH: [&[(usize, usize)]; 8] = [
    &[(1, 1), (2, 1), (3, 2), (4, 2)],
    &[(2, 2), (3, 1), (5, 2)],
    &[(3, 2), (6, 1)],
    &[(7, 1)],
    &[(5, 1), (6, 1), (7, 2)],
    &[(6, 2), (7, 1)],
    &[(7, 2)],
    &[],
];

/// In pairs below PCIe switches, four on each socket.
pub fn cube_mesh(state: &mut State) {
    for (from, links) in CUBE_MESH.iter().enumerate() {
        let link = |(to, count): &(usize, usize)| Link {
            to: *to,
            count: *count,
            version: NVLINK_2,
        };
        state.gpus[from].links = links.iter().map(link).collect();
        let peer = |to: usize| Peer {
            to,
            level: match (from / 2 == to / 2, from / 4 == to / 4) {
                (true, _) => TopologyLevel::Single,
                (false, true) => TopologyLevel::Hostbridge,
                (false, false) => TopologyLevel::System,
            },
        };
        state.gpus[from].topology = (from + 1..8).map(peer).collect();
        state.gpus[from].nvswitch_links = 0;
        state.gpus[from].fabric.state = 0;
    }
}
