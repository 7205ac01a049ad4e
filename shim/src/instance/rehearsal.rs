//! A start for its own sake: what it touches is recorded for later starts.

use std::sync::Arc;
use std::time::Duration;

use skiff_runtime::{Acceleration, Recorded, Runtime};

use super::LogLine;
use super::logs::{LogStream, Logs};
use super::readiness::{NotReady, first_connection};
use super::start::{Launch, command};
use crate::{Error, ErrorKind, FunctionConfig, Image, Result};

/// What a rehearsal found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rehearsal {
    /// Whether the server listened in time. If not, what was touched until then is kept all the same.
    pub listened: bool,
    /// What was kept.
    pub recorded: Recorded,
}

pub(super) async fn rehearse(
    runtime: &Runtime,
    image: &Image,
    config: &Arc<FunctionConfig>,
    patience: Duration,
) -> Result<Rehearsal> {
    config.validate()?;
    let id: Arc<str> = config.platform.new_instance_id().into();
    let launch = Launch::new(Arc::clone(&id), config, command(config, image));
    let mut spec = launch.spec();
    spec.acceleration = Acceleration::Record;
    let container = runtime.start(image, spec).await?;
    // A command whose output nobody reads would stand still.
    let logs = Logs::new(id, config.platform.limits().log_line_bytes, Arc::new(|_: &LogLine| ()));
    if let Some((stdout, stderr)) = container.take_output() {
        logs.follow(LogStream::Stdout, stdout);
        logs.follow(LogStream::Stderr, stderr);
    }
    let connected = first_connection(&container, config.port(), launch.started + patience).await;
    let listened = match connected {
        Err(NotReady::Exited(exit)) => return Err(launch.exited(exit)),
        Err(NotReady::Lost(error)) => return Err(error.into()),
        connected => connected.is_ok(),
    };
    container.ready();
    let recorded = container.recorded().await;
    container.stop(Duration::ZERO).await?;
    let recorded = recorded.ok_or_else(nothing)?;
    Ok(Rehearsal { listened, recorded })
}

fn nothing() -> Error {
    Error::new(ErrorKind::StartFailed, "nothing was recorded of the start")
        .advise("the host must allow fanotify: see --log-level debug")
}
