//! How well GPUs are linked, as a number that can be added up.

use std::collections::BTreeSet;
use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Sub};

use serde::{Serialize, Serializer};

use crate::gpu::topology::{Pair, PcieLevel, Topology};

/// No number of pairs of one level comes up to one of the next: 16 GPUs have 120
/// pairs, and requests of every size for 15 have 560 together.
const LEVEL: i64 = 1024;
/// One GB/s of NVLink outweighs all distances on PCIe.
const NVLINK: i64 = LEVEL * LEVEL * LEVEL * LEVEL;
/// In GB/s: no more is believed of one pair, so that no sum overflows.
const MOST_BANDWIDTH: i64 = 8191;

/// The links of a pair of GPUs, or of all pairs of a set, added up: NVLink's
/// bandwidth first, then how near they are on PCIe. Greater is better.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Score(i64);

impl Score {
    /// Of one pair, of whose bandwidth no more than `most` GB/s are believed. Where
    /// nothing is known of its distance, it is the worst.
    fn of(pair: Pair, most: i64) -> Self {
        let megabytes = i64::from(pair.nvlink_bandwidth);
        let gigabytes = ((megabytes + 500) / 1000).min(most);
        let distance = match pair.pcie {
            Some(PcieLevel::Board | PcieLevel::Pix) => 0,
            Some(PcieLevel::Pxb) => 1,
            Some(PcieLevel::Phb) => LEVEL,
            Some(PcieLevel::Node) => LEVEL * LEVEL,
            Some(PcieLevel::Sys) | None => LEVEL * LEVEL * LEVEL,
        };
        Self(gigabytes * NVLINK - distance)
    }
}

impl Add for Score {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl Sub for Score {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl AddAssign for Score {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sum for Score {
    fn sum<I: Iterator<Item = Self>>(scores: I) -> Self {
        scores.fold(Self::default(), Add::add)
    }
}

/// What a [`Score`] is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Parts {
    /// NVLink's bandwidth in GB/s, each way, added up.
    pub nvlink_gb_s: i64,
    /// How many pairs have their way over the link between NUMA nodes, or it is
    /// not known.
    pub sys: i64,
    /// Over several host bridges of a NUMA node.
    pub node: i64,
    /// Over one host bridge.
    pub phb: i64,
    /// Over several PCIe switches.
    pub pxb: i64,
}

impl Score {
    /// Takes it apart.
    #[must_use]
    pub fn parts(self) -> Parts {
        let nvlink_gb_s = -(-self.0).div_euclid(NVLINK);
        let far = nvlink_gb_s * NVLINK - self.0;
        Parts {
            nvlink_gb_s,
            sys: far / (LEVEL * LEVEL * LEVEL),
            node: far / (LEVEL * LEVEL) % LEVEL,
            phb: far / LEVEL % LEVEL,
            pxb: far % LEVEL,
        }
    }
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = self.parts();
        write!(f, "{} GB/s of NVLink", parts.nvlink_gb_s)?;
        let Parts {
            sys,
            node,
            phb,
            pxb,
            ..
        } = parts;
        for (level, count) in [("SYS", sys), ("NODE", node), ("PHB", phb), ("PXB", pxb)] {
            if count > 0 {
                write!(f, ", {count} x {level}")?;
            }
        }
        Ok(())
    }
}

impl Serialize for Score {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.parts().serialize(serializer)
    }
}

/// The score of each two of a node's GPUs, and the NUMA node of each.
#[derive(Clone, Debug)]
pub(super) struct Scores {
    count: usize,
    pairs: Vec<Score>,
    numa: Vec<Option<u32>>,
}

impl Scores {
    pub(super) fn of(topology: &Topology) -> Self {
        let count = topology.len();
        let pairs = (0..count).flat_map(|a| (0..count).map(move |b| (a, b)));
        let all = i64::try_from(count * count / 2).unwrap_or(i64::MAX).max(1);
        let most = MOST_BANDWIDTH.min(i64::MAX / NVLINK / all);
        let score = |(a, b)| match a == b {
            true => Score::default(),
            false => Score::of(topology.pair(a, b), most),
        };
        Self {
            count,
            pairs: pairs.map(score).collect(),
            numa: topology
                .places()
                .iter()
                .map(|place| place.numa_node)
                .collect(),
        }
    }

    /// How many GPUs there are.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Of two GPUs; nothing of one.
    pub(super) fn pair(&self, a: usize, b: usize) -> Score {
        self.pairs[a * self.count + b]
    }

    /// Of one with each of others.
    pub(super) fn to_all(&self, gpu: usize, others: &[usize]) -> Score {
        others.iter().map(|other| self.pair(gpu, *other)).sum()
    }

    /// Of all pairs of a set.
    pub(super) fn within(&self, gpus: &[usize]) -> Score {
        let mut rest = gpus;
        let mut sum = Score::default();
        while let Some((gpu, others)) = rest.split_first() {
            sum += self.to_all(*gpu, others);
            rest = others;
        }
        sum
    }

    /// The GPUs near each NUMA node that is known.
    pub(super) fn numa_groups(&self) -> impl Iterator<Item = Vec<usize>> {
        let nodes: BTreeSet<_> = self.numa.iter().flatten().collect();
        nodes.into_iter().map(|node| {
            let near = |gpu: &usize| self.numa[*gpu] == Some(*node);
            (0..self.count).filter(near).collect()
        })
    }

    /// How many NUMA nodes a set is near to.
    pub(super) fn numa_nodes(&self, gpus: &[usize]) -> usize {
        let nodes: BTreeSet<_> = gpus.iter().filter_map(|gpu| self.numa[*gpu]).collect();
        nodes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(nvlink_bandwidth: u32, pcie: Option<PcieLevel>) -> Score {
        let pair = Pair {
            nvlinks: 0,
            nvlink_bandwidth,
            pcie,
        };
        Score::of(pair, MOST_BANDWIDTH)
    }

    #[test]
    fn nvlink_comes_before_any_distance_and_the_far_before_the_near() {
        let far = Some(PcieLevel::Sys);
        let all_far: Score = (0..120).map(|_| pair(0, far)).sum();
        assert!(pair(20_000, far) + all_far > Score::default() - pair(0, None) + all_far);
        let ladder: Vec<_> = PcieLevel::ALL[1..]
            .iter()
            .map(|level| pair(0, Some(*level)))
            .collect();
        assert!(
            ladder.is_sorted_by(|near, far| near > far),
            "each is worse than the one before"
        );
        // One way over two sockets is worse than all others within one.
        let near: Score = (0..119).map(|_| pair(0, Some(PcieLevel::Node))).sum();
        assert!(near > pair(0, far));
        assert_eq!(pair(0, None), pair(0, far));
    }

    #[test]
    fn a_score_says_what_it_is_made_of() {
        let score = pair(478_116, Some(PcieLevel::Node)) + pair(0, Some(PcieLevel::Sys));
        assert_eq!(score.to_string(), "478 GB/s of NVLink, 1 x SYS, 1 x NODE");
        assert_eq!(score.parts().nvlink_gb_s, 478);
        assert_eq!(Score::default().to_string(), "0 GB/s of NVLink");
    }

    #[test]
    fn no_answer_of_a_driver_overflows() {
        let sizes: Score = (0..560).map(|_| pair(u32::MAX, None)).sum();
        assert_eq!(sizes.parts().nvlink_gb_s, 560 * MOST_BANDWIDTH);
        assert_eq!(sizes.parts().sys, 560);
    }
}
