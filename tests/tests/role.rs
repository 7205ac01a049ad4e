//! The credentials of a function's role: where the contracts put them, and nowhere else; and fresh.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use skiff_tests::{Sandbox, Served, wait_for};

const SOON: Duration = Duration::from_secs(20);

/// A document of credentials, good for so long.
fn document(number: u32, seconds: u64) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    json!({
        "AccessKeyId": format!("id-{number}"),
        "AccessKeySecret": format!("s3cret-key-{number}"),
        "SecurityToken": format!("s3cret-token-{number}"),
        "Expiration": now.as_secs() + seconds,
    })
    .to_string()
}

/// Writes it at once, so that nobody reads a half.
fn put(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).expect("written");
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600)).expect("set");
    std::fs::rename(&new, path).expect("renamed");
}

/// A header that the function got.
fn header(served: &Served, name: &str) -> Option<String> {
    let headers = served.get("/headers").ok().json();
    let found = headers.as_array()?.iter().find(|pair| pair[0] == name)?.clone();
    found[1].as_str().map(str::to_owned)
}

fn environment(served: &Served) -> Value {
    served.get("/env").ok().json()
}

#[test]
fn credentials_of_a_file_are_fresh_in_the_headers_and_of_the_start_in_the_environment() {
    let sandbox = Sandbox::new();
    let file = sandbox.path().join("role.json");
    put(&file, &document(1, 6));
    let served = sandbox.serve_function(&["--role-file", file.to_str().expect("utf-8")]);
    assert_eq!(header(&served, "x-fc-access-key-id").as_deref(), Some("id-1"));
    put(&file, &document(2, 3600));
    let fresh = || (header(&served, "x-fc-access-key-id").as_deref() == Some("id-2")).then_some(());
    assert!(wait_for(SOON, fresh).is_some(), "{}", served.stderr());
    assert_eq!(header(&served, "x-fc-security-token").as_deref(), Some("s3cret-token-2"));
    assert_eq!(environment(&served)["ALIBABA_CLOUD_ACCESS_KEY_ID"], "id-1");
    let (stdout, stderr) = (served.stdout(), served.stderr());
    assert!(!stdout.contains("s3cret") && !stderr.contains("s3cret"), "a secret is told");
    served.stop();
}

#[test]
fn expired_ones_are_not_sent() {
    let sandbox = Sandbox::new();
    let file = sandbox.path().join("role.json");
    put(&file, &document(1, 4));
    let served = sandbox.serve_function(&["--platform", "scf", "--role-file", file.to_str().expect("utf-8")]);
    assert_eq!(header(&served, "x-scf-secret-id").as_deref(), Some("id-1"));
    std::fs::remove_file(&file).expect("removed");
    assert!(wait_for(SOON, || header(&served, "x-scf-secret-id").is_none().then_some(())).is_some());
    served.wait_for_stderr("could not be refreshed");
    // scf gives its credentials in headers alone.
    let names: Vec<String> = environment(&served)
        .as_object()
        .expect("variables")
        .keys()
        .filter(|name| name.contains("SECRET"))
        .cloned()
        .collect();
    assert_eq!(names, Vec::<String>::new());
    served.stop();
}

#[test]
fn a_service_is_asked_for_the_function() {
    let sandbox = Sandbox::new();
    let socket = sandbox.path().join("roles.sock");
    let listener = UnixListener::bind(&socket).expect("bound");
    let service = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("accepted");
        let mut seen = Vec::new();
        while !seen.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("read");
            seen.push(byte[0]);
        }
        let body = document(7, 3600);
        write!(
            stream,
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        )
        .expect("written");
        String::from_utf8(seen).expect("text")
    });
    let text = format!("name = \"resize\"\n[role]\nurl = \"unix:{}\"\n", socket.display());
    let file = sandbox.write("function.toml", text);
    let served = sandbox.serve_function(&["--file", file.to_str().expect("utf-8")]);
    assert_eq!(header(&served, "x-fc-access-key-id").as_deref(), Some("id-7"));
    let asked = service.join().expect("no panic");
    assert!(asked.starts_with("GET /?function=resize&namespace=default&platform=fc HTTP/1.1\r\n"), "{asked}");
    served.stop();
}

#[test]
fn a_role_without_credentials_is_a_failed_start() {
    let sandbox = Sandbox::new();
    let image = skiff_tests::images::oci("function");
    let open = sandbox.write("open.json", document(1, 3600));
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o644)).expect("set");
    for (file, told) in [
        (sandbox.path().join("none.json"), "none.json cannot be read"),
        (open, "is open to every user (mode 0644)"),
    ] {
        let options = ["run", &image, "--event", "{}", "--role-file", file.to_str().expect("utf-8")];
        let failed = sandbox.run(&options).expect_code(3);
        assert!(failed.stderr.contains("role of function"), "{}", failed.stderr);
        assert!(failed.stderr.contains(told), "{}", failed.stderr);
        assert!(!failed.stderr.contains("s3cret"), "{}", failed.stderr);
    }
}
