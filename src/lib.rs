//! skeleton
pub mod api;
pub mod driver;
