//! The eviction of pods on sick GPUs, between a kubelet's pod-resources API and an
//! API server, both in this process.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "also a test's helpers fail by panicking"
)]

mod common;

#[path = "eviction/crashes.rs"]
mod crashes;
#[path = "eviction/listing.rs"]
mod listing;
#[path = "eviction/pods.rs"]
mod pods;
#[path = "eviction/rig.rs"]
mod rig;
#[path = "eviction/trouble.rs"]
mod trouble;
