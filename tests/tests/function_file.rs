//! `skiff run -f`: functions in files, in real containers.

use serde_json::{Value, json};
use skiff_tests::{Outcome, Sandbox, images};

/// Runs the function of a file with one event and gives its answer.
fn event(sandbox: &Sandbox, name: &str, text: &str, options: &[&str]) -> Outcome {
    let file = sandbox.write(name, text);
    let file = file.to_str().expect("utf-8").to_owned();
    sandbox.run(&[&["run", "--file", &file, "--event", r#"{"k":1}"#], options].concat())
}

#[track_caller]
fn answered(outcome: Outcome) -> Value {
    let outcome = outcome.ok();
    serde_json::from_str(&outcome.stdout()).unwrap_or_else(|error| panic!("{error}: {outcome:?}"))
}

#[test]
fn own_files_run() {
    let sandbox = Sandbox::new();
    let image = images::oci("function");
    let text =
        format!("image = {image:?}\nname = \"of-a-file\"\nregion = \"cn-beijing\"\nmemory = \"256MiB\"\n");
    let answer = answered(event(&sandbox, "function.toml", &text, &[]));
    assert_eq!(answer["event"], json!({ "k": 1 }));
    assert_eq!(answer["headers"]["x-fc-function-name"], "of-a-file");
    assert_eq!(answer["headers"]["x-fc-region"], "cn-beijing");
    // Options go before the file.
    let answer = answered(event(&sandbox, "function.toml", &text, &["--name", "of-an-option"]));
    assert_eq!(answer["headers"]["x-fc-function-name"], "of-an-option");
    assert_eq!(answer["headers"]["x-fc-region"], "cn-beijing");
    let json = json!({ "image": image, "platform": "scf", "name": "in-json" }).to_string();
    assert_eq!(answered(event(&sandbox, "function.json", &json, &[]))["headers"]["x-scf-name"], "in-json");
}

#[test]
fn files_of_serverless_devs_run() {
    let sandbox = Sandbox::new();
    let text = format!(
        "edition: 3.0.0\nname: demo\naccess: default\nresources:\n  app:\n    component: fc3\n    props:\n      \
         region: cn-shanghai\n      functionName: devs\n      runtime: custom-container\n      memorySize: 512\n      \
         description: said and ignored\n      customContainerConfig:\n        image: {}\n",
        images::oci("function")
    );
    let outcome = event(&sandbox, "s.yaml", &text, &[]);
    assert!(outcome.stderr.contains("app.props.description is ignored"), "{}", outcome.stderr);
    let answer = answered(outcome);
    assert_eq!(answer["headers"]["x-fc-function-name"], "devs");
    assert_eq!(answer["headers"]["x-fc-region"], "cn-shanghai");
}

#[test]
fn files_of_tencents_run() {
    let sandbox = Sandbox::new();
    let text = json!({
        "FunctionName": "tencent", "Runtime": "CustomImage", "MemorySize": 128, "Timeout": 5,
        "Code": { "ImageConfig": { "ImageType": "personal", "ImageUri": images::oci("function"), "ImagePort": 9000 } },
        "Role": "SCF_ExecuteRole",
    });
    let outcome = event(&sandbox, "scf.json", &text.to_string(), &[]);
    assert!(outcome.stderr.contains("Role is ignored"), "{}", outcome.stderr);
    assert_eq!(answered(outcome)["headers"]["x-scf-name"], "tencent");
    // A job image, which has no server.
    let mut job = text;
    job["Code"]["ImageConfig"]["ImagePort"] = json!(-1);
    job["Code"]["ImageConfig"]["Args"] = json!("job");
    let file = sandbox.write("job.json", job.to_string());
    let done = sandbox.run(&["run", "-f", file.to_str().expect("utf-8"), "--event", "[7]"]).ok();
    assert!(done.stderr.contains("SCF_CUSTOM_CONTAINER_EVENT has 3 bytes: [7]"), "{}", done.stderr);
}

#[test]
fn faults_are_told_all_at_once_for_people_and_programs() {
    let sandbox = Sandbox::new();
    let text = "image = \"oci:x\"\nmemorry = \"1GiB\"\ntimeout = \"2d\"\n[env]\nFC_KEY = \"s3cret-91bc\"\n";
    let told = event(&sandbox, "function.toml", text, &[]).expect_code(2);
    for line in [
        "line 2, column 1: memorry: no such key; is memory meant?",
        "line 3, column 11: timeout: \"2d\"",
        "line 5, column 1: variable \"FC_KEY\"",
    ] {
        assert!(told.stderr.contains(line), "{}", told.stderr);
    }
    assert!(!told.stderr.contains("91bc"), "{}", told.stderr);
    let told = event(&sandbox, "function.toml", text, &["--output", "json"]).expect_code(2);
    let error = told.json_events().iter().find_map(|event| event.get("error").cloned()).expect("an error");
    assert_eq!(
        (&error["kind"], error["faults"].as_array().map(Vec::len)),
        (&json!("invalid_function"), Some(3))
    );
}

#[test]
fn what_does_not_go_together_is_told() {
    let sandbox = Sandbox::new();
    let file = sandbox.write("function.toml", "platform = \"scf\"\n");
    let file = file.to_str().expect("utf-8");
    let none = sandbox.run(&["run", "-f", file, "--event", "{}"]).expect_code(2);
    assert!(none.stderr.contains("names no image"), "{}", none.stderr);
    let other =
        sandbox.run(&["run", "-f", file, "oci:x", "--platform", "fc", "--event", "{}"]).expect_code(2);
    assert!(other.stderr.contains("the function of the file is one of scf"), "{}", other.stderr);
    let missing = sandbox.run(&["run", "-f", "none.toml", "--event", "{}"]).expect_code(2);
    assert!(missing.stderr.contains("none.toml"), "{}", missing.stderr);
}
