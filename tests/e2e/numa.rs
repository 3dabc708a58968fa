//! Two NUMA nodes for a kubelet, whatever the machine has.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::kubelet::Alignment;

/// The machine's processors as two NUMA nodes: the last alone is on node 1, and
/// the only one that is not reserved.
#[derive(Debug)]
pub struct TwoNodes {
    cpus: Vec<u32>,
    pub last: u32,
}

impl TwoNodes {
    /// None on a machine of one processor.
    pub fn of_this_machine() -> Option<Self> {
        let online = fs::read_to_string("/sys/devices/system/cpu/online");
        let mut cpus = list(online.expect("the processors that are online").trim());
        let last = cpus.pop()?;
        (!cpus.is_empty()).then_some(Self { cpus, last })
    }

    /// Lays them out in `folder`, as the kernel does in /sys/devices/system/node.
    pub fn lay_out(&self, folder: &Path) -> Alignment {
        let nodes = folder.join("numa-nodes");
        lay_out(&nodes.join("node0"), &self.cpus, "10 21");
        lay_out(&nodes.join("node1"), &[self.last], "21 10");
        let reserved = in_words(&self.cpus);
        Alignment { nodes, reserved }
    }
}

/// What a kubelet reads of a node (cAdvisor's utils/sysinfo, `GetNodesInfo`).
fn lay_out(node: &Path, cpus: &[u32], distances: &str) {
    const MEMORY: &str = "MemTotal: 1048576 kB\nMemFree: 1048576 kB\nMemUsed: 0 kB\n";
    fs::create_dir_all(node.join("hugepages")).expect("make a NUMA node's folder");
    for (name, content) in [
        ("cpulist", in_words(cpus)),
        ("distance", distances.to_owned()),
        ("meminfo", MEMORY.trim_end().to_owned()),
    ] {
        fs::write(node.join(name), content + "\n").expect("describe a NUMA node");
    }
    for cpu in cpus {
        let cpu = format!("cpu{cpu}");
        let target = Path::new("../../cpu").join(&cpu);
        symlink(target, node.join(&cpu)).expect("give a NUMA node a processor");
    }
}

/// The numbers in the kernel's `0-2,4`.
fn list(text: &str) -> Vec<u32> {
    let number = |text: &str| text.parse::<u32>().expect("a processor's number");
    let ranges = text.split(',').map(|range| match range.split_once('-') {
        Some((first, last)) => number(first)..=number(last),
        None => number(range)..=number(range),
    });
    ranges.flatten().collect()
}

fn in_words(cpus: &[u32]) -> String {
    let cpus: Vec<_> = cpus.iter().map(u32::to_string).collect();
    cpus.join(",")
}
