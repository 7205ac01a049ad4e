//! HTTP requests that become events, between real clients and real servers on loopback.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, BufStream};
use tokio::net::TcpStream;

use super::tests::{Proxy, Server, has, head, send};
use crate::FunctionConfig;
use crate::platform::{HttpEvent, scf};

fn config(form: HttpEvent) -> FunctionConfig {
    let mut config = FunctionConfig::new("resize", scf());
    config.http_event = Some(form);
    config.timeout = Duration::from_secs(1);
    config
}

/// Head and body of a message of known length.
async fn message(stream: &mut BufStream<TcpStream>) -> (String, Vec<String>, String) {
    let (line, headers) = head(stream).await;
    let length = headers.iter().find_map(|header| header.strip_prefix("content-length: ")).expect("length");
    let mut body = vec![0; length.parse().expect("number")];
    stream.read_exact(&mut body).await.expect("body");
    (line, headers, String::from_utf8(body).expect("UTF-8"))
}

/// What the function is posted for a request, and what the client gets for `answer`.
async fn exchange(
    form: HttpEvent,
    request: &str,
    answer: &str,
) -> ((String, Vec<String>, Value), (String, Vec<String>, String)) {
    let server = Server::new().await;
    let proxy = Proxy::with(&server.guest, config(form)).await;
    let mut client = proxy.client().await;
    send(&mut client, request).await;
    let mut inner = server.accept().await;
    let (line, headers, event) = message(&mut inner).await;
    send(&mut inner, answer).await;
    let told = message(&mut client).await;
    ((line, headers, serde_json::from_str(&event).expect("JSON")), told)
}

fn answered(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

#[tokio::test]
async fn a_request_is_posted_as_an_event_and_answered_as_the_function_says() {
    let request =
        "PUT /a%20b?c=d HTTP/1.1\r\nHost: f.test\r\nX-Scf-Uin: forged\r\nContent-Length: 5\r\n\r\nhello";
    let answer = answered(
        r#"{"statusCode":418,"headers":{"X-Own":"1","Connection":"upgrade","Transfer-Encoding":"chunked"},"body":"short"}"#,
    );
    for form in [HttpEvent::Url, HttpEvent::Gateway] {
        let ((line, headers, event), (status, told, body)) = exchange(form, request, &answer).await;
        assert_eq!(line, "POST /event-invoke HTTP/1.1");
        assert!(has(&headers, "content-type: application/json") && has(&headers, "x-scf-name: resize"));
        assert_eq!((&event["httpMethod"], &event["path"]), (&json!("PUT"), &json!("/a%20b")));
        assert_eq!((&event["queryString"], &event["body"]), (&json!({ "c": "d" }), &json!("hello")));
        assert!(event["headers"]["x-scf-uin"].is_null(), "{event}");
        let url = form == HttpEvent::Url;
        assert_eq!(event["headers"]["x-scf-remote-addr"] == "127.0.0.1", url, "{event}");
        assert_eq!(event["requestContext"]["sourceIp"] == "127.0.0.1", !url, "{event}");
        assert!(status.starts_with("HTTP/1.1 418"), "{status}");
        assert!(has(&told, "x-own: 1") && told.iter().any(|header| header.starts_with("x-scf-request-id: ")));
        assert!(!has(&told, "connection: upgrade"), "{told:?}");
        assert_eq!(body, "short");
    }
}

#[tokio::test]
async fn what_cannot_be_an_answer_is_the_platforms_error() {
    let get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let failed = "HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\noops";
    let large = answered(&json!({ "statusCode": 200, "headers": { "x": "x".repeat(4096) } }).to_string());
    let headers = "user code error: response headers exceed maximum allowed size (4096 bytes)";
    let status = "user code error: the server answered 500";
    let format = "Invalid scf response format. please check your scf response format.";
    for (answer, code, text) in
        [(&*answered("hello"), 403, format), (failed, 443, status), (&*large, 443, headers)]
    {
        let (_, (line, told, body)) = exchange(HttpEvent::Url, get, answer).await;
        assert!(line.starts_with(&format!("HTTP/1.1 {code}")), "{line}");
        assert!(has(&told, "content-type: application/json"), "{told:?}");
        assert_eq!(body, format!(r#"{{"errorMessage":"{text}","statusCode":{code}}}"#));
    }
    let (_, (line, _, body)) = exchange(HttpEvent::Gateway, get, &answered(r#"{"message":"hello"}"#)).await;
    assert!(line.starts_with("HTTP/1.1 403"), "{line}");
    assert_eq!(body, format!(r#"{{"errno":403,"error":"{format}"}}"#));
    let (_, (line, _, body)) = exchange(HttpEvent::Gateway, get, failed).await;
    assert!(line.starts_with("HTTP/1.1 200"), "a gateway passes the event's error on: {line}");
    assert!(body.starts_with(r#"{"errorCode":-1,"#) && body.ends_with(r#""statusCode":443}"#), "{body}");
}

#[tokio::test]
async fn requests_over_a_limit_and_late_answers_are_told_in_the_same_form() {
    let server = Server::new().await;
    let proxy = Proxy::with(&server.guest, config(HttpEvent::Url)).await;
    let mut client = proxy.client().await;
    send(&mut client, &format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", 7 << 20)).await;
    let (line, _, body) = message(&mut client).await;
    assert!(line.starts_with("HTTP/1.1 406") && body.contains("6291456 bytes"), "{line} {body}");

    let mut client = proxy.client().await;
    send(&mut client, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let (line, _, body) = message(&mut client).await;
    assert!(line.starts_with("HTTP/1.1 433"), "{line}");
    assert_eq!(body, r#"{"errorMessage":"Invoking task timed out after 1 seconds","statusCode":433}"#);

    // A body that does not come is the client's, and takes of the function's time all the same.
    let mut client = proxy.client().await;
    send(&mut client, "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhe").await;
    assert!(message(&mut client).await.0.starts_with("HTTP/1.1 433"));
}
