//! A history of one connection.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weave_ctl::overlay::sleeve::fuzzing::forwarder(data));
