//! Requests that must show a token.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt as _};
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use ring::hmac;

use super::body::{self, Body};
use super::server::Handler;
use crate::Secret;

/// Answers those that show the token; others learn nothing.
pub(crate) struct Guarded {
    inner: Arc<dyn Handler>,
    /// By which two texts are compared in a time that tells nothing of them.
    key: hmac::Key,
    tag: hmac::Tag,
}

impl Guarded {
    pub(crate) fn new(inner: Arc<dyn Handler>, token: &Secret) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"token");
        let tag = hmac::sign(&key, token.expose().as_bytes());
        Self { inner, key, tag }
    }

    fn admits<B>(&self, request: &Request<B>) -> bool {
        let shown = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = shown.and_then(|shown| {
            let (scheme, token) = shown.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
        });
        token.is_some_and(|token| hmac::verify(&self.key, token.as_bytes(), self.tag.as_ref()).is_ok())
    }
}

impl Handler for Guarded {
    fn time(&self) -> Duration {
        self.inner.time()
    }

    fn answer(
        self: Arc<Self>,
        client: Option<SocketAddr>,
        mut request: Request<Incoming>,
    ) -> BoxFuture<'static, Response<Body>> {
        if !self.admits(&request) {
            tracing::warn!(?client, "a request without the token is refused");
            return std::future::ready(refusal()).boxed();
        }
        // It is nobody's beyond here.
        request.headers_mut().remove(AUTHORIZATION);
        Arc::clone(&self.inner).answer(client, request)
    }
}

fn refusal() -> Response<Body> {
    let text = r#"{"error":{"kind":"unauthorized","message":"the request shows no valid token","advice":"send Authorization: Bearer with the node's token","retryable":false}}"#;
    let mut response = Response::new(body::full(text.into()));
    *response.status_mut() = StatusCode::UNAUTHORIZED;
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nobody;

    impl Handler for Nobody {
        fn time(&self) -> Duration {
            Duration::ZERO
        }

        fn answer(
            self: Arc<Self>,
            _: Option<SocketAddr>,
            _: Request<Incoming>,
        ) -> BoxFuture<'static, Response<Body>> {
            std::future::ready(refusal()).boxed()
        }
    }

    #[test]
    fn the_token_alone_opens() {
        let guarded = Guarded::new(Arc::new(Nobody), &Secret::new("0123456789abcdef"));
        let admits = |value: Option<&str>| {
            let mut request = Request::new(());
            if let Some(value) = value {
                request.headers_mut().insert(AUTHORIZATION, HeaderValue::from_str(value).expect("a value"));
            }
            guarded.admits(&request)
        };
        assert!(admits(Some("Bearer 0123456789abcdef")) && admits(Some("bearer  0123456789abcdef")));
        for wrong in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer 0123456789abcde",
            "Bearer 0123456789abcdef0",
            "Basic 0123456789abcdef",
            "0123456789abcdef",
        ] {
            assert!(!admits(Some(wrong)), "{wrong:?}");
        }
        assert!(!admits(None));
    }
}
