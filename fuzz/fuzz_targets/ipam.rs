//! Payloads of the IP allocation channel.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weave_ctl::mesh::fuzzing::ipam(data));
