//! All that was measured of one plugin, and what it comes to.

use std::time::Duration;

use super::life::Life;
use super::process::Memory;

/// All that was measured of one plugin.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    /// Nothing where it did not register.
    pub(crate) starts: Vec<Option<Duration>>,
    pub(crate) lives: Vec<Life>,
}

impl Figures {
    /// The median over the lives.
    pub(crate) fn of_lives(&self, figure: impl Fn(&Life) -> Option<f64>) -> Option<f64> {
        median(self.lives.iter().filter_map(figure).collect())
    }

    /// Of KiB, in MiB.
    pub(crate) fn mebibytes(
        &self,
        when: impl Fn(&Life) -> Option<Memory>,
        part: impl Fn(Memory) -> u64,
    ) -> Option<f64> {
        self.of_lives(|life| when(life).map(|memory| part(memory) as f64 / 1024.0))
    }

    pub(crate) fn restarts(&self) -> Vec<Option<Duration>> {
        let lives = self.lives.iter();
        lives.flat_map(|life| life.restarts.clone()).collect()
    }

    pub(crate) fn xids(&self) -> Vec<Option<Duration>> {
        let lives = self.lives.iter();
        lives.flat_map(|life| life.xids.clone()).collect()
    }
}

/// Of those that succeeded, sorted, in milliseconds.
pub(crate) fn milliseconds(times: &[Option<Duration>]) -> Vec<f64> {
    let mut times: Vec<_> = times.iter().flatten().collect();
    times.sort();
    times.iter().map(|time| time.as_secs_f64() * 1e3).collect()
}

pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        0 => Some((values.get(middle.checked_sub(1)?)? + values.get(middle)?) / 2.0),
        _ => values.get(middle).copied(),
    }
}

/// The smallest value that so many percent do not exceed. Sorted values.
pub(crate) fn percentile<T: Copy>(sorted: &[T], percent: usize) -> Option<T> {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied()
}

/// A percentile of calls, in microseconds.
pub(crate) fn microseconds(sorted: &[Duration], percent: usize) -> Option<f64> {
    percentile(sorted, percent).map(|time| time.as_secs_f64() * 1e6)
}
