//! Which path does what.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::HeaderValue;
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Map, Value, json};

use crate::http::{Body, full, json, text};
use crate::query::Query;
use crate::{lifecycle, load, view};

/// Headers that the event answer repeats; never those that carry credentials.
const SHOWN_HEADERS: [&str; 10] = [
    "content-type",
    "traceparent",
    "x-fc-request-id",
    "x-fc-control-path",
    "x-fc-function-name",
    "x-fc-region",
    "x-scf-request-id",
    "x-scf-name",
    "x-scf-region",
    "x-scf-trigger-src",
];

/// Answers one request.
pub(crate) async fn answer(request: Request<Incoming>) -> Response<Body> {
    let path = own_path(request.uri().path()).to_owned();
    let query = Query::parse(request.uri().query());
    let argument = path.rsplit('/').next().unwrap_or_default().to_owned();
    let first = path.split('/').nth(1).unwrap_or_default();
    match first {
        "invoke" | "event-invoke" => event(request).await,
        "echo" => echo(request),
        "request" => whole_request(request).await,
        "headers" => json(&header_pairs(request.headers())),
        "upgrade" => upgrade(request),
        "stream" => chunks(query.number("n", 3), query.number("ms", 0)),
        "status" => status(&argument),
        "sleep" => sleep(&argument).await,
        "large" => text(StatusCode::OK, "x".repeat(usize::try_from(query.number("bytes", 0)).unwrap_or(0))),
        "head" => head(query.number("bytes", 0)),
        "function-error" => function_error(),
        "initialize" | "pre-freeze" | "pre-stop" | "health" | "sick" | "lifecycle" => {
            lifecycle::answer(first, request.method().as_str(), request.headers(), &argument).await
        }
        "fill" | "alloc" | "fork" | "exit" | "oom" | "log" => load::answer(first, &argument, &query).await,
        _ => view::answer(first, &query).unwrap_or_else(|| text(StatusCode::NOT_FOUND, "no such path\n")),
    }
}

/// Without fc 2.0's `/VERSION/proxy/SERVICE/FUNCTION`, which a function gets to see.
fn own_path(path: &str) -> &str {
    let proxied = path.split('/').nth(2) == Some("proxy");
    let own = path.match_indices('/').nth(4).filter(|_| proxied).map(|(slash, _)| &path[slash..]);
    own.unwrap_or(path)
}

/// The event and what came with it. An event may ask for something else: `{"fail": true}`,
/// `{"status": 500}`, `{"exit": 3}`, `{"sleep_ms": 1000}`, `{"answer_bytes": 7}`; one that was an HTTP request by its path, see
/// [`http_event`].
async fn event(request: Request<Incoming>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let Ok(collected) = body.collect().await else {
        return text(StatusCode::BAD_REQUEST, "the event ended early\n");
    };
    let bytes = collected.to_bytes();
    let event = serde_json::from_slice::<Value>(&bytes)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
    if event["fail"] == true {
        return function_error();
    }
    if let Some(number) = event["status"].as_u64() {
        return status(&number.to_string());
    }
    if let Some(code) = event["exit"].as_i64() {
        std::process::exit(i32::try_from(code).unwrap_or(1));
    }
    if event["oom"] == true {
        return load::answer("oom", "", &Query::default()).await;
    }
    if let Some(millis) = event["sleep_ms"].as_u64() {
        return sleep(&millis.to_string()).await;
    }
    if let Some(bytes) = event["answer_bytes"].as_u64() {
        return text(StatusCode::OK, "x".repeat(usize::try_from(bytes).unwrap_or(0)));
    }
    if let Some(answer) = http_event(&event) {
        return answer;
    }
    let shown = SHOWN_HEADERS.iter().filter_map(|name| {
        let value = parts.headers.get(*name)?;
        Some(((*name).to_owned(), Value::String(String::from_utf8_lossy(value.as_bytes()).into_owned())))
    });
    json(&json!({
        "method": parts.method.as_str(),
        "path": parts.uri.path(),
        "event": event,
        "headers": shown.collect::<Map<_, _>>(),
    }))
}

/// Answers to HTTP requests that came as events.
fn http_event(event: &Value) -> Option<Response<Body>> {
    match event["path"].as_str()? {
        "/mirror" => Some(json(&json!({ "statusCode": 200, "body": event.to_string() }))),
        "/integrated" => Some(json(&json!({
            "statusCode": 201,
            "headers": { "Content-Type": "image/x-two-bytes", "X-Several": ["one", "two"] },
            "isBase64Encoded": true,
            "body": "/wA=",
        }))),
        "/malformed" => Some(json(&json!({ "statusCode": "200", "body": "" }))),
        "/plain" => Some(text(StatusCode::OK, "no JSON\n")),
        "/crash" => std::process::exit(3),
        _ => None,
    }
}

/// Everything that arrived, for tests of the proxy.
async fn whole_request(request: Request<Incoming>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let Ok(collected) = body.collect().await else {
        return text(StatusCode::BAD_REQUEST, "the body ended early\n");
    };
    let trailers = collected.trailers().map(header_pairs);
    json(&json!({
        "method": parts.method.as_str(),
        "uri": parts.uri.to_string(),
        "version": format!("{:?}", parts.version),
        "headers": header_pairs(&parts.headers),
        "body": String::from_utf8_lossy(&collected.to_bytes()),
        "trailers": trailers,
    }))
}

fn header_pairs(headers: &HeaderMap) -> Value {
    let pairs =
        headers.iter().map(|(name, value)| json!([name.as_str(), String::from_utf8_lossy(value.as_bytes())]));
    Value::Array(pairs.collect())
}

/// The body goes back as it comes, chunk by chunk.
fn echo(request: Request<Incoming>) -> Response<Body> {
    Response::new(request.into_body().boxed())
}

/// Switches to a protocol that says everything back, until the other side ends.
fn upgrade(request: Request<Incoming>) -> Response<Body> {
    let protocol = request.headers().get(hyper::header::UPGRADE).cloned();
    tokio::spawn(async move {
        let Ok(upgraded) = hyper::upgrade::on(request).await else { return };
        let (mut reader, mut writer) = tokio::io::split(TokioIo::new(upgraded));
        // Ends when either side does.
        let _ = tokio::io::copy(&mut reader, &mut writer).await;
    });
    let mut response = text(StatusCode::SWITCHING_PROTOCOLS, "");
    response.headers_mut().insert(hyper::header::CONNECTION, HeaderValue::from_static("upgrade"));
    let protocol = protocol.unwrap_or(HeaderValue::from_static("echo"));
    response.headers_mut().insert(hyper::header::UPGRADE, protocol);
    response
}

/// `count` chunks, `millis` apart.
fn chunks(count: u64, millis: u64) -> Response<Body> {
    let frames = stream::unfold(0, move |number| async move {
        if number == count {
            return None;
        }
        if number > 0 {
            tokio::time::sleep(Duration::from_millis(millis)).await;
        }
        Some((Ok(Frame::data(Bytes::from(format!("chunk {number}\n")))), number + 1))
    });
    Response::new(StreamBody::new(frames).boxed())
}

fn status(argument: &str) -> Response<Body> {
    let status = argument.parse::<u16>().ok().and_then(|number| StatusCode::from_u16(number).ok());
    let Some(status) = status.filter(|status| !status.is_informational()) else {
        return text(StatusCode::BAD_REQUEST, "not a final status\n");
    };
    let mut response = text(status, format!("status {}\n", status.as_u16()));
    response.headers_mut().insert("x-function", HeaderValue::from_static("yes"));
    response
}

/// A header of so many bytes.
fn head(bytes: u64) -> Response<Body> {
    let value = "x".repeat(usize::try_from(bytes).unwrap_or(0));
    let mut response = text(StatusCode::OK, "");
    if let Ok(value) = HeaderValue::from_str(&value) {
        response.headers_mut().insert("x-large", value);
    }
    response
}

async fn sleep(argument: &str) -> Response<Body> {
    let millis = argument.parse().unwrap_or(0);
    tokio::time::sleep(Duration::from_millis(millis)).await;
    text(StatusCode::OK, format!("slept {millis} ms\n"))
}

/// How a function of FC says that the invocation failed.
fn function_error() -> Response<Body> {
    let mut response =
        full(StatusCode::NOT_FOUND, "application/json", r#"{"errorMessage":"the function says no"}"#);
    response.headers_mut().insert("x-fc-status", HeaderValue::from_static("404"));
    response
}
