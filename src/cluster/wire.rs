//! One request and its answer: within a deadline, a rate and a size, counted.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderMap, RETRY_AFTER, USER_AGENT};
use http::{Method, Request};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep, timeout};

use super::bucket::Bucket;
use super::client::Client;
use super::error::ClusterError;
use super::metrics::ClusterMetrics;
use super::text::cut;

/// How long a request may take, from the connection to the last byte.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);
/// At most five requests a second, whatever the rest of the process does …
const PAUSE: Duration = Duration::from_millis(200);
/// … and ten at once after a rest.
const BURST: u32 = 10;
/// Of the API server's words in an error.
const LONGEST_MESSAGE: usize = 512;

const AGENT: &str = concat!("gpu-device-plugin/", env!("CARGO_PKG_VERSION"));
const JSON: &str = "application/json";

/// What is done to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Get,
    Create,
    /// With this media type.
    Patch(&'static str),
}

impl Verb {
    /// RBAC's word for it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Create => "create",
            Self::Patch(_) => "patch",
        }
    }

    fn method(self) -> Method {
        match self {
            Self::Get => Method::GET,
            Self::Create => Method::POST,
            Self::Patch(_) => Method::PATCH,
        }
    }

    fn media_type(self) -> &'static str {
        match self {
            Self::Get | Self::Create => JSON,
            Self::Patch(media_type) => media_type,
        }
    }
}

/// A request.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) verb: Verb,
    /// RBAC's word for what it is done to.
    pub(super) resource: &'static str,
    /// On the API server. Made of checked names only.
    pub(super) path: String,
    /// JSON, or nothing.
    pub(super) body: Vec<u8>,
    pub(super) deadline: Duration,
}

/// An answer, whatever it says.
#[derive(Debug)]
pub(super) struct Answer {
    code: u16,
    retry_after: Option<Duration>,
    body: Bytes,
}

/// What the API server says of a failure (apimachinery's meta/v1, `Status`).
#[derive(Debug, Default, Deserialize)]
pub(super) struct Status {
    #[serde(default)]
    pub(super) message: String,
    #[serde(default)]
    pub(super) reason: String,
    pub(super) details: Option<Details>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Details {
    #[serde(default)]
    pub(super) causes: Vec<Cause>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Cause {
    #[serde(default)]
    pub(super) reason: String,
    #[serde(default)]
    pub(super) message: String,
}

/// The way to the API server. Clones share connections, rate and counts.
#[derive(Clone)]
pub(super) struct Wire {
    client: Arc<Client>,
    bucket: Arc<Mutex<Bucket>>,
    made: Instant,
    metrics: ClusterMetrics,
}

impl Wire {
    pub(super) fn new(client: Client, metrics: ClusterMetrics) -> Self {
        Self {
            client: Arc::new(client),
            bucket: Arc::new(Mutex::new(Bucket::new(PAUSE, BURST))),
            made: Instant::now(),
            metrics,
        }
    }

    /// Asks, and answers with what was answered.
    pub(super) async fn ask(&self, ask: &Ask) -> Result<Answer, ClusterError> {
        sleep(self.take_token()).await;
        let answer = timeout(ask.deadline, self.exchange(ask))
            .await
            .unwrap_or_else(|_| {
                let seconds = ask.deadline.as_secs();
                Err(ClusterError::Unreachable(format!(
                    "no answer in {seconds} s"
                )))
            });
        let code = answer.as_ref().ok().map(|answer| answer.code);
        self.metrics.count(ask.verb.name(), ask.resource, code);
        answer
    }

    /// Asks for an object.
    pub(super) async fn ask_for<T: DeserializeOwned>(&self, ask: &Ask) -> Result<T, ClusterError> {
        let answer = self.ask(ask).await?;
        if !answer.is_success() {
            return Err(answer.into_error(ask));
        }
        serde_json::from_slice(&answer.body)
            .map_err(|error| ClusterError::Unreadable(error.to_string()))
    }

    fn take_token(&self) -> Duration {
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        bucket.take(self.made.elapsed())
    }

    async fn exchange(&self, ask: &Ask) -> Result<Answer, ClusterError> {
        let response = self.client.send(ask.request()?).await?;
        let (head, body) = response.into_parts();
        Ok(Answer {
            code: head.status.as_u16(),
            retry_after: retry_after(&head.headers),
            body,
        })
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire").finish_non_exhaustive()
    }
}

/// In seconds; a date is not what API servers send.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse();
    seconds.ok().map(Duration::from_secs)
}

impl Ask {
    /// One with the usual deadline and no body.
    pub(super) fn new(verb: Verb, resource: &'static str, path: String) -> Self {
        Self {
            verb,
            resource,
            path,
            body: Vec::new(),
            deadline: DEADLINE,
        }
    }

    /// With a body.
    pub(super) fn with(mut self, body: &serde_json::Value) -> Self {
        self.body = body.to_string().into_bytes();
        self
    }

    fn request(&self) -> Result<Request<Vec<u8>>, ClusterError> {
        Request::builder()
            .method(self.verb.method())
            .uri(&self.path)
            .header(USER_AGENT, AGENT)
            .header(ACCEPT, JSON)
            .header(CONTENT_TYPE, self.verb.media_type())
            .body(self.body.clone())
            .map_err(|_| ClusterError::InvalidName(self.path.clone()))
    }
}

impl Answer {
    pub(super) fn code(&self) -> u16 {
        self.code
    }

    pub(super) fn is_success(&self) -> bool {
        (200..300).contains(&self.code)
    }

    pub(super) fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// What the API server says of a failure. Some parts of it, and what may
    /// stand before it, answer with plain text.
    pub(super) fn status(&self) -> Status {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| {
            let text = String::from_utf8_lossy(&self.body);
            Status {
                message: text.trim().into(),
                ..Status::default()
            }
        })
    }

    /// Whether the failure has a cause of this reason.
    pub(super) fn has_cause(&self, reason: &str) -> bool {
        let details = self.status().details;
        details.is_some_and(|details| details.causes.iter().any(|cause| cause.reason == reason))
    }

    /// The error that a status outside 2xx is.
    pub(super) fn into_error(self, ask: &Ask) -> ClusterError {
        let message = cut(&self.status().message, LONGEST_MESSAGE);
        let (code, retry_after) = (self.code, self.retry_after);
        match code {
            401 => ClusterError::Unauthorized(message),
            403 => ClusterError::Forbidden {
                verb: ask.verb.name(),
                resource: ask.resource,
                message,
            },
            404 => ClusterError::NotFound(message),
            409 => ClusterError::Conflict(message),
            429 => ClusterError::TooManyRequests { retry_after },
            500.. => ClusterError::Failed {
                code,
                message,
                retry_after,
            },
            _ => ClusterError::Rejected { code, message },
        }
    }
}
