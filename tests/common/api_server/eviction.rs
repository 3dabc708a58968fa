//! POST of an eviction (pkg/registry/core/pod/storage/eviction.go).

use std::time::Duration;

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::answer::{Answer, Refusal};
use super::budget::Budget;
use super::store::{Key, Store, app_of, text};

/// What it came to, and how long the API server takes to say so.
pub(super) struct Evicted {
    pub(super) answer: Answer,
    pub(super) after: Duration,
}

/// `patience` is what a wrong UID costs where no budget is asked about.
pub(super) fn evict(store: &mut Store, key: &Key, body: &Value, patience: Duration) -> Evicted {
    let at_once = |answer| Evicted {
        answer,
        after: Duration::ZERO,
    };
    let (namespace, name) = key;
    if store.ending_namespaces.contains(namespace) {
        return at_once(Err(Refusal::namespace_ends("pods", name, namespace)));
    }
    if body["metadata"]["name"] != name.as_str() {
        let message = "name in URL does not match name in Eviction object";
        return at_once(Err(Refusal::new(400, "BadRequest", message)));
    }
    let Some(pod) = store.pods.get(key).cloned() else {
        return at_once(Err(Refusal::not_found("pods", name)));
    };
    let wanted = text(&body["deleteOptions"]["preconditions"]["uid"]);
    if needs_no_budget(&pod) {
        let answer = delete(store, key, &pod, &wanted);
        let after = if answer.is_err() {
            patience
        } else {
            Duration::ZERO
        };
        return Evicted { answer, after };
    }
    // The budget is asked, and pays, before the UID is looked at.
    at_once(ask_budget(store, &pod).and_then(|()| delete(store, key, &pod, &wanted)))
}

fn needs_no_budget(pod: &Value) -> bool {
    let phase = text(&pod["status"]["phase"]);
    let is_deleted = !pod["metadata"]["deletionTimestamp"].is_null();
    is_deleted || ["Succeeded", "Failed", "Pending"].contains(&phase.as_str())
}

fn ask_budget(store: &mut Store, pod: &Value) -> Result<(), Refusal> {
    let (namespace, app) = (text(&pod["metadata"]["namespace"]), app_of(pod));
    let is_its = |budget: &Budget| (&budget.namespace, &budget.app) == (&namespace, &app);
    let mut budgets: Vec<_> = store.budgets.iter_mut().collect();
    budgets.retain(|(_, budget)| is_its(budget));
    match &mut budgets[..] {
        [] => Ok(()),
        [(name, budget)] => budget.take(name),
        _ => Err(Refusal::internal(
            500,
            "This pod has more than one PodDisruptionBudget, which the eviction subresource \
             does not support.",
        )),
    }
}

fn delete(store: &mut Store, key: &Key, pod: &Value, wanted: &str) -> Answer {
    let found = text(&pod["metadata"]["uid"]);
    if !wanted.is_empty() && wanted != found {
        return Err(Refusal::another_uid(&key.1, wanted, &found));
    }
    store.delete_pod(key);
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {},
        "status": "Success", "code": 201,
    });
    Ok((StatusCode::CREATED, status))
}
