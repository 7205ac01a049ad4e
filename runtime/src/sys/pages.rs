//! What is in the page cache.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;

use nix::libc;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// Bytes of a page. Only linux/amd64 images run, where it has no other size.
pub(crate) const PAGE_SIZE: u64 = 4096;

/// Whether each page of a part of a file is in the page cache. Reads nothing. `offset` is a
/// multiple of the page size; `len` is at least 1 and not past the end of the file's last page.
///
/// # Errors
/// As `mmap(2)` and `mincore(2)`.
pub(crate) fn resident_pages(file: impl AsFd, offset: u64, len: usize) -> io::Result<Vec<bool>> {
    let length = NonZeroUsize::new(len).ok_or(io::ErrorKind::InvalidInput)?;
    let start = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: a new mapping at an address that the kernel chooses overlaps nothing; it is never
    // accessed, so a file that shrinks does no harm.
    let address =
        unsafe { mmap(None, length, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, file.as_fd(), start) }?;
    let mut pages = vec![0u8; len.div_ceil(PAGE_SIZE as usize)];
    // SAFETY: the range is the mapping just made, and `pages` has a byte for each page of it.
    let told = unsafe { libc::mincore(address.as_ptr(), len, pages.as_mut_ptr()) };
    let error = io::Error::last_os_error();
    // SAFETY: this mapping was made above, and nothing refers to it.
    unsafe { munmap(address, len) }?;
    if told == 0 { Ok(pages.iter().map(|page| page & 1 == 1).collect()) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_just_written_is_there_and_nothing_has_no_pages() {
        let file = tempfile::tempfile().expect("a file");
        rustix::io::write(&file, &[1; 5000]).expect("written");
        assert_eq!(resident_pages(&file, 0, 5000).expect("told"), [true, true]);
        assert_eq!(resident_pages(&file, 0, 0).expect_err("nothing").kind(), io::ErrorKind::InvalidInput);
        assert!(resident_pages(&file, 1, 10).is_err(), "not at a page's start");
    }
}
