//! The control API: what is deployed, over HTTP on the node's socket, beside the invoke APIs.
//!
//! ```text
//! GET    /v1/functions             all functions
//! POST   /v1/functions             deploy (a Deployment as JSON)
//! GET    /v1/functions/NAME        one function        (?namespace=…)
//! DELETE /v1/functions/NAME        delete it           (?namespace=…)
//! GET    /v1/functions/NAME/logs   what it wrote       (?namespace=…&follow=true&since=UNIX_MS&request=ID)
//! GET    /v1/instances             all instances
//! GET    /v1/traces/REQUEST        what one of the last invocations took, step by step
//! GET    /v1/events                what happens from now on, a JSON object in each line
//! GET    /metrics                  what the node counts, for Prometheus
//! GET    /v1/usage                 what is billed, by function (?function=…&namespace=…&since_unix_ms=…)
//! GET    /v1/usage/records         the records of it, a JSON object in each line (the same)
//! GET    /openapi.json             this, for machines
//! ```
//!
//! Everything else goes to the invoke APIs. Errors are `{"error":{kind, message, advice, faults, retryable}}`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::stream::{self, Stream, StreamExt as _};
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use percent_encoding::percent_decode_str;
use serde::Serialize;
use serde_json::json;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, watch};

use super::{Deployment, LogQuery, Node, NodeEvent, usage};
use crate::api::Api;
use crate::proxy::body::{self, Body};
use crate::proxy::{Guarded, Handler, Listener, serve_with};
use crate::{Error, ErrorKind, Result, Secret};

/// Bytes of a request's body at most: a function's file has 256 KiB, which JSON may escape.
const MAX_BODY: usize = 2 << 20;

/// The longest that a request may take, a deploy of a large image included.
const LONGEST: Duration = Duration::from_secs(86_400 + 300);

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

const OPENAPI: &str = include_str!("openapi.json");

/// Serves control API and invoke APIs on `listener` until `shutdown` resolves. Must be called in a tokio
/// runtime.
///
/// # Errors
/// `Listen` when the listener itself fails.
pub async fn serve(
    listener: Listener,
    node: Arc<Node>,
    api: Arc<Api>,
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    serve_by(listener, node, api, |control| control, shutdown).await
}

/// As [`serve`], for clients that show a token (`Authorization: Bearer`).
///
/// # Errors
/// As [`serve`].
pub async fn serve_guarded(
    listener: Listener,
    node: Arc<Node>,
    api: Arc<Api>,
    token: &Secret,
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    let guard = |control| Arc::new(Guarded::new(control, token)) as Arc<dyn Handler>;
    serve_by(listener, node, api, guard, shutdown).await
}

async fn serve_by(
    listener: Listener,
    node: Arc<Node>,
    api: Arc<Api>,
    guard: impl FnOnce(Arc<dyn Handler>) -> Arc<dyn Handler>,
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    let over = watch::Sender::new(false);
    let control = Control { node, api, over: over.subscribe() };
    let shutdown = async {
        shutdown.await;
        // Answers without an end would hold up this one's.
        over.send_replace(true);
    };
    serve_with(listener, guard(Arc::new(control)), shutdown).await
}

struct Control {
    node: Arc<Node>,
    api: Arc<Api>,
    /// True when nothing more is to be told.
    over: watch::Receiver<bool>,
}

impl Handler for Control {
    fn time(&self) -> Duration {
        LONGEST
    }

    fn answer(
        self: Arc<Self>,
        client: Option<SocketAddr>,
        request: Request<Incoming>,
    ) -> BoxFuture<'static, Response<Body>> {
        let path = request.uri().path();
        if !["/openapi.json", "/metrics", "/v1"].contains(&path) && !path.starts_with("/v1/") {
            return Arc::clone(&self.api).answer(client, request);
        }
        async move { self.control(request).await.unwrap_or_else(|error| failed(&error)) }.boxed()
    }
}

impl Control {
    async fn control(&self, request: Request<Incoming>) -> Result<Response<Body>> {
        let (path, method) = (request.uri().path().to_owned(), request.method().clone());
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let query = Query(request.uri().query().unwrap_or_default().to_owned());
        match parts.as_slice() {
            ["openapi.json"] => Ok(match method {
                Method::GET => json_response(StatusCode::OK, Bytes::from_static(OPENAPI.as_bytes())),
                _ => not_allowed("GET"),
            }),
            ["metrics"] => match method {
                Method::GET => self.metrics().await,
                _ => Ok(not_allowed("GET")),
            },
            ["v1", "instances"] => match method {
                Method::GET => self.instances().await,
                _ => Ok(not_allowed("GET")),
            },
            ["v1", "functions"] => match method {
                Method::GET => Ok(answer(&json!({ "functions": self.node.functions() }))),
                Method::POST => self.deploy(request).await,
                _ => Ok(not_allowed("GET, POST")),
            },
            ["v1", "functions", name] => {
                let (name, namespace) = (decoded(name), query.get("namespace"));
                match method {
                    Method::GET => Ok(answer(&self.node.function(namespace.as_deref(), &name)?)),
                    Method::DELETE => {
                        self.node.delete(namespace.as_deref(), &name).await?;
                        Ok(answer(&json!({ "deleted": name })))
                    }
                    _ => Ok(not_allowed("GET, DELETE")),
                }
            }
            ["v1", "functions", name, "logs"] => match method {
                Method::GET => self.logs(&decoded(name), &query).await,
                _ => Ok(not_allowed("GET")),
            },
            ["v1", "traces", id] => match method {
                Method::GET => self.trace(&decoded(id)),
                _ => Ok(not_allowed("GET")),
            },
            ["v1", "usage"] => match method {
                Method::GET => Ok(answer(&usage::sums(&self.node, request.uri().query()).await?)),
                _ => Ok(not_allowed("GET")),
            },
            ["v1", "usage", "records"] => match method {
                Method::GET => usage::lines(&self.node, request.uri().query()),
                _ => Ok(not_allowed("GET")),
            },
            ["v1", "events"] => Ok(match method {
                Method::GET => self.ndjson(lines(self.node.events())),
                _ => not_allowed("GET"),
            }),
            _ => Err(Error::new(ErrorKind::NotFound, format!("there is nothing at {path}"))
                .advise("GET /openapi.json tells what there is")),
        }
    }

    /// Lines that are JSON, as they come, until their end or the node's.
    fn ndjson(
        &self,
        lines: impl Stream<Item = std::result::Result<Frame<Bytes>, body::BodyError>> + Send + 'static,
    ) -> Response<Body> {
        let mut over = self.over.clone();
        let over = async move {
            let _ = over.wait_for(|over| *over).await;
        };
        let lines = lines.take_until(Box::pin(over));
        let mut response = Response::new(StreamBody::new(lines).boxed_unsync());
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
        response
    }

    async fn instances(&self) -> Result<Response<Body>> {
        let node = Arc::clone(&self.node);
        Ok(answer(&json!({ "instances": beside(move || node.instances()).await? })))
    }

    fn trace(&self, request_id: &str) -> Result<Response<Body>> {
        let trace = self.node.trace(request_id).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("nothing is known of request {request_id}"))
                .advise("the last 4096 invocations since the node began are kept; logs tell of older ones")
        })?;
        Ok(answer(&trace))
    }

    async fn metrics(&self) -> Result<Response<Body>> {
        let node = Arc::clone(&self.node);
        let mut response = Response::new(body::full(beside(move || node.metrics()).await?.into()));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(OPEN_METRICS));
        Ok(response)
    }

    async fn logs(&self, name: &str, query: &Query) -> Result<Response<Body>> {
        let since = query.get("since").map(|text| unix_time("since", &text)).transpose()?;
        let follow = query.get("follow").is_some_and(|value| value != "false");
        let wanted = LogQuery { since, request_id: query.get("request"), follow };
        let parts = self.node.logs(query.get("namespace").as_deref(), name, wanted).await?;
        Ok(self.ndjson(parts.map(|part| part.map(Frame::data).map_err(body::BodyError::from))))
    }

    async fn deploy(&self, request: Request<Incoming>) -> Result<Response<Body>> {
        let body = Limited::new(request.into_body(), MAX_BODY).collect().await.map_err(|error| {
            Error::new(ErrorKind::InvalidFunction, format!("the request's body cannot be read: {error}"))
                .advise(format!("send a deployment of at most {MAX_BODY} bytes"))
        })?;
        let deployment: Deployment = serde_json::from_slice(&body.to_bytes()).map_err(|error| {
            // What it says quotes nothing of the body but the names of fields.
            Error::new(ErrorKind::InvalidFunction, format!("the request's body is no deployment: {error}"))
                .advise("GET /openapi.json tells what a deployment is")
        })?;
        // A client that goes away ends nothing half-way.
        let node = Arc::clone(&self.node);
        let deployed = tokio::spawn(async move { Box::pin(node.deploy(deployment)).await }).await;
        let (info, warnings) = deployed.map_err(|error| {
            Error::new(ErrorKind::Runtime(skiff_runtime::ErrorKind::Internal), "a deploy did not end")
                .because(error)
        })??;
        Ok(answer(&json!({ "function": info, "warnings": warnings })))
    }
}

/// Does what reads many small files on a thread that may block.
async fn beside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        Error::new(ErrorKind::Runtime(skiff_runtime::ErrorKind::Internal), "a request did not end")
            .because(error)
    })
}

fn decoded(part: &str) -> String {
    percent_decode_str(part).decode_utf8_lossy().into_owned()
}

/// What stands after the `?` of a target.
struct Query(String);

impl Query {
    fn get(&self, name: &str) -> Option<String> {
        let mut pairs = self.0.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(key, _)| *key == name).map(|(_, value)| decoded(value))
    }
}

/// A parameter that is a time, in milliseconds since 1970.
pub(super) fn unix_time(name: &str, text: &str) -> Result<SystemTime> {
    // What is later than any clock shows is no time.
    let number = text.parse().ok().filter(|number: &u64| *number < 1 << 52).ok_or_else(|| {
        let kind = ErrorKind::Runtime(skiff_runtime::ErrorKind::InvalidArgument);
        Error::new(kind, format!("{name}={text} is no number of milliseconds since 1970"))
    })?;
    Ok(UNIX_EPOCH + Duration::from_millis(number))
}

fn json_response(status: StatusCode, bytes: Bytes) -> Response<Body> {
    let mut response = Response::new(body::full(bytes));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn answer(value: &impl Serialize) -> Response<Body> {
    json_response(StatusCode::OK, serde_json::to_vec(value).unwrap_or_default().into())
}

fn not_allowed(allowed: &'static str) -> Response<Body> {
    let error = json!({ "error": {
        "kind": "method_not_allowed",
        "message": format!("use {allowed} here"),
        "retryable": false,
    }});
    let mut response = json_response(StatusCode::METHOD_NOT_ALLOWED, error.to_string().into());
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}

fn failed(error: &Error) -> Response<Body> {
    let status = match error.kind() {
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::Busy => StatusCode::CONFLICT,
        ErrorKind::InvalidFunction | ErrorKind::Runtime(skiff_runtime::ErrorKind::InvalidArgument) => {
            StatusCode::BAD_REQUEST
        }
        kind => match kind.fault() {
            crate::Fault::Caller | crate::Fault::Image => StatusCode::UNPROCESSABLE_ENTITY,
            crate::Fault::Registry => StatusCode::BAD_GATEWAY,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        },
    };
    let value = json!({ "error": {
        "kind": error.kind().as_str(),
        "message": error.chain(),
        "advice": error.advice(),
        "faults": error.faults(),
        "retryable": error.is_retryable(),
    }});
    json_response(status, value.to_string().into())
}

/// Events as lines. Who is too slow is told how many it missed.
fn lines(
    events: broadcast::Receiver<NodeEvent>,
) -> impl Stream<Item = std::result::Result<Frame<Bytes>, body::BodyError>> + Send + 'static {
    stream::unfold(events, |mut events| async move {
        let line = match events.recv().await {
            Ok(event) => serde_json::to_string(&event).unwrap_or_default(),
            Err(RecvError::Lagged(missed)) => json!({ "event": "missed", "count": missed }).to_string(),
            Err(RecvError::Closed) => return None,
        };
        Some((Ok(Frame::data(Bytes::from(line + "\n"))), events))
    })
}
