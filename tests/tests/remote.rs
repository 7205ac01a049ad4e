//! The node's API over TCP: who is let in, and who is not.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use skiff_tests::http::Connection;
use skiff_tests::{Certificates, Node, Sandbox, wait_for};

const SOON: Duration = Duration::from_secs(60);
const TOKEN: &str = "a-token-of-this-test-0123456789";

/// A file with the token, its owner's alone.
fn token(sandbox: &Sandbox) -> String {
    let path = sandbox.write("token", TOKEN);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("set");
    path.display().to_string()
}

/// The TCP address on which the node says that it serves.
#[track_caller]
fn address(node: &Node<'_>, scheme: &str) -> String {
    let told = wait_for(SOON, || {
        let out = node.stdout();
        let line = out.lines().find_map(|line| line.strip_prefix(&format!("serving on {scheme}://")));
        line.map(str::to_owned)
    });
    told.unwrap_or_else(|| panic!("no address: {}", node.stdout()))
}

#[test]
fn a_token_opens_the_whole_api_on_loopback() {
    let sandbox = Sandbox::new();
    let token = token(&sandbox);
    let node = Node::start(&sandbox, &["--listen", "0", "--listen-token", &token]);
    let address = address(&node, "http");
    let ask = |target: &str, value: Option<&str>| {
        let headers: Vec<(&str, &str)> = value.map(|value| ("authorization", value)).into_iter().collect();
        Connection::tcp(&address).expect("it listens").request("GET", target, &headers, b"")
    };
    let good = format!("Bearer {TOKEN}");
    assert!(ask("/v1/functions", Some(&good)).ok().json()["functions"].is_array());
    let _ = node.deploy("demo", "function", "", &[]).ok();
    let call = "/2023-03-30/functions/demo/invocations";
    let answer = Connection::tcp(&address).expect("it listens").request(
        "POST",
        call,
        &[("authorization", &good)],
        b"{\"k\":1}",
    );
    assert_eq!(answer.ok().json()["event"]["k"], 1);
    let wrong = format!("Bearer {TOKEN}x");
    for value in [None, Some("Bearer"), Some(wrong.as_str()), Some("Basic YTpi")] {
        for target in ["/v1/functions", "/metrics", "/openapi.json", call, "/nothing"] {
            let refused = ask(target, value);
            assert_eq!(
                (refused.status, refused.header("www-authenticate")),
                (401, Some("Bearer")),
                "{target}"
            );
            assert!(!refused.text().contains("demo"), "{}", refused.text());
        }
    }
    // The token is nowhere but in its file.
    assert!(!node.log().contains(TOKEN) && !node.stdout().contains(TOKEN));
    node.stop();
}

/// A request by curl with these options: its status, and the answer's body.
fn curl(address: &str, options: &[&str]) -> Result<(u16, String), String> {
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--max-time", "20", "--write-out", "\n%{http_code}"])
        .args(options)
        .arg(format!("https://{address}/v1/functions"))
        .output()
        .expect("curl is missing: run scripts/setup");
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').expect("a status");
    Ok((status.parse().expect("a number"), body.to_owned()))
}

#[test]
fn certificates_open_it_to_clients_of_the_authority() {
    let sandbox = Sandbox::new();
    let certificates = Certificates::new();
    let file = |name: &str| certificates.file(name);
    let (ca, cert, key) = (file("ca.pem"), file("server.pem"), file("server.key"));
    let (client, client_key) = (file("client.pem"), file("client.key"));
    let options = ["--listen", "127.0.0.1:0", "--listen-cert", &cert, "--listen-key", &key];
    let node = Node::start(&sandbox, &[&options[..], &["--listen-client-ca", &ca]].concat());
    let at = address(&node, "https");
    let with = ["--cacert", &ca, "--cert", &client, "--key", &client_key];
    for version in ["--http1.1", "--http2"] {
        let (status, body) = curl(&at, &[&with[..], &[version]].concat()).expect("let in");
        let value: Value = serde_json::from_str(&body).expect("JSON");
        assert!(status == 200 && value["functions"].is_array(), "{version}: {status} {body}");
    }
    // Without a certificate, and with one of another authority.
    let stranger = Certificates::new();
    let (other, other_key) = (stranger.file("client.pem"), stranger.file("client.key"));
    for options in [&["--cacert", &ca][..], &["--cacert", &ca, "--cert", &other, "--key", &other_key]] {
        let error = curl(&at, options).expect_err("turned away");
        assert!(error.contains("curl:"), "{error}");
    }
    // Who speaks no TLS, or nothing, keeps nobody else out.
    let mut plain = Connection::tcp(&at).expect("it listens");
    plain.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    let _silent = Connection::tcp(&at).expect("it listens");
    assert_eq!(curl(&at, &with).expect("let in").0, 200);
    node.stop();
}

#[test]
fn a_token_and_tls_go_together() {
    let sandbox = Sandbox::new();
    let (certificates, token) = (Certificates::new(), token(&sandbox));
    let file = |name: &str| certificates.file(name);
    let (ca, cert, key) = (file("ca.pem"), file("server.pem"), file("server.key"));
    let options = ["--listen", "0", "--listen-cert", &cert, "--listen-key", &key, "--listen-token", &token];
    let node = Node::start(&sandbox, &options);
    let at = address(&node, "https");
    let bearer = format!("Authorization: Bearer {TOKEN}");
    assert_eq!(curl(&at, &["--cacert", &ca, "--header", &bearer]).expect("an answer").0, 200);
    assert_eq!(curl(&at, &["--cacert", &ca]).expect("an answer").0, 401);
    node.stop();
}

#[test]
fn what_would_let_everybody_in_is_refused() {
    let sandbox = Sandbox::new();
    let (certificates, token) = (Certificates::new(), token(&sandbox));
    let file = |name: &str| certificates.file(name);
    let (cert, key, ca_key) = (file("server.pem"), file("server.key"), file("ca.key"));
    let serve = |options: &[&str]| sandbox.run(&[&["serve"], options].concat());
    let _ = serve(&["--listen", "0"]).fails(2, &["everybody", "--listen-token"]);
    let _ = serve(&["--listen", "0.0.0.0:0", "--listen-token", &token]).fails(2, &["others can read it"]);
    let _ = serve(&["--listen-token", &token]).fails(2, &["--listen"]);
    let _ = serve(&["--listen", "0", "--listen-cert", &cert]).fails(2, &["--listen-key"]);
    let all = |cert: &str, key: &str| {
        serve(&["--listen", "0", "--listen-token", &token, "--listen-cert", cert, "--listen-key", key])
    };
    let _ = all(&cert, &ca_key).fails(3, &[&cert, "check that the key is the certificate's"]);
    let _ = all("/no/such.pem", &key).fails(3, &["/no/such.pem"]);
    let _ = all(&token, &key).fails(3, &["no certificate is in it"]);
}
