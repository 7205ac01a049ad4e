//! Compiles the default seccomp filter: what Docker's default profile allows a container with
//! Docker's default capabilities. Compiling it takes 12 ms, which no start should wait for.

#![allow(clippy::print_stdout, reason = "how a build script talks to cargo")]

use std::error::Error;
use std::fs::File;
use std::path::Path;

use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall, error::SeccompError,
};

const EPERM: i32 = 1;
const ENOSYS: i32 = 38;
/// Namespace flags of clone(2): a container makes no namespaces.
const CLONE_NAMESPACES: u64 = 0x7E02_0000;
/// Executions domains that only change how a process sees itself (personality(2)).
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xFFFF_FFFF];
/// Reaches the hypervisor's host, whatever the network namespace.
const AF_VSOCK: u64 = 40;

/// Change the project of a file or whether a directory hands its project on, which the owner of a
/// file may (outside of user namespaces): what is written would leave the quota of the container.
/// `FS_IOC_FSSETXATTR`, `FS_IOC_SETFLAGS`, `FS_IOC32_SETFLAGS`.
const PROJECT_IOCTLS: [u64; 3] = [0x401C_5820, 0x4008_6602, 0x4004_6602];
const EOPNOTSUPP: i32 = 95;
/// The kernel looks at no more than 32 bits of an `int`: a comparison of 64 bits could be got round
/// by setting another.
const INT: u64 = 0xFFFF_FFFF;

/// One `struct sock_filter`: code, two jumps and a constant.
const INSTRUCTION: usize = 8;
/// `BPF_RET | BPF_K` with `SECCOMP_RET_ALLOW`.
const RETURN: u16 = 0x06;
const ALLOW: u32 = 0x7FFF_0000;
/// `BPF_JMP | BPF_JA`.
const JUMP: u16 = 0x05;

/// System calls that every container may make with any argument, one per line.
const ALLOWED: &str = include_str!("src/sandbox/seccomp-allowed.txt");

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/sandbox/seccomp-allowed.txt");
    let out = std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?;
    let out = Path::new(&out);
    let exported = |filter: ScmpFilterContext, name: &str| -> Result<Vec<u8>, Box<dyn Error>> {
        let path = out.join(name);
        filter.export_bpf(&File::create(&path)?)?;
        Ok(std::fs::read(&path)?)
    };
    let refusals = exported(refusals()?, "seccomp-refusals.bpf")?;
    let allowed = exported(build()?, "seccomp-allowed.bpf")?;
    std::fs::write(out.join("seccomp.bpf"), join(refusals, &allowed))?;
    Ok(())
}

/// Both programs as one: what the first allows is for the second to decide. Jumps are relative, so
/// the second may stand anywhere.
fn join(mut first: Vec<u8>, second: &[u8]) -> Vec<u8> {
    let count = first.len() / INSTRUCTION;
    for (index, instruction) in first.chunks_exact_mut(INSTRUCTION).enumerate() {
        let code = u16::from_ne_bytes([instruction[0], instruction[1]]);
        let constant = &instruction[4..];
        if code == RETURN && constant == ALLOW.to_ne_bytes() {
            let over = u32::try_from(count - index - 1).unwrap_or(u32::MAX);
            instruction[..2].copy_from_slice(&JUMP.to_ne_bytes());
            instruction[4..].copy_from_slice(&over.to_ne_bytes());
        }
    }
    first.extend(second);
    first
}

/// What is refused for one value of an argument. A filter that allows some values cannot say "any
/// other value of these 32 bits", so this is one of its own, before the other.
fn refusals() -> Result<ScmpFilterContext, SeccompError> {
    let mut filter = ScmpFilterContext::new(ScmpAction::Allow)?;
    filter.set_act_badarch(ScmpAction::Allow)?;
    for arch in [ScmpArch::X86, ScmpArch::X32] {
        filter.add_arch(arch)?;
    }
    let ioctl = ScmpSyscall::from_name("ioctl")?;
    for request in PROJECT_IOCTLS {
        let exactly = ScmpArgCompare::new(1, ScmpCompareOp::MaskedEqual(INT), request);
        filter.add_rule_conditional(ScmpAction::Errno(EOPNOTSUPP), ioctl, &[exactly])?;
    }
    let vsock = ScmpArgCompare::new(0, ScmpCompareOp::MaskedEqual(INT), AF_VSOCK);
    filter.add_rule_conditional(ScmpAction::Errno(EPERM), ScmpSyscall::from_name("socket")?, &[vsock])?;
    Ok(filter)
}

fn build() -> Result<ScmpFilterContext, SeccompError> {
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
    Ok(filter)
}

fn add_conditional(filter: &mut ScmpFilterContext) -> Result<(), SeccompError> {
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
    // But for the family that is refused before.
    filter.add_rule(ScmpAction::Allow, ScmpSyscall::from_name("socket")?)?;
    Ok(())
}
