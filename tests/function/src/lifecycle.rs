//! What the platform calls besides invocations, and how often the process was let to run.
//!
//! `FUNCTION_CALLBACK` says how `/initialize` and the others answer: `hang`, or a status.
//! `/sick/STATUS` is what `/health` answers from then on.

use std::io::Write as _;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hyper::{HeaderMap, Response, StatusCode};
use serde_json::{Value, json};

use crate::http::{Body, json, text};

/// Ticks of 10 ms that this process has run.
static TICKS: AtomicU64 = AtomicU64::new(0);

static HEALTH: AtomicU16 = AtomicU16::new(200);

/// The calls so far.
static CALLS: Mutex<Vec<Value>> = Mutex::new(Vec::new());

/// Counts for as long as the process is let to.
pub(crate) async fn tick() {
    loop {
        tokio::time::sleep(Duration::from_millis(10)).await;
        TICKS.fetch_add(1, Ordering::Relaxed);
    }
}

/// Answers a call, or tells of them.
pub(crate) async fn answer(path: &str, method: &str, headers: &HeaderMap, argument: &str) -> Response<Body> {
    match path {
        "lifecycle" => {
            let calls = CALLS.lock().unwrap_or_else(PoisonError::into_inner).clone();
            return json(&json!({ "ticks": TICKS.load(Ordering::Relaxed), "calls": calls }));
        }
        "sick" => {
            HEALTH.store(argument.parse().unwrap_or(500), Ordering::Relaxed);
            return text(StatusCode::OK, "");
        }
        _ => note(path, method, headers),
    }
    if path == "health" {
        return status(HEALTH.load(Ordering::Relaxed));
    }
    let _ = writeln!(std::io::stdout(), "called {method} /{path}");
    match std::env::var("FUNCTION_CALLBACK").unwrap_or_default().as_str() {
        "hang" => std::future::pending().await,
        other => status(other.parse().unwrap_or(200)),
    }
}

fn note(path: &str, method: &str, headers: &HeaderMap) {
    let header =
        |name: &str| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let call = json!({
        "method": method,
        "path": format!("/{path}"),
        "control_path": header("x-fc-control-path"),
        "request_id": header("x-fc-request-id"),
    });
    CALLS.lock().unwrap_or_else(PoisonError::into_inner).push(call);
}

fn status(number: u16) -> Response<Body> {
    text(StatusCode::from_u16(number).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), "")
}
