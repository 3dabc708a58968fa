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

/// What was to be written is, however the monitor ends.
impl Drop for Untold {
    fn drop(&mut self) {
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

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::sync::watch;

    use super::*;

    #[tokio::test]
    async fn a_task_that_was_woken_goes_before_the_log() {
        let order = Arc::new(Mutex::new(Vec::new()));
        let (list, mut lists) = watch::channel(());
        let told = order.clone();
        tokio::spawn(async move {
            lists.changed().await.unwrap();
            told.lock().unwrap().push("list");
        });
        yield_now().await;

        let mut untold = Untold::default();
        list.send(()).unwrap();
        let written = order.clone();
        untold.push(move || written.lock().unwrap().push("line"));
        untold.tell().await;
        assert_eq!(*order.lock().unwrap(), ["list", "line"]);
    }

    #[test]
    fn what_was_to_be_written_at_the_end_is_written_once() {
        let lines = Arc::new(Mutex::new(0));
        let mut untold = Untold::default();
        let written = lines.clone();
        untold.push(move || *written.lock().unwrap() += 1);
        drop(untold);
        assert_eq!(*lines.lock().unwrap(), 1);
    }
}
