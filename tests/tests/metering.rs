//! What deployed functions are billed: one record of each call, through crashes and full disks.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rustix::process::Signal;
use serde_json::{Value, json};
use skiff_tests::http::Response;
use skiff_tests::{Baseline, Node, Sandbox, must, wait_for};

const SOON: Duration = Duration::from_secs(60);

#[track_caller]
fn usage(node: &Node<'_>) -> Value {
    node.ask("GET", "/v1/usage", "").ok().json()
}

fn deploy(node: &Node<'_>, name: &str, more: &str) {
    let _ = node.deploy(name, "function", more, &[]).ok();
}

fn socket(sandbox: &Sandbox) -> PathBuf {
    sandbox.run_dir().join("skiff.sock")
}

fn log(sandbox: &Sandbox) -> String {
    std::fs::read_to_string(sandbox.path().join("node.log")).unwrap_or_default()
}

fn invocations(name: &str) -> String {
    format!("/2023-03-30/functions/{name}/invocations")
}

#[track_caller]
fn records(sandbox: &Sandbox, options: &[&str]) -> Vec<Value> {
    let told = sandbox.run(&[&["usage", "--output", "json"], options].concat()).ok().stdout();
    told.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn id(answer: &Response) -> String {
    answer.header("x-fc-request-id").expect("an id").to_owned()
}

#[test]
fn each_call_has_a_record_of_what_it_took() {
    let sandbox = Sandbox::new();
    let baseline = Baseline::take(&sandbox);
    let node = Node::start(&sandbox, &[]);
    deploy(&node, "demo", "memory = \"256MiB\"\ntimeout = \"1s\"");
    let calls = [
        (node.invoke("demo", &json!({ "k": 1 })), "success"),
        (node.invoke("demo", &json!({ "fail": true })), "function_error"),
        (node.invoke("demo", &json!({ "sleep_ms": 300 })), "success"),
        (node.get("demo", "/status/500"), "success"),
        (node.get("demo", "/stream?n=3&ms=10"), "success"),
        (node.get("demo", "/large?bytes=300000").ok(), "success"),
        (node.invoke("demo", &json!({ "exit": 3 })), "function_error"),
        (node.invoke("demo", &json!({ "sleep_ms": 5_000 })), "platform_error"),
    ];
    let records = records(&sandbox, &[]);
    let of = |answer: &Response| {
        let id = id(answer);
        let own: Vec<&Value> = records.iter().filter(|record| record["request_id"] == *id).collect();
        assert_eq!(own.len(), 1, "{id}: {own:?}");
        own[0]
    };
    for (answer, status) in &calls {
        let record = of(answer);
        assert_eq!((&record["kind"], &record["status"]), (&json!("invocation"), &json!(status)), "{record}");
        let (start, end) = (record["start_unix_ms"].as_u64(), record["end_unix_ms"].as_u64());
        let billed = record["billed_ms"].as_u64().expect("a number");
        // An instance works on one at a time: what is billed is its own time, rounded up.
        let took = end.expect("an end") - start.expect("a start");
        assert!(took <= billed + 1 && billed <= took + 2, "{record}");
        let gb_s = record["gb_s"].as_f64().expect("a number");
        assert!((gb_s - 0.25 * billed as f64 / 1000.0).abs() < 1e-9, "{record}");
        assert_eq!((&record["memory_mib"], &record["revision"]), (&json!(256), &json!(1)));
        assert!(record["memory_peak_bytes"].as_u64().expect("a number") > 100_000, "{record}");
        assert!(!record["instance"].as_str().expect("an id").is_empty());
    }
    assert_eq!((&of(&calls[0].0)["cold"], &of(&calls[1].0)["cold"]), (&json!(true), &json!(false)));
    assert!(of(&calls[2].0)["billed_ms"].as_u64().expect("a number") >= 300);
    assert_eq!(of(&calls[3].0)["http_status"], 500);
    assert!(of(&calls[4].0)["billed_ms"].as_u64().expect("a number") >= 20);
    assert!((1_000..3_000).contains(&of(&calls[7].0)["billed_ms"].as_u64().expect("a number")));
    assert_sums(&sandbox, &node, &records);
    let _ = sandbox.run(&["delete", "demo"]).ok();
    node.stop();
    baseline.assert_restored();
}

/// What the node adds up is what its records come to.
#[track_caller]
fn assert_sums(sandbox: &Sandbox, node: &Node<'_>, records: &[Value]) {
    let usage = usage(node);
    let billed = |kind: &str| {
        let of_kind = records.iter().filter(|record| record["kind"] == kind);
        of_kind.fold((0, 0, 0.0), |(count, ms, gb_s), record| {
            let number = |key: &str| record[key].as_f64().unwrap_or(0.0);
            (count + 1, ms + record["billed_ms"].as_u64().unwrap_or(0), gb_s + number("gb_s"))
        })
    };
    let function = &usage["functions"][0];
    let told = |count: &str, ms: &str, gb_s: &str| {
        let number = |key: &str| function[key].as_u64().expect("a number");
        (number(count), number(ms), function[gb_s].as_f64().expect("a number"))
    };
    for (sum, told) in [
        (billed("invocation"), told("invocations", "billed_ms", "gb_s")),
        (billed("pull"), told("pulls", "pull_billed_ms", "pull_gb_s")),
    ] {
        assert_eq!((sum.0, sum.1), (told.0, told.1), "{usage}");
        assert!((sum.2 - told.2).abs() < 1e-6, "{usage}");
    }
    assert_eq!((&usage["missing"], &usage["damages"]), (&json!(0), &json!([])));
    let text = sandbox.run(&["usage"]).ok().stdout();
    let row = text.lines().find(|line| line.starts_with("demo")).unwrap_or_else(|| panic!("{text}"));
    let columns: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(columns[3], function["invocations"].to_string(), "{text}");
    assert_eq!(columns[6], function["billed_ms"].to_string(), "{text}");
}

#[test]
fn a_pull_is_billed_as_its_platform_does_it_and_a_refusal_is_not() {
    let sandbox = Sandbox::new();
    let node = Node::start(&sandbox, &[]);
    deploy(&node, "demo", "memory = \"1GiB\"");
    // Its image is here by now.
    deploy(&node, "again", "");
    let pulls: Vec<Value> =
        records(&sandbox, &[]).into_iter().filter(|record| record["kind"] == "pull").collect();
    let [pull] = &pulls[..] else { panic!("{pulls:?}") };
    let billed = pull["billed_ms"].as_u64().expect("a number");
    assert!(billed > 0 && pull["image"].as_str().expect("a digest").starts_with("sha256:"), "{pull}");
    let gb_s = pull["gb_s"].as_f64().expect("a number");
    assert!((gb_s - billed as f64 / 1000.0).abs() < 1e-9, "1 GiB for a second is 1 GB·s: {pull}");
    assert_eq!(node.ask("POST", &invocations("nobody"), "{}").status, 404);
    let large = vec![b'x'; 33 << 20];
    let refused = node.connection().request("POST", &invocations("demo"), &[], &large);
    assert!(refused.status >= 400, "{}", refused.status);
    let calls: Vec<Value> =
        records(&sandbox, &[]).into_iter().filter(|record| record["kind"] == "invocation").collect();
    assert!(calls.iter().all(|call| call["status"] == "rejected" && call["billed_ms"] == 0), "{calls:?}");
    node.stop();
}

#[test]
fn jobs_and_each_try_of_an_asynchronous_event_are_billed() {
    let sandbox = Sandbox::new();
    let node = Node::start(&sandbox, &[]);
    deploy(&node, "demo", "");
    let job = "platform = \"fc2\"\nnamespace = \"team\"\nmode = \"job\"\ncommand = [\"job\"]";
    deploy(&node, "job", job);
    let told = node.ask("POST", "/2021-04-06/services/team/functions/job/invocations", "{\"k\":1}").ok();
    let later = [("X-Fc-Invocation-Type", "Async")];
    let taken = node.connection().request("POST", &invocations("demo"), &later, b"{\"fail\":true}");
    assert_eq!(taken.status, 202);
    let of = |id: &str| -> Vec<Value> {
        records(&sandbox, &[]).into_iter().filter(|record| record["request_id"] == id).collect()
    };
    let jobs = of(&id(&told));
    assert!(jobs.len() == 1 && jobs[0]["status"] == "success" && jobs[0]["namespace"] == "team", "{jobs:?}");
    assert!(jobs[0]["billed_ms"].as_u64().expect("a number") > 0, "{jobs:?}");
    // Tried again after 0.5 s, 1 s and 2 s.
    let tries = wait_for(SOON, || Some(of(&id(&taken))).filter(|tries| tries.len() == 4));
    let tries = tries.unwrap_or_else(|| panic!("{:?}", records(&sandbox, &[])));
    let retries: Vec<u64> = tries.iter().filter_map(|record| record["retries"].as_u64()).collect();
    assert_eq!(retries, [0, 1, 2, 3]);
    assert!(tries.iter().all(|one| one["asynchronous"] == true && one["status"] == "function_error"));
    assert_eq!(records(&sandbox, &["--function", "job", "--namespace", "team"]).len(), 1);
    assert!(records(&sandbox, &["--since", "0s", "--function", "job"]).is_empty());
    node.stop();
}

#[test]
fn time_that_overlaps_in_an_instance_is_billed_once() {
    let sandbox = Sandbox::new();
    let node = Node::start(&sandbox, &[]);
    deploy(&node, "demo", "concurrency = 8");
    let begun = Instant::now();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| node.invoke("demo", &json!({ "sleep_ms": 500 })).ok());
        }
    });
    let all = begun.elapsed().as_millis() as u64;
    let records = records(&sandbox, &[]);
    let calls = records.iter().filter(|record| record["kind"] == "invocation");
    let billed: u64 = calls.filter_map(|record| record["billed_ms"].as_u64()).sum();
    assert!(billed >= 500 && billed <= all + 1, "{billed} ms of {all}: {records:?}");
    node.stop();
}

#[test]
fn a_node_may_keep_no_records() {
    let sandbox = Sandbox::new();
    let node = Node::start(&sandbox, &["--no-metering"]);
    deploy(&node, "demo", "");
    let _ = node.invoke("demo", &json!({ "k": 1 })).ok();
    let _ = sandbox.run(&["usage"]).fails(2, &["keeps no records", "--no-metering"]);
    let _ = sandbox.run(&["usage", "--output", "json"]).fails(2, &["keeps no records"]);
    assert!(!sandbox.state_dir().join("meter").exists());
    node.stop();
}

#[test]
fn bad_questions_are_told() {
    let sandbox = Sandbox::new();
    let node = Node::start(&sandbox, &[]);
    let wrong = node.ask("GET", "/v1/usage?since_unix_ms=soon", "");
    assert_eq!(wrong.status, 400, "{}", wrong.text());
    assert!(wrong.text().contains("since_unix_ms"));
    assert_eq!(node.ask("POST", "/v1/usage", "").status, 405);
    assert_eq!(node.ask("GET", "/v1/usage/nothing", "").status, 404);
    let paths = node.ask("GET", "/openapi.json", "").json()["paths"].clone();
    assert!(paths["/v1/usage"].is_object() && paths["/v1/usage/records"].is_object());
    let _ = sandbox.run(&["usage", "--since", "7"]).fails(2, &["7d"]);
    node.stop();
}

/// A file system of its own, gone when it is dropped.
struct Small<'a>(&'a Path);

impl<'a> Small<'a> {
    fn mount(path: &'a Path, size: &str) -> Self {
        std::fs::create_dir_all(path).expect("a directory");
        let path_text = path.display().to_string();
        must("mount", &["-t", "tmpfs", "-o", &format!("size={size},mode=0700"), "skiff-test", &path_text]);
        Self(path)
    }

    fn grow(&self, size: &str) {
        must("mount", &["-o", &format!("remount,size={size}"), &self.0.display().to_string()]);
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(self.0).status();
    }
}

#[test]
fn a_full_disk_stops_no_function_and_what_is_missing_is_counted() {
    let sandbox = Sandbox::new();
    let dir = sandbox.state_dir().join("meter");
    let disk = Small::mount(&dir, "64k");
    let node = Node::start(&sandbox, &[]);
    deploy(&node, "demo", "");
    let mut answered = 0_u64;
    let mut call = || {
        let _ = node.invoke("demo", &json!({ "k": 1 })).ok();
        answered += 1;
    };
    for _ in 0..400 {
        call();
    }
    let full = usage(&node);
    let why = full["meter"]["failing"].as_str().unwrap_or_else(|| panic!("{full}"));
    assert!(why.contains("No space left"), "{why}");
    assert!(full["meter"]["unbilled"].as_u64().expect("a number") > 0, "{full}");
    let told = sandbox.run(&["usage"]).ok();
    assert!(told.stderr.contains("records are not kept") && told.stderr.contains("No space"), "{told:?}");
    assert!(log(&sandbox).contains("NOT billed"), "{}", log(&sandbox));
    disk.grow("4m");
    let again = wait_for(SOON, || {
        call();
        usage(&node)["meter"]["failing"].is_null().then_some(())
    });
    assert!(again.is_some(), "{}", usage(&node));
    let usage = usage(&node);
    let (kept, missing) = (&usage["functions"][0]["invocations"], &usage["missing"]);
    let sum = kept.as_u64().expect("a number") + missing.as_u64().expect("a number");
    assert_eq!((sum, missing), (answered, &usage["meter"]["unbilled"]), "{usage}");
    let told = sandbox.run(&["usage"]).ok();
    assert!(told.stderr.contains(&format!("{missing} calls were answered and have no record")), "{told:?}");
    assert_eq!(usage["damages"], json!([]));
    node.stop();
}

/// How the callers' calls ended.
#[derive(Default)]
struct Counts {
    /// Ids of those that had a whole answer.
    answered: Mutex<Vec<String>>,
    count: AtomicUsize,
    unanswered: AtomicUsize,
    over: AtomicBool,
}

impl Counts {
    /// Calls one after the other, whatever becomes of them.
    fn call(&self, socket: &Path, requests: &[String]) {
        for request in requests.iter().cycle() {
            if self.over.load(Ordering::SeqCst) {
                return;
            }
            // Nobody listens while the daemon is away.
            let Ok(stream) = UnixStream::connect(socket) else {
                thread::sleep(Duration::from_millis(2));
                continue;
            };
            match exchange(stream, request) {
                Some((200, id)) => {
                    self.answered.lock().expect("whole").push(id);
                    self.count.fetch_add(1, Ordering::SeqCst);
                }
                Some((status, id)) => panic!("{status} for {id}: {request}"),
                None => drop(self.unanswered.fetch_add(1, Ordering::SeqCst)),
            }
        }
    }
}

/// Status and request id of an answer that came to its end.
fn exchange(mut stream: UnixStream, request: &str) -> Option<(u16, String)> {
    stream.set_read_timeout(Some(SOON)).ok()?;
    stream.write_all(request.as_bytes()).ok()?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).ok()?;
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let body = &bytes[end + 4..];
    let header = |name: &str| {
        head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(|v| v.trim().to_owned()))
    };
    let whole = match header("content-length") {
        Some(length) => length.parse() == Ok(body.len()),
        None => body.ends_with(b"0\r\n\r\n"),
    };
    let status = head.split(' ').nth(1)?.parse().ok()?;
    whole.then(|| Some((status, header("x-fc-request-id")?))).flatten()
}

fn post(name: &str, event: &str) -> String {
    let (path, length) = (invocations(name), event.len());
    format!("POST {path} HTTP/1.1\r\nHost: f\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{event}")
}

fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: f\r\nConnection: close\r\n\r\n")
}

/// `SKIFF_TEST_METER_KILLS` asks for so many kills, however long they take; otherwise it is as many as there
/// is time for.
#[test]
fn each_answered_call_has_one_record_through_many_kill_9() {
    let asked = std::env::var("SKIFF_TEST_METER_KILLS").ok().and_then(|text| text.parse::<usize>().ok());
    let sandbox = Sandbox::new();
    let node = Node::start(&sandbox, &[]);
    deploy(&node, "demo", "concurrency = 4");
    node.stop();
    let (counts, begun) = (Counts::default(), Instant::now());
    let events = ["{\"k\":1}", "{\"fail\":true}", "{\"answer_bytes\":5000}"].map(|event| post("demo", event));
    let requests = ["/stream?n=3&ms=1", "/large?bytes=200000", "/env"].map(get);
    let sockets = [socket(&sandbox), sandbox.run_dir().join("functions/demo.sock")];
    let mut kills = 0;
    let node = thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| counts.call(&sockets[0], &events));
            scope.spawn(|| counts.call(&sockets[1], &requests));
        }
        while kills < asked.unwrap_or(12) && (asked.is_some() || begun.elapsed() < Duration::from_secs(40)) {
            let node = Node::start(&sandbox, &[]);
            let before = counts.count.load(Ordering::SeqCst);
            let some = || (counts.count.load(Ordering::SeqCst) > before + 10).then_some(());
            assert!(wait_for(SOON, some).is_some(), "no answers: {}", log(&sandbox));
            // Anywhere.
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
            thread::sleep(Duration::from_micros(u64::from(now.subsec_nanos()) % 200_000));
            node.end(Signal::KILL);
            kills += 1;
        }
        let node = Node::start(&sandbox, &[]);
        counts.over.store(true, Ordering::SeqCst);
        node
    });
    assert_each_once(&counts, &records(&sandbox, &[]), kills);
    node.stop();
}

#[track_caller]
#[allow(clippy::print_stdout, reason = "how much was tried is part of the result")]
fn assert_each_once(counts: &Counts, records: &[Value], kills: usize) {
    let sequences = records.iter().filter_map(|record| record["sequence"].as_u64());
    assert!(sequences.eq(1..=records.len() as u64), "numbers are missing or double");
    let mut recorded = BTreeMap::<&str, usize>::new();
    for record in records.iter().filter(|record| record["kind"] == "invocation") {
        *recorded.entry(record["request_id"].as_str().expect("an id")).or_default() += 1;
    }
    let double: Vec<_> = recorded.iter().filter(|(_, count)| **count != 1).collect();
    assert!(double.is_empty(), "more than one record: {double:?}");
    let answered = counts.answered.lock().expect("whole");
    let distinct: BTreeSet<&str> = answered.iter().map(String::as_str).collect();
    assert_eq!(distinct.len(), answered.len());
    let lost: Vec<_> = distinct.iter().filter(|id| !recorded.contains_key(**id)).collect();
    assert!(lost.is_empty(), "{} of {} answered calls have no record: {lost:?}", lost.len(), answered.len());
    // A call whose answer was lost on its way may have been billed.
    let (more, unanswered) = (recorded.len() - distinct.len(), counts.unanswered.load(Ordering::SeqCst));
    assert!(more <= unanswered, "{more} records more than answers, {unanswered} calls without an answer");
    println!("{kills} kills, {} answered, {unanswered} not, {} records", answered.len(), recorded.len());
}
