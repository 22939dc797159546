//! Records of a packet in clear.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weave_ctl::overlay::sleeve::fuzzing::packet(data));
