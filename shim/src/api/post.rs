//! Posting records of asynchronous events.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST};
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// Of one try.
const PATIENCE: Duration = Duration::from_secs(10);

/// Tries in all, and the pause before the second.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(500);

/// Posts it; the error is the last try's.
pub(super) async fn record(address: &Uri, record: &Value) -> Result<(), String> {
    let body = Bytes::from(record.to_string());
    let mut last = String::new();
    for number in 0..TRIES {
        if number > 0 {
            tokio::time::sleep(PAUSE * number).await;
        }
        match tokio::time::timeout(PATIENCE, once(address, body.clone())).await {
            Ok(Ok(status)) if status.is_success() => return Ok(()),
            Ok(Ok(status)) => last = format!("{address} answered {status}"),
            Ok(Err(error)) => last = format!("{address}: {error}"),
            Err(_) => last = format!("{address} did not answer within {PATIENCE:?}"),
        }
    }
    Err(last)
}

async fn once(address: &Uri, body: Bytes) -> Result<StatusCode, Box<dyn std::error::Error + Send + Sync>> {
    let authority = address.authority().ok_or("no host")?;
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((host, authority.port_u16().unwrap_or(80))).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let path = address.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    let length = body.len();
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = Uri::from(path);
    let headers = request.headers_mut();
    headers.insert(HOST, HeaderValue::from_str(authority.as_str())?);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    let answer = sender.send_request(request).await;
    connection.abort();
    Ok(answer?.status())
}
