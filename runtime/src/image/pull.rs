//! Bringing an image into the store.
//!
//! ```text
//! source ─ resolve ─ for each layer at once: claim ─ fetch + unpack ─ commit ─ record
//!                                              └ someone else has it: wait until it is there
//! ```
//! A layer's task takes a permit first and then tries for the layer's lock, and gives the permit back
//! while someone else has that. So nobody ever holds one thing and waits for another, and two pulls
//! with common layers cannot block each other.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::deadline::Deadline;
use super::limits::{Budget, Limits};
use super::manifest;
use super::progress::{Counted, Progress, Watch};
use super::registry::Client;
use super::resolve::{self, Location, Plan};
use super::source::Source;
use super::stop::Stop;
use super::store::{Claim, Ingest, Record, Share, Store};
use super::{Described, Image, PullEvent, PullOptions, PullPolicy, PullTimings, blocking, download, unpack};
use crate::{Error, ErrorKind, Fault, Result};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;

/// How often to ask for a layer that someone else makes.
const POLL: Duration = Duration::from_millis(25);

impl Store {
    /// Brings an image into the store, or finds it there. Any number of calls may run at once, in
    /// this and other processes: each layer is fetched once. Dropping the future stops the pull and
    /// removes layers that are not complete; packed bytes of large ones are kept for the next.
    ///
    /// Needs a tokio runtime with time and network.
    ///
    /// # Errors
    /// The kinds about references, credentials, registries and images; `DiskFull`, `Host`.
    pub async fn pull(self: &Arc<Self>, source: &Source, options: &PullOptions) -> Result<Image> {
        let begin = Instant::now();
        if let Some(image) = self.cached(source, options.policy).await? {
            check_described(&image, &options.limits)?;
            return Ok(told(image, begin, options));
        }
        // On the heap: this future is held by those of all callers.
        Box::pin(self.fetch_as(source, source.name(), options)).await
    }

    /// Brings an image into the store under a name, whatever is there.
    pub(crate) async fn fetch_as(
        self: &Arc<Self>,
        source: &Source,
        name: String,
        options: &PullOptions,
    ) -> Result<Image> {
        let begin = Instant::now();
        let deadline = Deadline::new(options.timeout);
        // Until the lease names them, nothing else keeps the documents of a new image.
        let store = Arc::clone(self);
        let documents = blocking(move || store.hold_documents()).await?;
        let resolved = deadline
            .within("its layers were not known", Box::pin(resolve::source(self, source, options, deadline)))
            .await?;
        let record = Record::of(name, &resolved);
        let (store, parts) = (Arc::clone(self), record.parts());
        let lease = blocking(move || store.lease(&parts)).await?;
        drop(documents);
        let resolve = begin.elapsed();
        let watch = Watch::new(options);
        watch.tell(PullEvent::Resolved {
            digest: resolved.digest.to_string(),
            layers: resolved.plans.len(),
            bytes: resolved.packed_bytes(),
        });
        let fetched = Box::pin(self.layers(&resolved.plans, options, &watch, &deadline)).await;
        self.settle_later();
        fetched?;
        let store = Arc::clone(self);
        let diff_ids = resolved.configuration.diff_ids;
        let (record, layers) = blocking(move || {
            let layers = store.image_layers(&diff_ids)?;
            store.put_record(&record).map(|()| (record, layers))
        })
        .await?;
        let last_byte = watch.last_byte().unwrap_or(begin + resolve);
        let timings = PullTimings {
            resolve,
            pull: last_byte.duration_since(begin).saturating_sub(resolve),
            unpack: last_byte.elapsed(),
        };
        Ok(Image {
            name: record.name,
            digest: record.manifest,
            layers,
            config: resolved.configuration.config,
            packed_bytes: record.packed_bytes,
            described: Described { layers: record.diff_ids.len() as u64, attestation: record.attestation },
            timings,
            lease,
        })
    }

    /// An image for which the source need not be asked: no network, no credentials.
    async fn cached(self: &Arc<Self>, source: &Source, policy: PullPolicy) -> Result<Option<Image>> {
        let fixed = matches!(source, Source::Registry(reference) if reference.digest().is_some());
        if policy == PullPolicy::Always && !fixed {
            return Ok(None);
        }
        let (store, name) = (Arc::clone(self), source.name());
        let found = blocking(move || store.stored(&name)).await?;
        if found.is_none() && policy == PullPolicy::Never {
            let message = format!("the image {source} is not in the store, and pulling is off");
            return Err(Error::new(ErrorKind::ImageNotFound, message)
                .advise("pull or import it first, or allow it to be pulled"));
        }
        Ok(found)
    }

    /// Makes all layers complete. After an error the others are stopped and waited for, so that
    /// nothing half-made is left when the error is told.
    async fn layers(
        self: &Arc<Self>,
        plans: &[Plan],
        options: &PullOptions,
        watch: &Watch,
        deadline: &Deadline,
    ) -> Result<()> {
        let (stopper, stop) = Stop::pair();
        let shared = Shared {
            store: Arc::clone(self),
            share: self.share(),
            watch: watch.clone(),
            budget: Arc::new(Budget::until(options.limits, stop.clone())),
            stop,
        };
        // Local files are read by threads, which this stops even if the pull is dropped.
        let _guard = StopGuard(watch);
        let mut unique: Vec<&Plan> = Vec::with_capacity(plans.len());
        for plan in plans {
            if !unique.iter().any(|known| known.expected.diff_id == plan.expected.diff_id) {
                unique.push(plan);
            }
        }
        let mut tasks: FuturesUnordered<_> = unique.into_iter().map(|plan| shared.layer(plan)).collect();
        let mut first = Ok(());
        loop {
            let result = tokio::select! {
                result = tasks.next() => result,
                () = deadline.passed(), if first.is_ok() => Some(Err(deadline.error(&how_far(plans, watch)))),
            };
            let Some(result) = result else { return first };
            if let (Err(error), Ok(())) = (result, &first) {
                first = Err(error);
                watch.stop();
                // No layer may be listening any more.
                let _ = stopper.send(true);
            }
        }
    }
}

/// What a pull came to before its time was over.
fn how_far(plans: &[Plan], watch: &Watch) -> String {
    let all: u64 = plans.iter().map(|plan| plan.expected.size).sum();
    format!("{} of {all} bytes of {} layers had come", watch.bytes(), plans.len())
}

/// Holds an image that is here to limits that may be others than those of its pull.
fn check_described(image: &Image, limits: &Limits) -> Result<()> {
    limits.check_layers(image.described.layers)?;
    limits.check_packed(image.packed_bytes)?;
    manifest::check_attestation(image.described.attestation.as_ref(), limits)
}

/// The events of an image that needed nothing.
fn told(mut image: Image, begin: Instant, options: &PullOptions) -> Image {
    image.timings.resolve = begin.elapsed();
    Watch::new(options).tell(PullEvent::Resolved {
        digest: image.digest.clone(),
        layers: image.layer_count(),
        bytes: image.packed_bytes,
    });
    image
}

struct StopGuard<'a>(&'a Watch);

impl Drop for StopGuard<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// What the tasks of one pull share.
struct Shared<'a> {
    store: Arc<Store>,
    share: Share<'a>,
    watch: Watch,
    budget: Arc<Budget>,
    stop: Stop,
}

impl Shared<'_> {
    async fn layer(&self, plan: &Plan) -> Result<()> {
        let digest = plan.expected.digest.as_ref().unwrap_or(&plan.expected.diff_id).to_string();
        let bytes = plan.expected.size;
        loop {
            let permit = tokio::select! {
                biased;
                () = self.stop.asked() => return Err(Stop::error()),
                permit = self.share.permit() => permit?,
            };
            match self.store.claim(&plan.expected.diff_id)? {
                Claim::Committed => {
                    self.watch.tell(PullEvent::LayerCached { digest, bytes });
                    return Ok(());
                }
                Claim::Mine(ingest) => {
                    self.watch.tell(PullEvent::LayerStarted { digest: digest.clone(), bytes });
                    let progress = Progress::new(self.watch.clone(), digest.clone());
                    match self.make(plan, ingest, progress).await {
                        Err(error) if is_elsewhere(plan, &error) => continue,
                        made => made?,
                    }
                    self.watch.tell(PullEvent::LayerDone { digest });
                    return Ok(());
                }
                Claim::Busy => drop(permit),
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Fetches and unpacks. The thread owns the claim: if this future is dropped, the thread sees its
    /// input end and removes what it made.
    async fn make(&self, plan: &Plan, ingest: Ingest, progress: Progress) -> Result<()> {
        match &plan.location {
            Location::File(file) => {
                let part = file.open()?;
                let input = move || Ok(Counted::new(part, progress));
                self.unpack(plan, ingest, input).await.map_err(|failure| failure.error)
            }
            Location::Registry(client) => {
                let failure = match self.fetch(plan, client, ingest, progress.clone()).await {
                    Ok(()) => return Ok(()),
                    Err(failure) => failure,
                };
                match failure.ingest {
                    // What an earlier pull kept may have been damaged since.
                    Some(ingest) => {
                        self.fetch(plan, client, ingest, progress).await.map_err(|failure| failure.error)
                    }
                    None => Err(failure.error),
                }
            }
        }
    }

    async fn fetch(
        &self,
        plan: &Plan,
        client: &Client,
        mut ingest: Ingest,
        progress: Progress,
    ) -> Result<(), Failed> {
        let digest = plan.expected.digest.as_ref().unwrap_or(&plan.expected.diff_id);
        let partial = ingest.partial(digest, plan.expected.size)?;
        let (sink, stream) = download::channel(partial)?;
        let unpacked = self.unpack(plan, ingest, move || Ok(stream));
        let fed = async {
            tokio::select! {
                () = download::feed(client, digest, plan.expected.size, sink, progress) => {}
                () = self.stop.asked() => {}
            }
        };
        tokio::join!(unpacked, fed).0
    }

    async fn unpack<R: std::io::Read + Send>(
        &self,
        plan: &Plan,
        ingest: Ingest,
        input: impl FnOnce() -> Result<R> + Send + 'static,
    ) -> Result<(), Failed> {
        let (expected, budget) = (plan.expected.clone(), Arc::clone(&self.budget));
        let unpacked = blocking(move || {
            let root = ingest.prepare()?;
            let recipe = unpack::Recipe::new(ingest.recipe()?)?.with_implied(ingest.beside()?);
            Ok(match unpack::unpack(input()?, &expected, &budget, root, Some(recipe)) {
                Ok(made) => {
                    let record = expected.record(made.archive_bytes);
                    ingest.commit(&record, made.replaced).map_err(Failed::from)
                }
                Err(error) => Err(failed(error, ingest)),
            })
        });
        unpacked.await?
    }
}

/// Whether a layer that is wrong came from a mirror, and another host is left to be asked.
fn is_elsewhere(plan: &Plan, error: &Error) -> bool {
    let wrong = error.kind() == ErrorKind::DigestMismatch || error.fault() == Fault::Image;
    match (&plan.location, &plan.expected.digest) {
        (Location::Registry(client), Some(digest)) => wrong && client.distrust(digest),
        _ => false,
    }
}

/// A layer that was not made.
struct Failed {
    error: Error,
    /// The right to make it, where it is worth another attempt.
    ingest: Option<Ingest>,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { error, ingest: None }
    }
}

/// Keeps what came where it was cut off, and lets go of it where it was wrong.
fn failed(error: Error, ingest: Ingest) -> Failed {
    match error.kind() {
        ErrorKind::RegistryUnreachable
        | ErrorKind::RegistryThrottled
        | ErrorKind::RegistryFailed
        | ErrorKind::Unauthorized
        | ErrorKind::Internal => {
            ingest.keep_packed();
            error.into()
        }
        _ if ingest.has_resumed() => Failed { error, ingest: Some(ingest) },
        _ => error.into(),
    }
}
