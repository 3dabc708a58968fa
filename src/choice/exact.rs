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
    let search = Search::new(tables, request, None);
    search.run().unwrap_or_default()
}

/// The best of all but one.
pub(super) fn best_but(tables: &Tables, request: &Request, but: &[usize]) -> Option<Choice> {
    Search::new(tables, request, Some(set_of(but))).run()
}

struct Search<'a> {
    tables: &'a Tables,
    request: &'a Request,
    /// All that is free now, those that must be taken included.
    all: Set,
    but: Option<Set>,
    best: Option<(Set, Rank)>,
}

impl<'a> Search<'a> {
    fn new(tables: &'a Tables, request: &'a Request, but: Option<Set>) -> Self {
        Self {
            tables,
            request,
            all: set_of(&request.free) | set_of(&request.must),
            but,
            best: None,
        }
    }

    fn run(mut self) -> Option<Choice> {
        self.extend(
            set_of(&self.request.must),
            &self.request.free,
            self.request.more,
        );
        let (set, (own, left, Reverse(numa_nodes))) = self.best?;
        Some(Choice {
            gpus: bits(set).collect(),
            own,
            left,
            numa_nodes,
        })
    }

    /// Looks at every set that has `more` of `free` beside `set`, those with the
    /// lowest positions first.
    fn extend(&mut self, set: Set, free: &[usize], more: usize) {
        if more == 0 {
            return self.look_at(set);
        }
        // Each in turn is the first that is taken, while enough follow.
        for (place, gpu) in free.iter().enumerate().take(free.len() + 1 - more) {
            self.extend(set | 1 << gpu, &free[place + 1..], more - 1);
        }
    }

    fn look_at(&mut self, set: Set) {
        if self.but == Some(set) {
            return;
        }
        let own = self.tables.own[set];
        let left = self.tables.left[self.all & !set];
        if let Some((_, (best_own, best_left, _))) = &self.best
            && (own, left) < (*best_own, *best_left)
        {
            return;
        }
        let rank = (own, left, Reverse(self.tables.numa_nodes(set)));
        // Among equals the first stays.
        if self.best.as_ref().is_none_or(|(_, best)| rank > *best) {
            self.best = Some((set, rank));
        }
    }
}
