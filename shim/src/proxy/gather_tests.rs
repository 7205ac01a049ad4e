//! What the head of an answer to an HTTP request tells of its end.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::tests::{Proxy, Server, exactly, head, send};
use crate::FunctionConfig;
use crate::platform::{fc, scf};

/// The head and the body of the proxy's answer, when the server answers so to a request with these headers.
async fn answer(config: FunctionConfig, asked: &str, answer: &str) -> (String, Vec<String>, String) {
    let server = Server::new().await;
    let proxy = Proxy::with(&server.guest, config).await;
    let mut client = proxy.client().await;
    send(&mut client, &format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{asked}\r\n")).await;
    let mut inner = server.accept().await;
    head(&mut inner).await;
    send(&mut inner, answer).await;
    inner.shutdown().await.expect("ended");
    let (line, headers) = head(&mut client).await;
    let mut body = String::new();
    client.read_to_string(&mut body).await.expect("text");
    (line, headers, body)
}

fn value<'a>(headers: &'a [String], name: &str) -> Option<&'a str> {
    headers.iter().find_map(|header| header.strip_prefix(name)?.strip_prefix(": "))
}

const SMALL: &str = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc";

#[tokio::test]
async fn an_answer_of_known_length_tells_time_and_memory() {
    let config = || FunctionConfig::new("resize", fc());
    let (_, headers, body) = answer(config(), "", SMALL).await;
    assert_eq!((body.as_str(), value(&headers, "content-length")), ("abc", Some("3")));
    assert_eq!(value(&headers, "x-fc-max-memory-usage"), Some("10.00"));
    let ms: u64 = value(&headers, "x-fc-invocation-duration").expect("a time").parse().expect("a number");
    assert!((1..10_000).contains(&ms), "{ms}");
    assert_eq!(value(&headers, "x-fc-log-result"), None, "nobody asked");
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    let (_, headers, body) = answer(config(), "X-Fc-Log-Type: Tail\r\n", chunked).await;
    assert!(body.contains("abc"), "{body}");
    for name in ["x-fc-invocation-duration", "x-fc-max-memory-usage", "x-fc-log-result"] {
        assert_eq!(value(&headers, name), None, "it has gone out before");
    }
    let (_, headers, _) = answer(FunctionConfig::new("resize", scf()), "", SMALL).await;
    assert!(!headers.iter().any(|header| header.starts_with("x-fc-")), "{headers:?}");
}

#[tokio::test]
async fn who_asks_gets_the_log_with_the_answer_however_large() {
    let large = "x".repeat(100_000);
    let large = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{large}", large.len());
    for (concurrency, has_log) in [(1, true), (2, false)] {
        let mut config = FunctionConfig::new("resize", fc());
        config.concurrency = concurrency;
        let (_, headers, body) = answer(config, "X-Fc-Log-Type: tail\r\n", &large).await;
        assert_eq!(body.len(), 100_000);
        let log = value(&headers, "x-fc-log-result");
        // "FC Invoke Start RequestId: 1-"
        let begins = log.is_some_and(|log| log.starts_with("RkMgSW52b2tlIFN0YXJ0IFJlcXVlc3RJZDogMS"));
        assert_eq!((begins, log.is_some()), (has_log, has_log), "{log:?}");
    }
}

#[tokio::test]
async fn a_server_that_breaks_off_is_told_while_that_can_be() {
    let short = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc";
    let (line, headers, body) = answer(FunctionConfig::new("resize", fc()), "", short).await;
    assert!(line.starts_with("HTTP/1.1 502"), "{line}");
    assert!(body.starts_with(r#"{"errorMessage":"Process exited unexpectedly"#), "{body}");
    assert!(value(&headers, "x-fc-max-memory-usage").is_some(), "{headers:?}");
}

#[tokio::test]
async fn an_answer_without_a_body_keeps_its_length() {
    let server = Server::new().await;
    let proxy = Proxy::start(&server.guest, fc()).await;
    let mut client = proxy.client().await;
    send(&mut client, "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut inner = server.accept().await;
    head(&mut inner).await;
    send(&mut inner, "HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n").await;
    let (_, headers) = head(&mut client).await;
    assert_eq!(value(&headers, "content-length"), Some("1234"));
    send(&mut client, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    head(&mut inner).await;
    send(&mut inner, SMALL).await;
    head(&mut client).await;
    exactly(&mut client, "abc").await;
}
