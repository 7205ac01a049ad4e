//! Spans through the SDK of OpenTelemetry, and the exporter for collectors.

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{SpanKind, Status, TraceContextExt as _, Tracer as _, TracerProvider as _};
use opentelemetry::{Context, InstrumentationScope, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};

use super::{TRACEPARENT, TRACESTATE, TraceContext};
use crate::instance::Trace;
use crate::{Error, ErrorKind, FunctionConfig, Result, RuntimeErrorKind};

/// Where a collector takes spans, below its base address (OTLP specification, "OTLP/HTTP Request").
const PATH: &str = "/v1/traces";

/// How long the last spans may take to get out: a restart waits for it.
const PATIENCE: Duration = Duration::from_secs(2);

/// What exports spans. Clones are the same.
#[derive(Clone)]
pub struct TraceExport {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    propagator: TraceContextPropagator,
}

impl TraceExport {
    /// Gives spans to a provider of the caller's, who shuts it down.
    #[must_use]
    pub fn new(provider: SdkTracerProvider) -> Self {
        let scope = InstrumentationScope::builder("skiff").with_version(env!("CARGO_PKG_VERSION")).build();
        let tracer = provider.tracer_with_scope(scope);
        Self { provider, tracer, propagator: TraceContextPropagator::new() }
    }

    /// Exports to a collector by OTLP over HTTP, in batches and from a thread of its own. `endpoint` is its
    /// base address, such as `http://localhost:4318`; without one `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` or
    /// `OTEL_EXPORTER_OTLP_ENDPOINT` tells. OpenTelemetry's other variables hold too: headers, time-outs,
    /// sampler, service name (`skiff` without one), resource attributes, sizes of batches.
    ///
    /// # Errors
    /// `InvalidArgument` for an address that is none of HTTP.
    pub fn otlp(endpoint: Option<&str>) -> Result<Self> {
        let variable = |name| std::env::var(name).ok().filter(|value: &String| !value.is_empty());
        let told = match (endpoint, variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")) {
            (Some(endpoint), _) => Some(address(endpoint, PATH)?),
            // As it is, by OpenTelemetry's specification.
            (None, Some(endpoint)) => Some(address(&endpoint, "")?),
            (None, None) => {
                variable("OTEL_EXPORTER_OTLP_ENDPOINT").map(|base| address(&base, PATH)).transpose()?
            }
        };
        let mut builder = SpanExporter::builder().with_http();
        if let Some(address) = told {
            builder = builder.with_endpoint(address);
        }
        // Its client takes the process's, which fails where there is one already: that one will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        // Its own words could show headers.
        let exporter = builder.build().map_err(|_| {
            invalid("the exporter of traces cannot be set up".to_owned()).advise(
                "look at the variables OTEL_EXPORTER_OTLP_…: headers, protocol (http/protobuf), time-out",
            )
        })?;
        let named = std::env::var_os("OTEL_SERVICE_NAME").is_some()
            || std::env::var("OTEL_RESOURCE_ATTRIBUTES").is_ok_and(|all| all.contains("service.name="));
        let resource = Resource::builder();
        let resource = if named { resource } else { resource.with_service_name("skiff") };
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource.build())
            .build();
        Ok(Self::new(provider))
    }

    /// Exports what has not been exported. Blocks for up to two seconds.
    ///
    /// # Errors
    /// A text that says why spans may be lost.
    pub fn shutdown(&self) -> std::result::Result<(), String> {
        self.provider.shutdown_with_timeout(PATIENCE).map_err(|error| error.to_string())
    }

    /// Begins the span of an invocation that came at the first time, and that an instance works on since the
    /// second.
    pub(crate) fn begin(
        &self,
        caller: Option<&TraceContext>,
        [arrived, begun]: [SystemTime; 2],
        config: &FunctionConfig,
    ) -> Option<Span> {
        let caller = caller.map_or_else(Context::new, |caller| {
            let mut fields = HashMap::from([(TRACEPARENT.to_owned(), caller.traceparent.clone())]);
            fields.extend(caller.tracestate.clone().map(|state| (TRACESTATE.to_owned(), state)));
            self.propagator.extract_with_context(&Context::new(), &fields)
        });
        let root = self.start(config.name.clone(), SpanKind::Server, arrived, &caller);
        let invoke = self.start("invoke".to_owned(), SpanKind::Client, begun, &root);
        Some(Span { export: self.clone(), root, invoke })
    }

    fn start(&self, name: String, kind: SpanKind, since: SystemTime, parent: &Context) -> Context {
        let builder = self.tracer.span_builder(name).with_kind(kind).with_start_time(since);
        parent.with_span(builder.start_with_context(&self.tracer, parent))
    }
}

impl fmt::Debug for TraceExport {
    /// Of headers of the exporter, which may be credentials, nothing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TraceExport").finish_non_exhaustive()
    }
}

fn invalid(why: String) -> Error {
    Error::new(ErrorKind::Runtime(RuntimeErrorKind::InvalidArgument), why)
}

/// Where to post spans.
fn address(endpoint: &str, path: &str) -> Result<String> {
    let uri = endpoint.parse::<Uri>().ok();
    let usable = uri.is_some_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some_and(|host| !host.is_empty())
    });
    if endpoint.contains('@') {
        return Err(invalid("the collector's address has a user, who would not be told to it".to_owned())
            .advise("give the collector's credentials in OTEL_EXPORTER_OTLP_HEADERS"));
    }
    if !usable {
        let why = format!("the collector's address {endpoint:?} is none of HTTP");
        return Err(invalid(why).advise("give one such as http://localhost:4318"));
    }
    Ok(if path.is_empty() {
        endpoint.to_owned()
    } else {
        format!("{}{path}", endpoint.trim_end_matches('/'))
    })
}

/// The span of one invocation, and that of what its function does.
pub(crate) struct Span {
    export: TraceExport,
    root: Context,
    invoke: Context,
}

impl Span {
    /// Tells the function whose child its spans are.
    pub(crate) fn inject(&self, headers: &mut HeaderMap) {
        let mut fields: HashMap<String, String> = HashMap::new();
        self.export.propagator.inject_context(&self.invoke, &mut fields);
        for name in [TRACEPARENT, TRACESTATE] {
            let value = fields.remove(name).filter(|value| !value.is_empty());
            match value.and_then(|value| HeaderValue::try_from(value).ok()) {
                Some(value) => drop(headers.insert(HeaderName::from_static(name), value)),
                None => drop(headers.remove(name)),
            }
        }
    }

    /// Ends it, as its trace tells. `trigger` is one of the convention's for functions, and `failed` whether the
    /// function reported a failure of its own.
    pub(crate) fn end(&self, trace: &Trace, arrived: SystemTime, trigger: &'static str, failed: bool) {
        let (mut last, mut cold) = (arrived, false);
        for step in &trace.steps {
            let (since, until) = (after(arrived, step.start_ms), after(arrived, step.start_ms + step.ms));
            if until <= arrived {
                // Of the start of an instance that was there before the call.
                continue;
            }
            last = last.max(until);
            cold |= !["wait", "invoke"].contains(&step.name);
            if step.name == "invoke" {
                self.invoke.span().end_with_timestamp(until);
                continue;
            }
            let span = self.export.start(step.name.to_owned(), SpanKind::Internal, since, &self.root);
            span.span().end_with_timestamp(until);
        }
        let root = self.root.span();
        root.set_attributes(attributes(trace, cold, trigger));
        let error = match (&trace.error, failed) {
            (Some(code), _) => Some(code.clone()),
            (None, true) => Some("function_error".to_owned()),
            (None, false) => trace.status.filter(|status| *status >= 500).map(|status| status.to_string()),
        };
        if let Some(error) = error {
            root.set_attribute(KeyValue::new("error.type", error.clone()));
            root.set_status(Status::error(error));
        }
        root.end_with_timestamp(last);
    }
}

/// By the semantic conventions for functions and for HTTP; what has no name there has Skiff's.
fn attributes(trace: &Trace, cold: bool, trigger: &'static str) -> Vec<KeyValue> {
    let mut all = vec![
        KeyValue::new("faas.name", trace.function.clone()),
        KeyValue::new("faas.invocation_id", trace.request_id.clone()),
        KeyValue::new("faas.instance", trace.instance.clone()),
        KeyValue::new("faas.version", trace.revision.to_string()),
        KeyValue::new("faas.coldstart", cold),
        KeyValue::new("faas.trigger", trigger),
    ];
    if !trace.namespace.is_empty() {
        all.push(KeyValue::new("skiff.namespace", trace.namespace.clone()));
    }
    all.extend(trace.status.map(|status| KeyValue::new("http.response.status_code", i64::from(status))));
    all
}

fn after(time: SystemTime, ms: f64) -> SystemTime {
    let span = Duration::try_from_secs_f64(ms.abs() / 1e3).unwrap_or_default();
    let moved = if ms < 0.0 { time.checked_sub(span) } else { time.checked_add(span) };
    moved.unwrap_or(time)
}
