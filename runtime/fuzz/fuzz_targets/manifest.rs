//! Any bytes as a manifest, index or configuration.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| skiff_runtime::image::fuzzing::manifest(bytes));
