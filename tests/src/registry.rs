//! A real registry (`docker-registry`) with the test images, over HTTP or TLS.

use std::fs;
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::{certificates, images, must, wait_for};

/// The user that registries with a password know.
pub const USERNAME: &str = "tester";
/// That user's password. Tests look for it where it must not be.
pub const PASSWORD: &str = "hunter2-7c1e9f";

/// Who may ask a registry, and how.
#[derive(Clone, Copy, Debug, Default)]
struct Access {
    tls: bool,
    password: bool,
    /// A certificate of the registry's authority has to be shown.
    certificate: bool,
}

/// A running registry; killed when dropped.
#[derive(Debug)]
pub struct Registry {
    dir: TempDir,
    storage: PathBuf,
    port: u16,
    child: Option<Child>,
}

impl Registry {
    /// Over plain HTTP, for everybody.
    #[must_use]
    pub fn http() -> Self {
        Self::start(&images::dir().join("registry"), Access::default())
    }

    /// Over TLS with a certificate of its own authority, for [`USERNAME`] with [`PASSWORD`]. The
    /// certificate is also good for Docker Hub's registry and for `registry.invalid`.
    #[must_use]
    pub fn tls() -> Self {
        let access = Access { tls: true, password: true, certificate: false };
        Self::start(&images::dir().join("registry"), access)
    }

    /// Over TLS, for who shows the certificate of [`Registry::client`].
    #[must_use]
    pub fn for_certificates() -> Self {
        let access = Access { tls: true, password: false, certificate: true };
        Self::start(&images::dir().join("registry"), access)
    }

    /// Over plain HTTP, with a copy of the images that the test may spoil.
    #[must_use]
    pub fn spoilable() -> Self {
        let mut registry = Self::http();
        registry.stop();
        let copy = registry.dir.path().join("storage");
        must("cp", &["-al", &registry.storage.display().to_string(), &copy.display().to_string()]);
        registry.storage = copy;
        registry.configure(Access::default());
        registry.launch();
        registry
    }

    /// The address as it stands in references.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The reference of an image.
    #[must_use]
    pub fn image(&self, name: &str) -> String {
        format!("{}/skiff/{name}:latest", self.address())
    }

    /// The certificate authority, as an argument of `--ca-file`.
    #[must_use]
    pub fn ca_file(&self) -> String {
        self.dir.path().join("ca.pem").display().to_string()
    }

    /// A client's certificate and its key, as arguments of `--client-cert` and `--client-key`.
    #[must_use]
    pub fn client(&self) -> [String; 2] {
        ["client.pem", "client.key"].map(|name| self.dir.path().join(name).display().to_string())
    }

    /// The digest of an image's manifest.
    ///
    /// # Panics
    /// When there is no such image.
    #[must_use]
    pub fn digest(&self, name: &str) -> String {
        let link = format!("repositories/skiff/{name}/_manifests/tags/latest/current/link");
        let path = self.storage.join("docker/registry/v2").join(link);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// An image's manifest.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn manifest(&self, name: &str) -> Value {
        let bytes = fs::read(self.blob(&self.digest(name))).expect("a manifest");
        serde_json::from_slice(&bytes).expect("a manifest")
    }

    /// Makes a repository out of another's image, or has its tag name that instead (see
    /// [`Registry::spoilable`]).
    pub fn retag(&self, name: &str, image: &str) {
        let repositories = self.storage.join("docker/registry/v2/repositories/skiff");
        let (from, to) = (repositories.join(image), repositories.join(name));
        let _ = fs::remove_dir_all(&to);
        must("cp", &["-a", &from.display().to_string(), &to.display().to_string()]);
    }

    /// Replaces the bytes of a blob by others (see [`Registry::spoilable`]).
    ///
    /// # Panics
    /// When the blob cannot be written.
    pub fn spoil(&self, digest: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let path = self.blob(digest);
        let mut bytes = fs::read(&path).expect("a blob");
        change(&mut bytes);
        // The file is shared with the images of all tests: a new one takes its place.
        fs::remove_file(&path).expect("remove");
        fs::write(&path, bytes).expect("write");
    }

    fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.trim().trim_start_matches("sha256:");
        self.storage.join("docker/registry/v2/blobs/sha256").join(&hex[..2]).join(hex).join("data")
    }

    fn start(storage: &Path, access: Access) -> Self {
        let dir = Self::directory();
        let mut registry = Self { dir, storage: storage.to_owned(), port: free_port(), child: None };
        if access.tls {
            certificates::make(registry.dir.path());
        }
        if access.password {
            registry.file("htpasswd", &must("htpasswd", &["-Bbn", USERNAME, PASSWORD]));
        }
        registry.configure(access);
        registry.launch();
        registry
    }

    /// On the filesystem of the images, whose files a copy shares.
    fn directory() -> TempDir {
        let parent = images::target_dir().join("test-registries");
        fs::create_dir_all(&parent).expect("a directory");
        tempfile::tempdir_in(parent).expect("a directory")
    }

    fn configure(&self, access: Access) {
        let dir = self.dir.path().display();
        let mut config = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage:\n  filesystem: \
             {{rootdirectory: {}}}\n  maintenance: {{readonly: {{enabled: true}}}}\nhttp:\n  addr: {}\n",
            self.storage.display(),
            self.address(),
        );
        if access.tls {
            let clients =
                if access.certificate { format!(", clientcas: [{dir}/ca.pem]") } else { String::new() };
            let own = format!("certificate: {dir}/server.pem, key: {dir}/server.key");
            config.push_str(&format!("  tls: {{{own}{clients}}}\n"));
        }
        if access.password {
            config.push_str(&format!("auth:\n  htpasswd: {{realm: test, path: {dir}/htpasswd}}\n"));
        }
        self.file("config.yml", &config);
    }

    fn launch(&mut self) {
        let log = fs::File::create(self.dir.path().join("log")).expect("a file");
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(self.dir.path().join("config.yml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file"))
            .stderr(log)
            .spawn()
            .expect("docker-registry is missing: run scripts/setup");
        self.child = Some(child);
        let up = wait_for(Duration::from_secs(20), || TcpStream::connect(self.address()).ok());
        let ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
        let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        assert!(up.is_some() && ended.is_none(), "docker-registry does not answer: {ended:?} {log}");
    }

    fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn file(&self, name: &str, content: &str) -> String {
        let path = self.dir.path().join(name);
        fs::File::create(&path).and_then(|mut file| file.write_all(content.as_bytes())).expect("a file");
        path.display().to_string()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A TCP port of 127.0.0.1 that nothing listens on.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}
