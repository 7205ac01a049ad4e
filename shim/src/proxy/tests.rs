//! The proxy between real clients and real servers on loopback.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::{Listener, serve};
use crate::instance::testing::{TestGuest, instance};
use crate::platform::{fc, scf};
use crate::{FunctionConfig, Platform};

pub(super) const SOON: Duration = Duration::from_secs(10);

/// A server written by hand, so that tests decide about every byte.
pub(super) struct Server {
    listener: TcpListener,
    pub(super) guest: TestGuest,
}

impl Server {
    pub(super) async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let guest = TestGuest::at(listener.local_addr().expect("address"));
        Self { listener, guest }
    }

    pub(super) async fn accept(&self) -> BufStream<TcpStream> {
        BufStream::new(timeout(SOON, self.listener.accept()).await.expect("in time").expect("accepted").0)
    }
}

/// A proxy on a free port of loopback; stopped when dropped.
pub(super) struct Proxy {
    pub(super) address: String,
    stop: Option<oneshot::Sender<()>>,
    served: tokio::task::JoinHandle<crate::Result<()>>,
}

impl Proxy {
    pub(super) async fn start(guest: &TestGuest, platform: &'static dyn Platform) -> Self {
        Self::with(guest, FunctionConfig::new("resize", platform)).await
    }

    pub(super) async fn with(guest: &TestGuest, config: FunctionConfig) -> Self {
        let listener = Listener::tcp(([127, 0, 0, 1], 0).into()).await.expect("listens");
        let address = listener.address().trim_start_matches("http://").to_owned();
        let instance = Arc::new(instance(guest, config).await);
        let (stop, stopped) = oneshot::channel::<()>();
        let served = tokio::spawn(serve(listener, instance, async move { drop(stopped.await) }));
        Self { address, stop: Some(stop), served }
    }

    pub(super) async fn client(&self) -> BufStream<TcpStream> {
        BufStream::new(TcpStream::connect(&self.address).await.expect("connected"))
    }
}

pub(super) async fn send(stream: &mut BufStream<TcpStream>, text: &str) {
    stream.write_all(text.as_bytes()).await.expect("written");
    stream.flush().await.expect("flushed");
}

/// Request or status line and headers, lower-case names, sorted.
pub(super) async fn head(stream: &mut BufStream<TcpStream>) -> (String, Vec<String>) {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        let count = timeout(SOON, stream.read_line(&mut line)).await.expect("in time").expect("read");
        assert!(count > 0, "ended after {lines:?}");
        if line == "\r\n" {
            break;
        }
        lines.push(line.trim_end().to_owned());
    }
    let first = lines.remove(0);
    lines.sort();
    (first, lines)
}

pub(super) async fn exactly(stream: &mut BufStream<TcpStream>, expected: &str) {
    let mut found = vec![0; expected.len()];
    timeout(SOON, stream.read_exact(&mut found)).await.expect("in time").expect("read");
    assert_eq!(String::from_utf8_lossy(&found), expected);
}

pub(super) fn has(headers: &[String], line: &str) -> bool {
    headers.iter().any(|header| header == line)
}

#[tokio::test]
async fn method_path_query_headers_and_body_arrive_as_they_are() {
    let server = Server::new().await;
    let proxy = Proxy::start(&server.guest, fc()).await;
    let mut client = proxy.client().await;
    send(
        &mut client,
        "PATCH /a%2Fb/..//c?x=1&x=%20&%7e#no HTTP/1.1\r\nHost: example.com:81\r\nX-Two: a\r\nX-Two: b\r\n\
         X-Fc-Account-Id: 1\r\nConnection: close, x-hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=1\r\n\
         Content-Length: 5\r\n\r\nhello",
    )
    .await;
    let mut inner = server.accept().await;
    let (line, headers) = head(&mut inner).await;
    assert_eq!(line, "PATCH /a%2Fb/..//c?x=1&x=%20&%7e HTTP/1.1");
    for expected in [
        "host: example.com:81",
        "x-two: a",
        "x-two: b",
        "content-length: 5",
        "x-fc-account-id: 1234567890123456",
        "x-fc-control-path: /http-invoke",
        "x-fc-base-path: /a%2Fb/..//c",
    ] {
        assert!(has(&headers, expected), "{expected} in {headers:?}");
    }
    for gone in ["connection", "x-hop", "keep-alive", "transfer-encoding"] {
        assert!(
            !headers.iter().any(|header| header.starts_with(&format!("{gone}:"))),
            "{gone} in {headers:?}"
        );
    }
    exactly(&mut inner, "hello").await;
    send(
        &mut inner,
        "HTTP/1.1 418 Short\r\nX-A: 1\r\nX-A: 2\r\nX-Fc-Status: 1\r\nContent-Length: 3\r\n\r\nabc",
    )
    .await;
    let (line, headers) = head(&mut client).await;
    assert!(line.starts_with("HTTP/1.1 418"), "{line}");
    assert!(
        has(&headers, "x-a: 1") && has(&headers, "x-a: 2") && has(&headers, "x-fc-instance-id: the-instance")
    );
    assert!(!headers.iter().any(|header| header.starts_with("x-fc-status")), "{headers:?}");
    exactly(&mut client, "abc").await;
}

#[tokio::test]
async fn both_bodies_stream_at_once() {
    let server = Server::new().await;
    let proxy = Proxy::start(&server.guest, fc()).await;
    let mut client = proxy.client().await;
    send(&mut client, "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    let mut inner = server.accept().await;
    let (_, headers) = head(&mut inner).await;
    assert!(has(&headers, "transfer-encoding: chunked"), "{headers:?}");
    send(&mut inner, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    head(&mut client).await;
    // Each chunk is sent only after the echo of the one before has come back.
    for chunk in ["3\r\none\r\n", "3\r\ntwo\r\n", "5\r\nthree\r\n"] {
        send(&mut client, chunk).await;
        exactly(&mut inner, chunk).await;
        send(&mut inner, chunk).await;
        exactly(&mut client, chunk).await;
    }
    send(&mut client, "0\r\n\r\n").await;
    exactly(&mut inner, "0\r\n\r\n").await;
    send(&mut inner, "0\r\n\r\n").await;
    exactly(&mut client, "0\r\n\r\n").await;
}

#[tokio::test]
async fn trailers_go_both_ways() {
    let server = Server::new().await;
    let proxy = Proxy::start(&server.guest, scf()).await;
    let mut client = proxy.client().await;
    send(
        &mut client,
        "POST / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n\
         1\r\na\r\n0\r\nx-sum: 7\r\n\r\n",
    )
    .await;
    let mut inner = server.accept().await;
    head(&mut inner).await;
    exactly(&mut inner, "1\r\na\r\n0\r\nx-sum: 7\r\n\r\n").await;
    send(
        &mut inner,
        "HTTP/1.1 200 OK\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nb\r\n0\r\nx-sum: 8\r\n\r\n",
    )
    .await;
    head(&mut client).await;
    exactly(&mut client, "1\r\nb\r\n0\r\nx-sum: 8\r\n\r\n").await;
}

#[tokio::test]
async fn the_connection_to_the_server_is_kept() {
    let server = Server::new().await;
    let proxy = Proxy::start(&server.guest, fc()).await;
    let mut inner = server.accept().await;
    for number in 0..5 {
        let mut client = proxy.client().await;
        send(&mut client, &format!("POST /{number} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")).await;
        let (line, _) = head(&mut inner).await;
        assert_eq!(line, format!("POST /{number} HTTP/1.1"));
        send(&mut inner, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx").await;
        head(&mut client).await;
        exactly(&mut client, "x").await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_kept_connection_that_was_closed_is_replaced() {
    let server = Server::new().await;
    let proxy = Proxy::start(&server.guest, fc()).await;
    drop(server.accept().await);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut client = proxy.client().await;
    send(&mut client, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi").await;
    let mut inner = server.accept().await;
    head(&mut inner).await;
    exactly(&mut inner, "hi").await;
    send(&mut inner, "HTTP/1.1 204 No Content\r\n\r\n").await;
    assert!(head(&mut client).await.0.starts_with("HTTP/1.1 204"));
}

/// What the client gets, and how many requests the server saw, when the server closes each
/// connection after it has read a request.
async fn closing_server(platform: &'static dyn Platform, request: &str) -> (String, String, usize) {
    let server = Server::new().await;
    let proxy = Proxy::start(&server.guest, platform).await;
    let seen = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&seen);
    let serving = tokio::spawn(async move {
        loop {
            let mut inner = server.accept().await;
            head(&mut inner).await;
            counter.fetch_add(1, Ordering::SeqCst);
        }
    });
    let mut client = proxy.client().await;
    send(&mut client, request).await;
    let (line, headers) = head(&mut client).await;
    let length = headers.iter().find_map(|header| header.strip_prefix("content-length: ")).expect("length");
    let mut body = vec![0; length.parse().expect("number")];
    client.read_exact(&mut body).await.expect("body");
    serving.abort();
    (line, String::from_utf8(body).expect("UTF-8"), seen.load(Ordering::SeqCst))
}

#[tokio::test]
async fn a_post_that_the_server_has_seen_is_not_sent_again() {
    let (line, body, seen) =
        closing_server(fc(), "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").await;
    assert!(line.starts_with("HTTP/1.1 502"), "{line}");
    assert!(body.starts_with(
        r#"{"errorMessage":"Process exited unexpectedly before completing request (duration: "#
    ));
    assert_eq!(seen, 1);
}

#[tokio::test]
async fn a_get_without_a_body_is_sent_again_once() {
    let (line, _, seen) = closing_server(scf(), "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(line.starts_with("HTTP/1.1 443"), "{line}");
    assert_eq!(seen, 2, "the kept connection and a fresh one");
    let (_, _, seen) = closing_server(fc(), "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx").await;
    assert_eq!(seen, 1, "a body cannot be sent twice");
}

#[tokio::test]
async fn a_server_that_does_not_speak_http_is_a_bad_response() {
    let server = Server::new().await;
    let proxy = Proxy::start(&server.guest, fc()).await;
    let mut client = proxy.client().await;
    send(&mut client, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut inner = server.accept().await;
    head(&mut inner).await;
    send(&mut inner, "SSH-2.0-OpenSSH_9.2\r\n\r\n").await;
    let (line, _) = head(&mut client).await;
    assert!(line.starts_with("HTTP/1.1 502"), "{line}");
}

#[tokio::test]
async fn the_time_limit_holds_before_and_after_the_headers() {
    let server = Server::new().await;
    let mut config = FunctionConfig::new("resize", scf());
    config.timeout = Duration::from_secs(1);
    let proxy = Proxy::with(&server.guest, config).await;
    let mut client = proxy.client().await;
    let mut inner = server.accept().await;
    send(&mut client, "GET /silent HTTP/1.1\r\nHost: a\r\n\r\n").await;
    head(&mut inner).await;
    let (line, _) = head(&mut client).await;
    assert!(line.starts_with("HTTP/1.1 433"), "{line}");
    exactly(&mut client, r#"{"errorMessage":"Invoking task timed out after 1 seconds","statusCode":433}"#)
        .await;

    send(&mut client, "GET /endless HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut inner = server.accept().await;
    head(&mut inner).await;
    send(&mut inner, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n").await;
    head(&mut client).await;
    exactly(&mut client, "1\r\nx\r\n").await;
    let mut rest = Vec::new();
    timeout(SOON, client.read_to_end(&mut rest)).await.expect("cut off").ok();
    assert!(rest.is_empty(), "no clean end: {rest:?}");
}

#[tokio::test]
async fn a_client_that_goes_away_lets_go_of_the_server() {
    let server = Server::new().await;
    let proxy = Proxy::start(&server.guest, fc()).await;
    let mut client = proxy.client().await;
    send(&mut client, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut inner = server.accept().await;
    head(&mut inner).await;
    drop(client);
    let mut rest = Vec::new();
    timeout(SOON, inner.read_to_end(&mut rest)).await.expect("let go").expect("read");
    assert!(rest.is_empty());
}

#[tokio::test]
async fn an_upgraded_connection_is_a_tunnel() {
    let server = Server::new().await;
    let proxy = Proxy::start(&server.guest, fc()).await;
    let mut client = proxy.client().await;
    send(
        &mut client,
        "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Key: abc\r\n\r\n",
    )
    .await;
    let mut inner = server.accept().await;
    let (_, headers) = head(&mut inner).await;
    assert!(has(&headers, "upgrade: websocket") && has(&headers, "connection: Upgrade"), "{headers:?}");
    send(
        &mut inner,
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: def\r\n\r\n",
    )
    .await;
    let (line, headers) = head(&mut client).await;
    assert!(line.starts_with("HTTP/1.1 101"), "{line}");
    assert!(has(&headers, "upgrade: websocket") && has(&headers, "sec-websocket-accept: def"), "{headers:?}");
    send(&mut client, "ping").await;
    exactly(&mut inner, "ping").await;
    send(&mut inner, "pong").await;
    exactly(&mut client, "pong").await;
    drop(inner);
    let mut rest = Vec::new();
    timeout(SOON, client.read_to_end(&mut rest)).await.expect("ended").expect("read");
}

#[tokio::test]
async fn a_body_that_waits_for_continue_is_asked_for() {
    let server = Server::new().await;
    let proxy = Proxy::start(&server.guest, fc()).await;
    let mut client = proxy.client().await;
    send(&mut client, "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        .await;
    let (line, _) = head(&mut client).await;
    assert!(line.starts_with("HTTP/1.1 100"), "{line}");
    send(&mut client, "hi").await;
    let mut inner = server.accept().await;
    head(&mut inner).await;
    send(&mut inner, "HTTP/1.1 100 Continue\r\n\r\n").await;
    exactly(&mut inner, "hi").await;
    send(&mut inner, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    assert!(head(&mut client).await.0.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn too_many_header_bytes_are_refused_and_the_server_sees_nothing() {
    let server = Server::new().await;
    let proxy = Proxy::start(&server.guest, fc()).await;
    let mut client = proxy.client().await;
    let value = "x".repeat(9 * 1024);
    send(&mut client, &format!("GET / HTTP/1.1\r\nHost: a\r\nX-Large: {value}\r\n\r\n")).await;
    let (line, _) = head(&mut client).await;
    assert!(line.starts_with("HTTP/1.1 400"), "{line}");
    let mut client = proxy.client().await;
    let value = "x".repeat(200 * 1024);
    // The connection may end before all has been written.
    let request = format!("GET / HTTP/1.1\r\nHost: a\r\nX-Large: {value}\r\n\r\n");
    let _ = client.write_all(request.as_bytes()).await;
    let _ = client.flush().await;
    let mut inner = server.accept().await;
    assert!(timeout(Duration::from_millis(200), inner.read_u8()).await.is_err(), "nothing was sent");
}

#[tokio::test]
async fn a_shutdown_lets_running_requests_end_and_takes_no_more() {
    let server = Server::new().await;
    let mut proxy = Proxy::start(&server.guest, fc()).await;
    let mut client = proxy.client().await;
    send(&mut client, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut inner = server.accept().await;
    head(&mut inner).await;
    drop(proxy.stop.take());
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(TcpStream::connect(&proxy.address).await.is_err(), "no new connections");
    send(&mut inner, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    head(&mut client).await;
    exactly(&mut client, "ok").await;
    timeout(SOON, proxy.served).await.expect("in time").expect("joined").expect("served");
}
