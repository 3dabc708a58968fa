//! The API server: what it is told of this node's health, and what it is asked.
//!
//! Nothing here runs while eviction is off. [`client`] is the only place that knows
//! how the API server is reached, and as whom; [`api`] knows its objects;
//! [`condition`] and [`incidents`] are pure and say what is told; [`reporter`] is
//! the task that tells it.

pub mod api;
pub mod backoff;
mod bucket;
pub mod client;
pub mod condition;
pub mod error;
#[cfg(test)]
mod fixture;
pub mod incidents;
mod ledger;
mod memory;
pub mod metrics;
pub mod reporter;
mod text;
pub mod time;
mod wire;

pub use api::ApiServer;
pub use error::ClusterError;
pub use metrics::ClusterMetrics;
pub use reporter::Reporter;
