//! What makes a GPU unfit for containers, and what makes it fit again.

pub mod cause;
pub mod class;
pub mod reducer;
pub mod report;
pub mod signals;
pub mod xid;
