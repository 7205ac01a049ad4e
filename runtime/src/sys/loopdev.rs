//! The loop driver's control calls (`linux/loop.h`).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::libc;

const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
const LOOP_CLR_FD: libc::c_ulong = 0x4C01;
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

#[repr(C)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`: what `LOOP_CONFIGURE` takes.
#[repr(C)]
pub(crate) struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

impl LoopConfig {
    /// Backs the device by `file` and clears it at its last close or unmount. `name` is what
    /// `losetup` shows (cut at 63 bytes).
    pub(crate) fn autoclear(file: BorrowedFd<'_>, name: &str) -> Self {
        let mut file_name = [0; 64];
        let shown = name.len().min(63);
        file_name[..shown].copy_from_slice(&name.as_bytes()[..shown]);
        Self {
            fd: file.as_raw_fd().unsigned_abs(),
            block_size: 0,
            info: LoopInfo64 {
                device: 0,
                inode: 0,
                rdevice: 0,
                offset: 0,
                size_limit: 0,
                number: 0,
                encrypt_type: 0,
                encrypt_key_size: 0,
                flags: LO_FLAGS_AUTOCLEAR,
                file_name,
                crypt_name: [0; 64],
                encrypt_key: [0; 32],
                init: [0; 2],
            },
            reserved: [0; 8],
        }
    }
}

/// The number of a free loop device, made if there is none.
pub(crate) fn loop_get_free(control: impl AsFd) -> io::Result<u32> {
    // SAFETY: LOOP_CTL_GET_FREE takes no argument.
    let number = unsafe { libc::ioctl(control.as_fd().as_raw_fd(), LOOP_CTL_GET_FREE) };
    u32::try_from(number).map_err(|_| io::Error::last_os_error())
}

/// Attaches a file to a loop device; `EBUSY` when another process was quicker.
pub(crate) fn loop_configure(device: impl AsFd, config: &LoopConfig) -> io::Result<()> {
    // SAFETY: `config` has the layout of `struct loop_config` and outlives the call, which only
    // reads it.
    let result =
        unsafe { libc::ioctl(device.as_fd().as_raw_fd(), LOOP_CONFIGURE, std::ptr::from_ref(config)) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Detaches a loop device (at its last close, while it is in use).
pub(crate) fn loop_clear(device: impl AsFd) -> io::Result<()> {
    // SAFETY: LOOP_CLR_FD takes no argument that is read.
    let result = unsafe { libc::ioctl(device.as_fd().as_raw_fd(), LOOP_CLR_FD, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_kernels_sizes() {
        // sizeof(struct loop_info64) and sizeof(struct loop_config) of linux/loop.h
        assert_eq!(size_of::<LoopInfo64>(), 232);
        assert_eq!(size_of::<LoopConfig>(), 304);
    }
}
