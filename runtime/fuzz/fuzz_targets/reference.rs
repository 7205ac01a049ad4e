//! Any text as an image reference, source or digest.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| skiff_runtime::image::fuzzing::reference(text));
