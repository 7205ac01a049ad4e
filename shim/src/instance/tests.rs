//! Instances in front of real servers, without a container.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use skiff_runtime::Exit;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};

use super::logs::Stream;
use super::start::Launch;
use super::testing::TestGuest;
use super::{EventResult, Instance, LogLine, LogSink, State, Timeline};
use crate::platform::{InvocationKind, fc, scf};
use crate::{Error, ErrorKind, ExitCode, FunctionConfig, Platform};

const EXITED: Exit = Exit { code: Some(7), signal: None, oom_killed: false };

pub(super) type Lines = Arc<Mutex<Vec<String>>>;

fn lines() -> (Arc<dyn LogSink>, Lines) {
    let lines = Lines::default();
    let kept = Arc::clone(&lines);
    let sink = move |line: &LogLine| kept.lock().expect("lock").push(line.text().into_owned());
    (Arc::new(sink), lines)
}

pub(super) fn config(
    platform: &'static dyn Platform,
    change: impl FnOnce(&mut FunctionConfig),
) -> Arc<FunctionConfig> {
    let mut config = FunctionConfig::new("resize", platform);
    change(&mut config);
    Arc::new(config)
}

pub(super) async fn bring_up(
    guest: &TestGuest,
    config: Arc<FunctionConfig>,
) -> Result<(Instance, Lines), Error> {
    let command = ["python3", "app.py"].map(str::to_owned).to_vec();
    let launch = Launch::new("the-instance".into(), &config, command).with_role().await?;
    let (mut out, stdout) = tokio::io::duplex(1024);
    let (_err, stderr) = tokio::io::duplex(1024);
    out.write_all(b"booting\n").await.expect("written");
    drop(out);
    let (sink, lines) = lines();
    let (guest, logs) = (Arc::new(guest.clone()), launch.logs(sink));
    let instance = launch
        .bring_up(guest, Some((Stream::new(stdout), Stream::new(stderr))), Timeline::default(), logs)
        .await?;
    Ok((instance, lines))
}

/// A server that answers every request by `answer`.
pub(super) async fn server<F, R>(answer: F) -> TestGuest
where
    F: Fn(Request<Incoming>) -> R + Clone + Send + 'static,
    R: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let guest = TestGuest::at(listener.local_addr().expect("address"));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = answer.clone();
            let service = service_fn(move |request| {
                let answer = answer(request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    guest
}

pub(super) fn answer(status: u16, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    Response::builder().status(status).body(Full::new(body.into())).expect("valid")
}

#[tokio::test]
async fn an_event_is_posted_and_answered_on_both_platforms() {
    for (platform, path) in [(fc(), "/invoke"), (scf(), "/event-invoke")] {
        let guest = server(|request| async move {
            let head = format!("{} {} ", request.method(), request.uri());
            // Of the test's guest, whatever the port that is really dialled.
            assert_eq!(request.headers()["host"], "127.0.0.1:9000");
            let length = request.headers()["content-length"].to_str().expect("text").to_owned();
            let body = request.into_body().collect().await.expect("body").to_bytes();
            answer(200, [head.as_bytes(), length.as_bytes(), b" ", &body].concat())
        })
        .await;
        let (instance, lines) = bring_up(&guest, config(platform, |_| ())).await.expect("up");
        // Of no bytes, where a platform takes such an event.
        let events = if platform.events_are_json() { ["{\"k\":1}", "7"] } else { ["{\"k\":1}", ""] };
        for event in events {
            let outcome = instance.invoke_event(event.into()).await;
            assert_eq!(outcome.result, EventResult::Success);
            assert_eq!((outcome.status.as_u16(), outcome.exit_code()), (200, ExitCode::Success));
            assert_eq!(outcome.body, format!("POST {path} {} {event}", event.len()));
        }
        assert!(matches!(instance.stop().await.expect("stopped"), State::Ended(_)));
        let lines = lines.lock().expect("lock").join("\n");
        assert!(lines.contains("booting"), "{lines}");
        let reports = lines.matches("Init Report").count();
        assert_eq!(reports, usize::from(platform.name() == "scf"), "one cold start\n{lines}");
    }
}

#[tokio::test]
async fn function_errors_are_told_from_success() {
    for platform in [fc(), scf()] {
        let guest = server(|_| async {
            let mut response = answer(500, "boom");
            response.headers_mut().insert("x-fc-status", http::HeaderValue::from_static("404"));
            response
        })
        .await;
        let (instance, _) = bring_up(&guest, config(platform, |_| ())).await.expect("up");
        let outcome = instance.invoke_event("{}".into()).await;
        assert!(matches!(outcome.result, EventResult::FunctionError(_)), "{outcome:?}");
        assert_eq!((&outcome.body[..], outcome.exit_code()), (b"boom".as_slice(), ExitCode::FunctionError));
    }
}

#[tokio::test]
async fn the_time_limit_ends_an_event() {
    let guest = server(|_| async {
        sleep(Duration::from_secs(30)).await;
        answer(200, "late")
    })
    .await;
    let config = config(scf(), |config| config.timeout = Duration::from_secs(1));
    let (instance, lines) = bring_up(&guest, config).await.expect("up");
    let started = Instant::now();
    let outcome = instance.invoke_event("{}".into()).await;
    assert!(started.elapsed() < Duration::from_secs(5));
    assert_eq!((outcome.status.as_u16(), outcome.exit_code()), (433, ExitCode::Platform));
    let id = &outcome.request_id;
    assert_eq!(
        outcome.body,
        format!(
            r#"{{"errorCode":-1,"errorMessage":"Invoking task timed out after 1 seconds","requestId":"{id}","statusCode":433}}"#
        )
    );
    instance.stop().await.expect("stopped");
    let lines = lines.lock().expect("lock").join("\n");
    assert!(lines.contains(&format!("ERROR RequestId:{id} Result:")), "{lines}");
}

#[tokio::test]
async fn a_container_that_ends_while_it_serves_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let guest = TestGuest::at(listener.local_addr().expect("address"));
    let dying = guest.clone();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("accepted");
        stream.readable().await.expect("readable");
        drop(stream);
        sleep(Duration::from_millis(20)).await;
        dying.end(EXITED);
    });
    let (instance, _) = bring_up(&guest, config(fc(), |_| ())).await.expect("up");
    let outcome = instance.invoke_event("{}".into()).await;
    assert_eq!((outcome.status.as_u16(), outcome.exit_code()), (200, ExitCode::FunctionError));
    let body = String::from_utf8_lossy(&outcome.body).into_owned();
    assert!(
        body.starts_with(
            r#"{"errorMessage":"Process exited unexpectedly before completing request (duration: "#
        ) && body.ends_with(r#"ms, maxMemoryUsage: 10.00MB)"}"#),
        "{body}"
    );
    assert_eq!(instance.wait().await, State::Ended(EXITED));
}

#[tokio::test]
async fn events_and_answers_over_the_limit_are_refused() {
    let guest = server(|_| async { answer(200, vec![b'x'; 7 * 1024 * 1024]) }).await;
    let (instance, _) = bring_up(&guest, config(scf(), |_| ())).await.expect("up");
    let large = instance.invoke_event(Bytes::from(vec![b'x'; 6 * 1024 * 1024 + 1])).await;
    assert_eq!((large.status.as_u16(), large.exit_code()), (406, ExitCode::Platform));
    let large = instance.invoke_event("{}".into()).await;
    assert_eq!((large.status.as_u16(), large.exit_code()), (407, ExitCode::Platform));
}

#[tokio::test]
async fn an_event_that_is_not_json_is_refused_where_the_platform_refuses_it() {
    let guest = server(|_| async { answer(200, "seen") }).await;
    let (instance, lines) = bring_up(&guest, config(scf(), |_| ())).await.expect("up");
    for event in ["", "k=v", "{", "{} {}"] {
        let outcome = instance.invoke_event(event.into()).await;
        assert_eq!((outcome.status.as_u16(), outcome.exit_code()), (400, ExitCode::Platform), "{event:?}");
        let id = &outcome.request_id;
        assert_eq!(
            outcome.body,
            format!(
                r#"{{"errorCode":-1,"errorMessage":"the event is not JSON","requestId":"{id}","statusCode":400}}"#
            )
        );
    }
    assert_eq!(instance.invoke_event(" [1] ".into()).await.body, "seen");
    instance.stop().await.expect("stopped");
    assert_eq!(lines.lock().expect("lock").join("\n").matches("\"statusCode\":400").count(), 4);
    let guest = server(|_| async { answer(200, "seen") }).await;
    let (other, _) = bring_up(&guest, config(fc(), |_| ())).await.expect("up");
    assert_eq!(other.invoke_event("k=v".into()).await.body, "seen");
}

#[tokio::test]
async fn a_server_that_does_not_come_up_is_answered_in_the_platforms_words() {
    let guest = TestGuest::refusing().await;
    let config = config(fc(), |config| config.start_deadline = Some(Duration::from_secs(1)));
    let error = bring_up(&guest, config).await.expect_err("nothing listens");
    assert_eq!((error.kind(), error.exit_code()), (ErrorKind::StartFailed, ExitCode::Platform));
    assert!(error.to_string().contains("port 9000"), "{error}");
    assert!(error.advice().expect("advice").contains("0.0.0.0:9000"));
    let answer = error.answer(InvocationKind::Event).expect("answer");
    assert_eq!(answer.status, 412);
    let body = String::from_utf8_lossy(&answer.body).into_owned();
    assert!(
        body.ends_with(
            r#""Code":"FunctionNotStarted","Message":"Function instance health check failed on port 9000 in 1 seconds.\nLogs:booting"}"#
        ),
        "{body}"
    );
}

#[tokio::test]
async fn a_container_that_ends_at_its_start_is_answered_in_the_platforms_words() {
    let guest = TestGuest::refusing().await;
    guest.end(EXITED);
    let error = bring_up(&guest, config(fc(), |_| ())).await.expect_err("ended");
    assert!(error.to_string().contains("exited with code 7"), "{error}");
    let message = error.answer(InvocationKind::Http).expect("answer").message;
    assert_eq!(
        message,
        "Function instance exited unexpectedly(code 7, message:argument list too long) with start command \
         'python3 app.py '. Logs:booting"
    );
    let oom = TestGuest::refusing().await;
    oom.end(Exit { code: None, signal: Some(9), oom_killed: true });
    let error = bring_up(&oom, config(scf(), |_| ())).await.expect_err("ended");
    assert!(error.advice().expect("advice").contains("128 MiB"));
    assert_eq!(error.answer(InvocationKind::Http).expect("answer").status.as_u16(), 405);
}

#[tokio::test]
async fn a_dropped_instance_kills_its_container() {
    let guest = server(|_| async { answer(200, "") }).await;
    let (instance, _) = bring_up(&guest, config(fc(), |_| ())).await.expect("up");
    assert_eq!(instance.state(), State::Ready);
    drop(instance);
    let ended = tokio::time::timeout(Duration::from_secs(5), super::guest::Guest::wait(&guest)).await;
    assert!(ended.expect("killed").is_ok());
}
