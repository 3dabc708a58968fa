//! A good choice in a bounded number of steps, on nodes with more GPUs than all
//! sets can be looked at of.
//!
//! From each GPU that is free in turn, a set grows by the GPU that has the best
//! links to it and to one that could come next, and of equals by the one that is
//! worth the least to those that stay. The best of these sets is then improved: one
//! of it is exchanged for a free one, the best exchange first, while that makes it
//! better, [`EXCHANGES`] times at most. For n GPUs that are free and a request for k
//! that is k·n³ steps to grow and at most [`EXCHANGES`]·k·n to exchange, each of some
//! additions; nothing depends on how the GPUs are linked.
//!
//! The best use of what is left is reckoned by all links among it, in place of the
//! best of every size.

use std::cmp::Reverse;

use super::score::{Score, Scores};
use super::{Choice, Rank, Request};

/// Each makes the set better, so more are needed only where the growth went far
/// astray.
const EXCHANGES: usize = 64;

/// The best that is found.
pub(super) fn best(scores: &Scores, request: &Request) -> Choice {
    let seeds = request
        .free
        .iter()
        .map(|seed| Growing::from(*seed, scores, request));
    let grown = seeds.map(|seed| seed.grown(request.more));
    let best = match request.more {
        0 => None,
        _ => grown.reduce(Growing::better),
    };
    let none = || Growing::new(scores, request);
    best.unwrap_or_else(none).improved().into_choice()
}

/// A set that takes GPUs from those that are free.
#[derive(Clone)]
struct Growing<'a> {
    scores: &'a Scores,
    must: &'a [usize],
    taken: Vec<usize>,
    free: Vec<usize>,
    /// Of each GPU of the node: its links to all that is taken, and to all that is
    /// free.
    to_taken: Vec<Score>,
    to_free: Vec<Score>,
    own: Score,
    left: Score,
}

impl<'a> Growing<'a> {
    fn new(scores: &'a Scores, request: &'a Request) -> Self {
        let of_each = |gpus: &[usize]| {
            (0..scores.len())
                .map(|gpu| scores.to_all(gpu, gpus))
                .collect()
        };
        Self {
            scores,
            must: &request.must,
            taken: request.must.clone(),
            free: request.free.clone(),
            to_taken: of_each(&request.must),
            to_free: of_each(&request.free),
            own: scores.within(&request.must),
            left: scores.within(&request.free),
        }
    }

    fn from(seed: usize, scores: &'a Scores, request: &'a Request) -> Self {
        let mut growing = Self::new(scores, request);
        growing.take(seed);
        growing
    }

    fn rank(&self) -> Rank {
        let numa_nodes = self.scores.numa_nodes(&self.taken);
        (self.own, self.left, Reverse(numa_nodes))
    }

    /// Of equals the first.
    fn better(self, other: Self) -> Self {
        if other.rank() > self.rank() {
            other
        } else {
            self
        }
    }

    fn take(&mut self, gpu: usize) {
        self.own += self.to_taken[gpu];
        self.left = self.left - self.to_free[gpu];
        self.free.retain(|other| *other != gpu);
        self.taken.push(gpu);
        self.moved(gpu, |links, pair| links + pair);
    }

    fn give_back(&mut self, gpu: usize) {
        self.own = self.own - self.to_taken[gpu];
        self.left += self.to_free[gpu];
        self.taken.retain(|other| *other != gpu);
        self.free.push(gpu);
        self.moved(gpu, |links, pair| links - pair);
    }

    /// One went over to those that are taken, or back.
    fn moved(&mut self, gpu: usize, taken: fn(Score, Score) -> Score) {
        for other in 0..self.scores.len() {
            let pair = self.scores.pair(gpu, other);
            let both = self.to_taken[other] + self.to_free[other];
            self.to_taken[other] = taken(self.to_taken[other], pair);
            self.to_free[other] = both - self.to_taken[other];
        }
    }

    /// Up to so many beside those that must be.
    fn grown(mut self, more: usize) -> Self {
        let wanted = self.must.len() + more;
        while self.taken.len() < wanted {
            let is_last = self.taken.len() + 1 == wanted;
            let worth = |gpu: &&usize| {
                let gpu = **gpu;
                let next = if is_last { None } else { self.partner(gpu) };
                let links = self.to_taken[gpu] + next.unwrap_or_default();
                (links, Reverse(self.to_free[gpu]), Reverse(gpu))
            };
            let Some(next) = self.free.iter().max_by_key(worth).copied() else {
                break;
            };
            self.take(next);
        }
        self
    }

    /// What the best to come after it would add.
    fn partner(&self, gpu: usize) -> Option<Score> {
        let others = self.free.iter().filter(|other| **other != gpu);
        others.map(|other| self.scores.pair(gpu, *other)).max()
    }

    fn improved(mut self) -> Self {
        for _ in 0..EXCHANGES {
            let Some((gone, come)) = self.best_exchange() else {
                break;
            };
            self.give_back(gone);
            self.take(come);
        }
        self
    }

    /// The exchange that gains most, if any gains.
    fn best_exchange(&self) -> Option<(usize, usize)> {
        let mut best = ((Score::default(), Score::default()), None);
        for gone in self.taken.iter().filter(|gpu| !self.must.contains(gpu)) {
            for come in &self.free {
                let between = self.scores.pair(*gone, *come);
                let own = self.to_taken[*come] - between - self.to_taken[*gone];
                let left = self.to_free[*gone] - between - self.to_free[*come];
                if (own, left) > best.0 {
                    best = ((own, left), Some((*gone, *come)));
                }
            }
        }
        best.1
    }

    fn into_choice(mut self) -> Choice {
        self.taken.sort_unstable();
        Choice {
            numa_nodes: self.scores.numa_nodes(&self.taken),
            gpus: self.taken,
            own: self.own,
            left: self.left,
        }
    }
}
