//! Calls of gRPC: PyPI's client, Skiff's sockets, and PyPI's server in a container.

use std::process::Command;

use serde_json::{Value, json};
use skiff_tests::{Sandbox, Served, images};

/// The cases by their names, as a client behind `target` has them.
#[track_caller]
fn called(sandbox: &Sandbox, target: &str, cases: &[&str]) -> Value {
    let python = images::target_dir().join("sdk/python/bin/python");
    assert!(python.exists(), "no {}: run scripts/sdks", python.display());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/sdk/grpc_call.py");
    let mut command: Command = sandbox.command(&python, &[&[script, target], cases].concat());
    command.env("GRPC_VERBOSITY", "NONE");
    sandbox.finish(command).ok().json()
}

fn serve(sandbox: &Sandbox, options: &[&str]) -> Served {
    sandbox.serve(&images::oci("grpc"), &[&["--name", "demo", "--start-timeout", "60s"], options].concat())
}

fn unix(served: &Served) -> String {
    format!("unix:{}", served.socket().display())
}

#[test]
fn calls_of_all_kinds_pass_both_ways_on_every_socket() {
    let sandbox = Sandbox::with_shared_images();
    let port =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port();
    let tcp = format!("127.0.0.1:{port}");
    let served = serve(&sandbox, &["--listen", &tcp, "--concurrency", "200"]);
    for target in [unix(&served), tcp] {
        let cases = ["echo", "large", "count", "join", "talk", "at_once", "fail", "unknown"];
        let outcomes = called(&sandbox, &target, &cases);
        let echo = &outcomes["echo"];
        assert_eq!(echo["answer"], "\u{0}\u{ff}hello");
        assert_eq!(
            (&echo["trailers"]["x-seen"], &echo["trailers"]["x-function"]),
            (&json!("1"), &json!("demo"))
        );
        let headers = echo["headers"].as_array().expect("headers");
        assert!(headers.contains(&json!("x-fc-request-id")), "{echo}");
        assert_eq!((&outcomes["large"], &outcomes["at_once"]), (&json!(true), &json!(true)), "{outcomes}");
        assert_eq!(outcomes["count"], json!(["0", "1", "2", "3", "4"]));
        assert_eq!(
            (&outcomes["join"], &outcomes["talk"]),
            (&json!("a,b,c"), &json!(["ONE", "TWO", "THREE"]))
        );
        assert_eq!(outcomes["fail"], json!({ "code": "FAILED_PRECONDITION", "details": "not now" }));
        assert_eq!(outcomes["unknown"]["code"], "UNIMPLEMENTED");
    }
    served.stop();
}

#[test]
fn calls_have_the_functions_time() {
    let sandbox = Sandbox::with_shared_images();
    let served = serve(&sandbox, &["--timeout", "2s", "--concurrency", "10"]);
    let outcomes = called(&sandbox, &unix(&served), &["hang", "begun", "echo"]);
    // One without a head gets the platform's 502, which gRPC takes for a server that is not there.
    assert_eq!(outcomes["hang"]["code"], "UNAVAILABLE", "{outcomes}");
    assert_eq!(outcomes["begun"]["came"], json!(["begun"]), "{outcomes}");
    assert_ne!(outcomes["begun"]["code"], "OK", "it has no trailers");
    assert_eq!(outcomes["echo"]["answer"], "\u{0}\u{ff}hello", "others go on");
    served.wait_for_stderr("Error: Function timed out after 2 seconds (maxMemoryUsage: ");
    served.stop();
}

#[test]
fn a_server_that_ends_in_a_call_is_told() {
    let sandbox = Sandbox::with_shared_images();
    let served = serve(&sandbox, &[]);
    let outcomes = called(&sandbox, &unix(&served), &["end"]);
    assert_eq!(outcomes["end"]["code"], "UNAVAILABLE", "{outcomes}");
    served.wait_for_stderr("Error: Process exited unexpectedly before completing request (duration: ");
    served.wait().fails(1, &["exit code 3"]);
}

#[test]
fn a_server_of_grpc_is_frozen_between_calls() {
    let sandbox = Sandbox::with_shared_images();
    let served = serve(&sandbox, &[]);
    for _ in 0..3 {
        let frozen =
            skiff_tests::wait_for(std::time::Duration::from_secs(20), || served.is_frozen().then_some(()));
        assert!(frozen.is_some(), "never frozen");
        assert_eq!(called(&sandbox, &unix(&served), &["join"])["join"], "a,b,c");
    }
    served.stop();
}
