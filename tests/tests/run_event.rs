//! From an image in a registry, a layout or an archive to the answer to one event.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;

use serde_json::{Value, json};
use skiff_tests::{Outcome, PASSWORD, Registry, Sandbox, USERNAME, images, must};

/// The event path of each platform.
const PLATFORMS: [(&str, &str); 2] = [("fc", "/invoke"), ("scf", "/event-invoke")];

#[track_caller]
fn assert_answer(outcome: Outcome, path: &str) -> Value {
    let answer = outcome.ok().json();
    assert_eq!(answer["path"], path, "{answer}");
    assert_eq!(answer["event"], json!({"k": 1}), "{answer}");
    answer
}

/// Runs an image of a registry with password over TLS, with the credentials in `prepare`.
#[track_caller]
fn with_credentials(prepare: impl FnOnce(&Sandbox, &Registry, &mut std::process::Command)) -> Outcome {
    let (sandbox, registry) = (Sandbox::new(), Registry::tls());
    let image = registry.image("function");
    let args = ["run", &image, "--ca-file", &registry.ca_file(), "--event", r#"{"k":1}"#];
    let mut command = sandbox.skiff(&args);
    prepare(&sandbox, &registry, &mut command);
    sandbox.finish(command)
}

fn base64(text: &str) -> String {
    must("sh", &["-c", "printf %s \"$1\" | base64 -w0", "sh", text])
}

fn credentials_file(sandbox: &Sandbox, password: &str, mode: u32) -> String {
    let content = json!({"username": USERNAME, "password": password}).to_string();
    let path = sandbox.write("credentials.json", content);
    fs::set_permissions(&path, Permissions::from_mode(mode)).expect("chmod");
    path.display().to_string()
}

#[test]
fn python_from_a_registry_over_tls_under_both_platforms() {
    let (sandbox, registry) = (Sandbox::with_shared_images(), Registry::tls());
    for (platform, path) in PLATFORMS {
        let image = registry.image("python");
        let args = ["run", &image, "--ca-file", &registry.ca_file(), "--platform", platform];
        let mut command = sandbox.skiff(&[&args[..], &["--event", r#"{"k":1}"#]].concat());
        command.env("SKIFF_REGISTRY_USERNAME", USERNAME).env("SKIFF_REGISTRY_PASSWORD", PASSWORD);
        let answer = assert_answer(sandbox.finish(command), path);
        assert_eq!(answer["server"], "python");
    }
}

#[test]
fn python_from_a_registry_over_http_under_both_platforms() {
    let (sandbox, registry) = (Sandbox::with_shared_images(), Registry::http());
    for (platform, path) in PLATFORMS {
        let outcome = sandbox.event(&registry.image("python"), &["--plain-http", "--platform", platform]);
        assert_eq!(assert_answer(outcome, path)["server"], "python");
    }
}

#[test]
fn node_from_a_registry_over_http_under_both_platforms() {
    let (sandbox, registry) = (Sandbox::with_shared_images(), Registry::http());
    for (platform, path) in PLATFORMS {
        let outcome = sandbox.event(&registry.image("node"), &["--plain-http", "--platform", platform]);
        assert_eq!(assert_answer(outcome, path)["server"], "node");
    }
}

#[test]
fn a_layout_needs_no_network() {
    let sandbox = Sandbox::new();
    for (platform, path) in PLATFORMS {
        let answer = assert_answer(sandbox.event(&images::oci("function"), &["--platform", platform]), path);
        let request_id = format!("x-{platform}-request-id");
        assert!(answer["headers"][&request_id].is_string(), "{answer}");
    }
}

#[test]
fn an_archive_of_docker_save_needs_no_network() {
    assert_answer(Sandbox::new().event(&images::docker_archive(), &[]), "/invoke");
}

#[test]
fn docker_schema_2_and_its_manifest_list() {
    let (sandbox, registry) = (Sandbox::new(), Registry::http());
    assert_answer(sandbox.event(&registry.image("docker"), &["--plain-http"]), "/invoke");
    let list = registry.image("docker").replace(":latest", ":list");
    assert_answer(sandbox.event(&list, &["--plain-http"]), "/invoke");
}

#[test]
fn an_index_gives_its_linux_amd64_image() {
    let (sandbox, registry) = (Sandbox::new(), Registry::http());
    assert_answer(sandbox.event(&registry.image("index"), &["--plain-http"]), "/invoke");
    assert_answer(sandbox.event(&images::oci("index"), &[]), "/invoke");
}

#[test]
fn an_image_by_digest() {
    let (sandbox, registry) = (Sandbox::new(), Registry::http());
    let image = format!("{}/skiff/function@{}", registry.address(), registry.digest("function").trim());
    assert_answer(sandbox.event(&image, &["--plain-http"]), "/invoke");
}

#[test]
fn a_cached_image_by_digest_needs_neither_credentials_nor_registry() {
    let (sandbox, registry) = (Sandbox::new(), Registry::tls());
    let image = format!("{}/skiff/function@{}", registry.address(), registry.digest("function").trim());
    let args = ["pull", &image, "--ca-file", &registry.ca_file()];
    let mut command = sandbox.skiff(&args);
    command.env("SKIFF_REGISTRY_USERNAME", USERNAME).env("SKIFF_REGISTRY_PASSWORD", PASSWORD);
    sandbox.finish(command).ok();
    drop(registry);
    assert_answer(sandbox.event(&image, &[]), "/invoke");
}

#[test]
fn credentials_from_a_file() {
    let outcome = with_credentials(|sandbox, _, command| {
        command.args(["--credentials-file", &credentials_file(sandbox, PASSWORD, 0o600)]);
    });
    assert_answer(outcome, "/invoke");
}

#[test]
fn credentials_from_the_environment() {
    let outcome = with_credentials(|_, _, command| {
        command.env("SKIFF_REGISTRY_USERNAME", USERNAME).env("SKIFF_REGISTRY_PASSWORD", PASSWORD);
    });
    assert_answer(outcome, "/invoke");
}

#[test]
fn credentials_from_dockers_configuration() {
    let outcome = with_credentials(|sandbox, registry, _| {
        let auth = base64(&format!("{USERNAME}:{PASSWORD}"));
        let config = json!({"auths": {registry.address(): {"auth": auth}}}).to_string();
        sandbox.write("docker/config.json", config);
    });
    assert_answer(outcome, "/invoke");
}

#[test]
fn credentials_from_a_helper_of_docker() {
    let outcome = with_credentials(|sandbox, registry, command| {
        let config = json!({"credHelpers": {registry.address(): "skifftest"}}).to_string();
        sandbox.write("docker/config.json", config);
        let answer = json!({"Username": USERNAME, "Secret": PASSWORD}).to_string();
        let helper = format!("#!/bin/sh\ncat >/dev/null\nprintf %s '{answer}'\n");
        let path = sandbox.write("bin/docker-credential-skifftest", helper);
        fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("chmod");
        let search = format!("{}:/usr/bin:/bin", sandbox.path().join("bin").display());
        command.env("PATH", search);
    });
    assert_answer(outcome, "/invoke");
}

#[test]
fn the_credentials_file_goes_before_the_environment_and_that_before_docker() {
    let wrong = |sandbox: &Sandbox, registry: &Registry| {
        let auth = base64(&format!("{USERNAME}:wrong"));
        let config = json!({"auths": {registry.address(): {"auth": auth}}}).to_string();
        sandbox.write("docker/config.json", config);
    };
    let outcome = with_credentials(|sandbox, registry, command| {
        wrong(sandbox, registry);
        command.env("SKIFF_REGISTRY_USERNAME", USERNAME).env("SKIFF_REGISTRY_PASSWORD", PASSWORD);
    });
    assert_answer(outcome, "/invoke");
    let outcome = with_credentials(|sandbox, registry, command| {
        wrong(sandbox, registry);
        command.env("SKIFF_REGISTRY_USERNAME", USERNAME).env("SKIFF_REGISTRY_PASSWORD", "wrong");
        command.args(["--credentials-file", &credentials_file(sandbox, PASSWORD, 0o600)]);
    });
    assert_answer(outcome, "/invoke");
}

#[test]
fn a_password_is_nowhere_afterwards() {
    let (sandbox, registry) = (Sandbox::new(), Registry::tls());
    let image = registry.image("function");
    let args = ["run", &image, "--ca-file", &registry.ca_file(), "--log-level", "trace", "--event", "{}"];
    let mut command = sandbox.skiff(&args);
    command.env("SKIFF_REGISTRY_USERNAME", USERNAME).env("SKIFF_REGISTRY_PASSWORD", PASSWORD);
    let outcome = sandbox.finish(command).ok();
    let coded = base64(&format!("{USERNAME}:{PASSWORD}"));
    for secret in [PASSWORD, &coded] {
        assert!(!outcome.stderr.contains(secret), "the log shows it: {}", outcome.stderr);
        let grep = ["-rlF", "--", secret, &sandbox.path().display().to_string()];
        let found = std::process::Command::new("grep").args(grep).output().expect("grep");
        assert!(found.stdout.is_empty(), "on disk: {}", String::from_utf8_lossy(&found.stdout));
    }
}

#[test]
fn an_event_from_standard_input_and_from_a_file() {
    let sandbox = Sandbox::new();
    let event = sandbox.write("event.json", r#"{"k":1}"#);
    let image = images::oci("function");
    let from_file = format!("@{}", event.display());
    assert_answer(sandbox.run(&["run", &image, "--event", &from_file]), "/invoke");
    let mut command = sandbox.skiff(&["run", &image, "--event", "-"]);
    command.stdin(Stdio::from(fs::File::open(event).expect("the event")));
    assert_answer(sandbox.finish(command), "/invoke");
}

#[test]
fn an_event_need_not_be_json_under_fc() {
    let sandbox = Sandbox::new();
    let answer = sandbox.run(&["run", &images::oci("function"), "--event", "plain text"]).ok().json();
    assert_eq!(answer["event"], "plain text");
}

#[test]
fn a_large_event_arrives_whole() {
    let sandbox = Sandbox::new();
    let text = "x".repeat(5 << 20);
    let event = sandbox.write("event.json", json!({"text": text}).to_string());
    for (platform, _) in PLATFORMS {
        let event = format!("@{}", event.display());
        let args = ["run", &images::oci("function"), "--platform", platform, "--event", &event];
        let answer = sandbox.run(&args).ok().json();
        assert!(answer["event"]["text"] == text.as_str(), "the event has changed");
    }
}

#[test]
fn the_body_alone_is_on_standard_output() {
    let sandbox = Sandbox::new();
    let outcome = sandbox.event(&images::oci("function"), &[]).ok();
    assert!(serde_json::from_slice::<Value>(&outcome.stdout).is_ok(), "{}", outcome.stdout());
    assert!(outcome.stderr.contains("FC Invoke Start RequestId: 1-"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("FC Invoke End RequestId: 1-"), "{}", outcome.stderr);
    let outcome = sandbox.event(&images::oci("function"), &["--platform", "scf"]).ok();
    for text in ["START RequestId:", "END RequestId:", "Report RequestId:", "Init Report RequestId: "] {
        assert!(outcome.stderr.contains(text), "{text} is not in {}", outcome.stderr);
    }
}

#[test]
fn a_function_error_is_told_by_the_exit_code_and_keeps_the_body() {
    let sandbox = Sandbox::new();
    let args = ["run", &images::oci("function"), "--event", r#"{"fail":true}"#];
    let outcome = sandbox.run(&args).expect_code(1);
    assert_eq!(outcome.json(), json!({"errorMessage": "the function says no"}));
}

#[test]
fn a_status_other_than_200_without_the_header_is_success_under_fc() {
    let sandbox = Sandbox::new();
    let args = ["run", &images::oci("function"), "--event", r#"{"status":400}"#];
    assert_eq!(sandbox.run(&args).ok().stdout(), "status 400\n");
}

#[test]
fn an_invocation_over_its_time_is_a_platform_error() {
    let sandbox = Sandbox::new();
    let event = r#"{"sleep_ms":20000}"#;
    for (platform, text) in
        [("fc", "Function timed out after 1 second"), ("scf", "Invoking task timed out after 1 seconds")]
    {
        let image = images::oci("function");
        let args = ["run", &image, "--platform", platform, "--timeout", "1s", "--event", event];
        let outcome = sandbox.run(&args).expect_code(3);
        let all = format!("{}{}", outcome.stdout(), outcome.stderr);
        assert!(all.contains(text), "{text} is not in {all}");
    }
}

#[test]
fn a_function_that_exits_instead_of_answering() {
    let sandbox = Sandbox::new();
    for (platform, text) in [
        ("fc", "Process exited unexpectedly before completing request"),
        ("scf", "User process exit when running"),
    ] {
        let image = images::oci("function");
        let outcome = sandbox.run(&["run", &image, "--platform", platform, "--event", r#"{"exit":3}"#]);
        assert_ne!(outcome.code(), 0);
        let all = format!("{}{}", outcome.stdout(), outcome.stderr);
        assert!(all.contains(text), "{text} is not in {all}");
    }
}

#[test]
fn the_output_of_the_function_is_shown_with_the_name_of_its_instance() {
    let sandbox = Sandbox::new();
    let args = ["run", &images::oci("function"), "--name", "talker", "--event", "{}", "--", "log", "4"];
    let outcome = sandbox.run(&args).ok();
    for number in 1..=4 {
        let end = format!("line {number} of 4");
        let line = outcome.stderr.lines().find(|line| line.ends_with(&end));
        let line = line.unwrap_or_else(|| panic!("{end} is not in {}", outcome.stderr));
        assert!(line.len() > end.len(), "no name before: {line}");
    }
}

#[test]
fn a_tag_that_has_moved_is_resolved_again() {
    let registry = Registry::spoilable();
    registry.retag("moving", "function");
    let (sandbox, image) = (Sandbox::new(), registry.image("moving"));
    let run = |when: &str| sandbox.event(&image, &["--plain-http", "--platform", "scf", "--pull", when]);
    let _ = run("always").ok();
    registry.retag("moving", "exits");
    let _ = run("missing").ok();
    let (status, _) = run("always").expect_code(3).platform_answer();
    assert_eq!(status, "405 (ContainerStateExited)", "the tag names another image now");
}
