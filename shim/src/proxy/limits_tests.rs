//! How large requests and answers may be, and what the proxy itself holds of them.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, BufStream};
use tokio::net::TcpStream;

use super::tests::{Proxy, Server, head, send};
use crate::Platform;
use crate::platform::{fc, scf};

/// KiB that the proxy and both ends, which are in this process, may take to pass on what has no end.
const HELD_KIB: usize = 12 * 1024;

async fn send_blocks(stream: &mut BufStream<TcpStream>, bytes: usize) -> std::io::Result<()> {
    let block = vec![b'x'; 1024 * 1024];
    for _ in 0..bytes / block.len() {
        stream.write_all(&block).await?;
    }
    stream.flush().await
}

async fn read_bytes(stream: BufStream<TcpStream>, bytes: usize) -> BufStream<TcpStream> {
    let mut reader = BufReader::new(stream);
    let mut left = bytes;
    while left > 0 {
        let count = reader.fill_buf().await.expect("read").len();
        assert!(count > 0);
        reader.consume(count);
        left -= count;
    }
    reader.into_inner()
}

#[tokio::test]
async fn a_body_goes_through_in_bounded_memory() {
    const BYTES: usize = 32 * 1024 * 1024;
    let server = Server::new().await;
    let proxy = Proxy::start(&server.guest, fc()).await;
    let mut client = proxy.client().await;
    let before = resident_kib();
    let sending = tokio::spawn(async move {
        send(&mut client, &format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {BYTES}\r\n\r\n")).await;
        send_blocks(&mut client, BYTES).await.expect("written");
        head(&mut client).await.0
    });
    let mut inner = server.accept().await;
    head(&mut inner).await;
    // A server that reads nothing for a while must hold the client back.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let held = resident_kib();
    let mut inner = read_bytes(inner, BYTES).await;
    send(&mut inner, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    assert!(sending.await.expect("sent").starts_with("HTTP/1.1 200"));
    assert!(held < before + HELD_KIB, "{before} KiB, then {held} KiB");
}

#[tokio::test]
async fn a_large_answer_goes_through_in_bounded_memory() {
    const BYTES: usize = 256 * 1024 * 1024;
    let server = Server::new().await;
    let proxy = Proxy::start(&server.guest, fc()).await;
    let mut client = proxy.client().await;
    send(&mut client, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut inner = server.accept().await;
    head(&mut inner).await;
    let before = resident_kib();
    let sending = tokio::spawn(async move {
        send(&mut inner, &format!("HTTP/1.1 200 OK\r\nContent-Length: {BYTES}\r\n\r\n")).await;
        send_blocks(&mut inner, BYTES).await.expect("written");
    });
    head(&mut client).await;
    // A client that reads nothing for a while must hold the server back.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let held = resident_kib();
    read_bytes(client, BYTES).await;
    sending.await.expect("sent");
    assert!(held < before + HELD_KIB, "{before} KiB, then {held} KiB");
}

/// Status and text of the answer to a request that is over a limit, and what the server saw of it.
async fn over_a_limit(
    platform: &'static dyn Platform,
    request: &str,
    bytes: usize,
    answer: Option<&'static str>,
) -> (String, String) {
    let server = Server::new().await;
    let proxy = Proxy::start(&server.guest, platform).await;
    let mut client = proxy.client().await;
    let serving = tokio::spawn(async move {
        let mut inner = server.accept().await;
        if let Some(answer) = answer {
            head(&mut inner).await;
            send(&mut inner, answer).await;
        }
        // Reads all that comes: the limit must not depend on a server that holds back.
        let _ = tokio::io::copy(&mut inner, &mut tokio::io::sink()).await;
    });
    // The connection may end before all has been written.
    let _ = client.write_all(request.as_bytes()).await;
    let _ = send_blocks(&mut client, bytes).await;
    let (line, headers) = head(&mut client).await;
    let length = headers.iter().find_map(|header| header.strip_prefix("content-length: ")).expect("length");
    let mut body = vec![0; length.parse().expect("number")];
    client.read_exact(&mut body).await.expect("body");
    serving.abort();
    (line, String::from_utf8(body).expect("UTF-8"))
}

#[tokio::test]
async fn a_request_over_a_limit_is_refused() {
    let large = 33 * 1024 * 1024;
    let path = "x".repeat(4 * 1024);
    let cases = [
        (format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {large}\r\n\r\n"), 0, "33554432 bytes"),
        // One chunk that never ends: its length alone says nothing, what comes of it counts.
        (
            "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n".to_owned(),
            large,
            "33554432 bytes",
        ),
        (format!("GET /{path} HTTP/1.1\r\nHost: a\r\n\r\n"), 0, "path and query exceed"),
    ];
    for (request, bytes, text) in cases {
        let (line, body) = over_a_limit(fc(), &request, bytes, None).await;
        assert!(line.starts_with("HTTP/1.1 400"), "{text}: {line}");
        assert!(body.contains(r#""Code":"InvalidArgument""#) && body.contains(text), "{body}");
    }
}

#[tokio::test]
async fn an_answer_with_headers_over_the_limit_is_a_bad_response() {
    let value = "x".repeat(8 * 1024);
    let answer: &'static str =
        format!("HTTP/1.1 200 OK\r\nX-Large: {value}\r\nContent-Length: 0\r\n\r\n").leak();
    let (line, body) = over_a_limit(fc(), "GET / HTTP/1.1\r\nHost: a\r\n\r\n", 0, Some(answer)).await;
    assert!(line.starts_with("HTTP/1.1 502"), "{line}");
    assert!(body.contains(r#""Code":"BadResponse""#) && body.contains("8192 bytes"), "{body}");
}

#[tokio::test]
async fn scfs_limits_have_their_codes() {
    let large = (6 << 20) + 1;
    let put = |headers: &str| format!("PUT / HTTP/1.1\r\nHost: a\r\n{headers}\r\n\r\n");
    let get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned();
    let headers = |bytes: usize| -> &'static str {
        let value = "x".repeat(bytes - "x-large".len() - "content-length0".len());
        format!("HTTP/1.1 200 OK\r\nX-Large: {value}\r\nContent-Length: 0\r\n\r\n").leak()
    };
    let length = |bytes: usize| -> &'static str {
        format!("HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\n\r\n").leak()
    };
    let (body, answer) = ("payload size exceeds maximum allowed size (6291456 bytes)", "upper limit (6MB)");
    let head = "user code error: response headers exceed maximum allowed size (4096 bytes)";
    let cases = [
        (put(&format!("Content-Length: {large}")), 0, None, 406, body),
        (put("Transfer-Encoding: chunked\r\n\r\n700000"), 7 << 20, None, 406, body),
        (get.clone(), 0, Some(length(large)), 407, answer),
        (get.clone(), 0, Some(headers(4097)), 443, head),
    ];
    for (request, bytes, answer, code, text) in cases {
        let (line, body) = over_a_limit(scf(), &request, bytes, answer).await;
        assert!(line.starts_with(&format!("HTTP/1.1 {code} ")), "{text}: {line}");
        let end = format!("\",\"statusCode\":{code}}}");
        assert!(body.contains(text) && body.ends_with(&end), "{body}");
    }
    let (line, _) = over_a_limit(scf(), &get, 0, Some(headers(4096))).await;
    assert!(line.starts_with("HTTP/1.1 200 "), "{line}");
}

#[tokio::test]
async fn an_answer_of_scfs_that_streams_has_no_limit_but_its_time() {
    let server = Server::new().await;
    let proxy = Proxy::start(&server.guest, scf()).await;
    let mut client = proxy.client().await;
    send(&mut client, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut inner = server.accept().await;
    head(&mut inner).await;
    let sending = tokio::spawn(async move {
        send(&mut inner, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n").await;
        send_blocks(&mut inner, 8 << 20).await.expect("written");
    });
    assert!(head(&mut client).await.0.starts_with("HTTP/1.1 200 "));
    let (mut whole, mut line) = (0, String::new());
    loop {
        line.clear();
        client.read_line(&mut line).await.expect("a chunk's length");
        let length = usize::from_str_radix(line.trim_end(), 16).expect("a number");
        let mut chunk = vec![0; length + 2];
        client.read_exact(&mut chunk).await.expect("a chunk");
        whole += length;
        if length == 0 {
            break;
        }
    }
    sending.await.expect("sent");
    assert_eq!(whole, 8 << 20);
}

fn resident_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("readable");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("present");
    line.split_whitespace().nth(1).expect("number").parse().expect("number")
}
