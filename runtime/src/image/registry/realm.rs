//! Which token realm may be spoken to.
//!
//! A challenge comes from the network and names any address it likes, so:
//! - a realm is spoken to over HTTPS, or over HTTP only where plain HTTP was asked for;
//! - credentials go to a realm only if its host is the registry's, or both are below the same
//!   registrable domain (`registry-1.docker.io` and `auth.docker.io`);
//! - an anonymous token may come from a foreign realm that has a domain name, so that a challenge
//!   cannot make this host ask an address inside its own network.

use std::net::IpAddr;

use reqwest::Url;

use crate::{Error, ErrorKind};

/// The realm that a registry's own challenge names, if it may be spoken to.
///
/// # Errors
/// `Unauthorized` that names the realm's host.
pub(crate) fn check(
    text: &str,
    registry_host: &str,
    anonymous: bool,
    plain_http: bool,
) -> Result<Url, Error> {
    let refused = |why: String| {
        Error::new(
            ErrorKind::Unauthorized,
            format!("the registry {registry_host} names a token realm that {why}"),
        )
    };
    let realm = Url::parse(text).map_err(|_| refused("is not an address".into()))?;
    if !["https", "http"].contains(&realm.scheme()) {
        // Its host could hold anything: only those of the web's addresses are names.
        return Err(refused(format!("has the scheme {:?}, not https", realm.scheme())));
    }
    let Some(host) = realm.host_str() else {
        return Err(refused("has no host".into()));
    };
    if !(realm.scheme() == "https" || realm.scheme() == "http" && plain_http) {
        return Err(refused(format!("is not reached over HTTPS ({host})")));
    }
    if !realm.username().is_empty() || realm.password().is_some() {
        return Err(refused(format!("has a user in its address ({host})")));
    }
    let registry = host_of(registry_host);
    if host.eq_ignore_ascii_case(registry) {
        return Ok(realm);
    }
    if anonymous {
        if is_address(host) || !host.contains('.') {
            return Err(refused(format!("is the address {host}, which is not the registry's own")));
        }
        return Ok(realm);
    }
    if same_site(host, registry) {
        return Ok(realm);
    }
    Err(refused(format!("is foreign to it ({host}), so the credentials are not sent there"))
        .advise("pull from a registry whose token realm is of its own domain"))
}

/// The host of `HOST[:PORT]`.
pub(super) fn host_of(registry: &str) -> &str {
    match registry.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => registry,
    }
}

fn is_address(host: &str) -> bool {
    host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
}

/// Whether two host names are below one domain that someone registered: the last two labels, or
/// three where the last two are of a country's second level (`com.cn`, `co.uk`).
fn same_site(a: &str, b: &str) -> bool {
    match (site(a), site(b)) {
        (Some(a), Some(b)) => a.eq_ignore_ascii_case(b),
        _ => false,
    }
}

fn site(host: &str) -> Option<&str> {
    if is_address(host) {
        return None;
    }
    let starts: Vec<usize> =
        std::iter::once(0).chain(host.match_indices('.').map(|(at, _)| at + 1)).collect();
    let label = |from_end: usize| starts.len().checked_sub(from_end).map(|at| &host[starts[at]..]);
    let two = label(2)?;
    let (second, top) = two.split_once('.')?;
    let labels = if top.len() == 2 && second.len() <= 3 { 3 } else { 2 };
    label(labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_stay_on_their_site() {
        let may = |registry: &str, realm: &str| {
            check(realm, registry, false, false).map(drop).map_err(|e| e.to_string())
        };
        for (registry, realm) in [
            ("docker.io", "https://auth.docker.io/token"),
            ("registry.cn-hangzhou.aliyuncs.com", "https://dockerauth.cn-hangzhou.aliyuncs.com/auth"),
            ("r.example:5000", "https://r.example:5001/token"),
            ("registry.example.com.cn", "https://auth.example.com.cn/"),
            ("127.0.0.1:5000", "https://127.0.0.1:5001/"),
        ] {
            may(registry, realm).expect(realm);
        }
        for (registry, realm) in [
            ("docker.io", "https://auth.evil.io/token"),
            ("docker.io", "http://auth.docker.io/token"),
            ("a.com.cn", "https://b.com.cn/"),
            ("a.co.uk", "https://b.co.uk/"),
            ("127.0.0.1", "https://127.0.0.2/"),
            ("10.0.0.1", "https://1.0.0.1/"),
            ("docker.io", "https://docker.io.evil.com/"),
            ("docker.io", "https://docker.io@evil.com/"),
            ("docker.io", "file:///etc/passwd"),
            ("docker.io", "nonsense"),
        ] {
            let error = may(registry, realm).expect_err(realm);
            assert!(error.contains("token realm"), "{error}");
        }
    }

    /// What follows the scheme may be anything, and be meant to be seen: such as control characters, in percent.
    #[test]
    fn of_what_is_no_web_address_the_scheme_is_shown() {
        let error =
            check("beahttps://s3cret%1b\"", "r.example", true, false).expect_err("no realm").to_string();
        assert!(error.contains("has the scheme \"beahttps\", not https"), "{error}");
        assert!(!error.contains("s3cret"), "{error}");
    }

    #[test]
    fn anonymous_tokens_do_not_come_from_inside() {
        let may = |realm: &str| check(realm, "lscr.io", true, false).map(drop);
        may("https://ghcr.io/token").expect("another registry's realm");
        for realm in ["https://169.254.169.254/", "https://[::1]/", "https://localhost/", "http://ghcr.io/"] {
            may(realm).expect_err(realm);
        }
        check("http://10.0.0.1:8080/", "10.0.0.1", true, true).expect("own host");
    }
}
