//! Requests to the API server, over HTTP/1.1 and TLS. The only place that knows
//! how it is reached, and as whom.
//!
//! A request is sent once, redirects are not followed, and a secret is in no
//! error and in nothing that is printed.

mod access;
mod account;
mod dial;
mod kubeconfig;
mod tls;

use std::ffi::OsString;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use tokio::time::{Instant, sleep, timeout};

use self::access::Access;
use super::error::ClusterError;
use super::text::chain;

/// Nothing that etcd keeps is larger than 1.5 MiB.
const LARGEST_ANSWER: usize = 4 << 20;
/// A connection that rested for longer may have been forgotten on the way, and
/// ten thousand nodes that have nothing to say hold none.
const LONGEST_REST: Duration = Duration::from_secs(90);
const LOOK_AFTER: Duration = Duration::from_secs(30);
/// Of connections that rest: who tells of health and who evicts.
const MOST_AT_REST: usize = 2;
/// What a connection has for the end of its last answer.
const SOON: Duration = Duration::from_millis(100);

/// Where a pod finds its service account.
pub(super) const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The way to an API server. It connects with its first request, and again
/// where that is needed.
pub struct Client {
    access: Access,
    rest: Arc<Mutex<Rest>>,
}

/// Connections that wait for the next request.
#[derive(Default)]
struct Rest {
    connections: Vec<AtRest>,
    is_looked_after: bool,
}

struct AtRest {
    connection: SendRequest<Body>,
    since: Instant,
}

impl Client {
    /// By a kubeconfig's current context.
    ///
    /// # Errors
    ///
    /// [`ClusterError::NotConfigured`] names the file, the line and the key.
    pub fn by_kubeconfig(file: &Path) -> Result<Self, ClusterError> {
        kubeconfig::access(file).map(Self::new)
    }

    /// By a pod's service account, which is in `folder`, and by the environment's
    /// variables.
    ///
    /// # Errors
    ///
    /// [`ClusterError::NotConfigured`] says what is missing.
    pub fn by_service_account(
        folder: &Path,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, ClusterError> {
        account::access(folder, variable).map(Self::new)
    }

    fn new(access: Access) -> Self {
        Self {
            access,
            rest: Arc::default(),
        }
    }

    /// Sends a request to a path of the API server, and answers with the whole
    /// answer, whatever it says. Whoever asks has the deadline.
    ///
    /// # Errors
    ///
    /// [`ClusterError::Unreachable`], [`ClusterError::Unreadable`], or
    /// [`ClusterError::InvalidName`] where the path is none.
    pub async fn send(&self, request: Request<Vec<u8>>) -> Result<Response<Bytes>, ClusterError> {
        let mut request = self.access.admit(request)?;
        loop {
            let rested = self.rested().await;
            let is_rested = rested.is_some();
            let mut connection = match rested {
                Some(connection) => connection,
                None => self.access.connect().await?,
            };
            match connection.try_send_request(request).await {
                Ok(response) => return self.receive(connection, response).await,
                Err(mut error) => match error.take_message() {
                    // The other end hung up meanwhile, and nothing was sent.
                    Some(unsent) if is_rested => request = unsent,
                    _ => return Err(ClusterError::Unreachable(chain(error.error()))),
                },
            }
        }
    }

    /// The connection is good for another request once all of this answer is read.
    async fn receive(
        &self,
        connection: SendRequest<Body>,
        response: Response<Incoming>,
    ) -> Result<Response<Bytes>, ClusterError> {
        let (head, body) = response.into_parts();
        let body = to_bytes(Body::new(body), LARGEST_ANSWER).await;
        let body = body.map_err(|error| ClusterError::Unreadable(chain(&error)))?;
        self.keep(connection);
        Ok(Response::from_parts(head, body))
    }

    fn keep(&self, connection: SendRequest<Body>) {
        let since = Instant::now();
        let mut rest = lock(&self.rest);
        if rest.connections.len() < MOST_AT_REST {
            rest.connections.push(AtRest { connection, since });
        }
        if !rest.is_looked_after {
            rest.is_looked_after = true;
            tokio::spawn(look_after(Arc::downgrade(&self.rest)));
        }
    }

    /// A connection that still stands.
    async fn rested(&self) -> Option<SendRequest<Body>> {
        loop {
            let newest = lock(&self.rest).connections.pop()?;
            let mut connection = newest.connection;
            if newest.since.elapsed() < LONGEST_REST
                && let Ok(Ok(())) = timeout(SOON, connection.ready()).await
            {
                return Some(connection);
            }
        }
    }
}

/// Closes what rested for too long, as long as there is something.
async fn look_after(rest: Weak<Mutex<Rest>>) {
    loop {
        sleep(LOOK_AFTER).await;
        let Some(rest) = rest.upgrade() else {
            return;
        };
        let mut rest = lock(&rest);
        let is_fresh = |one: &AtRest| one.since.elapsed() < LONGEST_REST;
        rest.connections.retain(is_fresh);
        if rest.connections.is_empty() {
            rest.is_looked_after = false;
            return;
        }
    }
}

fn lock(rest: &Mutex<Rest>) -> MutexGuard<'_, Rest> {
    rest.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}
