//! The log lines that SCF writes around an invocation's own.

use std::time::Duration;

use serde::Serialize;

use crate::platform::{InvocationContext, InvocationReport, LOG_ANSWER_BYTES, megabytes};
use crate::{FunctionConfig, Timeline};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ErrorResult<'a> {
    error_code: i32,
    error_message: &'a str,
    status_code: u16,
}

/// The start line, and the report of a cold start.
pub(super) fn start(context: &InvocationContext<'_>, report: &InvocationReport<'_>) -> Vec<String> {
    let id = context.request_id;
    let mut lines = vec![format!("START RequestId:{id}")];
    if let Some(start) = report.cold_start {
        lines.push(start_report("Init", context.config, id, start, report.memory_peak_bytes));
    }
    lines
}

/// What a start took: `Init` of one for a call, `Provisioned` of another.
pub(super) fn start_report(
    kind: &str,
    config: &FunctionConfig,
    id: &str,
    start: &Timeline,
    memory_peak_bytes: u64,
) -> String {
    format!(
        "{kind} Report RequestId: {id} Coldstart: {}ms (PullCode: {}ms InitRuntime: {}ms InitFunction: {}ms) \
         Memory: {}MB MemUsage: {:.2}MB",
        ms(start.total()),
        ms(start.resolve + start.pull + start.unpack),
        ms(start.rootfs + start.network + start.spawn),
        ms(start.listen),
        config.memory_mib,
        megabytes(memory_peak_bytes),
    )
}

/// The answer or the error, and the summary.
pub(super) fn end(context: &InvocationContext<'_>, report: &InvocationReport<'_>) -> Vec<String> {
    let id = context.request_id;
    let mut lines = Vec::with_capacity(3);
    if let Some(error) = error(context, report) {
        lines.push(error);
    } else if let Some(answer) = report.answer {
        let shown = answer.get(..LOG_ANSWER_BYTES).unwrap_or(answer);
        // One line whatever it is: an answer must not be able to forge log lines.
        let shown = String::from_utf8_lossy(shown).replace('\n', "\\n").replace('\r', "\\r");
        lines.push(format!("Response RequestId:{id} RetMsg:{shown}"));
    }
    lines.push(format!("END RequestId:{id}"));
    lines.push(self::report(context, report));
    lines
}

/// The line of a request that the platform failed.
pub(super) fn error(context: &InvocationContext<'_>, report: &InvocationReport<'_>) -> Option<String> {
    let failure = report.failure?;
    let result =
        ErrorResult { error_code: -1, error_message: &failure.message, status_code: failure.status.as_u16() };
    let result = serde_json::to_string(&result).unwrap_or_default();
    Some(format!("ERROR RequestId:{} Result:{result}", context.request_id))
}

/// The summary.
pub(super) fn report(context: &InvocationContext<'_>, report: &InvocationReport<'_>) -> String {
    format!(
        "Report RequestId:{} Duration:{}ms Memory:{}MB MemUsage:{}MB",
        context.request_id,
        ms(report.duration),
        context.config.memory_mib,
        megabytes(report.memory_peak_bytes),
    )
}

/// The line about SIGTERM for the function's process.
pub(super) fn signal(sent: bool) -> String {
    let how = if sent { "Signal received successfully" } else { "Signal reception failed" };
    format!("[PLATFORM] {how}")
}

fn ms(time: Duration) -> u128 {
    time.as_millis()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::{InvocationFailure, InvocationKind, scf, testing};

    fn millis(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn lines_are_those_of_the_documentation() {
        let config = FunctionConfig::new("resize", scf());
        let context = testing::context(&config, InvocationKind::Event);
        let warm = InvocationReport::default();
        assert_eq!(start(&context, &warm), ["START RequestId:the-request"]);
        let report = InvocationReport {
            duration: millis(1),
            memory_peak_bytes: 31_178_752,
            answer: Some(b"\"Hello World\""),
            ..InvocationReport::default()
        };
        assert_eq!(
            end(&context, &report),
            [
                "Response RequestId:the-request RetMsg:\"Hello World\"",
                "END RequestId:the-request",
                "Report RequestId:the-request Duration:1ms Memory:128MB MemUsage:29.734375MB",
            ]
        );
    }

    #[test]
    fn an_http_request_has_no_response_line() {
        let config = FunctionConfig::new("resize", scf());
        let lines = end(&testing::context(&config, InvocationKind::Http), &InvocationReport::default());
        assert_eq!(lines[0], "END RequestId:the-request");
        assert_eq!(lines.len(), 2);
    }

    #[test]
    fn a_cold_start_is_reported() {
        let config = FunctionConfig::new("resize", scf());
        let timeline =
            Timeline { pull: millis(70), spawn: millis(8), listen: millis(158), ..Timeline::default() };
        let report = InvocationReport {
            memory_peak_bytes: 60_670_607,
            cold_start: Some(&timeline),
            ..InvocationReport::default()
        };
        assert_eq!(
            start(&testing::context(&config, InvocationKind::Event), &report)[1],
            "Init Report RequestId: the-request Coldstart: 236ms (PullCode: 70ms InitRuntime: 8ms \
             InitFunction: 158ms) Memory: 128MB MemUsage: 57.86MB"
        );
    }

    #[test]
    fn a_failure_has_its_error_line_and_no_response() {
        let config = FunctionConfig::new("resize", scf());
        let context = testing::context(&config, InvocationKind::Event);
        let answer = super::super::errors::invocation(&context, &InvocationFailure::TimedOut);
        let report = InvocationReport { failure: Some(&answer), ..InvocationReport::default() };
        assert_eq!(
            end(&context, &report)[..2],
            [
                r#"ERROR RequestId:the-request Result:{"errorCode":-1,"errorMessage":"Invoking task timed out after 3 seconds","statusCode":433}"#,
                "END RequestId:the-request",
            ]
        );
    }

    #[test]
    fn an_answer_forges_no_lines() {
        let config = FunctionConfig::new("resize", scf());
        let report =
            InvocationReport { answer: Some(b"a\r\nEND RequestId:x"), ..InvocationReport::default() };
        let lines = end(&testing::context(&config, InvocationKind::Event), &report);
        assert_eq!(lines[0], "Response RequestId:the-request RetMsg:a\\r\\nEND RequestId:x");
    }

    #[test]
    fn a_large_answer_is_cut_in_the_log() {
        let config = FunctionConfig::new("resize", scf());
        let large = vec![b'x'; LOG_ANSWER_BYTES + 10];
        let report = InvocationReport { answer: Some(&large), ..InvocationReport::default() };
        let line = &end(&testing::context(&config, InvocationKind::Event), &report)[0];
        assert_eq!(line.len(), "Response RequestId:the-request RetMsg:".len() + LOG_ANSWER_BYTES);
    }
}
