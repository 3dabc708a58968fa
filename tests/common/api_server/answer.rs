//! Answers, in the API server's own JSON (apimachinery's pkg/api/errors).

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// An answer that is no success.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    code: u16,
    reason: &'static str,
    message: String,
    details: Value,
}

pub(super) type Answer = Result<(StatusCode, Value), Refusal>;

impl Refusal {
    pub(super) fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            details: json!({}),
        }
    }

    fn about(mut self, kind: &str, name: &str) -> Self {
        self.details = json!({ "name": name, "kind": kind });
        self
    }

    fn because(mut self, cause: &Value) -> Self {
        self.details["causes"] = json!([cause]);
        self
    }

    pub(super) fn not_found(kind: &str, name: &str) -> Self {
        let message = format!("{kind} \"{name}\" not found");
        Self::new(404, "NotFound", message).about(kind, name)
    }

    pub(super) fn already_exists(kind: &str, name: &str) -> Self {
        let message = format!("{kind} \"{name}\" already exists");
        Self::new(409, "AlreadyExists", message).about(kind, name)
    }

    pub(super) fn modified(kind: &str, name: &str) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {kind} \"{name}\": the object has been modified; \
             please apply your changes to the latest version and try again"
        );
        Self::new(409, "Conflict", message).about(kind, name)
    }

    pub(super) fn another_uid(pod: &str, wanted: &str, found: &str) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on Pod \"{pod}\": the UID in the precondition \
             ({wanted}) does not match the UID in record ({found}). The object might have been \
             deleted and then recreated"
        );
        Self::new(409, "Conflict", message).about("Pod", pod)
    }

    pub(super) fn invalid(kind: &str, name: &str, field: &str, what: &str) -> Self {
        let message = format!("{kind} \"{name}\" is invalid: {field}: Invalid value: {what}");
        let what = format!("Invalid value: {what}");
        let cause = json!({ "reason": "FieldValueInvalid", "message": what, "field": field });
        Self::new(422, "Invalid", message)
            .about(kind, name)
            .because(&cause)
    }

    pub(super) fn forbidden(verb: &str, resource: &str, name: &str) -> Self {
        let kind = resource.split('/').next().unwrap_or_default();
        let message = format!(
            "{kind} \"{name}\" is forbidden: User \"test\" cannot {verb} resource \
             \"{resource}\" in API group \"\""
        );
        Self::new(403, "Forbidden", message).about(kind, name)
    }

    pub(super) fn namespace_ends(kind: &str, name: &str, namespace: &str) -> Self {
        let message = format!(
            "{kind} \"{name}\" is forbidden: unable to create new content in namespace \
             {namespace} because it is being terminated"
        );
        let cause = json!({
            "reason": "NamespaceTerminating",
            "message": format!("namespace {namespace} is being terminated"),
            "field": "metadata.namespace",
        });
        Self::new(403, "Forbidden", message)
            .about(kind, name)
            .because(&cause)
    }

    /// A disruption budget's. `Retry-After` comes only with a budget that its
    /// controller has not looked at yet.
    pub(super) fn budget(why: &str, retry_after: Option<u64>) -> Self {
        let message = "Cannot evict pod as it would violate the pod's disruption budget.";
        let cause = json!({ "reason": "DisruptionBudget", "message": why });
        let mut refusal = Self::new(429, "TooManyRequests", message).because(&cause);
        if let Some(seconds) = retry_after {
            refusal.details["retryAfterSeconds"] = seconds.into();
        }
        refusal
    }

    pub(super) fn internal(code: u16, message: &str) -> Self {
        Self::new(code, "", message)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "code": self.code,
        });
        if !self.reason.is_empty() {
            status["reason"] = self.reason.into();
        }
        let seconds = self.details["retryAfterSeconds"].as_u64();
        if self.details != json!({}) {
            status["details"] = self.details;
        }
        let code = StatusCode::from_u16(self.code).unwrap_or(StatusCode::IM_A_TEAPOT);
        let mut response = as_json(code, &status);
        if let Some(seconds) = seconds {
            let headers = response.headers_mut();
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

pub(super) fn respond(answer: Answer) -> Response {
    match answer {
        Ok((code, object)) => as_json(code, &object),
        Err(refusal) => refusal.into_response(),
    }
}

fn as_json(code: StatusCode, object: &Value) -> Response {
    let headers = [(header::CONTENT_TYPE, "application/json")];
    (code, headers, object.to_string()).into_response()
}

/// What priority and fairness answers with, which is no JSON
/// (apiserver's pkg/server/filters/priority-and-fairness.go).
pub(super) fn too_many(seconds: u64) -> Response {
    let headers = [(header::RETRY_AFTER, seconds.to_string())];
    let text = "Too many requests, please try again later.\n";
    (StatusCode::TOO_MANY_REQUESTS, headers, text).into_response()
}
