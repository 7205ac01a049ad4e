//! The default seccomp filter: what Docker's default profile allows a container with Docker's
//! default capabilities. Compiled once by the keeper; loaded by each container just before its
//! command.

use std::io::{Read, Seek};

use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall, error::SeccompError,
};
use rustix::fs::MemfdFlags;

use crate::{Error, Result};

const EPERM: i32 = 1;
const ENOSYS: i32 = 38;
/// Namespace flags of clone(2): a container makes no namespaces.
const CLONE_NAMESPACES: u64 = 0x7E02_0000;
/// Executions domains that only change how a process sees itself (personality(2)).
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xFFFF_FFFF];
/// Reaches the hypervisor's host, whatever the network namespace.
const AF_VSOCK: u64 = 40;

/// System calls that every container may make with any argument, one per line.
const ALLOWED: &str = include_str!("seccomp-allowed.txt");

/// The filter as an array of `struct sock_filter`.
pub(crate) fn compile() -> Result<Vec<u8>> {
    build().map_err(|e| Error::host("cannot compile the seccomp filter", std::io::Error::other(e)))
}

fn build() -> std::result::Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
    let mut filter = ScmpFilterContext::new(ScmpAction::Errno(EPERM))?;
    for arch in [ScmpArch::X86, ScmpArch::X32] {
        filter.add_arch(arch)?;
    }
    // A binary tree instead of a list: a few steps for each system call instead of hundreds.
    filter.set_ctl_optimize(2)?;
    for name in ALLOWED.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
        // Newer than this libseccomp, or not of this architecture: stays forbidden.
        if let Ok(syscall) = ScmpSyscall::from_name(name) {
            filter.add_rule(ScmpAction::Allow, syscall)?;
        }
    }
    add_conditional(&mut filter)?;
    let mut file = std::fs::File::from(rustix::fs::memfd_create("skiff-seccomp", MemfdFlags::CLOEXEC)?);
    filter.export_bpf(&file)?;
    file.rewind()?;
    let mut program = Vec::new();
    file.read_to_end(&mut program)?;
    Ok(program)
}

fn add_conditional(filter: &mut ScmpFilterContext) -> std::result::Result<(), SeccompError> {
    let clone = ScmpSyscall::from_name("clone")?;
    let no_namespace = ScmpArgCompare::new(0, ScmpCompareOp::MaskedEqual(CLONE_NAMESPACES), 0);
    filter.add_rule_conditional(ScmpAction::Allow, clone, &[no_namespace])?;
    // Its flags are behind a pointer that a filter cannot follow; libraries fall back to clone.
    filter.add_rule(ScmpAction::Errno(ENOSYS), ScmpSyscall::from_name("clone3")?)?;
    let personality = ScmpSyscall::from_name("personality")?;
    for value in PERSONALITIES {
        let exactly = ScmpArgCompare::new(0, ScmpCompareOp::Equal, value);
        filter.add_rule_conditional(ScmpAction::Allow, personality, &[exactly])?;
    }
    let not_vsock = ScmpArgCompare::new(0, ScmpCompareOp::NotEqual, AF_VSOCK);
    filter.add_rule_conditional(ScmpAction::Allow, ScmpSyscall::from_name("socket")?, &[not_vsock])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filter_is_a_program_of_bounded_size() {
        let program = compile().expect("compiles");
        assert_eq!(program.len() % 8, 0);
        // BPF_MAXINSNS of the kernel
        assert!((100..4096).contains(&(program.len() / 8)), "{} instructions", program.len() / 8);
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
        ] {
            assert!(!listed.contains(&name), "{name}");
        }
    }
}
