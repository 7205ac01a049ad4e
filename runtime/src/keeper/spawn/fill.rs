//! The second half of a start: the image's root filesystem, user, limits and command, for a container that has
//! been made.

use std::fs;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Gid, Uid};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::super::confine;
use super::super::protocol::{SpaceKind, StartRequest};
use super::create::Created;
use super::give;
use crate::cgroup::Group;
use crate::rootfs::idmap::map_layers;
use crate::rootfs::mount::{Scratch, Space};
use crate::rootfs::path::Root;
use crate::rootfs::{inside, quota};
use crate::sandbox::{Command, DEFAULT_PATH, User, UserNamespace, resolve_user};
use crate::sys::watch_filesystem;
use crate::{Error, ErrorKind, Result, breakpoint};

/// What is mounted where the image may have put links.
const MOUNT_POINTS: [&str; 4] = ["/tmp", "/etc/resolv.conf", "/etc/hostname", "/etc/hosts"];

/// What a start is given, beside the container.
pub(super) struct Filling<'a> {
    pub(super) scratch: &'a Scratch,
    pub(super) group: &'a Group,
    pub(super) userns: Option<&'a UserNamespace>,
    pub(super) request: &'a StartRequest,
    pub(super) disks: Vec<OwnedFd>,
    /// Where directories with quotas are made.
    pub(super) area: Option<PathBuf>,
    pub(super) stdout: &'a OwnedFd,
    pub(super) stderr: &'a OwnedFd,
}

/// Gives the container all that it lacks, so that it can be started. Leaves the caller in the container's mount
/// namespace.
pub(super) fn fill(filling: Filling<'_>, created: &Created) -> Result<()> {
    let Filling { scratch, group, userns, request, .. } = filling;
    let spaces = Spaces { id: &request.id, disks: filling.disks.into_iter(), area: filling.area };
    let rootfs = mount_rootfs(scratch, request, spaces, userns)?;
    breakpoint::reach("start-mounted");
    let user = resolve_user(&request.user, &Root::open(&rootfs)?)?;
    userns.map_or(Ok(()), |userns| userns.check(&user))?;
    give_output_to(&user, userns, filling.stdout, filling.stderr)?;
    group.limit(&request.limits)?;
    confine::raise_open_files(created.pid, request.limits.nofile);
    command(request, user, userns.is_some())
        .put(&created.command)
        .map_err(|e| Error::host("cannot hand over the command", e))?;
    let tree = inside::copy(&rootfs)?;
    let owner = userns.map(|userns| userns.host_id(0));
    inside::install(&tree, &created.mounts, request.read_only, owner)?;
    let failed = |e: Errno| Error::host("cannot set the host name of a container", e);
    move_into_link_name_space(created.uts.as_fd(), Some(LinkNameSpaceType::HostNameAndNISDomainName))
        .and_then(|()| rustix::system::sethostname(request.hostname.as_bytes()))
        .map_err(failed)
}

/// `RLIMIT_NPROC` counts the processes of a user in all containers and on the host, where the ids are
/// not the container's own: there the cgroup alone limits processes.
fn command(request: &StartRequest, user: User, own_ids: bool) -> Command {
    Command {
        argv: request.argv.clone(),
        env: complete_env(&request.env, &user),
        working_dir: request.working_dir.clone(),
        user,
        profile: request.profile.clone(),
        nofile: request.limits.nofile,
        nproc: if own_ids { u64::from(request.limits.pids) } else { 0 },
    }
}

/// Overlay, `/tmp` and the files of `/etc`, and the working directory made in them.
fn mount_rootfs(
    scratch: &Scratch,
    request: &StartRequest,
    mut spaces: Spaces<'_>,
    userns: Option<&UserNamespace>,
) -> Result<PathBuf> {
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
    bind_etc(scratch, request, &root, userns)?;
    Ok(rootfs)
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
