//! Tencent Cloud Serverless Cloud Function, WebServer image function.

mod env;
mod errors;
mod headers;
mod http_event;
mod logs;
mod records;
mod timer;

use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use skiff_runtime::image::Limits as ImageLimits;

use super::{
    Defaults, EventVerdict, HttpCall, HttpEvent, ImageMemory, InvocationContext, InvocationFailure,
    InvocationKind, InvocationReport, JobContract, Limits, Platform, PlatformAnswer, StartFailure, id,
};
use crate::meter::Billing;
use crate::{Credentials, FunctionConfig, Timeline};

/// Tencent Cloud Serverless Cloud Function.
#[derive(Debug)]
pub(super) struct Scf;

pub(super) static SCF: Scf = Scf;

/// The status of a function's own error, `UserCodeError`.
const FUNCTION_ERROR: u16 = 443;

static DEFAULTS: Defaults = Defaults {
    port: 9000,
    // The WebServer image page; newer pages speak of an initialisation timeout of 3 to 300 s.
    start_deadline: Duration::from_secs(30),
    timeout: Duration::from_secs(3),
    // `ProtocolParams.WSParams.IdleTimeOut` of the SDK.
    websocket_idle: Some(Duration::from_secs(15)),
    memory_mib: 128,
    region: "ap-guangzhou",
    account_id: "100000000001",
    app_id: "1250000000",
    namespace: "default",
    version: "$LATEST",
    handler: "",
};

static LIMITS: Limits = Limits {
    // Large specifications, up to 120 GB, are granted on request.
    memory_mib: 64..=122_880,
    memory_step_mib: 128,
    memory_also_mib: &[64],
    // 900 s, and 24 h for asynchronous execution.
    timeout_s: 1..=86_400,
    start_deadline_s: 1..=300,
    websocket_idle_s: 1..=1800,
    // It has no callbacks.
    initializer_s: 0..=0,
    callback_s: 0..=0,
    concurrency: 1..=100,
    health_checks: false,
    name_chars: 60,
    full_name_chars: Some(118),
    env_key_bytes: 2..=64,
    env_total_bytes: 4096,
    // 4 KB stand on the old page of HTTP functions only; not documented for image functions.
    request_header_bytes: 64 * 1024,
    request_target_bytes: None,
    http_body_bytes: 6 * 1024 * 1024,
    http_answer_bytes: Some(6 * 1024 * 1024),
    websocket_message_bytes: 1024 * 1024,
    response_header_bytes: 4 * 1024,
    event_bytes: 6 * 1024 * 1024,
    async_event_bytes: 128 * 1024,
    answer_bytes: 6 * 1024 * 1024,
    // Not documented; as fc.
    log_line_bytes: 32 * 1024,
    nofile: 1024,
    pids: 1024,
    image_memory: &[
        ImageMemory { image_bytes: 256 << 20, memory_mib: 256, enough_mib: Some(512) },
        ImageMemory { image_bytes: 512 << 20, memory_mib: 512, enough_mib: Some(1024) },
        ImageMemory { image_bytes: 1 << 30, memory_mib: 1024, enough_mib: None },
    ],
};

/// Packed bytes of an image ("before decompression"); Tencent raises it on request.
const IMAGE_BYTES: u64 = 1 << 30;

impl Platform for Scf {
    fn name(&self) -> &'static str {
        "scf"
    }

    fn defaults(&self) -> &'static Defaults {
        &DEFAULTS
    }

    fn limits(&self) -> &'static Limits {
        &LIMITS
    }

    /// What becomes of an index with build provenance is not documented: its attestations are
    /// passed over, as containerd does.
    fn image_limits(&self) -> ImageLimits {
        let mut limits = ImageLimits::default();
        limits.owner = Some("scf");
        limits.packed_bytes = IMAGE_BYTES;
        limits
    }

    fn reserved_env_prefixes(&self) -> &'static [&'static str] {
        &["SCF_", "QCLOUD_", "TENCENTCLOUD_"]
    }

    fn new_request_id(&self) -> String {
        id::time_uuid()
    }

    fn new_instance_id(&self) -> String {
        id::time_uuid()
    }

    fn new_address(&self) -> Option<Ipv4Addr> {
        None
    }

    fn environment(
        &self,
        config: &FunctionConfig,
        _instance_id: &str,
        _role: Option<&Credentials>,
    ) -> Vec<(String, String)> {
        env::variables(config)
    }

    fn event_path(&self) -> &'static str {
        "/event-invoke"
    }

    fn events_are_json(&self) -> bool {
        true
    }

    fn timer_event(&self, name: &str, time: SystemTime, message: &str) -> Option<Bytes> {
        Some(timer::event(name, time, message))
    }

    fn has_http_events(&self) -> bool {
        true
    }

    fn http_event(&self, form: HttpEvent, context: &InvocationContext<'_>, call: &HttpCall<'_>) -> Bytes {
        http_event::event(form, context, call)
    }

    fn http_answer(&self, form: HttpEvent, answer: &[u8]) -> Result<Response<Bytes>, String> {
        http_event::answer(form, answer)
    }

    fn http_failure(&self, form: HttpEvent, answer: PlatformAnswer) -> PlatformAnswer {
        errors::of_http_event(form, answer)
    }

    fn event_headers(&self, headers: &mut HeaderMap) {
        headers::event(headers);
    }

    fn reserved_header_prefix(&self) -> &'static str {
        headers::PREFIX
    }

    fn prepare_request(&self, context: &InvocationContext<'_>, headers: &mut HeaderMap) {
        headers::request(context, headers);
    }

    fn finish_response(&self, context: &InvocationContext<'_>, headers: &mut HeaderMap) {
        headers::response(context, headers);
    }

    /// What a status outside 2xx means is not documented: here it is a function error (443,
    /// `UserCodeError`) whose caller gets the server's body unchanged.
    fn event_verdict(
        &self,
        context: &InvocationContext<'_>,
        status: StatusCode,
        _headers: &HeaderMap,
    ) -> EventVerdict {
        let mut answer = HeaderMap::new();
        headers::id(context.request_id, &mut answer);
        let error = (!status.is_success()).then(|| format!("the server answered {}", status.as_u16()));
        let seen = match &error {
            Some(_) => StatusCode::from_u16(FUNCTION_ERROR).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            None => StatusCode::OK,
        };
        EventVerdict { status: seen, headers: answer, error }
    }

    fn finish_event(
        &self,
        context: &InvocationContext<'_>,
        _report: &InvocationReport<'_>,
        headers: &mut HeaderMap,
    ) {
        headers::id(context.request_id, headers);
    }

    fn request_record(
        &self,
        context: &InvocationContext<'_>,
        report: &InvocationReport<'_>,
    ) -> Option<String> {
        records::request(context, report, SystemTime::now())
    }

    /// `BillDuration` is a whole number of milliseconds (`Invoke`, SDK); that one which has begun counts is
    /// not documented and was chosen, as the API of Skiff tells it. Nothing says that a pull is billed: it is
    /// part of a cold start (`PullCode`).
    fn billing(&self) -> Billing {
        Billing { unit_ms: 1, pulls: false }
    }

    fn job(&self) -> Option<JobContract> {
        Some(JobContract {
            variable: "SCF_CUSTOM_CONTAINER_EVENT",
            answers_at_start: true,
            events_are_json: true,
        })
    }

    fn log_provisioned(
        &self,
        config: &FunctionConfig,
        request_id: &str,
        start: &Timeline,
        memory_peak_bytes: u64,
    ) -> Vec<String> {
        vec![logs::start_report("Provisioned", config, request_id, start, memory_peak_bytes)]
    }

    fn log_signal(&self, sent: bool) -> Vec<String> {
        vec![logs::signal(sent)]
    }

    /// 433, 434 and 439 recycle the instance, and so does the end of an asynchronous request by its owner;
    /// where others run beside it, a time-out and such an end are that request's.
    fn recycles(&self, config: &FunctionConfig, failure: &InvocationFailure) -> bool {
        match failure {
            InvocationFailure::OutOfMemory | InvocationFailure::ProcessExited(_) => true,
            InvocationFailure::TimedOut | InvocationFailure::Terminated => config.concurrency == 1,
            _ => false,
        }
    }

    fn start_failure(&self, failure: &StartFailure, kind: InvocationKind) -> PlatformAnswer {
        errors::start(failure, kind)
    }

    fn throttled(&self, config: &FunctionConfig, request_id: &str, kind: InvocationKind) -> PlatformAnswer {
        errors::throttled(config, request_id, kind)
    }

    fn session_over(&self, id: &str, request_id: &str, kind: InvocationKind) -> PlatformAnswer {
        errors::session_over(id, request_id, kind)
    }

    fn invocation_failure(
        &self,
        context: &InvocationContext<'_>,
        failure: &InvocationFailure,
        _report: &InvocationReport<'_>,
    ) -> PlatformAnswer {
        errors::invocation(context, failure)
    }

    fn log_start(&self, context: &InvocationContext<'_>, report: &InvocationReport<'_>) -> Vec<String> {
        logs::start(context, report)
    }

    fn log_end(&self, context: &InvocationContext<'_>, report: &InvocationReport<'_>) -> Vec<String> {
        logs::end(context, report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::testing::context;

    #[test]
    fn some_failures_recycle_the_instance() {
        let exit = skiff_runtime::Exit { code: Some(1), signal: None, oom_killed: false };
        let table = [
            (InvocationFailure::TimedOut, true, false),
            (InvocationFailure::OutOfMemory, true, true),
            (InvocationFailure::ProcessExited(Some(exit)), true, true),
            (InvocationFailure::Terminated, true, false),
            (InvocationFailure::Canceled, false, false),
            (InvocationFailure::ConnectionBroken(String::new()), false, false),
            (InvocationFailure::BadResponse(String::new()), false, false),
            (InvocationFailure::InvalidAnswer(String::new()), false, false),
            (InvocationFailure::AnswerTooLarge(1), false, false),
            (InvocationFailure::RequestTooLarge(String::new()), false, false),
            (InvocationFailure::InvalidEvent(String::new()), false, false),
            (InvocationFailure::WebSocketIdle, false, false),
            (InvocationFailure::WebSocketBroken, false, false),
            (InvocationFailure::WebSocketTooLarge(1), false, false),
        ];
        let mut config = FunctionConfig::new("resize", &SCF);
        for (failure, alone, beside_others) in table {
            for (concurrency, recycles) in [(1, alone), (2, beside_others)] {
                config.concurrency = concurrency;
                assert_eq!(SCF.recycles(&config, &failure), recycles, "{failure:?} with {concurrency}");
            }
        }
    }

    #[test]
    fn a_status_outside_2xx_is_a_function_error() {
        let config = FunctionConfig::new("resize", &SCF);
        let context = context(&config, InvocationKind::Event);
        for (status, seen, failed) in
            [(200, 200, false), (204, 200, false), (302, 443, true), (500, 443, true)]
        {
            let status = StatusCode::from_u16(status).expect("valid");
            let verdict = SCF.event_verdict(&context, status, &HeaderMap::new());
            assert_eq!((verdict.status.as_u16(), verdict.error.is_some()), (seen, failed));
        }
    }
}
