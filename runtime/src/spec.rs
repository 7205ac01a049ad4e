//! What a caller asks of a container, and its reconciliation with the image.

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::image::ImageConfig;
use crate::keeper::protocol::{Label, Limits, SpaceKind, StartRequest};
use crate::network::DEFAULT_ADDRESS;
use crate::rootfs::Cap;
use crate::{Acceleration, Error, ErrorKind, Network, Result};

/// Longest name of a container.
const MAX_ID: usize = 64;
/// The kernel's limit of one argument or variable (`MAX_ARG_STRLEN`: 32 pages).
const MAX_STRING: usize = 128 << 10;
/// The kernel's usual limit of all arguments and variables together.
const MAX_STRINGS: usize = 2 << 20;
/// Longest host name (`HOST_NAME_MAX`).
const MAX_HOSTNAME: usize = 64;
/// Least memory limit, as Docker's: a start needs some itself before the command runs.
const MIN_MEMORY: u64 = 6 << 20;
/// Least CPU limit: the kernel's least quota, 1 ms in a period of 100 ms.
const MIN_CPU_MILLIS: u32 = 10;
/// Least cap of inodes: ext4 and overlay need some themselves.
const MIN_INODES: u64 = 64;
/// CPU weights of cgroup version 2, beside 0 for the default.
const CPU_WEIGHTS: std::ops::RangeInclusive<u32> = 1..=10_000;
/// Most processes that the kernel can have (`PID_MAX_LIMIT`); it refuses a higher limit.
const MAX_PIDS: u32 = 4 << 20;
/// Least limit of processes: libcontainer's own is in the group when it forks the init.
const MIN_PIDS: u32 = 2;
/// Until when a container must have executed its command, unless told.
const DEFAULT_DEADLINE: Duration = Duration::from_secs(30);

/// What holds the bytes that a container writes to its root filesystem and to `/tmp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Writable {
    /// The best that the host has: `Quota`, else `Loop`, else `Tmpfs`.
    #[default]
    Auto,
    /// A directory with a project quota of its own below the state directory, which must be on XFS
    /// or ext4 with project quotas enforced; costs disk.
    Quota,
    /// A sparse ext4 file on a loop device; costs disk.
    Loop,
    /// A tmpfs; costs memory, which is charged to the container.
    Tmpfs,
}

/// What becomes of a container that has no memory left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OomPolicy {
    /// All of it is killed, as both clouds recycle an instance. With cgroup version 2 by the kernel,
    /// at once (Linux 4.19); else by Skiff, within milliseconds after the kernel has killed a process
    /// of it.
    #[default]
    KillContainer,
    /// The kernel kills one process, and the others go on, unless it was the first one.
    KillProcess,
}

/// One container to start. Everything not given is the image's.
#[derive(Clone, Default)]
pub struct ContainerSpec {
    /// Unique name on this node: 1 to 64 of `[a-zA-Z0-9._-]`, starting with a letter or digit.
    pub id: String,
    /// Host name inside.
    pub hostname: String,
    /// Replaces the image's entrypoint. When given, the image's cmd is not used (as Docker and
    /// Kubernetes do).
    pub entrypoint: Option<Vec<String>>,
    /// Replaces the image's cmd.
    pub cmd: Option<Vec<String>>,
    /// Added to the image's environment; wins over it.
    pub env: Vec<(String, String)>,
    /// Replaces the image's user: `name|uid[:group|gid]`.
    pub user: Option<String>,
    /// Runs it in a user namespace: its root, and every other id up to 65535, is one of a range of
    /// the host's ids that nobody else has. The image's files are mapped, neither copied nor chowned.
    /// Needs Linux 5.19, and a state directory on a filesystem that maps ids (ext4, XFS, btrfs).
    pub userns: bool,
    /// Replaces the image's working directory; absolute.
    pub working_dir: Option<String>,
    /// Memory limit in bytes, swap off; at least 6 MiB, or 0 for no limit.
    pub memory_bytes: u64,
    /// CPU limit in thousandths of a core; at least 10, or 0 for no limit.
    pub cpu_millis: u32,
    /// Share of CPU time beside other containers when there is not enough for all: 1 to 10,000, and
    /// 0 for the default, 100. As `cpu.weight` of cgroup version 2; version 1 gets `cpu.shares` of
    /// the same effect.
    pub cpu_weight: u32,
    /// Limit of processes and threads by the cgroup, 2 to 4,194,304; 0 is no limit. `RLIMIT_NPROC` says
    /// the same in a user namespace only: elsewhere it counts the processes of one user on the whole host.
    pub pids: u32,
    /// What happens when its memory runs out.
    pub oom: OomPolicy,
    /// RLIMIT_NOFILE, soft and hard; 0 keeps the host's.
    pub nofile: u64,
    /// What holds written bytes.
    pub writable: Writable,
    /// Cap of the writable layer in bytes.
    pub writable_bytes: u64,
    /// Cap of the writable layer in inodes (files, directories and links), of which the overlay
    /// itself takes some; 0 is one for each 16 KiB and at least 256.
    pub writable_inodes: u64,
    /// Cap of `/tmp` in bytes.
    pub tmp_bytes: u64,
    /// Cap of `/tmp` in inodes; 0 as for `writable_inodes`.
    pub tmp_inodes: u64,
    /// Mounts the root filesystem read-only (`/tmp` stays writable).
    pub read_only: bool,
    /// The container's own address, by which the host reaches it. A server bound to 127.0.0.1 is
    /// not reached, as in the clouds.
    pub address: Option<Ipv4Addr>,
    /// What it reaches. With [`Network::Host`] its address is the host's 127.0.0.1.
    pub network: Network,
    /// What is done to make starts on a cold page cache quick.
    pub acceleration: Acceleration,
    /// Bytes by which a later owner of a lasting run knows the container again
    /// ([`Container::label`](crate::Container::label)); at most 4096. The keeper has them in memory
    /// and shows them to every owner, so they hold no secrets.
    pub label: Vec<u8>,
    /// The container must have executed its command within this time; zero is 30 s.
    pub deadline: Duration,
}

impl std::fmt::Debug for ContainerSpec {
    /// Names of variables only: values may be secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.env.iter().map(|(name, _)| name).collect();
        f.debug_struct("ContainerSpec").field("id", &self.id).field("env", &names).finish_non_exhaustive()
    }
}

impl ContainerSpec {
    /// Limits that the kernel knows, and with which a start can come to its command.
    fn check_limits(&self) -> Result<()> {
        let low = |what: String, least: String| {
            Err(Error::new(ErrorKind::InvalidArgument, format!("{what} is too little for a container"))
                .advise(format!("give at least {least}, or 0 for no limit")))
        };
        if (1..MIN_MEMORY).contains(&self.memory_bytes) {
            return low(
                format!("a memory limit of {} bytes", self.memory_bytes),
                format!("{MIN_MEMORY} bytes"),
            );
        }
        if (1..MIN_CPU_MILLIS).contains(&self.cpu_millis) {
            return low(
                format!("a CPU limit of {} thousandths", self.cpu_millis),
                MIN_CPU_MILLIS.to_string(),
            );
        }
        if self.cpu_weight != 0 && !CPU_WEIGHTS.contains(&self.cpu_weight) {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("a CPU weight of {} is too much", self.cpu_weight),
            )
            .advise(format!(
                "give {} to {}, or 0 for the default",
                CPU_WEIGHTS.start(),
                CPU_WEIGHTS.end()
            )));
        }
        if (1..MIN_PIDS).contains(&self.pids) {
            return low(format!("a limit of {} processes", self.pids), MIN_PIDS.to_string());
        }
        if self.pids > MAX_PIDS {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("a limit of {} processes is more than the kernel can have", self.pids),
            )
            .advise(format!("give at most {MAX_PIDS}, or 0 for no limit")));
        }
        Ok(())
    }

    pub(crate) fn deadline(&self) -> Duration {
        if self.deadline.is_zero() { DEFAULT_DEADLINE } else { self.deadline }
    }

    pub(crate) fn writable_cap(&self) -> Cap {
        Cap::new(self.writable_bytes, self.writable_inodes)
    }

    pub(crate) fn tmp_cap(&self) -> Cap {
        Cap::new(self.tmp_bytes, self.tmp_inodes)
    }

    pub(crate) fn address(&self) -> Ipv4Addr {
        match self.network {
            Network::Host => Ipv4Addr::LOCALHOST,
            Network::None | Network::Bridge => self.address.unwrap_or(DEFAULT_ADDRESS),
        }
    }

    /// The request to the keeper: this, completed by the image.
    pub(crate) fn request(&self, image: &ImageConfig, layers: &[std::path::PathBuf]) -> Result<StartRequest> {
        check_id(&self.id)?;
        check_hostname(&self.hostname)?;
        check_label(&self.label)?;
        self.check_limits()?;
        let argv = self.argv(image)?;
        let env = self.environment(image);
        check_strings(&argv, &env)?;
        for (what, inodes) in [("the writable layer", self.writable_inodes), ("/tmp", self.tmp_inodes)] {
            check_inodes(what, inodes)?;
        }
        let space = |cap| match self.writable {
            Writable::Quota => SpaceKind::Quota(cap),
            // What `Auto` is on this host has been settled before.
            Writable::Loop | Writable::Auto => SpaceKind::Disk,
            Writable::Tmpfs => SpaceKind::Memory(cap),
        };
        Ok(StartRequest {
            id: self.id.clone(),
            hostname: self.hostname.clone(),
            layers: layers.to_vec(),
            record: false,
            writable: if self.read_only { SpaceKind::None } else { space(self.writable_cap()) },
            tmp: space(self.tmp_cap()),
            read_only: self.read_only,
            argv,
            env,
            user: self.user.clone().unwrap_or_else(|| image.user.clone()),
            first_id: None,
            profile: None,
            working_dir: absolute(self.working_dir.as_deref().unwrap_or(&image.working_dir)),
            limits: Limits {
                memory_bytes: self.memory_bytes,
                cpu_millis: self.cpu_millis,
                cpu_weight: self.cpu_weight,
                pids: self.pids,
                oom: self.oom,
                nofile: reachable_nofile(self.nofile),
            },
            address: self.address(),
            // Looked up when it starts.
            resolv_conf: String::new(),
        })
    }

    /// Entrypoint and cmd by the rules of Docker and Kubernetes: a given entrypoint drops the
    /// image's cmd.
    fn argv(&self, image: &ImageConfig) -> Result<Vec<String>> {
        let image_cmd = if self.entrypoint.is_some() { &[][..] } else { &image.cmd };
        let entrypoint = self.entrypoint.as_ref().unwrap_or(&image.entrypoint);
        let cmd = self.cmd.as_deref().unwrap_or(image_cmd);
        let argv: Vec<String> = entrypoint.iter().chain(cmd).cloned().collect();
        match argv.first() {
            Some(command) if !command.is_empty() => Ok(argv),
            Some(_) => Err(Error::new(ErrorKind::NoCommand, "the start command is an empty string")
                .advise("set ENTRYPOINT or CMD in the image, or give a command")),
            None => Err(Error::new(
                ErrorKind::NoCommand,
                "the image has neither ENTRYPOINT nor CMD, and no command was given",
            )
            .advise("set ENTRYPOINT or CMD in the image, or give a command")),
        }
    }

    /// The image's variables, replaced and completed by the given ones; each name once.
    fn environment(&self, image: &ImageConfig) -> Vec<(String, String)> {
        let mut all: Vec<(String, String)> = Vec::new();
        let from_image = image
            .env
            .iter()
            .filter_map(|pair| pair.split_once('='))
            .map(|(k, v)| (k.to_owned(), v.to_owned()));
        for (name, value) in from_image.chain(self.env.iter().cloned()) {
            match all.iter_mut().find(|(known, _)| *known == name) {
                Some(known) => known.1 = value,
                None => all.push((name, value)),
            }
        }
        all
    }
}

fn check_id(id: &str) -> Result<()> {
    let first = id.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    let rest = id.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if first && rest && id.len() <= MAX_ID {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::InvalidArgument,
        format!("'{}' is no name for a container", id.escape_default()),
    )
    .advise("use 1 to 64 letters, digits, '.', '_' and '-', beginning with a letter or digit"))
}

fn check_hostname(name: &str) -> Result<()> {
    let allowed = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if !name.is_empty() && allowed && name.len() <= MAX_HOSTNAME {
        return Ok(());
    }
    Err(Error::new(ErrorKind::InvalidArgument, format!("'{}' is no host name", name.escape_default()))
        .advise("use 1 to 64 letters, digits, '.' and '-'"))
}

fn check_strings(argv: &[String], env: &[(String, String)]) -> Result<()> {
    let over = |what: String, limit: usize| {
        Err(Error::new(
            ErrorKind::LimitExceeded,
            format!("{what} is over the kernel's limit of {limit} bytes"),
        ))
    };
    let mut total = 0;
    for argument in argv {
        total += argument.len() + 1;
        if argument.len() >= MAX_STRING {
            return over(format!("an argument of {} bytes", argument.len()), MAX_STRING);
        }
    }
    for (name, value) in env {
        let len = name.len() + value.len() + 2;
        total += len;
        if len > MAX_STRING {
            return over(format!("the environment variable '{name}' of {len} bytes"), MAX_STRING);
        }
    }
    if total > MAX_STRINGS {
        return over(format!("the sum of arguments and environment, {total} bytes,"), MAX_STRINGS);
    }
    Ok(())
}

fn check_inodes(what: &str, inodes: u64) -> Result<()> {
    if inodes == 0 || inodes >= MIN_INODES {
        return Ok(());
    }
    Err(Error::new(ErrorKind::InvalidArgument, format!("a cap of {inodes} inodes for {what} is too little"))
        .advise(format!("give at least {MIN_INODES}, or 0 for the default")))
}

fn check_label(label: &[u8]) -> Result<()> {
    if label.len() <= Label::MAX {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::InvalidArgument,
        format!("the label of a container has {} bytes, more than {}", label.len(), Label::MAX),
    )
    .advise("keep what is long elsewhere, and its name in the label"))
}

/// The limit of descriptors that this process may give: without CAP_SYS_RESOURCE not more than its
/// own hard limit. A container with fewer is better than none.
fn reachable_nofile(wanted: u64) -> u64 {
    let may_raise =
        caps::has_cap(None, caps::CapSet::Effective, caps::Capability::CAP_SYS_RESOURCE).unwrap_or(false);
    let own = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    match own {
        Some(own) if !may_raise && wanted > own => {
            tracing::debug!(
                wanted,
                given = own,
                "the limit of open files is lowered: CAP_SYS_RESOURCE is missing"
            );
            own
        }
        _ => wanted,
    }
}

fn absolute(dir: &str) -> String {
    if dir.starts_with('/') { dir.to_owned() } else { format!("/{dir}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> ImageConfig {
        ImageConfig {
            entrypoint: vec!["/bin/app".into()],
            cmd: vec!["serve".into()],
            env: vec!["A=1".into(), "B=2=3".into(), "broken".into()],
            ..ImageConfig::default()
        }
    }

    fn spec() -> ContainerSpec {
        ContainerSpec { id: "c-1".into(), hostname: "c-1".into(), ..ContainerSpec::default() }
    }

    #[test]
    fn entrypoint_and_cmd_follow_docker() {
        let words = |e: Option<&[&str]>, c: Option<&[&str]>| {
            let own = |w: &[&str]| w.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
            let spec = ContainerSpec { entrypoint: e.map(own), cmd: c.map(own), ..spec() };
            spec.request(&image(), &[]).map(|r| r.argv.join(" "))
        };
        assert_eq!(words(None, None).expect("image's"), "/bin/app serve");
        assert_eq!(words(None, Some(&["x", "y"])).expect("cmd"), "/bin/app x y");
        assert_eq!(words(Some(&["sh"]), None).expect("entrypoint"), "sh");
        assert_eq!(words(Some(&["sh"]), Some(&["-c"])).expect("both"), "sh -c");
        assert_eq!(words(Some(&[]), None).expect_err("none").kind(), ErrorKind::NoCommand);
        assert_eq!(words(Some(&[""]), None).expect_err("empty").kind(), ErrorKind::NoCommand);
    }

    #[test]
    fn environment_is_merged_by_name() {
        let spec = ContainerSpec { env: vec![("A".into(), "9".into()), ("C".into(), "4".into())], ..spec() };
        let request = spec.request(&image(), &[]).expect("valid");
        let pairs: Vec<_> = request.env.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(pairs, ["A=9", "B=2=3", "C=4"]);
    }

    #[test]
    fn names_and_sizes_out_of_bounds_are_refused() {
        for id in ["", "-a", "a/b", "..", "a b", &"x".repeat(65), "ü"] {
            let error = ContainerSpec { id: id.into(), ..spec() }.request(&image(), &[]).err().expect(id);
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        }
        let long = ContainerSpec { env: vec![("BIG".into(), "x".repeat(MAX_STRING))], ..spec() };
        let error = long.request(&image(), &[]).err().expect("too long");
        assert!(error.to_string().contains("'BIG'"), "{error}");
    }

    #[test]
    fn limits_that_no_start_survives_are_refused() {
        for (memory_bytes, cpu_millis) in [(1, 0), (MIN_MEMORY - 1, 0), (0, 9)] {
            let refused = ContainerSpec { memory_bytes, cpu_millis, ..spec() };
            let error = refused.request(&image(), &[]).err().expect("too little");
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        }
        let least = ContainerSpec { memory_bytes: MIN_MEMORY, cpu_millis: MIN_CPU_MILLIS, ..spec() };
        least.request(&image(), &[]).expect("enough");
    }

    #[test]
    fn caps_of_inodes_below_what_a_filesystem_needs_are_refused() {
        let refused = ContainerSpec { tmp_inodes: MIN_INODES - 1, ..spec() };
        let error = refused.request(&image(), &[]).err().expect("too few");
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().contains("63 inodes for /tmp"), "{error}");
        let least = ContainerSpec { writable_inodes: MIN_INODES, tmp_inodes: 0, ..spec() };
        least.request(&image(), &[]).expect("enough");
        assert_eq!(least.tmp_cap().inodes, 256);
    }

    #[test]
    fn limits_that_the_kernel_does_not_know_are_refused() {
        let refused = |spec: ContainerSpec, value: &str| {
            let error = spec.request(&image(), &[]).err().expect(value);
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
            assert!(error.to_string().contains(value) && error.advice().is_some(), "{error}");
        };
        refused(ContainerSpec { cpu_weight: 10_001, ..spec() }, "10001");
        refused(ContainerSpec { pids: MAX_PIDS + 1, ..spec() }, "4194305");
        refused(ContainerSpec { pids: 1, ..spec() }, "1 processes");
        for cpu_weight in [0, 1, 10_000] {
            let most = ContainerSpec { cpu_weight, pids: MAX_PIDS, ..spec() };
            assert_eq!(most.request(&image(), &[]).expect("known").limits.cpu_weight, cpu_weight);
        }
    }

    #[test]
    fn debug_shows_no_values_of_variables() {
        let spec = ContainerSpec { env: vec![("KEY".into(), "hunter2".into())], ..spec() };
        assert!(!format!("{spec:?}").contains("hunter2"));
    }
}
