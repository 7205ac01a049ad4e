//! `skiff serve`: functions that are deployed, called, replaced, deleted, and there again after a restart.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use skiff_tests::http::{Connection, Response};
use skiff_tests::process::Process;
use skiff_tests::{Baseline, Node, Outcome, Sandbox, deploy_as, images, wait_for};

const SOON: Duration = Duration::from_secs(60);

/// Deploys an image as the function `demo`.
#[track_caller]
fn deploy(sandbox: &Sandbox, image: &str, more: &str, options: &[&str]) -> Outcome {
    deploy_as(sandbox, "demo", image, more, options)
}

#[test]
fn a_function_is_deployed_called_and_deleted() {
    let sandbox = Sandbox::new();
    let baseline = Baseline::take(&sandbox);
    let node = Node::start(&sandbox, &[]);
    let told = deploy(&sandbox, "function", "memory = \"256MiB\"", &[]).ok().stdout();
    assert!(told.starts_with("deployed demo revision 1: sha256:"), "{told}");
    assert_eq!(node.invoke("demo", &json!({ "k": 1 })).ok().json()["event"]["k"], 1);
    assert_eq!(node.get("demo", "/status/201").status, 201);
    let info = node.info("demo");
    assert_eq!(
        (&info["state"], &info["revision"], &info["memory_mib"]),
        (&json!("Active"), &json!(1), &json!(256))
    );
    let list = sandbox.run(&["functions"]).ok().stdout();
    assert!(list.contains("demo") && list.contains("Active") && list.lines().count() == 2, "{list}");
    let got = sandbox.run(&["get", "demo", "--output", "json"]).ok().json();
    assert_eq!(got["image"], images::oci("function"));
    let _ = sandbox.run(&["delete", "demo"]).ok();
    assert_eq!(node.invoke("demo", &json!({})).status, 404);
    assert!(!sandbox.run_dir().join("functions/demo.sock").exists());
    let _ = sandbox.run(&["get", "demo"]).fails(2, &["there is no function demo"]);
    node.stop();
    baseline.assert_restored();
}

#[test]
fn two_nodes_do_not_share_a_directory() {
    let sandbox = Sandbox::new();
    let node = Node::start(&sandbox, &[]);
    let _ = sandbox.run(&["serve"]).fails(3, &["another node", "state directory of its own"]);
    let _ = deploy(&sandbox, "function", "", &[]).ok();
    node.stop();
}

#[test]
fn a_new_revision_takes_over_and_no_call_is_lost() {
    let sandbox = Sandbox::new();
    let node = Node::start(&sandbox, &[]);
    let _ = deploy(&sandbox, "function", "env = { WHICH = \"one\" }", &[]).ok();
    let which = |answer: &Response| answer.json()["WHICH"].as_str().unwrap_or_default().to_owned();
    assert_eq!(which(&node.get("demo", "/env").ok()), "one");
    thread::scope(|scope| {
        let long = scope.spawn(|| node.get("demo", "/sleep/3000"));
        let calls = scope.spawn(|| {
            let mut seen = Vec::new();
            while seen.last().is_none_or(|last| last != "two") {
                seen.push(which(&node.get("demo", "/env").ok()));
            }
            seen
        });
        thread::sleep(Duration::from_millis(300));
        let _ = deploy(&sandbox, "function", "env = { WHICH = \"two\" }", &[]).ok();
        let seen = calls.join().expect("answered");
        assert!(seen.iter().is_sorted(), "{seen:?}");
        assert_eq!(long.join().expect("answered").status, 200);
    });
    assert_eq!(node.info("demo")["revision"], 2);
    node.stop();
}

#[test]
fn a_revision_that_cannot_start_never_takes_over() {
    let sandbox = Sandbox::new();
    let node = Node::start(&sandbox, &[]);
    let first = deploy(&sandbox, "exits", "", &[]);
    assert!(first.code() == 3 && first.stderr.contains("before it listened"), "{first:?}");
    assert_eq!(node.ask("GET", "/v1/functions", "").json(), json!({ "functions": [] }));
    let _ = deploy(&sandbox, "function", "", &[]).ok();
    let _ = deploy(&sandbox, "hangs", "start_timeout = \"1s\"", &[]).fails(3, &["did not listen"]);
    let _ = deploy(&sandbox, "no-such-image", "", &[]).fails(3, &["no-such-image"]);
    assert_eq!(node.invoke("demo", &json!({ "k": 2 })).ok().json()["event"]["k"], 2);
    let info = node.info("demo");
    assert_eq!((&info["revision"], &info["last_update"]["status"]), (&json!(1), &json!("Failed")));
    assert_eq!((&info["last_update"]["revision"], &info["state"]), (&json!(3), &json!("Active")));
    node.stop();
}

#[test]
fn what_is_deployed_is_there_again_after_a_restart_and_a_kill() {
    let sandbox = Sandbox::new();
    let baseline = Baseline::take(&sandbox);
    let node = Node::start(&sandbox, &[]);
    let _ = deploy(&sandbox, "function", "env = { WHICH = \"one\" }", &["--provisioned", "1"]).ok();
    node.stop();
    let node = Node::start(&sandbox, &[]);
    // At once: a call waits for the function.
    assert_eq!(node.get("demo", "/env").ok().json()["WHICH"], "one");
    assert_eq!(node.info("demo")["scaling"]["provisioned"], 1);
    node.end(Signal::KILL);
    let node = Node::start(&sandbox, &[]);
    assert_eq!(node.get("demo", "/env").ok().json()["WHICH"], "one");
    assert_eq!(node.info("demo")["revision"], 1);
    let _ = deploy(&sandbox, "function", "", &[]).ok();
    assert_eq!(node.info("demo")["revision"], 2);
    let _ = sandbox.run(&["delete", "demo"]).ok();
    node.stop();
    let node = Node::start(&sandbox, &[]);
    assert_eq!(node.ask("GET", "/v1/functions", "").json(), json!({ "functions": [] }));
    node.stop();
    baseline.assert_restored();
}

/// The instance that answers.
#[track_caller]
fn instance(node: &Node<'_>) -> String {
    node.get("demo", "/status/200").header("x-fc-instance-id").expect("an id").to_owned()
}

#[test]
fn instances_live_on_through_restarts_and_kills_of_the_node() {
    let sandbox = Sandbox::new();
    let baseline = Baseline::take(&sandbox);
    let node = Node::start(&sandbox, &[]);
    let _ = deploy(&sandbox, "function", "", &[]).ok();
    let first = instance(&node);
    let counted =
        |node: &Node<'_>| node.get("demo", "/lifecycle").ok().json()["ticks"].as_u64().expect("ticks");
    let before = counted(&node);
    let mut current = Some(node);
    for signal in [Signal::TERM, Signal::KILL, Signal::TERM] {
        // It may have been frozen by then, or not.
        thread::sleep(Duration::from_millis(if signal == Signal::KILL { 0 } else { 200 }));
        let code = current.take().expect("a node").end(signal);
        assert_eq!(code, (signal == Signal::TERM).then_some(0));
        let next = Node::start(&sandbox, &[]);
        assert_eq!(next.get("demo", "/status/200").status, 200);
        current = Some(next);
    }
    let node = current.expect("a node");
    assert_eq!(instance(&node), first, "{}", node.log());
    assert!(counted(&node) >= before, "it was started anew");
    // The log goes on, and nothing of it comes twice (the function writes to both of its streams).
    assert_eq!(node.get("demo", "/log?line=after-all").status, 200);
    let logged = || node.ask("GET", "/v1/functions/demo/logs", "").ok().text();
    let both = wait_for(SOON, || logged().contains("after-all (stderr)").then_some(()));
    assert!(both.is_some(), "{}", logged());
    assert_eq!(logged().matches("\"line\":\"after-all").count(), 2);
    let _ = sandbox.run(&["delete", "demo"]).ok();
    node.stop();
    baseline.assert_restored();
}

#[test]
fn who_calls_while_there_is_no_node_waits_for_the_next() {
    let sandbox = Sandbox::new();
    let mut node = Some(Node::start(&sandbox, &[]));
    let _ = deploy(&sandbox, "function", "", &[]).ok();
    let run = sandbox.run_dir();
    let (api, own) = (run.join("skiff.sock"), run.join("functions/demo.sock"));
    for signal in [Signal::KILL, Signal::TERM] {
        node.take().expect("a node").end(signal);
        thread::scope(|scope| {
            let calls: Vec<_> = (0..20)
                .map(|number| {
                    let (api, own) = (&api, &own);
                    scope.spawn(move || {
                        let event = json!({ "k": number }).to_string();
                        let target = "/2023-03-30/functions/demo/invocations";
                        let mut connection = Connection::unix(api).expect("somebody listens");
                        let called = connection.request("POST", target, &[], event.as_bytes());
                        assert_eq!(called.ok().json()["event"]["k"], number);
                        let mut connection = Connection::unix(own).expect("somebody listens");
                        assert_eq!(connection.request("GET", "/status/200", &[], b"").status, 200);
                    })
                })
                .collect();
            thread::sleep(Duration::from_millis(300));
            node = Some(Node::start(&sandbox, &[]));
            calls.into_iter().for_each(|call| call.join().expect("answered"));
        });
    }
    node.expect("a node").stop();
    assert!(Connection::unix(&api).is_err(), "the socket is left");
}

/// The keeper of the node: who has the lock of its run, beside the node.
#[track_caller]
fn keeper(sandbox: &Sandbox) -> Process {
    let run = std::fs::read_link(sandbox.run_dir().join("node")).expect("a run");
    let lock = sandbox.run_dir().join(run).join("lock");
    let holds = |process: &Process| {
        let open = std::fs::read_dir(format!("/proc/{}/fd", process.pid)).into_iter().flatten().flatten();
        let mut open = open.filter_map(|entry| std::fs::read_link(entry.path()).ok());
        process.name == "skiff-keeper" && open.any(|path| path == lock)
    };
    let found = wait_for(SOON, || Process::all().into_iter().filter(holds).min_by_key(|one| one.started));
    found.expect("a keeper")
}

/// The ids of all instances.
#[track_caller]
fn instances(node: &Node<'_>) -> BTreeSet<String> {
    let all = node.ask("GET", "/v1/instances", "").ok().json()["instances"].clone();
    let all = all.as_array().expect("a list").iter();
    all.filter_map(|one| Some(one["id"].as_str()?.to_owned())).collect()
}

#[test]
fn a_keeper_that_has_died_is_replaced() {
    let sandbox = Sandbox::new();
    let baseline = Baseline::take(&sandbox);
    let node = Node::start(&sandbox, &[]);
    let _ = deploy(&sandbox, "function", "", &["--provisioned", "2"]).ok();
    // One that is frozen, one that works.
    let two = || (node.info("demo")["instances"]["warm"] == 2).then_some(());
    assert!(wait_for(SOON, two).is_some(), "{}", node.info("demo"));
    let first = keeper(&sandbox);
    thread::scope(|scope| {
        let under_way = scope.spawn(|| node.get("demo", "/sleep/30000"));
        let runs = || (node.info("demo")["instances"]["running"] == 1).then_some(());
        assert!(wait_for(SOON, runs).is_some(), "{}", node.info("demo"));
        first.signal(Signal::KILL);
        let told = under_way.join().expect("answered");
        assert!(told.status == 502 && told.text().contains("Process exited unexpectedly"), "{}", told.text());
    });
    let works = || (node.get("demo", "/status/200").status == 200).then_some(());
    assert!(wait_for(SOON, works).is_some(), "{}", node.log());
    assert!(wait_for(SOON, two).is_some(), "{}", node.info("demo"));
    assert!(node.log().contains("another has taken its place"), "{}", node.log());
    let second = keeper(&sandbox);
    assert_ne!(second.pid, first.pid);
    // It keeps what the first one did: instances, and sockets for who calls while there is no node.
    let before = instances(&node);
    node.end(Signal::KILL);
    let mut waits =
        Connection::unix(&sandbox.run_dir().join("functions/demo.sock")).expect("somebody listens");
    waits.send_head("GET", "/status/201", &[]);
    let node = Node::start(&sandbox, &[]);
    assert_eq!(waits.read_head().status, 201);
    assert_eq!(instances(&node), before);
    let _ = sandbox.run(&["delete", "demo"]).ok();
    node.stop();
    baseline.assert_restored();
}

#[test]
fn a_node_may_be_told_to_leave_nothing() {
    let sandbox = Sandbox::new();
    let baseline = Baseline::take(&sandbox);
    let node = Node::start(&sandbox, &["--stop-instances"]);
    let _ = deploy(&sandbox, "function", "", &[]).ok();
    assert_eq!(node.get("demo", "/status/200").status, 200);
    assert_eq!(node.end(Signal::TERM), Some(0));
    assert!(!sandbox.run_dir().join("node").exists(), "its run goes on");
    let node = Node::start(&sandbox, &[]);
    let _ = sandbox.run(&["delete", "demo"]).ok();
    node.stop();
    baseline.assert_restored();
}

#[test]
fn an_image_that_is_deployed_is_never_collected() {
    let sandbox = Sandbox::new();
    let node = Node::start(&sandbox, &[]);
    let _ = deploy(&sandbox, "function", "", &[]).ok();
    node.stop();
    let _ = sandbox.run(&["gc", "--all"]).ok();
    let kept = sandbox.run(&["images", "--output", "json"]).ok().json();
    assert_eq!(kept["pinned_by"], json!(["function default/demo"]));
    let node = Node::start(&sandbox, &[]);
    let _ = sandbox.run(&["delete", "demo"]).ok();
    node.stop();
    let _ = sandbox.run(&["gc", "--all"]).ok();
    assert!(sandbox.run(&["images", "--output", "json"]).ok().stdout.is_empty());
}

#[test]
fn bad_deployments_are_told_whole() {
    let sandbox = Sandbox::new();
    let _ = deploy(&sandbox, "function", "", &[]).fails(2, &["no node listens", "skiff serve"]);
    let node = Node::start(&sandbox, &[]);
    let wrong = "memory = \"7MiB\"\ncolour = \"red\"";
    let _ = deploy(&sandbox, "function", wrong, &[]).fails(2, &["colour", "7"]);
    let _ = deploy(&sandbox, "function", "", &["--provisioned", "11"]).fails(2, &["provisioned 11"]);
    let _ = deploy(&sandbox, "function", "", &["--max-instances", "0"]).fails(2, &["max_instances 0"]);
    for (body, kind) in [
        ("", "invalid_function"),
        ("{}", "invalid_function"),
        (r#"{"file":"x","name":"y.toml","more":1}"#, "invalid_function"),
        (r#"{"file":"name = \"x\"","name":"y.toml"}"#, "invalid_function"),
        (r#"{"file":"image = \"x\"","name":"../../etc/passwd"}"#, "invalid_function"),
    ] {
        let answer = node.ask("POST", "/v1/functions", body);
        assert_eq!((answer.status, &answer.json()["error"]["kind"]), (400, &json!(kind)), "{body}");
    }
    assert_eq!(node.ask("PUT", "/v1/functions", "").status, 405);
    assert_eq!(node.ask("GET", "/v1/nothing", "").status, 404);
    assert_eq!(node.ask("GET", "/v1/functions/..%2F..%2Fx", "").status, 404);
    assert_eq!(node.ask("GET", "/openapi.json", "").json()["openapi"], "3.0.3");
    node.stop();
}

#[test]
fn functions_of_all_platforms_live_beside_each_other() {
    let sandbox = Sandbox::new();
    let node = Node::start(&sandbox, &[]);
    for platform in ["fc", "fc2", "scf"] {
        let namespace = if platform == "fc" { "" } else { "namespace = \"team\"" };
        let more = format!("platform = \"{platform}\"\n{namespace}");
        let text = format!("name = \"{platform}-demo\"\nimage = \"{}\"\n{more}\n", images::oci("function"));
        let file = sandbox.write(&format!("{platform}.toml"), text).display().to_string();
        let _ = sandbox.run(&["deploy", &file]).ok();
    }
    assert_eq!(node.invoke("fc-demo", &json!({ "k": 3 })).ok().json()["event"]["k"], 3);
    let two = "/2021-04-06/services/team/functions/fc2-demo/invocations";
    assert_eq!(node.ask("POST", two, r#"{"k":4}"#).ok().json()["event"]["k"], 4);
    assert_eq!(node.get("team.scf-demo", "/status/202").status, 202);
    let listed = node.ask("GET", "/v1/functions", "").json();
    assert_eq!(listed["functions"].as_array().map(Vec::len), Some(3));
    assert_eq!(node.ask("GET", "/v1/functions/scf-demo?namespace=team", "").status, 200);
    assert_eq!(node.ask("GET", "/v1/functions/scf-demo?namespace=other", "").status, 404);
    node.stop();
}

#[test]
fn events_are_told_as_they_happen() {
    let sandbox = Sandbox::new();
    let node = Node::start(&sandbox, &[]);
    let mut events = Connection::unix(&node.socket()).expect("it listens");
    events.send_head("GET", "/v1/events", &[]);
    assert_eq!(events.read_head().status, 200);
    let _ = deploy(&sandbox, "function", "", &[]).ok();
    let _ = sandbox.run(&["delete", "demo"]).ok();
    let mut text = String::new();
    while !text.contains("deleted") {
        text += &String::from_utf8_lossy(&events.read_part().expect("more"));
    }
    let names: Vec<String> = text
        .lines()
        .map(|line| {
            serde_json::from_str::<Value>(line).expect("JSON")["event"].as_str().expect("a name").to_owned()
        })
        .collect();
    assert_eq!(names, ["deploying", "deployed", "deleted"]);
    node.stop();
}
