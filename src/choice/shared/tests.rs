//! Spreads against the policies worked out the slow way.

use std::cmp::Reverse;

use proptest::prelude::*;

use super::*;
use crate::choice::fixture;

/// Every way to give `size` devices, or as many as there are.
fn every_way(loads: &[Load], size: usize) -> Vec<Vec<usize>> {
    let free: usize = loads.iter().map(|load| load.free).sum();
    let must: usize = loads.iter().map(|load| load.must).sum();
    let size = size.min(free).max(must);
    let mut ways = vec![Vec::new()];
    for load in loads {
        let longer = ways.iter().flat_map(|way: &Vec<usize>| {
            (load.must..=load.free).map(move |given| [way.as_slice(), &[given]].concat())
        });
        ways = longer.collect();
    }
    ways.retain(|way| way.iter().sum::<usize>() == size);
    ways
}

/// The busiest first: less is more even.
fn in_use(loads: &[Load], given: &[usize]) -> Vec<usize> {
    let mut in_use: Vec<_> = loads.iter().zip(given).map(|(l, g)| l.used + g).collect();
    in_use.sort_unstable_by_key(|count| Reverse(*count));
    in_use
}

fn gpus(given: &[usize]) -> usize {
    given.iter().filter(|given| **given > 0).count()
}

fn newly_used(loads: &[Load], given: &[usize]) -> usize {
    let new = loads.iter().zip(given);
    new.filter(|(load, given)| load.used == 0 && **given > 0)
        .count()
}

/// Less is better.
fn cost(policy: Policy, loads: &[Load], given: &[usize]) -> (usize, usize, Vec<usize>) {
    match policy {
        Policy::Distributed => (0, 0, in_use(loads, given)),
        Policy::Packed => (newly_used(loads, given), gpus(given), Vec::new()),
        Policy::DifferentGpus => (usize::MAX - gpus(given), 0, in_use(loads, given)),
    }
}

fn loads() -> impl Strategy<Value = Vec<Load>> {
    let load = (0..4_usize, 0..3_usize, 0..4_usize);
    proptest::collection::vec(load, 1..=5).prop_map(|loads| {
        let loads = loads.into_iter().enumerate();
        let load = |(gpu, (free, must, used)): (usize, (usize, usize, usize))| Load {
            gpu,
            free,
            must: if must == 2 { 1.min(free) } else { 0 },
            used,
        };
        loads.map(load).collect()
    })
}

proptest! {
    #[test]
    fn no_way_is_better_by_the_policy(loads in loads(), size in 0..12_usize) {
        let chooser = Chooser::new(fixture::dgx1_v100());
        for policy in Policy::ALL {
            let given = spread(&chooser, policy, &loads, size);
            let ways = every_way(&loads, size);
            prop_assert!(ways.contains(&given), "{policy:?}: {given:?}");
            let best = ways.iter().map(|way| cost(policy, &loads, way)).min();
            prop_assert_eq!(
                Some(cost(policy, &loads, &given)), best, "{:?}: {:?}", policy, given
            );
        }
    }
}

fn load(gpu: usize, free: usize, used: usize) -> Load {
    Load {
        gpu,
        free,
        must: 0,
        used,
    }
}

fn on_mesh(policy: Policy, loads: &[Load], size: usize) -> Vec<usize> {
    spread(&Chooser::new(fixture::dgx1_v100()), policy, loads, size)
}

#[test]
fn where_gpus_are_equal_links_decide() {
    let idle: Vec<_> = (0..8).map(|gpu| load(gpu, 4, 0)).collect();
    let pair = on_mesh(Policy::Distributed, &idle, 2);
    assert_eq!(pair, [0, 0, 1, 1, 0, 0, 0, 0]);
    let full = on_mesh(Policy::Packed, &idle, 8);
    assert_eq!(full, [0, 0, 4, 4, 0, 0, 0, 0]);
    let four = on_mesh(Policy::DifferentGpus, &idle, 4);
    assert_eq!(four, [1, 1, 1, 1, 0, 0, 0, 0]);
}

#[test]
fn the_policies_differ() {
    let loads = [load(0, 3, 1), load(1, 4, 0), load(2, 1, 3)];
    assert_eq!(on_mesh(Policy::Distributed, &loads, 2), [1, 1, 0]);
    assert_eq!(on_mesh(Policy::Packed, &loads, 2), [2, 0, 0]);
    assert_eq!(on_mesh(Policy::Packed, &loads, 1), [0, 0, 1]);
    assert_eq!(on_mesh(Policy::DifferentGpus, &loads, 3), [1, 1, 1]);
}

#[test]
fn gpus_that_the_topology_does_not_have_are_given_all_the_same() {
    let loads: Vec<_> = (20..24).map(|gpu| load(gpu, 2, 0)).collect();
    for policy in Policy::ALL {
        let given = spread(&Chooser::default(), policy, &loads, 3);
        assert_eq!(given.iter().sum::<usize>(), 3, "{policy:?}");
    }
}
