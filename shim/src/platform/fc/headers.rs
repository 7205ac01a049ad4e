//! Headers between FC, the container and the caller.
//!
//! Request: the documented common headers (`公共请求头`) and the others that a dump of a 3.0 function
//! shows; empty ones are sent. Clients may not send `x-fc-*`. Response: the headers that FC replaces
//! are dropped, the ids are added.

use std::time::Duration;

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS,
    CONTENT_DISPOSITION, CONTENT_TYPE, DATE, HeaderMap, HeaderName, HeaderValue, SERVER,
};

use super::Api;
use crate::base64;
use crate::platform::types::exposed;
use crate::platform::{
    InvocationContext, InvocationKind, InvocationReport, header_value, megabytes, remove_prefixed,
};

/// What the names of the platform's own headers begin with.
pub(super) const PREFIX: &str = "x-fc-";

/// What pages of other sites may read of an answer, as FC says it.
const EXPOSED: &str = "Date,x-fc-request-id,x-fc-error-type,x-fc-code-checksum,x-fc-invocation-duration,\
                       x-fc-max-memory-usage,x-fc-log-result,x-fc-invocation-code-version";

/// Sent empty where the feature behind them is off.
const EMPTY: [&str; 8] = [
    "x-fc-client-ip",
    "x-fc-api-server-ip",
    "x-fc-eagleeye-traceid",
    "x-fc-eagleeye-rpcid",
    "x-fc-eagleeye-userdata",
    "x-fc-tracing-opentracing-span-context",
    "x-fc-tracing-opentracing-span-baggages",
    "x-fc-tracing-jaeger-endpoint",
];

/// Path of the event call, and its control path.
pub(super) const EVENT_PATH: &str = "/invoke";

/// What FC itself sends with an event.
pub(super) fn event(headers: &mut HeaderMap) {
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
}

/// Prepares a request's headers for the container.
pub(super) fn request(api: Api, context: &InvocationContext<'_>, headers: &mut HeaderMap) {
    remove_prefixed(headers, PREFIX);
    let config = context.config;
    let service = if api == Api::V2 { config.namespace.as_str() } else { "" };
    let mut set = |name: &'static str, value: &str| {
        headers.insert(HeaderName::from_static(name), header_value(value));
    };
    set("x-fc-request-id", context.request_id);
    set("x-fc-function-name", &config.name);
    set("x-fc-function-handler", &config.handler);
    set("x-fc-function-memory", &config.memory_mib.to_string());
    set("x-fc-function-timeout", &config.timeout.as_secs_f64().ceil().to_string());
    set("x-fc-service-name", service);
    set("x-fc-region", &config.region);
    set("x-fc-account-id", &config.account_id);
    set("x-fc-qualifier", &config.version);
    set("x-fc-version-id", if config.version == "LATEST" { "" } else { &config.version });
    set("x-fc-service-logproject", "");
    set("x-fc-service-logstore", "");
    set("x-fc-retry-count", &context.retries.to_string());
    EMPTY.iter().for_each(|name| set(name, ""));
    if api == Api::V2 {
        let callbacks = &config.callbacks;
        let handler = |limit: Option<Duration>, path| if limit.is_some() { path } else { "" };
        let initializer = callbacks.initializer.map(|limit| limit.as_secs().to_string());
        set("x-fc-function-initializer", handler(callbacks.initializer, "/initialize"));
        set("x-fc-initialization-timeout", &initializer.unwrap_or_default());
        set("x-fc-instance-lifecycle-pre-stop-handler", handler(callbacks.pre_stop, "/pre-stop"));
        set("x-fc-instance-lifecycle-pre-freeze-handler", handler(callbacks.pre_freeze, "/pre-freeze"));
    }
    set("x-fc-control-path", if context.kind == InvocationKind::Event { EVENT_PATH } else { "/http-invoke" });
    if context.kind == InvocationKind::Http {
        set("x-fc-base-path", base_path(api, context));
    }
    credentials(context, headers);
    if context.kind == InvocationKind::Http {
        forwarded(context, headers);
    }
}

/// The path before what is the function's own: of 2.0's `/VERSION/proxy/SERVICE/FUNCTION/…` all up to
/// there (the container gets the whole path all the same). Elsewhere the request's path, as a dump shows.
fn base_path<'a>(api: Api, context: &InvocationContext<'a>) -> &'a str {
    if api == Api::V3 || !is_proxied(context.path) {
        return context.path;
    }
    let end = context.path.match_indices('/').nth(4).map_or(context.path.len(), |(slash, _)| slash + 1);
    &context.path[..end]
}

fn is_proxied(path: &str) -> bool {
    let mut parts = path.split('/').skip(1);
    let version = parts.next().is_some_and(|version| ["2016-08-15", "2021-04-06"].contains(&version));
    version
        && parts.next() == Some("proxy")
        && parts.clone().take(2).filter(|part| !part.is_empty()).count() == 2
}

/// What a callback's request has there.
pub(super) fn control_path(path: &str, headers: &mut HeaderMap) {
    headers.insert(HeaderName::from_static("x-fc-control-path"), header_value(path));
}

/// Empty for a function without a role.
fn credentials(context: &InvocationContext<'_>, headers: &mut HeaderMap) {
    let (id, key, token) = context.credentials.map_or_else(Default::default, |role| {
        (exposed(&role.access_key_id), exposed(&role.access_key_secret), exposed(&role.security_token))
    });
    for (name, value) in
        [("x-fc-access-key-id", id), ("x-fc-access-key-secret", key), ("x-fc-security-token", token)]
    {
        let mut value = header_value(&value);
        value.set_sensitive(true);
        headers.insert(HeaderName::from_static(name), value);
    }
}

/// `X-Forwarded-For` and `X-Forwarded-Proto`, unless a proxy in front has said them.
fn forwarded(context: &InvocationContext<'_>, headers: &mut HeaderMap) {
    if let Some(client) = context.client {
        headers.entry("x-forwarded-for").or_insert_with(|| header_value(&client.ip().to_string()));
    }
    headers.entry("x-forwarded-proto").or_insert(HeaderValue::from_static("http"));
}

/// Prepares a response's headers for the caller. The framing ones are the proxy's.
pub(super) fn response(context: &InvocationContext<'_>, headers: &mut HeaderMap) {
    remove_prefixed(headers, PREFIX);
    for name in [DATE, SERVER, CONTENT_DISPOSITION] {
        headers.remove(name);
    }
    ids(context.request_id, Some(context.instance_id), headers);
    code_checksum(context, headers);
    if let Some(origin) = context.origin {
        headers.entry(ACCESS_CONTROL_ALLOW_ORIGIN).or_insert_with(|| origin.clone());
        headers.entry(ACCESS_CONTROL_ALLOW_CREDENTIALS).or_insert(HeaderValue::from_static("true"));
        headers.entry(ACCESS_CONTROL_EXPOSE_HEADERS).or_insert(HeaderValue::from_static(EXPOSED));
    }
}

/// What is known when an event has been answered. Memory as in a sample: `9.2`.
pub(super) fn of_report(report: &InvocationReport<'_>, headers: &mut HeaderMap) {
    let ms = report.duration.as_micros().div_ceil(1000);
    let memory = format!("{:.2}", megabytes(report.memory_peak_bytes));
    headers.insert(HeaderName::from_static("x-fc-invocation-duration"), HeaderValue::from(ms as u64));
    headers.insert(HeaderName::from_static("x-fc-max-memory-usage"), header_value(&memory));
    if let Some(tail) = report.log_tail {
        headers.insert(HeaderName::from_static("x-fc-log-result"), header_value(&base64(tail)));
    }
}

/// What stands for the code. That of an image is not documented: here it is made of its digest, as FC makes
/// that of a code package (CRC-64, in decimal).
pub(super) fn code_checksum(context: &InvocationContext<'_>, headers: &mut HeaderMap) {
    if !context.code_checksum.is_empty() {
        headers.insert(HeaderName::from_static("x-fc-code-checksum"), header_value(context.code_checksum));
    }
}

/// The ids that every answer has.
pub(super) fn ids(request_id: &str, instance_id: Option<&str>, headers: &mut HeaderMap) {
    headers.insert(HeaderName::from_static("x-fc-request-id"), header_value(request_id));
    if let Some(instance_id) = instance_id {
        headers.insert(HeaderName::from_static("x-fc-instance-id"), header_value(instance_id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FunctionConfig;
    use crate::function::Callbacks;
    use crate::platform::testing::{context, role};
    use crate::platform::{fc, fc2};

    fn names_and_values(headers: &HeaderMap) -> Vec<(String, String)> {
        let mut all: Vec<(String, String)> = headers
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_str().expect("text").to_owned()))
            .collect();
        all.sort();
        all
    }

    #[test]
    fn an_event_has_exactly_the_common_headers() {
        let config = FunctionConfig::new("resize", fc());
        let mut headers = HeaderMap::new();
        event(&mut headers);
        request(Api::V3, &context(&config, InvocationKind::Event), &mut headers);
        let expected = [
            ("content-type", "application/octet-stream"),
            ("x-fc-access-key-id", ""),
            ("x-fc-access-key-secret", ""),
            ("x-fc-account-id", "1234567890123456"),
            ("x-fc-api-server-ip", ""),
            ("x-fc-client-ip", ""),
            ("x-fc-control-path", "/invoke"),
            ("x-fc-eagleeye-rpcid", ""),
            ("x-fc-eagleeye-traceid", ""),
            ("x-fc-eagleeye-userdata", ""),
            ("x-fc-function-handler", "index.handler"),
            ("x-fc-function-memory", "512"),
            ("x-fc-function-name", "resize"),
            ("x-fc-function-timeout", "60"),
            ("x-fc-qualifier", "LATEST"),
            ("x-fc-region", "cn-hangzhou"),
            ("x-fc-request-id", "the-request"),
            ("x-fc-retry-count", "0"),
            ("x-fc-security-token", ""),
            ("x-fc-service-logproject", ""),
            ("x-fc-service-logstore", ""),
            ("x-fc-service-name", ""),
            ("x-fc-tracing-jaeger-endpoint", ""),
            ("x-fc-tracing-opentracing-span-baggages", ""),
            ("x-fc-tracing-opentracing-span-context", ""),
            ("x-fc-version-id", ""),
        ];
        let expected: Vec<(String, String)> =
            expected.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        assert_eq!(names_and_values(&headers), expected);
    }

    #[test]
    fn a_call_that_was_tried_before_says_how_often() {
        let config = FunctionConfig::new("resize", fc());
        let mut headers = HeaderMap::new();
        let context = InvocationContext { retries: 2, ..context(&config, InvocationKind::Event) };
        request(Api::V3, &context, &mut headers);
        assert_eq!(headers["x-fc-retry-count"], "2");
    }

    #[test]
    fn what_clients_say_about_the_platform_is_dropped() {
        let config = FunctionConfig::new("resize", fc());
        let mut headers = HeaderMap::new();
        headers.append("x-fc-account-id", HeaderValue::from_static("999"));
        headers.append("x-fc-account-id", HeaderValue::from_static("998"));
        headers.append("X-Fc-Invented", HeaderValue::from_static("1"));
        headers.append("x-own", HeaderValue::from_static("kept"));
        headers.append("x-forwarded-for", HeaderValue::from_static("203.0.113.7"));
        request(Api::V3, &context(&config, InvocationKind::Http), &mut headers);
        assert_eq!(headers.get_all("x-fc-account-id").iter().collect::<Vec<_>>(), ["1234567890123456"]);
        assert!(!headers.contains_key("x-fc-invented"));
        assert_eq!(headers["x-own"], "kept");
        assert_eq!(headers["x-forwarded-for"], "203.0.113.7");
        assert_eq!(headers["x-forwarded-proto"], "http");
        assert_eq!(headers["x-fc-control-path"], "/http-invoke");
        assert_eq!(headers["x-fc-base-path"], "/a/b");
    }

    #[test]
    fn a_role_is_sent_and_not_shown() {
        let mut config = FunctionConfig::new("resize", fc());
        config.credentials = Some(role());
        let mut headers = HeaderMap::new();
        request(Api::V3, &context(&config, InvocationKind::Event), &mut headers);
        assert_eq!(headers["x-fc-access-key-id"], "the-id");
        assert_eq!(headers["x-fc-access-key-secret"], "the-key");
        assert_eq!(headers["x-fc-security-token"], "the-token");
        let shown = format!("{headers:?}");
        assert!(!shown.contains("the-key") && !shown.contains("the-token"), "{shown}");
    }

    #[test]
    fn api_two_has_service_and_callback_headers() {
        let mut config = FunctionConfig::new("resize", fc2());
        config.version = "3".to_owned();
        let mut headers = HeaderMap::new();
        request(Api::V2, &context(&config, InvocationKind::Event), &mut headers);
        assert_eq!(headers["x-fc-service-name"], "default");
        assert_eq!(headers["x-fc-version-id"], "3");
        let callbacks = [
            ("x-fc-function-initializer", "/initialize"),
            ("x-fc-initialization-timeout", "30"),
            ("x-fc-instance-lifecycle-pre-stop-handler", "/pre-stop"),
            ("x-fc-instance-lifecycle-pre-freeze-handler", "/pre-freeze"),
        ];
        assert!(callbacks.iter().all(|(name, _)| headers[*name].is_empty()));
        let limit = Some(Duration::from_secs(30));
        config.callbacks = Callbacks { initializer: limit, pre_freeze: limit, pre_stop: limit };
        request(Api::V2, &context(&config, InvocationKind::Event), &mut headers);
        assert!(callbacks.iter().all(|(name, value)| headers[*name] == *value), "{headers:?}");
    }

    #[test]
    fn the_base_of_a_proxied_path_is_the_part_before_the_functions_own() {
        let config = FunctionConfig::new("resize", fc2());
        let base = |api, path| {
            let context = InvocationContext { path, ..context(&config, InvocationKind::Http) };
            base_path(api, &context).to_owned()
        };
        assert_eq!(base(Api::V2, "/2016-08-15/proxy/svc/resize/a/b"), "/2016-08-15/proxy/svc/resize/");
        assert_eq!(base(Api::V2, "/2021-04-06/proxy/svc.prod/resize/"), "/2021-04-06/proxy/svc.prod/resize/");
        assert_eq!(base(Api::V2, "/2016-08-15/proxy/svc/resize"), "/2016-08-15/proxy/svc/resize");
        for own in
            ["/a/b", "/", "/2016-08-15/proxy/svc", "/2016-08-15/proxy//resize/a", "/2020-01-01/proxy/s/f/"]
        {
            assert_eq!(base(Api::V2, own), own);
        }
        assert_eq!(base(Api::V3, "/2016-08-15/proxy/svc/resize/a"), "/2016-08-15/proxy/svc/resize/a");
    }

    #[test]
    fn a_value_that_is_no_header_does_no_harm() {
        let mut config = FunctionConfig::new("resize", fc());
        config.handler = "a\r\nx-evil: 1".to_owned();
        let mut headers = HeaderMap::new();
        request(Api::V3, &context(&config, InvocationKind::Event), &mut headers);
        assert_eq!(headers["x-fc-function-handler"], "");
    }

    #[test]
    fn replaced_response_headers_are_dropped() {
        let config = FunctionConfig::new("resize", fc());
        let mut headers = HeaderMap::new();
        for name in ["x-fc-status", "date", "server", "content-disposition", "content-type", "set-cookie"] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static("v"));
        }
        response(&context(&config, InvocationKind::Http), &mut headers);
        let mut names: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["content-type", "set-cookie", "x-fc-instance-id", "x-fc-request-id"]);
    }

    #[test]
    fn pages_of_other_sites_may_read_the_answer() {
        let config = FunctionConfig::new("resize", fc());
        let origin = HeaderValue::from_static("https://a.example");
        let context = InvocationContext { origin: Some(&origin), ..context(&config, InvocationKind::Http) };
        let mut headers = HeaderMap::new();
        response(&context, &mut headers);
        assert_eq!(headers["access-control-allow-origin"], "https://a.example");
        assert_eq!(headers["access-control-allow-credentials"], "true");
        assert!(headers["access-control-expose-headers"].to_str().expect("text").contains("x-fc-request-id"));
        let mut own = HeaderMap::new();
        own.insert("access-control-allow-origin", HeaderValue::from_static("*"));
        response(&context, &mut own);
        assert_eq!(own["access-control-allow-origin"], "*", "the function's own goes first");
    }

    #[test]
    fn an_events_answer_tells_time_and_memory() {
        let report = InvocationReport {
            duration: Duration::from_micros(1001),
            memory_peak_bytes: 9_646_899,
            ..InvocationReport::default()
        };
        let mut headers = HeaderMap::new();
        of_report(&report, &mut headers);
        assert_eq!(headers["x-fc-invocation-duration"], "2");
        assert_eq!(headers["x-fc-max-memory-usage"], "9.20");
        assert!(!headers.contains_key("x-fc-log-result"), "not asked for");
        of_report(&InvocationReport { log_tail: Some(b"FC Invoke"), ..report }, &mut headers);
        assert_eq!(headers["x-fc-log-result"], "RkMgSW52b2tl");
    }
}
