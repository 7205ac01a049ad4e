//! Credentials: where they are looked for, and a type that cannot be shown by mistake.
//!
//! The first source that has any wins: file, given pair, Docker's `config.json` with its helpers,
//! anonymous. They stay in memory; no error or debug text holds them.

use std::fmt;
use std::fs::File;
use std::io::{BufReader, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use docker_credential::{CredentialRetrievalError, DockerCredential};
use serde::Deserialize;

use super::source::Reference;
use crate::{Error, ErrorKind, Result};

/// Bytes of a credentials file; temporary tokens of the vendors have about 1 KiB.
const MAX_FILE_BYTES: u64 = 64 << 10;

/// Where credentials are looked for. The first that has any wins: file, given pair, Docker's
/// `config.json` with its helpers, anonymous.
#[derive(Clone, Default)]
pub struct CredentialSources {
    /// A JSON file: `username`, `password`, optional `expiry` (RFC 3339). Others than its owner must
    /// not be able to read it.
    pub file: Option<PathBuf>,
    /// User name and password (or token).
    pub pair: Option<(String, String)>,
    /// Whether Docker's configuration (`$DOCKER_CONFIG` or `~/.docker`) is read.
    pub docker_config: bool,
}

impl fmt::Debug for CredentialSources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CredentialSources")
            .field("file", &self.file)
            .field("pair", &self.pair.as_ref().map(|_| "(redacted)"))
            .field("docker_config", &self.docker_config)
            .finish()
    }
}

/// A secret text.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(String);

impl Secret {
    pub(crate) fn new(text: String) -> Self {
        Self(text)
    }

    /// The text itself, for the one place that sends it.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(redacted)")
    }
}

/// What a registry is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Credentials {
    Anonymous,
    Password {
        username: Secret,
        password: Secret,
    },
    /// A refresh token of Docker's `identitytoken`.
    Identity(Secret),
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::InvalidCredentials, message)
}

impl CredentialSources {
    /// Looks for credentials for the registry of `reference`. Blocks: a helper is a program.
    ///
    /// # Errors
    /// `InvalidCredentials`.
    pub(crate) fn find(&self, reference: &Reference) -> Result<Credentials> {
        if let Some(file) = &self.file {
            return from_file(file, SystemTime::now());
        }
        if let Some((username, password)) = &self.pair {
            return from_pair(username, password, "given credentials");
        }
        if self.docker_config
            && let Some(config) = docker_config_file()
        {
            return from_docker(&config, reference);
        }
        Ok(Credentials::Anonymous)
    }
}

fn from_pair(username: &str, password: &str, what: &str) -> Result<Credentials> {
    let missing = match (username.is_empty(), password.is_empty()) {
        (false, false) => {
            return Ok(Credentials::Password {
                username: Secret::new(username.to_owned()),
                password: Secret::new(password.to_owned()),
            });
        }
        (true, false) => "a password but no user name",
        (false, true) => "a user name but no password",
        (true, true) => "neither user name nor password",
    };
    Err(invalid(format!("the {what} have {missing}")).advise("give both, or none for an anonymous pull"))
}

#[derive(Deserialize)]
struct RawFile {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    expiry: Option<String>,
}

fn from_file(path: &Path, now: SystemTime) -> Result<Credentials> {
    let shown = path.display();
    let unreadable =
        |e: std::io::Error| invalid(format!("the credentials file {shown} cannot be read")).because(e);
    let file = open_regular(path).map_err(unreadable)?;
    let mode = file.metadata().map_err(unreadable)?.mode();
    if mode & 0o007 != 0 {
        return Err(invalid(format!(
            "the credentials file {shown} is open to every user (mode {:04o})",
            mode & 0o7777
        ))
        .advise(format!("run: chmod 600 {shown}")));
    }
    let mut text = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut text).map_err(unreadable)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(invalid(format!("the credentials file {shown} is over {MAX_FILE_BYTES} bytes")));
    }
    // Only the position: serde's own message may quote a value.
    let raw: RawFile = serde_json::from_slice(&text).map_err(|e| {
        invalid(format!(
            "the credentials file {shown} is not JSON with username, password and optional expiry \
             (line {}, column {})",
            e.line(),
            e.column()
        ))
    })?;
    if let Some(expiry) = &raw.expiry {
        check_expiry(expiry, now, path)?;
    }
    from_pair(&raw.username, &raw.password, &format!("credentials in {shown}"))
}

/// Opens a regular file; a FIFO neither blocks nor passes.
fn open_regular(path: &Path) -> std::io::Result<File> {
    use rustix::fs::{Mode, OFlags, open};
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let file = File::from(open(path, flags, Mode::empty())?);
    if file.metadata()?.is_file() { Ok(file) } else { Err(std::io::Error::other("not a regular file")) }
}

fn check_expiry(expiry: &str, now: SystemTime, path: &Path) -> Result<()> {
    let at = parse_rfc3339(expiry).ok_or_else(|| {
        invalid(format!("the expiry in the credentials file {} is not an RFC 3339 time", path.display()))
            .advise("write it like 2026-01-31T12:00:00Z")
    })?;
    let now = now.duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX));
    if at > now {
        return Ok(());
    }
    Err(invalid(format!("the credentials in {} expired at {expiry}", path.display()))
        .advise("fetch new temporary credentials"))
}

/// Seconds since 1970 of an RFC 3339 time; fractions of a second are dropped.
fn parse_rfc3339(text: &str) -> Option<i64> {
    let bytes = text.as_bytes();
    let shape = [(4, b'-'), (7, b'-'), (13, b':'), (16, b':')];
    if bytes.len() < 20 || bytes.len() > 40 || !shape.iter().all(|&(at, c)| bytes[at] == c) {
        return None;
    }
    if !matches!(bytes[10], b'T' | b't' | b' ') {
        return None;
    }
    let number = |from: usize, to: usize| digits(bytes.get(from..to)?);
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let offset = parse_offset(skip_fraction(&bytes[19..])?)?;
    Some(days_from_civil(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset)
}

fn digits(bytes: &[u8]) -> Option<i64> {
    if bytes.is_empty() {
        return None;
    }
    bytes.iter().try_fold(0i64, |n, b| b.is_ascii_digit().then(|| n * 10 + i64::from(b - b'0')))
}

fn skip_fraction(rest: &[u8]) -> Option<&[u8]> {
    let Some(fraction) = rest.strip_prefix(b".") else { return Some(rest) };
    let length = fraction.iter().take_while(|b| b.is_ascii_digit()).count();
    if length == 0 { None } else { fraction.get(length..) }
}

/// Seconds east of UTC.
fn parse_offset(zone: &[u8]) -> Option<i64> {
    match zone {
        b"Z" | b"z" => Some(0),
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => {
            let seconds = digits(&[*h1, *h2])? * 3600 + digits(&[*m1, *m2])? * 60;
            Some(if *sign == b'-' { -seconds } else { seconds })
        }
        _ => None,
    }
}

/// Days since 1970-01-01 in the proleptic Gregorian calendar (Howard Hinnant's algorithm).
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

fn docker_config_file() -> Option<PathBuf> {
    let dir = std::env::var_os("DOCKER_CONFIG")
        .filter(|v| !v.is_empty())
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".docker")))?;
    let file = dir.join("config.json");
    file.exists().then_some(file)
}

fn from_docker(config: &Path, reference: &Reference) -> Result<Credentials> {
    let shown = config.display();
    let file = open_regular(config)
        .map_err(|e| invalid(format!("Docker's configuration {shown} cannot be read")).because(e))?;
    // Docker files its own registry under this name.
    let server = match reference.registry() {
        "docker.io" => "https://index.docker.io/v1/",
        other => other,
    };
    let found = docker_credential::get_credential_from_reader(BufReader::new(file.take(1 << 20)), server);
    match found {
        Ok(DockerCredential::UsernamePassword(username, password)) => {
            // Helpers give an identity token under this name (docker-credential-helpers protocol).
            if username == "<token>" {
                return Ok(Credentials::Identity(Secret::new(password)));
            }
            from_pair(&username, &password, &format!("credentials for {server} in {shown}"))
        }
        Ok(DockerCredential::IdentityToken(token)) => Ok(Credentials::Identity(Secret::new(token))),
        Err(CredentialRetrievalError::NoCredentialConfigured) => Ok(Credentials::Anonymous),
        Err(e) => docker_failure(&e, config, server),
    }
}

/// A helper's output may hold anything, so it is read here and not shown.
fn docker_failure(error: &CredentialRetrievalError, config: &Path, server: &str) -> Result<Credentials> {
    let why = match error {
        CredentialRetrievalError::HelperFailure { stdout, stderr, .. }
            if [stdout, stderr].iter().any(|text| text.contains("credentials not found")) =>
        {
            return Ok(Credentials::Anonymous);
        }
        CredentialRetrievalError::HelperFailure { helper, .. } => {
            format!("the credential helper {helper} failed")
        }
        other => other.to_string(),
    };
    Err(invalid(format!(
        "Docker's configuration {} has no usable credentials for {server}: {why}",
        config.display()
    ))
    .advise("run docker login again, or give a credentials file"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Duration;

    use super::*;

    fn reference(text: &str) -> Reference {
        text.parse().expect("valid reference")
    }

    fn written(text: &str, mode: u32) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        std::fs::write(file.path(), text).expect("write");
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).expect("chmod");
        file
    }

    fn from_text(text: &str) -> Result<Credentials> {
        from_file(written(text, 0o600).path(), UNIX_EPOCH + Duration::from_secs(1_000_000_000))
    }

    fn message(text: &str) -> String {
        let error = from_text(text).expect_err(text);
        assert_eq!(error.kind(), ErrorKind::InvalidCredentials);
        error.chain()
    }

    #[test]
    fn a_file_wins_over_a_pair() {
        let file = written(r#"{"username":"u","password":"p"}"#, 0o600);
        let sources = CredentialSources {
            file: Some(file.path().to_owned()),
            pair: Some(("other".into(), "other".into())),
            docker_config: false,
        };
        let wanted =
            Credentials::Password { username: Secret::new("u".into()), password: Secret::new("p".into()) };
        assert_eq!(sources.find(&reference("x")).expect("found"), wanted);
        assert_eq!(CredentialSources::default().find(&reference("x")).expect("none"), Credentials::Anonymous);
    }

    #[test]
    fn nothing_secret_is_shown() {
        let sources = CredentialSources { pair: Some(("me".into(), "s3cret".into())), ..Default::default() };
        let found = sources.find(&reference("x")).expect("found");
        assert!(!format!("{sources:?} {found:?}").contains("s3cret"));
        for text in [r#"{"username":5,"password":"s3cret"}"#, r#"{"password":"s3cret"}"#, r#""s3cret"#] {
            assert!(!message(text).contains("s3cret"), "{text}");
        }
    }

    #[test]
    fn the_missing_half_is_named() {
        assert!(message(r#"{"username":"u"}"#).contains("a user name but no password"));
        assert!(message(r#"{"password":"p"}"#).contains("a password but no user name"));
        assert!(message("{}").contains("neither"));
    }

    #[test]
    fn expiry_is_honoured() {
        let with = |expiry: &str| format!(r#"{{"username":"u","password":"p","expiry":"{expiry}"}}"#);
        from_text(&with("2001-09-09T01:46:41Z")).expect("one second left");
        assert!(message(&with("2001-09-09T01:46:40Z")).contains("expired at 2001-09-09T01:46:40Z"));
        assert!(message(&with("yesterday")).contains("not an RFC 3339 time"));
    }

    #[test]
    fn rfc3339() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2001-09-09T01:46:40Z", 1_000_000_000),
            ("2001-09-09T03:46:40.123456789+02:00", 1_000_000_000),
            ("2000-02-29T00:00:00-00:30", 951_784_200),
            ("1969-12-31T23:59:59z", -1),
        ] {
            assert_eq!(parse_rfc3339(text), Some(seconds), "{text}");
        }
        for text in [
            "",
            "2001-09-09",
            "2001-13-09T01:46:40Z",
            "2001-09-09T01:46:40",
            "2001-09-09T01:46:40.Z",
            "2001-09-09T01:46:40+2:00",
            "２００1-09-09T01:46:40Z",
        ] {
            assert_eq!(parse_rfc3339(text), None, "{text}");
        }
    }

    #[test]
    fn open_files_and_special_files_are_refused() {
        let file = written(r#"{"username":"u","password":"p"}"#, 0o604);
        let error = from_file(file.path(), UNIX_EPOCH).expect_err("open to all");
        assert!(error.to_string().contains("0604"), "{error}");
        assert!(error.advice().is_some_and(|a| a.starts_with("run: chmod 600")));
        let missing = from_file(Path::new("/nonexistent/x"), UNIX_EPOCH).expect_err("missing");
        assert!(missing.to_string().contains("/nonexistent/x"));
        from_file(Path::new("/dev/zero"), UNIX_EPOCH).expect_err("a device");
        let big = written(&" ".repeat(70_000), 0o600);
        assert!(from_file(big.path(), UNIX_EPOCH).expect_err("big").to_string().contains("65536"));
    }

    #[test]
    fn dockers_configuration() {
        // "me:pw" in Base64.
        let text = r#"{"auths":{"r.example:5000":{"auth":"bWU6cHc="},"https://index.docker.io/v1/":{"identitytoken":"t"}}}"#;
        let file = written(text, 0o600);
        let password =
            Credentials::Password { username: Secret::new("me".into()), password: Secret::new("pw".into()) };
        let find = |name: &str| from_docker(file.path(), &reference(name));
        assert_eq!(find("r.example:5000/a").expect("found"), password);
        assert_eq!(find("alpine").expect("found"), Credentials::Identity(Secret::new("t".into())));
        assert_eq!(find("other.example/a").expect("none"), Credentials::Anonymous);
        let broken = written("{", 0o600);
        assert_eq!(
            from_docker(broken.path(), &reference("x")).expect_err("broken").kind(),
            ErrorKind::InvalidCredentials
        );
    }
}
