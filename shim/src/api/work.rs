//! What is done later: an event, or an HTTP request.

use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use futures_util::future::{BoxFuture, FutureExt as _};
use http::Request;
use http_body_util::BodyExt as _;
use tokio::time::Instant;

use super::Function;
use crate::proxy::body::{self, Body};
use crate::proxy::{Later, Meaning, headers};
use crate::{EventOutcome, EventResult, InvokeOptions};

/// What is to be done.
pub(super) enum Work {
    /// The platform's event call.
    Event(Bytes),
    /// An HTTP request.
    Request(Box<HttpRequest>),
}

impl Work {
    pub(super) fn payload(&self) -> &Bytes {
        match self {
            Self::Event(payload) => payload,
            Self::Request(later) => later.request.body(),
        }
    }

    /// Bytes that it keeps.
    pub(super) fn size(&self) -> usize {
        let head = match self {
            Self::Event(_) => 0,
            Self::Request(later) => headers::size(later.request.headers()),
        };
        self.payload().len() + head
    }

    pub(super) async fn run(&self, function: &dyn Function, options: InvokeOptions) -> EventOutcome {
        match self {
            Self::Event(payload) => function.invoke(payload.clone(), options).await,
            Self::Request(later) => {
                let (request, client) = (later.request.clone(), later.client);
                forwarded(function, request, client, options).await
            }
        }
    }
}

/// An HTTP request whose caller does not wait for its answer.
pub(super) struct HttpRequest {
    pub(super) request: Request<Bytes>,
    pub(super) client: Option<SocketAddr>,
}

/// The answer to an HTTP request as that of an event: whatever status the function chose, it has answered.
fn forwarded(
    function: &dyn Function,
    request: Request<Bytes>,
    client: Option<SocketAddr>,
    options: InvokeOptions,
) -> BoxFuture<'static, EventOutcome> {
    let begun = Instant::now();
    let platform = function.config().platform;
    let request_id = options.request_id.unwrap_or_else(|| platform.new_request_id());
    let mut request = request.map(body::full);
    request.extensions_mut().insert(Later { request_id: request_id.clone(), retries: options.retries });
    let answering = function.forward(client, request);
    async move {
        let (parts, answer) = answering.await.into_parts();
        let whole = gathered(answer, platform.limits().answer_bytes).await;
        let of_function = parts.headers.contains_key("x-fc-error-type");
        let result = match (parts.extensions.get::<Meaning>(), &whole) {
            (Some(Meaning::Platform(text)), _) if !of_function => EventResult::PlatformError(text.clone()),
            (Some(Meaning::Platform(text) | Meaning::Reported(text)), _) => {
                EventResult::FunctionError(text.clone())
            }
            (None, Err(why)) => EventResult::FunctionError(why.clone()),
            (None, Ok(_)) => EventResult::Success,
        };
        EventOutcome {
            request_id,
            result,
            status: parts.status,
            headers: parts.headers,
            body: whole.unwrap_or_default(),
            duration: begun.elapsed(),
            memory_peak_bytes: 0,
            log: None,
        }
    }
    .boxed()
}

/// The whole body of an answer, or why there is none.
async fn gathered(mut answer: Body, limit: usize) -> Result<Bytes, String> {
    let mut whole = BytesMut::new();
    while let Some(frame) = answer.frame().await {
        let Ok(data) = frame.map_err(|error| error.to_string())?.into_data() else { continue };
        if whole.len() + data.len() > limit {
            return Err(format!("the answer is larger than {limit} bytes"));
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}
