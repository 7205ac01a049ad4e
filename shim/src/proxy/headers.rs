//! Headers that belong to one connection and are not passed on (RFC 9110, section 7.6.1).

use http::header::{
    CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue, TE, TRAILER, TRANSFER_ENCODING,
    UPGRADE,
};
use http::uri::Authority;
use http::{Method, Request, StatusCode};

const HOP_BY_HOP: [HeaderName; 5] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Removes them. `TE: trailers` and `Trailer` stay, since trailers are passed on; `Host` and
/// `Content-Length` stay even if `Connection` names them.
pub(crate) fn strip(headers: &mut HeaderMap) {
    let trailers = headers.get_all(TE).iter().any(|value| has_token(value, "trailers"));
    let keep = [HOST, CONTENT_LENGTH, TE, TRAILER];
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
        .filter(|name| !keep.contains(name))
        .collect();
    if headers.contains_key(TRANSFER_ENCODING) {
        headers.remove(CONTENT_LENGTH);
    }
    for name in HOP_BY_HOP.iter().chain(&named) {
        headers.remove(name);
    }
    headers.remove(TE);
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// Why a request is not passed on: it is one that server and proxy could read differently
/// (RFC 9112, sections 3.2 and 6.1), or that a function cannot answer.
pub(crate) fn refusal<B>(request: &Request<B>) -> Option<(StatusCode, &'static str)> {
    if request.method() == Method::CONNECT {
        return Some((StatusCode::METHOD_NOT_ALLOWED, "CONNECT is for proxies: a function is none\n"));
    }
    let mut hosts = request.headers().get_all(HOST).iter();
    let valid = |host: &HeaderValue| {
        let host = host.as_bytes();
        host.is_empty() || (Authority::try_from(host).is_ok() && !host.contains(&b'@'))
    };
    if !hosts.next().is_none_or(valid) || hosts.next().is_some() {
        return Some((StatusCode::BAD_REQUEST, "send one Host header, as HOST or HOST:PORT\n"));
    }
    let mut codings = request.headers().get_all(TRANSFER_ENCODING).iter();
    let chunked = |coding: &HeaderValue| coding.as_bytes().eq_ignore_ascii_case(b"chunked");
    if !codings.all(chunked) {
        return Some((StatusCode::NOT_IMPLEMENTED, "chunked is the only transfer coding here\n"));
    }
    None
}

/// The protocol that `Upgrade` asks for, if `Connection` says so too.
pub(crate) fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let asked = headers.get_all(CONNECTION).iter().any(|value| has_token(value, "upgrade"));
    headers.get(UPGRADE).filter(|_| asked).cloned()
}

/// Asks for, or agrees to, that protocol.
pub(crate) fn set_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, protocol);
}

/// Bytes of all names and values.
pub(crate) fn size(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum()
}

fn has_token(value: &HeaderValue, token: &str) -> bool {
    value.to_str().is_ok_and(|text| text.split(',').any(|part| part.trim().eq_ignore_ascii_case(token)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        map
    }

    fn stripped(pairs: &[(&'static str, &'static str)]) -> Vec<String> {
        let mut map = headers(pairs);
        strip(&mut map);
        let mut names: Vec<String> = map.keys().map(ToString::to_string).collect();
        names.sort();
        names
    }

    #[test]
    fn what_belongs_to_the_connection_goes() {
        let kept = stripped(&[
            ("connection", "close, X-Own"),
            ("connection", "x-other"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("transfer-encoding", "chunked"),
            ("content-length", "7"),
            ("upgrade", "h2c"),
            ("te", "gzip"),
            ("x-own", "1"),
            ("x-other", "1"),
            ("x-kept", "1"),
        ]);
        assert_eq!(kept, ["x-kept"]);
    }

    #[test]
    fn clients_cannot_have_what_requests_need_removed() {
        let kept =
            stripped(&[("connection", "host, content-length, te"), ("host", "a"), ("content-length", "1")]);
        assert_eq!(kept, ["content-length", "host"]);
    }

    #[test]
    fn trailers_stay_possible() {
        let kept = stripped(&[("te", "gzip, Trailers"), ("connection", "te"), ("trailer", "x-sum")]);
        assert_eq!(kept.len(), 2, "{kept:?}");
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        let status = |pairs: &[(&'static str, &'static str)]| {
            let mut request = Request::new(());
            *request.headers_mut() = headers(pairs);
            refusal(&request).map(|(status, _)| status.as_u16())
        };
        for host in ["f", "", "f:80", "[::1]:80", "a_b.example"] {
            assert_eq!(status(&[("host", host), ("transfer-encoding", "Chunked")]), None, "{host}");
        }
        assert_eq!(status(&[]), None);
        assert_eq!(status(&[("host", "a"), ("host", "a")]), Some(400));
        for host in ["a/b", "a b", "u:p@a"] {
            assert_eq!(status(&[("host", host)]), Some(400), "{host}");
        }
        assert_eq!(status(&[("transfer-encoding", "gzip, chunked")]), Some(501));
    }

    #[test]
    fn an_upgrade_needs_both_headers() {
        let both = headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]);
        assert_eq!(upgrade(&both).expect("asked"), "websocket");
        assert_eq!(upgrade(&headers(&[("upgrade", "websocket")])), None);
        assert_eq!(upgrade(&headers(&[("connection", "upgrade")])), None);
    }
}
