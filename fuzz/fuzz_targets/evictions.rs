//! The record of evictions: what was read is written and read again the same.

#![no_main]

use gpu_device_plugin::eviction::ledger::file::{bytes, parse};
use libfuzzer_sys::fuzz_target;

const BOOT: &str = "boot";

fuzz_target!(|text: &[u8]| {
    let Ok(ledger) = parse(text, BOOT) else {
        return;
    };
    let Ok(written) = bytes(BOOT, &ledger) else {
        panic!("it cannot write what it read");
    };
    assert!(parse(&written, BOOT).is_ok_and(|again| again == ledger));
});
