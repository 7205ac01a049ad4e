//! One event, answered.

use std::process::ExitCode;

use bytes::Bytes;
use serde_json::{Value, json};
use skiff::{EventOutcome, EventResult, Instance, InvokeOptions, base64};

use super::Run;
use crate::cli::console::with_event;
use crate::cli::failure::Failure;
use crate::cli::values::TriggerArg;

impl Run<'_> {
    /// Invokes the function once and writes the answer's body to the standard output.
    pub(super) async fn answer(&self, instance: &Instance, event: Bytes) -> Result<ExitCode, Failure> {
        let trigger = self.args.trigger.as_ref().map(TriggerArg::kind);
        let options = InvokeOptions { trigger, ..InvokeOptions::default() };
        let outcome = self.interrupts.or(Box::pin(instance.invoke_event_with(event, options))).await?;
        self.write(&outcome).await?;
        match Failure::of_event(&outcome) {
            Some(failure) => Err(failure),
            None => Ok(ExitCode::SUCCESS),
        }
    }

    /// Writes an answer to the standard output.
    pub(super) async fn write(&self, outcome: &EventOutcome) -> Result<(), Failure> {
        let (console, told) = (self.console, outcome.clone());
        // On a thread of its own: a reader that stands still must not keep signals out.
        let written = tokio::task::spawn_blocking(move || match console.is_json() {
            true => console.result(String::new, || value(&told)),
            false => console.body(&told.body),
        });
        self.interrupts.or(written).await?.map_err(|e| Failure::host("writing the answer", &e))?
    }
}

fn value(outcome: &EventOutcome) -> Value {
    let (result, error) = match &outcome.result {
        EventResult::Success => ("success", None),
        EventResult::FunctionError(error) => ("function_error", Some(error)),
        EventResult::PlatformError(error) => ("platform_error", Some(error)),
    };
    let headers: Vec<_> = outcome
        .headers
        .iter()
        .map(|(name, value)| (name.as_str(), String::from_utf8_lossy(value.as_bytes())))
        .collect();
    let fields = json!({
        "result": result,
        "error": error,
        "request_id": outcome.request_id,
        "status": outcome.status.as_u16(),
        "headers": headers,
        "duration_ms": outcome.duration.as_micros() as f64 / 1e3,
    });
    let mut value = with_event("answer", fields);
    match std::str::from_utf8(&outcome.body) {
        Ok(body) => value["body"] = body.into(),
        Err(_) => value["body_base64"] = base64(&outcome.body).into(),
    }
    value
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use skiff::EventResult;

    use super::*;

    fn outcome(result: EventResult, body: &'static [u8]) -> EventOutcome {
        let mut headers = http::HeaderMap::new();
        headers.append("x-a", http::HeaderValue::from_static("1"));
        headers.append("x-a", http::HeaderValue::from_static("2"));
        EventOutcome {
            request_id: "1-2-3".into(),
            result,
            status: http::StatusCode::OK,
            headers,
            body: Bytes::from_static(body),
            duration: Duration::from_micros(1250),
            memory_peak_bytes: 0,
            log: None,
        }
    }

    #[test]
    fn json_has_the_whole_answer() {
        assert_eq!(
            value(&outcome(EventResult::Success, b"{}")),
            json!({
                "event": "answer", "result": "success", "error": null, "request_id": "1-2-3", "status": 200,
                "headers": [["x-a", "1"], ["x-a", "2"]], "duration_ms": 1.25, "body": "{}",
            })
        );
    }

    #[test]
    fn a_body_that_is_no_text_is_base64() {
        let value = value(&outcome(EventResult::Success, &[0xff, 0]));
        assert_eq!((value.get("body"), &value["body_base64"]), (None, &json!("/wA=")));
    }

    #[test]
    fn failures_keep_their_text_and_exit_code() {
        assert!(Failure::of_event(&outcome(EventResult::Success, b"")).is_none());
        let function =
            Failure::of_event(&outcome(EventResult::FunctionError("boom".into()), b"")).expect("one");
        assert_eq!((function.kind, function.exit), ("function_error", 1));
        assert!(function.message.contains("boom"));
        let platform =
            Failure::of_event(&outcome(EventResult::PlatformError("time".into()), b"")).expect("one");
        assert_eq!((platform.kind, platform.exit), ("platform_error", 3));
    }
}
