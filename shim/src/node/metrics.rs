//! What a node counts, for Prometheus.
//!
//! Each function counts its own, so that its series go with it: there are never more than the functions that
//! are deployed have, and no label has values that callers choose. What changes by itself (slots, memory) is
//! read when somebody asks.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use http::{Response, StatusCode};
use http_body_util::BodyExt as _;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use skiff_runtime::image::PullTimings;

use super::Node;
use super::info::{FunctionInfo, InstanceInfo};
use crate::pool::observe::Watch;
use crate::pool::room::Room;
use crate::proxy::body::{Body, Keeping};
use crate::{Error, Timeline};

/// What the first digit of a status is called; without a digit for a call whose caller went before its answer.
const CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// Steps of a start, in their order.
const PHASES: [&str; 7] = ["resolve", "pull", "unpack", "rootfs", "network", "spawn", "listen"];

/// From 1 ms to about 16 s for what starts, waits and answers.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

/// What has happened to a function since the node has it.
pub(super) struct Counted {
    calls: [Counter; CLASSES.len()],
    call_seconds: Histogram,
    wait_seconds: Histogram,
    throttled: Counter,
    cold_starts: Counter,
    phases: [Histogram; PHASES.len()],
    /// By kinds of errors, which are a few.
    failed: Mutex<BTreeMap<&'static str, u64>>,
}

impl Default for Counted {
    fn default() -> Self {
        Self {
            calls: std::array::from_fn(|_| Counter::default()),
            call_seconds: seconds(),
            wait_seconds: seconds(),
            throttled: Counter::default(),
            cold_starts: Counter::default(),
            phases: std::array::from_fn(|_| seconds()),
            failed: Mutex::default(),
        }
    }
}

impl Counted {
    /// Calls that have ended.
    pub(super) fn calls(&self) -> u64 {
        self.calls.iter().map(Counter::get).sum()
    }

    /// The image of a revision is there. Instances that are started later do not wait for it again.
    pub(super) fn pulled(&self, timings: &PullTimings) {
        for (phase, time) in self.phases.iter().zip([timings.resolve, timings.pull, timings.unpack]) {
            phase.observe(time.as_secs_f64());
        }
    }
}

impl Watch for Counted {
    fn waited(&self, time: Duration) {
        self.wait_seconds.observe(time.as_secs_f64());
    }

    fn throttled(&self) {
        self.throttled.inc();
    }

    fn started(&self, timeline: &Timeline) {
        self.cold_starts.inc();
        // The first three are the pull's, which has been counted.
        for (phase, (_, time)) in self.phases.iter().zip(timeline.steps()).skip(3) {
            phase.observe(time.as_secs_f64());
        }
    }

    fn failed(&self, error: &Error) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        *failed.entry(error.kind().as_str()).or_default() += 1;
    }
}

/// A call that runs; counted when it is dropped.
pub(super) struct Running {
    counted: Arc<Counted>,
    begun: Instant,
    status: Option<StatusCode>,
}

impl Running {
    pub(super) fn begin(counted: &Arc<Counted>) -> Self {
        Self { counted: Arc::clone(counted), begun: Instant::now(), status: None }
    }

    pub(super) fn answered(&mut self, status: StatusCode) {
        self.status = Some(status);
    }

    /// Counts it when the last byte of its answer has gone, or nobody takes it any more.
    pub(super) fn until_the_end_of(mut self, response: Response<Body>) -> Response<Body> {
        self.answered(response.status());
        response.map(|body| Keeping::new(body, self).boxed_unsync())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let class = self.status.map_or(0, |status| usize::from(status.as_u16() / 100));
        if let Some(calls) = self.counted.calls.get(class) {
            calls.inc();
        }
        self.counted.call_seconds.observe(self.begun.elapsed().as_secs_f64());
    }
}

/// What a node counts that is no function's.
pub(super) struct NodeCounted {
    started: SystemTime,
    deploys: [Counter; 2],
    pulls: [Counter; 2],
    pull_seconds: Histogram,
}

impl Default for NodeCounted {
    fn default() -> Self {
        Self {
            started: SystemTime::now(),
            deploys: Default::default(),
            pulls: Default::default(),
            // Images take longer than calls: to about four minutes.
            pull_seconds: Histogram::new(exponential_buckets(0.016, 2.0, 15)),
        }
    }
}

/// The order of counters of what succeeds and fails.
const RESULTS: [&str; 2] = ["succeeded", "failed"];

impl NodeCounted {
    pub(super) fn deployed(&self, succeeded: bool) {
        self.deploys[usize::from(!succeeded)].inc();
    }

    pub(super) fn pulled(&self, succeeded: bool, time: Duration) {
        self.pulls[usize::from(!succeeded)].inc();
        self.pull_seconds.observe(time.as_secs_f64());
    }
}

/// The metrics of a node, for a registry of the caller's.
pub(super) struct NodeCollector(pub(super) Weak<Node>);

impl fmt::Debug for NodeCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeCollector")
    }
}

/// A function at one moment.
pub(super) struct Seen {
    pub(super) info: FunctionInfo,
    pub(super) instances: Vec<InstanceInfo>,
    pub(super) counted: Arc<Counted>,
    pub(super) lost_lines: u64,
}

type Encoded = Result<(), fmt::Error>;

impl Collector for NodeCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Encoded {
        // One that is gone has nothing to tell.
        let Some(node) = self.0.upgrade() else { return Ok(()) };
        let seen = node.seen();
        of_node(&mut encoder, node.counted(), &seen)?;
        of_room(&mut encoder, node.room())?;
        of_calls(&mut encoder, &seen)?;
        of_starts(&mut encoder, &seen)?;
        of_instances(&mut encoder, &seen)
    }
}

/// All metrics of a node, as the OpenMetrics text that Prometheus reads.
pub(super) fn text(node: &Arc<Node>) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(NodeCollector(Arc::downgrade(node))));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

fn of_node(encoder: &mut DescriptorEncoder<'_>, counted: &NodeCounted, seen: &[Seen]) -> Encoded {
    let mut build = encoder.encode_descriptor("skiff_build", "The node's version", None, MetricType::Info)?;
    build.encode_info(&[("version", env!("CARGO_PKG_VERSION"))])?;
    let since = counted.started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let help = "When the node was opened, in seconds since 1970";
    let mut start = encoder.encode_descriptor("skiff_node_start_time", help, SECONDS, MetricType::Gauge)?;
    start.encode_gauge(&since)?;
    let help = "Functions by state";
    let mut functions = encoder.encode_descriptor("skiff_functions", help, None, MetricType::Gauge)?;
    for state in ["Pending", "Preparing", "Active", "Failed"] {
        let count = seen.iter().filter(|seen| format!("{:?}", seen.info.state) == state).count();
        functions.encode_family(&[("state", state)])?.encode_gauge(&whole(count))?;
    }
    let results = |metric: &mut MetricEncoder<'_>, counters: &[Counter; 2]| {
        for (result, counter) in RESULTS.iter().zip(counters) {
            counter.encode(metric.encode_family(&[("result", *result)])?)?;
        }
        Ok(())
    };
    let mut deploys = encoder.encode_descriptor("skiff_deploys", "Deploys", None, MetricType::Counter)?;
    results(&mut deploys, &counted.deploys)?;
    let help = "Pulls of images, of those too that were in the store already";
    let mut pulls = encoder.encode_descriptor("skiff_image_pulls", help, None, MetricType::Counter)?;
    results(&mut pulls, &counted.pulls)?;
    let help = "Time that pulls took";
    let pulls = encoder.encode_descriptor("skiff_image_pull", help, SECONDS, MetricType::Histogram)?;
    counted.pull_seconds.encode(pulls)
}

fn of_room(encoder: &mut DescriptorEncoder<'_>, room: &Room) -> Encoded {
    let (used, limits) = (room.used(), room.limits());
    let mut gauge = |name: &str, help: &str, unit: Option<&Unit>, value: i64| {
        encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?.encode_gauge(&value)
    };
    let bytes = |mib: u64| i64::try_from(mib.saturating_mul(1024 * 1024)).unwrap_or(i64::MAX);
    let help = "Instances of all functions, those that start or stop among them";
    gauge("skiff_node_instances", help, None, whole(used.instances))?;
    let help = "What the memory sizes of all instances come to";
    gauge("skiff_node_memory", help, BYTES, bytes(used.memory_mib))?;
    if let Some(most) = limits.max_instances {
        gauge("skiff_node_instances_limit", "What --max-instances says", None, whole(most))?;
    }
    if let Some(most) = limits.memory_mib {
        gauge("skiff_node_memory_limit", "What --max-memory says", BYTES, bytes(most))?;
    }
    let help = "Idle instances that were stopped for others";
    let gave_way = encoder.encode_descriptor("skiff_instances_gave_way", help, None, MetricType::Counter)?;
    ConstCounter::new(room.gave_way()).encode(gave_way)
}

const SECONDS: Option<&Unit> = Some(&Unit::Seconds);
const BYTES: Option<&Unit> = Some(&Unit::Bytes);

fn whole(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

impl Seen {
    fn labels(&self) -> [(&str, &str); 2] {
        [("namespace", &self.info.namespace), ("function", &self.info.name)]
    }

    fn and<'a>(&'a self, name: &'a str, value: &'a str) -> [(&'a str, &'a str); 3] {
        let [namespace, function] = self.labels();
        [namespace, function, (name, value)]
    }
}

/// One metric with a value for each function.
fn each<M: EncodeMetric>(
    encoder: &mut DescriptorEncoder<'_>,
    seen: &[Seen],
    (name, help, unit, kind): (&str, &str, Option<&Unit>, MetricType),
    value: impl Fn(&Seen) -> &M,
) -> Encoded {
    let mut metric = encoder.encode_descriptor(name, help, unit, kind)?;
    for seen in seen {
        value(seen).encode(metric.encode_family(&seen.labels())?)?;
    }
    Ok(())
}

fn of_calls(encoder: &mut DescriptorEncoder<'_>, seen: &[Seen]) -> Encoded {
    let help = "Calls that have ended, by the class of the status that the caller got";
    let mut calls = encoder.encode_descriptor("skiff_invocations", help, None, MetricType::Counter)?;
    for seen in seen {
        for (class, counter) in CLASSES.iter().zip(&seen.counted.calls) {
            counter.encode(calls.encode_family(&seen.and("status", class))?)?;
        }
    }
    let help = "Time from a call's arrival to the last byte of its answer, waits and starts included";
    let about = ("skiff_invocation", help, SECONDS, MetricType::Histogram);
    each(encoder, seen, about, |seen| &seen.counted.call_seconds)?;
    let help = "Time that calls waited which found no free slot";
    let about = ("skiff_queue_wait", help, SECONDS, MetricType::Histogram);
    each(encoder, seen, about, |seen| &seen.counted.wait_seconds)?;
    let help = "Calls that were refused because all instances were busy";
    let about = ("skiff_throttled", help, None, MetricType::Counter);
    each(encoder, seen, about, |seen| &seen.counted.throttled)
}

fn of_starts(encoder: &mut DescriptorEncoder<'_>, seen: &[Seen]) -> Encoded {
    let about = ("skiff_cold_starts", "Instances that were started", None, MetricType::Counter);
    each(encoder, seen, about, |seen| &seen.counted.cold_starts)?;
    let help = "Time of each step of a start; resolve, pull and unpack come once for each revision";
    let name = "skiff_cold_start_phase";
    let mut phases = encoder.encode_descriptor(name, help, SECONDS, MetricType::Histogram)?;
    for seen in seen {
        for (phase, histogram) in PHASES.iter().zip(&seen.counted.phases) {
            histogram.encode(phases.encode_family(&seen.and("phase", phase))?)?;
        }
    }
    let help = "Instances that did not come up, by the kind of the error";
    let mut failed = encoder.encode_descriptor("skiff_failed_starts", help, None, MetricType::Counter)?;
    for seen in seen {
        let reasons = seen.counted.failed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (reason, count) in reasons {
            ConstCounter::new(count).encode(failed.encode_family(&seen.and("reason", reason))?)?;
        }
    }
    Ok(())
}

fn of_instances(encoder: &mut DescriptorEncoder<'_>, seen: &[Seen]) -> Encoded {
    let help = "Instances (warm, starting, leaving), slots (running, free) and callers (waiting)";
    let mut slots = encoder.encode_descriptor("skiff_slots", help, None, MetricType::Gauge)?;
    for seen in seen {
        let now = seen.info.instances;
        for (state, count) in [
            ("warm", now.warm),
            ("starting", now.starting),
            ("leaving", now.leaving),
            ("running", now.running),
            ("free", now.free),
            ("waiting", now.waiting),
        ] {
            slots.encode_family(&seen.and("state", state))?.encode_gauge(&whole(count))?;
        }
    }
    let help = "Instances that are frozen, for they have nothing to do";
    let mut frozen = encoder.encode_descriptor("skiff_frozen_instances", help, None, MetricType::Gauge)?;
    for seen in seen {
        let count = seen.instances.iter().filter(|instance| instance.frozen).count();
        frozen.encode_family(&seen.labels())?.encode_gauge(&whole(count))?;
    }
    let help = "Memory that the instances use";
    let mut memory = encoder.encode_descriptor("skiff_instance_memory", help, BYTES, MetricType::Gauge)?;
    for seen in seen {
        let bytes: u64 = seen.instances.iter().map(|instance| instance.memory_bytes).sum();
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        memory.encode_family(&seen.labels())?.encode_gauge(&bytes)?;
    }
    let help = "Log lines that could not be written";
    let mut lost = encoder.encode_descriptor("skiff_log_lines_lost", help, None, MetricType::Counter)?;
    for seen in seen {
        ConstCounter::new(seen.lost_lines).encode(lost.encode_family(&seen.labels())?)?;
    }
    Ok(())
}
