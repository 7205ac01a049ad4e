//! What FC keeps of instances (`FCInstanceEvents`, `FCInstanceMetrics`) and requests (`FCRequestMetrics`),
//! with its field names.
//!
//! The texts of `Creating`, `RuntimeInitializationSuccess` and `CreateSuccess` are FC's own; those of the
//! other events are not documented and are ours. Of a request's fields those are left out that one host
//! without a scheduler does not have (schedule latency, active instances, sampling, trace context).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::FunctionConfig;
use crate::platform::{
    InstanceEvent, InstanceStep, InstanceUse, InvocationContext, InvocationKind, InvocationReport, megabytes,
};

pub(super) fn instance_event(config: &FunctionConfig, id: &str, step: InstanceStep<'_>) -> InstanceEvent {
    let name = &config.name;
    let (kind, message) = match step {
        InstanceStep::Creating => ("Creating", format!("Start to create instance {id} of function {name}")),
        InstanceStep::ImageReady(took) => {
            ("PullImageSuccess", format!("Successfully pulled image for instance {id} in {:.2} ms", ms(took)))
        }
        InstanceStep::ImageFailed(why) => {
            ("PullImageFailed", format!("Failed to pull image for instance {id}: {why}"))
        }
        InstanceStep::ServerReady(took) => (
            "RuntimeInitializationSuccess",
            format!(
                "Successfully started the instance {id} and performed health check in {:.2} ms",
                ms(took)
            ),
        ),
        InstanceStep::ServerFailed(why) => {
            ("RuntimeInitializationFailed", format!("Failed to start the instance {id}: {why}"))
        }
        InstanceStep::Initialized(took) => {
            ("InitializationSuccess", format!("Successfully initialized instance {id} in {:.2} ms", ms(took)))
        }
        InstanceStep::InitializerFailed(why) => {
            ("InitializationFailed", format!("Failed to initialize instance {id}: {why}"))
        }
        InstanceStep::Created(took) => (
            "CreateSuccess",
            format!("Successfully created instance {id} of function {name} totally in {:.2} ms", ms(took)),
        ),
        InstanceStep::CreateFailed(why) => {
            ("CreateFailed", format!("Failed to create instance {id} of function {name}: {why}"))
        }
        InstanceStep::Destroyed => {
            ("DestroySuccess", format!("Successfully destroyed instance {id} of function {name}"))
        }
    };
    let level = if kind.ends_with("Failed") { "Warning" } else { "Normal" };
    InstanceEvent {
        unix_ms: unix_ms(SystemTime::now()),
        level: level.to_owned(),
        kind: format!("fc:Instance:{kind}"),
        message,
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    function_name: &'a str,
    version_id: &'a str,
    qualifier: &'a str,
    request_id: &'a str,
    operation: &'static str,
    invocation_type: &'static str,
    #[serde(rename = "memoryMB")]
    memory_mb: u32,
    #[serde(rename = "memoryUsageMB")]
    memory_usage_mb: f64,
    duration_ms: f64,
    is_cold_start: bool,
    has_function_error: bool,
    #[serde(skip_serializing_if = "str::is_empty")]
    error_type: &'static str,
    invoke_function_latency_ms: f64,
    resource_mode: &'static str,
    #[serde(rename = "instanceID")]
    instance_id: &'a str,
    hostname: &'a str,
    /// Of asynchronous ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_count: Option<u32>,
    #[serde(flatten)]
    cold_start: Option<ColdStart>,
    #[serde(flatten)]
    http: Option<Http<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ColdStart {
    instance_event: &'static str,
    cold_start_latency_ms: f64,
    prepare_code_latency_ms: f64,
    runtime_initialization_ms: f64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Http<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    status_code: Option<u16>,
    method: &'a str,
    #[serde(rename = "requestURI")]
    request_uri: &'a str,
    #[serde(rename = "clientIP")]
    client_ip: String,
}

pub(super) fn request(context: &InvocationContext<'_>, report: &InvocationReport<'_>) -> Option<String> {
    let config = context.config;
    let version = &*config.version;
    let record = Request {
        function_name: &config.name,
        version_id: if version == "LATEST" { "" } else { version },
        qualifier: version,
        request_id: context.request_id,
        operation: "InvokeFunction",
        invocation_type: if context.asynchronous { "Async" } else { "Sync" },
        memory_mb: config.memory_mib,
        memory_usage_mb: hundredths(megabytes(report.memory_peak_bytes)),
        duration_ms: hundredths(ms(report.duration)),
        is_cold_start: report.cold_start.is_some(),
        has_function_error: report.function_error || !error_type(report).is_empty(),
        error_type: error_type(report),
        invoke_function_latency_ms: hundredths(ms(report.duration)),
        resource_mode: if report.provisioned { "Provision" } else { "OnDemand" },
        instance_id: context.instance_id,
        hostname: context.instance_id,
        retry_count: context.asynchronous.then_some(context.retries),
        cold_start: report.cold_start.map(|start| ColdStart {
            instance_event: "ColdStart",
            cold_start_latency_ms: hundredths(ms(start.total())),
            prepare_code_latency_ms: hundredths(ms(start.resolve + start.pull + start.unpack)),
            runtime_initialization_ms: hundredths(ms(start.spawn + start.listen)),
        }),
        http: (context.kind == InvocationKind::Http).then(|| Http {
            status_code: report.status.map(|status| status.as_u16()),
            method: report.method.map_or("", |method| method.as_str()),
            request_uri: context.path,
            client_ip: context.client.map(|client| client.ip().to_string()).unwrap_or_default(),
        }),
    };
    serde_json::to_string(&record).ok()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Metrics<'a> {
    function_name: &'a str,
    version_id: &'a str,
    qualifier: &'a str,
    #[serde(rename = "instanceID")]
    instance_id: &'a str,
    hostname: &'a str,
    cpu_percent: f64,
    cpu_quota_percent: f64,
    #[serde(rename = "memoryUsageMB")]
    memory_usage_mb: f64,
    #[serde(rename = "memoryLimitMB")]
    memory_limit_mb: u32,
    concurrent_requests: usize,
    rx_bytes: u64,
    tx_bytes: u64,
    rx_total_bytes: u64,
    tx_total_bytes: u64,
}

pub(super) fn instance_metrics(config: &FunctionConfig, id: &str, used: &InstanceUse) -> Option<String> {
    let metrics = Metrics {
        function_name: &config.name,
        version_id: if config.version == "LATEST" { "" } else { &config.version },
        qualifier: &config.version,
        instance_id: id,
        hostname: id,
        cpu_percent: hundredths(used.cpu_percent),
        cpu_quota_percent: hundredths(used.cpu_quota_percent),
        memory_usage_mb: hundredths(megabytes(used.memory_bytes)),
        memory_limit_mb: config.memory_mib,
        concurrent_requests: used.running,
        rx_bytes: used.received.0,
        tx_bytes: used.sent.0,
        rx_total_bytes: used.received.1,
        tx_total_bytes: used.sent.1,
    };
    serde_json::to_string(&metrics).ok()
}

/// One of `FunctionOOMError`, `FunctionTimeoutError`, `FunctionUnhandledError`; empty where the function
/// is not at fault.
fn error_type(report: &InvocationReport<'_>) -> &'static str {
    let code = report.failure.map_or("", |failure| failure.code);
    match code {
        "FunctionOOMError" | "FunctionTimeoutError" | "FunctionUnhandledError" => code,
        _ if report.function_error => "FunctionUnhandledError",
        _ => "",
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn hundredths(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use http::{Method, StatusCode};
    use serde_json::{Value, json};

    use super::*;
    use crate::Timeline;
    use crate::platform::testing::context;
    use crate::platform::{InvocationFailure, fc};

    #[test]
    fn events_have_fcs_texts() {
        let config = FunctionConfig::new("resize", fc());
        let event = |step| instance_event(&config, "c-1-2-3", step);
        let took = Duration::from_micros(2_663_630);
        let cases = [
            (InstanceStep::Creating, "Creating", "Start to create instance c-1-2-3 of function resize"),
            (
                InstanceStep::ServerReady(took),
                "RuntimeInitializationSuccess",
                "Successfully started the instance c-1-2-3 and performed health check in 2663.63 ms",
            ),
            (
                InstanceStep::Created(took),
                "CreateSuccess",
                "Successfully created instance c-1-2-3 of function resize totally in 2663.63 ms",
            ),
        ];
        for (step, kind, message) in cases {
            let event = event(step);
            assert_eq!((event.level.as_str(), event.kind), ("Normal", format!("fc:Instance:{kind}")));
            assert_eq!(event.message, message);
        }
        let failed = event(InstanceStep::InitializerFailed("status 500"));
        assert_eq!(
            (failed.level.as_str(), failed.kind.as_str()),
            ("Warning", "fc:Instance:InitializationFailed")
        );
        let told = serde_json::to_value(&failed).expect("JSON");
        let mut names: Vec<&String> = told.as_object().expect("an object").keys().collect();
        names.sort();
        assert_eq!(names, ["level", "message", "time", "type"]);
    }

    fn record(kind: InvocationKind, report: &InvocationReport<'_>) -> Value {
        let config = FunctionConfig::new("resize", fc());
        serde_json::from_str(&request(&context(&config, kind), report).expect("a record")).expect("JSON")
    }

    #[test]
    fn a_warm_event_has_the_common_fields() {
        let report = InvocationReport {
            duration: Duration::from_micros(1_250),
            memory_peak_bytes: 9_646_899,
            ..InvocationReport::default()
        };
        let expected = json!({
            "functionName": "resize", "versionId": "", "qualifier": "LATEST", "requestId": "the-request",
            "operation": "InvokeFunction", "invocationType": "Sync", "memoryMB": 512, "memoryUsageMB": 9.2,
            "durationMs": 1.25, "isColdStart": false, "hasFunctionError": false,
            "invokeFunctionLatencyMs": 1.25, "resourceMode": "OnDemand", "instanceID": "the-instance",
            "hostname": "the-instance",
        });
        assert_eq!(record(InvocationKind::Event, &report), expected);
    }

    #[test]
    fn an_asynchronous_event_tells_how_often_it_was_tried_before() {
        let config = FunctionConfig::new("resize", fc());
        let context =
            InvocationContext { asynchronous: true, retries: 2, ..context(&config, InvocationKind::Event) };
        let record = request(&context, &InvocationReport::default()).expect("a record");
        let record: Value = serde_json::from_str(&record).expect("JSON");
        assert_eq!((&record["invocationType"], &record["retryCount"]), (&json!("Async"), &json!(2)));
    }

    #[test]
    fn a_cold_request_tells_of_its_start_and_of_http() {
        let timeline = Timeline { pull: Duration::from_millis(70), ..Timeline::default() };
        let report = InvocationReport {
            cold_start: Some(&timeline),
            method: Some(&Method::PUT),
            status: Some(StatusCode::CREATED),
            ..InvocationReport::default()
        };
        let record = record(InvocationKind::Http, &report);
        assert_eq!((&record["isColdStart"], &record["instanceEvent"]), (&json!(true), &json!("ColdStart")));
        assert_eq!(
            (&record["coldStartLatencyMs"], &record["prepareCodeLatencyMs"]),
            (&json!(70.0), &json!(70.0))
        );
        assert_eq!((&record["method"], &record["statusCode"]), (&json!("PUT"), &json!(201)));
        assert_eq!((&record["requestURI"], &record["clientIP"]), (&json!("/a/b"), &json!("")));
    }

    #[test]
    fn metrics_of_instances_have_fcs_fields() {
        let used = InstanceUse {
            cpu_percent: 12.345_6,
            cpu_quota_percent: 35.0,
            memory_bytes: 9_646_899,
            running: 2,
            received: (10, 110),
            sent: (20, 220),
        };
        let config = FunctionConfig::new("resize", fc());
        let told = instance_metrics(&config, "c-1-2-3", &used).expect("metrics");
        let expected = json!({
            "functionName": "resize", "versionId": "", "qualifier": "LATEST", "instanceID": "c-1-2-3",
            "hostname": "c-1-2-3", "cpuPercent": 12.35, "cpuQuotaPercent": 35.0, "memoryUsageMB": 9.2,
            "memoryLimitMB": 512, "concurrentRequests": 2, "rxBytes": 10, "txBytes": 20, "rxTotalBytes": 110,
            "txTotalBytes": 220,
        });
        assert_eq!(serde_json::from_str::<Value>(&told).expect("JSON"), expected);
    }

    #[test]
    fn errors_have_fcs_types() {
        let config = FunctionConfig::new("resize", fc());
        let context = context(&config, InvocationKind::Event);
        let report = InvocationReport::default();
        let cases = [
            (InvocationFailure::OutOfMemory, Some("FunctionOOMError")),
            (InvocationFailure::TimedOut, Some("FunctionTimeoutError")),
            (InvocationFailure::ProcessExited(None), Some("FunctionUnhandledError")),
            (InvocationFailure::Canceled, None),
        ];
        for (failure, expected) in cases {
            let answer = fc().invocation_failure(&context, &failure, &report);
            let record =
                record(InvocationKind::Event, &InvocationReport { failure: Some(&answer), ..report });
            assert_eq!(record["errorType"].as_str(), expected, "{failure:?}");
            assert_eq!(record["hasFunctionError"], json!(expected.is_some()));
        }
        let own = record(InvocationKind::Event, &InvocationReport { function_error: true, ..report });
        assert_eq!(own["errorType"], "FunctionUnhandledError");
    }
}
