//! Waiting for what others do.

use std::fmt::Debug;
use std::thread;
use std::time::Duration;

use tokio::time::{Instant, interval};

/// A kubelet or a runtime tells nobody of its changes, so it is asked.
const ASK_EVERY: Duration = Duration::from_millis(20);

/// Longer than anything here takes, so that a failure is a failure.
pub const LONG: Duration = Duration::from_secs(60);

/// Asks until the answer is one, and panics when that takes too long.
pub async fn eventually<T, E: Debug>(what: &str, probe: impl AsyncFnMut() -> Result<T, E>) -> T {
    eventually_every(ASK_EVERY, what, probe).await
}

/// The same, as often as a measurement needs.
pub async fn eventually_every<T, E: Debug>(
    period: Duration,
    what: &str,
    probe: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    ask(period, LONG, what, probe).await
}

/// The same for what takes its time.
pub async fn eventually_within<T, E: Debug>(
    limit: Duration,
    what: &str,
    probe: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    ask(ASK_EVERY, limit, what, probe).await
}

async fn ask<T, E: Debug>(
    period: Duration,
    limit: Duration,
    what: &str,
    mut probe: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let deadline = Instant::now() + limit;
    let mut ticks = interval(period);
    loop {
        ticks.tick().await;
        match probe().await {
            Ok(answer) => return answer,
            Err(error) if Instant::now() > deadline => {
                panic!("waited {limit:?} in vain until {what}; last: {error:?}")
            }
            Err(_) => {}
        }
    }
}

/// Waits without a runtime; for the cleaning up, which must not panic.
pub fn holds_within(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while !condition() {
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(ASK_EVERY);
    }
    true
}
