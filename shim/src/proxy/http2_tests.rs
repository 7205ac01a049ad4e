//! HTTP/2 between hyper's client, the proxy, and hyper's servers of both versions on loopback.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use super::body::{Body, full};
use super::tests::{Proxy, SOON};
use crate::FunctionConfig;
use crate::instance::testing::TestGuest;
use crate::platform::fc;

/// A server of HTTP/2, or of HTTP/1.1, that answers by `answer`.
async fn server<F, R>(version: Version, answer: F) -> TestGuest
where
    F: Fn(Request<Incoming>) -> R + Clone + Send + 'static,
    R: Future<Output = Response<Body>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let guest = TestGuest::at(listener.local_addr().expect("address"));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (answer, stream) = (answer.clone(), TokioIo::new(stream));
            let service = service_fn(move |request| {
                let answer = answer(request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            if version == Version::HTTP_2 {
                let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(builder.serve_connection(stream, service));
            } else {
                tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(stream, service));
            }
        }
    });
    guest
}

async fn client(proxy: &Proxy) -> SendRequest<Body> {
    let stream = TcpStream::connect(&proxy.address).await.expect("connected");
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .expect("HTTP/2");
    tokio::spawn(connection);
    sender
}

fn call(path: &str, body: Body) -> Request<Body> {
    let request = Request::post(format!("http://f.example{path}")).version(Version::HTTP_2);
    let request = request.header("content-type", "application/grpc").header("te", "trailers");
    request.body(body).expect("a request")
}

/// Chunks a moment apart, then trailers.
fn in_pieces(pieces: &'static [&'static str], trailers: HeaderMap) -> Body {
    let data = pieces.iter().map(|piece| Frame::data(Bytes::from_static(piece.as_bytes())));
    let frames: Vec<_> = data.chain([Frame::trailers(trailers)]).map(Ok).collect();
    let slow = stream::unfold(frames.into_iter(), |mut frames| async move {
        sleep(Duration::from_millis(5)).await;
        frames.next().map(|frame| (frame, frames))
    });
    StreamBody::new(slow).boxed_unsync()
}

fn trailers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    pairs
        .iter()
        .map(|(name, value)| (name.parse().expect("a name"), HeaderValue::from_static(value)))
        .collect()
}

/// What arrived: version, address, some headers, body and trailers.
async fn seen(request: Request<Incoming>) -> String {
    let (parts, body) = request.into_parts();
    let header = |name: &str| {
        let all: Vec<_> = parts.headers.get_all(name).iter().map(|v| v.to_str().expect("text")).collect();
        all.join("|")
    };
    let heads = ["host", "te", "cookie", "x-fc-function-name", "x-fc-control-path"].map(header).join(" ");
    let whole = timeout(SOON, body.collect()).await.expect("in time").expect("a body");
    let ends = whole.trailers().cloned().unwrap_or_default();
    let ends: Vec<_> =
        ends.iter().map(|(name, value)| format!("{name}={}", value.to_str().expect("text"))).collect();
    format!(
        "{:?} {} [{heads}] {} {}",
        parts.version,
        parts.uri,
        String::from_utf8_lossy(&whole.to_bytes()),
        ends.join(",")
    )
}

#[tokio::test]
async fn grpc_goes_over_http_2_with_trailers_both_ways() {
    let guest = server(Version::HTTP_2, |request| async move {
        let seen: &'static str = seen(request).await.leak();
        let mut response =
            Response::new(in_pieces(vec![seen].leak(), trailers(&[("grpc-status", "0"), ("x-own", "1")])));
        response.headers_mut().insert("x-fc-status", HeaderValue::from_static("200"));
        response
    })
    .await;
    let proxy = Proxy::start(&guest, fc()).await;
    let mut client = client(&proxy).await;
    let sent = trailers(&[("x-last", "1"), ("x-fc-forged", "1")]);
    let request = call("/pkg.Service/Method?x=1", in_pieces(&["one ", "two"], sent));
    let response = client.send_request(request).await.expect("answered");
    assert_eq!((response.status(), response.version()), (StatusCode::OK, Version::HTTP_2));
    assert!(response.headers().contains_key("x-fc-request-id"), "{response:?}");
    assert!(!response.headers().contains_key("x-fc-status"), "{response:?}");
    let whole = response.into_body().collect().await.expect("whole");
    assert_eq!(whole.trailers().expect("trailers")["grpc-status"], "0");
    assert_eq!(
        whole.to_bytes(),
        "HTTP/2.0 http://f.example/pkg.Service/Method?x=1 [ trailers  resize /http-invoke] one two x-last=1"
    );
}

#[tokio::test]
async fn other_requests_go_on_as_http_1() {
    let guest =
        server(Version::HTTP_11, |request| async move { Response::new(full(seen(request).await.into())) })
            .await;
    let proxy = Proxy::start(&guest, fc()).await;
    let mut client = client(&proxy).await;
    for body in ["", "the body"] {
        let request =
            Request::put("http://f.example:81/a%20b?c").header("cookie", "a=1").header("cookie", "b=2");
        let request = request.version(Version::HTTP_2).body(full(body.into())).expect("a request");
        let response = client.send_request(request).await.expect("answered");
        assert_eq!(response.version(), Version::HTTP_2);
        assert!(response.headers().contains_key("x-fc-invocation-duration"), "{response:?}");
        let expected = format!("HTTP/1.1 /a%20b?c [f.example:81  a=1; b=2 resize /http-invoke] {body} ");
        assert_eq!(response.into_body().collect().await.expect("whole").to_bytes(), expected);
    }
}

/// A stream that stands still does not stop others on its connection, and all share one to the server.
#[tokio::test]
async fn many_calls_share_a_connection() {
    let guest = server(Version::HTTP_2, |request| async move {
        if request.uri().path() == "/slow" {
            sleep(Duration::from_secs(60)).await;
        }
        Response::new(request.into_body().map_err(Into::into).boxed_unsync())
    })
    .await;
    let proxy = Proxy::start(&guest, fc()).await;
    let client = client(&proxy).await;
    let _still = tokio::spawn(client.clone().send_request(call("/slow", full("x".into()))));
    let calls = (0..50).map(|number| {
        let mut client = client.clone();
        tokio::spawn(async move {
            let text = format!("{number}:{}", "x".repeat(number * 1000));
            let response =
                client.send_request(call("/echo", full(text.clone().into()))).await.expect("answered");
            assert_eq!(response.into_body().collect().await.expect("whole").to_bytes(), text);
        })
    });
    for call in calls.collect::<Vec<_>>() {
        timeout(SOON, call).await.expect("in time").expect("answered");
    }
    assert_eq!(guest.connections(), 2, "the one that found the server, and one for all calls");
}

#[tokio::test]
async fn the_time_limit_holds_for_calls_too() {
    let guest = server(Version::HTTP_2, |request| async move {
        let silent = stream::unfold((), |()| async {
            sleep(Duration::from_secs(60)).await;
            Some((Ok(Frame::data(Bytes::from_static(b"late"))), ()))
        });
        if request.uri().path() == "/silent" {
            sleep(Duration::from_secs(60)).await;
        }
        let first = stream::iter([Ok(Frame::data(Bytes::from_static(b"first")))]);
        Response::new(StreamBody::new(first.chain(silent)).boxed_unsync())
    })
    .await;
    let mut config = FunctionConfig::new("resize", fc());
    config.timeout = Duration::from_secs(1);
    let proxy = Proxy::with(&guest, config).await;
    let mut client = client(&proxy).await;
    let response = client.send_request(call("/silent", full("".into()))).await.expect("answered");
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    let text = response.into_body().collect().await.expect("whole").to_bytes();
    assert!(
        text.starts_with(b"{\"errorMessage\":\"Function timed out after 1 seconds (maxMemoryUsage: "),
        "{text:?}"
    );
    // One whose head has gone out just ends, without trailers.
    let response = client.send_request(call("/begun", full("".into()))).await.expect("answered");
    assert_eq!(response.status(), StatusCode::OK);
    let whole = timeout(SOON, response.into_body().collect()).await.expect("in time").expect("an end");
    assert!(whole.trailers().is_none());
    assert_eq!(whole.to_bytes(), "first");
}

#[tokio::test]
async fn limits_hold_for_calls_too() {
    let guest = server(Version::HTTP_2, |request| async move {
        // Reads all that comes: the limit must not depend on a server that holds back.
        let _ = request.into_body().collect().await;
        Response::new(full("taken".into()))
    })
    .await;
    let proxy = Proxy::start(&guest, fc()).await;
    let mut client = client(&proxy).await;
    let mut request = call("/", full("x".into()));
    request.headers_mut().insert("x-large", HeaderValue::from_str(&"x".repeat(9 * 1024)).expect("a value"));
    let large = Full::new(Bytes::from(vec![b'x'; 33 << 20])).map_err(|never| match never {}).boxed_unsync();
    for (request, text) in [(request, "request headers exceed"), (call("/", large), "33554432 bytes")] {
        let response = client.send_request(request).await.expect("answered");
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{text}");
        let body = response.into_body().collect().await.expect("whole").to_bytes();
        let body = String::from_utf8_lossy(&body).into_owned();
        assert!(body.contains(r#""Code":"InvalidArgument""#) && body.contains(text), "{body}");
    }
    let endless = stream::repeat_with(|| Ok(Frame::data(Bytes::from(vec![0; 16 << 10]))));
    let response =
        client.send_request(call("/", StreamBody::new(endless).boxed_unsync())).await.expect("answered");
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    // And the connection goes on.
    let response = client.send_request(call("/", full("x".into()))).await.expect("answered");
    assert_eq!(response.into_body().collect().await.expect("whole").to_bytes(), "taken");
}

/// One call that a server works on.
struct Works(Arc<AtomicUsize>);

impl Works {
    fn begin(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for Works {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn until_it_works_on(count: &AtomicUsize, calls: usize) {
    let reached = async {
        while count.load(Ordering::SeqCst) != calls {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, reached).await.expect("so many calls, and no more");
}

#[tokio::test]
async fn a_client_that_resets_its_call_lets_go_of_the_server() {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let guest = server(Version::HTTP_2, move |_| {
        let works = Works::begin(&counted);
        async move {
            sleep(Duration::from_secs(60)).await;
            drop(works);
            Response::new(full("late".into()))
        }
    })
    .await;
    let proxy = Proxy::start(&guest, fc()).await;
    let mut client = client(&proxy).await;
    let waiting = tokio::spawn(client.send_request(call("/", full("x".into()))));
    until_it_works_on(&count, 1).await;
    waiting.abort();
    until_it_works_on(&count, 0).await;
}

#[tokio::test]
async fn a_client_that_reads_no_answer_does_not_outlive_the_time_limit() {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let guest = server(Version::HTTP_2, move |_| {
        let works = Works::begin(&counted);
        let endless = stream::repeat_with(move || {
            let _held = &works;
            Ok(Frame::data(Bytes::from(vec![0; 16 << 10])))
        });
        async move { Response::new(StreamBody::new(endless).boxed_unsync()) }
    })
    .await;
    let mut config = FunctionConfig::new("resize", fc());
    config.timeout = Duration::from_secs(1);
    let proxy = Proxy::with(&guest, config).await;
    let mut client = client(&proxy).await;
    let response = client.send_request(call("/", full("x".into()))).await.expect("answered");
    until_it_works_on(&count, 1).await;
    until_it_works_on(&count, 0).await;
    drop(response);
}

#[tokio::test]
async fn a_server_that_ended_its_connection_gets_the_next_call_on_another() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let guest = TestGuest::at(listener.local_addr().expect("address"));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(|_| async { Ok::<_, Infallible>(Response::new(full("answer".into()))) });
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let mut connection = Box::pin(builder.serve_connection(TokioIo::new(stream), service));
            // One answer, and it is over.
            let _ = timeout(Duration::from_millis(200), connection.as_mut()).await;
        }
    });
    let proxy = Proxy::start(&guest, fc()).await;
    let mut client = client(&proxy).await;
    for _ in 0..3 {
        let response = client.send_request(call("/", full("x".into()))).await.expect("answered");
        assert_eq!(response.status(), StatusCode::OK);
        sleep(Duration::from_millis(400)).await;
    }
}
