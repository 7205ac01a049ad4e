//! What a request of Alibaba's API is for, by its path.

use http::request::Parts;
use http::{Method, StatusCode, Uri};
use percent_encoding::percent_decode_str;

use super::{Fault, below};
use crate::api::Target;
use crate::platform::FcApi;

/// A request may name the function by this header instead of its path: the function then sees the path alone.
pub(in crate::api) const INVOCATION_TARGET: &str = "x-fc-invocation-target";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    V2016,
    V2021,
    V2023,
}

impl Version {
    pub(super) fn of(path: &str) -> Option<Self> {
        match path.split('/').nth(1)? {
            "2016-08-15" => Some(Self::V2016),
            "2021-04-06" => Some(Self::V2021),
            "2023-03-30" => Some(Self::V2023),
            _ => None,
        }
    }

    /// The shape of its errors.
    pub(super) fn shape(self) -> FcApi {
        match self {
            Self::V2016 | Self::V2021 => FcApi::V2,
            Self::V2023 => FcApi::V3,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Invoke it with an event.
    Invoke,
    /// Pass the request on, to another path when there is one.
    Forward { path: Option<Uri> },
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) version: Version,
    pub(super) target: Target,
    pub(super) action: Action,
}

impl Call {
    pub(super) fn of(parts: &Parts) -> Result<Self, Fault> {
        let path = parts.uri.path();
        if let Some(target) = parts.headers.get(INVOCATION_TARGET) {
            let target = target.to_str().unwrap_or_default();
            return Self::by_header(target, parts).ok_or_else(|| {
                Fault::argument(format!("{INVOCATION_TARGET} '{}' is no target", target.escape_default()))
            });
        }
        let call = Version::of(path).and_then(|version| Self::by_path(version, path, parts.uri.query()));
        match call {
            Some(call) if call.action != Action::Invoke || parts.method == Method::POST => Ok(call),
            _ => Err(not_supported(&parts.method, path)),
        }
    }

    fn by_path(version: Version, path: &str, query: Option<&str>) -> Option<Self> {
        let words: Vec<&str> = path.split('/').skip(2).collect();
        let qualifier = query.and_then(qualifier);
        let (namespace, name, action) = match (version, words.as_slice()) {
            (Version::V2023, ["functions", name, "invocations"]) => (None, name, Action::Invoke),
            (Version::V2016 | Version::V2021, ["services", service, "functions", name, "invocations"]) => {
                (Some(*service), name, Action::Invoke)
            }
            (Version::V2016 | Version::V2021, ["proxy", service, name, ..]) => {
                // The function gets the whole path.
                (Some(*service), name, Action::Forward { path: None })
            }
            _ => return None,
        };
        Some(Self { version, target: target(namespace, name, qualifier)?, action })
    }

    /// `2016-08-15/proxy/SERVICE/FUNCTION`.
    fn by_header(text: &str, parts: &Parts) -> Option<Self> {
        let words: Vec<&str> = text.trim_matches('/').split('/').collect();
        let [version, "proxy", service, name] = words.as_slice() else { return None };
        let version = Version::of(&format!("/{version}")).filter(|version| *version != Version::V2023)?;
        let path = below(parts.uri.path(), parts.uri.query());
        Some(Self { version, target: target(Some(service), name, None)?, action: Action::Forward { path } })
    }
}

/// A service may have its qualifier behind a dot.
fn target(service: Option<&str>, name: &str, qualifier: Option<String>) -> Option<Target> {
    let decoded = |text: &str| percent_decode_str(text).decode_utf8().ok().map(std::borrow::Cow::into_owned);
    let service = service.map(decoded).map_or(Some(None), |service| service.map(Some))?;
    let (namespace, of_service) = match service {
        Some(service) => match service.split_once('.') {
            Some((service, qualifier)) => (Some(service.to_owned()), Some(qualifier.to_owned())),
            None => (Some(service), None),
        },
        None => (None, None),
    };
    let name = decoded(name).filter(|name| !name.is_empty())?;
    Some(Target { namespace, name, qualifier: qualifier.or(of_service).filter(|name| !name.is_empty()) })
}

fn qualifier(query: &str) -> Option<String> {
    let value = query.split('&').find_map(|part| part.strip_prefix("qualifier="))?;
    Some(percent_decode_str(value).decode_utf8_lossy().into_owned())
}

fn not_supported(method: &Method, path: &str) -> Fault {
    let path: String = path.chars().take(256).collect();
    Fault::new(
        StatusCode::BAD_REQUEST,
        "PathNotSupported",
        format!("'{method}' against '{path}' is not supported"),
    )
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn call(method: &str, uri: &str, target: Option<&str>) -> Result<Call, Fault> {
        let mut request = Request::builder().method(method).uri(uri);
        if let Some(target) = target {
            request = request.header(INVOCATION_TARGET, target);
        }
        Call::of(&request.body(()).expect("a request").into_parts().0)
    }

    fn named(namespace: Option<&str>, name: &str, qualifier: Option<&str>) -> Target {
        let own = |text: &str| text.to_owned();
        Target { namespace: namespace.map(own), name: name.to_owned(), qualifier: qualifier.map(own) }
    }

    #[test]
    fn every_version_has_its_paths() {
        let invoke = |version, target| Ok(Call { version, target, action: Action::Invoke });
        assert_eq!(
            call("POST", "/2016-08-15/services/s/functions/f/invocations", None),
            invoke(Version::V2016, named(Some("s"), "f", None))
        );
        assert_eq!(
            call("POST", "/2016-08-15/services/s.prod/functions/a%2Db/invocations", None),
            invoke(Version::V2016, named(Some("s"), "a-b", Some("prod")))
        );
        assert_eq!(
            call("POST", "/2021-04-06/services/s/functions/f/invocations?x=1&qualifier=7", None),
            invoke(Version::V2021, named(Some("s"), "f", Some("7")))
        );
        assert_eq!(
            call("POST", "/2023-03-30/functions/f/invocations?qualifier=LATEST", None),
            invoke(Version::V2023, named(None, "f", Some("LATEST")))
        );
    }

    #[test]
    fn a_functions_own_paths_are_passed_on() {
        let whole = call("GET", "/2016-08-15/proxy/s.q/f/a/b?c=d", None).expect("a call");
        assert_eq!(whole.action, Action::Forward { path: None });
        assert_eq!(whole.target, named(Some("s"), "f", Some("q")));
        let clean = call("PUT", "/a/b?c=d", Some("2016-08-15/proxy/s/f")).expect("a call");
        assert_eq!(clean.action, Action::Forward { path: Some(Uri::from_static("/a/b?c=d")) });
        assert_eq!(clean.target, named(Some("s"), "f", None));
    }

    #[test]
    fn other_paths_and_methods_are_not_supported() {
        for (method, uri) in [
            ("GET", "/2023-03-30/functions/f/invocations"),
            ("POST", "/2023-03-30/functions/f"),
            ("POST", "/2023-03-30/functions//invocations"),
            ("POST", "/2023-03-30/services/s/functions/f/invocations"),
            ("POST", "/2016-08-15/functions/f/invocations"),
            ("POST", "/2016-08-15/proxy/s"),
            ("POST", "/2015-01-01/functions/f/invocations"),
            ("POST", "/"),
            ("GET", "/2023-03-30/functions/%ff/invocations"),
        ] {
            let fault = call(method, uri, None).expect_err(uri);
            assert_eq!((fault.status.as_u16(), fault.code), (400, "PathNotSupported"), "{uri}");
            assert!(fault.message.starts_with(&format!("'{method}' against '/")), "{}", fault.message);
        }
        for target in ["", "s/f", "2023-03-30/proxy/s/f", "2016-08-15/proxy/s/f/g", "2016-08-15/services/s/f"]
        {
            assert_eq!(call("GET", "/", Some(target)).expect_err(target).code, "InvalidArgument");
        }
    }
}
