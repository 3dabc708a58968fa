//! When what failed is tried again.

use std::time::Duration;

use crate::cluster::backoff::Backoff;

/// From the first pause to the longest: each is twice the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pauses {
    /// After the first failure.
    pub first: Duration,
    /// However many there were.
    pub longest: Duration,
}

/// How often something failed in a row, and from when on it is tried again.
#[derive(Clone, Debug)]
pub(super) struct Retry {
    backoff: Backoff,
    longest: Duration,
    /// In time since boot.
    pub(super) until: Duration,
}

impl Retry {
    pub(super) fn new(pauses: Pauses) -> Self {
        Self {
            backoff: Backoff::new(pauses.first),
            longest: pauses.longest,
            until: Duration::ZERO,
        }
    }

    /// It failed once more. Where the other side names a time, it is waited for,
    /// but no longer than the longest pause.
    pub(super) fn failed(&mut self, now: Duration, asked: Option<Duration>, jitter: u8) {
        let asked = asked.map(|asked| asked.min(self.longest));
        let pause = self.backoff.next(self.longest, asked, jitter);
        self.until = now.saturating_add(pause.min(self.longest));
    }

    pub(super) fn is_over(&self, now: Duration) -> bool {
        now >= self.until
    }

    /// It went well.
    pub(super) fn reset(&mut self) {
        self.backoff.reset();
        self.until = Duration::ZERO;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_pause_is_longer_than_the_longest_whatever_is_asked_for() {
        let seconds = Duration::from_secs;
        let pauses = Pauses {
            first: seconds(15),
            longest: seconds(300),
        };
        for asked in [
            None,
            Some(seconds(10)),
            Some(seconds(200)),
            Some(Duration::MAX),
        ] {
            let mut retry = Retry::new(pauses);
            for jitter in 0..=255 {
                retry.failed(seconds(1000), asked, jitter);
                let pause = retry.until - seconds(1000);
                let least = asked.unwrap_or_default().min(pauses.longest);
                assert!(pause >= least && pause <= pauses.longest, "{pause:?}");
                assert!(!retry.is_over(retry.until - seconds(1)) && retry.is_over(retry.until));
            }
            retry.reset();
            assert!(retry.is_over(Duration::ZERO));
        }
    }
}
