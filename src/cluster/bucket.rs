//! A limit on our own requests, so that no fault of ours hammers the API server.

use std::time::Duration;

/// Time since the bucket was made.
type Time = Duration;

/// A token bucket that hands out places in a queue.
#[derive(Debug)]
pub(super) struct Bucket {
    /// From one token to the next.
    pause: Duration,
    /// How many tokens it holds.
    burst: u32,
    /// When it is full again.
    full: Time,
}

impl Bucket {
    /// A full bucket.
    pub(super) fn new(pause: Duration, burst: u32) -> Self {
        Self {
            pause,
            burst,
            full: Time::ZERO,
        }
    }

    /// Takes a token, and says how long to wait for it. Who gives up waiting
    /// leaves it unused.
    pub(super) fn take(&mut self, now: Time) -> Duration {
        self.full = self.full.max(now) + self.pause;
        let ready = self.full.saturating_sub(self.pause * self.burst);
        ready.saturating_sub(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_millis(200);

    #[test]
    fn a_burst_goes_at_once_and_the_rest_at_the_rate() {
        let mut bucket = Bucket::new(PAUSE, 10);
        let waits: Vec<_> = (0..13).map(|_| bucket.take(Time::ZERO)).collect();
        assert!(waits[..10].iter().all(Duration::is_zero), "{waits:?}");
        assert_eq!(waits[10..], [PAUSE, PAUSE * 2, PAUSE * 3]);
    }

    #[test]
    fn it_fills_up_again_and_no_further() {
        let mut bucket = Bucket::new(PAUSE, 2);
        let hour = Duration::from_secs(3600);
        assert_eq!(bucket.take(Time::ZERO), Duration::ZERO);
        let waits: Vec<_> = (0..3).map(|_| bucket.take(hour)).collect();
        assert_eq!(waits, [Duration::ZERO, Duration::ZERO, PAUSE]);
        // Half a token has come since; the queue before has to be served.
        assert_eq!(bucket.take(hour + PAUSE / 2), PAUSE + PAUSE / 2);
    }
}
