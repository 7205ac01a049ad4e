//! How a pool comes to an instance.

use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt as _};

use crate::instance::LogSink;
use crate::meter::Tap;
use crate::{FunctionConfig, Image, Instance, Result, Runtime};

/// Starts instances of one function.
pub(crate) trait Launch: Send + Sync + 'static {
    /// Starts one, and waits until it takes invocations. Dropping the future kills what there is of it.
    fn start(&self) -> BoxFuture<'_, Result<Instance>>;
}

/// Containers of an image.
pub(super) struct Containers {
    pub(super) runtime: Arc<Runtime>,
    pub(super) image: Image,
    pub(super) config: Arc<FunctionConfig>,
    pub(super) logs: Arc<dyn LogSink>,
    pub(super) tap: Option<Tap>,
}

impl Launch for Containers {
    fn start(&self) -> BoxFuture<'_, Result<Instance>> {
        let (logs, tap) = (Arc::clone(&self.logs), self.tap.clone());
        Instance::start_metered(&self.runtime, &self.image, &self.config, logs, tap).boxed()
    }
}
