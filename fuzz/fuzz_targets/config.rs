//! The configuration file: any bytes are settings or faults, and every fault says
//! something.

#![no_main]

use gpu_device_plugin::config::file::parse;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|content: &[u8]| {
    if let Err(faults) = parse(content) {
        assert!(!faults.is_empty());
        assert!(faults.iter().all(|fault| !fault.what.is_empty()));
    }
});
