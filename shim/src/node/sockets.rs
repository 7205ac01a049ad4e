//! A socket for each function, where plain HTTP requests are passed on to it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::Key;
use super::inherited::Inherited;
use crate::api::{self, AsyncCalls, Function};
use crate::proxy::Listener;
use crate::{Error, ErrorKind, Result, Runtime};

/// The sockets of a node's functions; all end when this is dropped.
pub(super) struct Sockets {
    dir: PathBuf,
    /// Whose members may connect, beside root.
    group: Option<u32>,
    runtime: Arc<Runtime>,
    /// Where requests go that are for later.
    async_calls: AsyncCalls,
    served: Mutex<BTreeMap<Key, Served>>,
}

struct Served {
    stop: watch::Sender<bool>,
    /// Lets the socket's file stay.
    stays: Arc<AtomicBool>,
    name: String,
    task: JoinHandle<()>,
}

impl Sockets {
    /// In this directory, which is made if it is missing.
    pub(super) fn open(
        dir: PathBuf,
        group: Option<u32>,
        runtime: Arc<Runtime>,
        async_calls: AsyncCalls,
        inherited: &Inherited,
    ) -> Result<Self> {
        make(&dir, group).map_err(|error| {
            Error::new(ErrorKind::Listen, format!("cannot make {}", dir.display())).because(error)
        })?;
        // What a killed node left; the node's lock says that there is no other.
        let left = fs::read_dir(&dir).into_iter().flatten().flatten().map(|entry| entry.path());
        let dead = |path: &PathBuf| {
            path.extension().is_some_and(|end| end == "sock") && !inherited.has(&path.to_string_lossy())
        };
        for socket in left.filter(dead) {
            let _ = fs::remove_file(socket);
        }
        Ok(Self { dir, group, runtime, async_calls, served: Mutex::default() })
    }

    fn served(&self) -> MutexGuard<'_, BTreeMap<Key, Served>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where that of a function is. The platform's rules let no name leave the directory, and a name with
    /// another's namespace before it is none.
    pub(super) fn path(&self, key: &Key, namespaced: bool) -> PathBuf {
        let name = if namespaced { format!("{}.{}.sock", key.0, key.1) } else { format!("{}.sock", key.1) };
        self.dir.join(name)
    }

    /// Serves a function, unless it is served already.
    pub(super) fn serve(
        &self,
        key: &Key,
        namespaced: bool,
        function: Arc<dyn Function>,
        inherited: &Inherited,
    ) -> Result<()> {
        let mut served = self.served();
        if served.contains_key(key) {
            return Ok(());
        }
        let path = self.path(key, namespaced);
        let name = path.to_string_lossy().into_owned();
        let taken = inherited.take(&name).and_then(|socket| Listener::inherited(&path, socket).ok());
        let listener = taken.map_or_else(|| Listener::unix(&path), Ok)?.for_group(self.group)?;
        let stays = listener.stays();
        let (stop, mut told) = watch::channel(false);
        let (runtime, calls, held) = (Arc::clone(&self.runtime), self.async_calls.clone(), name.clone());
        let task = tokio::spawn(async move {
            if let Err(error) = runtime.hold_socket(&held, listener.descriptor()).await {
                tracing::warn!(error = error.chain(), "a socket is not kept for a restart");
            }
            let over = async move {
                let _ = told.wait_for(|stop| *stop).await;
            };
            if let Err(error) = api::serve_requests(listener, calls, function, over).await {
                tracing::error!(error = error.chain(), "the socket of a function has failed");
            }
        });
        served.insert(key.clone(), Served { stop, stays, name, task });
        Ok(())
    }

    /// Takes no more requests for a function, and lets those end that run.
    pub(super) async fn end(&self, key: &Key) {
        let served = self.served().remove(key);
        if let Some(Served { stop, name, task, .. }) = served {
            stop.send_replace(true);
            let _ = task.await;
            // A keeper that is gone has none.
            let _ = self.runtime.release_socket(&name).await;
        }
    }

    /// Takes no more requests here, and leaves the sockets to the next node.
    pub(super) async fn leave(&self) {
        self.served().values().for_each(|served| served.stays.store(true, Ordering::SeqCst));
        self.stop().await;
    }

    /// Ends all.
    pub(super) async fn close(&self) {
        self.stop().await;
        // Unless somebody else has put something there.
        let _ = fs::remove_dir(&self.dir);
    }

    async fn stop(&self) {
        let all = std::mem::take(&mut *self.served());
        for served in all.values() {
            served.stop.send_replace(true);
        }
        for (_, served) in all {
            let _ = served.task.await;
        }
    }
}

/// The directory; one that is there keeps its owner and mode, unless a group is to come to its sockets.
fn make(dir: &Path, group: Option<u32>) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    if group.is_some() {
        chown(dir, None, group)?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o750))?;
    }
    Ok(())
}
