//! Bringing an image into the store.
//!
//! ```text
//! source ─ resolve ─ for each layer at once: claim ─ fetch + unpack ─ commit ─ record
//!                                              └ someone else has it: wait until it is there
//! ```
//! A layer's task takes a permit first and then tries for the layer's lock, and gives the permit back
//! while someone else has that. So nobody ever holds one thing and waits for another, and two pulls
//! with common layers cannot block each other.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::watch;

use super::config::{self, ImageConfig};
use super::digest::Digest;
use super::limits::{self, Budget};
use super::progress::{Counted, Progress, Watch};
use super::registry::Client;
use super::resolve::{self, Location, Plan, Resolved};
use super::source::{Reference, Source};
use super::store::{Claim, Ingest, Record, Store};
use super::{Image, PullEvent, PullOptions, PullTimings, blocking, download, layout, unpack};
use crate::{Error, ErrorKind, Result};

/// How often to ask for a layer that someone else makes.
const POLL: Duration = Duration::from_millis(25);

impl Store {
    /// Brings an image into the store, or finds it there. Any number of calls may run at once, in
    /// this and other processes: each layer is fetched once. Dropping the future stops the pull and
    /// removes layers that are not complete.
    ///
    /// Needs a tokio runtime with time and network.
    ///
    /// # Errors
    /// The kinds about references, credentials, registries and images; `DiskFull`, `Host`.
    pub async fn pull(self: &Arc<Self>, source: &Source, options: &PullOptions) -> Result<Image> {
        let begin = Instant::now();
        if let Source::Registry(reference) = source
            && let Some(image) = self.cached(reference)
        {
            return Ok(told(image, begin, options));
        }
        let resolved = match source {
            Source::Registry(reference) => resolve::registry(self, reference, options).await?,
            Source::OciLayout(dir, tag) => {
                resolve::layout(self, dir, tag.as_deref(), &options.limits).await?
            }
            Source::DockerArchive(file) => resolve::archive(self, file, options.limits).await?,
        };
        let resolve = begin.elapsed();
        let watch = Watch::new(options);
        watch.tell(PullEvent::Resolved {
            digest: resolved.digest.to_string(),
            layers: resolved.plans.len(),
            bytes: resolved.packed_bytes(),
        });
        let fetched = self.layers(&resolved.plans, options, &watch).await;
        self.settle_later();
        fetched?;
        let record = self.keep_record(source, &resolved).await?;
        let last_byte = watch.last_byte().unwrap_or(begin + resolve);
        let timings = PullTimings {
            resolve,
            pull: last_byte.duration_since(begin).saturating_sub(resolve),
            unpack: last_byte.elapsed(),
        };
        Ok(self.image(record, &resolved.configuration.diff_ids, resolved.configuration.config, timings))
    }

    async fn keep_record(self: &Arc<Self>, source: &Source, resolved: &Resolved) -> Result<Record> {
        let record = Record {
            name: source.to_string(),
            manifest: resolved.digest.to_string(),
            config: resolved.config_digest.to_string(),
            diff_ids: resolved.configuration.diff_ids.iter().map(Digest::to_string).collect(),
            packed_bytes: resolved.packed_bytes(),
        };
        let store = Arc::clone(self);
        blocking(move || store.put_record(&record).map(|()| record)).await
    }

    fn image(&self, record: Record, diff_ids: &[Digest], config: ImageConfig, timings: PullTimings) -> Image {
        Image {
            name: record.name,
            digest: record.manifest,
            config,
            layers: self.overlay_layers(diff_ids),
            packed_bytes: record.packed_bytes,
            timings,
        }
    }

    /// An image whose name has a digest and that is complete: no network, no credentials.
    fn cached(&self, reference: &Reference) -> Option<Image> {
        reference.digest()?;
        let record = self.record(&reference.to_string())?;
        let config = self.blob(&record.config.parse().ok()?, limits::MAX_CONFIG_BYTES)?;
        let configuration = config::parse(&config).ok()?;
        let complete = configuration.diff_ids.iter().all(|id| self.has_layer(id));
        complete.then(|| {
            self.image(record, &configuration.diff_ids, configuration.config, PullTimings::default())
        })
    }

    /// Makes all layers complete. After an error the others are stopped and waited for, so that
    /// nothing half-made is left when the error is told.
    async fn layers(self: &Arc<Self>, plans: &[Plan], options: &PullOptions, watch: &Watch) -> Result<()> {
        let (stop, stopped) = watch::channel(false);
        let shared = Shared {
            store: Arc::clone(self),
            watch: watch.clone(),
            budget: Arc::new(Budget::new(options.limits)),
            stopped,
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
        while let Some(result) = tasks.next().await {
            if let (Err(error), Ok(())) = (result, &first) {
                first = Err(error);
                watch.stop();
                // No layer may be listening any more.
                let _ = stop.send(true);
            }
        }
        first
    }
}

/// The events of an image that needed nothing.
fn told(mut image: Image, begin: Instant, options: &PullOptions) -> Image {
    image.timings.resolve = begin.elapsed();
    Watch::new(options).tell(PullEvent::Resolved {
        digest: image.digest.clone(),
        layers: image.layers.len(),
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
struct Shared {
    store: Arc<Store>,
    watch: Watch,
    budget: Arc<Budget>,
    stopped: watch::Receiver<bool>,
}

impl Shared {
    async fn layer(&self, plan: &Plan) -> Result<()> {
        let digest = plan.expected.digest.as_ref().unwrap_or(&plan.expected.diff_id).to_string();
        let bytes = plan.expected.size;
        loop {
            let permit = self.store.permit().await?;
            if *self.stopped.borrow() {
                return Err(stopped());
            }
            match self.store.claim(&plan.expected.diff_id)? {
                Claim::Committed => {
                    self.watch.tell(PullEvent::LayerCached { digest, bytes });
                    return Ok(());
                }
                Claim::Mine(ingest) => {
                    self.watch.tell(PullEvent::LayerStarted { digest: digest.clone(), bytes });
                    let progress = Progress::new(self.watch.clone(), digest.clone());
                    self.make(plan, ingest, progress).await?;
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
            Location::File(path, section) => {
                let file = layout::open(path)?;
                let (path, section) = (path.clone(), *section);
                let input = move || {
                    let mut file = file;
                    let length = section.map_or(u64::MAX, |s| s.length);
                    file.seek(SeekFrom::Start(section.map_or(0, |s| s.offset)))
                        .map_err(|e| Error::host(format!("read {}", path.display()), e))?;
                    Ok(Counted::new(file.take(length), progress))
                };
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
        let mut stopped = self.stopped.clone();
        let fed = async {
            tokio::select! {
                () = download::feed(client, digest, plan.expected.size, sink, progress) => {}
                _ = stopped.wait_for(|stopped| *stopped) => {}
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
            let recipe = unpack::Recipe::new(ingest.recipe()?)?;
            Ok(match unpack::unpack(input()?, &expected, &budget, root, Some(recipe)) {
                Ok(()) => ingest.commit().map_err(Failed::from),
                Err(error) => Err(failed(error, ingest)),
            })
        });
        unpacked.await?
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

fn stopped() -> Error {
    Error::new(ErrorKind::Internal, "the pull was stopped after another layer failed")
}
