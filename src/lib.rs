//! A Kubernetes device plugin for NVIDIA GPUs.
//!
//! The way of the data: [`monitor`] keeps a session with NVML ([`gpu`]), and
//! what it reads and hears becomes, through [`inventory`] and [`health`], a
//! [`device::DeviceSnapshot`]. [`plugin`] answers the kubelet from the last
//! snapshot ([`allocate`]) and keeps itself registered ([`kubelet`]). [`driver`]
//! finds the files that a container needs. [`app`] puts them together.

pub mod allocate;
pub mod api;
pub mod app;
pub mod choice;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod device;
mod digest;
pub mod driver;
pub mod eviction;
mod files;
pub mod gpu;
pub mod health;
pub mod http;
pub mod inventory;
pub mod kubelet;
pub mod memory;
pub mod metrics;
pub mod monitor;
pub mod plugin;
pub mod readiness;
pub mod report;
mod seen;
pub mod shutdown;
pub mod telemetry;
mod ticker;
pub mod uninstall;
