//! The exported functions, by what they are about.
//!
//! Pointers that functions only write through are `Out`, those that they read
//! too are `InOut`: null is then `None`, and the functions need no unsafe code
//! of their own. That a pointer which is not null leads to what its type says
//! is the caller's duty, as it is with NVML.
#![allow(
    unsafe_code,
    reason = "a C interface: unmangled names, C strings and arrays"
)]
#![allow(non_snake_case, reason = "the names are NVML's")]

mod args;
mod call;
mod enumeration;
mod events;
mod fabric;
mod fields;
mod identity;
mod library;
mod memory;
mod mig;
mod status;
mod topology;
