//! From a request to an answer.

use std::future::pending;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use super::answer::{Answer, Refusal, respond, too_many};
use super::eviction::evict;
use super::faults::Fault;
use super::log::Asked;
use super::patch::patch_node;
use super::store::{Cluster, Store, text};

/// What the test's user shows.
pub(super) const TOKEN: &str = "test-token";
/// The API server's own (apiserver's config.go, `MaxRequestBodyBytes`).
const LARGEST_BODY: usize = 3 << 20;

/// What a path is of.
enum Place {
    Node(String),
    NodeStatus(String),
    Pod(String, String),
    Eviction(String, String),
    Events(String),
}

impl Place {
    fn of(path: &str) -> Option<Self> {
        let parts: Vec<_> = path.strip_prefix("/api/v1/")?.split('/').collect();
        let own = |text: &str| text.to_owned();
        Some(match parts[..] {
            ["nodes", name] => Self::Node(own(name)),
            ["nodes", name, "status"] => Self::NodeStatus(own(name)),
            ["namespaces", namespace, "pods", name] => Self::Pod(own(namespace), own(name)),
            ["namespaces", namespace, "pods", name, "eviction"] => {
                Self::Eviction(own(namespace), own(name))
            }
            ["namespaces", namespace, "events"] => Self::Events(own(namespace)),
            _ => return None,
        })
    }

    fn resource(&self) -> &'static str {
        match self {
            Self::Node(_) => "nodes",
            Self::NodeStatus(_) => "nodes/status",
            Self::Pod(..) => "pods",
            Self::Eviction(..) => "pods/eviction",
            Self::Events(_) => "events",
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::Node(name) | Self::NodeStatus(name) => name,
            Self::Pod(_, name) | Self::Eviction(_, name) => name,
            Self::Events(_) => "",
        }
    }
}

/// Answers a request, and keeps it.
pub(super) async fn serve(State(cluster): State<Arc<Cluster>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let body = to_bytes(body, LARGEST_BODY).await.unwrap_or_default();
    let place = Place::of(head.uri.path());
    let asked = asked(&head, place.as_ref(), &body);
    let (verb, resource) = (asked.verb, asked.resource.clone());
    let fault = cluster.faults().take(verb, &resource);
    // Before the bell: who hears of the request may release it.
    let mut held = pin!(cluster.held.notified());
    held.as_mut().enable();
    let number = cluster.log.came(asked);
    let response = match fault {
        Some(Fault::Hang) => pending().await,
        Some(Fault::Status(code)) => {
            Refusal::internal(code, "etcdserver: leader changed").into_response()
        }
        Some(Fault::TooMany(seconds)) => too_many(seconds),
        Some(Fault::Garble) => (StatusCode::OK, "<html>a proxy</html>").into_response(),
        Some(Fault::Slow(after)) => {
            tokio::time::sleep(after).await;
            answer(&cluster, &head, place, verb, &body).await
        }
        Some(Fault::Hold) => {
            held.await;
            answer(&cluster, &head, place, verb, &body).await
        }
        Some(Fault::LoseAnswer) => {
            let done = answer(&cluster, &head, place, verb, &body).await;
            cluster.log.answered(number, done.status().as_u16());
            pending().await
        }
        None => answer(&cluster, &head, place, verb, &body).await,
    };
    cluster.log.answered(number, response.status().as_u16());
    response
}

fn asked(head: &Parts, place: Option<&Place>, body: &Bytes) -> Asked {
    let value = |name| {
        let value = head.headers.get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default().to_owned()
    };
    Asked {
        verb: verb(&head.method),
        resource: place.map(Place::resource).unwrap_or("unknown").into(),
        path: head.uri.to_string(),
        media_type: value(header::CONTENT_TYPE),
        agent: value(header::USER_AGENT),
        body: serde_json::from_slice(body).unwrap_or_default(),
        at: Instant::now(),
        code: None,
    }
}

fn verb(method: &Method) -> &'static str {
    match *method {
        Method::GET => "get",
        Method::POST => "create",
        Method::PATCH => "patch",
        Method::PUT => "update",
        Method::DELETE => "delete",
        _ => "unknown",
    }
}

async fn answer(
    cluster: &Cluster,
    head: &Parts,
    place: Option<Place>,
    verb: &str,
    body: &Bytes,
) -> Response {
    let token = head.headers.get(header::AUTHORIZATION);
    if token.is_none_or(|token| token.as_bytes() != format!("Bearer {TOKEN}").as_bytes()) {
        return Refusal::new(401, "Unauthorized", "Unauthorized").into_response();
    }
    let Some(place) = place else {
        return (StatusCode::NOT_FOUND, "404 page not found\n").into_response();
    };
    if cluster.faults().is_forbidden(verb, place.resource()) {
        return Refusal::forbidden(verb, place.resource(), place.name()).into_response();
    }
    let media_type = head.headers.get(header::CONTENT_TYPE);
    let media_type = media_type
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let patience = cluster.options.conflict_patience;
    let act = |store: &mut Store| act(store, place, verb, media_type, body, patience);
    let (answer, after) = cluster.edit(act);
    tokio::time::sleep(after).await;
    respond(answer)
}

fn act(
    store: &mut Store,
    place: Place,
    verb: &str,
    media_type: &str,
    body: &Bytes,
    patience: Duration,
) -> (Answer, Duration) {
    let json = || serde_json::from_slice::<Value>(body).unwrap_or_default();
    let answer = match (verb, place) {
        ("get", Place::Node(name)) => {
            let node = store.nodes.get(&name).cloned();
            found(node, "nodes", &name)
        }
        ("get", Place::Pod(namespace, name)) => {
            let pod = store.pods.get(&(namespace, name.clone())).cloned();
            found(pod, "pods", &name)
        }
        ("patch", Place::Node(name)) => patch_node(store, &name, false, media_type, body),
        ("patch", Place::NodeStatus(name)) => patch_node(store, &name, true, media_type, body),
        ("create", Place::Events(namespace)) => create_event(store, &namespace, json()),
        ("create", Place::Eviction(namespace, name)) => {
            let evicted = evict(store, &(namespace, name), &json(), patience);
            return (evicted.answer, evicted.after);
        }
        _ => {
            let message = "the server does not allow this method on the requested resource";
            Err(Refusal::new(405, "MethodNotAllowed", message))
        }
    };
    (answer, Duration::ZERO)
}

fn found(object: Option<Value>, kind: &str, name: &str) -> Answer {
    match object {
        Some(object) => Ok((StatusCode::OK, object)),
        None => Err(Refusal::not_found(kind, name)),
    }
}

/// POST of an event (pkg/apis/core/validation/events.go, `legacyValidateEvent`).
fn create_event(store: &mut Store, namespace: &str, mut event: Value) -> Answer {
    let name = text(&event["metadata"]["name"]);
    if !store.namespaces.contains(namespace) {
        return Err(Refusal::not_found("namespaces", namespace));
    }
    if store.ending_namespaces.contains(namespace) {
        return Err(Refusal::namespace_ends("events", &name, namespace));
    }
    let about = text(&event["involvedObject"]["namespace"]);
    let fits = if about.is_empty() {
        namespace == "default"
    } else {
        about == namespace
    };
    if !fits {
        let what = format!("\"{about}\": does not match event.namespace");
        let field = "involvedObject.namespace";
        return Err(Refusal::invalid("Event", &name, field, &what));
    }
    let key = (namespace.to_owned(), name.clone());
    if store.events.contains_key(&key) {
        return Err(Refusal::already_exists("events", &name));
    }
    store.create(&mut event);
    store.events.insert(key, event.clone());
    Ok((StatusCode::CREATED, event))
}
