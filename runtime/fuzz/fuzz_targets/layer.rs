//! Any bytes as a layer: nothing leaves the layer's directory, and what is unpacked verifies.
#![no_main]

/// The checksums of blocks that look like headers are put right, or hardly any would be read.
fn sum_again(archive: &mut [u8]) {
    for block in archive.chunks_exact_mut(512) {
        if block[257..262] == *b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut archive = bytes.to_vec();
    sum_again(&mut archive);
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("temporary directory");
    skiff_runtime::image::fuzzing::layer(&archive, dir.path());
});
