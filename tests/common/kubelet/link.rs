//! Connections that close when the kubelet says so, not when they please.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use gpu_device_plugin::api::v1beta1::device_plugin_client::DevicePluginClient;
use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint};

use super::authority::Rename;

/// grpc-go's default for received messages; the kubelet does not override it.
const MESSAGE_LIMIT: usize = 4 * 1024 * 1024;
/// The kubelet's client has grpc-go's own user agent, which is this and its version.
const AGENT: &str = "grpc-go/1.81.1";
/// grpc-go's backoff between attempts to connect (backoff.DefaultConfig).
const BACKOFF: Duration = Duration::from_secs(1);
const BACKOFF_FACTOR: f64 = 1.6;
const FRAME_TYPE_OFFSET: usize = 3;
const FRAME_TYPE_SETTINGS: u8 = 4;

/// A client held to the kubelet's message limit.
pub(super) fn client(channel: Channel) -> DevicePluginClient<Channel> {
    DevicePluginClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT)
}

/// How many connections are open, so that a stop can wait for the last.
#[derive(Clone)]
pub(super) struct OpenCount(Arc<watch::Sender<usize>>);

impl OpenCount {
    pub(super) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(0)))
    }

    pub(super) async fn wait_until_none(&self) {
        let mut open = self.0.subscribe();
        // The sender lives in self, so that waiting cannot fail.
        let _closed = open.wait_for(|open| *open == 0).await;
    }

    fn add(&self) -> OpenGuard {
        self.0.send_modify(|open| *open += 1);
        OpenGuard(self.clone())
    }
}

struct OpenGuard(OpenCount);

impl Drop for OpenGuard {
    fn drop(&mut self) {
        (self.0.0).send_modify(|open| *open -= 1);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Handshake {
    Pending,
    Established,
    Lost,
}

/// A Unix stream that fails as soon as its token is cancelled, as the streams
/// of a killed process do, and that tells when the peer's SETTINGS arrived.
pub(super) struct Wire {
    stream: UnixStream,
    closed: Pin<Box<WaitForCancellationFutureOwned>>,
    first_bytes: Vec<u8>,
    authority: Option<Rename>,
    handshake: Option<Arc<watch::Sender<Handshake>>>,
    _open: OpenGuard,
}

impl Wire {
    pub(super) fn new(stream: UnixStream, closed: CancellationToken, open: &OpenCount) -> Self {
        Self {
            stream,
            closed: Box::pin(closed.cancelled_owned()),
            first_bytes: Vec::new(),
            authority: None,
            handshake: None,
            _open: open.add(),
        }
    }

    /// A connection that a plugin made: it may call the kubelet what it likes.
    pub(super) fn accepted(
        stream: UnixStream,
        closed: CancellationToken,
        open: &OpenCount,
    ) -> Self {
        let mut wire = Self::new(stream, closed, open);
        wire.authority = Some(Rename::default());
        wire
    }

    fn check_open(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.closed.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionAborted.into()),
            Poll::Pending => Ok(()),
        }
    }

    /// An HTTP/2 server's first frame is SETTINGS (RFC 9113, 3.4).
    fn inspect(&mut self, bytes: &[u8]) {
        if self.first_bytes.len() > FRAME_TYPE_OFFSET {
            return;
        }
        self.first_bytes
            .extend(bytes.iter().take(FRAME_TYPE_OFFSET + 1));
        if self.first_bytes.get(FRAME_TYPE_OFFSET) == Some(&FRAME_TYPE_SETTINGS) {
            self.settle(Handshake::Established);
        }
    }

    fn settle(&self, outcome: Handshake) {
        if let Some(handshake) = &self.handshake {
            handshake.send_if_modified(|state| {
                let pending = *state == Handshake::Pending;
                if pending {
                    *state = outcome;
                }
                pending
            });
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.settle(Handshake::Lost);
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check_open(cx)?;
        let before = buf.filled().len();
        let wire = &mut *self;
        ready!(match &mut wire.authority {
            Some(authority) => authority.poll_read(&mut wire.stream, cx, buf),
            None => Pin::new(&mut wire.stream).poll_read(cx, buf),
        })?;
        self.inspect(&buf.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check_open(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Connected for Wire {
    type ConnectInfo = <UnixStream as Connected>::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

/// plugin/v1beta1/client.go, dial, with gRPC's WithBlock: tries until HTTP/2
/// is up. The caller sets the limit. A broken connection is dialled anew by
/// the next call, as by grpc-go, unless `closed` is cancelled.
pub(super) async fn dial(path: &Path, closed: &CancellationToken, open: &OpenCount) -> Channel {
    let mut backoff = BACKOFF;
    loop {
        if let Ok(channel) = dial_once(path, closed, open, Some(AGENT)).await {
            return channel;
        }
        tokio::time::sleep(backoff).await;
        backoff = backoff.mul_f64(BACKOFF_FACTOR);
    }
}

/// One attempt of [`dial`], by the kubelet or, without a name, by another client.
pub(super) async fn dial_once(
    path: &Path,
    closed: &CancellationToken,
    open: &OpenCount,
    agent: Option<&'static str>,
) -> io::Result<Channel> {
    let handshake = Arc::new(watch::Sender::new(Handshake::Pending));
    let mut outcome = handshake.subscribe();
    let (path, closed, open) = (path.to_owned(), closed.clone(), open.clone());
    let connector = tower::service_fn(move |_: Uri| {
        let (path, closed) = (path.clone(), closed.clone());
        let (open, handshake) = (open.clone(), Arc::clone(&handshake));
        async move {
            connect(path, closed, &open, handshake)
                .await
                .map(TokioIo::new)
        }
    });
    let mut endpoint = Endpoint::from_static("http://localhost");
    if let Some(agent) = agent {
        endpoint = endpoint.user_agent(agent).map_err(io::Error::other)?;
    }
    let channel = endpoint
        .connect_with_connector(connector)
        .await
        .map_err(io::Error::other)?;
    match outcome
        .wait_for(|state| *state != Handshake::Pending)
        .await
        .as_deref()
    {
        Ok(Handshake::Established) => Ok(channel),
        _ => Err(io::ErrorKind::ConnectionReset.into()),
    }
}

async fn connect(
    path: PathBuf,
    closed: CancellationToken,
    open: &OpenCount,
    handshake: Arc<watch::Sender<Handshake>>,
) -> io::Result<Wire> {
    if closed.is_cancelled() {
        return Err(io::ErrorKind::ConnectionAborted.into());
    }
    let mut wire = Wire::new(UnixStream::connect(path).await?, closed, open);
    wire.handshake = Some(handshake);
    Ok(wire)
}
