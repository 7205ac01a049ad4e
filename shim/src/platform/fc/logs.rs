//! The log lines that FC writes around an invocation's own.

use crate::function::Callback;
use crate::platform::{InvocationContext, InvocationReport, megabytes};

pub(super) fn start(context: &InvocationContext<'_>) -> Vec<String> {
    vec![format!("FC Invoke Start RequestId: {}", context.request_id)]
}

/// The end line, with the error if there was one, and the summary that a log tail ends with.
pub(super) fn end(context: &InvocationContext<'_>, report: &InvocationReport<'_>) -> Vec<String> {
    let error = report.error.map(|error| format!(", Error: {error}")).unwrap_or_default();
    let ms = report.duration.as_secs_f64() * 1000.0;
    vec![
        format!("FC Invoke End RequestId: {}{error}", context.request_id),
        format!(
            "Duration: {ms:.2} ms, Billed Duration: {} ms, Memory Size: {} MB, Max Memory Used: {:.2} MB",
            ms.ceil(),
            context.config.memory_mib,
            megabytes(report.memory_peak_bytes)
        ),
    ]
}

/// The lines around a callback.
pub(super) fn callback(callback: Callback, id: &str, ended: Option<Option<&str>>) -> Vec<String> {
    let name = match callback {
        Callback::Initializer => "Initialize",
        Callback::PreFreeze => "PreFreeze",
        Callback::PreStop => "PreStop",
    };
    let (edge, error) = match ended {
        None => ("Start", None),
        Some(error) => ("End", error),
    };
    let error = error.map(|error| format!(", Error: {error}")).unwrap_or_default();
    vec![format!("FC {name} {edge} RequestId: {id}{error}")]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::FunctionConfig;
    use crate::platform::testing::context;
    use crate::platform::{InvocationKind, fc};

    #[test]
    fn callbacks_have_lines_too() {
        assert_eq!(callback(Callback::Initializer, "i", None), ["FC Initialize Start RequestId: i"]);
        assert_eq!(callback(Callback::PreFreeze, "i", Some(None)), ["FC PreFreeze End RequestId: i"]);
        assert_eq!(
            callback(Callback::PreStop, "i", Some(Some("late"))),
            ["FC PreStop End RequestId: i, Error: late"]
        );
    }

    #[test]
    fn lines_are_those_of_the_documentation() {
        let config = FunctionConfig::new("resize", fc());
        let context = context(&config, InvocationKind::Event);
        assert_eq!(start(&context), ["FC Invoke Start RequestId: the-request"]);
        let report = InvocationReport {
            duration: Duration::from_micros(42_270),
            memory_peak_bytes: 50_090_475,
            ..InvocationReport::default()
        };
        assert_eq!(
            end(&context, &report),
            [
                "FC Invoke End RequestId: the-request",
                "Duration: 42.27 ms, Billed Duration: 43 ms, Memory Size: 512 MB, Max Memory Used: 47.77 MB",
            ]
        );
        let failed = InvocationReport { error: Some("Unhandled function error"), ..report };
        assert_eq!(
            end(&context, &failed)[0],
            "FC Invoke End RequestId: the-request, Error: Unhandled function error"
        );
    }
}
