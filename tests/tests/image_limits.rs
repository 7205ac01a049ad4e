//! What a platform allows and advises of an image: refused before a layer is asked for, and warned of.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use skiff_tests::{Baseline, Registry, Sandbox, images};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A registry that has one manifest and nothing else. It ends with the process of its test.
struct OneManifest {
    address: String,
    /// The paths that were asked for.
    paths: Arc<Mutex<Vec<String>>>,
}

impl OneManifest {
    /// Of an image whose layers have these sizes.
    fn with_layers(sizes: &[u64]) -> Self {
        let descriptor = |media_type: &str, digit: usize, size: u64| {
            let digest = format!("sha256:{}", digit.to_string().repeat(64));
            json!({"mediaType": media_type, "digest": digest, "size": size})
        };
        let layer = "application/vnd.oci.image.layer.v1.tar+gzip";
        let layers: Vec<Value> =
            sizes.iter().enumerate().map(|(at, size)| descriptor(layer, at + 1, *size)).collect();
        let config = descriptor("application/vnd.oci.image.config.v1+json", 0, 100);
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers}).to_string();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let paths: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = Arc::clone(&paths);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                seen.lock().expect("a lock").push(answer(stream, &manifest));
            }
        });
        Self { address, paths }
    }

    fn image(&self) -> String {
        format!("{}/team/app:1", self.address)
    }

    /// The paths since the last call.
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.paths.lock().expect("a lock"))
    }
}

/// Answers one request and gives its path.
fn answer(mut stream: TcpStream, manifest: &str) -> String {
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    while !request.windows(4).any(|w| w == b"\r\n\r\n") {
        match stream.read(&mut buffer) {
            Ok(read) if read > 0 => request.extend_from_slice(&buffer[..read]),
            _ => return String::new(),
        }
    }
    let text = String::from_utf8_lossy(&request).into_owned();
    let path = text.split(' ').nth(1).unwrap_or_default().to_owned();
    let (status, body) =
        if path.contains("/manifests/") { ("200 OK", manifest) } else { ("404 Not Found", "{}") };
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    // Who does not want the answer has reasons of its own.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()));
    path
}

#[test]
fn an_image_over_the_platforms_size_is_refused_by_its_manifest() {
    for (platform, sizes, limit) in [
        ("scf", [600 * MIB, 424 * MIB + 1], GIB),
        ("fc", [6 * GIB, 4 * GIB + 1], 10 * GIB),
        ("fc2", [6 * GIB, 4 * GIB + 1], 10 * GIB),
    ] {
        let (sandbox, registry) = (Sandbox::new(), OneManifest::with_layers(&sizes));
        let baseline = Baseline::take(&sandbox);
        let args = ["run", &registry.image(), "--plain-http", "--platform", platform, "--event", "{}"];
        let outcome = sandbox.run(&args);
        let (value, limit) = ((limit + 1).to_string(), limit.to_string());
        let under = format!("under {platform}");
        let outcome = outcome.fails(3, &[&under, &value, &limit, "help: make the image smaller"]);
        assert_eq!(registry.asked(), ["/v2/team/app/manifests/1"], "{platform}");
        assert!(outcome.platform_answer().1.contains(&limit), "{}", outcome.stderr);
        baseline.assert_restored();
    }
}

#[test]
fn a_pull_has_the_limits_of_a_platform_only_if_it_names_one() {
    let (sandbox, registry) = (Sandbox::new(), OneManifest::with_layers(&[GIB, 1]));
    let image = registry.image();
    let args = ["--output", "json", "pull", "--plain-http", &image];
    let kind = |outcome: &skiff_tests::Outcome| {
        outcome.json_events().last().map(|event| event["error"]["kind"].clone()).unwrap_or_default()
    };
    // This registry has no configuration: that it is asked for it shows that the size was no matter.
    let own = sandbox.run(&args).expect_code(3);
    assert_eq!(kind(&own), "image_not_found", "{}", own.stderr);
    assert_eq!(registry.asked().len(), 2);
    let fc = sandbox.run(&[&args[..], &["--platform", "fc"]].concat()).expect_code(3);
    assert_eq!(kind(&fc), "image_not_found", "{}", fc.stderr);
    assert_eq!(registry.asked().len(), 2);
    let scf = sandbox.run(&[&args[..], &["--platform", "scf"]].concat()).expect_code(3);
    assert_eq!(kind(&scf), "limit_exceeded", "{}", scf.stderr);
    assert_eq!(registry.asked().len(), 1);
    let mut command = sandbox.skiff(&args);
    command.env("SKIFF_PLATFORM", "scf");
    assert_eq!(kind(&sandbox.finish(command).expect_code(3)), "limit_exceeded");
}

#[test]
fn an_index_with_build_provenance_is_treated_as_the_platform_does() {
    let (sandbox, registry) = (Sandbox::new(), Registry::http());
    let refused = ["invalid image, platform of image is unknown/unknown", "help:", "--provenance=false"];
    let digest = registry.digest("index-provenance").trim().to_owned();
    let by_digest = format!("{}/skiff/index-provenance@{digest}", registry.address());
    let pull =
        |image: &str, options: &[&str]| sandbox.run(&[&["pull", "--plain-http", image], options].concat());
    for platform in ["fc", "fc2"] {
        let under = format!("refused under {platform}");
        let texts = [&refused[..], &[&under]].concat();
        for image in [registry.image("index-provenance"), images::oci("index-provenance")] {
            let _ = sandbox.event(&image, &["--plain-http", "--platform", platform]).fails(3, &texts);
        }
        let _ = pull(&by_digest, &["--platform", platform]).fails(3, &refused);
    }
    let _ = sandbox.event(&images::oci("index-provenance"), &["--platform", "scf"]).ok();
    // Also when the image is there already, and no registry is asked.
    let _ = pull(&by_digest, &[]).ok();
    drop(registry);
    let _ = pull(&by_digest, &["--platform", "scf"]).ok();
    let _ = sandbox.event(&by_digest, &["--platform", "scf"]).ok();
    let _ = sandbox.event(&by_digest, &["--platform", "fc"]).fails(3, &refused);
}

#[test]
fn memory_below_what_scf_advises_is_a_warning() {
    let sandbox = Sandbox::new();
    let image = images::oci("function");
    let warned = |options: &[&str]| sandbox.event(&image, options).ok().stderr;
    let text = warned(&["--platform", "scf"]);
    assert!(text.contains("warning: the function has 128 MiB of memory"), "{text}");
    assert!(text.contains("scf advises 256 to 512 MiB") && text.contains("help: give it 256 MiB"), "{text}");
    let json = sandbox.event(&image, &["--platform", "scf", "--output", "json"]).ok().json_events();
    let warning = json.iter().find(|event| event["event"] == "warning").expect("a warning");
    assert_eq!(warning["kind"], "memory_below_advice");
    assert!(warning["message"].is_string() && warning["advice"].is_string(), "{warning}");
    for quiet in [
        &["--platform", "scf", "--memory", "256MiB"][..],
        &["--platform", "scf", "--quiet"],
        &["--platform", "fc", "--memory", "128MiB"],
    ] {
        let text = warned(quiet);
        assert!(!text.contains("warning"), "{quiet:?}: {text}");
    }
}
