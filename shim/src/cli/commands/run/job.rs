//! One event for a function without a server.

use std::process::ExitCode;
use std::sync::Arc;

use skiff::{EventOutcome, Image, Job};

use super::{Plan, Run};
use crate::cli::console::Logs;
use crate::cli::failure::Failure;

impl Run<'_> {
    /// Runs a container for the event to its end, which decides about the exit code. A signal cancels it:
    /// SIGTERM, the function's grace, SIGKILL.
    pub(super) async fn work(&self, plan: &Plan, image: &Image) -> Result<ExitCode, Failure> {
        let event = plan.event.clone().unwrap_or_default();
        let logs = Arc::new(Logs(self.console));
        let start = Job::start(&self.runtime, image, &plan.config, logs, event);
        let job = self
            .interrupts
            .or(start)
            .await?
            .map_err(|error| Failure::of_start(&error, plan.config.platform.name(), plan.kind()))?;
        self.tell_times(job.id(), &job.timeline());
        let accepted = job.accepted();
        if let Some(answer) = &accepted {
            self.write(answer).await?;
        }
        let outcome = self.end_of(&job).await?;
        if accepted.is_none() {
            self.write(&outcome).await?;
        }
        match Failure::of_event(&outcome) {
            Some(failure) => Err(failure),
            None => Ok(ExitCode::SUCCESS),
        }
    }

    async fn end_of(&self, job: &Job) -> Result<EventOutcome, Failure> {
        tokio::select! {
            outcome = job.finish() => return Ok(outcome),
            _ = self.interrupts.first() => {}
        }
        tokio::select! {
            _ = job.cancel() => {}
            // The runtime's shutdown kills it.
            _ = self.interrupts.second() => {}
        }
        Err(Failure::interrupted(self.interrupts.first().await))
    }
}
