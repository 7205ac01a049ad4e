//! OpenTelemetry traces of invocations (feature `otel`): a span of each, with its steps below it.
//!
//! ```text
//! caller's span ─ FUNCTION (server) ─┬ wait
//!                                    ├ rootfs, network, spawn, listen, initialize    at a cold start
//!                                    └ invoke (client) ─ the function's own spans
//! ```
//!
//! The function is told of the span `invoke` in `traceparent`, in events as in HTTP requests. Without an
//! [`TraceExport`] nothing is made up: what a caller sends in an HTTP request goes through as it is.

#[cfg(not(feature = "otel"))]
mod none;
#[cfg(feature = "otel")]
mod otel;

use http::HeaderMap;

#[cfg(not(feature = "otel"))]
pub(crate) use none::Span;
#[cfg(not(feature = "otel"))]
pub use none::TraceExport;
#[cfg(feature = "otel")]
pub(crate) use otel::Span;
#[cfg(feature = "otel")]
pub use otel::TraceExport;

/// The caller's place in a trace, as W3C Trace Context writes it
/// (<https://www.w3.org/TR/trace-context-1/>). Not looked at before somebody exports spans: what cannot
/// be read counts as none then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// The header `traceparent`.
    pub traceparent: String,
    /// The headers `tracestate`, joined by commas.
    pub tracestate: Option<String>,
}

/// Bytes of a parent at most, of which today's have 55, and of states, of which 512 are what everybody passes on:
/// a context waits with its call. More is as good as none.
const MAX_PARENT: usize = 256;
const MAX_STATE: usize = 4096;

const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";

impl TraceContext {
    /// That of a request. Two parents are none.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut parents = headers.get_all(TRACEPARENT).iter();
        let traceparent = parents.next()?.to_str().ok()?.to_owned();
        if parents.next().is_some() || traceparent.len() > MAX_PARENT {
            return None;
        }
        let states: Option<Vec<&str>> =
            headers.get_all(TRACESTATE).iter().map(|state| state.to_str().ok()).collect();
        let tracestate = states.filter(|states| !states.is_empty()).map(|states| states.join(","));
        let tracestate = tracestate.filter(|state| state.len() <= MAX_STATE);
        Some(Self { traceparent, tracestate })
    }

    /// Bytes that it keeps.
    pub(crate) fn size(&self) -> usize {
        self.traceparent.len() + self.tracestate.as_ref().map_or(0, String::len)
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_context_is_one_parent_and_all_states() {
        let mut headers = HeaderMap::new();
        assert_eq!(TraceContext::of(&headers), None);
        headers.append(TRACESTATE, HeaderValue::from_static("a=1"));
        assert_eq!(TraceContext::of(&headers), None, "a state of no parent");
        headers.append(TRACEPARENT, HeaderValue::from_static("00-1-2-01"));
        headers.append(TRACESTATE, HeaderValue::from_static("b=2,c=3"));
        let context = TraceContext::of(&headers).expect("a context");
        assert_eq!(
            (context.traceparent.as_str(), context.tracestate.as_deref()),
            ("00-1-2-01", Some("a=1,b=2,c=3"))
        );
        assert_eq!(context.size(), 9 + 11);
        let long = |length| HeaderValue::from_str(&"x".repeat(length)).expect("a value");
        headers.append(TRACESTATE, long(MAX_STATE));
        assert_eq!(TraceContext::of(&headers).expect("a context").tracestate, None, "too much state");
        headers.append(TRACEPARENT, HeaderValue::from_static("00-1-3-01"));
        assert_eq!(TraceContext::of(&headers), None, "two parents");
        headers.insert(TRACEPARENT, long(MAX_PARENT + 1));
        assert_eq!(TraceContext::of(&headers), None, "no parent is so long");
    }
}
