//! Pauses between tries.

use std::time::Duration;

/// Pauses that double, each cut by up to a half at random.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    failures: u32,
}

impl Backoff {
    /// Nothing has failed yet.
    #[must_use]
    pub fn new(first: Duration) -> Self {
        Self { first, failures: 0 }
    }

    /// The pause after one more failure, `longest` at most. Where the other side
    /// names a time it is waited for, and up to half of it more. `jitter` is any
    /// number, by which many nodes that fail at once part.
    pub fn next(&mut self, longest: Duration, asked: Option<Duration>, jitter: u8) -> Duration {
        let doubled = 2_u32.saturating_pow(self.failures.min(31));
        self.failures = self.failures.saturating_add(1);
        let pause = self.first.saturating_mul(doubled).min(longest);
        let spread = |time: Duration| time / 2 * u32::from(jitter) / u32::from(u8::MAX);
        let pause = pause - spread(pause);
        asked.map_or(pause, |asked| pause.max(asked + spread(asked)))
    }

    /// Whether the last try failed.
    #[must_use]
    pub fn is_failing(&self) -> bool {
        self.failures > 0
    }

    /// Something went well.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_secs(1);
    const LONGEST: Duration = Duration::from_secs(60);

    #[test]
    fn pauses_double_to_the_longest() {
        let mut backoff = Backoff::new(FIRST);
        let pauses: Vec<_> = (0..8)
            .map(|_| backoff.next(LONGEST, None, 0).as_secs())
            .collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        backoff.reset();
        assert_eq!(backoff.next(LONGEST, None, 0), FIRST);
    }

    #[test]
    fn jitter_cuts_by_a_half_at_most() {
        for jitter in 0..=u8::MAX {
            let pause = Backoff::new(LONGEST).next(LONGEST, None, jitter);
            assert!(pause >= LONGEST / 2 && pause <= LONGEST, "{pause:?}");
        }
    }

    #[test]
    fn what_the_other_side_asks_for_is_the_least() {
        let asked = Some(Duration::from_secs(90));
        for jitter in 0..=u8::MAX {
            let pause = Backoff::new(FIRST).next(LONGEST, asked, jitter);
            assert!(pause >= Duration::from_secs(90) && pause <= Duration::from_secs(135));
        }
        let mut backoff = Backoff::new(LONGEST);
        assert_eq!(backoff.next(LONGEST, Some(FIRST), 0), LONGEST);
    }

    #[test]
    fn it_goes_on_for_ever() {
        let mut backoff = Backoff::new(FIRST);
        for _ in 0..1000 {
            assert!(backoff.next(LONGEST, None, 7) <= LONGEST);
        }
        assert!(backoff.is_failing());
    }
}
