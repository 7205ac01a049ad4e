//! The runtime specification (OCI runtime-spec 1.x) of a container.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Capability, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxCpu, LinuxCpuBuilder, LinuxDeviceCgroup,
    LinuxDeviceCgroupBuilder, LinuxDeviceType, LinuxMemoryBuilder, LinuxNamespaceBuilder, LinuxNamespaceType,
    LinuxPidsBuilder, LinuxResources, LinuxResourcesBuilder, Mount, MountBuilder, PosixRlimit,
    PosixRlimitBuilder, PosixRlimitType, Process, ProcessBuilder, RootBuilder, Spec, SpecBuilder,
    UserBuilder,
};

use super::User;
use crate::OomPolicy;
use crate::keeper::protocol::Limits;

/// Docker's default capabilities without `CAP_MKNOD`: cgroup v2 device rules are not enforced here,
/// so a container must not make device nodes at all.
const CAPABILITIES: [Capability; 13] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// The same as the kernel counts them (`linux/capability.h`): what no process of a container has more
/// than.
pub(crate) const CAPABILITY_MASK: u64 = 0xA004_25FB;

/// As Docker masks.
const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

const CGROUP_DIR: &str = "/sys/fs/cgroup";
const CPU_PERIOD_US: u64 = 100_000;

/// How the host limits swap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Swap {
    /// Not at all.
    Unlimited,
    /// Together with memory (cgroup version 1).
    WithMemory,
    /// By itself (version 2).
    Separate,
}

/// What a specification is made of.
pub(crate) struct SpecInput<'a> {
    pub(crate) rootfs: &'a Path,
    pub(crate) read_only: bool,
    pub(crate) hostname: &'a str,
    pub(crate) argv: &'a [String],
    pub(crate) env: &'a [(String, String)],
    pub(crate) working_dir: &'a str,
    pub(crate) user: &'a User,
    pub(crate) limits: Limits,
    pub(crate) swap: Swap,
    /// Whether the kernel can kill the whole group for want of memory.
    pub(crate) oom_group: bool,
    pub(crate) cgroup: PathBuf,
    /// The container's version 1 groups, put together; `None` on version 2.
    pub(crate) cgroup_v1: Option<&'a Path>,
    pub(crate) network_namespace: PathBuf,
    /// Where it has a user namespace.
    pub(crate) userns: Option<Userns<'a>>,
}

/// What is different in a user namespace. The network namespace is not its own: the start process
/// has entered it, and mounted what shows it.
pub(crate) struct Userns<'a> {
    pub(crate) path: PathBuf,
    pub(crate) sysfs: &'a Path,
}

/// Builds the specification.
pub(crate) fn build(input: &SpecInput<'_>) -> Result<Spec, OciSpecError> {
    let linux = LinuxBuilder::default()
        .namespaces(namespaces(input)?)
        .cgroups_path(&input.cgroup)
        .resources(resources(input)?)
        .masked_paths(MASKED.map(str::to_owned).to_vec())
        .readonly_paths(READ_ONLY.map(str::to_owned).to_vec())
        .rootfs_propagation("private")
        .build()?;
    SpecBuilder::default()
        .version("1.0.2")
        .root(RootBuilder::default().path(input.rootfs).readonly(input.read_only).build()?)
        .hostname(input.hostname)
        .process(process(input)?)
        .mounts(mounts(input)?)
        .linux(linux)
        .build()
}

fn process(input: &SpecInput<'_>) -> Result<Process, OciSpecError> {
    let user = UserBuilder::default()
        .uid(input.user.uid)
        .gid(input.user.gid)
        .additional_gids(input.user.groups.clone())
        .umask(0o022u32)
        .build()?;
    // The environment itself never comes near a file: the executor holds it. HOME and PATH are
    // here because libcontainer looks for them.
    let env: Vec<_> = input
        .env
        .iter()
        .filter(|(k, _)| k == "HOME" || k == "PATH")
        .map(|(k, v)| format!("{k}={v}"))
        .collect();
    let mut process = ProcessBuilder::default()
        .terminal(false)
        .user(user)
        .args(input.argv.to_vec())
        .env(env)
        .cwd(input.working_dir)
        .no_new_privileges(true)
        .capabilities(capabilities(input.user)?);
    process = process.rlimits(rlimits(input)?);
    process.build()
}

/// `RLIMIT_NPROC` counts the processes of a user in all containers and on the host, where the ids are
/// not the container's own: there the cgroup alone limits processes.
fn rlimits(input: &SpecInput<'_>) -> Result<Vec<PosixRlimit>, OciSpecError> {
    let pids = if input.userns.is_some() { u64::from(input.limits.pids) } else { 0 };
    let limits = [(PosixRlimitType::RlimitNofile, input.limits.nofile), (PosixRlimitType::RlimitNproc, pids)];
    let set = limits.into_iter().filter(|(_, limit)| *limit > 0);
    set.map(|(typ, limit)| PosixRlimitBuilder::default().typ(typ).soft(limit).hard(limit).build()).collect()
}

/// Nothing inheritable or ambient (CVE-2022-29162); nothing at all in effect for other users than
/// root, who could gain them only by a set-user-ID program, which no-new-privileges forbids.
fn capabilities(user: &User) -> Result<oci_spec::runtime::LinuxCapabilities, OciSpecError> {
    let bounding: HashSet<_> = CAPABILITIES.into();
    let held = if user.uid == 0 { bounding.clone() } else { HashSet::new() };
    LinuxCapabilitiesBuilder::default()
        .bounding(bounding)
        .effective(held.clone())
        .permitted(held)
        .inheritable(HashSet::new())
        .ambient(HashSet::new())
        .build()
}

fn namespaces(input: &SpecInput<'_>) -> Result<Vec<oci_spec::runtime::LinuxNamespace>, OciSpecError> {
    let (typ, path) = match &input.userns {
        Some(userns) => (LinuxNamespaceType::User, &userns.path),
        None => (LinuxNamespaceType::Network, &input.network_namespace),
    };
    let mut all = vec![LinuxNamespaceBuilder::default().typ(typ).path(path).build()?];
    for typ in [
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Mount,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Uts,
        LinuxNamespaceType::Cgroup,
    ] {
        all.push(LinuxNamespaceBuilder::default().typ(typ).build()?);
    }
    Ok(all)
}

fn resources(input: &SpecInput<'_>) -> Result<LinuxResources, OciSpecError> {
    let limits = input.limits;
    let mut resources = LinuxResourcesBuilder::default().devices(devices()?);
    let mut files = HashMap::new();
    if limits.oom == OomPolicy::KillContainer && input.oom_group {
        files.insert("memory.oom.group".to_owned(), "1".to_owned());
    }
    if limits.memory_bytes > 0 {
        let bytes = i64::try_from(limits.memory_bytes).unwrap_or(i64::MAX);
        let mut memory = LinuxMemoryBuilder::default().limit(bytes);
        match input.swap {
            Swap::Unlimited => {}
            Swap::WithMemory => memory = memory.swap(bytes),
            // libcontainer takes "as much as memory" for "nothing to write" here.
            Swap::Separate => drop(files.insert("memory.swap.max".to_owned(), "0".to_owned())),
        }
        resources = resources.memory(memory.build()?);
    }
    resources = resources.cpu(cpu(input, &mut files)?);
    if limits.pids > 0 {
        resources = resources.pids(LinuxPidsBuilder::default().limit(i64::from(limits.pids)).build()?);
    }
    if !files.is_empty() {
        resources = resources.unified(files);
    }
    resources.build()
}

/// Quota and weight. The specification has a weight of version 1 only, and how it is turned into one
/// of version 2 differs between runtimes; so that is written to its own file there.
fn cpu(input: &SpecInput<'_>, files: &mut HashMap<String, String>) -> Result<LinuxCpu, OciSpecError> {
    let limits = input.limits;
    let mut cpu = LinuxCpuBuilder::default();
    if limits.cpu_millis > 0 {
        let quota = i64::from(limits.cpu_millis) * CPU_PERIOD_US.cast_signed() / 1000;
        cpu = cpu.period(CPU_PERIOD_US).quota(quota);
    }
    if limits.cpu_weight > 0 {
        if input.cgroup_v1.is_some() {
            cpu = cpu.shares(shares(limits.cpu_weight));
        } else {
            files.insert("cpu.weight".to_owned(), limits.cpu_weight.to_string());
        }
    }
    cpu.build()
}

/// The shares of version 1 with the effect of a weight of version 2: the kernel counts a weight of
/// 100 as 1024 shares (`cpu_weight_write_u64`), and so does systemd.
fn shares(weight: u32) -> u64 {
    const MIN_SHARES: u64 = 2;
    ((u64::from(weight) * 1024 + 50) / 100).max(MIN_SHARES)
}

/// Deny all, then what `/dev` of any container has (enforced on cgroup v1).
fn devices() -> Result<Vec<LinuxDeviceCgroup>, OciSpecError> {
    let rule = |allow: bool, typ, major: Option<i64>, minor: Option<i64>, access: &str| {
        let mut rule = LinuxDeviceCgroupBuilder::default().allow(allow).typ(typ).access(access);
        if let Some(major) = major {
            rule = rule.major(major);
        }
        if let Some(minor) = minor {
            rule = rule.minor(minor);
        }
        rule.build()
    };
    let mut rules = vec![rule(false, LinuxDeviceType::A, None, None, "rwm")?];
    // null, zero, full, tty, random, urandom, ptmx, pts
    for (major, minor) in [
        (1, Some(3)),
        (1, Some(5)),
        (1, Some(7)),
        (5, Some(0)),
        (1, Some(8)),
        (1, Some(9)),
        (5, Some(2)),
        (136, None),
    ] {
        rules.push(rule(true, LinuxDeviceType::C, Some(major), minor, "rw")?);
    }
    Ok(rules)
}

fn mounts(input: &SpecInput<'_>) -> Result<Vec<Mount>, OciSpecError> {
    Ok(vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"])?,
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"])?,
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        )?,
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"])?,
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"])?,
        match &input.userns {
            Some(userns) => bind("/sys", userns.sysfs)?,
            None => mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"])?,
        },
        cgroup_mount(input.cgroup_v1)?,
    ])
}

/// Version 2 is mounted by libcontainer, version 1 was put together before.
fn cgroup_mount(v1: Option<&Path>) -> Result<Mount, OciSpecError> {
    let Some(source) = v1 else {
        return mount(CGROUP_DIR, "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]);
    };
    bind(CGROUP_DIR, source)
}

fn bind(destination: &str, source: &Path) -> Result<Mount, OciSpecError> {
    let options: Vec<String> = ["rbind", "nosuid", "noexec", "nodev", "ro"].map(str::to_owned).to_vec();
    MountBuilder::default().destination(destination).typ("bind").source(source).options(options).build()
}

fn mount(destination: &str, typ: &str, source: &str, options: &[&str]) -> Result<Mount, OciSpecError> {
    let options: Vec<String> = options.iter().map(ToString::to_string).collect();
    MountBuilder::default().destination(destination).typ(typ).source(source).options(options).build()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resources_with(limits: Limits, swap: Swap, v1: bool) -> LinuxResources {
        let user = User { uid: 0, gid: 0, groups: Vec::new(), home: "/".into() };
        let input = SpecInput {
            rootfs: Path::new("/rootfs"),
            read_only: false,
            hostname: "h",
            argv: &[],
            env: &[],
            working_dir: "/",
            user: &user,
            limits,
            swap,
            oom_group: !v1,
            cgroup: PathBuf::from("/skiff/run/c"),
            cgroup_v1: v1.then_some(Path::new("/cgroup")),
            network_namespace: PathBuf::from("/proc/self/fd/3"),
            userns: None,
        };
        resources(&input).expect("valid")
    }

    fn unified(limits: Limits, swap: Swap) -> Vec<(String, String)> {
        let files = resources_with(limits, swap, false).unified().clone().unwrap_or_default();
        let mut files: Vec<_> = files.into_iter().collect();
        files.sort();
        files
    }

    fn file(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    #[test]
    fn the_mask_is_the_list() {
        let bits = CAPABILITIES.iter().map(|capability| {
            let name = format!("CAP_{}", capability.to_string().trim_start_matches("CAP_"));
            name.parse::<caps::Capability>().expect("known").bitmask()
        });
        assert_eq!(bits.fold(0, |all, bit| all | bit), CAPABILITY_MASK);
    }

    #[test]
    fn swap_is_off_wherever_it_can_be_limited() {
        let limits = Limits { memory_bytes: 1 << 20, oom: OomPolicy::KillProcess, ..Limits::default() };
        let swap_of = |swap, v1| resources_with(limits, swap, v1).memory().as_ref().and_then(|m| m.swap());
        assert_eq!(swap_of(Swap::Unlimited, true), None);
        assert_eq!(swap_of(Swap::WithMemory, true), Some(1 << 20));
        assert_eq!(swap_of(Swap::Separate, false), None);
        assert_eq!(unified(limits, Swap::Separate), [file("memory.swap.max", "0")]);
    }

    #[test]
    fn the_kernel_kills_the_whole_group_unless_told() {
        assert_eq!(unified(Limits::default(), Swap::Separate), [file("memory.oom.group", "1")]);
        let one = Limits { oom: OomPolicy::KillProcess, ..Limits::default() };
        assert_eq!(unified(one, Swap::Separate), []);
        assert_eq!(resources_with(Limits::default(), Swap::WithMemory, true).unified(), &None);
    }

    #[test]
    fn a_weight_is_the_same_in_both_versions() {
        let of = |cpu_weight, v1| {
            let limits = Limits { cpu_weight, oom: OomPolicy::KillProcess, ..Limits::default() };
            resources_with(limits, Swap::Unlimited, v1)
        };
        for (weight, shares) in [(1, 10), (100, 1024), (150, 1536), (10_000, 102_400)] {
            assert_eq!(of(weight, true).cpu().as_ref().and_then(|c| c.shares()), Some(shares));
            let v2 = of(weight, false);
            assert_eq!(v2.cpu().as_ref().and_then(|c| c.shares()), None);
            let files = v2.unified().clone().expect("a file");
            assert_eq!(files, HashMap::from([("cpu.weight".into(), weight.to_string())]));
        }
        assert_eq!(of(0, true).cpu().as_ref().and_then(|c| c.shares()), None);
    }
}
