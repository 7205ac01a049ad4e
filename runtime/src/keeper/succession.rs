//! The keeper of a run, and another in its place when it has died.
//!
//! ```text
//! living ──died──► its containers are killed, its groups removed ─► another is started ─► told of the sockets
//!                                   └───────── fails: tried again, later each time ◄─┘
//! ```
//!
//! The run itself goes on: its directory, its lock and its name are the daemon's too.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Keeper;
use crate::rundir::RunDir;
use crate::{Error, ErrorKind, Result};

/// The pause after a keeper that could not be started, at first and at most.
const PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// Whichever keeper a run has now.
#[derive(Debug)]
pub(crate) struct Succession {
    run: RunDir,
    /// Of the run; each keeper gets a copy.
    lock: OwnedFd,
    binary: Option<PathBuf>,
    now: Mutex<Arc<Keeper>>,
    /// Held while a keeper is replaced.
    turn: tokio::sync::Mutex<()>,
    /// What a lasting run keeps for its next owner, by name.
    sockets: Mutex<BTreeMap<String, Arc<OwnedFd>>>,
    /// No keeper is replaced any more.
    over: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Succession {
    /// Begins with the keeper that there is. That of a lasting run is replaced as soon as it has died, as it
    /// keeps sockets; another when it is needed. Must be called in a tokio runtime.
    pub(crate) fn new(keeper: Keeper, run: RunDir, lock: OwnedFd, binary: Option<PathBuf>) -> Arc<Self> {
        let lasting = keeper.is_lasting();
        let this = Arc::new(Self {
            run,
            lock,
            binary,
            now: Mutex::new(Arc::new(keeper)),
            turn: tokio::sync::Mutex::default(),
            sockets: Mutex::default(),
            over: AtomicBool::new(false),
        });
        if lasting {
            this.look_after();
        }
        this
    }

    /// The last one, which may have died.
    pub(crate) fn now(&self) -> Arc<Keeper> {
        Arc::clone(&lock(&self.now))
    }

    /// One that lives, as far as is known.
    ///
    /// # Errors
    /// As [`Keeper::spawn`]; `Host` when what the dead one has left cannot be removed.
    pub(crate) async fn living(&self) -> Result<Arc<Keeper>> {
        if !self.needs_another() {
            return Ok(self.now());
        }
        let _turn = self.turn.lock().await;
        if self.needs_another() {
            let keeper = Arc::new(self.another().await?);
            tracing::warn!(run = self.run.name(), "skiff-keeper had died; another has taken its place");
            *lock(&self.now) = keeper;
        }
        Ok(self.now())
    }

    fn needs_another(&self) -> bool {
        !self.over.load(Ordering::SeqCst) && self.now().is_lost()
    }

    async fn another(&self) -> Result<Keeper> {
        let run = self.run.clone();
        let cleared = tokio::task::spawn_blocking(move || run.clear()).await;
        cleared.map_err(|error| {
            Error::new(ErrorKind::Internal, "the removal of what a keeper left did not end").because(error)
        })??;
        let lasting = self.now().is_lasting();
        let keeper = Keeper::spawn(self.binary.as_deref(), &self.run, &self.lock, lasting).await?;
        let sockets = lock(&self.sockets).clone();
        for (name, socket) in sockets {
            keeper.hold(name, copy(&socket)?).await?;
        }
        Ok(keeper)
    }

    fn look_after(self: &Arc<Self>) {
        let this = Arc::downgrade(self);
        tokio::spawn(async move {
            let mut pause = PAUSE;
            loop {
                // Not held while it lives: the run may be dropped meanwhile.
                let Some(gone) = this.upgrade().map(|this| this.now().gone()) else { return };
                gone.await;
                let Some(this) = this.upgrade().filter(|this| !this.over.load(Ordering::SeqCst)) else {
                    return;
                };
                let replaced = this.living().await;
                drop(this);
                match replaced {
                    Ok(_) => pause = PAUSE,
                    Err(error) => {
                        tracing::error!(error = error.chain(), "skiff-keeper has died and is not replaced");
                        tokio::time::sleep(pause).await;
                        pause = (pause * 2).min(MAX_PAUSE);
                    }
                }
            }
        });
    }

    /// Has a socket kept for the next owner, by whichever keeper there is then.
    pub(crate) async fn hold(&self, name: String, socket: OwnedFd) -> Result<()> {
        let socket = Arc::new(socket);
        let given = copy(&socket)?;
        // First: a keeper that dies now has another that knows of it.
        lock(&self.sockets).insert(name.clone(), socket);
        self.living().await?.hold(name, given).await
    }

    /// Has it let go.
    pub(crate) async fn release(&self, name: String) -> Result<()> {
        lock(&self.sockets).remove(&name);
        self.now().release(name).await
    }

    /// As [`Keeper::detach`]; nobody takes its place any more.
    pub(crate) async fn detach(&self) {
        self.last().await.detach().await;
    }

    /// As [`Keeper::shutdown`]; nobody takes its place any more.
    pub(crate) async fn shutdown(&self) -> bool {
        self.last().await.shutdown().await
    }

    /// The one that is there at the end.
    async fn last(&self) -> Arc<Keeper> {
        self.over.store(true, Ordering::SeqCst);
        let _turn = self.turn.lock().await;
        self.now()
    }
}

fn copy(socket: &OwnedFd) -> Result<OwnedFd> {
    socket.try_clone().map_err(|e| Error::host("cannot copy a socket", e))
}
