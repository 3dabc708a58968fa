//! Times that wake the process once when they are over: a period, and an alarm.
//!
//! Tokio keeps its timers in wheels and wakes up to three times for one that is
//! seconds away: once for each wheel that it is moved to. For what is done again and
//! again while nothing happens, the kernel keeps the time (timerfd_create(2)).

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::net::unix::pipe::Receiver;
use tokio::time::{Instant, sleep, sleep_until};

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
        let timer = timer(period, period).and_then(Receiver::from_owned_fd_unchecked);
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
        if !rings(timer).await {
            sleep(self.period).await;
        }
    }
}

/// Wakes its task at a time that another thread may put off. That costs the thread
/// less than to wake the task would.
pub(crate) struct Alarm {
    /// None: the kernel gave no timer, and Tokio's has to do.
    timer: Option<(Receiver, Arc<Settings>)>,
    at: Instant,
}

/// The settings of an alarm's timer.
struct Settings {
    timer: OwnedFd,
    /// How often it was set by its owner.
    number: Mutex<u64>,
}

impl Settings {
    fn number(&self) -> MutexGuard<'_, u64> {
        self.number.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Puts off an [`Alarm`], until that is set anew.
pub(crate) struct Put {
    settings: Arc<Settings>,
    number: u64,
}

impl Put {
    /// It rings when so much time has passed, unless it was set anew.
    pub(crate) fn off(&self, time: Duration) -> io::Result<()> {
        let number = self.settings.number();
        if *number == self.number {
            set(&self.settings.timer, Duration::ZERO, time)?;
        }
        Ok(())
    }
}

impl Alarm {
    /// It rings after this time. Within a Tokio runtime.
    pub(crate) fn after(time: Duration) -> Self {
        let timer = timer(Duration::ZERO, time).and_then(|timer| {
            let settings = Settings {
                timer: timer.try_clone()?,
                number: Mutex::default(),
            };
            let timer = Receiver::from_owned_fd_unchecked(timer)?;
            Ok((timer, Arc::new(settings)))
        });
        Self {
            timer: timer.ok(),
            at: Instant::now() + time,
        }
    }

    /// Now it rings at this time, or at once where that has passed. Who was to put
    /// it off cannot any more.
    pub(crate) fn set(&mut self, at: Instant) {
        self.at = at;
        let time = at.saturating_duration_since(Instant::now());
        let Some((_, settings)) = &self.timer else {
            return;
        };
        let mut number = settings.number();
        *number += 1;
        let done = set(&settings.timer, Duration::ZERO, time);
        drop(number);
        if done.is_err() {
            self.timer = None;
        }
    }

    /// The same, but for another thread to put off. None, and nothing is set, where
    /// that cannot be.
    pub(crate) fn lend(&mut self, at: Instant) -> Option<Put> {
        self.timer.as_ref()?;
        self.set(at);
        let (_, settings) = self.timer.as_ref()?;
        let number = *settings.number();
        Some(Put {
            settings: settings.clone(),
            number,
        })
    }

    /// Waits for it to ring, once for each time that it was set to. Cancel safe.
    pub(crate) async fn rings(&self) {
        let Some((timer, _)) = &self.timer else {
            return sleep_until(self.at).await;
        };
        if !rings(timer).await {
            sleep_until(self.at).await;
        }
    }
}

/// Waits for the kernel's timer. False if that cannot be.
async fn rings(timer: &Receiver) -> bool {
    loop {
        let ready = timer.readable().await;
        match ready.and_then(|()| timer.try_read(&mut [0; 8])) {
            Ok(_how_often) => return true,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return false,
        }
    }
}

/// A timer that ends after `first`, and after each `period` from then on; of zero,
/// once.
fn timer(period: Duration, first: Duration) -> io::Result<OwnedFd> {
    let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
    let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
    set(&timer, period, first)?;
    Ok(timer)
}

fn set(timer: &OwnedFd, period: Duration, first: Duration) -> io::Result<()> {
    // Zero would be never.
    let first = first.max(Duration::from_nanos(1));
    let times = Itimerspec {
        it_interval: Timespec::try_from(period).map_err(io::Error::other)?,
        it_value: Timespec::try_from(first).map_err(io::Error::other)?,
    };
    timerfd_settime(timer, TimerfdTimerFlags::empty(), &times)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_period_ends_once_and_those_that_nobody_waited_for_are_one() {
        const PERIOD: Duration = Duration::from_millis(20);
        let began = Instant::now();
        let ticker = Ticker::every(PERIOD);
        let begun = Instant::now();
        ticker.tick().await;
        assert!(began.elapsed() >= PERIOD);
        ticker.tick().await;
        assert!(began.elapsed() >= 2 * PERIOD);
        while begun.elapsed() < 5 * PERIOD {
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
    async fn an_alarm_rings_when_nobody_puts_it_off_any_more() {
        const TIME: Duration = Duration::from_millis(40);
        let began = Instant::now();
        let mut alarm = Alarm::after(Duration::ZERO);
        let put = alarm.lend(began + TIME).unwrap();
        for _ in 0..3 {
            let early = tokio::time::timeout(TIME / 2, alarm.rings()).await;
            if early.is_err() {
                put.off(TIME).unwrap();
            }
        }
        alarm.rings().await;
        assert!(began.elapsed() >= TIME);
        let never = tokio::time::timeout(TIME, alarm.rings()).await;
        assert!(never.is_err(), "once");
        alarm.set(began);
        alarm.rings().await;
    }

    #[tokio::test]
    async fn an_alarm_that_was_set_anew_is_put_off_by_nobody_who_was_to_before() {
        const LONG: Duration = Duration::from_secs(3600);
        let mut alarm = Alarm::after(LONG);
        let before = alarm.lend(Instant::now() + LONG).unwrap();
        alarm.set(Instant::now());
        before.off(LONG).unwrap();
        let rung = tokio::time::timeout(LONG / 100, alarm.rings()).await;
        assert!(rung.is_ok(), "put off by one who had no say any more");
        let after = alarm.lend(Instant::now() + LONG).unwrap();
        after.off(Duration::ZERO).unwrap();
        alarm.rings().await;
    }

    #[tokio::test]
    async fn an_alarm_without_a_timer_of_the_kernel_rings_too() {
        let mut alarm = Alarm {
            timer: None,
            at: Instant::now(),
        };
        assert!(alarm.lend(Instant::now()).is_none());
        alarm.rings().await;
        let at = Instant::now() + Duration::from_millis(5);
        alarm.set(at);
        alarm.rings().await;
        assert!(Instant::now() >= at);
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
