//! How a pool comes to an instance.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt as _};

use super::observe::Watch;
use super::room::Room;
use crate::instance::traces::Tracer;
use crate::instance::{LogSink, Ties};
use crate::meter::Tap;
use crate::{FunctionConfig, Image, Instance, Result, Runtime};

/// Starts instances of one function.
pub(crate) trait Launch: Send + Sync + 'static {
    /// Starts one, and waits until it takes invocations. Dropping the future kills what there is of it.
    fn start(&self) -> BoxFuture<'_, Result<Instance>>;

    /// One that it had started, or that was taken over, has ended.
    fn ended(&self, _id: &str) {}
}

/// Containers of an image.
pub(super) struct Containers {
    pub(super) runtime: Arc<Runtime>,
    pub(super) image: Image,
    pub(super) config: Arc<FunctionConfig>,
    pub(super) logs: Arc<dyn LogSink>,
    pub(super) identity: Option<Identity>,
    /// Where invocations are noted.
    pub(super) ties: Ties,
}

/// What a pool of a node has besides: nothing, unless told otherwise.
#[derive(Default)]
pub(crate) struct Known {
    pub(crate) identity: Option<Identity>,
    /// Where its invocations are noted.
    pub(crate) tap: Option<Tap>,
    /// And how long their steps took.
    pub(crate) tracer: Option<Tracer>,
    /// What a former process had started.
    pub(crate) adopted: Vec<Instance>,
    /// Who looks.
    pub(crate) watch: Option<Arc<dyn Watch>>,
    /// What it shares with the node's other functions.
    pub(crate) room: Option<Arc<Room>>,
}

impl Known {
    /// What all its instances are tied to.
    pub(crate) fn ties(&self) -> Ties {
        let label = self.identity.as_ref().map(|identity| identity.label.clone()).unwrap_or_default();
        Ties { label, tap: self.tap.clone(), tracer: self.tracer.clone() }
    }
}

/// By what a later process knows containers again.
#[derive(Clone)]
pub(crate) struct Identity {
    /// On each container.
    pub(crate) label: Vec<u8>,
    /// A directory with an empty file for each instance that has been ready.
    pub(crate) marks: PathBuf,
}

impl Launch for Containers {
    fn start(&self) -> BoxFuture<'_, Result<Instance>> {
        async {
            let ties = self.ties.clone();
            let (image, config, logs) = (&self.image, &self.config, Arc::clone(&self.logs));
            let instance = Instance::start_known(&self.runtime, image, config, logs, ties).await?;
            if let Some(identity) = &self.identity {
                // Without it, a later process starts another instead.
                let _ = File::create(identity.marks.join(instance.id()));
            }
            Ok(instance)
        }
        .boxed()
    }

    fn ended(&self, id: &str) {
        if let Some(identity) = &self.identity {
            let _ = std::fs::remove_file(identity.marks.join(id));
        }
    }
}
