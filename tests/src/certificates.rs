//! Certificates of an authority that nobody else knows.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use crate::must;

/// How `openssl req` makes a key.
const EC: [&str; 5] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];

/// An authority, and what it has signed, in files that go with this.
#[derive(Debug)]
pub struct Certificates(TempDir);

impl Certificates {
    /// Makes them.
    ///
    /// # Panics
    /// When openssl is missing.
    #[must_use]
    pub fn new() -> Self {
        let dir = TempDir::new().expect("a directory");
        make(dir.path());
        Self(dir)
    }

    /// Path of `ca`, `server` or `client` with `.pem` or `.key`.
    #[must_use]
    pub fn file(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }
}

impl Default for Certificates {
    fn default() -> Self {
        Self::new()
    }
}

/// An authority, and what it has signed: a certificate for 127.0.0.1 and some names, and one for a client.
pub(crate) fn make(dir: &Path) {
    let path = |name: &str| dir.join(name).display().to_string();
    let (ca, ca_key) = (path("ca.pem"), path("ca.key"));
    let authority = ["req", "-x509", "-days", "2", "-subj", "/CN=Skiff test CA", "-keyout", &ca_key];
    must("openssl", &[&authority[..], &EC, &["-out", &ca]].concat());
    let names = "IP:127.0.0.1, DNS:localhost, DNS:registry-1.docker.io, DNS:registry.invalid";
    sign(dir, "server", &format!("subjectAltName = {names}\n"));
    sign(dir, "client", "extendedKeyUsage = clientAuth\n");
}

/// A key and a certificate for it, by the authority.
fn sign(dir: &Path, name: &str, extensions: &str) {
    let path = |name: &str, end: &str| dir.join(format!("{name}.{end}")).display().to_string();
    let (key, request, subject) = (path(name, "key"), path(name, "csr"), format!("/CN={name}"));
    let wanted = ["req", "-new", "-subj", &subject, "-keyout", &key, "-out", &request];
    must("openssl", &[&wanted[..], &EC].concat());
    let file = path(name, "ext");
    fs::write(&file, format!("basicConstraints = critical, CA:FALSE\n{extensions}")).expect("a file");
    let sign = ["x509", "-req", "-days", "2", "-CAcreateserial", "-extfile", &file];
    let (ca, ca_key, certificate) = (path("ca", "pem"), path("ca", "key"), path(name, "pem"));
    let files = ["-in", &request, "-CA", &ca, "-CAkey", &ca_key, "-out", &certificate];
    must("openssl", &[&sign[..], &files].concat());
}
