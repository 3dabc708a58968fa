//! A listener and its connections, which end together.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};

use super::serve::serve;
use super::store::Cluster;

/// With a runtime of its own: where that ends, every connection does.
pub(super) struct Server {
    runtime: Option<Runtime>,
    address: SocketAddr,
}

impl Server {
    pub(super) fn start(address: SocketAddr, cluster: Arc<Cluster>) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let router = Router::new().fallback(serve).with_state(cluster);
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            axum::serve(listener, router).await
        });
        Ok(Self {
            runtime: Some(runtime),
            address,
        })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends every connection, and returns once new ones are refused.
    pub(super) async fn stop(mut self) {
        self.end();
        while TcpStream::connect(self.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    }

    fn end(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}
