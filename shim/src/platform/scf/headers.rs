//! Headers between SCF, the container and the caller.
//!
//! Request: the documented context headers; the credentials only for a function that has a role.
//! Clients may not send `X-Scf-*`. Response: a layer-7 pass-through; only the request id is added.

use http::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, USER_AGENT};

use crate::platform::types::exposed;
use crate::platform::{InvocationContext, InvocationKind, Trigger, header_value, remove_prefixed};

/// What the names of the platform's own headers begin with.
pub(super) const PREFIX: &str = "x-scf-";

/// What SCF itself sends with an event, as a captured request shows it. (The capture's
/// `Accept-Encoding: gzip` is left out: it asks for an answer that only SCF's own client unpacks.)
pub(super) fn event(headers: &mut HeaderMap) {
    headers.insert(USER_AGENT, HeaderValue::from_static("Go-http-client/1.1"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
}

/// Prepares a request's headers for the container.
pub(super) fn request(context: &InvocationContext<'_>, headers: &mut HeaderMap) {
    remove_prefixed(headers, PREFIX);
    let config = context.config;
    let mut set = |name: &'static str, value: &str| {
        headers.insert(HeaderName::from_static(name), header_value(value));
    };
    set("x-scf-request-id", context.request_id);
    set("x-scf-memory", &config.memory_mib.to_string());
    set("x-scf-timeout", &config.timeout.as_millis().to_string());
    set("x-scf-version", &config.version);
    set("x-scf-name", &config.name);
    set("x-scf-namespace", &config.namespace);
    set("x-scf-region", &config.region);
    set("x-scf-appid", &config.app_id);
    set("x-scf-uin", &config.account_id);
    if let Some(Trigger::Timer) = context.trigger {
        set("x-scf-trigger-src", "Timer");
    }
    of_function_url(context, headers);
    credentials(context, headers);
    let client = match (context.kind, context.client) {
        (_, Some(client)) => client.ip().to_string(),
        (InvocationKind::Event, None) => "127.0.0.1".to_owned(),
        (InvocationKind::Http, None) => return,
    };
    for name in ["x-forwarded-for", "x-real-ip"] {
        headers.entry(name).or_insert_with(|| header_value(&client));
    }
}

/// What a function URL says of a request that it passes through: the client's address as documented, and
/// the name that it was sent to as users have seen.
fn of_function_url(context: &InvocationContext<'_>, headers: &mut HeaderMap) {
    if context.kind != InvocationKind::Http {
        return;
    }
    if let Some(client) = context.client {
        let value = header_value(&client.ip().to_string());
        headers.insert(HeaderName::from_static("x-scf-remote-addr"), value);
    }
    if let Some(host) = headers.get(HOST).cloned() {
        headers.insert(HeaderName::from_static("x-scf-request-domain"), host);
    }
}

/// Absent for a function without a role.
fn credentials(context: &InvocationContext<'_>, headers: &mut HeaderMap) {
    let Some(role) = context.credentials else { return };
    for (name, secret) in [
        ("x-scf-session-token", &role.security_token),
        ("x-scf-secret-id", &role.access_key_id),
        ("x-scf-secret-key", &role.access_key_secret),
    ] {
        let mut value = header_value(&exposed(secret));
        value.set_sensitive(true);
        headers.insert(HeaderName::from_static(name), value);
    }
}

/// Prepares a response's headers for the caller.
pub(super) fn response(context: &InvocationContext<'_>, headers: &mut HeaderMap) {
    id(context.request_id, headers);
}

/// The id that every answer has.
pub(super) fn id(request_id: &str, headers: &mut HeaderMap) {
    headers.insert(HeaderName::from_static("x-scf-request-id"), header_value(request_id));
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::FunctionConfig;
    use crate::platform::scf;
    use crate::platform::testing::{context, role};

    #[test]
    fn an_event_has_exactly_the_captured_headers() {
        let mut config = FunctionConfig::new("ceac-serverless", scf());
        config.memory_mib = 512;
        config.timeout = Duration::from_secs(300);
        let mut headers = HeaderMap::new();
        event(&mut headers);
        request(&context(&config, InvocationKind::Event), &mut headers);
        let mut found: Vec<(&str, &str)> =
            headers.iter().map(|(n, v)| (n.as_str(), v.to_str().expect("text"))).collect();
        found.sort_unstable();
        assert_eq!(
            found,
            [
                ("connection", "close"),
                ("content-type", "application/json"),
                ("user-agent", "Go-http-client/1.1"),
                ("x-forwarded-for", "127.0.0.1"),
                ("x-real-ip", "127.0.0.1"),
                ("x-scf-appid", "1250000000"),
                ("x-scf-memory", "512"),
                ("x-scf-name", "ceac-serverless"),
                ("x-scf-namespace", "default"),
                ("x-scf-region", "ap-guangzhou"),
                ("x-scf-request-id", "the-request"),
                ("x-scf-timeout", "300000"),
                ("x-scf-uin", "100000000001"),
                ("x-scf-version", "$LATEST"),
            ]
        );
    }

    #[test]
    fn a_timer_is_named_as_what_called() {
        let config = FunctionConfig::new("resize", scf());
        let mut context = context(&config, InvocationKind::Event);
        let mut headers = HeaderMap::new();
        headers.insert("x-scf-trigger-src", HeaderValue::from_static("forged"));
        request(&context, &mut headers);
        assert!(!headers.contains_key("x-scf-trigger-src"));
        context.trigger = Some(Trigger::Timer);
        request(&context, &mut headers);
        assert_eq!(headers["x-scf-trigger-src"], "Timer");
    }

    #[test]
    fn what_clients_say_about_the_platform_is_dropped() {
        let mut config = FunctionConfig::new("resize", scf());
        config.credentials = Some(role());
        let mut headers = HeaderMap::new();
        headers.append("x-scf-secret-key", HeaderValue::from_static("client's"));
        headers.append("x-scf-remote-addr", HeaderValue::from_static("1.2.3.4"));
        headers.append("x-own", HeaderValue::from_static("kept"));
        request(&context(&config, InvocationKind::Http), &mut headers);
        assert_eq!(headers.get_all("x-scf-secret-key").iter().collect::<Vec<_>>(), ["the-key"]);
        assert_eq!(headers["x-scf-secret-id"], "the-id");
        assert_eq!(headers["x-scf-session-token"], "the-token");
        assert!(!headers.contains_key("x-scf-remote-addr"));
        assert_eq!(headers["x-own"], "kept");
        assert!(!format!("{headers:?}").contains("the-key"));
    }

    #[test]
    fn the_client_of_a_request_over_tcp_is_named() {
        let config = FunctionConfig::new("resize", scf());
        let mut context = context(&config, InvocationKind::Http);
        context.client = Some(([192, 0, 2, 7], 4711).into());
        let mut headers = HeaderMap::new();
        headers.insert("host", HeaderValue::from_static("f.example"));
        headers.insert("x-scf-remote-addr", HeaderValue::from_static("1.2.3.4"));
        headers.insert("x-scf-request-domain", HeaderValue::from_static("forged"));
        headers.insert("x-real-ip", HeaderValue::from_static("203.0.113.9"));
        request(&context, &mut headers);
        for (name, value) in [
            ("x-scf-remote-addr", "192.0.2.7"),
            ("x-scf-request-domain", "f.example"),
            ("x-forwarded-for", "192.0.2.7"),
            // One that is there stays: a proxy in front has said it.
            ("x-real-ip", "203.0.113.9"),
        ] {
            assert_eq!(headers[name], value, "{name}");
        }
        context.kind = InvocationKind::Event;
        let mut event = HeaderMap::new();
        request(&context, &mut event);
        assert!(!event.contains_key("x-scf-remote-addr"), "{event:?}");
    }

    #[test]
    fn responses_pass_through() {
        let config = FunctionConfig::new("resize", scf());
        let mut headers = HeaderMap::new();
        headers.insert("server", HeaderValue::from_static("own"));
        response(&context(&config, InvocationKind::Http), &mut headers);
        assert_eq!(headers["server"], "own");
        assert_eq!(headers["x-scf-request-id"], "the-request");
    }
}
