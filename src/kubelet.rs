//! The kubelet as this process sees it: its folder, its registration service
//! and its checkpoint.

pub mod checkpoint;
pub mod podresources;
pub mod registration;
pub mod socket;
pub mod watch;
