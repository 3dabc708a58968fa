//! A connection, up to where a request can be sent.

use std::net::SocketAddr;
use std::time::Duration;

use axum::body::Body;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use crate::cluster::text::chain;

/// For one address: three tries of the kernel's, and there may be another one.
const LONGEST_WAIT: Duration = Duration::from_secs(4);
/// As many as a request has time for.
const MOST_ADDRESSES: usize = 5;

/// Plain, or with TLS.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Connects to the first of a host's addresses that answers.
pub(super) async fn dial(host: &str, port: u16) -> Result<TcpStream, String> {
    let none = |why: &str| format!("{host} has no address{why}");
    let found = lookup_host((host, port)).await;
    let found = found.map_err(|error| none(&format!(": {error}")))?;
    let mut failures = Vec::new();
    for address in found.take(MOST_ADDRESSES) {
        match connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failures.push(format!("{address}: {error}")),
        }
    }
    if failures.is_empty() {
        return Err(none(""));
    }
    Err(format!("cannot connect to {}", failures.join(", ")))
}

async fn connect(address: SocketAddr) -> Result<TcpStream, String> {
    let connected = timeout(LONGEST_WAIT, TcpStream::connect(address)).await;
    let stream = match connected {
        Ok(connected) => connected.map_err(|error| error.to_string())?,
        Err(_) => return Err(format!("no answer in {} s", LONGEST_WAIT.as_secs())),
    };
    // A request is written at once, and nothing is gained by waiting for more.
    let unhurried = stream.set_nodelay(true);
    unhurried.map_err(|error| error.to_string())?;
    Ok(stream)
}

/// Makes ready for requests. The connection ends with what sends them.
pub(super) async fn greet(stream: Box<dyn Stream>) -> Result<SendRequest<Body>, String> {
    let shaken = handshake(TokioIo::new(stream)).await;
    let (sender, connection) = shaken.map_err(|error| chain(&error))?;
    // What goes wrong is told to whoever waits for an answer.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}
