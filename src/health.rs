//! What makes a GPU unfit for containers, and what makes it fit again.

pub mod class;
pub mod kmsg;
pub mod reducer;
pub mod xid;
