//! What a former node of a lasting run has left: containers and listening sockets.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use skiff_runtime::Container;

use super::Key;
use crate::instance::LogSink;
use crate::instance::Ties;
use crate::{Error, ErrorKind, FunctionConfig, Image, Instance, Result, Runtime};

/// Whose a container is, as its label has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Mark {
    namespace: String,
    function: String,
    revision: u64,
}

impl Mark {
    pub(super) fn new(key: &Key, revision: u64) -> Self {
        Self { namespace: key.0.clone(), function: key.1.clone(), revision }
    }

    pub(super) fn label(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// The directory with a file for each instance that has been ready: one that has not may be anywhere in its
/// start, and is of no use. It goes with the run.
pub(super) fn marks(runtime: &Runtime) -> Result<PathBuf> {
    let dir = runtime.dir().join("ready");
    std::fs::create_dir_all(&dir).map_err(|error| {
        let message = format!("cannot make {}", dir.display());
        Error::new(ErrorKind::Runtime(skiff_runtime::ErrorKind::Host), message).because(error)
    })?;
    Ok(dir)
}

/// The containers that are of use, by whose they are. The others are killed by being dropped.
pub(super) fn by_mark(containers: Vec<Container>, marks: Option<&Path>) -> BTreeMap<Mark, Vec<Container>> {
    let mut all: BTreeMap<Mark, Vec<Container>> = BTreeMap::new();
    for container in containers {
        let Some(marks) = marks else { continue };
        let mark = serde_json::from_slice::<Mark>(container.label());
        let ready = marks.join(container.id()).exists();
        let ended = container.exited();
        tracing::debug!(instance = container.id(), ?mark, ready, ?ended, "left by a former node");
        match mark {
            Ok(mark) if ended.is_none() && ready => all.entry(mark).or_default().push(container),
            _ => drop(std::fs::remove_file(marks.join(container.id()))),
        }
    }
    all
}

/// Makes instances of a revision's containers; one of which none can be made is killed.
pub(super) async fn adopt(
    containers: Vec<Container>,
    image: &Image,
    config: &Arc<FunctionConfig>,
    logs: &Arc<dyn LogSink>,
    ties: &Ties,
) -> Vec<Instance> {
    let adoptions = containers.into_iter().map(|container| {
        let id = container.id().to_owned();
        async move {
            let adopted = Instance::adopt(container, image, config, Arc::clone(logs), ties.clone()).await;
            adopted
                .map_err(|error| tracing::warn!(instance = id, error = error.chain(), "an instance is lost"))
                .ok()
        }
    });
    futures_util::future::join_all(adoptions).await.into_iter().flatten().collect()
}

/// Listening sockets of former nodes, by their names.
pub(super) struct Inherited(Mutex<BTreeMap<String, OwnedFd>>);

impl Inherited {
    /// What a run has, with its containers.
    pub(super) fn of(runtime: &Runtime) -> Result<(Self, Vec<Container>)> {
        let sockets = runtime.held_sockets().into_iter().collect();
        Ok((Self(Mutex::new(sockets)), runtime.adopted()?))
    }

    pub(super) fn take(&self, name: &str) -> Option<OwnedFd> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(name)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains_key(name)
    }
}
