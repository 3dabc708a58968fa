//! The API server through the eyes of one user: JSON by paths, so that what is
//! asked and answered stands in the tests as it is sent.

use std::fmt;

use http::{Method, Request};
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use kube::{Client, Error};
use serde_json::{Value, json};

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
    client: Client,
}

impl Door {
    pub async fn of(kubeconfig: Value) -> Self {
        let kubeconfig: Kubeconfig = serde_json::from_value(kubeconfig).expect("a kubeconfig");
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(kubeconfig, &options);
        let config = config.await.expect("a good kubeconfig");
        let client = Client::try_from(config).expect("a client");
        Self { client }
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
        let answer = self.client.request_text(request).await;
        answer.map_err(refusal)
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
        self.client.request(request).await.map_err(refusal)
    }
}

fn refusal(error: Error) -> Refusal {
    match error {
        Error::Api(status) => Refusal {
            code: status.code,
            message: status.message,
        },
        error => Refusal {
            code: 0,
            message: error.to_string(),
        },
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
