//! What all functions of a node have together.

use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use skiff_tests::{Baseline, Node, Sandbox, wait_for};

const SOON: Duration = Duration::from_secs(60);

/// Instances of a function that take calls.
fn warm(node: &Node<'_>, name: &str) -> Value {
    node.info(name)["instances"]["warm"].clone()
}

fn metric(node: &Node<'_>, name: &str) -> String {
    let text = node.ask("GET", "/metrics", "").text();
    let line =
        text.lines().find(|line| line.starts_with(name) && line.as_bytes().get(name.len()) == Some(&b' '));
    line.unwrap_or_else(|| panic!("no {name} in {text}"))[name.len() + 1..].to_owned()
}

#[test]
fn idle_instances_give_way_and_those_that_work_do_not() {
    let sandbox = Sandbox::new();
    let baseline = Baseline::take(&sandbox);
    let node = Node::start(&sandbox, &["--max-instances", "2"]);
    for name in ["one", "two", "three"] {
        // The third deploy is proved by an instance that another makes room for.
        let _ = node.deploy(name, "function", "", &[]).ok();
    }
    let all = |node: &Node<'_>| ["one", "two", "three"].map(|name| warm(node, name));
    assert_eq!(all(&node), [json!(0), json!(1), json!(1)]);
    assert_eq!(metric(&node, "skiff_node_instances"), "2");
    assert_eq!(metric(&node, "skiff_node_instances_limit"), "2");
    // The oldest that works is passed over; the next caller has what the other had.
    thread::scope(|scope| {
        let slow = scope.spawn(|| node.get("two", "/sleep/2000"));
        let works = || (node.info("two")["instances"]["running"] == 1).then_some(());
        assert!(wait_for(SOON, works).is_some());
        assert_eq!(node.get("one", "/status/201").status, 201);
        assert_eq!(all(&node), [json!(1), json!(1), json!(0)]);
        assert_eq!(slow.join().expect("answered").status, 200);
    });
    // Both work: whoever comes waits for the first that ends.
    thread::scope(|scope| {
        let slow: Vec<_> =
            ["one", "two"].map(|name| scope.spawn(|| node.get(name, "/sleep/1500"))).into_iter().collect();
        let works = || {
            let running = |name| node.info(name)["instances"]["running"] == 1;
            (running("one") && running("two")).then_some(())
        };
        assert!(wait_for(SOON, works).is_some());
        assert_eq!(node.get("three", "/status/202").status, 202);
        assert!(slow.into_iter().all(|call| call.join().expect("answered").status == 200));
    });
    assert_eq!(metric(&node, "skiff_node_instances"), "2");
    assert_eq!(metric(&node, "skiff_instances_gave_way_total"), "3");
    for name in ["one", "two", "three"] {
        let _ = sandbox.run(&["delete", name]).ok();
    }
    node.stop();
    baseline.assert_restored();
}

#[test]
fn memory_is_bounded_by_what_functions_are_given() {
    let sandbox = Sandbox::new();
    let node = Node::start(&sandbox, &["--max-memory", "1GiB"]);
    let _ = node
        .deploy("large", "function", "memory = \"2GiB\"\ncpus = 1", &[])
        .fails(2, &["function large has 2048 MiB", "together 1024 MiB", "--max-memory"]);
    assert_eq!(node.ask("GET", "/v1/functions/large", "").status, 404);
    let _ = node.deploy("kept", "function", "memory = \"512MiB\"", &["--provisioned", "1"]).ok();
    let _ = node.deploy("small", "function", "memory = \"256MiB\"", &[]).ok();
    let _ = node.deploy("other", "function", "memory = \"512MiB\"", &[]).ok();
    assert_eq!([warm(&node, "kept"), warm(&node, "small"), warm(&node, "other")], [1, 0, 1]);
    let of = |mib: u64| (mib * 1024 * 1024).to_string();
    assert_eq!(metric(&node, "skiff_node_memory_bytes"), of(1024));
    assert_eq!(metric(&node, "skiff_node_memory_limit_bytes"), of(1024));
    // A function's own bound.
    let told = ["--max-memory", "256MiB"];
    let _ = node
        .deploy("other", "function", "memory = \"512MiB\"", &told)
        .fails(2, &["max_memory_mib 256", "512"]);
    let told = ["--max-memory", "512MiB", "--provisioned", "3"];
    let _ =
        node.deploy("small", "function", "memory = \"256MiB\"", &told).fails(2, &["provisioned 3", "(2)"]);
    let _ = node.deploy("small", "function", "memory = \"256MiB\"", &["--max-memory", "300MiB"]).ok();
    let answers: Vec<u16> = thread::scope(|scope| {
        let calls: Vec<_> = (0..2).map(|_| scope.spawn(|| node.get("small", "/sleep/300").status)).collect();
        calls.into_iter().map(|call| call.join().expect("answered")).collect()
    });
    assert_eq!((answers, warm(&node, "small")), (vec![200, 200], json!(1)));
    node.stop();
}

#[test]
fn idle_instances_go_when_the_host_is_short_of_memory() {
    let sandbox = Sandbox::new();
    // No host has as much.
    let node = Node::start(&sandbox, &["--memory-reserve", "1024GiB"]);
    let _ = node.deploy("kept", "function", "", &["--provisioned", "1"]).ok();
    let _ = node.deploy("demo", "function", "", &[]).ok();
    assert!(wait_for(SOON, || (warm(&node, "demo") == 0).then_some(())).is_some());
    assert_eq!(warm(&node, "kept"), 1);
    assert_eq!(node.get("demo", "/status/201").status, 201);
    node.stop();
}

#[test]
fn jobs_are_instances_too() {
    let sandbox = Sandbox::new();
    let node = Node::start(&sandbox, &["--max-instances", "1"]);
    let _ = node.deploy("demo", "function", "", &[]).ok();
    let job = "platform = \"fc2\"\nnamespace = \"team\"\nmode = \"job\"\ncommand = [\"job\"]";
    let _ = node.deploy("work", "function", job, &[]).ok();
    assert_eq!(warm(&node, "demo"), 1, "a job is taken as it is");
    let call = || node.ask("POST", "/2021-04-06/services/team/functions/work/invocations", "{}");
    assert_eq!((call().status, warm(&node, "demo")), (200, json!(0)));
    assert_eq!(node.get("demo", "/status/201").status, 201);
    // One that must wait has the place when it is free.
    thread::scope(|scope| {
        let slow = scope.spawn(|| node.get("demo", "/sleep/1500").status);
        assert!(wait_for(SOON, || (node.info("demo")["instances"]["running"] == 1).then_some(())).is_some());
        assert_eq!(call().status, 200);
        assert_eq!(slow.join().expect("answered"), 200);
    });
    assert_eq!(metric(&node, "skiff_node_instances"), "0");
    node.stop();
}

#[test]
fn instances_that_are_there_stay_under_a_smaller_limit() {
    let sandbox = Sandbox::new();
    let node = Node::start(&sandbox, &[]);
    for name in ["one", "two"] {
        let _ = node.deploy(name, "function", "", &[]).ok();
    }
    assert_eq!(node.end(rustix::process::Signal::TERM), Some(0));
    let node = Node::start(&sandbox, &["--max-instances", "1"]);
    let both = || (warm(&node, "one") == 1 && warm(&node, "two") == 1).then_some(());
    assert!(wait_for(SOON, both).is_some(), "{}", node.log());
    assert_eq!(node.get("one", "/status/201").status, 201);
    let _ = node.deploy("three", "function", "", &[]).ok();
    assert_eq!([warm(&node, "one"), warm(&node, "two"), warm(&node, "three")], [0, 0, 1]);
    node.stop();
}

#[test]
fn limits_that_are_none_are_refused() {
    let sandbox = Sandbox::new();
    let _ = sandbox.run(&["serve", "--max-instances", "0"]).fails(2, &["--max-instances", "0"]);
    let _ = sandbox.run(&["serve", "--max-memory", "512"]).fails(2, &["--max-memory", "the unit is missing"]);
    let _ = sandbox.run(&["serve", "--memory-reserve", "0MiB"]).fails(2, &["--memory-reserve", "1MiB"]);
}
