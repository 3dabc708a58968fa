//! From the configuration to a client.

use std::path::Path;

use kube::Client;
use kube::client::ClientBuilder;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};

use crate::cluster::error::ClusterError;
use crate::cluster::text::{chain, is_name};
use crate::config::ClusterOptions;

/// The node's name, which nothing but the operator can tell.
pub(super) fn node_name(options: &ClusterOptions) -> Result<&str, ClusterError> {
    match options.node_name.as_deref() {
        Some(name) if is_name(name) => Ok(name),
        Some(name) => Err(ClusterError::NotConfigured(format!(
            "--node-name (NODE_NAME) {name:?} is no name of a node"
        ))),
        None => Err(ClusterError::NotConfigured(
            "which node this is has to be said with --node-name (NODE_NAME); \
             in a pod it is the field spec.nodeName"
                .into(),
        )),
    }
}

/// A client that connects with its first request.
pub(super) async fn client(kubeconfig: Option<&Path>) -> Result<Client, ClusterError> {
    let mut config = match kubeconfig {
        Some(path) => by_kubeconfig(path).await?,
        None => by_service_account()?,
    };
    // Who asks knows when to ask again, and how often.
    config.default_retry = false;
    let builder = ClientBuilder::try_from(config).map_err(|error| {
        let error = chain(&error);
        ClusterError::NotConfigured(format!("cannot connect to the API server: {error}"))
    })?;
    Ok(builder.build())
}

async fn by_kubeconfig(path: &Path) -> Result<Config, ClusterError> {
    let bad = |error| {
        let (path, error) = (path.display(), chain(&error));
        ClusterError::NotConfigured(format!("cannot use the kubeconfig {path}: {error}"))
    };
    let kubeconfig = Kubeconfig::read_from(path).map_err(bad)?;
    let options = KubeConfigOptions::default();
    Config::from_custom_kubeconfig(kubeconfig, &options)
        .await
        .map_err(bad)
}

fn by_service_account() -> Result<Config, ClusterError> {
    Config::incluster().map_err(|error| {
        let error = chain(&error);
        ClusterError::NotConfigured(format!(
            "no service account to ask the API server with ({error}); let the pod have \
             its token (automountServiceAccountToken), or name a file with --kubeconfig"
        ))
    })
}
