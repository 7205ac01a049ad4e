//! One start, in a process of its own: mounts, specification, libcontainer, exec. Whatever
//! libcontainer does to its caller (working directory, dumpable flag, leaked descriptors) ends
//! with this process; the container's init is the keeper's child.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

use super::confine;
use super::protocol::{Failure, Report, SpaceKind, SpawnSteps, StartRequest};
use crate::cgroup::Group;
use crate::rootfs::idmap::map_layers;
use crate::rootfs::mount::{GROUP_PATH, ROOTFS, Scratch, Space};
use crate::rootfs::path::Root;
use crate::rootfs::{quota, system};
use crate::sandbox::{
    CommandExecutor, DEFAULT_PATH, Mounted, SpecInput, User, UserNamespace, build_spec, resolve_user,
};
use crate::sys::watch_filesystem;
use crate::{Error, ErrorKind, Result, breakpoint};

/// Longest failure that the executor writes.
const MAX_FAILURE: u64 = 64 << 10;
/// What is mounted where the image may have put links.
const MOUNT_POINTS: [&str; 4] = ["/tmp", "/etc/resolv.conf", "/etc/hostname", "/etc/hosts"];

/// What a start needs besides its request.
pub(super) struct Inputs {
    /// The process that forked this one.
    pub(super) keeper: Pid,
    pub(super) group: Group,
    /// Whether this process is in the group already.
    pub(super) joined: bool,
    /// An empty directory of the host to mount on.
    pub(super) mount_point: PathBuf,
    pub(super) request: OwnedFd,
    pub(super) network: OwnedFd,
    pub(super) disks: Vec<OwnedFd>,
    /// Where directories with quotas are made.
    pub(super) area: Option<PathBuf>,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
    pub(super) report: OwnedFd,
}

/// Runs the start and tells how it came out.
pub(super) fn run(inputs: Inputs) {
    let report = inputs.report.try_clone();
    let result = match start(inputs) {
        Ok(started) => started,
        Err(e) => Report::Failed(Failure::from(&e)),
    };
    if let (Ok(report), Ok(bytes)) = (report, serde_json::to_vec(&result)) {
        // If it cannot be written, the keeper is gone and kills by the cgroup.
        let _ = File::from(report).write_all(&bytes);
    }
}

fn start(inputs: Inputs) -> Result<Report> {
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|e| Error::host("cannot tie a start to its keeper", e))?;
    let began = Instant::now();
    // The keeper may have died before that.
    if getppid() != Some(inputs.keeper) {
        return Err(Error::new(ErrorKind::KeeperLost, "the keeper died"));
    }
    if !inputs.joined {
        inputs.group.join_first()?;
    }
    breakpoint::reach("start-joined");
    let request = StartRequest::from_memfd(inputs.request)?;
    confine::leave_groups()?;
    confine::raise_limits(&request.limits);
    let userns = request.first_id.map(UserNamespace::new).transpose()?;
    let scratch = Scratch::enter(&inputs.mount_point)?;
    let spaces = Spaces { id: &request.id, disks: inputs.disks.into_iter(), area: inputs.area };
    mount_rootfs(&scratch, &request, spaces, userns.as_ref())?;
    breakpoint::reach("start-mounted");
    let user = resolve_user(&request.user, &Root::open(&scratch.path(ROOTFS))?)?;
    userns.as_ref().map_or(Ok(()), |userns| userns.check(&user))?;
    give_output_to(&user, userns.as_ref(), &inputs.stdout, &inputs.stderr)?;
    let null = open_null()?;
    let mounted = mount_system(&scratch, &inputs.group, &inputs.network, userns.as_ref())?;
    if let Some(root) = inputs.group.unified_root() {
        scratch.pose_as_unified(root)?;
    }
    inputs.group.limit(&request.limits)?;
    inputs.group.join_rest()?;
    let scratch = scratch.become_root(userns.is_some())?;
    let env = complete_env(&request.env, &user);
    let bundle = scratch.path("bundle");
    build_spec(&SpecInput {
        rootfs: &scratch.path(ROOTFS),
        read_only: request.read_only,
        hostname: &request.hostname,
        argv: &request.argv,
        env: &env,
        working_dir: &request.working_dir,
        user: &user,
        limits: request.limits,
        cgroup: GROUP_PATH.as_ref(),
        mounted,
        network_namespace: format!("/proc/self/fd/{}", inputs.network.as_raw_fd()).into(),
        userns: userns.as_ref().map(UserNamespace::path),
    })
    .and_then(|spec| spec.save(bundle.join("config.json")))
    .map_err(|e| Error::new(ErrorKind::Internal, "cannot make the runtime specification").because(e))?;
    let mounts_us = micros(began);

    let (exec_failed, report) =
        pipe_with(PipeFlags::CLOEXEC).map_err(|e| Error::host("cannot make a pipe", e))?;
    let executor =
        CommandExecutor::new("start command", &request.argv, &env, request.profile.as_deref(), report)?;
    let create = Instant::now();
    let mut container = ContainerBuilder::new(request.id.clone(), SyscallType::default())
        .with_executor(executor)
        .with_root_path(scratch.path("state"))
        .map_err(create_error)?
        .with_stdin(null)
        .with_stdout(inputs.stdout)
        .with_stderr(inputs.stderr)
        .as_init(&bundle)
        .with_systemd(false)
        .with_detach(true)
        .as_sibling(true)
        .build()
        .map_err(create_error)?;
    let create_us = micros(create);
    breakpoint::reach("start-created");
    let exec = Instant::now();
    let pid = container
        .pid()
        .map(|p| p.as_raw())
        .ok_or_else(|| Error::new(ErrorKind::Internal, "libcontainer made a container without a process"))?;
    container.start().map_err(create_error)?;
    wait_for_exec(exec_failed)?;
    breakpoint::reach("start-executed");
    let steps = SpawnSteps { mounts_us, create_us, exec_us: micros(exec) };
    Ok(Report::Started { pid, pids: request.limits.pids, steps })
}

/// Overlay, `/tmp` and the files of `/etc`, and the working directory made in them.
fn mount_rootfs(
    scratch: &Scratch,
    request: &StartRequest,
    mut spaces: Spaces<'_>,
    userns: Option<&UserNamespace>,
) -> Result<()> {
    let mapped = userns.map(|userns| map_layers(userns, &request.layers, &scratch.path("i"))).transpose()?;
    let layers = mapped.as_ref().unwrap_or(&request.layers);
    let recording = if request.record { spaces.disks.next() } else { None };
    let rootfs = scratch.mount_overlay(layers, spaces.make(request.writable, "root")?.as_ref())?;
    if let Some(group) = recording {
        // A start that cannot be recorded is a start. The descriptor ends here.
        let _ = watch_filesystem(group, &rootfs);
    }
    let tmp = match spaces.make(request.tmp, "tmp")? {
        Some(space) => scratch.mount_tmp(&space)?,
        None => return Err(Error::new(ErrorKind::Internal, "a start request has no /tmp")),
    };
    let mut root = Root::open(&rootfs)?;
    if let Some(userns) = userns {
        give(userns.host_id(0), &tmp)?;
        root = root.owned_by(userns.host_id(0));
    }
    root.check_runtime_dirs()?;
    root.check_mount_points(&MOUNT_POINTS)?;
    root.bind_dir(&tmp, "/tmp")?;
    // After /tmp: it may be below it.
    root.ensure_dir(&request.working_dir)?;
    bind_etc(scratch, request, &root, userns)
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
    if userns.is_some() {
        confine::enter_network(network)?;
        scratch.mount_sysfs()?;
        if !groups.is_empty() {
            scratch.mount_cgroups_v1(&groups, &scratch.make("cgroup")?)?;
        }
        return Ok(Mounted::Beside { groups: !groups.is_empty() });
    }
    confine::enter(network)?;
    let rootfs = scratch.path(ROOTFS);
    system::mount(&Root::open(&rootfs)?)?;
    if !groups.is_empty() {
        scratch.mount_cgroups_v1(&groups, &rootfs.join("sys/fs/cgroup"))?;
    }
    Ok(Mounted::Inside { groups: !groups.is_empty() })
}

/// What was made for the container becomes its root's.
fn give(id: u32, path: &Path) -> Result<()> {
    std::os::unix::fs::lchown(path, Some(id), Some(id))
        .map_err(|e| Error::host(format!("cannot chown {}", path.display()), e))
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

#[expect(clippy::needless_pass_by_value, reason = "shaped for map_err")]
fn create_error(error: libcontainer::error::LibcontainerError) -> Error {
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

/// Where the spaces of a container come from.
struct Spaces<'a> {
    id: &'a str,
    disks: std::vec::IntoIter<OwnedFd>,
    area: Option<PathBuf>,
}

impl Spaces<'_> {
    fn make(&mut self, kind: SpaceKind, what: &str) -> Result<Option<Space>> {
        let missing = |what: &'static str| Error::new(ErrorKind::Internal, what);
        match kind {
            SpaceKind::None => Ok(None),
            SpaceKind::Memory(cap) => Ok(Some(Space::Memory(cap))),
            SpaceKind::Quota(cap) => {
                let area = self.area.as_deref();
                let area = area.ok_or_else(|| missing("a run has no place for directories with quotas"))?;
                quota::make(area, self.id, what, cap).map(|dir| Some(Space::Dir(dir)))
            }
            SpaceKind::Disk => self
                .disks
                .next()
                .map(|disk| Some(Space::Disk(disk)))
                .ok_or_else(|| missing("a start request came without its disk")),
        }
    }
}

/// A program that runs as another user may open `/dev/stdout` again, as many images do.
fn give_output_to(
    user: &User,
    userns: Option<&UserNamespace>,
    stdout: &OwnedFd,
    stderr: &OwnedFd,
) -> Result<()> {
    let host_id = |id| userns.map_or(id, |userns| userns.host_id(id));
    let (uid, gid) = (Uid::from_raw(host_id(user.uid)), Gid::from_raw(host_id(user.gid)));
    for pipe in [stdout, stderr] {
        rustix::fs::fchown(pipe, Some(uid), Some(gid))
            .map_err(|e| Error::host("cannot give the output pipes to the container's user", e))?;
    }
    Ok(())
}

/// Adds `PATH` and `HOME` where the image and the caller set none, as Docker does.
fn complete_env(given: &[(String, String)], user: &User) -> Vec<(String, String)> {
    let mut env = given.to_vec();
    for (key, value) in [("PATH", DEFAULT_PATH), ("HOME", user.home.as_str())] {
        if !env.iter().any(|(k, _)| k == key) {
            env.push((key.into(), value.into()));
        }
    }
    env
}

/// The files of `/etc` that every container runtime provides.
fn bind_etc(
    scratch: &Scratch,
    request: &StartRequest,
    root: &Root,
    userns: Option<&UserNamespace>,
) -> Result<()> {
    let files = [
        ("resolv.conf", request.resolv_conf.clone()),
        ("hostname", format!("{}\n", request.hostname)),
        ("hosts", hosts(&request.hostname, request.address)),
    ];
    for (name, text) in files {
        let path = scratch.path("etc").join(name);
        fs::write(&path, text).map_err(|e| Error::host(format!("cannot write {}", path.display()), e))?;
        userns.map_or(Ok(()), |userns| give(userns.host_id(0), &path))?;
        root.bind_file(&path, "/etc", name)?;
    }
    Ok(())
}

fn hosts(hostname: &str, address: Ipv4Addr) -> String {
    format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{address}\t{hostname}\n")
}

fn open_null() -> Result<OwnedFd> {
    rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Error::host("cannot open /dev/null", e))
}

/// Returns when the command has been executed (or the container died, which its exit tells).
fn wait_for_exec(pipe: OwnedFd) -> Result<()> {
    let mut bytes = Vec::new();
    File::from(pipe)
        .take(MAX_FAILURE)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::host("cannot read from a starting container", e))?;
    if bytes.is_empty() {
        return Ok(());
    }
    match serde_json::from_slice::<Failure>(&bytes) {
        Ok(failure) => Err(failure.into()),
        Err(e) => {
            Err(Error::new(ErrorKind::Internal, "a starting container sent an unreadable failure").because(e))
        }
    }
}
