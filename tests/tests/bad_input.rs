//! Everything that can be wrong from outside: each case has a message that names the thing, an exit
//! code, and leaves nothing behind.

use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::process::Command;

use serde_json::json;
use skiff_tests::{Baseline, Outcome, PASSWORD, Registry, Sandbox, USERNAME, images};

/// Runs a command that must fail with this code and these texts, say what to do, and leave nothing.
#[track_caller]
fn refused_command(sandbox: &Sandbox, command: Command, code: i32, texts: &[&str]) -> Outcome {
    let baseline = Baseline::take(sandbox);
    let outcome = sandbox.finish(command).fails(code, texts);
    assert!(
        outcome.stderr.starts_with("error: ") || outcome.stderr.contains("\nerror: "),
        "{}",
        outcome.stderr
    );
    assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
    assert!(outcome.stdout.is_empty(), "{}", outcome.stdout());
    baseline.assert_restored();
    outcome
}

/// Runs an image with the event `{"k":1}`, that must fail.
#[track_caller]
fn refused(image: &str, options: &[&str], code: i32, texts: &[&str]) -> Outcome {
    let sandbox = Sandbox::new();
    let command = sandbox.skiff(&[&["run", image, "--event", r#"{"k":1}"#], options].concat());
    refused_command(&sandbox, command, code, texts)
}

#[test]
fn a_reference_that_is_none() {
    for image in ["team/UPPER:1", "a b", "name@sha256:12", "oci:", "docker-archive:", ""] {
        refused(image, &[], 2, &[image]);
    }
}

#[test]
fn an_unknown_host() {
    let outcome = refused("registry.invalid/team/app:1", &[], 3, &["registry.invalid"]);
    assert!(outcome.stderr.contains("help:"), "{}", outcome.stderr);
}

#[test]
fn a_refused_connection() {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port();
    let image = format!("127.0.0.1:{port}/team/app:1");
    refused(&image, &["--plain-http"], 3, &[&format!("127.0.0.1:{port}"), "refused", "help:"]);
}

#[test]
fn a_registry_that_does_not_speak_tls() {
    let registry = Registry::http();
    refused(&registry.image("function"), &[], 3, &[&registry.address(), "help:"]);
}

#[test]
fn an_authority_that_is_not_trusted() {
    let registry = Registry::tls();
    let outcome = refused(&registry.image("function"), &[], 3, &[&registry.address(), "CA file"]);
    assert!(outcome.stderr.to_lowercase().contains("certificate"), "{}", outcome.stderr);
}

#[test]
fn an_authority_file_that_is_missing_or_none() {
    let sandbox = Sandbox::new();
    let registry = Registry::tls();
    let text = sandbox.write("no.pem", "not a certificate").display().to_string();
    for file in ["/no/such/ca.pem", &text] {
        let args = ["run", &registry.image("function"), "--ca-file", file, "--event", "{}"];
        let outcome = sandbox.run(&args);
        assert!([2, 3].contains(&outcome.code()), "{outcome:?}");
        assert!(outcome.stderr.contains(file), "{}", outcome.stderr);
    }
}

#[test]
fn no_credentials_and_wrong_ones() {
    let registry = Registry::tls();
    let sandbox = Sandbox::new();
    let image = registry.image("function");
    let ca_file = registry.ca_file();
    let args = ["run", &image, "--ca-file", &ca_file, "--event", "{}"];
    let none = refused_command(&sandbox, sandbox.skiff(&args), 3, &[&registry.address(), "help:"]);
    assert!(none.stderr.contains("401") || none.stderr.contains("credentials"), "{}", none.stderr);
    let mut command = sandbox.skiff(&args);
    command.env("SKIFF_REGISTRY_USERNAME", USERNAME).env("SKIFF_REGISTRY_PASSWORD", "wrong-5e3b");
    let wrong = refused_command(&sandbox, command, 3, &[&registry.address(), "help:"]);
    assert!(wrong.stderr.contains("401") || wrong.stderr.contains("refused"), "{}", wrong.stderr);
    assert!(!wrong.stderr.contains("wrong-5e3b"), "the password is shown: {}", wrong.stderr);
}

#[test]
fn half_of_a_pair_of_credentials() {
    let sandbox = Sandbox::new();
    let mut command = sandbox.skiff(&["run", "127.0.0.1:1/a:1", "--event", "{}"]);
    command.env("SKIFF_REGISTRY_PASSWORD", PASSWORD);
    let outcome = refused_command(&sandbox, command, 2, &["SKIFF_REGISTRY_USERNAME"]);
    assert!(!outcome.stderr.contains(PASSWORD), "{}", outcome.stderr);
}

#[test]
fn credential_files_that_cannot_be_used() {
    use std::os::unix::fs::PermissionsExt as _;
    let sandbox = Sandbox::new();
    let registry = Registry::tls();
    let expired = json!({"username": USERNAME, "password": PASSWORD, "expiry": "2020-01-01T00:00:00Z"});
    let half = json!({"username": USERNAME});
    for (name, content, mode, text) in [
        ("expired.json", expired.to_string(), 0o600, "expired"),
        ("half.json", half.to_string(), 0o600, "password"),
        ("broken.json", format!("{{{PASSWORD}"), 0o600, "broken.json"),
        ("open.json", json!({"username": USERNAME, "password": PASSWORD}).to_string(), 0o644, "open.json"),
    ] {
        let file = sandbox.write(name, content);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).expect("chmod");
        let file = file.display().to_string();
        let (image, ca_file) = (registry.image("function"), registry.ca_file());
        let args = ["run", &image, "--ca-file", &ca_file, "--credentials-file", &file, "--event", "{}"];
        let outcome = refused_command(&sandbox, sandbox.skiff(&args), 2, &[text]);
        assert!(!outcome.stderr.contains(PASSWORD), "{}", outcome.stderr);
    }
}

#[test]
fn a_missing_repository_tag_or_digest() {
    let registry = Registry::http();
    let address = registry.address();
    let zeros = format!("{address}/skiff/function@sha256:{}", "0".repeat(64));
    for image in [format!("{address}/no/such:1"), format!("{address}/skiff/function:no-such-tag"), zeros] {
        refused(&image, &["--plain-http"], 3, &[&image, "help:"]);
    }
}

#[test]
fn a_layout_or_archive_that_is_missing() {
    refused("oci:/no/such/dir:tag", &[], 3, &["/no/such/dir"]);
    refused("docker-archive:/no/such/file.tar", &[], 3, &["/no/such/file.tar"]);
    refused(&images::oci("no-such-tag"), &[], 3, &["no-such-tag"]);
    let sandbox = Sandbox::new();
    let file = sandbox.write("text.tar", "this is no archive at all").display().to_string();
    refused(&format!("docker-archive:{file}"), &[], 3, &[&file]);
}

#[test]
fn bytes_that_do_not_match_their_digest() {
    let registry = Registry::spoilable();
    let manifest = registry.manifest("function");
    let layer = manifest["layers"][0]["digest"].as_str().expect("a digest").to_owned();
    let config = manifest["config"]["digest"].as_str().expect("a digest").to_owned();
    for digest in [layer, config, registry.digest("function")] {
        let registry = Registry::spoilable();
        registry.spoil(&digest, |bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        });
        let outcome = refused(&registry.image("function"), &["--plain-http"], 3, &[]);
        let told = ["digest", "corrupt", "manifest"].iter().any(|word| outcome.stderr.contains(word));
        assert!(told, "{}", outcome.stderr);
    }
}

#[test]
fn a_truncated_layer() {
    let registry = Registry::spoilable();
    let manifest = registry.manifest("function");
    let layer = manifest["layers"][0]["digest"].as_str().expect("a digest");
    registry.spoil(layer, |bytes| bytes.truncate(bytes.len() / 2));
    refused(&registry.image("function"), &["--plain-http"], 3, &[&layer[..19]]);
}

#[test]
fn media_types_that_are_no_image() {
    let registry = Registry::http();
    let texts = ["application/vnd.cncf.helm"];
    refused(&registry.image("chart"), &["--plain-http"], 3, &texts);
    refused(&images::oci("chart"), &[], 3, &texts);
}

#[test]
fn no_image_for_linux_amd64() {
    let registry = Registry::http();
    let outcome =
        refused(&registry.image("index-arm"), &["--plain-http"], 3, &["linux/arm64", "linux/amd64"]);
    assert!(outcome.stderr.replace("linux/arm64", "").contains("linux/arm"), "{}", outcome.stderr);
    refused(&images::oci("index-arm"), &[], 3, &["linux/arm64"]);
    refused(&images::oci("arm64"), &[], 3, &["arm64"]);
    let scf = ["--platform", "scf"];
    refused(&images::oci("index-attestations"), &scf, 3, &["only attestations", "--provenance=false"]);
}

#[test]
fn commands_users_and_directories_that_cannot_be() {
    for (image, options, texts) in [
        ("no-command", &[][..], &["help:"][..]),
        ("no-such-entrypoint", &[], &["/no/such/file"]),
        ("not-executable", &[], &["/data.txt"]),
        ("unknown-user", &[], &["nosuchuser"]),
        ("workdir-file", &[], &["/data.txt"]),
        ("function", &["--user", "nobody-here"], &["nobody-here"]),
        ("function", &["--user", "0:no-group"], &["no-group"]),
        ("function", &["--workdir", "/function/inside"], &["/function"]),
        ("function", &["--entrypoint", "missing-program"], &["missing-program"]),
        ("function", &["--entrypoint", "/"], &["/"]),
    ] {
        refused(&images::oci(image), options, 3, texts);
    }
}

#[test]
fn options_out_of_their_bounds_are_all_told_together() {
    let image = images::oci("function");
    let options = ["--memory", "100MiB", "--env", "FC_X=1", "--start-timeout", "400s", "--name", "a b"];
    refused(&image, &options, 2, &["100", "FC_X", "400", "a b"]);
    refused(&image, &["--timeout", "100000s"], 2, &["100000s"]);
    refused(&image, &["--memory", "12 parsecs"], 2, &["12 parsecs"]);
    refused(&image, &["--port", "99999"], 2, &["99999"]);
    refused(&image, &["--platform", "lambda"], 2, &["lambda"]);
    refused(&image, &["--workdir", "relative"], 2, &["relative"]);
    refused(&image, &["--env", &format!("BIG={}", "x".repeat(5000))], 2, &["4096"]);
    refused(&image, &["--env-file", "/no/such/env"], 2, &["/no/such/env"]);
    let sandbox = Sandbox::new();
    let command = sandbox.skiff(&["run", &image, "--event", "@/no/such/event"]);
    refused_command(&sandbox, command, 2, &["/no/such/event"]);
}

#[test]
fn a_port_or_socket_that_is_in_use() {
    let image = images::oci("function");
    let sandbox = Sandbox::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let command = sandbox.skiff(&["run", &image, "--listen", &address]);
    refused_command(&sandbox, command, 3, &[&address, "help:"]);

    let path = sandbox.path().join("live.sock");
    let _live = UnixListener::bind(&path).expect("bind");
    let path = path.display().to_string();
    refused_command(&sandbox, sandbox.skiff(&["run", &image, "--socket", &path]), 3, &[&path, "help:"]);
    assert!(std::path::Path::new(&path).exists(), "the socket of another was removed");

    let file = sandbox.write("precious", "content").display().to_string();
    refused_command(&sandbox, sandbox.skiff(&["run", &image, "--socket", &file]), 3, &[&file]);
    assert_eq!(std::fs::read_to_string(&file).expect("the file"), "content");
    let missing = "/no/such/dir/f.sock";
    refused_command(&sandbox, sandbox.skiff(&["run", &image, "--socket", missing]), 3, &[missing]);
}

#[test]
fn not_root() {
    let sandbox = Sandbox::new();
    let skiff = sandbox.skiff(&[]);
    let program = skiff.get_program().to_string_lossy().into_owned();
    for args in [["run", "oci:/x:1"], ["pull", "oci:/x:1"]] {
        let mut command =
            sandbox.command("setpriv".as_ref(), &["--reuid=65534", "--clear-groups", "--", &program]);
        command.args(args).current_dir("/");
        refused_command(&sandbox, command, 3, &["root", "sudo"]);
    }
}

#[test]
fn no_keeper() {
    let sandbox = Sandbox::new();
    let image = images::oci("function");
    for keeper in ["/no/such/keeper", "/etc/passwd", "/bin/true"] {
        let args = ["--keeper", keeper, "run", &image, "--event", "{}"];
        refused_command(&sandbox, sandbox.skiff(&args), 3, &[keeper]);
    }
}

/// Runs a script in a mount namespace of its own, and then `skiff` with these arguments.
fn after(sandbox: &Sandbox, script: &str, args: &[&str]) -> Command {
    let skiff = sandbox.skiff(args);
    let script = format!("{script} && exec \"$@\"");
    let unshare = ["--mount", "--propagation", "private", "--", "sh", "-ec", &script, "sh"];
    let mut command = sandbox.command("unshare".as_ref(), &unshare);
    command.arg(skiff.get_program()).args(skiff.get_args());
    command.envs(skiff.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command
}

#[test]
fn no_cgroup() {
    let sandbox = Sandbox::new();
    let command =
        after(&sandbox, "umount -lR /sys/fs/cgroup", &["run", &images::oci("function"), "--event", "{}"]);
    refused_command(&sandbox, command, 3, &["cgroup", "help:"]);
}

#[test]
fn a_state_directory_that_cannot_be_below_an_overlay() {
    let sandbox = Sandbox::new();
    // Overlays stack twice at most: on two there is no room for a third.
    let script = "mkdir -p a1 a2 w1 w2 m1 m2 l1 && mount -t overlay -o lowerdir=l1,upperdir=a1,workdir=w1 o m1 \
                  && mount -t overlay -o lowerdir=m1,upperdir=a2,workdir=w2 o m2";
    let state = sandbox.path().join("m2/state").display().to_string();
    let args = ["--state-dir", &state, "run", &images::oci("function"), "--event", "{}"];
    refused_command(&sandbox, after(&sandbox, script, &args), 3, &[&state, "overlay", "help:"]);
}

#[test]
fn a_state_directory_that_cannot_be_written() {
    let sandbox = Sandbox::new();
    let file = sandbox.write("a-file", "").display().to_string();
    for dir in [&file, "/proc/skiff"] {
        let args = ["--state-dir", dir, "run", &images::oci("function"), "--event", "{}"];
        refused_command(&sandbox, sandbox.skiff(&args), 3, &[dir]);
    }
}

#[test]
fn a_full_disk_during_a_pull() {
    let sandbox = Sandbox::new();
    let script = "mkdir small && mount -t tmpfs -o size=1m none small";
    let state = sandbox.path().join("small/state").display().to_string();
    let args = ["--state-dir", &state, "run", &images::oci("function"), "--event", "{}"];
    let outcome = refused_command(&sandbox, after(&sandbox, script, &args), 3, &["help:"]);
    let told = outcome.stderr.contains("space") || outcome.stderr.contains("full");
    assert!(told, "{}", outcome.stderr);
}
