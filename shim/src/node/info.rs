//! What a node tells of its functions.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize, Serializer};

use super::deployment::Scaling;
use crate::FunctionConfig;
use crate::pool::{Member, PoolStatus};

/// Whether a function can be called (the words are FC's).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FunctionState {
    /// Its first revision is being made, or being started after a restart of the node.
    Pending,
    /// The same of a function with image acceleration: what its start reads is being recorded.
    Preparing,
    /// It takes calls.
    Active,
    /// It was deployed and could not be started again.
    Failed,
}

/// How the last deploy went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpdateStatus {
    /// It goes on.
    InProgress,
    /// Its revision is the current one, or was.
    Successful,
    /// Its revision never took calls.
    Failed,
}

/// The last deploy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastUpdate {
    /// The revision that it made, or was to make.
    pub revision: u64,
    /// How it went.
    pub status: UpdateStatus,
    /// Why it failed.
    pub reason: Option<String>,
}

/// A function of a node.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct FunctionInfo {
    /// scf namespace or fc 2.0 service.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its platform's name.
    pub platform: &'static str,
    /// Whether it can be called.
    pub state: FunctionState,
    /// The revision that takes calls.
    pub revision: Option<u64>,
    /// Since when that is deployed, in milliseconds since 1970.
    #[serde(rename = "deployed_unix_ms", serialize_with = "unix_ms")]
    pub deployed: Option<SystemTime>,
    /// Its image as it was named.
    pub image: Option<String>,
    /// The image's digest, which stays what it was when the name's meaning changes.
    pub digest: Option<String>,
    /// Memory of an instance in MiB.
    pub memory_mib: u32,
    /// Calls that an instance works on at once.
    pub concurrency: u32,
    /// Time limit of a call in seconds.
    pub timeout_s: u64,
    /// How many instances it may have.
    pub scaling: Scaling,
    /// What it has now.
    pub instances: PoolStatus,
    /// Calls that have ended since the node has it.
    pub calls: u64,
    /// The last deploy.
    pub last_update: Option<LastUpdate>,
}

fn unix_ms<S: Serializer>(time: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
    time.map(millis).serialize(serializer)
}

/// Milliseconds since 1970; 0 before.
pub(super) fn millis(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Where an instance is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InstanceState {
    /// It takes no calls yet.
    Starting,
    /// It takes calls.
    Ready,
    /// It gets no more calls.
    Leaving,
}

/// An instance of a function of a node.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct InstanceInfo {
    /// Its id; `None` as long as it starts.
    pub id: Option<String>,
    /// scf namespace or fc 2.0 service.
    pub namespace: String,
    /// The function's name.
    pub function: String,
    /// The revision that it is of.
    pub revision: u64,
    /// Where it is in its life.
    pub state: InstanceState,
    /// When its start began, in milliseconds since 1970.
    #[serde(rename = "since_unix_ms", serialize_with = "unix_ms")]
    pub since: Option<SystemTime>,
    /// Calls that it works on.
    pub running: usize,
    /// Whether it is frozen, for it has nothing to do.
    pub frozen: bool,
    /// Memory that it uses now, in bytes.
    pub memory_bytes: u64,
    /// The most that it has used.
    pub memory_peak_bytes: u64,
    /// CPU time that it has used, in milliseconds.
    pub cpu_ms: u64,
}

impl InstanceInfo {
    pub(super) fn of(config: &FunctionConfig, revision: u64, member: Member, leaves: bool) -> Self {
        let state = if leaves || member.leaving { InstanceState::Leaving } else { InstanceState::Ready };
        Self {
            id: Some(member.id),
            state,
            since: Some(member.since),
            running: member.running,
            frozen: member.frozen,
            memory_bytes: member.stats.memory_bytes,
            memory_peak_bytes: member.stats.memory_peak_bytes,
            cpu_ms: u64::try_from(member.stats.cpu.as_millis()).unwrap_or(u64::MAX),
            ..Self::starting(config, revision)
        }
    }

    pub(super) fn starting(config: &FunctionConfig, revision: u64) -> Self {
        Self {
            id: None,
            namespace: config.namespace.clone(),
            function: config.name.clone(),
            revision,
            state: InstanceState::Starting,
            since: None,
            running: 0,
            frozen: false,
            memory_bytes: 0,
            memory_peak_bytes: 0,
            cpu_ms: 0,
        }
    }
}

/// Something that happened to a function.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct NodeEvent {
    /// When, in milliseconds since 1970.
    pub unix_ms: u64,
    /// scf namespace or fc 2.0 service.
    pub namespace: String,
    /// The function's name.
    pub function: String,
    /// What.
    #[serde(flatten)]
    pub kind: NodeEventKind,
}

impl NodeEvent {
    pub(super) fn new(config: &FunctionConfig, kind: NodeEventKind) -> Self {
        let unix_ms = millis(SystemTime::now());
        Self { unix_ms, namespace: config.namespace.clone(), function: config.name.clone(), kind }
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum NodeEventKind {
    /// A revision is being made.
    Deploying {
        /// Its number.
        revision: u64,
        /// Its image.
        image: String,
    },
    /// A revision takes calls from now on.
    Deployed {
        /// Its number.
        revision: u64,
    },
    /// A revision never took calls.
    DeployFailed {
        /// Its number.
        revision: u64,
        /// Why.
        reason: String,
    },
    /// The function is gone.
    Deleted,
}
