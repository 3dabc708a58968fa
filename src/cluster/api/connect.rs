//! From the configuration to a client.

use std::env;
use std::path::Path;

use crate::cluster::client::{ACCOUNT, Client};
use crate::cluster::error::ClusterError;
use crate::cluster::text::is_name;
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
pub(super) fn client(kubeconfig: Option<&Path>) -> Result<Client, ClusterError> {
    match kubeconfig {
        Some(file) => Client::by_kubeconfig(file),
        None => Client::by_service_account(Path::new(ACCOUNT), |name| env::var_os(name)),
    }
}
