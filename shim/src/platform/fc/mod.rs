//! Alibaba Cloud Function Compute, custom container in web-server mode.
//!
//! 3.0 (API 2023-03-30) is the default; 2.0 (the service and function model) differs in the shape
//! and texts of start errors and has a service besides.

mod env;
mod errno;
mod errors;
mod headers;
mod ids;
mod logs;
mod records;

use std::net::Ipv4Addr;
use std::time::Duration;

use http::{HeaderMap, Method, StatusCode};
use skiff_runtime::image::{Attestations, Limits as ImageLimits};

use super::{
    Defaults, EventVerdict, InstanceEvent, InstanceStep, InstanceUse, InvocationContext, InvocationFailure,
    InvocationKind, InvocationReport, JobContract, Limits, Platform, PlatformAnswer, StartFailure, id,
};
use crate::function::Callback;
use crate::meter::Billing;
use crate::{Credentials, FunctionConfig};

pub(crate) use errors::api_error;

/// Which of FC's two models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Api {
    V2,
    V3,
}

/// Alibaba Cloud Function Compute.
#[derive(Debug)]
pub(super) struct Fc {
    name: &'static str,
    api: Api,
}

pub(super) static FC_3: Fc = Fc { name: "fc", api: Api::V3 };
pub(super) static FC_2: Fc = Fc { name: "fc2", api: Api::V2 };

static DEFAULTS: Defaults = Defaults {
    port: 9000,
    start_deadline: Duration::from_secs(120),
    // The console's; the API's is 3 s, which few servers' first request keeps.
    timeout: Duration::from_secs(60),
    websocket_idle: None,
    memory_mib: 512,
    region: "cn-hangzhou",
    account_id: "1234567890123456",
    app_id: "",
    namespace: "default",
    version: "LATEST",
    handler: "index.handler",
};

static LIMITS: Limits = Limits {
    memory_mib: 128..=32_768,
    memory_step_mib: 64,
    memory_also_mib: &[],
    timeout_s: 1..=86_400,
    start_deadline_s: 1..=300,
    websocket_idle_s: 0..=0,
    initializer_s: 1..=300,
    callback_s: 1..=90,
    concurrency: 1..=200,
    health_checks: true,
    name_chars: 64,
    full_name_chars: None,
    env_key_bytes: 1..=256,
    env_total_bytes: 4096,
    request_header_bytes: 8 * 1024,
    request_target_bytes: Some(4 * 1024),
    http_body_bytes: 32 * 1024 * 1024,
    http_answer_bytes: None,
    websocket_message_bytes: usize::MAX,
    response_header_bytes: 8 * 1024,
    event_bytes: 32 * 1024 * 1024,
    async_event_bytes: 128 * 1024,
    // Documented for requests only.
    answer_bytes: 32 * 1024 * 1024,
    log_line_bytes: 32 * 1024,
    nofile: 100_000,
    pids: 1024,
    image_memory: &[],
};

/// Packed bytes of an image ("未解压镜像"): 10 GB for functions without GPU.
const IMAGE_BYTES: u64 = 10 << 30;

impl Platform for Fc {
    fn name(&self) -> &'static str {
        self.name
    }

    fn defaults(&self) -> &'static Defaults {
        &DEFAULTS
    }

    fn limits(&self) -> &'static Limits {
        &LIMITS
    }

    /// FC refuses an index with build provenance: "invalid image, platform of image is
    /// unknown/unknown".
    fn image_limits(&self) -> ImageLimits {
        let mut limits = ImageLimits::default();
        limits.owner = Some(self.name);
        limits.packed_bytes = IMAGE_BYTES;
        limits.attestations = Attestations::Refuse;
        limits
    }

    fn reserved_env_prefixes(&self) -> &'static [&'static str] {
        &["FC_"]
    }

    fn reserved_env_names(&self) -> &'static [&'static str] {
        match self.api {
            Api::V2 => &["accessKeyID", "accessKeySecret", "securityToken", "topic"],
            Api::V3 => &[],
        }
    }

    fn new_request_id(&self) -> String {
        ids::request()
    }

    fn new_instance_id(&self) -> String {
        ids::instance()
    }

    /// As in FC's own error texts: 21.0.x.x.
    fn new_address(&self) -> Option<Ipv4Addr> {
        Some(id::address(21, 0))
    }

    fn environment(
        &self,
        config: &FunctionConfig,
        instance_id: &str,
        role: Option<&Credentials>,
    ) -> Vec<(String, String)> {
        env::variables(self.api, config, instance_id, role)
    }

    fn event_path(&self) -> &'static str {
        headers::EVENT_PATH
    }

    fn event_headers(&self, headers: &mut HeaderMap) {
        headers::event(headers);
    }

    fn reserved_header_prefix(&self) -> &'static str {
        headers::PREFIX
    }

    fn prepare_request(&self, context: &InvocationContext<'_>, headers: &mut HeaderMap) {
        headers::request(self.api, context, headers);
    }

    fn finish_response(&self, context: &InvocationContext<'_>, headers: &mut HeaderMap) {
        headers::response(context, headers);
    }

    fn wants_log(&self, headers: &HeaderMap) -> bool {
        headers.get("x-fc-log-type").is_some_and(|kind| kind.as_bytes().eq_ignore_ascii_case(b"tail"))
    }

    fn reported_error(&self, headers: &HeaderMap) -> Option<String> {
        let failed = headers.get("x-fc-status").is_some_and(|status| status.as_bytes() == b"404");
        failed.then(|| "Unhandled function error".to_owned())
    }

    fn finish_http(&self, _: &InvocationContext<'_>, report: &InvocationReport<'_>, headers: &mut HeaderMap) {
        headers::of_report(report, headers);
    }

    /// The container's own status and headers do not reach the caller; `x-fc-status: 404` alone
    /// reports an error.
    fn event_verdict(
        &self,
        context: &InvocationContext<'_>,
        _status: StatusCode,
        headers: &HeaderMap,
    ) -> EventVerdict {
        let error = self.reported_error(headers);
        let mut answer = HeaderMap::new();
        headers::ids(context.request_id, Some(context.instance_id), &mut answer);
        if error.is_some() {
            errors::mark_handled(&mut answer);
        }
        EventVerdict { status: StatusCode::OK, headers: answer, error }
    }

    fn finish_event(
        &self,
        context: &InvocationContext<'_>,
        report: &InvocationReport<'_>,
        headers: &mut HeaderMap,
    ) {
        headers::ids(context.request_id, Some(context.instance_id), headers);
        headers::code_checksum(context, headers);
        headers::of_report(report, headers);
    }

    /// 3.0 has no PreFreeze.
    fn callback(&self, callback: Callback) -> Option<(Method, &'static str)> {
        match (callback, self.api) {
            (Callback::Initializer, _) => Some((Method::POST, "/initialize")),
            (Callback::PreFreeze, Api::V2) => Some((Method::GET, "/pre-freeze")),
            (Callback::PreFreeze, Api::V3) => None,
            (Callback::PreStop, _) => Some((Method::GET, "/pre-stop")),
        }
    }

    fn code_checksum(&self, image_digest: &str) -> String {
        ids::crc64(image_digest.as_bytes()).to_string()
    }

    /// As in samples of logs.
    fn new_callback_id(&self) -> String {
        id::random_uuid()
    }

    fn prepare_callback(&self, callback: Callback, context: &InvocationContext<'_>, headers: &mut HeaderMap) {
        headers::request(self.api, context, headers);
        headers::control_path(self.callback(callback).map_or("", |(_, path)| path), headers);
    }

    fn log_callback(&self, callback: Callback, id: &str, ended: Option<Option<&str>>) -> Vec<String> {
        logs::callback(callback, id, ended)
    }

    fn instance_event(
        &self,
        config: &FunctionConfig,
        instance_id: &str,
        step: InstanceStep<'_>,
    ) -> Option<InstanceEvent> {
        Some(records::instance_event(config, instance_id, step))
    }

    fn instance_metrics(
        &self,
        config: &FunctionConfig,
        instance_id: &str,
        used: &InstanceUse,
    ) -> Option<String> {
        records::instance_metrics(config, instance_id, used)
    }

    fn request_record(
        &self,
        context: &InvocationContext<'_>,
        report: &InvocationReport<'_>,
    ) -> Option<String> {
        records::request(context, report)
    }

    /// Milliseconds (billing, R 04/040 and 03/03), begun ones counting: "Duration: 42.27 ms, Billed Duration:
    /// 43 ms" (R 04/022). The time of a pull is billed with the memory of the instance ("Custom Container:
    /// limits and billing", S).
    fn billing(&self) -> Billing {
        Billing { unit_ms: 1, pulls: true }
    }

    /// 3.0 has no mode without a server.
    fn job(&self) -> Option<JobContract> {
        (self.api == Api::V2).then_some(JobContract {
            variable: "FC_CUSTOM_CONTAINER_EVENT",
            answers_at_start: false,
            events_are_json: false,
        })
    }

    /// One that is alone in its instance leaves that unusable when it is cancelled; documented for
    /// cancels, and no less true of time-outs. Where others run beside it they go on.
    fn recycles(&self, config: &FunctionConfig, failure: &InvocationFailure) -> bool {
        match failure {
            InvocationFailure::ProcessExited(_) | InvocationFailure::OutOfMemory => true,
            InvocationFailure::TimedOut | InvocationFailure::Canceled | InvocationFailure::Terminated => {
                config.concurrency == 1 && config.health_check.is_none()
            }
            _ => false,
        }
    }

    fn start_failure(&self, failure: &StartFailure, kind: InvocationKind) -> PlatformAnswer {
        errors::start(self.api, failure, kind)
    }

    fn throttled(&self, _: &FunctionConfig, request_id: &str, _: InvocationKind) -> PlatformAnswer {
        errors::throttled(self.api, request_id)
    }

    fn session_over(&self, id: &str, request_id: &str, _: InvocationKind) -> PlatformAnswer {
        errors::session_over(self.api, id, request_id)
    }

    fn invocation_failure(
        &self,
        context: &InvocationContext<'_>,
        failure: &InvocationFailure,
        report: &InvocationReport<'_>,
    ) -> PlatformAnswer {
        errors::invocation(self.api, context, failure, report)
    }

    fn log_start(&self, context: &InvocationContext<'_>, _report: &InvocationReport<'_>) -> Vec<String> {
        logs::start(context)
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
    fn only_the_status_header_reports_a_function_error() {
        let config = FunctionConfig::new("resize", &FC_3);
        let context = context(&config, InvocationKind::Event);
        let mut headers = HeaderMap::new();
        let fine = FC_3.event_verdict(&context, StatusCode::BAD_REQUEST, &headers);
        assert_eq!((fine.status, fine.error), (StatusCode::OK, None));
        headers.insert("x-fc-status", http::HeaderValue::from_static("404"));
        let failed = FC_3.event_verdict(&context, StatusCode::OK, &headers);
        assert_eq!(failed.status, StatusCode::OK);
        assert_eq!(failed.headers["x-fc-error-type"], "HandledInvocationError");
        assert!(failed.error.is_some());
        headers.insert("x-fc-status", http::HeaderValue::from_static("200"));
        assert_eq!(FC_3.event_verdict(&context, StatusCode::OK, &headers).error, None);
    }
}
