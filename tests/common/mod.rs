//! What the tests stand on: a simulated node, a kubelet, a plugin's process.
//! Examples and benches include this file by path.
#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "each test, example and benchmark uses a part of it"
)]
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a node that cannot be laid out ends the test, with the reason"
)]

pub mod api_server;
pub mod cargo;
pub mod containerd;
pub mod cube_mesh;
pub mod daemon;
pub mod device_nodes;
pub mod elf;
pub mod kubelet;
pub mod nvml;
pub mod open_files;
pub mod plugin;
pub mod pod_resources;
pub mod probe;
pub mod running;
pub mod system;
pub mod wait;
