//! Client certificates, proxies, tokens of a real registry, and no secret where none belongs.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use skiff_runtime::ErrorKind;
use skiff_runtime::image::{ClientCertificate, CredentialSources, Proxies, PullEvent, PullOptions, Times};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::liar::{Answer, Liar, answer, image, plain, with_password};
use crate::registry::{Registry, certificates};
use crate::support::*;

#[tokio::test]
async fn client_certificates() {
    let place = Place::new();
    let dir = place.dir.path();
    let (_, source) = Layout::small(&place.path("layout"));
    Registry::start(dir, None).push(&source, "private:1", &[]);
    certificates(dir);
    let [certificate, key, ca] =
        ["tls.pem", "tls.key", "ca.pem"].map(|name| place.path(name).display().to_string());
    let tls = format!("  tls: {{certificate: {certificate}, key: {key}, clientcas: [{ca}]}}\n");
    let registry = Registry::start_with(dir, None, &tls);
    let name = format!("{}/private:1", registry.address);
    let mut options = PullOptions { ca_files: vec![place.path("ca.pem")], ..PullOptions::default() };
    let error = place.error(&name, &options).await;
    assert_eq!(error.kind(), ErrorKind::RegistryUnreachable, "{error:?}");
    let pair = ClientCertificate { certificate: place.path("client.pem"), key: place.path("client.key") };
    options.client_certificate = Some(pair.clone());
    place.pull_with(&name, &options).await.expect("with the certificate");

    // The same by a hosts file, which names files beside itself.
    let hosts = place.path("hosts").join(&registry.address);
    fs::create_dir_all(&hosts).unwrap();
    for file in ["ca.pem", "client.pem", "client.key"] {
        fs::copy(place.path(file), hosts.join(file)).unwrap();
    }
    let text = format!(
        "server = \"https://{}\"\nca = \"ca.pem\"\nclient = [[\"client.pem\", \"client.key\"]]\n",
        registry.address
    );
    fs::write(hosts.join("hosts.toml"), text).unwrap();
    let by_file = PullOptions { hosts_dir: Some(place.path("hosts")), ..PullOptions::default() };
    Place::new().pull_with(&name, &by_file).await.expect("by the hosts file");

    for (certificate, key) in [("client.pem", "client.pem"), ("client.key", "client.key"), ("none", "none")] {
        let pair = ClientCertificate { certificate: place.path(certificate), key: place.path(key) };
        options.client_certificate = Some(pair);
        let error = place.error(&name, &options).await;
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error:?}");
    }
}

#[tokio::test]
async fn a_proxy_is_used_but_for_loopback() {
    let proxy = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = proxy.local_addr().unwrap();
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = Arc::clone(&asked);
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = proxy.accept().await {
            let mut buffer = [0u8; 4096];
            let count = stream.read(&mut buffer).await.unwrap_or(0);
            seen.lock().unwrap().push(String::from_utf8_lossy(&buffer[..count]).into_owned());
            let _ = stream.write_all(b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n").await;
        }
    });
    let place = Place::new();
    let proxies = Proxies {
        http: Some(format!("http://me:pr0xy@{address}")),
        https: Some(format!("{address}")),
        no_proxy: Some("direct.invalid,by-port.invalid:443".into()),
    };
    let options = PullOptions { proxies: Some(proxies), ..PullOptions::default() };
    let error = place.error("registry.invalid/a/b:1", &options).await;
    assert!(!format!("{error:?}").contains("pr0xy"));
    assert!(asked.lock().unwrap()[0].starts_with("CONNECT registry.invalid:443 "), "{asked:?}");
    let http = PullOptions { plain_http: true, ..options.clone() };
    place.error("registry.invalid/a/b:1", &http).await;
    // "me:pr0xy" in Base64.
    assert!(asked.lock().unwrap()[1].contains("bWU6cHIweHk="), "{asked:?}");
    assert!(!format!("{options:?}").contains("pr0xy"), "{options:?}");
    place.error("direct.invalid/a/b:1", &options).await;
    place.error("by-port.invalid/a/b:1", &options).await;
    let (layout, descriptor, ..) = image(&place);
    let liar = Liar::start().await;
    let name = liar.serve_image(&layout, &descriptor);
    place.pull_with(&name, &http).await.expect("a registry of this host needs no proxy");
    assert_eq!(asked.lock().unwrap().len(), 2);
    place.error("by-port.invalid:5000/a/b:1", &options).await;
    assert!(asked.lock().unwrap()[2].starts_with("CONNECT by-port.invalid:5000 "), "{asked:?}");
    task.abort();
}

#[tokio::test]
async fn ipv6() {
    let place = Place::new();
    let (layout, descriptor, ..) = image(&place);
    let liar = Liar::start_at("[::1]:0").await;
    let name = liar.serve_image(&layout, &descriptor);
    assert!(name.starts_with("[::1]:"));
    assert_eq!(place.pull_with(&name, &plain()).await.unwrap().name, name);
}

/// Base64 in the form for addresses, of what a shell command writes.
fn base64(dir: &Path, command: &str, input: &str) -> String {
    let script = format!("{command} | base64 -w0 | tr '+/' '-_' | tr -d '='");
    let mut child = Command::new("sh")
        .args(["-euc", &script])
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
}

/// A token of the authority in `dir` for pulling `repository`, good until `expiry`.
fn jwt(dir: &Path, repository: &str, expiry: u64) -> String {
    let pem = fs::read_to_string(dir.join("auth.pem")).unwrap();
    let der: String = pem.lines().filter(|line| !line.starts_with("---")).collect();
    let header = serde_json::json!({"alg": "RS256", "typ": "JWT", "x5c": [der]});
    let claims = serde_json::json!({
        "iss": "test", "sub": "user", "aud": "s", "exp": expiry, "nbf": expiry - 600, "iat": expiry - 600,
        "jti": "1", "access": [{"type": "repository", "name": repository, "actions": ["pull"]}],
    });
    let signed =
        format!("{}.{}", base64(dir, "cat", &header.to_string()), base64(dir, "cat", &claims.to_string()));
    let signature = base64(dir, "openssl dgst -sha256 -sign auth.key", &signed);
    format!("{signed}.{signature}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_of_a_real_registry_expire_within_the_pull() {
    let place = Place::new();
    let dir = place.dir.path();
    let (_, source) = Layout::small(&place.path("layout"));
    Registry::start(dir, None).push(&source, "private:1", &[]);
    let script =
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=auth -keyout auth.key -out auth.pem";
    assert!(
        Command::new("sh")
            .args(["-c", script])
            .current_dir(dir)
            .stderr(Stdio::null())
            .status()
            .unwrap()
            .success()
    );
    let realm = Liar::start().await;
    let auth = format!(
        "auth:\n  token: {{realm: 'http://{}/token', service: s, issuer: test, rootcertbundle: {}}}\n",
        realm.address,
        place.path("auth.pem").display()
    );
    let registry = Registry::start_with(dir, None, &auth);
    let name = format!("{}/private:1", registry.address);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    // The registry allows for clocks that differ by a minute (distribution, `token.go`, `Leeway`).
    let said = |expiry: u64| {
        let body = format!(r#"{{"token":"{}","expires_in":600}}"#, jwt(dir, "private", expiry));
        answer("200 OK", "", body.as_bytes())
    };
    realm.say("/token", &[said(now - 56), said(now + 600)]);
    let observer = |event| {
        if matches!(event, PullEvent::Resolved { .. }) {
            std::thread::sleep(Duration::from_secs(7));
        }
    };
    let options = PullOptions { observer: Some(Arc::new(observer)), ..with_password() };
    assert_eq!(place.pull_with(&name, &options).await.unwrap().layers.len(), 3);
    let asked = realm.requests("/token");
    assert_eq!(asked.len(), 2, "one renewal for all layers");
    assert!(
        asked[0].contains("scope=repository%3Aprivate%3Apull") && asked[0].contains("authorization: Basic")
    );
    // Anonymous: the realm gives a token for another repository.
    realm.say(
        "/token",
        &[answer("200 OK", "", format!(r#"{{"token":"{}"}}"#, jwt(dir, "other", now + 600)).as_bytes())],
    );
    let error = Place::new().error(&name, &plain()).await;
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error:?}");
}

/// All that is logged, by either of the two ways.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Heard {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl log::Log for Heard {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let _ = writeln!(self.clone(), "{} {}", record.target(), record.args());
    }

    fn flush(&self) {}
}

#[tokio::test]
async fn no_password_and_no_identity_token_is_shown_anywhere() {
    let heard = Heard::default();
    let writer = heard.clone();
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_writer(move || writer.clone())
        .init();
    log::set_boxed_logger(Box::new(heard.clone())).unwrap();
    log::set_max_level(log::LevelFilter::Trace);

    let place = Place::new();
    let (layout, descriptor, layer, packed) = image(&place);
    let (liar, other) = (Liar::start().await, Liar::start().await);
    let name = liar.serve_image(&layout, &descriptor);
    let manifest = "/v2/x/manifests/1";
    let good = liar.answers.lock().unwrap()[manifest][0].clone();
    let blob = format!("/v2/x/blobs/{layer}");
    let bearer = |host: &str| {
        answer(
            "401 Unauthorized",
            &format!("WWW-Authenticate: Bearer realm=\"http://{host}/token\"\r\n"),
            b"",
        )
    };
    let basic = answer("401 Unauthorized", "WWW-Authenticate: Basic realm=\"s3cret\"\r\n", b"");
    let away = |path: &str| {
        answer("307 Temporary Redirect", &format!("Location: http://{}{path}\r\n", other.address), b"")
    };
    let token = answer("200 OK", "", br#"{"token":"t0ken-s3cret"}"#);
    let cut = Answer { send: 10, ..answer("200 OK", "", &packed) };
    let options = PullOptions {
        times: Times { first_wait: Duration::from_millis(1), ..Times::default() },
        timeout: Some(Duration::from_secs(5)),
        proxies: Some(Proxies { https: Some("http://u:s3cret@127.0.0.1:1".into()), ..Proxies::default() }),
        ..with_password()
    };
    // The same with an identity token, in a store of its own: layers that are here are not asked for.
    let other_place = Place::new();
    let text = r#"echo '{"Username":"<token>","Secret":"identity-s3cret"}'"#;
    let helper = Some(script(place.path("helper"), text));
    let credentials = CredentialSources { helper, ..Default::default() };
    let identity = PullOptions { credentials, ..options.clone() };
    let mut shown = format!("{options:?}{identity:?}");
    let ways: Vec<(Vec<Answer>, Vec<Answer>, Answer)> = vec![
        (vec![basic.clone()], vec![], token.clone()),
        (vec![basic.clone(), answer("500 Oh", "", b"")], vec![], token.clone()),
        (vec![basic.clone(), answer("403 No", "", b"")], vec![], token.clone()),
        (vec![basic.clone(), away("/")], vec![], token.clone()),
        (vec![bearer(&liar.address)], vec![], token.clone()),
        (vec![bearer(&liar.address)], vec![], answer("401 No", "", b"")),
        (vec![bearer(&liar.address)], vec![], answer("200 OK", "", b"t0ken-s3cret")),
        (vec![bearer(&liar.address)], vec![], answer("200 OK", "", br#"{"token":"s3cret\n"}"#)),
        (vec![bearer("foreign.example")], vec![], token.clone()),
        (vec![bearer(&liar.address), good.clone()], vec![away("/missing")], token.clone()),
        (vec![bearer(&liar.address), good.clone()], vec![cut], token.clone()),
        (vec![basic.clone(), good.clone()], vec![answer("200 OK", "", b"wrong")], token.clone()),
        (vec![bearer(&liar.address), good.clone()], vec![answer("200 OK", "", &packed)], token.clone()),
    ];
    for (place, options) in [(&place, &options), (&other_place, &identity)] {
        let mut failures = 0;
        for (manifests, blobs, token) in &ways {
            liar.say(manifest, manifests);
            liar.say(&blob, blobs);
            liar.say("/token", std::slice::from_ref(token));
            match place.pull_with(&name, options).await {
                Ok(image) => shown.push_str(&format!("{image:?}")),
                Err(error) => {
                    failures += 1;
                    shown.push_str(&format!("{error:?} {error} {} {:?}\n", error.chain(), error.advice()));
                    shown.push_str(&format!("{:?}", std::error::Error::source(&error)));
                }
            }
        }
        assert_eq!(failures, ways.len() - 1);
    }
    assert!(!liar.requests("refresh_token=identity-s3cret").is_empty(), "the realm was shown it");
    let error = place.error("registry.invalid/x:1", &PullOptions { plain_http: false, ..options }).await;
    shown.push_str(&format!("{error:?}"));
    let logged = String::from_utf8_lossy(&heard.0.lock().unwrap()).into_owned();
    assert!(logged.contains("hyper_util") && logged.contains("reqwest"), "all crates are heard");
    // The password, and "user:s3cret" in Base64.
    for secret in ["s3cret", "dXNlcjpzM2NyZXQ="] {
        for text in [&shown, &logged] {
            let line = text.lines().find(|line| line.contains(secret));
            assert_eq!(line, None);
        }
        let stores = [place.path("state"), other_place.path("state")];
        let found = Command::new("grep").args(["-rl", secret]).args(stores).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&found.stdout), "");
    }
    assert!(other.requests("uthorization").is_empty() && other.requests("s3cret").is_empty());
    let unused = CredentialSources::default();
    assert!(!format!("{unused:?}").contains("s3cret"));
}
