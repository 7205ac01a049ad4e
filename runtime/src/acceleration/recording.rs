//! One recording, from a start until a second after the container serves.
//!
//! ```text
//! start ──▶ recording ──ready──▶ settling ──1 s, or the container's end──▶ kept
//!               └──the container's end, or too long──▶ nothing is kept
//! ```

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{ListPath, Recorded, Recorder};
use crate::cgroup::Group;
use crate::keeper::Ended;
use crate::{Error, ErrorKind, Result};

/// How long it goes on once the container serves: what its first requests touch belongs to a start.
const SETTLE: Duration = Duration::from_secs(1);
/// How long a container may take until it serves; longer than any platform's limit of a start.
const PATIENCE: Duration = Duration::from_secs(150);
/// How long a shutdown waits for recordings to be written.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(5);

/// What a recording is about.
#[derive(Debug)]
pub(crate) struct Subject {
    pub(crate) list: ListPath,
    /// Of the image, lowest first.
    pub(crate) layers: Vec<PathBuf>,
    pub(crate) group: Group,
    pub(crate) ended: watch::Receiver<Option<Ended>>,
}

/// The container's side of a recording.
#[derive(Debug)]
pub(crate) struct Recording {
    ready: watch::Sender<bool>,
    done: watch::Receiver<Option<Option<Recorded>>>,
}

impl Recording {
    /// The container serves.
    pub(crate) fn ready(&self) {
        self.ready.send_replace(true);
    }

    /// Waits until it is kept; `None` where nothing is.
    pub(crate) async fn done(&self) -> Option<Recorded> {
        let mut done = self.done.clone();
        let told = done.wait_for(Option::is_some).await.ok()?;
        told.flatten()
    }
}

/// The recordings of a runtime that are under way. Dropping it ends them without a result.
#[derive(Debug, Default)]
pub(crate) struct Recordings(Mutex<JoinSet<()>>);

impl Recordings {
    /// Records until a second after [`Recording::ready`], or until the container ends.
    pub(crate) fn begin(&self, recorder: Recorder, subject: Subject) -> Recording {
        let (ready, serves) = watch::channel(false);
        let (sender, done) = watch::channel(None);
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(async move {
            let list = subject.list.clone();
            let recorded = record(recorder, subject, serves).await.unwrap_or_else(|error| {
                tracing::warn!(?list, error = error.chain(), "what a start touched could not be kept");
                None
            });
            sender.send_replace(Some(recorded));
        });
        Recording { ready, done }
    }

    /// Waits for those whose containers have ended to be kept, and ends the others.
    pub(crate) async fn finish(&self) {
        let mut tasks = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let _ = tokio::time::timeout(SHUTDOWN_PATIENCE, async { while tasks.join_next().await.is_some() {} })
            .await;
    }
}

/// What comes next in a recording.
enum Next<'a> {
    /// The kernel has something to tell.
    Opened(AsyncFdReadyGuard<'a, OwnedFd>),
    /// The container serves.
    Ready,
    /// The container has ended, or the time is up.
    Over,
}

async fn record(
    mut recorder: Recorder,
    mut subject: Subject,
    mut serves: watch::Receiver<bool>,
) -> Result<Option<Recorded>> {
    let mut events = recorder.watch()?;
    let mut until = Instant::now() + PATIENCE;
    let mut ready = false;
    loop {
        match next(events.as_ref(), &mut subject.ended, &mut serves, ready, until).await {
            Next::Opened(mut readable) => {
                if !recorder.take_events() {
                    readable.clear_ready();
                }
                if recorder.is_full() {
                    recorder.stop();
                    events = None;
                }
            }
            Next::Ready => {
                ready = true;
                until = Instant::now() + SETTLE;
                // Now, in case it ends before it has settled.
                recorder = look(recorder, &subject.group).await?;
            }
            Next::Over => break,
        }
    }
    drop(events);
    // It may have served and ended at the same time.
    if !*serves.borrow() {
        return Ok(None);
    }
    let recorder = look(recorder, &subject.group).await?;
    keep(recorder, subject).await
}

async fn next<'a>(
    events: Option<&'a AsyncFd<OwnedFd>>,
    ended: &mut watch::Receiver<Option<Ended>>,
    serves: &mut watch::Receiver<bool>,
    ready: bool,
    until: Instant,
) -> Next<'a> {
    let readable = async {
        match events {
            Some(events) => events.readable().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        readable = readable => readable.map_or(Next::Over, Next::Opened),
        told = serves.wait_for(|serves| *serves), if !ready => match told {
            Ok(_) => Next::Ready,
            // The container's owner is gone: it is being killed.
            Err(_) => Next::Over,
        },
        _ = ended.wait_for(Option::is_some) => Next::Over,
        () = tokio::time::sleep_until(until) => Next::Over,
    }
}

/// Takes the events so far, and looks at the pages that the processes use now.
async fn look(mut recorder: Recorder, group: &Group) -> Result<Recorder> {
    let group = group.clone();
    blocking(move || {
        while !recorder.is_full() && recorder.take_events() {}
        recorder.look_at_pages(&group.processes());
        Ok(recorder)
    })
    .await
}

async fn keep(mut recorder: Recorder, subject: Subject) -> Result<Option<Recorded>> {
    blocking(move || {
        recorder.stop();
        let list = recorder.list(&subject.layers);
        if list.entries.is_empty() {
            return Ok(None);
        }
        subject.list.save(&list)?;
        Ok(Some(list.summary()))
    })
    .await
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(Error::new(ErrorKind::Internal, "a thread that records died").because(e)),
    }
}
