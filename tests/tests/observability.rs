//! What a node tells of itself: metrics, instances, what they use, events; and trace context on the way to functions.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use skiff_tests::{Node, Sandbox, wait_for};

const SOON: Duration = Duration::from_secs(60);

/// The samples of an OpenMetrics text by name and labels.
struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    /// Reads them; every sample must belong to a metric that is described.
    #[track_caller]
    fn of(node: &Node<'_>) -> Self {
        let answer = node.ask("GET", "/metrics", "").ok();
        let kind = answer.header("content-type").expect("a type");
        assert!(kind.starts_with("application/openmetrics-text; version=1.0.0"), "{kind}");
        let text = answer.text();
        let lines = text.strip_suffix("# EOF\n").expect("an end").lines();
        let (mut described, mut samples) = (BTreeSet::new(), BTreeMap::new());
        for line in lines {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                described.insert(rest.split(' ').next().expect("a name").to_owned());
            }
            if line.starts_with('#') {
                continue;
            }
            let (series, value) = line.rsplit_once(' ').expect("a value");
            let name = series.split('{').next().expect("a name");
            let ends = ["_total", "_bucket", "_sum", "_count", "_info"];
            let family = ends.iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
            assert!(described.contains(family) || described.contains(name), "{name} is not described");
            let before = samples.insert(series.to_owned(), value.parse().expect("a number"));
            assert_eq!(before, None, "{series} comes twice");
        }
        Self(samples)
    }

    /// A series of the function `demo`, whose other labels come last.
    #[track_caller]
    fn demo(&self, name: &str, more: &str) -> f64 {
        self.get(&format!("{name}{{namespace=\"default\",function=\"demo\"{more}}}"))
    }

    #[track_caller]
    fn get(&self, series: &str) -> f64 {
        *self.0.get(series).unwrap_or_else(|| panic!("{series} is not in: {:#?}", self.0.keys()))
    }
}

/// The metrics in the expressions of a dashboard.
fn asked_for(dashboard: &Value) -> BTreeSet<String> {
    let panels = dashboard["panels"].as_array().expect("panels").iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let expressions = targets.map(|target| target["expr"].as_str().expect("an expression"));
    let words = expressions.flat_map(|text| text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'));
    words.filter(|word| word.starts_with("skiff_")).map(str::to_owned).collect()
}

#[test]
fn metrics_tell_what_was_done() {
    let sandbox = Sandbox::new();
    let node = Node::start(&sandbox, &[]);
    let metrics = Metrics::of(&node);
    assert_eq!(metrics.get("skiff_functions{state=\"Active\"}"), 0.0);
    assert_eq!(metrics.get(&format!("skiff_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"))), 1.0);
    let _ = node.deploy("demo", "function", "", &["--max-instances", "1"]).ok();
    for (status, times) in [(200, 3), (404, 2), (503, 1)] {
        for _ in 0..times {
            assert_eq!(node.pass("demo", "GET", &format!("/status/{status}"), "").status, status);
        }
    }
    let _ = node.invoke("demo", &json!({ "k": 1 })).ok();
    let _ = node.invoke("other", &json!({ "k": 1 }));
    // A revision that does not come up.
    let _ = node.deploy("demo", "exits", "", &[]).expect_code(3);
    let seen = Metrics::of(&node);
    let calls = |metrics: &Metrics, class: &str| {
        metrics.demo("skiff_invocations_total", &format!(",status=\"{class}\""))
    };
    assert_eq!(["2xx", "4xx", "5xx", "none"].map(|class| calls(&seen, class)), [4.0, 2.0, 1.0, 0.0]);
    assert_eq!(seen.demo("skiff_invocation_seconds_count", ""), 7.0);
    assert_eq!(
        (seen.demo("skiff_cold_starts_total", ""), seen.demo("skiff_queue_wait_seconds_count", "")),
        (1.0, 0.0)
    );
    for (phase, count) in [
        ("resolve", 2.0),
        ("pull", 2.0),
        ("unpack", 2.0),
        ("rootfs", 1.0),
        ("network", 1.0),
        ("spawn", 1.0),
        ("listen", 1.0),
    ] {
        let phase = format!(",phase=\"{phase}\"");
        assert_eq!(seen.demo("skiff_cold_start_phase_seconds_count", &phase), count, "{phase}");
    }
    assert!(seen.demo("skiff_cold_start_phase_seconds_sum", ",phase=\"spawn\"") > 0.0);
    assert_eq!(seen.demo("skiff_failed_starts_total", ",reason=\"start_failed\""), 1.0);
    let results = |name: &str| {
        ["succeeded", "failed"].map(|result| seen.get(&format!("{name}{{result=\"{result}\"}}")))
    };
    assert_eq!(
        (results("skiff_deploys_total"), results("skiff_image_pulls_total")),
        ([1.0, 1.0], [2.0, 0.0])
    );
    assert_eq!(
        (seen.get("skiff_image_pull_seconds_count"), seen.get("skiff_functions{state=\"Active\"}")),
        (2.0, 1.0)
    );
    assert_eq!(
        (seen.demo("skiff_throttled_total", ""), seen.demo("skiff_log_lines_lost_total", "")),
        (0.0, 0.0)
    );
    assert!(seen.demo("skiff_instance_memory_bytes", "") > 100_000.0);
    let slots = |metrics: &Metrics| {
        ["warm", "running", "free", "waiting"]
            .map(|state| metrics.demo("skiff_slots", &format!(",state=\"{state}\"")))
    };
    assert_eq!(slots(&seen), [1.0, 0.0, 1.0, 0.0]);
    // Three calls for one slot: two wait.
    thread::scope(|scope| {
        let calls: Vec<_> =
            (0..3).map(|_| scope.spawn(|| node.pass("demo", "GET", "/sleep/1500", ""))).collect();
        let busy = wait_for(SOON, || (slots(&Metrics::of(&node)) == [1.0, 1.0, 0.0, 2.0]).then_some(()));
        assert!(busy.is_some(), "{:?}", slots(&Metrics::of(&node)));
        calls.into_iter().for_each(|call| assert_eq!(call.join().expect("answered").status, 200));
    });
    let after = Metrics::of(&node);
    assert_eq!((after.demo("skiff_queue_wait_seconds_count", ""), calls(&after, "2xx")), (2.0, 7.0));
    assert!(after.demo("skiff_queue_wait_seconds_sum", "") >= 4.0);
    // The dashboard asks for nothing that there is not.
    let dashboard = include_str!("../../docs/grafana/skiff-node.json");
    let dashboard: Value = serde_json::from_str(dashboard).expect("JSON");
    let asked = asked_for(&dashboard);
    assert!(asked.len() > 15, "{asked:?}");
    for name in asked {
        let known = after.0.keys().any(|series| series.split('{').next() == Some(name.as_str()));
        assert!(known, "{name} of the dashboard is no metric");
    }
    // What is no function has no series, and what was one has none any more.
    assert!(!after.0.keys().any(|series| series.contains("other")));
    let _ = sandbox.run(&["delete", "demo"]).ok();
    let gone = Metrics::of(&node);
    assert!(!gone.0.keys().any(|series| series.contains("demo")), "{:#?}", gone.0.keys());
    assert_eq!(node.ask("POST", "/metrics", "").status, 405);
    node.stop();
}

#[test]
fn instances_are_listed_with_what_they_do_and_use() {
    let sandbox = Sandbox::new();
    let node = Node::start(&sandbox, &[]);
    let _ = node.deploy("demo", "function", "", &[]).ok();
    let answer = node.pass("demo", "GET", "/status/200", "");
    let id = answer.header("x-fc-instance-id").expect("an id");
    let frozen = wait_for(SOON, || {
        let listed = sandbox.run(&["ps", "--output", "json"]).ok().json();
        (listed["frozen"] == true).then_some(listed)
    });
    let listed = frozen.expect("it has nothing to do");
    assert_eq!(
        ["id", "function", "namespace", "revision", "state", "running"].map(|key| listed[key].clone()),
        [json!(id), json!("demo"), json!("default"), json!(1), json!("ready"), json!(0)]
    );
    assert!(
        listed["memory_bytes"].as_u64() > Some(100_000)
            && listed["since_unix_ms"].as_u64() > Some(1_600_000_000_000)
    );
    thread::scope(|scope| {
        let long = scope.spawn(|| node.pass("demo", "GET", "/sleep/3000", ""));
        let busy = wait_for(SOON, || {
            let listed = node.ask("GET", "/v1/instances", "").ok().json()["instances"][0].clone();
            (listed["running"] == 1 && listed["frozen"] == false).then_some(listed)
        });
        assert_eq!(busy.expect("it works")["id"], json!(id));
        // The former revision's instance works on its last call.
        let _ = node.deploy("demo", "function", "", &[]).ok();
        let text = sandbox.run(&["ps"]).ok().stdout();
        let former = text.lines().find(|line| line.contains(id)).expect("listed");
        assert!(former.contains(" leaving ") && text.lines().count() == 3, "{text}");
        assert_eq!(long.join().expect("answered").status, 200);
    });
    let gone = wait_for(SOON, || (!sandbox.run(&["ps"]).ok().stdout().contains(id)).then_some(()));
    assert!(gone.is_some(), "{}", sandbox.run(&["ps"]).stdout());
    let _ = sandbox.run(&["delete", "demo"]).ok();
    assert_eq!(sandbox.run(&["ps"]).ok().stdout().lines().count(), 1);
    node.stop();
    let _ = sandbox.run(&["ps"]).fails(2, &["no node listens"]);
}

#[test]
fn top_writes_one_table_where_nobody_looks() {
    let sandbox = Sandbox::new();
    let node = Node::start(&sandbox, &[]);
    let _ = node.deploy("demo", "function", "", &[]).ok();
    let _ = node.deploy("more", "function", "", &[]).ok();
    let calls = |seconds| {
        let until = std::time::Instant::now() + Duration::from_secs(seconds);
        while std::time::Instant::now() < until {
            let _ = node.pass("demo", "GET", "/status/200", "");
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| calls(4));
        let text = sandbox.run(&["top"]).ok().stdout();
        let first = text.lines().nth(1).expect("a function");
        assert!(text.starts_with("FUNCTION ") && first.starts_with("demo "), "{text}");
        assert!(text.lines().count() == 3 && !text.contains('\x1b'), "{text}");
    });
    thread::scope(|scope| {
        scope.spawn(|| calls(4));
        let told = sandbox.run(&["top", "--output", "json"]).ok().stdout();
        let first: Value = serde_json::from_str(told.lines().next().expect("a line")).expect("JSON");
        assert!(
            first["calls_per_second"].as_f64() > Some(0.0) && first["cpu_percent"].as_f64() > Some(0.0),
            "{first}"
        );
        assert_eq!((&first["name"], &first["instances"]), (&json!("demo"), &json!(1)));
    });
    node.stop();
}

#[test]
fn events_are_followed_until_the_node_ends() {
    let sandbox = Sandbox::new();
    let node = Node::start(&sandbox, &[]);
    let path = sandbox.path().join("events");
    let mut command = sandbox.skiff(&["events"]);
    let mut follower = command.stdout(File::create(&path).expect("a file")).spawn().expect("skiff");
    let told = || std::fs::read_to_string(&path).unwrap_or_default();
    // It listens when it has been told of something.
    let _ = wait_for(SOON, || {
        let _ = node.deploy("first", "exits", "", &[]).expect_code(3);
        told().contains("deploy_failed").then_some(())
    });
    let _ = node.deploy("demo", "function", "", &[]).ok();
    let _ = sandbox.run(&["delete", "demo"]).ok();
    let all = wait_for(SOON, || Some(told()).filter(|text| text.contains("demo deleted")));
    let all = all.unwrap_or_else(told);
    let names: Vec<&str> = all
        .lines()
        .filter(|line| line.contains(" default/demo "))
        .filter_map(|line| line.split(' ').nth(2))
        .collect();
    assert_eq!(names, ["deploying", "deployed", "deleted"], "{all}");
    assert!(all.contains("reason=") && all.contains(" deployed revision=1\n"), "{all}");
    node.stop();
    let ended = wait_for(SOON, || follower.try_wait().expect("wait"));
    assert_eq!(ended.expect("it ends with the node").code(), Some(0));
}

/// Trace context (<https://www.w3.org/TR/trace-context/>) reaches functions as it came, on every way of an HTTP
/// request: headers of both platforms stand beside it.
#[test]
fn trace_context_reaches_functions_unchanged() {
    let sandbox = Sandbox::new();
    let node = Node::start(&sandbox, &[]);
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    // Two headers are one list, whose order counts.
    let context = [
        ("traceparent", parent),
        ("tracestate", "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"),
        ("tracestate", "other=@x:1"),
        ("baggage", "userId=alice,isProduction=false"),
    ];
    for platform in ["fc", "scf"] {
        let more = format!("platform = \"{platform}\"");
        let _ = node.deploy(platform, "function", &more, &[]).ok();
        let socket = if platform == "fc" { "fc".to_owned() } else { "default.scf".to_owned() };
        let mut connection = node.own(&socket);
        let seen = connection.request("GET", "/headers", &context, b"").ok().json();
        let of = |name: &str| -> Vec<String> {
            let pairs = seen.as_array().expect("pairs").iter();
            let named = pairs.filter(|pair| pair[0] == name);
            named.map(|pair| pair[1].as_str().expect("text").to_owned()).collect()
        };
        let names: BTreeSet<&str> = context.iter().map(|(name, _)| *name).collect();
        for name in names {
            let sent: Vec<&str> =
                context.iter().filter(|(n, _)| *n == name).map(|(_, value)| *value).collect();
            assert_eq!(of(name), sent, "{platform}: {seen}");
        }
        // Nobody makes one up.
        let without = node.own(&socket).request("GET", "/headers", &[], b"").ok().text();
        assert!(!without.contains("traceparent") && !without.contains("tracestate"), "{without}");
    }
    node.stop();
}

/// Names of a trace's steps.
fn steps(trace: &Value) -> Vec<&str> {
    trace["steps"]
        .as_array()
        .expect("steps")
        .iter()
        .map(|step| step["name"].as_str().expect("a name"))
        .collect()
}

#[test]
fn an_invocation_is_drawn_step_by_step() {
    let sandbox = Sandbox::new();
    let node = Node::start(&sandbox, &["--max-instances", "1"]);
    let _ = node.deploy("other", "function", "", &[]).ok();
    let _ = node.deploy("demo", "function", "", &[]).ok();
    let id =
        |answer: &skiff_tests::http::Response| answer.header("x-fc-request-id").expect("an id").to_owned();
    // Its instance has to be started: the other function's is the only one that may be.
    let _ = node.get("other", "/status/200");
    let cold = id(&node.get("demo", "/sleep/50"));
    let trace = sandbox.run(&["trace", &cold, "--output", "json"]).ok().json();
    assert_eq!(
        (&trace["cold"], &trace["status"], &trace["error"]),
        (&json!(true), &json!(200), &Value::Null)
    );
    let all = ["wait", "rootfs", "network", "spawn", "listen", "initialize", "invoke"];
    // What comes after the server listens may be too short to be told.
    let told = steps(&trace);
    assert_eq!(
        told,
        all.into_iter().filter(|name| told.contains(name) || *name != "initialize").collect::<Vec<_>>()
    );
    let last = told.len() - 1;
    let ms = |step: usize, key: &str| trace["steps"][step][key].as_f64().expect("a number");
    assert!(ms(last, "ms") >= 50.0 && (ms(last, "start_ms") - ms(0, "ms")).abs() < 0.01, "{trace}");
    // What the start took is within the wait for it, and nothing of it is counted twice.
    let start: f64 = (1..last).map(|step| ms(step, "ms")).sum();
    assert!((1..last).all(|step| ms(step, "start_ms") >= 0.0) && start <= ms(0, "ms") + 1.0, "{trace}");
    let svg = sandbox.path().join("cold.svg");
    let drawn = sandbox.run(&["trace", &cold, "--svg", svg.to_str().expect("UTF-8")]).ok().stdout();
    assert!(drawn.starts_with("demo revision 1 on ") && drawn.contains(": 200, cold start\n"), "{drawn}");
    assert_eq!(drawn.lines().count(), 2 + told.len(), "{drawn}");
    let picture = std::fs::read_to_string(&svg).expect("the picture");
    assert!(picture.contains(&cold) && picture.ends_with("</svg>\n"), "{picture}");
    // The next is warm; an event has its code when it fails.
    let warm = id(&node.get("demo", "/status/418"));
    let trace = sandbox.run(&["trace", &warm, "--output", "json"]).ok().json();
    assert_eq!((&trace["cold"], &trace["status"]), (&json!(false), &json!(418)));
    assert_eq!(steps(&trace).last(), Some(&"invoke"));
    let nowhere = "/no/such/directory/x.svg";
    let _ = sandbox.run(&["trace", &warm, "--svg", nowhere]).fails(2, &[nowhere, "cannot be written"]);
    let _ = sandbox.run(&["trace", "1-none"]).fails(2, &["nothing is known of request 1-none", "4096"]);
    node.stop();
}
