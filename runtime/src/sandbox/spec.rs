//! The runtime specification (OCI runtime-spec 1.x) of a container.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Capability, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxNamespaceBuilder, LinuxNamespaceType, Mount,
    MountBuilder, Process, ProcessBuilder, RootBuilder, Spec, SpecBuilder, UserBuilder,
};

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

/// Until the start gives it its own.
const HOSTNAME: &str = "localhost";

/// What a specification is made of. It says nothing of the image or the command: the container is made before
/// either is put into it.
pub(crate) struct SpecInput<'a> {
    pub(crate) rootfs: &'a Path,
    pub(crate) cgroup: &'a Path,
    pub(crate) mounted: Mounted,
    pub(crate) network_namespace: PathBuf,
    /// The user namespace that it is given. The network namespace is not that's own: the start process
    /// has entered it, and mounted what shows it.
    pub(crate) userns: Option<PathBuf>,
}

/// What the start process has mounted. `groups`: those of version 1, put together; there are none on version 2.
#[derive(Clone, Copy)]
pub(crate) enum Mounted {
    /// `/dev` and `/sys`, where they belong.
    Inside { groups: bool },
    /// `/sysfs` and `/cgroup`, outside of the root filesystem.
    Beside { groups: bool },
}

/// Builds the specification. It has no resources: Skiff sets the limits of the group itself.
pub(crate) fn build(input: &SpecInput<'_>) -> Result<Spec, OciSpecError> {
    let mut linux = LinuxBuilder::default()
        .namespaces(namespaces(input)?)
        .cgroups_path(input.cgroup)
        .masked_paths(MASKED.map(str::to_owned).to_vec())
        .readonly_paths(READ_ONLY.map(str::to_owned).to_vec())
        .rootfs_propagation("private")
        .build()?;
    linux.set_resources(None);
    SpecBuilder::default()
        .version("1.0.2")
        .root(RootBuilder::default().path(input.rootfs).readonly(false).build()?)
        .hostname(HOSTNAME)
        .process(process()?)
        .mounts(mounts(input)?)
        .linux(linux)
        .build()
}

/// Root, until the executor has become the user.
fn process() -> Result<Process, OciSpecError> {
    let user = UserBuilder::default().uid(0u32).gid(0u32).umask(0o022u32).build()?;
    ProcessBuilder::default()
        .terminal(false)
        .user(user)
        .args(vec!["/".to_owned()])
        .env(Vec::new())
        .cwd("/")
        .no_new_privileges(true)
        .capabilities(capabilities()?)
        .rlimits(Vec::new())
        .build()
}

/// Nothing inheritable or ambient (CVE-2022-29162). Other users than root hold nothing: they lose it all when
/// they become it, and could gain some only by a set-user-ID program, which no-new-privileges forbids.
fn capabilities() -> Result<oci_spec::runtime::LinuxCapabilities, OciSpecError> {
    let bounding: HashSet<_> = CAPABILITIES.into();
    LinuxCapabilitiesBuilder::default()
        .bounding(bounding.clone())
        .effective(bounding.clone())
        .permitted(bounding)
        .inheritable(HashSet::new())
        .ambient(HashSet::new())
        .build()
}

fn namespaces(input: &SpecInput<'_>) -> Result<Vec<oci_spec::runtime::LinuxNamespace>, OciSpecError> {
    let (typ, path) = match &input.userns {
        Some(userns) => (LinuxNamespaceType::User, userns),
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

fn mounts(input: &SpecInput<'_>) -> Result<Vec<Mount>, OciSpecError> {
    let mut all = vec![mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"])?];
    if let Mounted::Beside { .. } = input.mounted {
        all.extend(dev_and_sys()?);
    }
    all.push(mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"])?);
    match input.mounted {
        Mounted::Inside { groups: true } => {}
        Mounted::Beside { groups: true } => all.push(bind(CGROUP_DIR, "/cgroup")?),
        // Version 2, in the container's cgroup namespace; not as type `cgroup`, for which libcontainer looks
        // at what it is shown of the host.
        Mounted::Inside { groups: false } | Mounted::Beside { groups: false } => {
            let options = ["nosuid", "noexec", "nodev", "relatime", "ro"];
            all.push(mount(CGROUP_DIR, "cgroup2", "cgroup", &options)?);
        }
    }
    Ok(all)
}

/// As `rootfs/system.rs` mounts them.
fn dev_and_sys() -> Result<[Mount; 4], OciSpecError> {
    Ok([
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"])?,
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        )?,
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"])?,
        bind("/sys", "/sysfs")?,
    ])
}

fn bind(destination: &str, source: &str) -> Result<Mount, OciSpecError> {
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

    #[test]
    fn the_mask_is_the_list() {
        let bits = CAPABILITIES.iter().map(|capability| {
            let name = format!("CAP_{}", capability.to_string().trim_start_matches("CAP_"));
            name.parse::<caps::Capability>().expect("known").bitmask()
        });
        assert_eq!(bits.fold(0, |all, bit| all | bit), CAPABILITY_MASK);
    }
}
