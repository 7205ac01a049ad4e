//! The commands around a run: what they print, in text and JSON, and how they exit.

use std::fs;

use std::time::Duration;

use serde_json::Value;
use skiff_tests::{Registry, Sandbox, images, wait_for};

#[test]
fn doctor_finds_this_host_fit_in_text_and_json() {
    let sandbox = Sandbox::new();
    let text = sandbox.run(&["doctor"]).ok().stdout();
    let json = sandbox.run(&["doctor", "--output", "json"]).ok().json();
    assert_eq!(json["ok"], true, "{json}");
    let checks = json["checks"].as_array().expect("checks");
    for name in [
        "root",
        "kernel",
        "cgroup",
        "overlay",
        "namespaces",
        "seccomp",
        "apparmor",
        "nftables",
        "loop",
        "quota",
        "writable",
        "keeper",
    ] {
        let check = checks.iter().find(|check| check["name"] == name);
        let check = check.unwrap_or_else(|| panic!("no {name} in {json}"));
        assert!(check["found"].as_str().is_some_and(|found| !found.is_empty()), "{check}");
        assert_eq!(check["status"] == "ok", check["advice"].is_null(), "{check}");
        assert!(text.lines().any(|line| line.contains(name)), "no {name} in {text}");
    }
}

#[test]
fn doctor_says_what_is_missing_and_what_to_do() {
    let sandbox = Sandbox::new();
    let outcome = sandbox.run(&["--keeper", "/no/such/keeper", "doctor"]).expect_code(3);
    assert!(outcome.stdout().contains("/no/such/keeper"), "{}", outcome.stdout());
    let json =
        sandbox.run(&["--keeper", "/no/such/keeper", "--output", "json", "doctor"]).expect_code(3).json();
    assert_eq!(json["ok"], false);
    let keeper =
        json["checks"].as_array().and_then(|checks| checks.iter().find(|check| check["name"] == "keeper"));
    let keeper = keeper.expect("a check");
    assert_eq!(keeper["status"], "fail");
    assert!(keeper["advice"].is_string(), "{keeper}");
}

#[test]
fn doctor_runs_without_root_and_says_so() {
    let sandbox = Sandbox::new();
    let skiff = sandbox.skiff(&[]);
    let mut command = sandbox.command("setpriv".as_ref(), &["--reuid=65534", "--clear-groups", "--"]);
    command.arg(skiff.get_program()).args(["--output", "json", "doctor"]).current_dir("/");
    let json = sandbox.finish(command).expect_code(3).json();
    let root =
        json["checks"].as_array().and_then(|checks| checks.iter().find(|check| check["name"] == "root"));
    assert_eq!(root.expect("a check")["status"], "fail");
}

#[test]
fn pull_fills_the_store_and_a_run_needs_no_more() {
    let (sandbox, registry) = (Sandbox::new(), Registry::http());
    let digest = registry.digest("function").trim().to_owned();
    let image = format!("{}/skiff/function@{digest}", registry.address());
    let line = sandbox.run(&["pull", "--plain-http", &image]).ok().stdout();
    assert!(line.contains(&digest) && line.contains("2 layers"), "{line}");
    let json = sandbox.run(&["pull", "--plain-http", "--output", "json", &image]).ok().json();
    assert_eq!(json["digest"], digest.as_str());
    assert_eq!(json["layers"], 2);
    assert!(json["packed_bytes"].as_u64().is_some_and(|bytes| bytes > 100_000), "{json}");
    drop(registry);
    let _ = sandbox.event(&image, &["--plain-http"]).ok();
}

#[test]
fn the_second_pull_of_a_tag_fetches_no_layer() {
    let (sandbox, registry) = (Sandbox::new(), Registry::http());
    let args = ["pull", "--plain-http", "--output", "json", &registry.image("layered")];
    let events = |outcome: &skiff_tests::Outcome, name: &str| {
        outcome.json_events().iter().filter(|event| event["event"] == name).count()
    };
    let first = sandbox.run(&args).ok();
    assert_eq!((events(&first, "layer_done"), events(&first, "layer_cached")), (3, 0), "{}", first.stderr);
    let second = sandbox.run(&args).ok();
    assert_eq!((events(&second, "layer_done"), events(&second, "layer_cached")), (0, 3), "{}", second.stderr);
}

#[test]
fn progress_and_timeline_are_lines_where_there_is_no_terminal() {
    let sandbox = Sandbox::new();
    let outcome = sandbox.event(&images::oci("layered"), &[]).ok();
    let timeline = outcome.stderr.lines().find(|line| line.contains("resolve") && line.contains("spawn"));
    let timeline = timeline.unwrap_or_else(|| panic!("no timeline in {}", outcome.stderr));
    for step in ["resolve", "pull", "unpack", "rootfs", "network", "spawn", "listen"] {
        assert!(timeline.contains(step), "no {step} in {timeline}");
    }
    assert!(!outcome.stderr.contains('\r') && !outcome.stderr.contains('\x1b'), "{:?}", outcome.stderr);
}

/// Runs `skiff` with a terminal for all its output.
fn on_a_terminal(sandbox: &Sandbox, args: &[&str], environment: &[(&str, &str)]) -> String {
    let skiff = sandbox.skiff(args);
    let words = std::iter::once(skiff.get_program()).chain(skiff.get_args());
    let line: Vec<String> = words.map(|word| format!("'{}'", word.to_string_lossy())).collect();
    let mut command = sandbox.command("script".as_ref(), &["-qec", &line.join(" "), "/dev/null"]);
    command.envs(skiff.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.env("TERM", "xterm").envs(environment.iter().copied());
    sandbox.finish(command).ok().stdout()
}

/// How often a colour is switched on.
fn colours(text: &str) -> usize {
    let sequences = text.split("\x1b[").skip(1);
    let is_colour = |rest: &&str| {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != ';');
        end.is_some_and(|end| rest[end..].starts_with('m') && rest[..end] != *"0")
    };
    sequences.filter(is_colour).count()
}

#[test]
fn a_terminal_gets_bars_and_colours() {
    let args = ["run", &images::oci("layered"), "--event", "{}"];
    let sandbox = Sandbox::new();
    let text = on_a_terminal(&sandbox, &args, &[]);
    assert!(text.contains("\x1b["), "no bar and no colour: {text:?}");
    assert!(text.contains("resolve") && text.contains("spawn"), "no timeline: {text:?}");
    assert_ne!(colours(&text), 0, "no colour: {text:?}");
    let plain = on_a_terminal(&sandbox, &args, &[("NO_COLOR", "1")]);
    assert_eq!(colours(&plain), 0, "colours in spite of NO_COLOR: {plain:?}");
    let quiet = on_a_terminal(&sandbox, &[&args[..], &["--quiet"]].concat(), &[]);
    assert!(!quiet.contains("spawn"), "{quiet:?}");
}

#[test]
fn quiet_leaves_the_functions_own_lines_and_errors() {
    let sandbox = Sandbox::new();
    let args = ["run", &images::oci("function"), "--quiet", "--event", "{}", "--", "log", "1"];
    let outcome = sandbox.run(&args).ok();
    assert!(!outcome.stderr.contains("resolve"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("line 1 of 1"), "{}", outcome.stderr);
    sandbox
        .run(&["run", "oci:/no/such/dir", "--quiet", "--event", "{}"])
        .fails(3, &["error: ", "/no/such/dir"]);
}

#[test]
fn json_everywhere() {
    let sandbox = Sandbox::new();
    let args = ["--output", "json", "run", &images::oci("function"), "--event", r#"{"k":1}"#];
    let outcome = sandbox.run(&args).ok();
    let answer = outcome.json();
    assert_eq!((&answer["event"], &answer["result"]), (&"answer".into(), &"success".into()));
    assert_eq!(answer["status"], 200);
    let body: Value = serde_json::from_str(answer["body"].as_str().expect("a body")).expect("JSON");
    assert_eq!(body["event"]["k"], 1);
    assert_eq!(outcome.json_events().len(), outcome.stderr.lines().count(), "not JSON: {}", outcome.stderr);
    let events = outcome.json_events();
    let timeline = events.iter().find(|event| event["event"] == "timeline").expect("a timeline");
    for step in ["resolve_ms", "pull_ms", "unpack_ms", "rootfs_ms", "network_ms", "spawn_ms", "listen_ms"] {
        assert!(timeline[step].is_number(), "{step}: {timeline}");
    }
    assert!(
        events.iter().any(|event| event["event"] == "log" && event["stream"] == "platform"),
        "{events:?}"
    );
}

#[test]
fn errors_as_json_name_kind_fault_and_advice() {
    let sandbox = Sandbox::new();
    for (args, kind, fault, code) in [
        (&["run", "oci:/no/such/dir", "--event", "{}"][..], "image_not_found", "caller", 3),
        (&["run", "team/UPPER", "--event", "{}"], "invalid_reference", "caller", 2),
        (&["run", &images::oci("index-arm"), "--event", "{}"], "no_matching_platform", "image", 3),
        (&["run"], "usage", "caller", 2),
    ] {
        let outcome = sandbox.run(&[&["--output", "json"], args].concat()).expect_code(code);
        let events = outcome.json_events();
        let error = events.iter().find_map(|event| event.get("error")).expect("an error");
        assert_eq!((error["kind"].as_str(), error["fault"].as_str()), (Some(kind), Some(fault)), "{error}");
        assert!(error["message"].is_string() && error["causes"].is_array(), "{error}");
        assert!(error["retryable"].is_boolean(), "{error}");
    }
}

#[test]
fn a_json_line_tells_where_it_listens() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&["--output", "json"]);
    let api = wait_for(Duration::from_secs(20), || served.stdout().lines().nth(1).map(str::to_owned));
    let api: Value = serde_json::from_str(&api.expect("a second line")).expect("JSON");
    assert_eq!(api["event"], "api_listening");
    let first = served.stdout().lines().next().map(str::to_owned);
    let line: Value = serde_json::from_str(&first.expect("a line")).expect("a line of JSON");
    assert_eq!(line["event"], "listening");
    assert_eq!(line["address"], format!("unix:{}", served.socket().display()));
    assert_eq!(served.get("/status/200").status, 200);
}

#[test]
fn options_may_come_from_the_environment() {
    let sandbox = Sandbox::new();
    let mut command = sandbox.skiff(&["run", &images::oci("function"), "--event", "{}"]);
    command.env("SKIFF_PLATFORM", "scf").env("SKIFF_OUTPUT", "json");
    let answer = sandbox.finish(command).ok().json();
    assert!(answer["body"].as_str().is_some_and(|body| body.contains("/event-invoke")), "{answer}");
    let state = sandbox.path().join("elsewhere");
    let mut command = sandbox.skiff(&["pull", &images::oci("function")]);
    command.env("SKIFF_STATE_DIR", &state);
    let _ = sandbox.finish(command).ok();
    assert!(state.is_dir());
}

#[test]
fn directories_are_private() {
    use std::os::unix::fs::PermissionsExt as _;
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&[]);
    for dir in [sandbox.state_dir(), &sandbox.run_dir()] {
        let mode = fs::metadata(dir).expect("a directory").permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{}", dir.display());
    }
    let mode = fs::metadata(served.socket()).expect("a socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn help_version_completions_and_manual_pages() {
    let sandbox = Sandbox::new();
    assert!(sandbox.run(&["--version"]).ok().stdout().starts_with("skiff "));
    for args in [&["--help"][..], &["run", "--help"], &["pull", "--help"], &["doctor", "--help"]] {
        let text = sandbox.run(args).ok().stdout();
        assert!(text.contains("Usage:") && text.contains("Exit codes:"), "{args:?}: {text}");
    }
    for shell in ["bash", "zsh", "fish"] {
        assert!(sandbox.run(&["completions", shell]).ok().stdout().contains("doctor"), "{shell}");
    }
    let man = sandbox.path().join("man");
    let _ = sandbox.run(&["man", &man.display().to_string()]).ok();
    let pages: Vec<_> = fs::read_dir(&man).expect("pages").flatten().map(|entry| entry.file_name()).collect();
    assert!(pages.iter().any(|page| page == "skiff-run.1"), "{pages:?}");
}

#[test]
fn wrong_usage_exits_with_2() {
    let sandbox = Sandbox::new();
    for args in [
        &[][..],
        &["rnu"],
        &["run"],
        &["pull"],
        &["run", "x", "--no-such-option"],
        &["pull", "x", "--event", "1"],
    ] {
        let outcome = sandbox.run(args).expect_code(2);
        assert!(!outcome.stderr.is_empty() && outcome.stdout.is_empty(), "{args:?}");
    }
}
