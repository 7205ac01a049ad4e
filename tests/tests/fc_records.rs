//! What Alibaba FC tells of invocations and instances besides answers: headers, logs, records, metrics. And
//! what a function finds in its container.

use std::time::Duration;

use serde_json::{Value, json};
use skiff_tests::{Sandbox, Served, assert_like, images, is_like, wait_for};

const SOON: Duration = Duration::from_secs(20);

/// The lines of one stream of the log so far, each of which is JSON.
fn told(served: &Served, stream: &str) -> Vec<Value> {
    let stderr = served.stderr();
    let events = stderr.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let lines = events.filter(|event| event["event"] == "log" && event["stream"] == stream);
    lines.filter_map(|event| serde_json::from_str(event["line"].as_str()?).ok()).collect()
}

#[track_caller]
fn wait_for_one(served: &Served, stream: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let found = wait_for(SOON, || told(served, stream).into_iter().find(|record| wanted(record)));
    found.unwrap_or_else(|| panic!("not told: {}", served.stderr()))
}

// --- Answers -------------------------------------------------------------------------------------

#[test]
fn answers_over_http_tell_time_memory_and_checksum() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&[]);
    let response = served.get("/sleep/20").ok();
    let header = |name: &str| response.header(name).unwrap_or_else(|| panic!("no {name}: {response:?}"));
    let ms: u64 = header("x-fc-invocation-duration").parse().expect("a number");
    assert!(ms >= 20, "{ms}");
    assert_like(header("x-fc-max-memory-usage"), "<mb>");
    assert_like(header("x-fc-code-checksum"), "<n>");
    // Of the same image it is the same, of another it is another.
    let event = |image: &str| {
        let answer = sandbox.event(&images::oci(image), &["--output", "json"]).ok().json();
        let headers = answer["headers"].as_array().expect("headers").iter();
        let mut found =
            headers.filter(|pair| pair[0] == "x-fc-code-checksum").filter_map(|pair| pair[1].as_str());
        found.next().expect("a checksum").to_owned()
    };
    assert_eq!(event("function"), header("x-fc-code-checksum"));
    assert_ne!(event("user"), header("x-fc-code-checksum"));
    // One that streams has sent its head before it knew.
    assert_eq!(served.get("/stream?n=2").ok().header("x-fc-invocation-duration"), None);
}

#[test]
fn who_asks_gets_the_log_of_an_http_request() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&[]);
    let response = served.request("GET", "/log?line=hello", &[("X-Fc-Log-Type", "Tail")], b"").ok();
    let id = response.header("x-fc-request-id").expect("an id");
    let log = decoded(response.header("x-fc-log-result").expect("a log"));
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines[0], format!("FC Invoke Start RequestId: {id}"));
    assert!(lines.contains(&"hello") && lines.contains(&"hello (stderr)"), "{log}");
    assert_eq!(lines[lines.len() - 2], format!("FC Invoke End RequestId: {id}"));
    let summary = lines[lines.len() - 1];
    let pattern = "Duration: <mb> ms, Billed Duration: <n> ms, Memory Size: 512 MB, Max Memory Used: <mb> MB";
    assert!(is_like(summary, pattern), "{summary}");
    let unasked = served.get("/log?line=again").ok();
    assert_eq!(unasked.header("x-fc-log-result"), None);
}

fn decoded(text: &str) -> String {
    let script = format!("printf %s '{text}' | base64 -d");
    skiff_tests::must("sh", &["-c", &script])
}

// --- Records -------------------------------------------------------------------------------------

#[test]
fn an_error_that_a_web_function_reports_is_in_its_record() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&["--output", "json"]);
    let failed = served.get("/function-error");
    assert_eq!(
        (failed.status, failed.header("x-fc-status")),
        (404, None),
        "its own answer, without the header"
    );
    let fine = served.get("/status/404");
    let record = |id: &str| wait_for_one(&served, "requests", |record| record["requestId"] == id);
    let failed = record(failed.header("x-fc-request-id").expect("an id"));
    assert_eq!(
        (&failed["hasFunctionError"], &failed["errorType"]),
        (&json!(true), &json!("FunctionUnhandledError"))
    );
    assert_eq!((&failed["statusCode"], &failed["invocationType"]), (&json!(404), &json!("Sync")));
    let fine = record(fine.header("x-fc-request-id").expect("an id"));
    assert_eq!((&fine["hasFunctionError"], &fine["errorType"]), (&json!(false), &Value::Null));
    let said = served.stop().stderr;
    assert!(said.contains(", Error: Unhandled function error"), "{said}");
}

#[test]
fn what_an_instance_uses_is_told_every_so_often() {
    let sandbox = Sandbox::new();
    let options = ["--metrics-period", "1s", "--output", "json", "--cpus", "0.5", "--memory", "256MiB"];
    let served = sandbox.serve_function(&[&options[..], &["--no-freeze", "--name", "resize"]].concat());
    let mut connection = served.connect();
    connection.send_head("GET", "/sleep/5000", &[]);
    let busy = wait_for_one(&served, "metrics", |record| record["concurrentRequests"] == 1);
    for (field, value) in [
        ("functionName", json!("resize")),
        ("cpuQuotaPercent", json!(50.0)),
        ("memoryLimitMB", json!(256)),
        ("qualifier", json!("LATEST")),
        ("rxTotalBytes", json!(0)),
        ("txBytes", json!(0)),
    ] {
        assert_eq!(busy[field], value, "{busy}");
    }
    assert!(busy["memoryUsageMB"].as_f64().expect("a number") > 0.0, "{busy}");
    assert_like(busy["instanceID"].as_str().expect("an id"), "<id>");
    let idle = wait_for_one(&served, "metrics", |record| record["concurrentRequests"] == 0);
    assert!(idle["cpuPercent"].as_f64().is_some(), "{idle}");
    let refused = sandbox.event(&images::oci("function"), &["--platform", "scf", "--metrics-period", "1s"]);
    refused.fails(2, &["metrics period: platform scf has no such metrics"]);
}

#[test]
fn traffic_with_the_world_outside_counts() {
    let sandbox = Sandbox::with_shared_images();
    let options = ["--metrics-period", "1s", "--output", "json", "--network", "bridge", "--no-freeze"];
    let served = sandbox.serve(&images::oci("python"), &options);
    let send = "import socket\n\
                s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
                for _ in range(10): s.sendto(b'x' * 1000, ('192.0.2.1', 9))";
    assert_eq!(served.python(send), "");
    let told = wait_for_one(&served, "metrics", |record| {
        record["txTotalBytes"].as_u64().is_some_and(|bytes| bytes >= 10_000)
    });
    assert!(told["rxTotalBytes"].as_u64().is_some_and(|bytes| bytes < 10_000), "{told}");
}

// --- In the container ----------------------------------------------------------------------------

#[test]
fn the_time_zone_is_utc_unless_told() {
    let sandbox = Sandbox::with_shared_images();
    let zone = |options: &[&str]| {
        let served = sandbox.serve(&images::oci("python"), options);
        served.python("import time; print(time.tzname[0], time.localtime().tm_gmtoff)").trim().to_owned()
    };
    assert_eq!(zone(&[]), "UTC 0");
    assert_eq!(zone(&["--env", "TZ=CST-8"]), "CST 28800");
}

#[test]
fn the_command_is_process_one_and_nobody_else_reaps() {
    let sandbox = Sandbox::with_shared_images();
    let served = sandbox.serve(&images::oci("python"), &[]);
    // The child of a child that has gone is process 1's, and stays a zombie.
    let script = "import os, time\n\
                  print(os.getpid())\n\
                  r, w = os.pipe()\n\
                  if os.fork() == 0:\n    \
                      pid = os.fork()\n    \
                      os.write(w, str(pid).encode()) if pid else time.sleep(0.2)\n    \
                      os._exit(0)\n\
                  os.wait()\n\
                  pid = os.read(r, 16).decode()\n\
                  time.sleep(1)\n\
                  stat = open(f'/proc/{pid}/stat').read().rsplit(')', 1)[1].split()\n\
                  print(stat[0], stat[1])";
    let seen = served.python(script);
    assert_eq!(seen.lines().collect::<Vec<_>>(), ["1", "Z 1"], "{seen}");
}

#[test]
fn headers_of_tracing_pass() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&[]);
    let trace = [
        ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        ("tracestate", "vendor=1"),
        ("baggage", "user=7"),
    ];
    let seen = served.request("GET", "/headers", &trace, b"").ok().json();
    for (name, value) in trace {
        assert!(seen.as_array().expect("headers").contains(&json!([name, value])), "{name}: {seen}");
    }
}
