//! Answers about devices, computed from a snapshot alone.

pub mod cache;
pub mod preferred;
pub mod response;
pub mod ways;
