//! How a node is opened.

use std::fmt;
use std::path::PathBuf;

use super::{LogFiles, NodeLimits, NodeLogs};
use crate::api::AsyncOptions;
use crate::telemetry::TraceExport;
use crate::{PullOptions, RuntimeOptions};

/// How a node works.
#[derive(Clone)]
pub struct NodeOptions {
    /// Where it keeps its things. The instances of a lasting run ([`RuntimeOptions::lasting`]) outlive this
    /// process, and the next node of that name takes them over; those of another end with it.
    pub runtime: RuntimeOptions,
    /// How images are pulled.
    pub pull: PullOptions,
    /// Where log lines go.
    pub logs: NodeLogs,
    /// A directory with a socket for each function, `NAME.sock` (fc) or `NAMESPACE.NAME.sock` (fc2, scf), to
    /// pass HTTP requests on; `None` has none.
    pub sockets: Option<PathBuf>,
    /// A group whose members may connect to those, beside root and this process's user.
    pub socket_group: Option<u32>,
    /// A directory with a record of each invocation and pull, for billing; see [`meter`](crate::meter).
    /// `None` keeps none.
    pub metering: Option<PathBuf>,
    /// What becomes of asynchronous calls.
    pub asynchronous: AsyncOptions,
    /// What all functions may have together.
    pub limits: NodeLimits,
    /// Where spans of invocations go, for OpenTelemetry.
    pub trace_export: Option<TraceExport>,
}

/// Containers that a node has made ahead, unless it is told otherwise.
const CONTAINERS_AHEAD: usize = 4;

impl NodeOptions {
    /// A node whose instances end with it, with its logs in the state directory and four containers made ahead; without
    /// sockets, records and limits.
    #[must_use]
    pub fn new(state_dir: impl Into<PathBuf>, run_dir: impl Into<PathBuf>) -> Self {
        Self {
            runtime: RuntimeOptions {
                containers_ahead: CONTAINERS_AHEAD,
                ..RuntimeOptions::new(state_dir, run_dir)
            },
            pull: PullOptions::default(),
            logs: NodeLogs::Files(LogFiles::default()),
            sockets: None,
            socket_group: None,
            metering: None,
            asynchronous: AsyncOptions::default(),
            limits: NodeLimits::default(),
            trace_export: None,
        }
    }
}

impl fmt::Debug for NodeOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeOptions").field("runtime", &self.runtime).finish_non_exhaustive()
    }
}
