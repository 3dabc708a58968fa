//! The ListAndWatch streams that are open on our socket.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::watch;

use super::machine;

#[derive(Debug, Default)]
struct State {
    opened: u64,
    open: BTreeSet<u64>,
    /// Streams with a number below this are to end.
    end_below: u64,
}

/// Counts streams, and ends them. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct Streams(Arc<watch::Sender<State>>);

impl Default for Streams {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::default()))
    }
}

impl Streams {
    /// Opens a stream: open until the ticket is dropped.
    pub fn open(&self) -> Ticket {
        let mut number = 0;
        self.0.send_modify(|state| {
            number = state.opened;
            state.opened += 1;
            state.open.insert(number);
        });
        Ticket {
            number,
            streams: self.clone(),
        }
    }

    /// Tells every stream that is open to end.
    pub fn end_all(&self) {
        self.0.send_modify(|state| state.end_below = state.opened);
    }

    /// The streams as they are now.
    pub fn now(&self) -> machine::Streams {
        let state = self.0.borrow();
        machine::Streams {
            opened: state.opened,
            open: state.open.iter().copied().collect(),
        }
    }

    /// Tells when a stream was opened or closed.
    pub fn changes(&self) -> Changes {
        Changes(self.0.subscribe())
    }
}

/// Tells when a stream was opened or closed.
#[derive(Debug)]
pub struct Changes(watch::Receiver<State>);

impl Changes {
    /// Waits for a change since the last look. Cancel safe.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

/// An open stream.
#[derive(Debug)]
pub struct Ticket {
    number: u64,
    streams: Streams,
}

impl Ticket {
    /// Waits until this stream is told to end.
    pub fn told_to_end(&self) -> impl Future<Output = ()> + use<> {
        let number = self.number;
        let mut state = self.streams.0.subscribe();
        async move {
            // The sender lives as long as any ticket.
            drop(state.wait_for(|state| number < state.end_below).await);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.streams.0.send_modify(|state| {
            state.open.remove(&self.number);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stream_is_told_to_end_and_a_later_one_is_not() {
        let streams = Streams::default();
        let first = streams.open();
        streams.end_all();
        let second = streams.open();
        first.told_to_end().await;
        let mut told = tokio_test_pending(second.told_to_end());
        assert!(told.as_mut().now_or_never_is_none());
        assert_eq!(
            streams.now(),
            machine::Streams {
                opened: 2,
                open: vec![0, 1]
            }
        );
        drop(first);
        assert_eq!(
            streams.now(),
            machine::Streams {
                opened: 2,
                open: vec![1]
            }
        );
    }

    trait NowOrNever {
        fn now_or_never_is_none(self) -> bool;
    }

    impl<F: Future<Output = ()>> NowOrNever for std::pin::Pin<&mut F> {
        fn now_or_never_is_none(self) -> bool {
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            self.poll(&mut context).is_pending()
        }
    }

    fn tokio_test_pending<F: Future>(future: F) -> std::pin::Pin<Box<F>> {
        Box::pin(future)
    }
}
