//! One resource's door to the kubelet.
//!
//! [`machine`] decides, [`actor`] does what it decided, [`service`] answers the
//! kubelet from snapshots, and [`listener`] owns the socket.

pub mod actor;
mod connection;
pub mod listener;
pub mod machine;
pub mod resources;
pub mod rival;
pub mod rpc;
pub mod service;
pub mod streams;
