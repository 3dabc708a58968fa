//! Which GPUs to choose: of those that are free, the set that a person with the
//! map of the node's links would take. Pure, and of no door's types.
//!
//! # The objective
//!
//! Of all sets that hold what must be in them, the one with
//!
//! 1. the best links among its own GPUs: the most NVLink bandwidth, summed over
//!    every two of them; then the fewest pairs whose way leads from one NUMA node
//!    to another, then over the interconnect within a NUMA node, then over a host
//!    bridge, then over several PCIe switches (`score.rs`);
//! 2. the best use of what is left: the best links that the next request could
//!    get from the GPUs that stay free, summed over every size that it could have;
//! 3. the fewest NUMA nodes;
//! 4. the GPUs with the lowest indexes, so that the same request has the same
//!    answer.
//!
//! The sum and not the weakest pair comes first, because it tells sets apart that
//! have a weak pair in any case: of eight GPUs in two meshes, five are always four
//! and one. NVLink comes before PCIe, because its slowest generation is faster
//! than any way over PCIe between GPUs. PCIe counts the worst pairs first, as it
//! is they that hold up a collective operation; it counts also where GPUs have
//! NVLinks, since the way to the processor and the network is PCIe still. What is
//! left comes before NUMA nodes, as those are in the distances already, wherever
//! distances are known.
//!
//! # How much work
//!
//! A node of up to [`EXACT`] GPUs is answered with the optimum, from two tables of
//! all sets of its GPUs (`exact.rs`) that are made once for a topology: a choice is at
//! most two look-ups for each set of the wanted size, 12,870 at most. A larger node is
//! answered by a search whose steps are bounded (`bounded.rs`). Devices that share
//! GPUs are chosen by what their GPUs have left ([`shared`]).

mod bounded;
mod exact;
#[cfg(test)]
mod fixture;
mod score;
pub mod shared;

use std::cmp::Reverse;

use self::exact::Tables;
pub use self::score::Score;
use self::score::Scores;
use crate::gpu::GpuUuid;
use crate::gpu::topology::Topology;

/// The most GPUs that all sets are looked at of.
pub const EXACT: usize = 16;

/// Chooses among the GPUs of one node, which it knows by their positions in the
/// topology.
#[derive(Clone, Debug)]
pub struct Chooser {
    topology: Topology,
    scores: Scores,
    /// None where there are more than [`EXACT`].
    tables: Option<Tables>,
    /// Positions in the order of the UUIDs.
    by_uuid: Vec<usize>,
}

/// Some of a node's GPUs, and what there is to say for them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// Positions, ascending.
    pub gpus: Vec<usize>,
    /// The links among them.
    pub own: Score,
    /// The links that a next request could have, summed over its sizes. Of a
    /// larger node than [`EXACT`]: those among all that is left.
    pub left: Score,
    /// How many NUMA nodes they are near to.
    pub numa_nodes: usize,
}

/// More is better.
type Rank = (Score, Score, Reverse<usize>);

impl Default for Chooser {
    fn default() -> Self {
        Self::new(Topology::default())
    }
}

/// One that is made of the same is the same.
impl PartialEq for Chooser {
    fn eq(&self, other: &Self) -> bool {
        self.topology == other.topology
    }
}

impl Eq for Chooser {}

impl Chooser {
    /// Draws up the tables. Some milliseconds for 16 GPUs, and 1 MiB of memory;
    /// next to nothing for 8.
    #[must_use]
    pub fn new(topology: Topology) -> Self {
        let scores = Scores::of(&topology);
        let tables = (topology.len() <= EXACT).then(|| Tables::new(&scores));
        let mut by_uuid: Vec<_> = (0..topology.len()).collect();
        by_uuid.sort_by_key(|gpu| &topology.places()[*gpu].uuid);
        Self {
            topology,
            scores,
            tables,
            by_uuid,
        }
    }

    /// What it goes by.
    #[must_use]
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Where a GPU is.
    #[must_use]
    pub fn position(&self, uuid: &GpuUuid) -> Option<usize> {
        let uuid_of = |gpu: &usize| &self.topology.places()[*gpu].uuid;
        let place = self.by_uuid.binary_search_by_key(&uuid, uuid_of).ok()?;
        self.by_uuid.get(place).copied()
    }

    /// The best `size` of the `available`, among them those that `must` be; they
    /// count as available. What is no position is passed over. Fewer than `size`
    /// where there are not so many, and at least those that must be.
    #[must_use]
    pub fn choose(&self, available: &[usize], must: &[usize], size: usize) -> Choice {
        let request = Request::new(self.topology.len(), available, must, size);
        match &self.tables {
            Some(tables) => exact::best(tables, &request),
            None => bounded::best(&self.scores, &request),
        }
    }

    /// The best that is another set than `than`. None where there is no other, and
    /// on a node that is too large to look at every set.
    #[must_use]
    pub fn next_best(
        &self,
        available: &[usize],
        must: &[usize],
        size: usize,
        than: &Choice,
    ) -> Option<Choice> {
        let request = Request::new(self.topology.len(), available, must, size);
        exact::best_but(self.tables.as_ref()?, &request, &than.gpus)
    }
}

/// What is asked for, free of contradictions.
#[derive(Clone, Debug)]
struct Request {
    /// Ascending, without `must`.
    free: Vec<usize>,
    /// Ascending.
    must: Vec<usize>,
    /// How many of `free`.
    more: usize,
}

impl Request {
    fn new(gpus: usize, available: &[usize], must: &[usize], size: usize) -> Self {
        let sorted = |positions: &[usize]| {
            let mut positions: Vec<_> = positions.iter().copied().filter(|p| *p < gpus).collect();
            positions.sort_unstable();
            positions.dedup();
            positions
        };
        let must = sorted(must);
        let mut free = sorted(available);
        free.retain(|gpu| must.binary_search(gpu).is_err());
        let more = size.saturating_sub(must.len()).min(free.len());
        Self { free, must, more }
    }
}

#[cfg(test)]
mod tests;
