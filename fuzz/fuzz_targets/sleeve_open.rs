//! A sealed packet.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weave_ctl::overlay::sleeve::fuzzing::open(data));
