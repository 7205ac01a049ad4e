//! Clients and servers that mean no good.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::tests::{Proxy, SOON, Server, exactly, has, head, send};
use crate::FunctionConfig;
use crate::platform::{fc, scf};

#[tokio::test]
async fn a_client_that_stops_reading_does_not_outlive_the_time_limit() {
    let server = Server::new().await;
    let mut config = FunctionConfig::new("resize", fc());
    config.timeout = Duration::from_secs(1);
    let proxy = Proxy::with(&server.guest, config).await;
    let mut client = proxy.client().await;
    send(&mut client, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut inner = server.accept().await;
    head(&mut inner).await;
    send(&mut inner, "HTTP/1.1 200 OK\r\n\r\n").await;
    let endless = async { while inner.write_all(&[b'x'; 65536]).await.is_ok() {} };
    timeout(SOON, endless).await.expect("the server is let go of, though the client reads nothing");
}

#[tokio::test]
async fn a_server_that_always_has_more_does_not_outrun_the_time_limit() {
    let server = Server::new().await;
    let mut config = FunctionConfig::new("resize", scf());
    config.timeout = Duration::from_secs(1);
    let proxy = Proxy::with(&server.guest, config).await;
    let mut client = proxy.client().await;
    send(&mut client, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut inner = server.accept().await;
    head(&mut inner).await;
    send(&mut inner, "HTTP/1.1 200 OK\r\n\r\n").await;
    let writing = tokio::spawn(async move { while inner.write_all(&[b'x'; 65536]).await.is_ok() {} });
    let mut part = vec![0; 1 << 20];
    let reading = async { while client.read(&mut part).await.is_ok_and(|count| count > 0) {} };
    timeout(SOON, reading).await.expect("cut off");
    timeout(SOON, writing).await.expect("let go").expect("no panic");
}

#[tokio::test]
async fn trailers_cannot_stand_for_the_platforms_headers() {
    let server = Server::new().await;
    let proxy = Proxy::start(&server.guest, fc()).await;
    let mut client = proxy.client().await;
    let request = "POST / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nTrailer: x-sum, x-fc-account-id\r\n\
                   Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nx-fc-account-id: 666\r\nx-sum: 7\r\n\r\n";
    send(&mut client, request).await;
    let mut inner = server.accept().await;
    head(&mut inner).await;
    exactly(&mut inner, "2\r\nhi\r\n0\r\nx-sum: 7\r\n\r\n").await;
}

#[tokio::test]
async fn the_host_of_the_request_line_goes_before_the_header() {
    let server = Server::new().await;
    let proxy = Proxy::start(&server.guest, fc()).await;
    let mut client = proxy.client().await;
    send(&mut client, "GET http://u:p@named.example:80/a?b HTTP/1.1\r\nHost: other\r\n\r\n").await;
    let mut inner = server.accept().await;
    let (line, headers) = head(&mut inner).await;
    assert_eq!(line, "GET /a?b HTTP/1.1");
    assert!(has(&headers, "host: named.example:80") && !has(&headers, "host: other"), "{headers:?}");
}

#[tokio::test]
async fn a_client_that_breaks_its_own_body_is_not_the_functions_fault() {
    for (body, half_close) in [("5;a=b\nhello\r\n", false), ("5\r\nhe", true)] {
        let server = Server::new().await;
        let proxy = Proxy::start(&server.guest, fc()).await;
        let _inner = server.accept().await;
        let mut client = proxy.client().await;
        let head_of = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n";
        send(&mut client, &format!("{head_of}{body}")).await;
        if half_close {
            client.shutdown().await.expect("half closed");
        }
        let (line, _) = head(&mut client).await;
        assert!(line.starts_with("HTTP/1.1 499"), "{line}");
    }
}
