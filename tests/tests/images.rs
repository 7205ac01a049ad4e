//! The commands about the images that are here.

use std::path::{Path, PathBuf};

use serde_json::Value;
use skiff_tests::{Sandbox, images, wait_for};

const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);

fn listed(sandbox: &Sandbox) -> Vec<Value> {
    let outcome = sandbox.run(&["images", "--output", "json"]).ok();
    outcome.stdout().lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect()
}

/// Links to the layers that are there.
fn layers(state: &Path) -> Vec<PathBuf> {
    let dir = std::fs::read_dir(state.join("layers/sha256")).expect("a directory");
    dir.map(|entry| entry.expect("an entry").path()).collect()
}

#[test]
fn images_are_listed_and_removed() {
    let sandbox = Sandbox::new();
    let (first, second) = (images::oci("function"), images::oci("user"));
    assert_eq!(listed(&sandbox), Vec::<Value>::new());
    sandbox.run(&["pull", &first, "--quiet"]).ok();
    let digest = sandbox.run(&["pull", &second, "--output", "json", "--quiet"]).ok().json()["digest"].clone();
    let digest = digest.as_str().expect("a digest").to_owned();
    let all = listed(&sandbox);
    assert_eq!(all.len(), 2);
    let image = all.iter().find(|image| image["digest"] == digest.as_str()).expect("listed");
    assert_eq!(image["names"], serde_json::json!([second]));
    assert_eq!(
        (&image["in_use"], &image["complete"], &image["layers"]),
        (&false.into(), &true.into(), &2.into())
    );
    assert!(image["shared_bytes"].as_u64() > Some(800_000), "{image}");

    let table = sandbox.run(&["images"]).ok().stdout();
    assert!(table.starts_with("NAME ") && table.lines().count() == 3, "{table}");
    assert!(
        table.contains(&digest[7..19]) && !table.contains(&digest) && table.contains("just now"),
        "{table}"
    );
    assert!(sandbox.run(&["image", "ls", "--digests"]).ok().stdout().contains(&digest));

    let outcome = sandbox.run(&["rmi", "nothing/here", &digest[7..15], "nor/there"]);
    let outcome = outcome.fails(3, &["no image nothing/here", "no image nor/there", "skiff images"]);
    assert!(outcome.stdout().contains(&format!("untagged {second}")), "{}", outcome.stdout());
    let outcome = sandbox.run(&["image", "rm", &first, "--output", "json"]).ok().json();
    assert_eq!((&outcome["removed"], outcome["layers"].as_array().map(Vec::len)), (&true.into(), Some(2)));
    assert!(listed(&sandbox).is_empty() && layers(sandbox.state_dir()).is_empty());
    sandbox.run(&["rmi"]).fails(2, &["IMAGE"]);
}

#[test]
fn an_image_that_an_instance_runs_from_stays() {
    let sandbox = Sandbox::new();
    let image = images::oci("function");
    let served = sandbox.serve(&image, &[]);
    assert_eq!(listed(&sandbox)[0]["in_use"], true);
    sandbox.run(&["rmi", &image]).fails(3, &["is in use: an instance runs from it", "stop its instances"]);
    let report = sandbox.run(&["gc", "--all", "--output", "json"]).ok().json();
    assert_eq!((&report["images"], &report["layers"]), (&serde_json::json!([]), &serde_json::json!([])));
    let error = sandbox.run(&["rmi", &image, "--output", "json"]).expect_code(3).json_events();
    assert_eq!(error[0]["error"]["kind"], "image_in_use");
    // No process of the container has the lease, which would outlive the keeper's rule.
    let init = served.init().pid;
    let open = std::fs::read_dir(format!("/proc/{init}/fd")).expect("descriptors");
    for target in open.flatten().filter_map(|fd| std::fs::read_link(fd.path()).ok()) {
        assert!(!target.starts_with(sandbox.state_dir()), "{}", target.display());
    }
    // The keeper has it.
    let keeper = served.keeper().pid;
    let open = std::fs::read_dir(format!("/proc/{keeper}/fd")).expect("descriptors");
    let leases = open.flatten().filter_map(|fd| std::fs::read_link(fd.path()).ok());
    assert_eq!(leases.filter(|to| to.starts_with(sandbox.state_dir().join("leases"))).count(), 1);
    served.stop().ok();
    wait_for(PATIENCE, || (listed(&sandbox)[0]["in_use"] == false).then_some(())).expect("free again");
    sandbox.run(&["rmi", &image]).ok();
}

#[test]
fn collecting_by_age_size_and_all() {
    let sandbox = Sandbox::new();
    sandbox.run(&["pull", &images::oci("function"), "--quiet"]).ok();
    sandbox.run(&["gc", "--older-than", "1h", "--max-size", "1GiB"]).ok();
    assert_eq!(listed(&sandbox).len(), 1);
    // What a crashed pull left.
    let left = sandbox.state_dir().join("ingest/sha256-left");
    std::fs::create_dir(&left).expect("mkdir");
    let dry = sandbox.run(&["gc", "--all", "--dry-run", "--output", "json"]).ok().json();
    assert_eq!((&dry["dry_run"], dry["images"].as_array().map(Vec::len)), (&true.into(), Some(1)));
    assert!(dry["leftovers"] == 1 && left.exists(), "it is told and stays: {dry}");
    assert_eq!(listed(&sandbox).len(), 1);
    let outcome = sandbox.run(&["gc", "--max-size", "0MiB"]).ok();
    assert!(outcome.stdout().contains("removed 1 images, 2 layers, 2 documents"), "{}", outcome.stdout());
    assert!(listed(&sandbox).is_empty());
    sandbox.run(&["gc", "--older-than", "7"]).fails(2, &["not a whole number of s, m, h, d or w"]);
    sandbox.run(&["gc", "--max-size", "20"]).fails(2, &["the unit is missing"]);
}

#[test]
fn an_imported_image_runs_under_its_name_without_a_registry() {
    let sandbox = Sandbox::new();
    let archive = sandbox.path().join("function.tar").display().to_string();
    skiff_tests::must(
        "skopeo",
        &["copy", "-q", &images::oci("function"), &format!("oci-archive:{archive}:v1")],
    );
    // Nothing listens there.
    let name = "127.0.0.1:1/team/function:1";
    let source = format!("oci-archive:{archive}:v1");
    let imported =
        sandbox.run(&["image", "import", &source, name, "--output", "json", "--quiet"]).ok().json();
    assert_eq!(imported["name"], name);
    assert_eq!(listed(&sandbox)[0]["names"], serde_json::json!([name]));
    for when in ["never", "missing"] {
        sandbox.event(name, &["--pull", when]).ok();
    }
    sandbox.event(name, &[]).fails(3, &["127.0.0.1:1"]);
    sandbox
        .event("127.0.0.1:1/team/other:1", &["--pull", "never"])
        .fails(3, &["pulling is off", "import it first"]);
    sandbox.event(name, &["--pull", "sometimes"]).fails(2, &["sometimes"]);
    // Archives are sources of `pull` and `run` too.
    sandbox.run(&["pull", &source]).ok();
    sandbox.event(&source, &[]).ok();
    // And an OCI layout can be imported like an archive.
    let second = "127.0.0.1:1/team/user:1";
    sandbox.run(&["image", "import", &images::oci("user"), second]).ok();
    sandbox.event(second, &["--pull", "never"]).ok();
    sandbox.run(&["image", "import", name]).fails(2, &["is in a registry"]);
    sandbox
        .run(&["image", "import", "oci-archive:/nonexistent"])
        .fails(3, &["there is no file /nonexistent"]);
    sandbox.run(&["image", "import", &source, "UPPER"]).fails(2, &["UPPER"]);
}

#[test]
fn a_damaged_layer_is_told_and_repaired() {
    let sandbox = Sandbox::new();
    let image = images::oci("function");
    sandbox.run(&["pull", &image, "--quiet"]).ok();
    let report = sandbox.run(&["image", "verify", "--output", "json"]).ok();
    assert_eq!((&report.json()["sound"], &report.json()["layers"]), (&true.into(), &2.into()));
    assert!(report.json_events().iter().any(|event| event["event"] == "verified" && event["of"] == 4));
    let layer = layers(sandbox.state_dir()).remove(0);
    std::fs::write(layer.join("fs/added"), "x").expect("a file");
    let outcome = sandbox.run(&["image", "verify", &image]).fails(3, &["1 damaged parts", "--repair"]);
    assert!(outcome.stdout().contains("damaged: layer sha256:"), "{}", outcome.stdout());
    let outcome = sandbox.run(&["image", "verify", "--repair"]).fails(3, &["1 incomplete", "pull"]);
    assert!(["(removed)", "incomplete: "].iter().all(|text| outcome.stdout().contains(text)));
    sandbox.run(&["pull", &image, "--quiet"]).ok();
    sandbox.run(&["image", "verify"]).ok();
    sandbox.run(&["image", "verify", "nothing/here"]).fails(3, &["no image nothing/here"]);
}
