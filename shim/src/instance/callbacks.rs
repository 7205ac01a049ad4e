//! Callbacks: requests of the platform itself, with log lines and a time limit of their own.

use std::sync::Arc;

use http::header::{CONTENT_LENGTH, HOST};
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Limited};
use tokio::time::{Instant, timeout_at};

use super::shared::Shared;
use crate::function::Callback;
use crate::platform::{InvocationContext, InvocationKind};
use crate::proxy::body;

/// Bytes of an answer that are read; nobody looks at them.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Calls it, if the function has it. The error is worded for log lines and answers. The container must be
/// awake and stay so.
pub(super) async fn call(shared: &Arc<Shared>, callback: Callback) -> Result<(), String> {
    let platform = shared.config.platform;
    let (Some(limit), Some(request)) = (shared.config.callbacks.limit(callback), platform.callback(callback))
    else {
        return Ok(());
    };
    let id = platform.new_callback_id();
    shared.logs.platform(Some(&id), platform.log_callback(callback, &id, None));
    let deadline = Instant::now() + limit;
    let called = timeout_at(deadline, send(shared, callback, &request, &id)).await;
    let called = called.unwrap_or_else(|_| Err(format!("timed out after {} seconds", limit.as_secs_f64())));
    let ended = Some(called.as_ref().err().map(String::as_str));
    shared.logs.platform(Some(&id), platform.log_callback(callback, &id, ended));
    called
}

async fn send(
    shared: &Arc<Shared>,
    callback: Callback,
    (method, path): &(Method, &'static str),
    id: &str,
) -> Result<(), String> {
    let credentials = shared.role.current();
    let context = InvocationContext {
        config: &shared.config,
        instance_id: &shared.id,
        request_id: id,
        kind: InvocationKind::Event,
        path,
        client: None,
        origin: None,
        retries: 0,
        asynchronous: false,
        code_checksum: &shared.code_checksum,
        trigger: None,
        credentials: credentials.as_deref(),
    };
    let mut request = Request::new(body::empty());
    *request.method_mut() = method.clone();
    *request.uri_mut() = Uri::from_static(path);
    let headers = request.headers_mut();
    let address = shared.guest.address(shared.config.port()).to_string();
    headers.insert(HOST, HeaderValue::from_str(&address).unwrap_or(HeaderValue::from_static("localhost")));
    if method == Method::POST {
        headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
    shared.config.platform.prepare_callback(callback, &context, headers);
    let status = status_of(shared, request).await?;
    if status.is_success() { Ok(()) } else { Err(format!("the server answered {path} with status {status}")) }
}

/// Sends a request of the platform's own and reads the answer to its end.
pub(super) async fn status_of(shared: &Shared, request: Request<body::Body>) -> Result<StatusCode, String> {
    let response = match shared.pool.send(request).await {
        Ok(response) => response,
        Err(error) => {
            let text = error.text();
            // Leaves the news of a container's end the time to come: who waits for that too looks again.
            shared.explain(error).await;
            return Err(text);
        }
    };
    let (parts, answer) = response.into_parts();
    Limited::new(answer, MAX_ANSWER_BYTES).collect().await.map_err(|error| error.to_string())?;
    Ok(parts.status)
}
