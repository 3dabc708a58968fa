//! The ListAndWatch streams that are open on our socket.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::watch;

use super::machine;

#[derive(Debug, Default)]
struct State {
    all: Series,
    /// Those of them whose client looks like a kubelet.
    kubelets: Series,
    /// Streams with a number below this are to end.
    end_below: u64,
    /// How many connections were ever accepted.
    accepted: u64,
    /// The open connections, and whether each has carried a stream.
    connections: BTreeMap<u64, bool>,
}

#[derive(Debug, Default)]
struct Series {
    opened: u64,
    open: BTreeSet<u64>,
}

impl Series {
    fn open(&mut self) -> u64 {
        let number = self.opened;
        self.opened += 1;
        self.open.insert(number);
        number
    }

    fn now(&self) -> machine::Series {
        machine::Series {
            opened: self.opened,
            open: self.open.iter().copied().collect(),
        }
    }
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
    /// Takes note of a connection: open until what is returned is dropped.
    pub fn accept(&self) -> Accepted {
        let mut number = 0;
        // No news: whoever looks whether we live connects, and two copies that
        // looked at each such connection would keep each other busy.
        self.0.send_if_modified(|state| {
            number = state.accepted;
            state.accepted += 1;
            state.connections.insert(number, false);
            false
        });
        let streams = self.clone();
        Accepted { number, streams }
    }

    /// Opens a stream, on the connection with this number where that is known, by a
    /// client that looks like a kubelet or not: open until the ticket is dropped.
    pub fn open(&self, connection: Option<u64>, like_kubelet: bool) -> Ticket {
        let (mut number, mut of_kubelets) = (0, None);
        self.0.send_modify(|state| {
            let carrier = connection.and_then(|number| state.connections.get_mut(&number));
            if let Some(carries) = carrier {
                *carries = true;
            }
            number = state.all.open();
            of_kubelets = like_kubelet.then(|| state.kubelets.open());
        });
        Ticket {
            number,
            of_kubelets,
            streams: self.clone(),
        }
    }

    /// Tells every stream that is open to end.
    pub fn end_all(&self) {
        self.0
            .send_modify(|state| state.end_below = state.all.opened);
    }

    /// The streams as they are now.
    pub fn now(&self) -> machine::Streams {
        let state = self.0.borrow();
        machine::Streams {
            all: state.all.now(),
            kubelets: state.kubelets.now(),
            carriers: state
                .connections
                .values()
                .filter(|carries| **carries)
                .count(),
        }
    }

    /// Tells when a stream was opened or closed, or a connection that carried
    /// one was.
    pub fn changes(&self) -> Changes {
        Changes(self.0.subscribe())
    }
}

/// See [`Streams::changes`].
#[derive(Debug)]
pub struct Changes(watch::Receiver<State>);

impl Changes {
    /// Waits for a change since the last look. Cancel safe.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// An open connection.
#[derive(Debug)]
pub struct Accepted {
    number: u64,
    streams: Streams,
}

impl Accepted {
    /// Tells it from every other.
    pub fn number(&self) -> u64 {
        self.number
    }
}

impl Drop for Accepted {
    fn drop(&mut self) {
        self.streams.0.send_if_modified(|state| {
            let carried = state.connections.remove(&self.number);
            carried.unwrap_or(false)
        });
    }
}

/// An open stream.
#[derive(Debug)]
pub struct Ticket {
    number: u64,
    /// Its number among those that look like a kubelet's.
    of_kubelets: Option<u64>,
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
            state.all.open.remove(&self.number);
            if let Some(number) = self.of_kubelets {
                state.kubelets.open.remove(&number);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    fn is_pending(future: impl Future<Output = ()>) -> bool {
        pin!(future)
            .poll(&mut Context::from_waker(Waker::noop()))
            .is_pending()
    }

    #[tokio::test]
    async fn a_stream_is_told_to_end_and_a_later_one_is_not() {
        let streams = Streams::default();
        let connection = streams.accept();
        let first = streams.open(Some(connection.number()), true);
        assert!(is_pending(first.told_to_end()));
        streams.end_all();
        let second = streams.open(None, false);
        first.told_to_end().await;
        assert!(is_pending(second.told_to_end()));
        let series = |opened, open| machine::Series { opened, open };
        let now = |all, kubelets, carriers| machine::Streams {
            all: series(2, all),
            kubelets: series(1, kubelets),
            carriers,
        };
        assert_eq!(streams.now(), now(vec![0, 1], vec![0], 1));
        drop(first);
        assert_eq!(streams.now(), now(vec![1], vec![], 1));
        drop(connection);
        assert_eq!(streams.now(), now(vec![1], vec![], 0));
    }

    #[tokio::test]
    async fn a_connection_without_a_stream_is_no_news() {
        let streams = Streams::default();
        let mut changes = streams.changes();
        drop(streams.accept());
        assert!(is_pending(changes.changed()));
        let connection = streams.accept();
        drop(streams.open(Some(connection.number()), true));
        changes.changed().await;
        drop(connection);
        changes.changed().await;
    }
}
