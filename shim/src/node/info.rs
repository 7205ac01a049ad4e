//! What a node tells of its functions.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize, Serializer};

use super::deployment::Scaling;
use crate::FunctionConfig;
use crate::pool::PoolStatus;

/// Whether a function can be called (the words are FC's).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FunctionState {
    /// Its first revision is being made, or being started after a restart of the node.
    Pending,
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
