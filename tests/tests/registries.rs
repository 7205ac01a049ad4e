//! The way to a registry, by the program's options and environment: credentials, proxies, mirrors,
//! certificates and Docker Hub.

use std::fs::{self, Permissions};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::{Arc, Mutex};

use serde_json::json;
use skiff_tests::{PASSWORD, Proxy, Registry, Sandbox, USERNAME, must};

/// Writes a program.
fn program(sandbox: &Sandbox, name: &str, script: &str) -> String {
    let path = sandbox.write(name, format!("#!/bin/sh\n{script}\n"));
    fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("chmod");
    path.display().to_string()
}

/// The manifest's digest of what `pull --output json` has brought.
#[track_caller]
fn digest(outcome: skiff_tests::Outcome) -> String {
    outcome.ok().json()["digest"].as_str().expect("a digest").to_owned()
}

#[test]
fn a_credential_helper_by_path_and_by_name() {
    let (sandbox, registry) = (Sandbox::new(), Registry::tls());
    let (image, ca_file) = (registry.image("function"), registry.ca_file());
    let asked = sandbox.path().join("asked");
    let answer = json!({"Username": USERNAME, "Secret": PASSWORD}).to_string();
    let script = format!("read server; echo \"$1 $server\" >>{}; echo '{answer}'", asked.display());
    let path = program(&sandbox, "bin/docker-credential-skifftest", &script);
    let args = ["pull", &image, "--ca-file", &ca_file, "--output", "json", "--credential-helper"];
    let by_path = sandbox.skiff(&[&args[..], &[&path]].concat());
    assert_eq!(digest(sandbox.finish(by_path)), registry.digest("function").trim());
    let mut by_name = sandbox.skiff(&[&args[..], &["skifftest"]].concat());
    by_name.env("PATH", format!("{}:/usr/bin:/bin", sandbox.path().join("bin").display()));
    let _ = sandbox.finish(by_name).ok();
    let line = format!("get {}\n", registry.address());
    assert_eq!(fs::read_to_string(&asked).expect("it was asked"), line.repeat(2));

    let wrong = program(&sandbox, "wrong", r#"echo '{"Username":"tester","Secret":"wrong-5e3b"}'"#);
    let outcome = sandbox.run(&[&args[..], &[&wrong]].concat()).expect_code(3);
    assert_eq!(outcome.json_events()[0]["error"]["kind"], "unauthorized", "{}", outcome.stderr);
    let fails = program(&sandbox, "fails", "echo wrong-5e3b; exit 7");
    let fails = sandbox.run(&[&args[..], &[&fails]].concat()).fails(2, &["exit status: 7"]);
    assert!(!format!("{outcome:?}{fails:?}").contains("wrong-5e3b"));
}

/// A service that gives the registry's password to who shows the token, and nothing else to anyone. It
/// ends with the process of its test.
struct Service {
    url: String,
    asked: Arc<Mutex<Vec<String>>>,
}

const TOKEN: &str = "service-token-41d0";

impl Service {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                seen.lock().expect("a lock").extend(answer(stream));
            }
        });
        Self { url, asked }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("a lock").clone()
    }
}

/// Answers one request and gives its first line.
fn answer(mut stream: TcpStream) -> Option<String> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        request.push(byte[0]);
    }
    let request = String::from_utf8(request).ok()?;
    let is_known = request.contains(&format!("authorization: Bearer {TOKEN}\r\n"));
    let (status, body) = match request.split(['?', ' ']).nth(1) {
        Some("/get") if is_known => {
            ("200 OK", json!({"username": USERNAME, "password": PASSWORD}).to_string())
        }
        Some("/get") => ("403 Forbidden", "{}".to_owned()),
        _ => ("404 Not Found", "{}".to_owned()),
    };
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    stream.write_all(format!("{head}{body}").as_bytes()).ok()?;
    request.lines().next().map(str::to_owned)
}

#[test]
fn a_credentials_service_with_its_token_from_a_file_or_a_variable() {
    let (sandbox, registry, service) = (Sandbox::new(), Registry::tls(), Service::start());
    let (image, ca_file, url) =
        (registry.image("function"), registry.ca_file(), format!("{}/get", service.url));
    let pull = |more: &[&str], variable: Option<&str>| {
        let args = ["pull", &image, "--ca-file", &ca_file, "--output", "json"];
        let mut command = sandbox.skiff(&[&args[..], more].concat());
        command.envs(variable.map(|token| ("SKIFF_CREDENTIALS_TOKEN", token)));
        sandbox.finish(command)
    };
    let file = sandbox.write("token", format!("{TOKEN}\n")).display().to_string();
    let by_file = pull(&["--credentials-url", &url, "--credentials-token-file", &file], None);
    assert_eq!(digest(by_file), registry.digest("function").trim());
    let _ = pull(&["--credentials-url", &url], Some(TOKEN)).ok();
    let wanted = format!(
        "GET /get?registry={}&repository=skiff%2Ffunction HTTP/1.1",
        registry.address().replace(':', "%3A")
    );
    assert_eq!(service.asked(), [wanted.clone(), wanted]);

    let refused = pull(&["--credentials-url", &url], None).fails(2, &["answered 403", &url]);
    let kind = |outcome: &skiff_tests::Outcome| outcome.json_events()[0]["error"]["kind"].clone();
    assert_eq!(kind(&refused), "invalid_credentials");
    // 404: this registry takes nobody without credentials.
    let anonymous =
        pull(&["--credentials-url", &format!("{}/other", service.url)], Some(TOKEN)).expect_code(3);
    assert_eq!(kind(&anonymous), "unauthorized");
    assert!(anonymous.stderr.contains("give credentials"), "{}", anonymous.stderr);
    assert!(!format!("{refused:?}{anonymous:?}").contains(TOKEN));
}

#[test]
fn a_pull_goes_through_the_proxy_of_the_environment() {
    let (sandbox, registry) = (Sandbox::new(), Registry::tls());
    let proxy = Proxy::to(&registry.address());
    let pull = |variables: &[(&str, &str)]| {
        let image = "registry.invalid:5000/skiff/function";
        let mut command =
            sandbox.skiff(&["pull", image, "--ca-file", &registry.ca_file(), "--output", "json"]);
        command.env("SKIFF_REGISTRY_USERNAME", USERNAME).env("SKIFF_REGISTRY_PASSWORD", PASSWORD);
        command.env("HTTPS_PROXY", proxy.url()).envs(variables.iter().copied());
        sandbox.finish(command)
    };
    assert_eq!(digest(pull(&[])), registry.digest("function").trim());
    let asked = proxy.asked();
    assert!(!asked.is_empty());
    for head in &asked {
        assert!(head.starts_with("CONNECT registry.invalid:5000 HTTP/1.1\r\n"), "{head}");
        assert!(!head.to_lowercase().contains("authorization"), "the password is the registry's: {head}");
    }
    // Without it there is no such host.
    for variables in [[("NO_PROXY", "registry.invalid")], [("HTTPS_PROXY", "")]] {
        let _ = pull(&variables).fails(3, &["registry_unreachable", "registry.invalid:5000"]);
    }
    assert_eq!(proxy.asked().len(), asked.len());
}

#[test]
fn docker_hub_is_asked_for_short_names() {
    let (sandbox, registry) = (Sandbox::new(), Registry::tls());
    let proxy = Proxy::to(&registry.address());
    // As `docker login` keeps it.
    let auth = must("sh", &["-c", "printf %s \"$1\" | base64 -w0", "sh", &format!("{USERNAME}:{PASSWORD}")]);
    let config = json!({"auths": {"https://index.docker.io/v1/": {"auth": auth}}}).to_string();
    sandbox.write("docker/config.json", config);
    let pull = |image: &str, more: &[&str]| {
        let args = ["pull", image, "--ca-file", &registry.ca_file(), "--output", "json"];
        let mut command = sandbox.skiff(&[&args[..], more].concat());
        command.env("HTTPS_PROXY", proxy.url());
        sandbox.finish(command)
    };
    // This one has no such image, which it says of the right repository.
    let missing = pull("alpine", &[]).fails(3, &["image_not_found", "docker.io/library/alpine:latest"]);
    assert!(missing.stderr.contains("registry-1.docker.io has no"), "{}", missing.stderr);
    assert_eq!(digest(pull("skiff/function", &[])), registry.digest("function").trim());
    // The credentials are also for the address that hosts files usually have.
    let hosts = sandbox.write("hosts/docker.io/hosts.toml", "server = \"https://registry-1.docker.io\"\n");
    let hosts = hosts.ancestors().nth(2).expect("a directory").display().to_string();
    let _ = pull("docker.io/skiff/function", &["--hosts-dir", &hosts]).ok();
    let asked = proxy.asked();
    assert!(asked.len() >= 3);
    for head in asked {
        assert!(head.starts_with("CONNECT registry-1.docker.io:443 HTTP/1.1\r\n"), "{head}");
    }
}

#[test]
fn a_mirror_of_the_hosts_directory_is_asked_instead() {
    let (sandbox, registry) = (Sandbox::new(), Registry::http());
    // What is asked for elsewhere is seen here, and refused.
    let proxy = Proxy::to("127.0.0.1:1");
    let mirror = format!("[host.\"http://{}\"]\n", registry.address());
    sandbox.write("hub/docker.io/hosts.toml", &mirror);
    sandbox.write("other/registry.invalid:5000/hosts.toml", &mirror);
    let pull = |image: &str, options: &[&str], hosts: Option<&str>| {
        let mut command = sandbox.skiff(&[&["pull", image, "--output", "json"][..], options].concat());
        command.env("HTTPS_PROXY", proxy.url()).envs(hosts.map(|dir| ("SKIFF_HOSTS_DIR", dir)));
        sandbox.finish(command)
    };
    let dir = |name: &str| sandbox.path().join(name).display().to_string();
    let wanted = registry.digest("function").trim().to_owned();
    let hub = pull("skiff/function", &["--hosts-dir", &dir("hub")], None);
    assert_eq!(digest(hub), wanted);
    assert_eq!(digest(pull("registry.invalid:5000/skiff/function", &[], Some(&dir("other")))), wanted);
    assert_eq!(proxy.asked(), [""; 0], "no other host was asked");
    // The option wins over the variable; there, nothing is said of this registry.
    let options = ["--hosts-dir", &dir("hub")];
    let _ = pull("registry.invalid:5000/skiff/function", &options, Some(&dir("other")))
        .fails(3, &["registry_unreachable"]);
    assert!(proxy.asked()[0].starts_with("CONNECT registry.invalid:5000 "), "{:?}", proxy.asked());
}

#[test]
fn a_client_certificate_is_shown_to_a_registry_that_asks_for_one() {
    let (sandbox, registry) = (Sandbox::new(), Registry::for_certificates());
    let (image, ca_file, [certificate, key]) =
        (registry.image("function"), registry.ca_file(), registry.client());
    let args = ["pull", &image, "--ca-file", &ca_file, "--output", "json"];
    let _ = sandbox.run(&args).fails(3, &["registry_unreachable", &registry.address()]);
    let with = |certificate: &str, key: &str| {
        sandbox.run(&[&args[..], &["--client-cert", certificate, "--client-key", key]].concat())
    };
    assert_eq!(digest(with(&certificate, &key)), registry.digest("function").trim());
    let _ = with(&certificate, &ca_file).fails(2, &["invalid_argument", &ca_file]);
}
