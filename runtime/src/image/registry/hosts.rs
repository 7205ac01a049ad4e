//! Which hosts are asked for a repository, by `hosts.toml` in the convention of containerd
//! (containerd, `docs/hosts.md`): `DIR/HOST[:PORT]/hosts.toml`, else `DIR/_default/hosts.toml`.
//!
//! Unlike containerd, an unknown key is an error, verification cannot be switched off, and a header
//! that would keep a secret in the file is refused.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::auth::Auth;
use super::host::Host;
use super::proxies::Proxies;
use super::transport::{self, ClientCertificate, Tls};
use crate::image::PullOptions;
use crate::image::credentials::Provider;
use crate::image::source::Reference;
use crate::{Error, ErrorKind, Result};

/// Bytes of a hosts file.
const MAX_BYTES: usize = 256 << 10;
/// Mirrors of one registry.
const MAX_MIRRORS: usize = 16;
/// Headers that hold secrets, which do not belong into a file, or that Skiff sets itself.
const OWN_HEADERS: [&str; 8] = [
    "authorization",
    "proxy-authorization",
    "cookie",
    "host",
    "range",
    "accept",
    "connection",
    "content-length",
];

/// One host as the file describes it.
#[derive(Debug)]
struct Entry {
    url: Url,
    resolve: bool,
    pull: bool,
    tls: Tls,
    headers: HeaderMap,
    override_path: bool,
}

/// A hosts file.
#[derive(Debug, Default)]
pub(crate) struct HostsFile {
    /// In the order of the file.
    mirrors: Vec<Entry>,
    server: Option<Entry>,
}

/// The hosts for `reference` in the order of asking; the registry is the last.
pub(super) fn all(reference: &Reference, options: &PullOptions) -> Result<Vec<Host>> {
    let file = match &options.hosts_dir {
        Some(dir) => find(dir, reference.registry())?,
        None => HostsFile::default(),
    };
    let proxies = options.proxies.clone().unwrap_or_else(Proxies::from_env);
    let mut maker = Maker { reference, options, proxies, common: None };
    let mut hosts = Vec::with_capacity(file.mirrors.len() + 1);
    for entry in file.mirrors {
        hosts.push(maker.host(entry, true)?);
    }
    let server = match file.server {
        Some(entry) => entry,
        None => default_server(reference, options)?,
    };
    hosts.push(maker.host(server, false)?);
    Ok(hosts)
}

fn default_server(reference: &Reference, options: &PullOptions) -> Result<Entry> {
    let scheme = if options.plain_http { "http" } else { "https" };
    let text = format!("{scheme}://{}", reference.host());
    let url = Url::parse(&text).map_err(|e| {
        Error::new(ErrorKind::InvalidReference, format!("the registry {} is no host", reference.host()))
            .because(e)
    })?;
    Ok(Entry::new(url))
}

/// Makes hosts; those without trust or certificates of their own share their connections.
struct Maker<'a> {
    reference: &'a Reference,
    options: &'a PullOptions,
    proxies: Proxies,
    common: Option<reqwest::Client>,
}

impl Maker<'_> {
    fn host(&mut self, entry: Entry, mirror: bool) -> Result<Host> {
        let name = host_and_port(&entry.url);
        let registry = self.reference.registry();
        let home = self.is_home(&entry.url, mirror);
        let known_as = if home { registry } else { &name };
        let mut tls = entry.tls;
        if home && tls.identity.is_none() {
            tls.identity.clone_from(&self.options.client_certificate);
        }
        tls.ca_files.extend_from_slice(&self.options.ca_files);
        let away = self.away(&tls)?;
        let own = if tls.identity.is_some() { self.build(&tls)? } else { away.clone() };
        let options = self.options;
        let provider = Provider::new(&options.credentials, known_as, self.reference.repository(), home).over(
            &options.ca_files,
            &self.proxies,
            &options.times,
        );
        let plain_http = entry.url.scheme() == "http";
        let auth = Auth::new(provider, &name, self.reference.repository(), plain_http);
        Ok(Host {
            base: base(&entry.url, entry.override_path, self.reference.repository()),
            namespace: (mirror && !home).then(|| registry.to_owned()),
            headers: entry.headers,
            resolve: entry.resolve || !mirror,
            pull: entry.pull || !mirror,
            own,
            away,
            auth,
            times: options.times.clone(),
            down: AtomicBool::new(false),
            name,
        })
    }

    /// Whether this is the reference's registry itself, whose credentials and certificate it may have.
    /// A mirror must have the scheme that was asked for; that of a `server` is the file's choice.
    fn is_home(&self, url: &Url, mirror: bool) -> bool {
        let asked = if self.options.plain_http { "http" } else { "https" };
        let scheme = if mirror { asked } else { url.scheme() };
        let registry = self.reference.registry();
        // Docker Hub answers under its old name too.
        let old = (registry == "docker.io").then_some("index.docker.io");
        let mut names = [self.reference.host(), registry].into_iter().chain(old);
        names.any(|name| is_at(url, scheme, name))
    }

    /// Connections without a certificate of this host.
    fn away(&mut self, tls: &Tls) -> Result<reqwest::Client> {
        if tls.ca_files != self.options.ca_files {
            return self.build(&Tls { ca_files: tls.ca_files.clone(), identity: None });
        }
        if let Some(common) = &self.common {
            return Ok(common.clone());
        }
        let made = self.build(&Tls { ca_files: tls.ca_files.clone(), identity: None })?;
        Ok(self.common.insert(made).clone())
    }

    fn build(&self, tls: &Tls) -> Result<reqwest::Client> {
        transport::build(tls, &self.proxies, &self.options.times, None)
    }
}

/// Whether `url` has this scheme, and host and port of `name` (`HOST[:PORT]`). A default port may be
/// written or not, and the case of the host does not matter.
fn is_at(url: &Url, scheme: &str, name: &str) -> bool {
    let Ok(wanted) = Url::parse(&format!("{scheme}://{name}")) else { return false };
    let place = |url: &Url| (url.host_str().map(str::to_ascii_lowercase), url.port_or_known_default());
    url.scheme() == scheme && url.has_host() && place(url) == place(&wanted)
}

/// `HOST[:PORT]` without a default port, the host in lower case.
fn host_and_port(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// The address of a repository: `/v2` is added unless it is there, or the path is said to be whole.
fn base(url: &Url, whole: bool, repository: &str) -> Url {
    let mut base = url.clone();
    let path = url.path().trim_end_matches('/');
    let version = if whole || path.ends_with("/v2") { "" } else { "/v2" };
    base.set_path(&format!("{path}{version}/{repository}"));
    base
}

/// The file for `registry`, if there is one.
fn find(dir: &Path, registry: &str) -> Result<HostsFile> {
    for name in [registry, "_default"] {
        let path = dir.join(name).join("hosts.toml");
        match std::fs::read(&path) {
            Ok(bytes) => return parse(&bytes, &path),
            Err(e)
                if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {}
            Err(e) => return Err(Error::host(format!("read {}", path.display()), e)),
        }
    }
    Ok(HostsFile::default())
}

/// Reads a hosts file; `path` is for errors and for files that it names. Any bytes may come.
///
/// # Errors
/// `InvalidArgument` that names file, line and key.
pub(crate) fn parse(bytes: &[u8], path: &Path) -> Result<HostsFile> {
    let whole = |why: String| Error::new(ErrorKind::InvalidArgument, format!("{}: {why}", path.display()));
    if bytes.len() > MAX_BYTES {
        return Err(whole(format!("the hosts file is over {MAX_BYTES} bytes")));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| whole("the hosts file is not UTF-8".into()))?;
    let reader = Reader { text, path };
    let table = DeTable::parse(text).map_err(|e| {
        let at = e.span().map_or(0, |span| span.start);
        reader.error(at, e.message())
    })?;
    reader.file(table.get_ref())
}

impl Entry {
    fn new(url: Url) -> Self {
        let (tls, headers) = (Tls::default(), HeaderMap::new());
        Self { url, resolve: true, pull: true, tls, headers, override_path: false }
    }
}

/// Walks the tables of a file.
struct Reader<'a> {
    text: &'a str,
    path: &'a Path,
}

type Value<'a> = Spanned<DeValue<'a>>;

impl Reader<'_> {
    fn error(&self, at: usize, why: &str) -> Error {
        let before = self.text.get(..at).unwrap_or(self.text);
        let line = before.bytes().filter(|b| *b == b'\n').count() + 1;
        let message = format!("{}, line {line}: {why}", self.path.display());
        Error::new(ErrorKind::InvalidArgument, message)
    }

    fn file(&self, table: &DeTable<'_>) -> Result<HostsFile> {
        let mut file = HostsFile::default();
        if let Some((_, server)) = table.iter().find(|(key, _)| key.get_ref() == "server") {
            file.server = Some(Entry::new(self.url("server", server)?));
        }
        for (key, value) in table {
            match (key.get_ref().as_ref(), &mut file.server) {
                ("server", _) => {}
                ("host", _) => file.mirrors = self.hosts(value)?,
                (name, Some(server)) => self.field(server, name, key.span().start, value)?,
                (name, None) => {
                    let why = format!("the key {name:?} needs a server, or belongs into a [host.\"…\"]");
                    return Err(self.error(key.span().start, &why));
                }
            }
        }
        Ok(file)
    }

    fn hosts(&self, value: &Value<'_>) -> Result<Vec<Entry>> {
        let DeValue::Table(table) = value.get_ref() else {
            return Err(self.error(value.span().start, "host must be a table: [host.\"https://…\"]"));
        };
        if table.len() > MAX_MIRRORS {
            let why = format!("{} hosts are more than {MAX_MIRRORS}", table.len());
            return Err(self.error(value.span().start, &why));
        }
        let mut hosts: Vec<_> = table.iter().collect();
        // The order of the file is that of asking.
        hosts.sort_by_key(|(key, _)| key.span().start);
        let read = |(key, value): (&Spanned<_>, &Value<'_>)| self.host(key, value);
        hosts.into_iter().map(read).collect()
    }

    fn host(&self, key: &Spanned<std::borrow::Cow<'_, str>>, value: &Value<'_>) -> Result<Entry> {
        let mut entry = Entry::new(self.address(key.get_ref(), key.span().start)?);
        let DeValue::Table(table) = value.get_ref() else {
            return Err(self.error(value.span().start, "a host must be a table: [host.\"https://…\"]"));
        };
        for (key, value) in table {
            self.field(&mut entry, key.get_ref(), key.span().start, value)?;
        }
        Ok(entry)
    }

    fn field(&self, entry: &mut Entry, name: &str, at: usize, value: &Value<'_>) -> Result<()> {
        match name {
            "capabilities" => self.capabilities(entry, value)?,
            "ca" => entry.tls.ca_files = self.files(name, value)?,
            "client" => entry.tls.identity = Some(self.client(value)?),
            "header" => self.headers(entry, value)?,
            "override_path" => entry.override_path = self.boolean(name, value)?,
            "skip_verify" => {
                if self.boolean(name, value)? {
                    let why = "skip_verify = true is refused: anyone on the way could send another image";
                    return Err(self
                        .error(at, why)
                        .advise("give the host's certificate authority: ca = \"FILE\""));
                }
            }
            _ => {
                let known = "capabilities, ca, client, header, override_path and skip_verify";
                let why = format!("the key {name:?} is unknown; a host has {known}");
                return Err(self.error(at, &why));
            }
        }
        Ok(())
    }

    fn capabilities(&self, entry: &mut Entry, value: &Value<'_>) -> Result<()> {
        (entry.pull, entry.resolve) = (false, false);
        for item in self.array("capabilities", value)? {
            match self.string("capabilities", item)? {
                "pull" => entry.pull = true,
                "resolve" => entry.resolve = true,
                // What Skiff never does may be allowed.
                "push" | "referrers" => {}
                other => {
                    let why = format!("the capability {other:?} is unknown; there are pull and resolve");
                    return Err(self.error(item.span().start, &why));
                }
            }
        }
        Ok(())
    }

    /// A file, or a list of them.
    fn files(&self, name: &str, value: &Value<'_>) -> Result<Vec<PathBuf>> {
        match value.get_ref() {
            DeValue::Array(items) => items.iter().map(|item| self.path(name, item)).collect(),
            _ => Ok(vec![self.path(name, value)?]),
        }
    }

    /// `"both.pem"`, `["cert.pem", "key.pem"]` or `[["cert.pem", "key.pem"]]`.
    fn client(&self, value: &Value<'_>) -> Result<ClientCertificate> {
        if let DeValue::Array(items) = value.get_ref()
            && let Some(first) = items.first()
            && matches!(first.get_ref(), DeValue::Array(_))
        {
            if items.len() > 1 {
                return Err(self.error(value.span().start, "client has more than one pair; give one"));
            }
            return self.client(first);
        }
        match self.files("client", value)?.as_slice() {
            [both] => Ok(ClientCertificate { certificate: both.clone(), key: both.clone() }),
            [certificate, key] => {
                Ok(ClientCertificate { certificate: certificate.clone(), key: key.clone() })
            }
            _ => Err(self.error(value.span().start, "client must be one pair: [\"CERTIFICATE\", \"KEY\"]")),
        }
    }

    fn headers(&self, entry: &mut Entry, value: &Value<'_>) -> Result<()> {
        let DeValue::Table(table) = value.get_ref() else {
            return Err(self.error(value.span().start, "header must be a table"));
        };
        for (key, value) in table {
            let (at, text) = (key.span().start, key.get_ref().as_ref());
            let name = HeaderName::from_bytes(text.as_bytes())
                .map_err(|_| self.error(at, &format!("{text:?} is no name of a header")))?;
            if OWN_HEADERS.contains(&name.as_str()) {
                let why = format!("the header {text:?} is not set by this file");
                return Err(self
                    .error(at, &why)
                    .advise("give credentials by a credential helper or service"));
            }
            let items = match value.get_ref() {
                DeValue::Array(items) => items.iter().collect(),
                _ => vec![value],
            };
            for item in items {
                let mut header = HeaderValue::from_str(self.string(text, item)?).map_err(|_| {
                    self.error(item.span().start, &format!("no value of the header {text:?}"))
                })?;
                header.set_sensitive(true);
                entry.headers.append(name.clone(), header);
            }
        }
        Ok(())
    }

    fn url(&self, name: &str, value: &Value<'_>) -> Result<Url> {
        self.address(self.string(name, value)?, value.span().start)
    }

    fn address(&self, text: &str, at: usize) -> Result<Url> {
        let whole = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
        let url = Url::parse(&whole).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        let Some(url) = url.filter(Url::has_host) else {
            return Err(
                self.error(at, "a host must be https://HOST[:PORT][/PATH], or http:// where that is meant")
            );
        };
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
            return Err(self
                .error(at, "a host's address may have no user, password or query")
                .advise("give credentials by a credential helper or service"));
        }
        Ok(url)
    }

    fn path(&self, name: &str, value: &Value<'_>) -> Result<PathBuf> {
        // Beside the file, unless it is absolute.
        let dir = self.path.parent().unwrap_or(Path::new("/"));
        Ok(dir.join(self.string(name, value)?))
    }

    fn array<'v>(&self, name: &str, value: &'v Value<'v>) -> Result<&'v [Value<'v>]> {
        match value.get_ref() {
            DeValue::Array(items) => Ok(items),
            _ => Err(self.error(value.span().start, &format!("{name} must be a list of strings"))),
        }
    }

    fn string<'v>(&self, name: &str, value: &'v Value<'_>) -> Result<&'v str> {
        match value.get_ref() {
            DeValue::String(text) => Ok(text),
            _ => Err(self.error(value.span().start, &format!("{name} must be a string"))),
        }
    }

    fn boolean(&self, name: &str, value: &Value<'_>) -> Result<bool> {
        match value.get_ref() {
            DeValue::Boolean(value) => Ok(*value),
            _ => Err(self.error(value.span().start, &format!("{name} must be true or false"))),
        }
    }
}

#[cfg(test)]
#[path = "hosts_tests.rs"]
mod tests;
