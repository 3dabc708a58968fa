//! skeleton
pub mod api;
