//! Proxies on the way to registries, and what is reached without.

use std::collections::BTreeMap;
use std::fmt;

use http::Uri;
use hyper_util::client::proxy::matcher::Matcher;
use reqwest::Url;

use crate::{Error, ErrorKind, Result};

/// Proxies on the way to registries, as the usual variables have them. Loopback addresses are never
/// asked for by a proxy. Debug shows no user and no password.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    /// For plain HTTP: `http://[USER:PASSWORD@]HOST:PORT`.
    pub http: Option<String>,
    /// For HTTPS.
    pub https: Option<String>,
    /// Hosts, domains and networks that are reached without, separated by commas; `*` for all. A host
    /// and a domain may have a port: `HOST:PORT` is about that alone.
    pub no_proxy: Option<String>,
}

impl Proxies {
    /// From `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY`; the names in lower case win. `HTTP_PROXY` does
    /// not count in a CGI program, where a client sets it (CVE-2016-5385).
    #[must_use]
    pub fn from_env() -> Self {
        Self::from_lookup(|name| std::env::var(name).ok())
    }

    fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| lookup(name).filter(|value| !value.is_empty());
        let either = |lower: &str, upper: &str| set(lower).or_else(|| set(upper));
        let http = match set("REQUEST_METHOD") {
            None => either("http_proxy", "HTTP_PROXY"),
            Some(_) => set("http_proxy"),
        };
        Self { http, https: either("https_proxy", "HTTPS_PROXY"), no_proxy: either("no_proxy", "NO_PROXY") }
    }

    /// What decides for each request; `None` where there are no proxies.
    pub(super) fn chosen(&self) -> Result<Option<reqwest::Proxy>> {
        let address =
            |name, text: &Option<String>| text.as_ref().map(|text| proxy_address(name, text)).transpose();
        let (http, https) = (address("HTTP_PROXY", &self.http)?, address("HTTPS_PROXY", &self.https)?);
        if http.is_none() && https.is_none() {
            return Ok(None);
        }
        let direct = Direct::new(self.no_proxy.as_deref().unwrap_or_default());
        Ok(Some(reqwest::Proxy::custom(move |url| {
            let proxy = if url.scheme() == "https" { &https } else { &http };
            proxy.clone().filter(|_| !direct.has(url))
        })))
    }
}

/// What is reached without a proxy.
struct Direct {
    hosts: Matcher,
    /// Entries that are about one port.
    ports: BTreeMap<u16, Matcher>,
}

impl Direct {
    fn new(list: &str) -> Self {
        let mut hosts = vec!["localhost,127.0.0.0/8,::1"];
        let mut ports: BTreeMap<u16, Vec<&str>> = BTreeMap::new();
        for entry in list.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            match with_port(entry) {
                Some((host, port)) => ports.entry(port).or_default().push(plain(host)),
                None => hosts.push(plain(entry)),
            }
        }
        // The matcher says which requests go by a proxy: by any, so that the rest is known.
        let matcher =
            |hosts: Vec<&str>| Matcher::builder().all("http://proxy.invalid").no(hosts.join(",")).build();
        Self {
            hosts: matcher(hosts),
            ports: ports.into_iter().map(|(port, hosts)| (port, matcher(hosts))).collect(),
        }
    }

    fn has(&self, url: &Url) -> bool {
        let Ok(uri) = url.as_str().parse::<Uri>() else { return false };
        let here = url.port_or_known_default().and_then(|port| self.ports.get(&port));
        [Some(&self.hosts), here].into_iter().flatten().any(|matcher| matcher.intercept(&uri).is_none())
    }
}

/// `HOST:PORT` and `[ADDRESS]:PORT`, as curl and Go take them; `::1` and networks have none.
fn with_port(entry: &str) -> Option<(&str, u16)> {
    let (host, port) = entry.rsplit_once(':')?;
    if host.is_empty() || (host.contains(':') && !host.ends_with(']')) {
        return None;
    }
    Some((host, port.parse().ok()?))
}

/// As the matcher takes it: an address without brackets, a domain without the star before its dot.
fn plain(host: &str) -> &str {
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    address.or_else(|| host.strip_prefix('*').filter(|rest| rest.starts_with('.'))).unwrap_or(host)
}

impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = |text: &Option<String>| {
            text.as_ref().map(|text| match proxy_address("", text) {
                Ok(url) => url.host_str().unwrap_or_default().to_owned(),
                Err(_) => "(not an address)".to_owned(),
            })
        };
        f.debug_struct("Proxies")
            .field("http", &host(&self.http))
            .field("https", &host(&self.https))
            .field("no_proxy", &self.no_proxy)
            .finish()
    }
}

/// As curl and Go read it, `HOST:PORT` is an HTTP proxy.
fn proxy_address(name: &str, text: &str) -> Result<Url> {
    let whole = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let url = Url::parse(&whole).map_err(|_| not_a_proxy(name))?;
    if matches!(url.scheme(), "http" | "https") && url.host_str().is_some() {
        Ok(url)
    } else {
        Err(not_a_proxy(name))
    }
}

/// The value is not shown: it may have a password.
fn not_a_proxy(name: &str) -> Error {
    Error::new(ErrorKind::InvalidArgument, format!("the value of {name} is no address of an HTTP proxy"))
        .advise("write http://[USER:PASSWORD@]HOST:PORT, or unset it")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(pairs: &'static [(&str, &str)]) -> Proxies {
        Proxies::from_lookup(|name| {
            pairs.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn variables_of_both_cases() {
        let proxies = from(&[("HTTP_PROXY", "a:1"), ("http_proxy", "b:1"), ("HTTPS_PROXY", "c:1")]);
        assert_eq!((proxies.http.as_deref(), proxies.https.as_deref()), (Some("b:1"), Some("c:1")));
        assert_eq!(from(&[("HTTP_PROXY", "a"), ("REQUEST_METHOD", "GET")]), Proxies::default());
        assert_eq!(from(&[("https_proxy", "")]), Proxies::default());
    }

    #[test]
    fn a_proxys_password_is_not_shown() {
        let proxies = from(&[("http_proxy", "http://u:s3cret@p:1"), ("https_proxy", "u:s3cret@p")]);
        let shown = format!("{proxies:?}");
        assert!(!shown.contains("s3cret") && shown.contains("\"p\""), "{shown}");
        proxies.chosen().expect("two proxies").expect("some");
        for bad in ["ftp://u:s3cret@p", "http://", "http://u:s3cret@p:99999", "socks5://u:s3cret@p"] {
            let error = Proxies { https: Some(bad.into()), ..Proxies::default() }.chosen().expect_err(bad);
            assert!(error.to_string().contains("HTTPS_PROXY"), "{error}");
            assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
        }
    }

    #[test]
    fn what_goes_without_a_proxy() {
        let list =
            "a.example, .b.example,c.example:5000,[2001:db8::1]:5000,[2001:db8::2],10.0.0.0/8,*.d.example:77";
        let direct = Direct::new(list);
        let has = |url: &str| direct.has(&Url::parse(url).expect("a URL"));
        for url in [
            "https://a.example/v2/",
            "http://a.example:81/",
            "https://x.a.example/",
            "https://b.example/",
            "https://x.b.example/",
            "https://c.example:5000/v2/",
            "http://x.c.example:5000/",
            "https://[2001:db8::1]:5000/",
            "https://[2001:db8::2]:99/",
            "https://10.1.2.3/",
            "https://x.d.example:77/",
            "http://localhost:5000/",
            "http://127.8.8.8/",
            "http://[::1]/",
        ] {
            assert!(has(url), "{url}");
        }
        for url in [
            "https://aa.example/",
            "https://c.example/",
            "https://c.example:5001/",
            "https://[2001:db8::1]/",
            "https://11.1.2.3/",
            "https://x.d.example/",
            "https://localhost.example/",
        ] {
            assert!(!has(url), "{url}");
        }
        assert!(Direct::new("*").has(&Url::parse("https://x.example/").expect("a URL")));
        let https = Direct::new("c.example:443");
        assert!(https.has(&Url::parse("https://c.example/").expect("a URL")));
        assert!(!https.has(&Url::parse("http://c.example/").expect("a URL")));
        for odd in ["", ",,", ":", ":80", "a:", "a:b", "a:99999", "[::1", "::", "[]:1", "1.2.3.4/99"] {
            assert!(!Direct::new(odd).has(&Url::parse("https://x.example/").expect("a URL")), "{odd}");
        }
    }
}
