//! The control API: what is deployed, over HTTP on the node's socket, beside the invoke APIs.
//!
//! ```text
//! GET    /v1/functions             all functions
//! POST   /v1/functions             deploy (a Deployment as JSON)
//! GET    /v1/functions/NAME        one function        (?namespace=…)
//! DELETE /v1/functions/NAME        delete it           (?namespace=…)
//! GET    /v1/events                what happens from now on, a JSON object in each line
//! GET    /v1/usage                 what is billed, by function (?function=…&namespace=…&since_unix_ms=…)
//! GET    /v1/usage/records         the records of it, a JSON object in each line (the same)
//! GET    /openapi.json             this, for machines
//! ```
//!
//! Everything else goes to the invoke APIs. Errors are `{"error":{kind, message, advice, faults, retryable}}`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::stream;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use percent_encoding::percent_decode_str;
use serde::Serialize;
use serde_json::json;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::{Deployment, Node, NodeEvent, usage};
use crate::api::Api;
use crate::proxy::body::{self, Body};
use crate::proxy::{Handler, Listener, serve_with};
use crate::{Error, ErrorKind, Result};

/// Bytes of a request's body at most: a function's file has 256 KiB, which JSON may escape.
const MAX_BODY: usize = 2 << 20;

/// The longest that a request may take, a deploy of a large image included.
const LONGEST: Duration = Duration::from_secs(86_400 + 300);

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
    serve_with(listener, Arc::new(Control { node, api }), shutdown).await
}

struct Control {
    node: Arc<Node>,
    api: Arc<Api>,
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
        if path != "/openapi.json" && path != "/v1" && !path.starts_with("/v1/") {
            return Arc::clone(&self.api).answer(client, request);
        }
        async move { self.control(request).await.unwrap_or_else(|error| failed(&error)) }.boxed()
    }
}

impl Control {
    async fn control(&self, request: Request<Incoming>) -> Result<Response<Body>> {
        let (path, method) = (request.uri().path().to_owned(), request.method().clone());
        let mut parts = path.trim_start_matches('/').split('/');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some("openapi.json"), None, ..) => Ok(match method {
                Method::GET => json_response(StatusCode::OK, Bytes::from_static(OPENAPI.as_bytes())),
                _ => not_allowed("GET"),
            }),
            (Some("v1"), Some("functions"), None, _) => match method {
                Method::GET => Ok(answer(&json!({ "functions": self.node.functions() }))),
                Method::POST => self.deploy(request).await,
                _ => Ok(not_allowed("GET, POST")),
            },
            (Some("v1"), Some("functions"), Some(name), None) => {
                let (name, namespace) = (decoded(name), namespace(request.uri().query()));
                match method {
                    Method::GET => Ok(answer(&self.node.function(namespace.as_deref(), &name)?)),
                    Method::DELETE => {
                        self.node.delete(namespace.as_deref(), &name).await?;
                        Ok(answer(&json!({ "deleted": name })))
                    }
                    _ => Ok(not_allowed("GET, DELETE")),
                }
            }
            (Some("v1"), Some("usage"), part @ (None | Some("records")), None) => {
                let query = request.uri().query();
                match (method, part) {
                    (Method::GET, None) => Ok(answer(&usage::sums(&self.node, query).await?)),
                    (Method::GET, Some(_)) => usage::lines(&self.node, query),
                    _ => Ok(not_allowed("GET")),
                }
            }
            (Some("v1"), Some("events"), None, _) => Ok(match method {
                Method::GET => lines(self.node.events()),
                _ => not_allowed("GET"),
            }),
            _ => Err(Error::new(ErrorKind::NotFound, format!("there is nothing at {path}"))
                .advise("GET /openapi.json tells what there is")),
        }
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

fn decoded(part: &str) -> String {
    percent_decode_str(part).decode_utf8_lossy().into_owned()
}

fn namespace(query: Option<&str>) -> Option<String> {
    let mut pairs = query?.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find(|(key, _)| *key == "namespace").map(|(_, value)| decoded(value))
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
        ErrorKind::InvalidFunction => StatusCode::BAD_REQUEST,
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

/// Events as lines, until the client goes or the node ends. Who is too slow is told how many it missed.
fn lines(events: broadcast::Receiver<NodeEvent>) -> Response<Body> {
    let lines = stream::unfold(events, |mut events| async move {
        let line = match events.recv().await {
            Ok(event) => serde_json::to_string(&event).unwrap_or_default(),
            Err(RecvError::Lagged(missed)) => json!({ "event": "missed", "count": missed }).to_string(),
            Err(RecvError::Closed) => return None,
        };
        let frame = Frame::data(Bytes::from(line + "\n"));
        Some((Ok::<_, body::BodyError>(frame), events))
    });
    let mut response = Response::new(StreamBody::new(lines).boxed_unsync());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    response
}
