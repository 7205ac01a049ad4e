//! What invocations took, step by step: the last ones of a node are kept for who asks.
//!
//! ```text
//! arrival ── wait ──────────────────────────────── invoke ── answer
//!              └ rootfs ─ network ─ spawn ─ listen ─ initialize      at a cold start
//! ```

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use http::HeaderMap;
use serde::Serialize;

use super::Timeline;
use crate::FunctionConfig;
use crate::meter::unix_ms;
use crate::platform::{InvocationKind, Trigger};
use crate::telemetry::{Span, TraceContext, TraceExport};

/// Invocations that are kept: some 2 MiB.
const KEPT: usize = 4096;

/// A step of an invocation.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TraceStep {
    /// Its name.
    pub name: &'static str,
    /// From the call's arrival to its beginning, in ms; below 0 where it had begun for another call.
    pub start_ms: f64,
    /// How long it took, in ms.
    pub ms: f64,
}

/// What one invocation took.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Trace {
    /// The request's id.
    pub request_id: String,
    /// scf namespace or fc 2.0 service.
    pub namespace: String,
    /// The function's name.
    pub function: String,
    /// The revision that worked on it.
    pub revision: u64,
    /// The instance that did.
    pub instance: String,
    /// When it came, in milliseconds since 1970.
    pub arrived_unix_ms: u64,
    /// Whether it was the first of its instance.
    pub cold: bool,
    /// Status of the answer to an HTTP request, and of the platform's own answer to an event.
    pub status: Option<u16>,
    /// The platform's code, where the answer is an error of its own.
    pub error: Option<String>,
    /// Its steps by their beginning.
    pub steps: Vec<TraceStep>,
}

/// What an invocation has to tell when it has ended.
pub(crate) struct Traced<'a> {
    pub(crate) config: &'a FunctionConfig,
    pub(crate) request_id: &'a str,
    pub(crate) instance: &'a str,
    /// When an instance began to work on it, and how long it had waited then.
    pub(crate) begun: SystemTime,
    pub(crate) waited: Duration,
    pub(crate) duration: Duration,
    /// Of the first of an instance: when that instance's start began, and how it went.
    pub(crate) start: Option<(SystemTime, Timeline)>,
    pub(crate) status: Option<u16>,
    pub(crate) error: Option<&'static str>,
    /// Whether the function reported a failure.
    pub(crate) failed: bool,
    /// What called, as OpenTelemetry names it.
    pub(crate) trigger: &'static str,
    /// Where spans are exported.
    pub(crate) span: Option<&'a Span>,
}

/// What called, as OpenTelemetry's convention for functions names it.
pub(crate) fn trigger_name(kind: InvocationKind, trigger: Option<Trigger>) -> &'static str {
    match (kind, trigger) {
        (_, Some(Trigger::Timer)) => "timer",
        (InvocationKind::Http, None) => "http",
        (InvocationKind::Event, None) => "other",
    }
}

fn ms(time: Duration) -> f64 {
    // To the microsecond.
    (time.as_secs_f64() * 1e6).round() / 1e3
}

fn signed_ms(from: SystemTime, to: SystemTime) -> f64 {
    to.duration_since(from).map_or_else(|before| -ms(before.duration()), ms)
}

impl Traced<'_> {
    fn steps(&self, arrived: SystemTime) -> Vec<TraceStep> {
        let (waited, mut steps) = (ms(self.waited), Vec::new());
        if !self.waited.is_zero() {
            steps.push(TraceStep { name: "wait", start_ms: 0.0, ms: waited });
        }
        if let Some((since, timeline)) = &self.start {
            let mut at = signed_ms(arrived, *since);
            // An image is pulled at the deploy, before any call.
            for (name, time) in timeline.steps().into_iter().skip(3) {
                steps.push(TraceStep { name, start_ms: at, ms: ms(time) });
                at += ms(time);
            }
            let rest = waited - at;
            // Of an instance that was there before, nobody knows here when it had been initialized.
            if rest > 0.0 && at >= 0.0 {
                steps.push(TraceStep { name: "initialize", start_ms: at, ms: rest });
            }
        }
        steps.push(TraceStep { name: "invoke", start_ms: waited, ms: ms(self.duration) });
        steps
    }

    fn trace(&self, revision: u64, arrived: SystemTime) -> Trace {
        Trace {
            request_id: self.request_id.to_owned(),
            namespace: self.config.namespace.clone(),
            function: self.config.name.clone(),
            revision,
            instance: self.instance.to_owned(),
            arrived_unix_ms: unix_ms(arrived),
            cold: self.start.is_some(),
            status: self.status,
            error: self.error.map(str::to_owned),
            steps: self.steps(arrived),
        }
    }
}

/// When an invocation came.
fn arrival(begun: SystemTime, waited: Duration) -> SystemTime {
    begun.checked_sub(waited).unwrap_or(begun)
}

/// The last invocations of a node, and who is told of each. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Traces {
    kept: Arc<Mutex<VecDeque<Trace>>>,
    export: Option<TraceExport>,
}

impl Traces {
    pub(crate) fn exported(export: Option<TraceExport>) -> Self {
        Self { export, ..Self::default() }
    }

    /// The last of that id: one that was tried again has several.
    pub(crate) fn find(&self, request_id: &str) -> Option<Trace> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().rev().find(|trace| trace.request_id == request_id).cloned()
    }

    /// Where invocations of a revision are noted.
    pub(crate) fn of(&self, revision: u64) -> Tracer {
        Tracer { traces: self.clone(), revision }
    }
}

/// Notes the invocations of one revision.
#[derive(Clone, Debug)]
pub(crate) struct Tracer {
    traces: Traces,
    revision: u64,
}

impl Tracer {
    /// Its caller's place in a trace, where spans are exported.
    pub(crate) fn caller(&self, headers: &HeaderMap) -> Option<TraceContext> {
        self.traces.export.as_ref().and_then(|_| TraceContext::of(headers))
    }

    /// The span of an invocation that begins after so long a wait, where spans are exported.
    pub(crate) fn span(
        &self,
        caller: Option<&TraceContext>,
        (begun, waited): (SystemTime, Duration),
        config: &FunctionConfig,
    ) -> Option<Span> {
        self.traces.export.as_ref()?.begin(caller, [arrival(begun, waited), begun], config)
    }

    pub(crate) fn note(&self, traced: &Traced<'_>) {
        let arrived = arrival(traced.begun, traced.waited);
        let trace = traced.trace(self.revision, arrived);
        if let Some(span) = traced.span {
            span.end(&trace, arrived, traced.trigger, traced.failed);
        }
        let mut kept = self.traces.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT {
            kept.pop_front();
        }
        kept.push_back(trace);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::fc;

    const fn millis(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn traced<'a>(config: &'a FunctionConfig, id: &'a str, begun: SystemTime) -> Traced<'a> {
        Traced {
            config,
            request_id: id,
            instance: "c-1",
            begun,
            waited: Duration::ZERO,
            duration: millis(7),
            start: None,
            status: Some(200),
            error: None,
            failed: false,
            trigger: "http",
            span: None,
        }
    }

    #[test]
    fn a_cold_start_is_laid_out_from_the_arrival() {
        let (config, now) = (FunctionConfig::new("f", fc()), SystemTime::now());
        let timeline = Timeline {
            pull: millis(999),
            rootfs: millis(2),
            network: millis(1),
            spawn: millis(5),
            listen: millis(40),
            ..Timeline::default()
        };
        let start = Some((now - millis(59), timeline));
        let traces = Traces::default();
        traces.of(3).note(&Traced { waited: millis(60), start, ..traced(&config, "a", now) });
        let trace = traces.find("a").expect("kept");
        let told: Vec<(&str, f64, f64)> =
            trace.steps.iter().map(|step| (step.name, step.start_ms.round(), step.ms.round())).collect();
        let all = [
            ("wait", 0.0, 60.0),
            ("rootfs", 1.0, 2.0),
            ("network", 3.0, 1.0),
            ("spawn", 4.0, 5.0),
            ("listen", 9.0, 40.0),
            ("initialize", 49.0, 11.0),
            ("invoke", 60.0, 7.0),
        ];
        assert_eq!((told.as_slice(), trace.cold, trace.revision), (&all[..], true, 3));
        // A start that was another's begins before the call.
        let start = Some((now - millis(100), timeline));
        traces.of(3).note(&Traced { waited: millis(60), start, ..traced(&config, "b", now) });
        let steps = traces.find("b").expect("kept").steps;
        assert_eq!((steps[1].name, steps[1].start_ms.round()), ("rootfs", -40.0));
    }

    #[test]
    fn the_last_ones_are_kept() {
        let (config, now) = (FunctionConfig::new("f", fc()), SystemTime::now());
        let traces = Traces::default();
        for number in 0..=KEPT {
            traces.of(1).note(&traced(&config, &number.to_string(), now));
        }
        assert_eq!(traces.find("0"), None);
        assert!(traces.find("1").is_some_and(|trace| trace.steps.len() == 1 && !trace.cold));
        traces.of(2).note(&traced(&config, "7", now));
        assert_eq!(traces.find("7").map(|trace| trace.revision), Some(2), "the last of that id");
    }
}
