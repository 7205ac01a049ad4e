//! The server and the few kinds of answers.

use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::Value;
use tokio::net::TcpListener;

/// A body that may still be coming.
pub(crate) type Body = BoxBody<Bytes, hyper::Error>;

/// Serves until the process ends; with `listen` false it never listens and waits for ever.
pub(crate) async fn serve(address: SocketAddr, listen: bool) -> std::io::Result<()> {
    if !listen {
        return std::future::pending().await;
    }
    let listener = TcpListener::bind(address).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        // Small chunks must leave at once, or the tests of streaming measure Nagle's algorithm.
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            let service = service_fn(|request: Request<Incoming>| async {
                Ok::<_, Infallible>(crate::routes::answer(request).await)
            });
            let mut server = hyper::server::conn::http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(None);
            // The peer closing is how most connections end.
            let _ = server.serve_connection(TokioIo::new(stream), service).with_upgrades().await;
        });
    }
}

/// An answer whose body is known.
pub(crate) fn full(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let body = Full::new(body.into()).map_err(|never| match never {}).boxed();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// 200 with JSON.
pub(crate) fn json(value: &Value) -> Response<Body> {
    full(StatusCode::OK, "application/json", value.to_string())
}

/// A status with a line of text.
pub(crate) fn text(status: StatusCode, line: impl Into<String>) -> Response<Body> {
    full(status, "text/plain; charset=utf-8", line.into())
}
