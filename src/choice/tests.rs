//! The choice against the objective worked out the slow way, with numbers that are
//! not packed, over made-up machines and real ones.

use std::cmp::Reverse;

use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::choice::score::Scores;
use crate::gpu::topology::{NvLink, PcieLevel, Place, Remote};

/// NVLink's GB/s, and how many pairs are not over SYS, NODE, PHB and PXB: greater
/// is better.
type Links = [i64; 5];

/// Every set of a machine, a bit for each GPU.
struct Slow {
    gpus: usize,
    own: Vec<Links>,
    left: Vec<Option<Links>>,
    numa: Vec<Option<u32>>,
}

impl Slow {
    fn new(topology: &Topology) -> Self {
        let gpus = topology.len();
        let own = (0..1_usize << gpus).map(|set| links(topology, set));
        Self {
            gpus,
            own: own.collect(),
            left: vec![None; 1 << gpus],
            numa: topology.places().iter().map(|p| p.numa_node).collect(),
        }
    }

    /// For each size, the best of all sets of that size.
    fn left(&mut self, free: usize) -> Links {
        if let Some(left) = self.left[free] {
            return left;
        }
        let mut best = vec![None; self.gpus + 1];
        let mut set = free;
        while set != 0 {
            let best = &mut best[set.count_ones() as usize];
            *best = (*best).max(Some(self.own[set]));
            set = (set - 1) & free;
        }
        let sum = best.into_iter().flatten().fold([0; 5], added);
        self.left[free] = Some(sum);
        sum
    }

    fn numa_nodes(&self, set: usize) -> usize {
        let mut nodes: Vec<_> = members(set).filter_map(|gpu| self.numa[gpu]).collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes.len()
    }

    fn best(&mut self, available: usize, must: usize, size: usize) -> Vec<usize> {
        let all = available | must;
        let size = size.clamp(must.count_ones() as usize, all.count_ones() as usize);
        let sets = (0..1 << self.gpus)
            .filter(|set| set & !all == 0 && set & must == must)
            .filter(|set| set.count_ones() as usize == size);
        let sets: Vec<usize> = sets.collect();
        let best = sets.into_iter().max_by_key(|set| {
            let gpus: Vec<_> = members(*set).collect();
            let numa_nodes = Reverse(self.numa_nodes(*set));
            (
                self.own[*set],
                self.left(all & !set),
                numa_nodes,
                Reverse(gpus),
            )
        });
        members(best.unwrap()).collect()
    }
}

fn added(a: Links, b: Links) -> Links {
    std::array::from_fn(|at| a[at] + b[at])
}

fn members(set: usize) -> impl Iterator<Item = usize> {
    (0..usize::BITS as usize).filter(move |gpu| set >> gpu & 1 == 1)
}

fn links(topology: &Topology, set: usize) -> Links {
    let mut links = [0; 5];
    for a in members(set) {
        for b in members(set).filter(|b| a < *b) {
            let pair = topology.pair(a, b);
            links[0] += (f64::from(pair.nvlink_bandwidth) / 1000.0).round() as i64;
            match pair.pcie {
                None | Some(PcieLevel::Sys) => links[1] -= 1,
                Some(PcieLevel::Node) => links[2] -= 1,
                Some(PcieLevel::Phb) => links[3] -= 1,
                Some(PcieLevel::Pxb) => links[4] -= 1,
                Some(PcieLevel::Pix | PcieLevel::Board) => {}
            }
        }
    }
    links
}

/// A machine of which each two GPUs are linked somehow, and some do not tell.
fn machine(gpus: std::ops::RangeInclusive<usize>) -> impl Strategy<Value = Topology> {
    let level = select(vec![
        None,
        Some(PcieLevel::Pix),
        Some(PcieLevel::Pxb),
        Some(PcieLevel::Phb),
        Some(PcieLevel::Node),
        Some(PcieLevel::Sys),
    ]);
    let pair = (select(vec![0_usize, 0, 0, 1, 2, 4]), level);
    gpus.prop_flat_map(move |count| {
        let pairs = proptest::collection::vec(pair.clone(), count * count);
        let numa = proptest::collection::vec(proptest::option::of(0..3_u32), count);
        let tells = proptest::collection::vec(proptest::bool::weighted(0.9), count);
        (pairs, numa, tells).prop_map(move |(pairs, numa, tells)| {
            let places = numa.iter().enumerate().map(|(gpu, numa_node)| Place {
                uuid: format!("GPU-{gpu:02}").as_str().into(),
                index: gpu as u32,
                pci_bus_id: gpu.to_string(),
                numa_node: *numa_node,
            });
            let at = |a: usize, b: usize| &pairs[a.min(b) * count + a.max(b)];
            let nvlinks: Vec<_> = (0..count)
                .map(|a| {
                    let links = (0..count).filter(|b| *b != a).flat_map(|b| {
                        let link = NvLink {
                            remote: Remote::Gpu(b.to_string()),
                            bandwidth: 25_000,
                        };
                        vec![link; at(a, b).0]
                    });
                    tells[a].then(|| links.collect())
                })
                .collect();
            Topology::new(places.collect(), &nvlinks, |a, b| at(a, b).1)
        })
    })
}

fn positions(set: usize) -> Vec<usize> {
    members(set).collect()
}

fn assert_best(name: &str, chooser: &Chooser, slow: &mut Slow, request: (usize, usize, usize)) {
    let (available, must, size) = request;
    let choice = chooser.choose(&positions(available), &positions(must), size);
    let expected = slow.best(available, must, size);
    assert_eq!(
        choice.gpus, expected,
        "{name}: {available:b} {must:b} {size}"
    );
}

proptest! {
    #[test]
    fn a_choice_is_the_best_of_all_sets(
        topology in machine(0..=7),
        available in any::<usize>(),
        must in any::<usize>(),
        size in 0..9_usize,
    ) {
        let all = (1 << topology.len()) - 1;
        let (available, must) = (available & all, must & available & all);
        let chooser = Chooser::new(topology);
        let mut slow = Slow::new(chooser.topology());
        assert_best("machine", &chooser, &mut slow, (available, 0, size));
        assert_best("machine", &chooser, &mut slow, (available, must, size));
    }

    #[test]
    fn the_next_best_is_the_best_without_the_best(
        topology in machine(2..=6),
        size in 1..6_usize,
    ) {
        let all: Vec<_> = (0..topology.len()).collect();
        let chooser = Chooser::new(topology);
        let best = chooser.choose(&all, &[], size);
        let next = chooser.next_best(&all, &[], size, &best);
        match next {
            None => prop_assert!(size >= all.len()),
            Some(next) => {
                prop_assert_ne!(&next.gpus, &best.gpus);
                prop_assert!(
                    (next.own, next.left, Reverse(next.numa_nodes))
                        <= (best.own, best.left, Reverse(best.numa_nodes))
                );
            }
        }
    }

    /// Whatever is asked of whatever machine: as many as were asked for, or as
    /// there are, of those that are free, and all that must be.
    #[test]
    fn a_large_node_has_an_answer_too(
        topology in machine(17..=40),
        available in proptest::collection::vec(0..50_usize, 0..50),
        must in proptest::collection::vec(0..50_usize, 0..4),
        size in 0..50_usize,
    ) {
        let gpus = topology.len();
        let choice = Chooser::new(topology).choose(&available, &must, size);
        let mut all: Vec<_> = available.iter().chain(&must).filter(|gpu| **gpu < gpus).collect();
        all.sort_unstable();
        all.dedup();
        let mut must: Vec<_> = must.iter().filter(|gpu| **gpu < gpus).collect();
        must.sort_unstable();
        must.dedup();
        prop_assert!(choice.gpus.is_sorted_by(|a, b| a < b));
        prop_assert!(choice.gpus.iter().all(|gpu| all.contains(&gpu)));
        prop_assert!(must.iter().all(|gpu| choice.gpus.contains(gpu)));
        prop_assert_eq!(choice.gpus.len(), size.clamp(must.len(), all.len()));
    }
}

/// Every request for any of the GPUs that are free, in every state of the node.
#[test]
fn real_machines_of_up_to_eight_gpus_are_chosen_from_as_the_objective_says() {
    for (name, topology) in fixture::all() {
        if topology.len() > 8 {
            continue;
        }
        let gpus = topology.len();
        let chooser = Chooser::new(topology);
        let mut slow = Slow::new(chooser.topology());
        for available in 0..1_usize << gpus {
            let first = available & available.wrapping_neg();
            for size in 1..=available.count_ones() as usize {
                assert_best(name, &chooser, &mut slow, (available, 0, size));
                assert_best(name, &chooser, &mut slow, (available, first, size));
            }
        }
    }
}

#[test]
fn sixteen_gpus_are_chosen_from_as_the_objective_says() {
    let chooser = Chooser::new(fixture::dgx2());
    let mut slow = Slow::new(chooser.topology());
    for size in 1..=16 {
        assert_best("DGX-2", &chooser, &mut slow, (0xffff, 0, size));
        assert_best("DGX-2", &chooser, &mut slow, (0xf7ee, 1 << 9, size));
    }
}

fn chosen(topology: Topology, available: &[usize], size: usize) -> Vec<usize> {
    Chooser::new(topology).choose(available, &[], size).gpus
}

/// What a person would choose who has the map before them.
#[test]
fn a_person_would_choose_the_same() {
    let all: Vec<_> = (0..8).collect();
    let mesh = fixture::dgx1_v100;
    // Two links, and not one; and below one PCIe switch.
    assert_eq!(chosen(mesh(), &all, 2), [2, 3]);
    // One of the two squares that are linked throughout.
    assert_eq!(chosen(mesh(), &all, 4), [0, 1, 2, 3]);
    assert_eq!(chosen(mesh(), &[0, 4, 5, 6, 7], 4), [4, 5, 6, 7]);
    // One socket of two, though NVLink is the same everywhere.
    assert_eq!(chosen(fixture::hgx_h100(), &all, 4), [0, 1, 2, 3]);
    assert_eq!(
        chosen(fixture::hgx_h100(), &[0, 1, 2, 4, 5, 6, 7], 4),
        [4, 5, 6, 7]
    );
    // What is broken already, and not the last whole pair.
    assert_eq!(chosen(fixture::two_sockets(), &[0, 1, 3], 1), [3]);
    assert_eq!(chosen(fixture::two_sockets(), &[0, 2, 4, 5], 2), [4, 5]);
    // Those that a bridge joins, over sockets too.
    assert_eq!(chosen(fixture::bridged(), &[0, 2, 3, 4], 2), [2, 4]);
    assert_eq!(chosen(fixture::bridged(), &[0, 1, 2, 3], 1), [2]);
    assert_eq!(chosen(fixture::four_t4(), &[1, 2, 3], 2), [1, 2]);
}

/// How often the search of a large node finds the optimum of links where that is
/// known, over machines without any pattern.
#[test]
fn the_search_for_large_nodes_is_as_good_on_small_ones() {
    for (name, topology) in fixture::all() {
        let all: Vec<_> = (0..topology.len()).collect();
        let scores = Scores::of(&topology);
        let chooser = Chooser::new(topology);
        for size in 1..=all.len() {
            let request = Request::new(all.len(), &all, &[], size);
            let found = bounded::best(&scores, &request);
            let best = chooser.choose(&all, &[], size);
            assert_eq!(found.own, best.own, "{name}: {size}");
        }
    }
    let (found, of) = optima(400);
    println!("bounded: the optimum of links in {found} of {of}");
    assert!(found * 100 >= of * 95, "{found} of {of}");
}

fn optima(machines: usize) -> (usize, usize) {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let (mut found, mut of) = (0, 0);
    for _ in 0..machines {
        let topology = machine(8..=10).new_tree(&mut runner).unwrap().current();
        let all: Vec<_> = (0..topology.len()).collect();
        let scores = Scores::of(&topology);
        let chooser = Chooser::new(topology);
        for size in 2..all.len() {
            let request = Request::new(all.len(), &all, &[], size);
            let search = bounded::best(&scores, &request);
            found += usize::from(search.own == chooser.choose(&all, &[], size).own);
            of += 1;
        }
    }
    (found, of)
}
