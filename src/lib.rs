//! skeleton
pub mod allocate;
pub mod api;
pub mod config;
pub mod device;
pub mod gpu;
pub mod health;
pub mod inventory;
pub mod kubelet;
pub mod metrics;
pub mod monitor;
pub mod plugin;
pub mod readiness;
