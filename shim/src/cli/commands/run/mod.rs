//! `skiff run`: from an image to answered invocations, and to nothing left behind.

mod event;
mod job;
mod serve;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::{FutureExt as _, TryFutureExt as _};
use rustix::process::{Resource, getrlimit, setrlimit};
use skiff::api::{ApiOptions, Function};
use skiff::function::file::{FileOptions, FunctionFile};
use skiff::pool::{Jobs, Pool};
use skiff::{
    CgroupParent, FunctionConfig, Image, Instance, InvocationKind, Mode, PullOptions, Runtime,
    RuntimeOptions, Source, State, Timeline, Warning,
};

use super::{absolute, require_root, variable};
use crate::cli::args::{Global, RunArgs, source};
use crate::cli::console::{Console, Logs, Progress, timeline};
use crate::cli::failure::Failure;
use crate::cli::interrupt::Interrupts;
use serve::Listeners;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

/// All that the arguments say, read and checked before anything is done.
struct Plan {
    source: Source,
    options: PullOptions,
    config: Arc<FunctionConfig>,
    /// The event to answer; `None` serves.
    event: Option<Bytes>,
    api: ApiOptions,
    /// Of the function's file.
    warnings: Vec<Warning>,
}

/// What every step of a run needs.
struct Run<'a> {
    args: &'a RunArgs,
    console: Console,
    interrupts: Interrupts,
    runtime: Arc<Runtime>,
}

/// Runs the function as the arguments say. However it ends, the runtime is shut down.
pub(crate) async fn run(global: &Global, args: &RunArgs, console: Console) -> Result<ExitCode, Failure> {
    require_root()?;
    let plan = Plan::new(args)?;
    let options = RuntimeOptions {
        state_dir: absolute(&global.state_dir)?,
        run_dir: absolute(&global.run_dir)?,
        keeper: global.keeper.as_deref().map(absolute).transpose()?,
        lasting: None,
        network: args.network.options(),
        containers_ahead: 0,
        cgroup: CgroupParent::Auto,
    };
    raise_open_files();
    let interrupts = Interrupts::install()?;
    let runtime = interrupts.or(Runtime::open(options)).await?.map_err(skiff::Error::from)?;
    let run = Run { args, console, interrupts, runtime };
    let result = Box::pin(run.to_the_end(plan)).await;
    let cleaned = run.runtime.shutdown().await.map_err(|e| Failure::from(skiff::Error::from(e)));
    match (result, cleaned) {
        (Err(failure), Err(left)) => {
            // Two failures: the first is the one that is told last and decides.
            console.fail(&left);
            Err(failure)
        }
        (Err(failure), Ok(())) => Err(failure),
        (Ok(_), Err(left)) => Err(left),
        (Ok(code), Ok(())) => Ok(code),
    }
}

/// Open files that the proxy's connections need at most: two each, and some for everything else.
const OPEN_FILES: u64 = 32 * 1024;

/// Lifts the soft limit of open files towards what the proxy may need: the usual 1024 are gone with
/// 500 requests at once. The function has its own limit.
pub(crate) fn raise_open_files() {
    let mut limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(OPEN_FILES, |maximum| maximum.min(OPEN_FILES));
    if limit.current.is_some_and(|current| current < wanted) {
        limit.current = Some(wanted);
        // As many as there are will do otherwise.
        let _ = setrlimit(Resource::Nofile, limit);
    }
}

/// The function of a file.
fn read(path: &Path, service: Option<&str>) -> Result<FunctionFile, Failure> {
    let lookup = |name: &str| std::env::var(name).ok();
    Ok(FunctionFile::read(path, FileOptions { service, lookup: Some(&lookup) })?)
}

impl Plan {
    fn new(args: &RunArgs) -> Result<Self, Failure> {
        let file = args.file.as_deref().map(|path| read(path, args.service.as_deref())).transpose()?;
        let (of_file, config, warnings) = match file {
            Some(file) => (file.image, Some(file.config), file.warnings),
            None => (None, None, Vec::new()),
        };
        let image = args.image.clone().or(of_file).ok_or_else(|| {
            Failure::usage("the file names no image").advise("add one to it, or give it as an argument")
        })?;
        let source = source(&image)?;
        let mut options = args.source.pull_options(variable)?;
        options.policy = args.pull.into();
        let mut config = args.function.resolve(&image, config, &args.args, variable)?;
        if let Some(network) = args.network.network {
            config.network = network.into();
        }
        options.limits = config.platform.image_limits();
        let limit = config.platform.limits().event_bytes;
        let event = args.event.as_ref().map(|event| event.read(limit)).transpose()?;
        let event = match (&args.trigger, event) {
            (Some(trigger), Some(message)) => Some(trigger.event(config.platform, &message)?),
            (_, event) => event,
        };
        let api = args.api.options()?;
        config.asynchronous = api.asynchronous.or(&config.asynchronous);
        Ok(Self { source, options, config: Arc::new(config), event, api, warnings })
    }

    fn kind(&self) -> InvocationKind {
        if self.event.is_some() { InvocationKind::Event } else { InvocationKind::Http }
    }
}

impl Run<'_> {
    async fn to_the_end(&self, mut plan: Plan) -> Result<ExitCode, Failure> {
        for warning in &plan.warnings {
            self.console.warn(warning);
        }
        // Before the pull: an address in use is told at once.
        let listeners = match plan.event {
            Some(_) => None,
            None => Some(Listeners::open(self.args, &self.runtime, plan.config.mode).await?),
        };
        let image = self.pull(&mut plan).await?;
        for warning in plan.config.image_warnings(image.packed_bytes) {
            self.console.warn(&warning);
        }
        let Some(event) = plan.event.clone() else {
            let Some(listeners) = listeners else { return Ok(ExitCode::SUCCESS) };
            return match plan.config.mode {
                Mode::Job => Box::pin(self.serve_jobs(plan, image, listeners)).await,
                _ => Box::pin(self.serve_pool(plan, image, listeners)).await,
            };
        };
        if plan.config.mode == Mode::Job {
            return Box::pin(self.work(&plan, &image)).await;
        }
        let instance = self.start(&plan, &image).await?;
        let result = self.answer(&instance, event).await;
        self.stop(instance.stop().map_ok(drop), result).await
    }

    /// Serves instances, the first of which is started at once.
    async fn serve_pool(&self, plan: Plan, image: Image, listeners: Listeners) -> Result<ExitCode, Failure> {
        let (platform, kind) = (plan.config.platform.name(), plan.kind());
        let logs = Arc::new(Logs(self.console));
        let pool = Pool::open(&self.runtime, image, &plan.config, logs, self.args.pool.options())?;
        let ends = pool.ends();
        let first = self.interrupts.or(pool.warm_up()).await;
        let first = first.and_then(|first| first.map_err(|error| Failure::of_start(&error, platform, kind)));
        let result = match first {
            Ok(first) => {
                self.tell_times(first.id(), &first.timeline());
                let id = first.id().to_owned();
                drop(first);
                self.serve(Arc::new(pool.clone()), Some(&id), self.ended(ends), listeners, plan.api).await
            }
            Err(failure) => Err(failure),
        };
        self.stop(pool.close().map(Ok), result).await
    }

    /// Serves the invoke API of a function that has a container for each event.
    async fn serve_jobs(&self, plan: Plan, image: Image, listeners: Listeners) -> Result<ExitCode, Failure> {
        let logs = Arc::new(Logs(self.console));
        let jobs = Jobs::open(&self.runtime, image, &plan.config, logs, self.args.pool.options())?;
        let jobs = Arc::new(jobs);
        let function = Arc::clone(&jobs) as Arc<dyn Function>;
        let result = self.serve(function, None, std::future::pending(), listeners, plan.api).await;
        self.stop(jobs.close().map(Ok), result).await
    }

    /// Waits until the only instance that there may be has ended by itself. Where there may be more, the
    /// end of one is told, and the next call starts another.
    async fn ended(&self, mut ends: broadcast::Receiver<(Arc<str>, State)>) -> (Arc<str>, State) {
        loop {
            let (id, state) = match ends.recv().await {
                Ok(end) => end,
                Err(RecvError::Lagged(_)) => continue,
                Err(RecvError::Closed) => return std::future::pending().await,
            };
            if self.args.pool.max_instances == 1 {
                return (id, state);
            }
            self.console.note(
                "instance_ended",
                || format!("instance {id} has ended by itself: {}", serve::how(state)),
                || serde_json::json!({ "instance": *id, "how": serve::how(state) }),
            );
        }
    }

    async fn pull(&self, plan: &mut Plan) -> Result<Image, Failure> {
        let progress = Progress::new(self.console);
        plan.options.observer = Some(progress.observer());
        let pulled = self.interrupts.or(self.runtime.store().pull(&plan.source, &plan.options)).await?;
        match pulled {
            Ok(image) => Ok(image),
            Err(error) => {
                let logs = Arc::new(Logs(self.console));
                let error = Instance::pull_failed_told(&plan.config, error, logs).await;
                Err(Failure::of_start(&error, plan.config.platform.name(), plan.kind()))
            }
        }
    }

    async fn start(&self, plan: &Plan, image: &Image) -> Result<Arc<Instance>, Failure> {
        let logs = Arc::new(Logs(self.console));
        let start = Box::pin(Instance::start(&self.runtime, image, &plan.config, logs));
        let instance = self
            .interrupts
            .or(start)
            .await?
            .map_err(|error| Failure::of_start(&error, plan.config.platform.name(), plan.kind()))?;
        self.tell_times(instance.id(), &instance.timeline());
        Ok(Arc::new(instance))
    }

    fn tell_times(&self, instance: &str, line: &Timeline) {
        self.console.note(
            "timeline",
            || timeline(line),
            || {
                let mut fields = serde_json::to_value(line).unwrap_or_default();
                fields["instance"] = instance.into();
                fields
            },
        );
    }

    /// Stops what runs with its grace, or at once when a second signal comes: the runtime's
    /// shutdown kills what still runs. The run's own failure goes before one to stop.
    async fn stop(
        &self,
        stopping: impl Future<Output = skiff::Result<()>>,
        result: Result<ExitCode, Failure>,
    ) -> Result<ExitCode, Failure> {
        let stopped = tokio::select! {
            stopped = stopping => stopped,
            _ = self.interrupts.second() => Ok(()),
        };
        let code = result?;
        stopped?;
        Ok(code)
    }
}
