//! The optimum, found by looking at every set of the wanted size.

use std::cmp::Reverse;

use super::score::{Score, Scores};
use super::{Choice, Rank, Request};

/// A set of GPUs: a bit for each position.
type Set = usize;

/// What there is to know of every set of a node's GPUs.
#[derive(Clone, Debug)]
pub(super) struct Tables {
    /// The links among its GPUs.
    own: Vec<Score>,
    /// Where all of the set is free: for each size of a request the best links
    /// that it could get, added up.
    left: Vec<Score>,
    /// The GPUs of each NUMA node.
    numa: Vec<Set>,
}

impl Tables {
    pub(super) fn new(scores: &Scores) -> Self {
        let own = own(scores);
        let mut left = own.clone();
        // The best that a request of `size` gets of each set: the set itself, or
        // the best that it gets of the set without one of its GPUs.
        let mut best = vec![Score::default(); own.len()];
        for size in 2..scores.len() {
            for set in sets(own.len()).filter(|set| members(*set) >= size) {
                best[set] = if members(set) == size {
                    own[set]
                } else {
                    let without_one = bits(set).map(|gpu| best[set & !(1 << gpu)]);
                    without_one.max().unwrap_or_default()
                };
                // A request for all of it is in `left` from the start.
                if members(set) > size {
                    left[set] += best[set];
                }
            }
        }
        let numa = scores.numa_groups().map(|gpus| set_of(&gpus)).collect();
        Self { own, left, numa }
    }

    fn numa_nodes(&self, set: Set) -> usize {
        self.numa.iter().filter(|node| *node & set != 0).count()
    }
}

/// Each set's from that of the set without its first GPU.
fn own(scores: &Scores) -> Vec<Score> {
    let mut own = vec![Score::default(); 1 << scores.len()];
    for set in sets(own.len()).skip(1) {
        let first = set.trailing_zeros() as usize;
        let others = set & (set - 1);
        let links: Score = bits(others).map(|gpu| scores.pair(first, gpu)).sum();
        own[set] = own[others] + links;
    }
    own
}

fn sets(count: usize) -> impl Iterator<Item = Set> {
    0..count
}

fn members(set: Set) -> usize {
    set.count_ones() as usize
}

fn bits(mut set: Set) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let first = set.trailing_zeros() as usize;
        (set != 0).then(|| {
            set &= set - 1;
            first
        })
    })
}

fn set_of(gpus: &[usize]) -> Set {
    gpus.iter().fold(0, |set, gpu| set | 1 << gpu)
}

/// The best of all sets that meet the request.
pub(super) fn best(tables: &Tables, request: &Request) -> Choice {
    best_of(tables, request, |_| true).unwrap_or_default()
}

/// The best of all but one.
pub(super) fn best_but(tables: &Tables, request: &Request, but: &[usize]) -> Option<Choice> {
    let but = set_of(but);
    best_of(tables, request, |set| set != but)
}

/// The best of the sets that meet the request and `may` be.
fn best_of(tables: &Tables, request: &Request, may: impl Fn(Set) -> bool) -> Option<Choice> {
    let must = set_of(&request.must);
    let all = set_of(&request.free) | must;
    let spread = Spread::over(&request.free);
    let mut best: Option<(Set, Rank)> = None;
    for picked in picks(request.more, request.free.len()) {
        let set = spread.of(picked) | must;
        let own = tables.own[set];
        // Most are told by this alone.
        if best.is_some_and(|(_, (best_own, ..))| own < best_own) || !may(set) {
            continue;
        }
        let left = tables.left[all & !set];
        if best.is_some_and(|(_, (best_own, best_left, _))| (own, left) < (best_own, best_left)) {
            continue;
        }
        let rank = (own, left, Reverse(tables.numa_nodes(set)));
        let is_better = |(other, best)| rank > best || rank == best && is_before(set, other);
        if best.is_none_or(is_better) {
            best = Some((set, rank));
        }
    }
    let (set, (own, left, Reverse(numa_nodes))) = best?;
    Some(Choice {
        gpus: bits(set).collect(),
        own,
        left,
        numa_nodes,
    })
}

/// Whether it has the first GPU that only one of them has.
fn is_before(set: Set, other: Set) -> bool {
    let differ = set ^ other;
    set & differ & differ.wrapping_neg() != 0
}

/// Every way to pick so many of the `from` lowest bits, from the lowest number to the
/// highest (Gosper's: the lowest run of bits sends its uppermost one place up and the
/// rest to the bottom).
fn picks(many: usize, from: usize) -> impl Iterator<Item = Set> {
    let next = |pick: &Set| {
        let carried = pick + (pick & pick.wrapping_neg());
        (*pick != 0).then(|| carried | (pick ^ carried) >> 2 >> pick.trailing_zeros())
    };
    let all = std::iter::successors(Some((1 << many) - 1), next);
    all.take_while(move |pick| *pick < 1 << from)
}

/// The bits of a number at the places of some GPUs, by a look-up of each half of 8.
struct Spread {
    low: [Set; 256],
    high: [Set; 256],
}

impl Spread {
    fn over(gpus: &[usize]) -> Self {
        let (low, high) = gpus.split_at(gpus.len().min(8));
        let table = |gpus: &[usize]| {
            let mut table = [0; 256];
            for number in 1..1_usize << gpus.len() {
                let first = gpus[number.trailing_zeros() as usize];
                table[number] = table[number & (number - 1)] | 1 << first;
            }
            table
        };
        Self {
            low: table(low),
            high: table(high),
        }
    }

    fn of(&self, number: Set) -> Set {
        self.low[number & 255] | self.high[number >> 8 & 255]
    }
}
