//! What the API server is asked and told, against one in this process.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "also a test's helpers fail by panicking"
)]

mod common;

#[path = "cluster/asking.rs"]
mod asking;
#[path = "cluster/client.rs"]
mod client;
#[path = "cluster/contract.rs"]
mod contract;
#[path = "common/control_plane.rs"]
mod control_plane;
#[path = "cluster/reporting.rs"]
mod reporting;
#[path = "cluster/rig.rs"]
mod rig;
#[path = "cluster/server.rs"]
mod server;
