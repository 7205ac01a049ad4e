//! The first half of a start: a container without an image, made by libcontainer, whose init waits.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use rustix::fs::{MemfdFlags, Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};

use super::super::confine;
use crate::cgroup::Group;
use crate::rootfs::mount::{GROUP_PATH, SANDBOX, Scratch};
use crate::rootfs::path::Root;
use crate::rootfs::system;
use crate::sandbox::{CommandExecutor, Mounted, SpecInput, UserNamespace, build_spec};
use crate::{Error, ErrorKind, Result};

/// The name by which libcontainer knows the container; nobody else sees it.
const NAME: &str = "container";

/// What a container is made of before its image is known.
pub(super) struct Parts<'a> {
    pub(super) scratch: &'a Scratch,
    pub(super) group: &'a Group,
    pub(super) network: &'a OwnedFd,
    pub(super) userns: Option<&'a UserNamespace>,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
}

/// A container whose init waits to be told to start.
pub(super) struct Created {
    pub(super) container: Container,
    pub(super) pid: i32,
    /// Where the executor looks for its command.
    pub(super) command: OwnedFd,
    /// Closed when it is executed, and carries why it is not.
    pub(super) exec_failed: OwnedFd,
    /// The mount namespace in which the container's directory of libcontainer is.
    pub(super) own: OwnedFd,
    /// Mount and host name's namespaces of the container.
    pub(super) mounts: OwnedFd,
    pub(super) uts: OwnedFd,
    /// The caller's, so that its end, with all the host's mounts in it, is that of the start process, for which
    /// nobody waits, and not a part of the execution.
    _home: OwnedFd,
}

/// Makes the container, and comes back to the mount namespace of the caller, which has the host's mounts.
pub(super) fn create(parts: Parts<'_>) -> Result<Created> {
    let home = open_namespace("self", "mnt")?;
    let (scratch, userns) = (parts.scratch, parts.userns);
    let null = open_null()?;
    scratch.part()?;
    let mounted = mount_system(scratch, parts.group, parts.network, userns)?;
    if let Some(root) = parts.group.unified_root() {
        scratch.pose_as_unified(root)?;
    }
    parts.group.join_rest()?;
    let scratch = scratch.become_root(userns.is_some())?;
    save_spec(&scratch, parts.network, mounted, userns)?;
    let own = open_namespace("self", "mnt")?;
    let (exec_failed, report) =
        pipe_with(PipeFlags::CLOEXEC).map_err(|e| Error::host("cannot make a pipe", e))?;
    let command = rustix::fs::memfd_create("skiff-command", MemfdFlags::CLOEXEC)
        .map_err(|e| Error::host("cannot make memory for a command", e))?;
    let copy = command.try_clone().map_err(|e| Error::host("cannot copy a descriptor", e))?;
    let container = ContainerBuilder::new(NAME.to_owned(), SyscallType::default())
        .with_executor(CommandExecutor::new(copy, report))
        .with_root_path(scratch.path("state"))
        .map_err(create_error)?
        .with_stdin(null)
        .with_stdout(parts.stdout)
        .with_stderr(parts.stderr)
        .as_init(scratch.path("bundle"))
        .with_systemd(false)
        .with_detach(true)
        .as_sibling(true)
        .build()
        .map_err(create_error)?;
    let pid = container
        .pid()
        .map(|p| p.as_raw())
        .ok_or_else(|| Error::new(ErrorKind::Internal, "libcontainer made a container without a process"))?;
    let (mounts, uts) = (open_namespace(&pid.to_string(), "mnt")?, open_namespace(&pid.to_string(), "uts")?);
    super::enter_mounts(&home)?;
    Ok(Created { container, pid, command, exec_failed, own, mounts, uts, _home: home })
}

fn save_spec(
    scratch: &Scratch,
    network: &OwnedFd,
    mounted: Mounted,
    userns: Option<&UserNamespace>,
) -> Result<()> {
    build_spec(&SpecInput {
        rootfs: &scratch.path(SANDBOX),
        cgroup: GROUP_PATH.as_ref(),
        mounted,
        network_namespace: format!("/proc/self/fd/{}", network.as_raw_fd()).into(),
        userns: userns.map(UserNamespace::path),
    })
    .and_then(|spec| spec.save(scratch.path("bundle").join("config.json")))
    .map_err(|e| Error::new(ErrorKind::Internal, "cannot make the runtime specification").because(e))
}

fn open_namespace(pid: &str, kind: &str) -> Result<OwnedFd> {
    let path = Path::new("/proc").join(pid).join("ns").join(kind);
    rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Error::host(format!("cannot open {}", path.display()), e))
}

/// Mounts `/dev`, `/sys` and the groups of version 1, as far as the container need not do it by itself:
/// what the root of a user namespace is to use is mounted in that.
fn mount_system(
    scratch: &Scratch,
    group: &Group,
    network: &OwnedFd,
    userns: Option<&UserNamespace>,
) -> Result<Mounted> {
    let groups = group.v1_dirs();
    if let Some(userns) = userns {
        // Its root makes directories there.
        super::give(userns.host_id(0), &scratch.path(SANDBOX))?;
        confine::enter_network(network)?;
        scratch.mount_sysfs()?;
        if !groups.is_empty() {
            scratch.mount_cgroups_v1(&groups, &scratch.make("cgroup")?)?;
        }
        return Ok(Mounted::Beside { groups: !groups.is_empty() });
    }
    confine::enter(network)?;
    let rootfs = scratch.path(SANDBOX);
    system::mount(&Root::open(&rootfs)?)?;
    if !groups.is_empty() {
        scratch.mount_cgroups_v1(&groups, &rootfs.join("sys/fs/cgroup"))?;
    }
    Ok(Mounted::Inside { groups: !groups.is_empty() })
}

fn open_null() -> Result<OwnedFd> {
    rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Error::host("cannot open /dev/null", e))
}

#[expect(clippy::needless_pass_by_value, reason = "shaped for map_err")]
pub(super) fn create_error(error: libcontainer::error::LibcontainerError) -> Error {
    // What it removes after a failure is what it was shown of cgroups, and that does not go.
    let text = error.to_string();
    let mut text = text.split(". error during cleanup: ").next().unwrap_or_default().to_owned();
    let mut next = std::error::Error::source(&error);
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    Error::new(ErrorKind::Host, "the container could not be set up").because(text)
}
