//! What SCF keeps of a request, with the fields of its log service in their default format.
//!
//! The names are SCF's; what is in some of them is not documented and was chosen: times are milliseconds
//! since 1970, memory is in MB as in the log, the message is the request's `Report` line, or its `ERROR`
//! line with the level `ERROR`, and a version that is neither `$LATEST` nor a number is an alias.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::{FUNCTION_ERROR, logs};
use crate::platform::{InvocationContext, InvocationReport, megabytes};

#[derive(Serialize)]
struct Record<'a> {
    #[serde(rename = "SCF_FunctionName")]
    function_name: &'a str,
    #[serde(rename = "SCF_Namespace")]
    namespace: &'a str,
    #[serde(rename = "SCF_StartTime")]
    start_time: u64,
    #[serde(rename = "SCF_LogTime")]
    log_time: u64,
    #[serde(rename = "SCF_RequestId")]
    request_id: &'a str,
    #[serde(rename = "SCF_Duration")]
    duration: u64,
    #[serde(rename = "SCF_Alias")]
    alias: &'a str,
    #[serde(rename = "SCF_Qualifier")]
    qualifier: &'a str,
    #[serde(rename = "SCF_MemUsage")]
    mem_usage: f64,
    #[serde(rename = "SCF_Level")]
    level: &'static str,
    #[serde(rename = "SCF_Message")]
    message: String,
    #[serde(rename = "SCF_Type")]
    kind: &'static str,
    #[serde(rename = "SCF_StatusCode")]
    status_code: u16,
    #[serde(rename = "SCF_RetryNum")]
    retry_num: u32,
}

pub(super) fn request(
    context: &InvocationContext<'_>,
    report: &InvocationReport<'_>,
    now: SystemTime,
) -> Option<String> {
    let config = context.config;
    let status_code = match report.failure {
        Some(failure) => failure.status.as_u16(),
        None if report.function_error => FUNCTION_ERROR,
        None => 200,
    };
    let (level, message) = match logs::error(context, report) {
        Some(line) => ("ERROR", line),
        None => ("INFO", logs::report(context, report)),
    };
    let record = Record {
        function_name: &config.name,
        namespace: &config.namespace,
        start_time: unix_ms(now.checked_sub(report.duration).unwrap_or(UNIX_EPOCH)),
        log_time: unix_ms(now),
        request_id: context.request_id,
        duration: millis(report.duration),
        alias: alias(&config.version),
        qualifier: &config.version,
        mem_usage: megabytes(report.memory_peak_bytes),
        level,
        message,
        kind: "Platform",
        status_code,
        retry_num: context.retries,
    };
    serde_json::to_string(&record).ok()
}

fn alias(version: &str) -> &str {
    let is_version = version == "$LATEST" || version.bytes().all(|b| b.is_ascii_digit());
    if is_version { "" } else { version }
}

fn unix_ms(time: SystemTime) -> u64 {
    millis(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::FunctionConfig;
    use crate::platform::testing::context;
    use crate::platform::{InvocationFailure, InvocationKind, scf};

    fn record(version: &str, retries: u32, report: &InvocationReport<'_>) -> Value {
        let mut config = FunctionConfig::new("resize", scf());
        config.version = version.to_owned();
        let mut context = context(&config, InvocationKind::Event);
        context.retries = retries;
        let now = UNIX_EPOCH + Duration::from_millis(1_700_000_000_250);
        serde_json::from_str(&request(&context, report, now).expect("a record")).expect("JSON")
    }

    #[test]
    fn a_request_has_the_fourteen_fields() {
        let report = InvocationReport {
            duration: Duration::from_micros(1_250_900),
            memory_peak_bytes: 31_178_752,
            ..InvocationReport::default()
        };
        let expected = json!({
            "SCF_FunctionName": "resize", "SCF_Namespace": "default", "SCF_StartTime": 1_699_999_998_999_u64,
            "SCF_LogTime": 1_700_000_000_250_u64, "SCF_RequestId": "the-request", "SCF_Duration": 1250,
            "SCF_Alias": "", "SCF_Qualifier": "$LATEST", "SCF_MemUsage": 29.734375, "SCF_Level": "INFO",
            "SCF_Message":
                "Report RequestId:the-request Duration:1250ms Memory:128MB MemUsage:29.734375MB",
            "SCF_Type": "Platform", "SCF_StatusCode": 200, "SCF_RetryNum": 0,
        });
        assert_eq!(record("$LATEST", 0, &report), expected);
    }

    #[test]
    fn errors_have_their_code_and_line() {
        let config = FunctionConfig::new("resize", scf());
        let context = context(&config, InvocationKind::Event);
        let report = InvocationReport::default();
        let answer = scf().invocation_failure(&context, &InvocationFailure::TimedOut, &report);
        let failed = record("$LATEST", 2, &InvocationReport { failure: Some(&answer), ..report });
        assert_eq!((&failed["SCF_StatusCode"], &failed["SCF_RetryNum"]), (&json!(433), &json!(2)));
        assert_eq!(failed["SCF_Level"], "ERROR");
        let message = failed["SCF_Message"].as_str().expect("a message");
        assert!(message.starts_with("ERROR RequestId:the-request Result:{"), "{message}");
        // The function's own error is none of the platform's.
        let own = record("$LATEST", 0, &InvocationReport { function_error: true, ..report });
        assert_eq!((&own["SCF_StatusCode"], &own["SCF_Level"]), (&json!(443), &json!("INFO")));
    }

    #[test]
    fn names_of_versions_are_aliases() {
        for (version, alias) in [("$LATEST", ""), ("7", ""), ("prod", "prod")] {
            let record = record(version, 0, &InvocationReport::default());
            assert_eq!((&record["SCF_Alias"], &record["SCF_Qualifier"]), (&json!(alias), &json!(version)));
        }
    }
}
