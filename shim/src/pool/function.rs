//! Calls of a function whose instances are a pool.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt as _};
use http::{Request, Response};

use super::{Pool, Refusal};
use crate::api::Function;
use crate::platform::{InvocationKind, PlatformAnswer};
use crate::proxy::body::Body;
use crate::proxy::{Later, of_platform};
use crate::{EventOutcome, EventResult, FunctionConfig, InvokeOptions};

impl Function for Pool {
    fn config(&self) -> &FunctionConfig {
        Self::config(self)
    }

    fn longest(&self) -> Duration {
        self.longest_wait() + self.config().timeout
    }

    fn invoke(&self, event: Bytes, options: InvokeOptions) -> BoxFuture<'_, EventOutcome> {
        async move {
            let begun = Instant::now();
            match self.acquire().await {
                Ok(slot) => {
                    let (outcome, receipt) = slot.instance().invoke_metered(event, options).await;
                    // The instance works on, while the answer waits for its record.
                    drop(slot);
                    receipt.settled().await;
                    outcome
                }
                Err(refusal) => refused_event(self.config(), &refusal, options.request_id, begun.elapsed()),
            }
        }
        .boxed()
    }

    fn forward(
        &self,
        client: Option<SocketAddr>,
        request: Request<Body>,
    ) -> BoxFuture<'static, Response<Body>> {
        let pool = self.clone();
        async move {
            match pool.acquire().await {
                Ok(slot) => {
                    let instance = Arc::clone(slot.instance());
                    instance.pass(client, request, Some(Box::new(slot))).await
                }
                Err(refusal) => {
                    let told = request.extensions().get::<Later>().map(|later| later.request_id.clone());
                    let request_id = told.unwrap_or_else(|| pool.config().platform.new_request_id());
                    of_platform(refuse(pool.config(), &refusal, &request_id, InvocationKind::Http))
                }
            }
        }
        .boxed()
    }
}

/// What the platform tells a caller that got no instance.
fn refuse(
    config: &FunctionConfig,
    refusal: &Refusal,
    request_id: &str,
    kind: InvocationKind,
) -> PlatformAnswer {
    let throttled = || config.platform.throttled(config, request_id, kind);
    match refusal {
        Refusal::Start(error) => error.answer(kind).unwrap_or_else(throttled),
        Refusal::Throttled => throttled(),
    }
}

/// The same as the outcome of an event call.
pub(super) fn refused_event(
    config: &FunctionConfig,
    refusal: &Refusal,
    request_id: Option<String>,
    duration: Duration,
) -> EventOutcome {
    let request_id = request_id.unwrap_or_else(|| config.platform.new_request_id());
    let answer = refuse(config, refusal, &request_id, InvocationKind::Event);
    EventOutcome {
        request_id,
        result: EventResult::PlatformError(answer.message),
        status: answer.status,
        headers: answer.headers,
        body: answer.body,
        duration,
        memory_peak_bytes: 0,
        log: None,
    }
}
