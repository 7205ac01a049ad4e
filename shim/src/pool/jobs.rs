//! Calls of a function without a server: a container for each event.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt as _};
use http::{Request, Response, StatusCode};
use skiff_runtime::Container;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::task::JoinSet;

use super::observe::{Member, Unwatched, Watch};
use super::refused::refuse_event;
use super::room::{Room, Share};
use super::{Known, PoolOptions, PoolStatus, Refusal};
use crate::api::Function;
use crate::instance::{LAST_LINES, LogSink, LogStream, Logs, Ties};
use crate::proxy::body::{self, Body};
use crate::{EventOutcome, FunctionConfig, Image, InvokeOptions, Job, Result, Runtime};

/// The containers of a function without a server. Those that run when it is dropped are killed.
pub struct Jobs {
    work: Arc<Work>,
    options: PoolOptions,
    places: Arc<Semaphore>,
    room: Option<Arc<Room>>,
    waiting: AtomicUsize,
    closed: watch::Sender<bool>,
    tasks: tokio::sync::Mutex<JoinSet<()>>,
}

/// What every container of it is made of.
struct Work {
    runtime: Arc<Runtime>,
    image: Image,
    config: Arc<FunctionConfig>,
    logs: Arc<dyn LogSink>,
    watch: Arc<dyn Watch>,
    /// Those that run, since when.
    running: Mutex<Vec<(SystemTime, Weak<Job>)>>,
    ties: Ties,
}

impl Jobs {
    /// Calls of `config`, at most `max_instances` at once; others wait as those of a
    /// [`Pool`](super::Pool) do. Nothing is kept without a call, whatever the options say.
    ///
    /// # Errors
    /// `InvalidFunction`.
    pub fn open(
        runtime: &Arc<Runtime>,
        image: Image,
        config: &Arc<FunctionConfig>,
        logs: Arc<dyn LogSink>,
        options: PoolOptions,
    ) -> Result<Self> {
        Self::open_known(runtime, image, config, logs, options, Known::default())
    }

    /// The same of a node.
    pub(crate) fn open_known(
        runtime: &Arc<Runtime>,
        image: Image,
        config: &Arc<FunctionConfig>,
        logs: Arc<dyn LogSink>,
        options: PoolOptions,
        known: Known,
    ) -> Result<Self> {
        config.validate()?;
        let (runtime, config, running) = (Arc::clone(runtime), Arc::clone(config), Mutex::default());
        let watch = known.watch.clone().unwrap_or_else(|| Arc::new(Unwatched));
        let ties = known.ties();
        let work = Work { runtime, image, config, logs, watch, running, ties };
        Ok(Self {
            work: Arc::new(work),
            options,
            places: Arc::new(Semaphore::new(options.max_instances.max(1))),
            room: known.room,
            waiting: AtomicUsize::new(0),
            closed: watch::Sender::new(false),
            tasks: tokio::sync::Mutex::default(),
        })
    }

    /// Lets a job that another process has started go on to its end, or its time limit. Nobody waits for its
    /// answer any more.
    pub(crate) fn go_on(job: Container, config: &Arc<FunctionConfig>, sink: Arc<dyn LogSink>) {
        let logs = Logs::new(job.id().into(), config.platform.limits().log_line_bytes, sink);
        if let Some((stdout, stderr)) = job.take_output() {
            logs.follow(LogStream::Stdout, stdout);
            logs.follow(LogStream::Stderr, stderr);
        }
        let left = config.timeout.saturating_sub(job.age());
        tokio::spawn(async move {
            if tokio::time::timeout(left, job.wait()).await.is_err() {
                let _ = job.stop(Duration::ZERO).await;
            }
            logs.drained(LAST_LINES).await;
        });
    }

    /// Takes no more events, and cancels those that run: SIGTERM, the function's grace, SIGKILL.
    pub async fn close(&self) {
        self.closed.send_replace(true);
        self.places.close();
        let mut tasks = self.tasks.lock().await;
        while tasks.join_next().await.is_some() {}
    }

    /// What there is now; a job is an instance that works on one event.
    #[must_use]
    pub fn status(&self) -> PoolStatus {
        let free = self.places.available_permits();
        let running = self.options.max_instances.max(1).saturating_sub(free);
        PoolStatus { running, waiting: self.waiting.load(Ordering::SeqCst), ..PoolStatus::default() }
    }

    /// Those that run. Reads what they use from their cgroups.
    pub(crate) fn members(&self) -> Vec<Member> {
        let running = self.work.running();
        let jobs = running.iter().filter_map(|(since, job)| Some((*since, job.upgrade()?)));
        let jobs: Vec<(SystemTime, Arc<Job>)> = jobs.collect();
        drop(running);
        let member = |(since, job): (SystemTime, Arc<Job>)| Member {
            id: job.id().to_owned(),
            since,
            leaving: false,
            running: 1,
            frozen: false,
            stats: job.stats(),
        };
        jobs.into_iter().map(member).collect()
    }

    /// A place for one more, with what is told of the wait for it.
    async fn place(&self) -> std::result::Result<Place, Refusal> {
        let begun = Instant::now();
        let (result, waited) = self.take().await;
        if waited {
            self.work.watch.waited(begun.elapsed());
        }
        if result.is_err() {
            self.work.watch.throttled();
        }
        result
    }

    async fn take(&self) -> (std::result::Result<Place, Refusal>, bool) {
        if let Some(place) = self.at_once() {
            return (Ok(place), false);
        }
        let waits = Waits::among(&self.waiting);
        if waits.others >= self.options.max_waiting {
            return (Err(Refusal::Throttled), false);
        }
        let place = async {
            let place = Arc::clone(&self.places).acquire_owned().await.ok()?;
            let share = match &self.room {
                Some(room) => Some(room.wait(self.memory_mib()).await),
                None => None,
            };
            Some(Place { _place: place, _share: share })
        };
        match tokio::time::timeout(self.options.patience, place).await {
            Ok(Some(place)) => (Ok(place), true),
            Ok(None) | Err(_) => (Err(Refusal::Throttled), true),
        }
    }

    fn at_once(&self) -> Option<Place> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        let share = match &self.room {
            // Who comes takes nothing from who waits.
            Some(room) => Some(room.try_take(self.memory_mib())?),
            None => None,
        };
        Some(Place { _place: place, _share: share })
    }

    fn memory_mib(&self) -> u64 {
        self.work.config.memory_mib.into()
    }

    async fn run(&self, event: Bytes, mut options: InvokeOptions) -> EventOutcome {
        let begun = Instant::now();
        let asked = options.clone();
        let refused = |refusal: Refusal| refuse_event(&self.work.config, &refusal, &asked, begun.elapsed());
        let place = match self.place().await {
            Ok(place) => place,
            Err(refusal) => return refused(refusal),
        };
        options.waited = begun.elapsed();
        let (answer, answered) = oneshot::channel();
        // Dropped with this call, which cancels the job.
        let (_caller, gone) = oneshot::channel::<()>();
        let (work, closed) = (Arc::clone(&self.work), self.closed.subscribe());
        let mut tasks = self.tasks.lock().await;
        while tasks.try_join_next().is_some() {}
        tasks.spawn(async move { work.job(place, event, options, answer, over(gone, closed)).await });
        drop(tasks);
        answered.await.unwrap_or(Err(Refusal::Throttled)).unwrap_or_else(refused)
    }
}

/// The right to one container, until it is dropped.
struct Place {
    _place: OwnedSemaphorePermit,
    _share: Option<Share>,
}

/// Who waits, counted until it is dropped.
struct Waits<'a> {
    waiting: &'a AtomicUsize,
    others: usize,
}

impl<'a> Waits<'a> {
    fn among(waiting: &'a AtomicUsize) -> Self {
        let others = waiting.fetch_add(1, Ordering::SeqCst);
        Self { waiting, others }
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Ready when the caller has gone, or everything is to end.
async fn over(caller: oneshot::Receiver<()>, mut closed: watch::Receiver<bool>) {
    tokio::select! {
        _ = caller => {}
        _ = closed.wait_for(|closed| *closed) => {}
    }
}

type Answer = oneshot::Sender<std::result::Result<EventOutcome, Refusal>>;

impl Work {
    fn running(&self) -> MutexGuard<'_, Vec<(SystemTime, Weak<Job>)>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more that runs; those that have ended are forgotten.
    fn note(&self, job: &Arc<Job>) {
        self.watch.started(&job.timeline());
        let mut running = self.running();
        running.retain(|(_, job)| job.strong_count() > 0);
        running.push((SystemTime::now(), Arc::downgrade(job)));
    }

    /// Runs one container for an event to its end, or until `over`. A caller that has gone needs no answer. Who
    /// has one finds the place free again, unless the container goes on.
    async fn job(
        &self,
        place: Place,
        event: Bytes,
        options: InvokeOptions,
        answer: Answer,
        over: impl Future<Output = ()>,
    ) {
        let logs = Arc::clone(&self.logs);
        let started = Job::start_with(&self.runtime, &self.image, &self.config, logs, event, options).await;
        let job = match started {
            Ok(job) => Arc::new(job.noted(self.ties.clone())),
            Err(error) => {
                self.watch.failed(&error);
                drop(place);
                return drop(answer.send(Err(Refusal::Start(Arc::new(error)))));
            }
        };
        self.note(&job);
        if let Some(accepted) = job.accepted() {
            let _ = answer.send(Ok(accepted));
            // The caller has its answer: that it goes ends nothing.
            let _ = job.finish().await;
            return;
        }
        let outcome = tokio::select! {
            outcome = job.finish() => outcome,
            () = over => job.cancel().await,
        };
        drop(place);
        let _ = answer.send(Ok(outcome));
    }
}

impl Function for Jobs {
    fn config(&self) -> &FunctionConfig {
        &self.work.config
    }

    fn longest(&self) -> Duration {
        self.options.patience + self.work.config.start_deadline() + self.work.config.timeout
    }

    fn places(&self) -> usize {
        self.options.places(&self.work.config)
    }

    fn invoke(&self, event: Bytes, options: InvokeOptions) -> BoxFuture<'_, EventOutcome> {
        self.run(event, options).boxed()
    }

    fn forward(&self, _: Option<SocketAddr>, _: Request<Body>) -> BoxFuture<'static, Response<Body>> {
        let text = "The function has no server: it takes events, by the invoke API.\n";
        let mut response = Response::new(body::full(text.into()));
        *response.status_mut() = StatusCode::NOT_FOUND;
        std::future::ready(response).boxed()
    }
}

impl fmt::Debug for Jobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jobs").field("function", &self.work.config.name).finish_non_exhaustive()
    }
}
