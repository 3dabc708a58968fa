//! What makes a GPU unfit for containers, and what makes it fit again.
//!
//! [`signals`] is the table of all that is looked at. [`reducer`] makes of them,
//! as they come, the health of a GPU ([`cause`], [`class`]); [`xid`] knows the
//! XIDs, [`kept`] what of it outlives the process, and [`report`] is what the
//! others are told.

pub mod cause;
pub mod class;
pub mod kept;
pub mod kmsg;
pub mod reducer;
pub mod report;
pub mod signals;
pub mod xid;
