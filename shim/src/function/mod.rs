//! A function: what to run, under which platform, within which limits.

mod advice;
mod affinity;
mod callbacks;
pub mod file;
mod lifecycle;
mod name;
mod role;
mod secret;
mod validate;

use std::fmt;
use std::time::Duration;

pub use affinity::{Mcp, SessionAffinity, SessionKey};
pub use callbacks::{Callback, Callbacks, HealthCheck, Mode};
pub use name::name_from_image;
pub use role::{RoleCallback, RoleLease, RoleRequest, RoleSource};
pub use secret::{Credentials, Secret};
use skiff_runtime::{Network, Writable};

use crate::Result;
use crate::api::AsyncOptions;
use crate::platform::{HttpEvent, Platform, Warning};

/// Size of the writable layer and of `/tmp` unless told otherwise: both platforms' 512 MB.
pub const DEFAULT_DISK_BYTES: u64 = 512 * 1024 * 1024;

/// How long a stopping instance may take after SIGTERM before it is killed. Neither platform
/// documents a grace in web-server mode, and a server that is process 1 without a handler never
/// sees the signal, so the default is short.
pub const DEFAULT_STOP_GRACE: Duration = Duration::from_millis(300);

/// A function as its owner configures it. [`FunctionConfig::new`] fills in the platform's defaults;
/// [`FunctionConfig::validate`] reports all faults together.
#[derive(Clone)]
#[non_exhaustive]
pub struct FunctionConfig {
    /// Its name.
    pub name: String,
    /// Whose contract it runs under.
    pub platform: &'static dyn Platform,
    /// How it takes its work.
    pub mode: Mode,
    /// Replaces the image's entrypoint; the image's cmd is not used then.
    pub entrypoint: Option<Vec<String>>,
    /// Replaces the image's cmd.
    pub cmd: Option<Vec<String>>,
    /// The user's own environment variables.
    pub env: Vec<(String, String)>,
    /// Replaces the image's user: `name|uid[:group|gid]`.
    pub user: Option<String>,
    /// Runs it in a user namespace: see [`ContainerSpec::userns`](skiff_runtime::ContainerSpec::userns).
    pub userns: bool,
    /// Replaces the image's working directory; absolute.
    pub working_dir: Option<String>,
    /// The port where its server listens; the platform's (9000) when `None`.
    pub port: Option<u16>,
    /// Memory limit in MiB (the platforms write MB and count 1024 × 1024).
    pub memory_mib: u32,
    /// CPU limit in thousandths of a core; 0 is no limit, the default.
    pub cpu_millis: u32,
    /// Limit of processes and threads; the platform's (1024) when `None`.
    pub pids: Option<u32>,
    /// What holds the bytes it writes.
    pub writable: Writable,
    /// Cap of the writable layer in bytes.
    pub writable_bytes: u64,
    /// Cap of the writable layer in inodes (files, directories, links); 0 is one for each 16 KiB.
    pub writable_inodes: u64,
    /// Cap of `/tmp` in bytes.
    pub tmp_bytes: u64,
    /// Cap of `/tmp` in inodes; 0 is one for each 16 KiB.
    pub tmp_inodes: u64,
    /// Mounts its root filesystem read-only; `/tmp` stays writable.
    pub read_only: bool,
    /// What it reaches; itself only, unless told otherwise.
    pub network: Network,
    /// Image acceleration (fc: `accelerationType`, scf: `ContainerImageAccelerate`): its first start
    /// is recorded, and what that touched is read ahead when a later one meets a cold page cache.
    pub acceleration: bool,
    /// How long one invocation may take; whole seconds are what the platforms know.
    pub timeout: Duration,
    /// How long a WebSocket may be idle (scf); the platform's (15 s) when `None`. fc has no such limit.
    pub websocket_idle: Option<Duration>,
    /// How long it may take until its server listens; the platform's (fc 120 s, scf 30 s) when `None`.
    pub start_deadline: Option<Duration>,
    /// How long a stop may take after SIGTERM before the kill.
    pub stop_grace: Duration,
    /// Calls of the platform before its first invocation, its freezing and its end.
    pub callbacks: Callbacks,
    /// Checks of its server besides that it listens.
    pub health_check: Option<HealthCheck>,
    /// The form in which HTTP requests become events (scf); passed through as they are when `None`.
    pub http_event: Option<HttpEvent>,
    /// Invocations that one instance works on at once (fc 1 to 200, scf 1 to 100).
    pub concurrency: u32,
    /// Which HTTP requests go to one instance, if any do (fc).
    pub session_affinity: Option<SessionAffinity>,
    /// Whether an instance is frozen while no invocation runs in it, as the clouds do.
    pub freeze: bool,
    /// What becomes of its asynchronous calls; where it says nothing, whoever takes them has a say.
    pub asynchronous: AsyncOptions,
    /// How often what an instance uses is told ([`LogStream::Metrics`](crate::LogStream)); never when `None`.
    pub metrics_period: Option<Duration>,
    /// Region name, as the function sees it.
    pub region: String,
    /// The owner's account: fc account id (UID), scf UIN.
    pub account_id: String,
    /// The owner's application id: scf APPID; not used by fc.
    pub app_id: String,
    /// What the function belongs to: scf namespace, fc 2.0 service; not used by fc 3.0.
    pub namespace: String,
    /// Requested version or alias: fc qualifier (`LATEST`), scf version (`$LATEST`).
    pub version: String,
    /// The handler name that fc shows and a container has no use for.
    pub handler: String,
    /// Temporary credentials of the function's role that stay as they are; `None` when it has no role.
    pub credentials: Option<Credentials>,
    /// Where those come from that do not; goes before `credentials`.
    pub role: Option<RoleSource>,
}

impl FunctionConfig {
    /// A function with the platform's defaults.
    #[must_use]
    pub fn new(name: impl Into<String>, platform: &'static dyn Platform) -> Self {
        let defaults = platform.defaults();
        Self {
            name: name.into(),
            platform,
            mode: Mode::default(),
            entrypoint: None,
            cmd: None,
            env: Vec::new(),
            user: None,
            userns: false,
            working_dir: None,
            port: None,
            memory_mib: defaults.memory_mib,
            cpu_millis: 0,
            pids: None,
            writable: Writable::default(),
            writable_bytes: DEFAULT_DISK_BYTES,
            writable_inodes: 0,
            tmp_bytes: DEFAULT_DISK_BYTES,
            tmp_inodes: 0,
            read_only: false,
            network: Network::default(),
            acceleration: false,
            timeout: defaults.timeout,
            websocket_idle: None,
            start_deadline: None,
            stop_grace: DEFAULT_STOP_GRACE,
            callbacks: Callbacks::default(),
            health_check: None,
            http_event: None,
            concurrency: 1,
            session_affinity: None,
            freeze: true,
            asynchronous: AsyncOptions::default(),
            metrics_period: None,
            region: defaults.region.to_owned(),
            account_id: defaults.account_id.to_owned(),
            app_id: defaults.app_id.to_owned(),
            namespace: defaults.namespace.to_owned(),
            version: defaults.version.to_owned(),
            handler: defaults.handler.to_owned(),
            credentials: None,
            role: None,
        }
    }

    /// The port where its server listens.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port.unwrap_or(self.platform.defaults().port)
    }

    /// How long it may take until its server listens.
    #[must_use]
    pub fn start_deadline(&self) -> Duration {
        self.start_deadline.unwrap_or(self.platform.defaults().start_deadline)
    }

    /// How long a WebSocket may be idle; `None` where its platform has no such limit.
    #[must_use]
    pub fn websocket_idle(&self) -> Option<Duration> {
        let otherwise = self.platform.defaults().websocket_idle?;
        Some(self.websocket_idle.unwrap_or(otherwise))
    }

    /// Checks it against its platform's rules.
    ///
    /// # Errors
    /// `InvalidFunction` with every fault found.
    pub fn validate(&self) -> Result<()> {
        validate::validate(self)
    }

    /// What its platform advises against, given the packed size of its image in bytes. For callers
    /// to show; nothing of it keeps the function from starting.
    #[must_use]
    pub fn image_warnings(&self, packed_bytes: u64) -> Vec<Warning> {
        advice::image(self, packed_bytes)
    }
}

/// Variables are shown by their names alone: users keep secrets in them.
impl fmt::Debug for FunctionConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.env.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("FunctionConfig")
            .field("name", &self.name)
            .field("platform", &self.platform)
            .field("entrypoint", &self.entrypoint)
            .field("cmd", &self.cmd)
            .field("env", &names)
            .field("user", &self.user)
            .field("working_dir", &self.working_dir)
            .field("port", &self.port)
            .field("memory_mib", &self.memory_mib)
            .field("cpu_millis", &self.cpu_millis)
            .field("pids", &self.pids)
            .field("writable", &self.writable)
            .field("writable_bytes", &self.writable_bytes)
            .field("tmp_bytes", &self.tmp_bytes)
            .field("read_only", &self.read_only)
            .field("acceleration", &self.acceleration)
            .field("timeout", &self.timeout)
            .field("websocket_idle", &self.websocket_idle)
            .field("start_deadline", &self.start_deadline)
            .field("stop_grace", &self.stop_grace)
            .field("mode", &self.mode)
            .field("callbacks", &self.callbacks)
            .field("health_check", &self.health_check)
            .field("http_event", &self.http_event)
            .field("concurrency", &self.concurrency)
            .field("session_affinity", &self.session_affinity)
            .field("freeze", &self.freeze)
            .field("asynchronous", &self.asynchronous)
            .field("region", &self.region)
            .field("account_id", &self.account_id)
            .field("app_id", &self.app_id)
            .field("namespace", &self.namespace)
            .field("version", &self.version)
            .field("handler", &self.handler)
            .field("credentials", &self.credentials)
            .field("role", &self.role)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_names_of_variables_and_no_values() {
        let mut config = FunctionConfig::new("resize", crate::platform::fc());
        config.env.push(("DB_PASSWORD".to_owned(), "hunter2".to_owned()));
        let shown = format!("{config:?}");
        assert!(shown.contains("DB_PASSWORD") && !shown.contains("hunter2"), "{shown}");
    }
}
