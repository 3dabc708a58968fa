//! Driver volumes as the plugin's own binary makes, keeps and removes them:
//! disks that are full or on another file system, other plugins, crashes,
//! containers, upgrades.
//!
//! What mounts something runs as root only.

#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "also a test's helpers fail by panicking"
)]

#[path = "driver_volume/collected.rs"]
mod collected;
mod common;
#[path = "driver_volume/containers.rs"]
mod containers;
#[path = "driver_volume/elsewhere.rs"]
mod elsewhere;
#[path = "driver_volume/full.rs"]
mod full;
#[path = "driver_volume/others.rs"]
mod others;
#[path = "driver_volume/rig.rs"]
mod rig;
#[path = "driver_volume/upgraded.rs"]
mod upgraded;
