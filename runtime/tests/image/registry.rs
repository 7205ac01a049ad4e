//! A real `docker-registry` on the loopback interface.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use skiff_runtime::ErrorKind;
use skiff_runtime::image::{CredentialSources, PullOptions};

use crate::support::*;

/// A registry process; gone with this value.
pub(crate) struct Registry {
    child: Child,
    pub(crate) address: String,
}

impl Registry {
    pub(crate) fn start(dir: &Path, password: Option<&str>) -> Self {
        Self::start_with(dir, password, "")
    }

    /// With a certificate of an authority of its own, `ca.pem`, for 127.0.0.1.
    fn start_tls(dir: &Path, password: Option<&str>) -> Self {
        certificates(dir);
        let [certificate, key] = ["tls.pem", "tls.key"].map(|name| dir.join(name).display().to_string());
        Self::start_with(dir, password, &format!("  tls: {{certificate: {certificate}, key: {key}}}\n"))
    }

    pub(crate) fn start_with(dir: &Path, password: Option<&str>, tls: &str) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let mut config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\nhttp:\n  addr: '{address}'\n{tls}",
            dir.join("registry").display()
        );
        if let Some(password) = password {
            let output = Command::new("htpasswd").args(["-Bbn", "user", password]).output().unwrap();
            assert!(output.status.success());
            fs::write(dir.join("htpasswd"), output.stdout).unwrap();
            config.push_str(&format!(
                "auth:\n  htpasswd: {{realm: test, path: {}}}\n",
                dir.join("htpasswd").display()
            ));
        }
        fs::write(dir.join("registry.yml"), config).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(dir.join("registry.yml"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is installed");
        let registry = Self { child, address };
        let begin = Instant::now();
        while std::net::TcpStream::connect(&registry.address).is_err() {
            assert!(begin.elapsed() < Duration::from_secs(20), "the registry does not come up");
            std::thread::sleep(Duration::from_millis(20));
        }
        registry
    }

    pub(crate) fn push(&self, source: &str, name: &str, more: &[&str]) -> String {
        let target = format!("docker://{}/{name}", self.address);
        let status = Command::new("skopeo")
            .args(["copy", "-q", "--dest-tls-verify=false", "--all"])
            .args(more)
            .args([source, &target])
            .status()
            .expect("skopeo is installed");
        assert!(status.success(), "skopeo copy {source} {target}");
        format!("{}/{name}", self.address)
    }
}

/// An authority, `ca.pem`, and what it certifies: `tls.pem` for 127.0.0.1, `client.pem` for a client.
pub(crate) fn certificates(dir: &Path) {
    let script = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=test-ca -keyout ca.key -out ca.pem
            openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=registry -keyout tls.key -out tls.csr
            printf 'subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth\n' > tls.ext
            openssl x509 -req -in tls.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile tls.ext -out tls.pem
            openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=node -keyout client.key -out client.csr
            printf 'extendedKeyUsage=clientAuth\n' > client.ext
            openssl x509 -req -in client.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile client.ext -out client.pem";
    let output = Command::new("sh").args(["-euc", script]).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn plain() -> PullOptions {
    PullOptions { plain_http: true, ..PullOptions::default() }
}

#[tokio::test]
async fn oci_and_docker_images_by_tag_and_digest() {
    let place = Place::new();
    let registry = Registry::start(place.dir.path(), None);
    let (_, source) = Layout::small_gzip(&place.path("layout"));
    let oci = registry.push(&format!("{source}:v1"), "a/oci:v1", &[]);
    let docker = registry.push(&format!("{source}:v1"), "a/docker:v1", &["--format", "v2s2"]);
    let image = place.pull_with(&oci, &plain()).await.unwrap();
    assert_eq!((image.layers.len(), read(&image, 1, "etc/two")), (3, "2".into()));
    assert_eq!(image.name, oci);

    // The same layers in Docker's manifest: nothing to fetch but the documents.
    let (mut options, events) = observed();
    options.plain_http = true;
    let other = place.pull_with(&docker, &options).await.unwrap();
    assert_eq!((other.layers, started(&events)), (image.layers.clone(), 0));
    assert_ne!(other.digest, image.digest);

    // By digest, in a fresh store, then without the registry.
    let fresh = Place::new();
    let pinned = format!("{}@{}", oci.trim_end_matches(":v1"), image.digest);
    assert_eq!(fresh.pull_with(&pinned, &plain()).await.unwrap().digest, image.digest);
    drop(registry);
    let again = fresh.pull_with(&pinned, &plain()).await.unwrap();
    assert_eq!((again.layers.len(), again.config.cmd.as_slice()), (3, &["/hello".to_owned()][..]));
    let error = fresh.error(&oci, &plain()).await;
    assert_eq!(error.kind(), ErrorKind::RegistryUnreachable, "a tag is asked for each time");
    assert!(error.advice().unwrap().contains("host and port"), "{error:?}");
}

#[tokio::test]
async fn an_index_is_walked() {
    let place = Place::new();
    let registry = Registry::start(place.dir.path(), None);
    let layout = Layout::new(&place.path("layout"));
    let archive = tar(&[("a", "x")]);
    let layers = [(GZIP, gzip(&archive), archive)];
    let mut manifests = Vec::new();
    for architecture in ["arm64", "amd64"] {
        let mut image = layout.image(&layers, architecture);
        image["platform"] = serde_json::json!({"os": "linux", "architecture": architecture});
        manifests.push(image);
    }
    let amd64 = manifests[1]["digest"].clone();
    let index = serde_json::json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
    let source = layout.index(&[("", layout.blob(INDEX, index.to_string().as_bytes()))]);
    let name = registry.push(&source, "multi:1", &[]);
    let image = place.pull_with(&name, &plain()).await.unwrap();
    assert_eq!(image.digest, amd64);
    let list = registry.push(&source, "list:1", &["--format", "v2s2"]);
    place.pull_with(&list, &plain()).await.expect("a Docker manifest list");
}

#[tokio::test]
async fn what_is_not_there() {
    let place = Place::new();
    let registry = Registry::start(place.dir.path(), None);
    let (_, source) = Layout::small(&place.path("layout"));
    registry.push(&source, "here:1", &[]);
    let address = &registry.address;
    let unknown = "a".repeat(64);
    for name in ["here:2", "missing:1", &format!("here@sha256:{unknown}")] {
        let error = place.error(&format!("{address}/{name}"), &plain()).await;
        assert_eq!(error.kind(), ErrorKind::ImageNotFound, "{error:?}");
        assert!(error.to_string().contains(name), "{error}");
    }
    // HTTPS to a port that speaks HTTP.
    let error = place.error(&format!("{address}/here:1"), &PullOptions::default()).await;
    assert_eq!(error.kind(), ErrorKind::RegistryUnreachable);
    assert!(error.advice().unwrap().contains("plain HTTP"), "{error:?}");
    let error = place.error("no-such-host.invalid/x:1", &plain()).await;
    assert_eq!(error.kind(), ErrorKind::RegistryUnreachable);
    assert!(error.advice().unwrap().contains("DNS"), "{error:?}");
    let options = PullOptions { ca_files: vec!["/nonexistent.pem".into()], ..PullOptions::default() };
    assert_eq!(place.error("localhost/x", &options).await.kind(), ErrorKind::InvalidArgument);
}

#[tokio::test]
async fn passwords() {
    let place = Place::new();
    let registry = Registry::start(place.dir.path(), Some("s3cret"));
    let (_, source) = Layout::small(&place.path("layout"));
    let name = registry.push(&source, "private:1", &["--dest-creds", "user:s3cret"]);
    let with = |password: &str| PullOptions {
        credentials: CredentialSources { pair: Some(("user".into(), password.into())), ..Default::default() },
        ..plain()
    };
    let error = place.error(&name, &plain()).await;
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    assert!(error.advice().unwrap().contains("give credentials"));
    let error = place.error(&name, &with("wr0ng")).await;
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    assert!(!format!("{error:?} {error} {:?}", error.advice()).contains("wr0ng"));
    assert_eq!(place.error(&name, &with("")).await.kind(), ErrorKind::InvalidCredentials);

    let file = place.path("credentials.json");
    fs::write(&file, r#"{"username":"user","password":"s3cret","expiry":"2999-01-01T00:00:00Z"}"#).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let mut options = with("wr0ng");
    options.credentials.file = Some(file);
    let image = place.pull_with(&name, &options).await.expect("the file wins");
    let pinned = format!("{}@{}", name.trim_end_matches(":1"), image.digest);
    place.pull_with(&pinned, &with("s3cret")).await.unwrap();
    place.pull_with(&pinned, &plain()).await.expect("what is here needs no credentials");
    no_secret_on_disk(&place.path("state"));
}

fn no_secret_on_disk(dir: &Path) {
    let output = Command::new("grep").args(["-rl", "s3cret"]).arg(dir).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
}

#[tokio::test]
async fn https_with_an_authority_of_its_own() {
    let place = Place::new();
    let registry = Registry::start_tls(place.dir.path(), Some("s3cret"));
    let (_, source) = Layout::small(&place.path("layout"));
    let name = registry.push(&source, "private:1", &["--dest-creds", "user:s3cret"]);
    let pair = Some(("user".to_owned(), "s3cret".to_owned()));
    let credentials = CredentialSources { pair, ..Default::default() };
    let mut options = PullOptions { credentials, ..PullOptions::default() };
    let error = place.error(&name, &options).await;
    assert_eq!(error.kind(), ErrorKind::RegistryUnreachable);
    assert!(error.advice().unwrap().contains("CA file"), "{error:?}");
    options.ca_files = vec![place.path("ca.pem")];
    assert_eq!(place.pull_with(&name, &options).await.unwrap().layers.len(), 3);
    let error = place.error(&name.replace("private:1", "missing:1"), &options).await;
    assert_eq!(error.kind(), ErrorKind::ImageNotFound, "{error:?}");
    options.plain_http = true;
    let error = place.error(&name, &options).await;
    assert_eq!(error.kind(), ErrorKind::RegistryFailed, "{error:?}");
    for broken in ["", "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n"] {
        fs::write(place.path("broken.pem"), broken).unwrap();
        options.ca_files = vec![place.path("broken.pem")];
        assert_eq!(place.error(&name, &options).await.kind(), ErrorKind::InvalidArgument);
    }
}
