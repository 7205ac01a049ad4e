//! The functions in `tests/samples`, under both platforms.

use skiff_tests::{Sandbox, images};

const PLATFORMS: [&str; 3] = ["fc", "fc2", "scf"];

fn event(language: &str) {
    let sandbox = Sandbox::with_shared_images();
    let image = images::oci(&format!("sample-{language}-event"));
    for platform in PLATFORMS {
        let event = r#"{"name": "Skiff"}"#;
        let outcome = sandbox.run(&["run", &image, "--platform", platform, "--event", event]).ok();
        assert_eq!(outcome.json()["greeting"], "Hello, Skiff!", "{platform}");
    }
}

fn web(language: &str) {
    let sandbox = Sandbox::with_shared_images();
    let image = images::oci(&format!("sample-{language}-web"));
    for platform in PLATFORMS {
        let served = sandbox.serve(&image, &["--platform", platform]);
        assert_eq!(served.get("/hello?name=Skiff").ok().text(), "Hello, Skiff!\n", "{platform}");
        assert_eq!(served.get("/hello").ok().text(), "Hello, World!\n");
        assert_eq!(served.get("/bye").status, 404);
        served.stop();
    }
}

/// fc 3.0 has no jobs.
fn job(language: &str) {
    let sandbox = Sandbox::with_shared_images();
    let image = images::oci(&format!("sample-{language}-job"));
    let run = |platform: &str, event: &str| {
        sandbox.run(&["run", &image, "--job", "--platform", platform, "--event", event])
    };
    for platform in ["fc2", "scf"] {
        let done = run(platform, r#"{"numbers": [1, 2, 39]}"#).ok();
        assert!(done.stderr.contains("the sum is 42"), "{platform}: {}", done.stderr);
        let failed = run(platform, r#"{"numbers": []}"#).expect_code(1);
        assert!(failed.stderr.contains("no numbers to add"), "{platform}: {}", failed.stderr);
    }
}

macro_rules! samples {
    ($($name:ident: $kind:ident in $language:literal;)*) => {
        $(
            #[test]
            fn $name() {
                $kind($language);
            }
        )*
    };
}

samples! {
    events_in_python: event in "python";
    events_in_node: event in "node";
    events_in_rust: event in "rust";
    requests_in_python: web in "python";
    requests_in_node: web in "node";
    requests_in_rust: web in "rust";
    jobs_in_python: job in "python";
    jobs_in_node: job in "node";
    jobs_in_rust: job in "rust";
}
