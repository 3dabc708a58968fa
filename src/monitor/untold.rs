//! What is written to the log once the kubelet has been told.
//!
//! The log is a pipe: to write to it takes the time to wake its reader, and longer
//! where that is slow. A list of devices is not to wait for that.

use std::fmt;

use tokio::task::yield_now;

type Line = Box<dyn FnOnce() + Send>;

/// Lines that are to be written, in their order.
#[derive(Default)]
pub(super) struct Untold(Vec<Line>);

impl Untold {
    /// Has `line` written later.
    pub(super) fn push(&mut self, line: impl FnOnce() + Send + 'static) {
        self.0.push(Box::new(line));
    }

    /// Lets the tasks that were woken until now go first, and writes. Cancel safe.
    pub(super) async fn tell(&mut self) {
        if self.0.is_empty() {
            return;
        }
        yield_now().await;
        for line in self.0.drain(..) {
            line();
        }
    }
}

impl fmt::Debug for Untold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} lines", self.0.len())
    }
}
