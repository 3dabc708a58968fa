//! The API server through the eyes of one user: JSON by paths, so that what is
//! asked and answered stands in the tests as it is sent.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use gpu_device_plugin::cluster::client::Client;
use http::{Method, Request};
use serde_json::{Value, json};
use tokio::time::timeout;

/// Longer than an API server keeps anybody waiting.
const DEADLINE: Duration = Duration::from_secs(90);

/// What the API server said instead of doing it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status; 0 where there was no answer.
    pub code: u16,
    pub message: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

pub type Answer = Result<Value, Refusal>;

/// What a patch is.
#[derive(Clone, Copy, Debug)]
pub enum Patch {
    Merge,
    Strategic,
    Apply,
}

impl Patch {
    fn media_type(self) -> &'static str {
        match self {
            Self::Merge => "application/merge-patch+json",
            Self::Strategic => "application/strategic-merge-patch+json",
            Self::Apply => "application/apply-patch+yaml",
        }
    }
}

/// A user at the API server's door.
#[derive(Clone)]
pub struct Door {
    client: Arc<Client>,
}

impl Door {
    /// By a kubeconfig whose paths are absolute.
    pub fn of(kubeconfig: &Value) -> Self {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        // JSON is YAML.
        std::fs::write(file.path(), kubeconfig.to_string()).expect("write a kubeconfig");
        let client = Client::by_kubeconfig(file.path()).expect("a good kubeconfig");
        Self {
            client: Arc::new(client),
        }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.ask(Method::GET, path, "application/json", None).await
    }

    pub async fn create(&self, path: &str, object: &Value) -> Answer {
        self.ask(Method::POST, path, "application/json", Some(object))
            .await
    }

    pub async fn patch(&self, path: &str, kind: Patch, patch: &Value) -> Answer {
        self.ask(Method::PATCH, path, kind.media_type(), Some(patch))
            .await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.ask(Method::DELETE, path, "application/json", None)
            .await
    }

    /// The plain text that a path answers.
    pub async fn text(&self, path: &str) -> Result<String, Refusal> {
        let request = Request::get(path).body(Vec::new()).expect("a request");
        let text = self.send(request).await?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Makes an object be as the manifest says, as `kubectl apply --server-side`.
    pub async fn apply(&self, manifest: &Value) -> Answer {
        let path = format!("{}?fieldManager=test&force=true", path_of(manifest));
        self.patch(&path, Patch::Apply, manifest).await
    }

    async fn ask(&self, method: Method, path: &str, kind: &str, body: Option<&Value>) -> Answer {
        let body = body.map(|body| body.to_string().into_bytes());
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("Content-Type", kind)
            .body(body.unwrap_or_default())
            .expect("a request");
        let answer = self.send(request).await?;
        Ok(serde_json::from_slice(&answer).expect("JSON"))
    }

    async fn send(&self, request: Request<Vec<u8>>) -> Result<Bytes, Refusal> {
        let sent = timeout(DEADLINE, self.client.send(request)).await;
        let none = |message: String| Refusal { code: 0, message };
        let answer = sent.map_err(|_| none("no answer in time".into()))?;
        let answer = answer.map_err(|error| none(error.to_string()))?;
        if answer.status().is_success() {
            return Ok(answer.into_body());
        }
        let status: Value = serde_json::from_slice(answer.body()).unwrap_or_default();
        let text = || String::from_utf8_lossy(answer.body()).into_owned();
        Err(Refusal {
            code: answer.status().as_u16(),
            message: status["message"].as_str().map_or_else(text, str::to_owned),
        })
    }
}

/// Where an object is, by what it says of itself.
pub fn path_of(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
    let group = if version.contains('/') { "apis" } else { "api" };
    let metadata = &object["metadata"];
    let namespace = match text(&metadata["namespace"]).as_str() {
        "" => String::new(),
        namespace => format!("namespaces/{namespace}/"),
    };
    format!(
        "/{group}/{version}/{namespace}{}/{}",
        plural(&kind),
        text(&metadata["name"])
    )
}

fn plural(kind: &str) -> String {
    let kind = kind.to_lowercase();
    match kind.strip_suffix('y') {
        Some(stem) => format!("{stem}ies"),
        None => format!("{kind}s"),
    }
}

/// The objects of a manifest file.
pub fn objects(manifests: &str) -> Vec<Value> {
    let objects: Vec<Value> = serde_saphyr::from_multiple(manifests).expect("manifests");
    objects
}

/// An eviction of a pod, with the UID that it has to have.
pub fn eviction(namespace: &str, name: &str, uid: Option<&str>) -> Value {
    let mut eviction = json!({
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"namespace": namespace, "name": name},
    });
    if let Some(uid) = uid {
        eviction["deleteOptions"] = json!({"preconditions": {"uid": uid}});
    }
    eviction
}
