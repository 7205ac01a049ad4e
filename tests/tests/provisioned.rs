//! Instances that are there without a call are told from those that were started for one.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use skiff_tests::{Node, Sandbox, wait_for};

const SOON: Duration = Duration::from_secs(20);

/// What is logged of a stream, once there are so many lines with `word`.
#[track_caller]
fn lines(node: &Node<'_>, stream: &str, word: &str, count: usize) -> Vec<String> {
    let of_it = || {
        let text = node.ask("GET", "/v1/functions/demo/logs", "").text();
        let records = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        let records = records.filter(|record| record["stream"] == stream);
        let lines = records.map(|record| record["line"].as_str().expect("a text").to_owned());
        lines.filter(|line| line.contains(word)).collect::<Vec<_>>()
    };
    wait_for(SOON, || Some(of_it()).filter(|found| found.len() >= count))
        .unwrap_or_else(|| panic!("{}", node.ask("GET", "/v1/functions/demo/logs", "").text()))
}

fn warm(node: &Node<'_>, count: u64) {
    let there = || (node.info("demo")["instances"]["warm"] == count).then_some(());
    assert!(wait_for(SOON, there).is_some(), "{}", node.info("demo"));
}

#[test]
fn scf_reports_a_provisioned_start_by_itself_and_no_call_of_it_as_cold() {
    let sandbox = Sandbox::new();
    let node = Node::start(&sandbox, &[]);
    let _ = node.deploy("demo", "function", "platform = \"scf\"", &["--provisioned", "2"]).ok();
    warm(&node, 2);
    for line in lines(&node, "platform", "Provisioned Report RequestId: ", 2) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let keys = ["Coldstart:", "(PullCode:", "InitRuntime:", "InitFunction:", "Memory:", "MemUsage:"];
        assert_eq!((words.len(), keys.map(|key| words.contains(&key))), (16, [true; 6]), "{line}");
    }
    assert_eq!(node.get("default.demo", "/status/201").status, 201);
    let _ = lines(&node, "platform", "Report RequestId:", 3);
    assert_eq!(lines(&node, "platform", "START RequestId:", 1).len(), 1);
    assert_eq!(lines(&node, "platform", "Init Report", 0), Vec::<String>::new());
    // What has no invocation is no request of the API's log.
    let headers = [("X-TC-Action", "GetFunctionLogs"), ("X-TC-Version", "2018-04-16")];
    let asked = node.connection().request("POST", "/", &headers, b"{\"FunctionName\":\"demo\"}").json();
    assert_eq!(asked["Response"]["TotalCount"], 1, "{asked}");
    node.stop();
}

#[test]
fn fc_tells_whether_an_instance_was_provisioned() {
    let sandbox = Sandbox::new();
    let node = Node::start(&sandbox, &[]);
    let _ = node.deploy("demo", "function", "", &["--provisioned", "1"]).ok();
    warm(&node, 1);
    let kinds = |count| {
        let told = |record: &String| {
            let record: Value = serde_json::from_str(record).expect("JSON");
            (record["resourceMode"].clone(), record["isColdStart"].clone())
        };
        let mut kinds: Vec<_> = lines(&node, "requests", "", count).iter().map(told).collect();
        // Those of several instances come as they come.
        kinds.sort_by_key(|(mode, _)| mode != "Provision");
        kinds
    };
    let (provisioned, other) = ((json!("Provision"), json!(false)), (json!("OnDemand"), json!(true)));
    assert_eq!(node.get("demo", "/status/201").status, 201);
    assert_eq!(kinds(1), std::slice::from_ref(&provisioned));
    // The second at once has an instance of its own.
    let mut slow = node.own("demo");
    slow.send_head("GET", "/sleep/60000", &[]);
    let runs = || (node.info("demo")["instances"]["running"] == 1).then_some(());
    assert!(wait_for(SOON, runs).is_some(), "{}", node.info("demo"));
    assert_eq!(node.get("demo", "/status/201").status, 201);
    drop(slow);
    assert_eq!(kinds(3), [provisioned.clone(), provisioned.clone(), other]);
    let _ = node.deploy("demo", "function", "", &["--provisioned", "1"]).ok();
    warm(&node, 1);
    // A later node has it as such.
    node.end(Signal::KILL);
    let node = Node::start(&sandbox, &[]);
    warm(&node, 1);
    assert_eq!(node.get("demo", "/status/201").status, 201);
    let last = lines(&node, "requests", "", 4).pop().expect("a record");
    let last: Value = serde_json::from_str(&last).expect("JSON");
    assert_eq!((last["resourceMode"].clone(), last["isColdStart"].clone()), provisioned);
    node.stop();
}
