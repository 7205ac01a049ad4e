//! The compression of a layer, told by its first bytes.

use std::io::{self, BufReader, Cursor, Read};

use crate::image::manifest::Packing;

/// RFC 1952, section 2.3.1.
const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];
/// RFC 8878, section 3.1.1.
const ZSTD_MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// RFC 8878, section 3.1.2: 0x184D2A50 to 0x184D2A5F; zstd:chunked images begin with one.
const ZSTD_SKIPPABLE_TAIL: &[u8] = &[0x2a, 0x4d, 0x18];
/// Largest zstd window, as a power of two: 128 MiB, zstd's own default for decoders.
const ZSTD_WINDOW_LOG: u32 = 27;
const BUFFER_BYTES: usize = 128 << 10;

/// The bytes of the archive in `packed`.
pub(super) fn open<'a>(packed: &'a mut impl Read, packing: Packing) -> io::Result<Box<dyn Read + 'a>> {
    let mut head = Vec::with_capacity(4);
    packed.take(4).read_to_end(&mut head)?;
    let compression = Compression::of(&head);
    let whole = BufReader::with_capacity(BUFFER_BYTES, Cursor::new(head).chain(packed));
    match (packing, compression) {
        (_, Compression::None) => Ok(Box::new(whole)),
        (Packing::Plain, _) => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it is compressed, but its media type says that it is a plain archive",
        )),
        (Packing::ByMagic, Compression::Gzip) => Ok(Box::new(flate2::bufread::MultiGzDecoder::new(whole))),
        (Packing::ByMagic, Compression::Zstd) => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(whole)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            Ok(Box::new(decoder))
        }
    }
}

enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    fn of(head: &[u8]) -> Self {
        let skippable = head.len() == 4 && head[0] & 0xf0 == 0x50 && head[1..] == *ZSTD_SKIPPABLE_TAIL;
        if head.starts_with(GZIP_MAGIC) {
            Self::Gzip
        } else if head.starts_with(ZSTD_MAGIC) || skippable {
            Self::Zstd
        } else {
            Self::None
        }
    }
}
