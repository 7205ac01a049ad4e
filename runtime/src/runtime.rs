//! The entry point: one [`Runtime`] is one node's store, keeper and namespaces.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::image::{Image, Store};
use crate::{Container, Result};

/// Where a runtime keeps its things.
#[derive(Clone, Debug)]
pub struct RuntimeOptions {
    /// Images and what must survive a reboot; made with mode 0700 if missing.
    pub state_dir: PathBuf,
    /// Sockets and locks of what runs now; made with mode 0700 if missing.
    pub run_dir: PathBuf,
    /// The `skiff-keeper` program; `None` looks beside the running executable, then in `PATH`.
    pub keeper: Option<PathBuf>,
}

/// What holds the bytes that a container writes to its root filesystem and to `/tmp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Writable {
    /// A sparse ext4 file on a loop device; costs disk.
    #[default]
    Loop,
    /// A tmpfs; costs memory, which is charged to the container.
    Tmpfs,
}

/// One container to start. Everything not given is the image's.
#[derive(Clone, Debug, Default)]
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
    /// Replaces the image's working directory; absolute.
    pub working_dir: Option<String>,
    /// Memory limit in bytes, swap off; 0 is no limit.
    pub memory_bytes: u64,
    /// CPU limit in thousandths of a core; 0 is no limit.
    pub cpu_millis: u32,
    /// Limit of processes and threads; 0 is no limit.
    pub pids: u32,
    /// RLIMIT_NOFILE, soft and hard; 0 keeps the host's.
    pub nofile: u64,
    /// What holds written bytes.
    pub writable: Writable,
    /// Cap of the writable layer in bytes.
    pub writable_bytes: u64,
    /// Cap of `/tmp` in bytes.
    pub tmp_bytes: u64,
    /// Mounts the root filesystem read-only (`/tmp` stays writable).
    pub read_only: bool,
    /// The container's own address, by which the host reaches it. A server bound to 127.0.0.1 is
    /// not reached, as in the clouds.
    pub address: Option<Ipv4Addr>,
    /// The container must have executed its command within this time; zero is 30 s.
    pub deadline: Duration,
}

/// One node: image store, keeper process, and the containers started through them.
#[derive(Debug)]
pub struct Runtime {
    _private: (),
}

impl Runtime {
    /// Opens the store, cleans what crashed runs left behind, and starts a keeper.
    ///
    /// # Errors
    /// `NotRoot`, `NoCgroup`, `KeeperNotFound`, `OverlayUnsupported`, `Host`.
    pub async fn open(_options: RuntimeOptions) -> Result<Arc<Self>> {
        unimplemented!("skeleton")
    }

    /// The image store.
    #[must_use]
    pub fn store(&self) -> &Arc<Store> {
        unimplemented!("skeleton")
    }

    /// The directory of this runtime below the run directory: sockets of its owner may live here;
    /// it is removed by [`Runtime::shutdown`], and by the next start after a crash.
    #[must_use]
    pub fn dir(&self) -> &std::path::Path {
        unimplemented!("skeleton")
    }

    /// Starts a container of `image`. Returns when its command has been executed.
    ///
    /// # Errors
    /// `NoCommand`, `CommandNotFound`, `CommandNotExecutable`, `UnknownUser`,
    /// `InvalidWorkingDirectory`, `InvalidImage`, `StartTimedOut`, `KeeperLost`, `Host`.
    pub async fn start(&self, _image: &Image, _spec: ContainerSpec) -> Result<Container> {
        unimplemented!("skeleton")
    }

    /// Kills what still runs, ends the keeper and removes what this runtime made outside the store.
    /// Gathers errors and goes on; returns the first.
    ///
    /// # Errors
    /// `Host` when something could not be removed.
    pub async fn shutdown(&self) -> Result<()> {
        unimplemented!("skeleton")
    }
}
