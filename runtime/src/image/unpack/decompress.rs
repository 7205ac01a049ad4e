//! The compression of a layer, told by its first bytes.

use std::io::{self, BufReader, Cursor, Read};

use super::window;
use crate::image::manifest::Packing;
use crate::image::room::{Room, Share};

/// RFC 1952, section 2.3.1.
const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];
const BUFFER_BYTES: usize = 64 << 10;

/// The bytes of the archive in `packed`. Waits for memory where its compression needs much.
pub(super) fn open<'a>(
    packed: &'a mut impl Read,
    packing: Packing,
    share: &'a Share,
) -> io::Result<Box<dyn Read + 'a>> {
    let mut head = Vec::with_capacity(window::HEAD_BYTES);
    packed.take(window::HEAD_BYTES as u64).read_to_end(&mut head)?;
    let zstd_window = window::of(&head);
    let is_gzip = head.starts_with(GZIP_MAGIC);
    let whole = BufReader::with_capacity(BUFFER_BYTES, Cursor::new(head).chain(packed));
    match (packing, is_gzip, zstd_window) {
        (_, false, None) => Ok(Box::new(whole)),
        (Packing::Plain, ..) => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it is compressed, but its media type says that it is a plain archive",
        )),
        (Packing::ByMagic, true, _) => Ok(Box::new(flate2::bufread::MultiGzDecoder::new(whole))),
        (Packing::ByMagic, false, Some(window)) => {
            let (room, window_log) = window.take(share).map_err(io::Error::other)?;
            let mut decoder = zstd::stream::read::Decoder::with_buffer(whole)?;
            decoder.window_log_max(window_log)?;
            Ok(Box::new(Zstd { decoder, _freed: Freed, _room: room }))
        }
    }
}

/// A decoder that gives its memory's room back when it goes. The decoder goes first, and what it had goes
/// back to the kernel before another may have as much.
struct Zstd<'a, R: Read> {
    decoder: R,
    _freed: Freed,
    _room: Room<'a>,
}

struct Freed;

impl Drop for Freed {
    fn drop(&mut self) {
        crate::sys::give_back();
    }
}

impl<R: Read> Read for Zstd<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.decoder.read(buffer)
    }
}
