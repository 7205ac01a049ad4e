//! The default seccomp filter: what Docker's default profile allows a container with Docker's
//! default capabilities. Compiled when Skiff is built (`build.rs`); loaded by each container just
//! before its command.

/// The filter as an array of `struct sock_filter`.
pub(crate) const FILTER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/seccomp.bpf"));

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
