//! NVML's C interface over a state file, so that tests drive the same
//! bindings as production, without a GPU.
//!
//! The state file (see [`state::State`]) is the one that `SIMULATED_NVML_STATE`
//! names, else `simulated_nvml.json` beside this library. The second way gives
//! each copy of the library a node of its own: the loader keeps the copies
//! apart, and one process can hold many nodes.
//!
//! The file is read again whenever it has changed; replace it by a rename.
//! What cannot be read is reported on stderr and changes nothing.
//!
//! Only the functions that a device plugin, ours or NVIDIA's, has a use for
//! are here. Answers that the state does not decide are those of an H200 with
//! driver 580.

mod ffi;
mod handles;
mod state;
mod store;
mod watch;
