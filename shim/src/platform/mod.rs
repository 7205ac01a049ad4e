//! Platforms: one vendor's contract each, one folder each.
//!
//! A [`Platform`] turns facts (a configuration, a failed start, a finished invocation) into that
//! vendor's words: variables, headers, ids, error texts, log lines. It knows no kernel and does no
//! I/O. Where a contract is silent the choice is documented at the place where it is made.
//!
//! A third platform is one new folder here and one line in [`by_name`].

mod fc;
mod id;
mod scf;
mod types;

#[cfg(test)]
mod testing;

use std::fmt;
use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};

pub use types::{
    Defaults, HttpCall, HttpEvent, ImageMemory, InstanceEvent, InstanceStep, InstanceUse, InvocationContext,
    InvocationFailure, InvocationKind, InvocationReport, JobContract, Limits, PlatformAnswer, StartCause,
    StartFailure, TailLine, Trigger, Warning,
};

use crate::function::Callback;
use crate::meter::Billing;
use crate::{Credentials, FunctionConfig, Timeline};
pub(crate) use fc::{Api as FcApi, api_error as fc_error};

/// A vendor's contract.
pub trait Platform: fmt::Debug + Send + Sync + 'static {
    /// Its short name, as [`by_name`] takes it.
    fn name(&self) -> &'static str;

    /// What a function has unless it says otherwise.
    fn defaults(&self) -> &'static Defaults;

    /// The bounds of what a function may ask for and may do.
    fn limits(&self) -> &'static Limits;

    /// The bounds of its images, for [`skiff_runtime::image::PullOptions::limits`].
    fn image_limits(&self) -> skiff_runtime::image::Limits;

    /// Prefixes of environment variables that users may not set.
    fn reserved_env_prefixes(&self) -> &'static [&'static str];

    /// Other names of variables that users must not set.
    fn reserved_env_names(&self) -> &'static [&'static str] {
        &[]
    }

    /// A new request id.
    fn new_request_id(&self) -> String;

    /// A new instance id, which is the container's host name too.
    fn new_instance_id(&self) -> String;

    /// An address for a new instance; `None` leaves the choice to the runtime.
    fn new_address(&self) -> Option<Ipv4Addr>;

    /// The variables that the platform adds to the container's environment; `role` is what the function's
    /// role has at its start.
    fn environment(
        &self,
        config: &FunctionConfig,
        instance_id: &str,
        role: Option<&Credentials>,
    ) -> Vec<(String, String)>;

    /// The path that an event is posted to.
    fn event_path(&self) -> &'static str;

    /// Whether an event that is not JSON is refused before the function sees it.
    fn events_are_json(&self) -> bool {
        false
    }

    /// The event of a timer of that name which goes off at that time, with its message; `None` where the
    /// platform's are not known.
    fn timer_event(&self, _name: &str, _time: SystemTime, _message: &str) -> Option<Bytes> {
        None
    }

    /// Whether HTTP requests can reach its functions as events, by [`Platform::http_event`].
    fn has_http_events(&self) -> bool {
        false
    }

    /// The event that an HTTP request becomes.
    fn http_event(&self, _: HttpEvent, _: &InvocationContext<'_>, _: &HttpCall<'_>) -> Bytes {
        Bytes::new()
    }

    /// The HTTP answer that the answer to such an event becomes.
    ///
    /// # Errors
    /// Why it cannot become one.
    fn http_answer(&self, _: HttpEvent, _answer: &[u8]) -> std::result::Result<Response<Bytes>, String> {
        Err("the platform has no HTTP events".to_owned())
    }

    /// What the client of an HTTP request gets where the event that it became has failed so.
    fn http_failure(&self, _: HttpEvent, answer: PlatformAnswer) -> PlatformAnswer {
        answer
    }

    /// Adds the headers of an event call that an HTTP client would send itself (content type and
    /// the like). [`Platform::prepare_request`] adds the rest.
    fn event_headers(&self, headers: &mut HeaderMap);

    /// What the names of headers begin with that clients may not send (lower-case).
    fn reserved_header_prefix(&self) -> &'static str;

    /// Drops the headers that clients may not send to the container and adds the platform's own.
    fn prepare_request(&self, context: &InvocationContext<'_>, headers: &mut HeaderMap);

    /// Whether the client of an HTTP request asks for the log of its invocation.
    fn wants_log(&self, _headers: &HeaderMap) -> bool {
        false
    }

    /// The error that a function reports in the headers of its answer to an HTTP request.
    fn reported_error(&self, _headers: &HeaderMap) -> Option<String> {
        None
    }

    /// Adds to the answer to an HTTP request what is known at its end, if its head has not gone out by then.
    fn finish_http(&self, _: &InvocationContext<'_>, _: &InvocationReport<'_>, _headers: &mut HeaderMap) {}

    /// Drops the headers that the container may not send to clients and adds the platform's own.
    fn finish_response(&self, context: &InvocationContext<'_>, headers: &mut HeaderMap);

    /// What an event's caller sees, given the container's status and headers.
    fn event_verdict(
        &self,
        context: &InvocationContext<'_>,
        status: StatusCode,
        headers: &HeaderMap,
    ) -> EventVerdict;

    /// Adds to an event's answer what is known at its end.
    fn finish_event(
        &self,
        context: &InvocationContext<'_>,
        report: &InvocationReport<'_>,
        headers: &mut HeaderMap,
    );

    /// Method and path of a callback; `None` where the platform has no such callback.
    fn callback(&self, _callback: Callback) -> Option<(Method, &'static str)> {
        None
    }

    /// What stands for the function's code in answers, made of its image's digest; empty where there is no
    /// such thing.
    fn code_checksum(&self, _image_digest: &str) -> String {
        String::new()
    }

    /// A new id for a callback or a health check.
    fn new_callback_id(&self) -> String {
        self.new_request_id()
    }

    /// The headers of a callback.
    fn prepare_callback(&self, _: Callback, context: &InvocationContext<'_>, headers: &mut HeaderMap) {
        self.prepare_request(context, headers);
    }

    /// The log lines before a callback (`ended` is `None`) and after it (with its error, if it failed).
    fn log_callback(&self, _: Callback, _id: &str, _ended: Option<Option<&str>>) -> Vec<String> {
        Vec::new()
    }

    /// The event that it writes about a step in the life of an instance.
    fn instance_event(
        &self,
        _config: &FunctionConfig,
        _instance_id: &str,
        _step: InstanceStep<'_>,
    ) -> Option<InstanceEvent> {
        None
    }

    /// The record that it keeps, every so often, of what an instance uses: one JSON object with its own field
    /// names.
    fn instance_metrics(&self, _: &FunctionConfig, _instance_id: &str, _: &InstanceUse) -> Option<String> {
        None
    }

    /// The record that it keeps of a request at its end: one JSON object with its own field names.
    fn request_record(
        &self,
        _context: &InvocationContext<'_>,
        _report: &InvocationReport<'_>,
    ) -> Option<String> {
        None
    }

    /// The log lines about the start of an instance that is there whether anybody calls or not; `memory_peak_bytes`
    /// is what it has used so far.
    fn log_provisioned(
        &self,
        _config: &FunctionConfig,
        _request_id: &str,
        _start: &Timeline,
        _memory_peak_bytes: u64,
    ) -> Vec<String> {
        Vec::new()
    }

    /// The log lines about SIGTERM that somebody had sent to the function's process.
    fn log_signal(&self, _sent: bool) -> Vec<String> {
        Vec::new()
    }

    /// How it bills.
    fn billing(&self) -> Billing;

    /// How it runs functions without a server; `None` where it runs none.
    fn job(&self) -> Option<JobContract>;

    /// Whether an instance gets no more invocations after this failure.
    fn recycles(&self, config: &FunctionConfig, failure: &InvocationFailure) -> bool;

    /// The answer to the caller for whom an instance was started that did not come up.
    fn start_failure(&self, failure: &StartFailure, kind: InvocationKind) -> PlatformAnswer;

    /// The answer to a caller for whom there is no instance: all are busy, and too many callers wait.
    fn throttled(&self, config: &FunctionConfig, request_id: &str, kind: InvocationKind) -> PlatformAnswer;

    /// The answer to a caller whose session is over and whose id begins no other. It is not documented.
    fn session_over(&self, id: &str, request_id: &str, kind: InvocationKind) -> PlatformAnswer;

    /// The answer to the caller whose invocation failed on the way.
    fn invocation_failure(
        &self,
        context: &InvocationContext<'_>,
        failure: &InvocationFailure,
        report: &InvocationReport<'_>,
    ) -> PlatformAnswer;

    /// The log lines that come before an invocation's own; `report` holds what is known by then.
    fn log_start(&self, context: &InvocationContext<'_>, report: &InvocationReport<'_>) -> Vec<String>;

    /// The log lines that come after an invocation's own.
    fn log_end(&self, context: &InvocationContext<'_>, report: &InvocationReport<'_>) -> Vec<String>;
}

/// What an event's caller sees of the container's answer; its body is passed on.
#[derive(Clone, Debug)]
pub struct EventVerdict {
    /// Status of the platform's answer.
    pub status: StatusCode,
    /// Headers of the platform's answer.
    pub headers: HeaderMap,
    /// The error's text, when the function reported one.
    pub error: Option<String>,
}

/// Alibaba Cloud Function Compute 3.0 (API 2023-03-30).
#[must_use]
pub fn fc() -> &'static dyn Platform {
    &fc::FC_3
}

/// Alibaba Cloud Function Compute 2.0, the service and function model (API 2021-04-06).
#[must_use]
pub fn fc2() -> &'static dyn Platform {
    &fc::FC_2
}

/// Tencent Cloud Serverless Cloud Function, WebServer image functions.
#[must_use]
pub fn scf() -> &'static dyn Platform {
    &scf::SCF
}

/// All platforms.
#[must_use]
pub fn all() -> [&'static dyn Platform; 3] {
    [fc(), fc2(), scf()]
}

/// The platform of that name: `fc`, `fc2` or `scf`.
#[must_use]
pub fn by_name(name: &str) -> Option<&'static dyn Platform> {
    all().into_iter().find(|platform| platform.name() == name)
}

/// Bytes of an answer that a log line may quote: an invoke call's log holds 4 KB in all.
const LOG_ANSWER_BYTES: usize = 4 * 1024;

/// A header value; empty when the text cannot be one.
fn header_value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""))
}

/// Removes every header whose name begins with `prefix` (lower-case). `_` counts as `-`: servers that
/// make variables of headers (CGI, WSGI) cannot tell them apart.
pub(crate) fn remove_prefixed(headers: &mut HeaderMap, prefix: &str) {
    let reserved = |name: &HeaderName| name.as_str().replace('_', "-").starts_with(prefix);
    let names: Vec<HeaderName> = headers.keys().filter(|name| reserved(name)).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

/// Bytes in the platforms' MB, which are 1024 × 1024.
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / (1024.0 * 1024.0)
}

/// Seconds as the platforms write them: whole where they are whole.
fn seconds(time: Duration) -> f64 {
    time.as_millis() as f64 / 1000.0
}

/// The id of a session, which nobody can guess.
pub(crate) fn new_session_id() -> String {
    id::random_uuid()
}

/// A time as `2019-11-29T09:53:30.859837462Z`.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:09}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
        since.subsec_nanos()
    )
}

/// Year, month and day of a day since 1970 (Howard Hinnant's `civil_from_days`).
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_found_by_their_names() {
        for platform in all() {
            assert_eq!(by_name(platform.name()).expect("known").name(), platform.name());
        }
        assert!(by_name("FC").is_none() && by_name("").is_none() && by_name("lambda").is_none());
    }

    #[test]
    fn limits_of_images_are_owned_and_within_the_runtimes() {
        let own = skiff_runtime::image::Limits::default();
        for platform in all() {
            let limits = platform.image_limits();
            assert_eq!(limits.owner, Some(platform.name()));
            assert!(limits.packed_bytes <= own.packed_bytes);
        }
        assert_eq!(scf().image_limits().packed_bytes, 1 << 30);
        assert_eq!(fc().image_limits().packed_bytes, 10 << 30);
    }

    #[test]
    fn reserved_headers_go_however_they_are_spelt() {
        let mut headers = HeaderMap::new();
        for name in ["x-fc-a", "x_fc_b", "x-fc_c", "x-f-c", "x-own_d"] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static("1"));
        }
        remove_prefixed(&mut headers, fc().reserved_header_prefix());
        let mut kept: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        kept.sort_unstable();
        assert_eq!(kept, ["x-f-c", "x-own_d"]);
    }

    #[test]
    fn instance_ids_are_valid_container_names() {
        for platform in all() {
            let id = platform.new_instance_id();
            assert!((1..=64).contains(&id.len()), "{id}");
            assert!(id.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)), "{id}");
            assert!(id.as_bytes()[0].is_ascii_alphanumeric(), "{id}");
        }
    }

    #[test]
    fn times_are_written_as_in_the_samples() {
        let at = |seconds, nanos| rfc3339(UNIX_EPOCH + Duration::new(seconds, nanos));
        assert_eq!(at(1_575_021_210, 859_837_462), "2019-11-29T09:53:30.859837462Z");
        assert_eq!(at(0, 0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(at(951_827_696, 1), "2000-02-29T12:34:56.000000001Z");
        assert_eq!(at(4_107_542_399, 0), "2100-02-28T23:59:59.000000000Z");
        assert_eq!(rfc3339(UNIX_EPOCH - Duration::from_secs(1)), "1970-01-01T00:00:00.000000000Z");
    }

    #[test]
    fn whole_seconds_have_no_fraction() {
        assert_eq!(seconds(Duration::from_secs(120)).to_string(), "120");
        assert_eq!(seconds(Duration::from_millis(1500)).to_string(), "1.5");
    }
}
