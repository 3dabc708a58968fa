//! A connection that can be cut from outside, and that sends an answer in one piece.
//!
//! h2 flushes after a DATA frame of more than 256 bytes, so an answer to Allocate
//! would leave in two system calls, and wake its reader twice. What is written is
//! held back instead until the task that serves the connection is polled again,
//! which it is at once: by then the trailers are written too.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::{Connected, UdsConnectInfo};

use super::streams::Accepted;

/// So much is held back at most; what is larger goes out as it comes.
const HELD: usize = 16 << 10;
/// A place for so much is kept between two answers.
const KEPT: usize = 8 << 10;

/// A Unix stream that fails when a token is cancelled: the server has a task
/// for each connection, which ends with its connection and not with the server.
pub(super) struct Connection {
    stream: UnixStream,
    accepted: Accepted,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Written, and not sent yet …
    held: Vec<u8>,
    /// … but for the first of it.
    sent: usize,
    /// It was to be flushed before: now it is sent, or waited for.
    due: bool,
}

/// What a handler learns of the connection that it is called on.
#[derive(Clone, Debug)]
pub(super) struct ConnectionInfo {
    /// Tells it from every other.
    pub(super) number: u64,
    /// Who is at the other end.
    pub(super) peer: UdsConnectInfo,
}

impl Connection {
    pub(super) fn new(stream: UnixStream, accepted: Accepted, cut: CancellationToken) -> Self {
        Self {
            stream,
            accepted,
            cut: Box::pin(cut.cancelled_owned()),
            held: Vec::new(),
            sent: 0,
            due: false,
        }
    }

    /// Sends what is held back.
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.held.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match ready!(Pin::new(&mut self.stream).poll_write(context, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                sent => self.sent += sent,
            }
        }
        self.sent = 0;
        self.due = false;
        self.held.clear();
        if self.held.capacity() > KEPT {
            self.held = Vec::new();
        }
        Poll::Ready(Ok(()))
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.held.len() + bytes <= HELD
    }

    /// Ready with an error once the connection was cut.
    fn poll_cut(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        ready!(self.cut.as_mut().poll(context));
        Poll::Ready(io::ErrorKind::ConnectionAborted.into())
    }
}

impl Connected for Connection {
    type ConnectInfo = ConnectionInfo;

    fn connect_info(&self) -> ConnectionInfo {
        let number = self.accepted.number();
        ConnectionInfo {
            number,
            peer: self.stream.connect_info(),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(error) = self.poll_cut(context) {
            return Poll::Ready(Err(error));
        }
        // What does not go now goes when the stream takes it: that is waited for.
        if let Poll::Ready(Err(error)) = self.poll_send(context) {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.has_room(bytes.len()) {
            self.held.extend_from_slice(bytes);
            return Poll::Ready(Ok(bytes.len()));
        }
        ready!(self.poll_send(context))?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let all = bytes.iter().map(|part| part.len()).sum();
        if self.has_room(all) {
            bytes
                .iter()
                .for_each(|part| self.held.extend_from_slice(part));
            return Poll::Ready(Ok(all));
        }
        ready!(self.poll_send(context))?;
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.held.is_empty() {
            return Pin::new(&mut self.stream).poll_flush(context);
        }
        if self.due {
            // Not woken again: a reader that takes nothing would have us spin.
            return self.poll_send(context);
        }
        // Reading comes first when the task is polled again, and sends this.
        self.due = true;
        context.waker().wake_by_ref();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(context))?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::IoSlice;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::super::streams::Streams;
    use super::*;

    fn connected() -> (Connection, UnixStream, CancellationToken) {
        let (own, other) = UnixStream::pair().unwrap();
        let cut = CancellationToken::new();
        let connection = Connection::new(own, Streams::default().accept(), cut.clone());
        (connection, other, cut)
    }

    /// One poll of reading, as the task that serves a connection begins with.
    async fn read_once(connection: &mut Connection) -> Poll<io::Result<()>> {
        let mut room = [0; 16];
        let mut buffer = ReadBuf::new(&mut room);
        poll_fn(|context| Poll::Ready(Pin::new(&mut *connection).poll_read(context, &mut buffer)))
            .await
    }

    #[tokio::test]
    async fn what_is_flushed_is_sent_in_one_piece_at_the_next_look() {
        let (mut connection, mut other, _cut) = connected();
        let parts = [IoSlice::new(b"head"), IoSlice::new(b"data")];
        assert_eq!(connection.write_vectored(&parts).await.unwrap(), 8);
        connection.flush().await.unwrap();
        connection.write_all(b"end").await.unwrap();
        let mut got = [0; 32];
        assert!(other.try_read(&mut got).is_err(), "nothing is sent yet");
        assert!(read_once(&mut connection).await.is_pending());
        assert_eq!(other.read(&mut got).await.unwrap(), 11);
        assert_eq!(&got[..11], b"headdataend");
        assert_eq!(connection.held.len(), 0);
    }

    #[derive(Default)]
    struct Bell(AtomicUsize);

    impl Wake for Bell {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// As h2 does: each poll of a connection reads, and then flushes.
    #[tokio::test]
    async fn a_reader_that_takes_nothing_does_not_have_us_spin() {
        let (mut connection, _other, _cut) = connected();
        let bell = Arc::new(Bell::default());
        let waker = bell.clone().into();
        let mut context = Context::from_waker(&waker);
        let piece = [7; HELD];
        let full = |connection: &mut Connection, context: &mut Context<'_>| {
            Pin::new(connection)
                .poll_write(context, &piece)
                .is_pending()
        };
        while !full(&mut connection, &mut context) {}
        let last = Pin::new(&mut connection).poll_write(&mut context, b"last");
        assert!(matches!(last, Poll::Ready(Ok(4))), "held back");
        drop(Pin::new(&mut connection).poll_flush(&mut context));
        let before = bell.0.load(Ordering::Relaxed);
        for _ in 0..10 {
            let mut room = [0; 16];
            let mut buffer = ReadBuf::new(&mut room);
            let read = Pin::new(&mut connection).poll_read(&mut context, &mut buffer);
            let flushed = Pin::new(&mut connection).poll_flush(&mut context);
            assert!(read.is_pending() && flushed.is_pending());
        }
        assert_eq!(bell.0.load(Ordering::Relaxed), before, "woken by itself");
    }

    #[tokio::test]
    async fn what_is_large_goes_out_as_it_comes_and_in_order() {
        let (mut connection, mut other, _cut) = connected();
        let large = vec![7; 3 * HELD];
        let reader = tokio::spawn(async move {
            let mut all = Vec::new();
            other.read_to_end(&mut all).await.unwrap();
            all
        });
        connection.write_all(b"first").await.unwrap();
        connection.write_all(&large).await.unwrap();
        connection.write_all(b"last").await.unwrap();
        connection.shutdown().await.unwrap();
        drop(connection);
        let all = reader.await.unwrap();
        assert_eq!(all, [&b"first"[..], &large, b"last"].concat());
    }

    /// What a reader that is slow does not take is kept, and goes out later.
    #[tokio::test]
    async fn a_reader_that_is_slow_loses_nothing() {
        let (mut connection, mut other, _cut) = connected();
        let mut sent = Vec::new();
        for number in 0..200_u8 {
            let piece = vec![number; HELD / 2];
            let written = tokio::time::timeout(
                std::time::Duration::from_millis(1),
                connection.write_all(&piece),
            );
            // A socket takes some hundred KiB: then it waits, with part of it taken.
            if written.await.is_err() {
                break;
            }
            sent.extend(piece);
        }
        let mut got = vec![0; sent.len()];
        tokio::select! {
            read = other.read_exact(&mut got) => assert_eq!(read.unwrap(), sent.len()),
            read = connection.read_u8() => panic!("nothing was written there: {read:?}"),
        }
        assert!(got == sent);
    }

    #[tokio::test]
    async fn one_that_is_cut_is_read_from_no_more() {
        let (mut connection, _other, cut) = connected();
        cut.cancel();
        let error = connection.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
    }
}
