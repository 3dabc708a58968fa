//! A period that wakes the process once when it is over.
//!
//! Tokio keeps its timers in wheels and wakes up to three times for one that is
//! seconds away: once for each wheel that it is moved to. For what is done again and
//! again while nothing happens, the kernel keeps the time (timerfd_create(2)).

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::net::unix::pipe::Receiver;
use tokio::time::sleep;

/// Says when a period is over, again and again.
pub(crate) struct Ticker {
    period: Duration,
    /// None: the kernel gave none, and Tokio's has to do. As a pipe, since Tokio waits
    /// on any file by that name without unsafe code.
    timer: Option<Receiver>,
}

impl Ticker {
    /// The first tick comes after one `period`, which is not zero. Within a Tokio
    /// runtime.
    pub(crate) fn every(period: Duration) -> Self {
        let timer = timer(period).and_then(Receiver::from_owned_fd_unchecked);
        Self {
            period,
            timer: timer.ok(),
        }
    }

    /// Waits for the end of a period. Those that nobody waited for are one. Cancel
    /// safe.
    pub(crate) async fn tick(&self) {
        let Some(timer) = &self.timer else {
            return sleep(self.period).await;
        };
        loop {
            let ready = timer.readable().await;
            match ready.and_then(|()| timer.try_read(&mut [0; 8])) {
                Ok(_how_many) => return,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return sleep(self.period).await,
            }
        }
    }
}

fn timer(period: Duration) -> io::Result<OwnedFd> {
    let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
    let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
    let period = Timespec::try_from(period).map_err(io::Error::other)?;
    let times = Itimerspec {
        it_interval: period,
        it_value: period,
    };
    timerfd_settime(&timer, TimerfdTimerFlags::empty(), &times)?;
    Ok(timer)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[tokio::test]
    async fn each_period_ends_once_and_those_that_nobody_waited_for_are_one() {
        const PERIOD: Duration = Duration::from_millis(20);
        let began = Instant::now();
        let ticker = Ticker::every(PERIOD);
        ticker.tick().await;
        assert!(began.elapsed() >= PERIOD);
        ticker.tick().await;
        assert!(began.elapsed() >= 2 * PERIOD);
        while began.elapsed() < 5 * PERIOD {
            tokio::task::yield_now().await;
        }
        ticker.tick().await;
        ticker.tick().await;
        assert!(
            began.elapsed() >= 6 * PERIOD,
            "that one was to be waited for"
        );
    }

    #[tokio::test]
    async fn a_period_that_is_not_waited_for_to_its_end_goes_on() {
        const PERIOD: Duration = Duration::from_millis(40);
        let ticker = Ticker::every(PERIOD);
        let began = Instant::now();
        let early = tokio::time::timeout(PERIOD / 4, ticker.tick()).await;
        assert!(early.is_err());
        ticker.tick().await;
        assert!(began.elapsed() >= PERIOD);
    }

    #[tokio::test]
    async fn without_a_timer_of_the_kernel_the_period_ends_too() {
        let ticker = Ticker {
            period: Duration::from_millis(1),
            timer: None,
        };
        ticker.tick().await;
    }
}
