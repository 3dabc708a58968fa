//! The plugin's socket, and the server on it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tracing::warn;

use super::connection::Connection;
use super::rpc::RpcLayer;
use super::service::Service;
use crate::api::served::device_plugin_server::DevicePluginServer;
use crate::kubelet::socket::SocketId;

/// The longest path of a Unix socket in bytes: `sun_path` of unix(7) has 108,
/// one of them for the end.
pub const LONGEST_PATH: usize = 107;

/// How long connections have to end by themselves when a server is retired.
const GRACE: Duration = Duration::from_millis(200);

/// What the names of all sockets of this program begin with.
pub const SOCKET_PREFIX: &str = "gpu-device-plugin-";

/// What the names of all sockets for a resource begin with, whichever process
/// made them.
pub fn socket_prefix(resource: &str) -> String {
    format!("{SOCKET_PREFIX}{}-", resource.replace('/', "_"))
}

/// A socket name of this process' own. Two copies of this program may run for
/// a while (a rolling update): each has its own, so neither takes the other's
/// away.
pub fn socket_name(resource: &str) -> String {
    format!("{}{:08x}.sock", socket_prefix(resource), fastrand::u32(..))
}

/// A bound socket with a server on it.
#[derive(Debug)]
pub struct Listener {
    path: PathBuf,
    id: SocketId,
    stop: CancellationToken,
    cut: CancellationToken,
    server: JoinHandle<()>,
}

impl Listener {
    /// Binds `path` and serves `service` on it.
    ///
    /// # Errors
    ///
    /// The socket could not be bound.
    pub fn bind(path: PathBuf, service: Service) -> io::Result<Self> {
        let listener = UnixListener::bind(&path)?;
        let id = SocketId::at(&path).ok_or(io::ErrorKind::NotFound)?;
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let streams = service.streams.clone();
        let layer = RpcLayer::new(service.resource.clone(), service.metrics.clone());
        let router = Server::builder()
            .layer(layer)
            .add_service(DevicePluginServer::new(service));
        let cut = CancellationToken::new();
        let incoming = UnixListenerStream::new(listener).map({
            let cut = cut.clone();
            move |stream| {
                Ok::<_, io::Error>(Connection::new(stream?, streams.accept(), cut.clone()))
            }
        });
        let server = tokio::spawn(async move {
            if let Err(error) = router.serve_with_incoming_shutdown(incoming, stopped).await {
                warn!(%error, "server ended");
            }
        });
        Ok(Self {
            path,
            id,
            stop,
            cut,
            server,
        })
    }

    /// The socket that was bound.
    pub fn id(&self) -> SocketId {
        self.id
    }

    /// Whether the server has ended by itself: nothing accepts any more.
    pub fn has_ended(&self) -> bool {
        self.server.is_finished()
    }

    /// Ends the server: no new connections, the open ones have a moment, and
    /// then they are cut. The socket is removed if it is still the one that was
    /// bound.
    pub async fn retire(mut self) {
        remove_own(&self.path, self.id);
        self.stop.cancel();
        if timeout(GRACE, &mut self.server).await.is_err() {
            self.cut.cancel();
            // Either way `drop` follows.
            drop(timeout(GRACE, &mut self.server).await);
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.cut.cancel();
        self.server.abort();
        remove_own(&self.path, self.id);
    }
}

fn remove_own(path: &Path, id: SocketId) {
    if SocketId::at(path) == Some(id) {
        // Gone already is as good.
        drop(std::fs::remove_file(path));
    }
}
