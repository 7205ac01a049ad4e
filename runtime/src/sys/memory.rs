//! The memory of this process, where its allocator is glibc's.

/// Pieces of this size and more are given back to the kernel when they are freed: the windows of zstd
/// decoders are, and hardly anything else.
#[cfg(target_env = "gnu")]
const MMAP_THRESHOLD: nix::libc::c_int = 1 << 20;

/// Has the allocator give back what has been freed.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes the allocator's own locks, touches nothing that is in use, and may be called by
    // any thread at any time (malloc_trim(3): MT-Safe).
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

/// Has the allocator give back large pieces at once, and not keep as much for each thread as the largest
/// piece that was ever freed.
pub(crate) fn bound_allocator() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it changes a number of the allocator under its lock; what has been allocated stays as it is
    // (mallopt(3)).
    unsafe {
        nix::libc::mallopt(nix::libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD);
    }
}
