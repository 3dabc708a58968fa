//! What the tests stand on. Examples and benches include this file by path.

pub mod kubelet;
pub mod plugin;
