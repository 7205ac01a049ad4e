//! The default seccomp filter: what Docker's default profile allows a container with Docker's
//! default capabilities. Compiled when Skiff is built (`build.rs`); loaded by the init of a container before it
//! waits for its start (the kernel takes a third of a millisecond to compile it), and by other processes before
//! their command.

use crate::sys::load_seccomp_filter;
use crate::{Error, Result};

/// The filter as an array of `struct sock_filter`.
const FILTER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/seccomp.bpf"));

/// Has this process, and what comes of it, only the calls of the list from now on.
///
/// # Errors
/// `Host`.
pub(crate) fn filter() -> Result<()> {
    load_seccomp_filter(FILTER).map_err(|e| Error::host("cannot load the seccomp filter", e))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOWED: &str = include_str!("seccomp-allowed.txt");

    #[test]
    fn filter_is_a_program_of_bounded_size() {
        assert_eq!(FILTER.len() % 8, 0);
        // BPF_MAXINSNS of the kernel
        assert!((100..4096).contains(&(FILTER.len() / 8)), "{} instructions", FILTER.len() / 8);
    }

    #[test]
    fn dangerous_calls_are_not_in_the_list() {
        let listed: Vec<_> = ALLOWED.lines().map(str::trim).collect();
        for name in [
            "mount",
            "umount2",
            "unshare",
            "setns",
            "pivot_root",
            "bpf",
            "keyctl",
            "add_key",
            "request_key",
            "kexec_load",
            "init_module",
            "finit_module",
            "open_by_handle_at",
            "perf_event_open",
            "userfaultfd",
            "io_uring_setup",
            "fsopen",
            "move_mount",
            "clone",
            "clone3",
            "socket",
            "personality",
            "reboot",
            "swapon",
            "syslog",
            // Would change what the refused requests of ioctl change.
            "file_setattr",
        ] {
            assert!(!listed.contains(&name), "{name}");
        }
    }
}
