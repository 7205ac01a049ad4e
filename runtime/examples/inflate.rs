//! Inflates gzip and zstd files into nothing, each on a thread of its own, with the decoders that
//! Skiff unpacks layers with: the bound that `scripts/bench image` prints.

use std::fs::File;
use std::io::{self, BufReader, Read as _};

const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

fn inflate(path: &str) -> io::Result<u64> {
    let mut head = Vec::new();
    File::open(path)?.take(4).read_to_end(&mut head)?;
    let file = BufReader::with_capacity(128 << 10, File::open(path)?);
    if head == ZSTD_MAGIC {
        return io::copy(&mut zstd::stream::read::Decoder::with_buffer(file)?, &mut io::sink());
    }
    io::copy(&mut flate2::bufread::MultiGzDecoder::new(file), &mut io::sink())
}

fn main() -> io::Result<()> {
    let files: Vec<String> = std::env::args().skip(1).collect();
    std::thread::scope(|scope| {
        let threads: Vec<_> = files.iter().map(|path| scope.spawn(move || inflate(path))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("a thread panicked").map(drop))
    })
}
