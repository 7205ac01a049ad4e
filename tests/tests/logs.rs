//! The logs of a node's functions: kept in files, read again, bounded whatever a container writes.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use skiff_tests::http::Connection;
use skiff_tests::{Node, Sandbox, wait_for};

const SOON: Duration = Duration::from_secs(60);

/// More than a file holds, in a function that is called so often.
const SMALL: [&str; 4] = ["--log-size", "1MiB", "--log-files", "3"];

fn records(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

#[track_caller]
fn read(node: &Node<'_>, target: &str) -> Vec<Value> {
    records(&node.ask("GET", target, "").ok().text())
}

fn lines<'a>(records: &'a [Value], stream: &str) -> Vec<&'a str> {
    let of = records.iter().filter(|record| record["stream"] == stream);
    of.map(|record| record["line"].as_str().expect("a line")).collect()
}

fn dir(sandbox: &Sandbox, name: &str) -> PathBuf {
    sandbox.state_dir().join("logs/default").join(name)
}

fn sizes(dir: &Path) -> Vec<u64> {
    let entries = fs::read_dir(dir).expect("a directory");
    entries.map(|entry| entry.and_then(|entry| entry.metadata()).expect("an entry").len()).collect()
}

/// Calls `/log?line=…` of a function's own socket.
#[track_caller]
fn say(node: &Node<'_>, line: &str) -> String {
    let answer = node.pass("demo", "GET", &format!("/log?line={line}"), "").ok();
    answer.header("x-fc-request-id").expect("an id").to_owned()
}

#[test]
fn what_a_function_and_its_platform_wrote_can_be_read() {
    let sandbox = Sandbox::new();
    let node = Node::start(&sandbox, &[]);
    let _ = node.deploy("demo", "function", "", &[]).ok();
    let (first, second) = (say(&node, "one"), say(&node, "two"));
    let all = wait_for(SOON, || {
        let all = read(&node, "/v1/functions/demo/logs");
        // The record of a request is the last that is said of it.
        let record = |of: &Value| of["stream"] == "requests" && of["request_id"] == second.as_str();
        let both = lines(&all, "stdout").len() == 2 && lines(&all, "stderr").len() == 2;
        (both && all.iter().any(record)).then_some(all)
    });
    let all = all.expect("written");
    assert_eq!(lines(&all, "stdout"), ["one", "two"]);
    let start = format!("FC Invoke Start RequestId: {first}");
    assert!(lines(&all, "platform").contains(&start.as_str()), "{all:?}");
    let times: Vec<&str> = all.iter().map(|record| record["time"].as_str().expect("a time")).collect();
    assert!(times.iter().all(|time| time.len() == times[0].len() && time.ends_with('Z')), "{times:?}");
    let out = all.iter().find(|record| record["line"] == "one").expect("the line");
    assert_eq!((&out["revision"], &out["request_id"]), (&json!(1), &json!(first)));
    let instances = node.ask("GET", "/v1/functions/demo/logs", "").text();
    assert!(instances.contains(out["instance"].as_str().expect("an instance")));
    // By request, by time, and by the command.
    let of_second = read(&node, &format!("/v1/functions/demo/logs?request={second}"));
    assert_eq!(lines(&of_second, "stdout"), ["two"]);
    assert!(of_second.iter().all(|record| record["request_id"] == second.as_str()) && of_second.len() >= 4);
    assert!(read(&node, "/v1/functions/demo/logs?since=4000000000000").is_empty());
    let text = sandbox.run(&["logs", "demo", "--since", "1h"]).ok().stdout();
    assert!(text.contains(" | one\n") && text.contains(&start) && !text.contains('{'), "{text}");
    let told = sandbox.run(&["logs", "demo", "--request", &second, "--output", "json"]).ok().stdout();
    assert_eq!(records(&told), of_second);
    let none = sandbox.run(&["logs", "demo", "--since", "2099-01-01T00:00:00Z"]).ok();
    assert!(none.stdout.is_empty());
    let _ = sandbox.run(&["logs", "other"]).fails(2, &["there is no function other"]);
    assert_eq!(node.ask("GET", "/v1/functions/demo/logs?since=soon", "").status, 400);
    assert_eq!(node.ask("GET", "/v1/functions/demo/logs?namespace=x", "").status, 404);
    assert_eq!(node.ask("POST", "/v1/functions/demo/logs", "").status, 405);
    let mode = |path: PathBuf| fs::metadata(path).expect("there").permissions().mode() & 0o7777;
    let file = fs::read_dir(dir(&sandbox, "demo")).expect("listed").next().expect("one").expect("an entry");
    assert_eq!((mode(dir(&sandbox, "demo")), mode(file.path())), (0o700, 0o600));
    node.stop();
}

#[test]
fn a_log_outlasts_the_node_and_goes_with_its_function() {
    let sandbox = Sandbox::new();
    let node = Node::start(&sandbox, &[]);
    let _ = node.deploy("demo", "function", "", &[]).ok();
    say(&node, "one");
    node.stop();
    let node = Node::start(&sandbox, &[]);
    let _ = node.deploy("demo", "function", "", &[]).ok();
    say(&node, "two");
    let seen = wait_for(SOON, || {
        let all = read(&node, "/v1/functions/demo/logs");
        let revision = |record: &Value| record["revision"].as_u64();
        let of: Vec<(String, Option<u64>)> = all
            .iter()
            .filter(|record| record["stream"] == "stdout" && record["line"] != "SIGTERM: bye")
            .map(|record| (record["line"].as_str().unwrap_or_default().to_owned(), revision(record)))
            .collect();
        (of.len() == 2).then_some(of)
    });
    assert_eq!(seen, Some(vec![("one".to_owned(), Some(1)), ("two".to_owned(), Some(2))]));
    let mut following = sandbox.skiff(&["logs", "demo", "--follow"]);
    let mut follower = following.stdout(Stdio::null()).spawn().expect("skiff");
    let _ = sandbox.run(&["delete", "demo"]).ok();
    assert!(!dir(&sandbox, "demo").exists());
    let ended = wait_for(SOON, || follower.try_wait().expect("wait"));
    assert_eq!(ended.expect("a follower ends with its function").code(), Some(0));
    assert_eq!(node.ask("GET", "/v1/functions/demo/logs", "").status, 404);
    node.stop();
}

#[test]
fn the_log_of_a_first_deploy_that_failed_tells_why() {
    let sandbox = Sandbox::new();
    let node = Node::start(&sandbox, &[]);
    let _ = node.deploy("demo", "exits", "", &[]).fails(3, &["see what it wrote last"]);
    let text = sandbox.run(&["logs", "demo"]).ok().stdout();
    assert!(text.contains(" | "), "{text}");
    node.stop();
}

#[test]
fn who_follows_sees_every_line_over_rotations() {
    let sandbox = Sandbox::new();
    let node = Node::start(&sandbox, &SMALL);
    let _ = node.deploy("demo", "function", "", &[]).ok();
    let mut follower = node.connection();
    follower.send_head("GET", "/v1/functions/demo/logs?follow=true", &[]);
    let head = follower.read_head();
    assert_eq!((head.status, head.header("content-type")), (200, Some("application/x-ndjson")));
    let padding = "x".repeat(3_500);
    let count = 500;
    let seen = thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let (mut rest, mut seen) = (String::new(), Vec::new());
            while seen.len() < count {
                rest += &String::from_utf8(follower.read_part().expect("more")).expect("UTF-8");
                let whole = rest.rfind('\n').map_or(0, |end| end + 1);
                seen.extend(
                    records(&rest[..whole]).iter().filter(|record| record["stream"] == "stdout").map(
                        |record| {
                            record["line"].as_str().and_then(|line| line.split('-').next()).map(str::to_owned)
                        },
                    ),
                );
                rest.drain(..whole);
            }
            seen
        });
        let mut connection = node.own("demo");
        for number in 0..count {
            let target = format!("/log?line={number}-{padding}");
            assert_eq!(connection.request("GET", &target, &[], b"").status, 200);
        }
        reader.join().expect("all seen")
    });
    assert_eq!(seen, (0..count).map(|number| Some(number.to_string())).collect::<Vec<_>>());
    // That was over 3 MiB (each line came twice): there have been rotations.
    let sizes = sizes(&dir(&sandbox, "demo"));
    assert!(sizes.len() == 3 && sizes.iter().all(|size| *size <= 1 << 20), "{sizes:?}");
    node.stop();
}

#[test]
fn planted_links_lead_nowhere() {
    let sandbox = Sandbox::new();
    let elsewhere = sandbox.path().join("elsewhere");
    fs::create_dir_all(&elsewhere).expect("made");
    fs::create_dir_all(sandbox.state_dir().join("logs/default")).expect("made");
    symlink(&elsewhere, dir(&sandbox, "demo")).expect("a link");
    let node = Node::start(&sandbox, &[]);
    let _ = node.deploy("demo", "function", "", &[]).ok();
    say(&node, "one");
    say(&node, "two");
    let told = wait_for(SOON, || node.log().contains("log lines are lost").then_some(()));
    assert!(told.is_some(), "{}", node.log());
    assert_eq!(fs::read_dir(&elsewhere).expect("listed").count(), 0);
    let _ = sandbox.run(&["delete", "demo"]).ok();
    assert!(dir(&sandbox, "demo").symlink_metadata().expect("stays").is_symlink() && elsewhere.exists());
    node.stop();
}

#[test]
fn a_container_that_floods_costs_bounded_memory_and_disk_and_stalls_nobody() {
    let sandbox = Sandbox::new();
    let node = Node::start(&sandbox, &SMALL);
    let _ = node.deploy("flood", "python", "memory = \"512MiB\"\nconcurrency = 10", &[]).ok();
    let _ = node.deploy("demo", "function", "", &[]).ok();
    let python = |code: &str| node.pass("flood", "POST", "/python", code).ok().json();
    // One stream has short lines, the other never ends its line.
    let began = python(concat!(
        "import os, threading, builtins\n",
        "builtins.written = [0, 0, 0]\n",
        "def flood(stream, text):\n",
        "    while True:\n",
        "        builtins.written[stream] += os.write(stream, text)\n",
        "for stream, text in ((1, b'0123456789\\n' * 6000), (2, b'y' * 65536)):\n",
        "    threading.Thread(target=flood, args=(stream, text), daemon=True).start()\n",
    ));
    assert_eq!(began["error"], Value::Null);
    let mut least = 0;
    let written = wait_for(Duration::from_secs(120), || {
        // Both go on being answered.
        assert_eq!(node.invoke("demo", &json!({ "k": 1 })).ok().json()["event"]["k"], 1);
        let told = python("import builtins\nprint(min(builtins.written[1:]))")["stdout"].clone();
        least = told.as_str().and_then(|text| text.trim().parse().ok()).expect("a number");
        (least > 48 << 20).then_some(())
    });
    assert!(written.is_some(), "{least} bytes of each stream");
    let sizes = sizes(&dir(&sandbox, "flood"));
    assert!(sizes.len() <= 4 && sizes.iter().sum::<u64>() <= 3 << 20, "{sizes:?}");
    let status = fs::read_to_string(format!("/proc/{}/status", node.pid())).expect("its status");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().expect("a number");
    assert!(peak < 160 * 1024, "{peak} KiB");
    let kept = read(&node, "/v1/functions/flood/logs");
    let of = |stream| kept.iter().filter(|record| record["stream"] == stream).count();
    assert!(of("stdout") > 0 && of("stderr") > 0, "{} lines", kept.len());
    let lengths: BTreeSet<usize> = lines(&kept, "stderr").iter().map(|line| line.len()).collect();
    assert!(lengths.iter().all(|length| *length <= 32 * 1024), "{lengths:?}");
    let _ = sandbox.run(&["delete", "flood"]).ok();
    assert!(!dir(&sandbox, "flood").exists());
    node.stop();
}

#[test]
fn no_line_is_lost_over_restarts_and_kills_of_the_node() {
    let sandbox = Sandbox::new();
    let mut node = Node::start(&sandbox, &["--log-size", "64MiB"]);
    let _ = node.deploy("demo", "python", "memory = \"512MiB\"\nfreeze = false", &[]).ok();
    let python = |node: &Node<'_>, code: &str| {
        let answer = node.pass("demo", "POST", "/python", code).ok().json();
        assert_eq!(answer["error"], Value::Null);
        answer["stdout"].as_str().expect("text").trim().to_owned()
    };
    python(
        &node,
        concat!(
            "import os, threading, time, builtins\n",
            "builtins.said, builtins.more = 0, True\n",
            "def say():\n",
            "    while builtins.more:\n",
            "        os.write(1, b'number %d\\n' % builtins.said)\n",
            "        builtins.said += 1\n",
            "        if builtins.said % 20 == 0: time.sleep(0.01)\n",
            "builtins.thread = threading.Thread(target=say, daemon=True)\n",
            "builtins.thread.start()\n",
        ),
    );
    for signal in [Signal::KILL, Signal::TERM, Signal::KILL] {
        thread::sleep(Duration::from_millis(500));
        node.end(signal);
        thread::sleep(Duration::from_millis(500));
        node = Node::start(&sandbox, &["--log-size", "64MiB"]);
        let pid = python(&node, "import os\nprint(os.getpid())");
        assert_eq!(pid, "1", "it is the same instance, or there is nothing to see");
    }
    let said =
        python(&node, "import builtins\nbuiltins.more = False\nbuiltins.thread.join()\nprint(builtins.said)");
    let said: u64 = said.parse().expect("a number");
    let numbers = || -> Vec<u64> {
        let all = read(&node, "/v1/functions/demo/logs");
        let of = |line: &&str| line.strip_prefix("number ").and_then(|number| number.parse().ok());
        lines(&all, "stdout").iter().filter_map(of).collect()
    };
    let seen = wait_for(SOON, || Some(numbers()).filter(|seen| seen.last() == Some(&(said - 1))));
    let seen = seen.expect("the last line");
    let missing: Vec<u64> = {
        let all: BTreeSet<u64> = seen.iter().copied().collect();
        (0..said).filter(|number| !all.contains(number)).collect()
    };
    assert!(missing.is_empty() && said > 1000, "of {said}: {missing:?}");
    node.stop();
}

#[test]
fn logs_go_to_the_standard_output_if_that_is_asked_for() {
    let sandbox = Sandbox::new();
    let node = Node::start(&sandbox, &["--log-to", "stdout"]);
    let _ = node.deploy("demo", "function", "", &[]).ok();
    let id = say(&node, "one");
    let found = wait_for(SOON, || {
        let out = node.stdout();
        let mut lines = out.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.find(|line| line["line"] == "one")
    });
    let found = found.expect("written");
    assert_eq!(
        (&found["namespace"], &found["function"], &found["request_id"]),
        (&json!("default"), &json!("demo"), &json!(id))
    );
    let _ = sandbox.run(&["logs", "demo"]).fails(2, &["keeps no logs", "--log-to files"]);
    assert!(!sandbox.state_dir().join("logs").exists());
    node.stop();
    let node = Node::start(&sandbox, &["--log-to", "journal"]);
    say(&node, "two");
    let written = wait_for(SOON, || {
        let out = node.stdout();
        let line = out.lines().find(|line| line.ends_with(" | two"))?;
        Some(line.starts_with("<6>default/demo c-"))
    });
    assert_eq!(written, Some(true), "{}", node.stdout());
    node.stop();
}

#[test]
fn a_follower_does_not_hold_up_the_end_of_the_node() {
    let sandbox = Sandbox::new();
    let node = Node::start(&sandbox, &[]);
    let _ = node.deploy("demo", "function", "", &[]).ok();
    let open = |target: &str| {
        let mut connection: Connection = node.connection();
        connection.send_head("GET", target, &[]);
        assert_eq!(connection.read_head().status, 200);
        connection
    };
    let mut followers = [open("/v1/events"), open("/v1/functions/demo/logs?follow=true")];
    assert_eq!(node.end(Signal::INT), Some(0));
    for follower in &mut followers {
        // To the end, which is a proper one.
        while follower.read_part().is_some() {}
    }
}
