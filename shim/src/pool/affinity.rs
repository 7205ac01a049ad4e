//! Calls of sessions: each goes to the instance of its session.
//!
//! What the documentation leaves open: a call whose instance works on as many as it may waits, as every call does
//! here, and a session whose instance is gone is a new one with the same id.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use http::header::{COOKIE, HeaderName, HeaderValue, SET_COOKIE};
use http::{HeaderMap, Response};

use super::inner::Slot;
use super::sessions::{Found, Sessions};
use super::{Pool, Refusal};
use crate::function::SessionAffinity;
use crate::platform::new_session_id;
use crate::proxy::body::Body;

/// The cookie that has a session's id.
const COOKIE_NAME: &str = "x-fc-cookie-session-id";

/// Bytes of an id at most; a client's that is longer is none.
const MAX_ID: usize = 128;

/// The session that a request is of.
pub(super) struct Session {
    pub(super) id: String,
    /// Whether its client does not know it yet.
    made: bool,
}

impl Session {
    pub(super) fn of(affinity: &SessionAffinity, headers: &HeaderMap) -> Self {
        let given = match &affinity.header {
            Some(name) => headers.get(name).and_then(|value| value.to_str().ok()),
            None => cookie(headers),
        };
        match given.filter(|id| is_id(id)) {
            Some(id) => Self { id: id.to_owned(), made: false },
            None => Self { id: new_session_id(), made: true },
        }
    }

    /// Tells the function which session it is, where its client has not.
    pub(super) fn tell_function(&self, affinity: &SessionAffinity, headers: &mut HeaderMap) {
        if let (Some(name), true) = (&affinity.header, self.made) {
            self.insert(name, headers);
        }
    }

    /// Tells the client, when it does not know the session or its instance is another.
    pub(super) fn tell_client(&self, affinity: &SessionAffinity, bound: bool, response: &mut Response<Body>) {
        match &affinity.header {
            Some(name) if self.made => self.insert(name, response.headers_mut()),
            None if self.made || bound => {
                let seconds = affinity.lifetime.as_secs();
                let cookie = format!("{COOKIE_NAME}={}; Max-Age={seconds}", self.id);
                if let Ok(cookie) = HeaderValue::from_str(&cookie) {
                    response.headers_mut().append(SET_COOKIE, cookie);
                }
            }
            _ => {}
        }
    }

    fn insert(&self, name: &HeaderName, headers: &mut HeaderMap) {
        if let Ok(id) = HeaderValue::from_str(&self.id) {
            headers.insert(name.clone(), id);
        }
    }
}

/// Whether a text can be a session's id.
pub(super) fn is_id(text: &str) -> bool {
    (1..=MAX_ID).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// The session's id among the cookies.
fn cookie(headers: &HeaderMap) -> Option<&str> {
    let all = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = all.flat_map(|text| text.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, _)| *name == COOKIE_NAME).map(|(_, id)| id)
}

/// Counts a caller as long as it waits.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Pool {
    /// A slot of the session's instance, and whether that has just become its own.
    pub(super) async fn acquire_for(
        &self,
        sessions: &Arc<Sessions>,
        id: &str,
    ) -> std::result::Result<(Slot, bool), Refusal> {
        self.acquire_session(sessions, id, true).await
    }

    /// The same of a session that only its function begins: any slot when there is no such session any more, or
    /// when its instance takes no calls.
    pub(super) async fn acquire_known(
        &self,
        sessions: &Arc<Sessions>,
        id: &str,
    ) -> std::result::Result<Slot, Refusal> {
        self.acquire_session(sessions, id, false).await.map(|(slot, _)| slot)
    }

    async fn acquire_session(
        &self,
        sessions: &Arc<Sessions>,
        id: &str,
        begins: bool,
    ) -> std::result::Result<(Slot, bool), Refusal> {
        let begun = Instant::now();
        let until = begun + self.longest_wait();
        let mut waiting = None;
        loop {
            // Before looking: nothing that happens meanwhile is missed.
            let mut news = std::pin::pin!(sessions.news());
            news.as_mut().enable();
            let found = if begins {
                sessions.find(id)
            } else if let Some(instance) = sessions.bound(id) {
                Found::Bound(instance)
            } else {
                return self.acquire().await.map(|slot| (slot, false));
            };
            match found {
                Found::New(search) => {
                    let mut slot = self.acquire_where(true).await?;
                    let place = slot.place.take().ok_or(Refusal::Throttled)?;
                    slot.session = Some(search.found(place));
                    return Ok((slot, true));
                }
                Found::Bound(instance) => match self.0.slot_of(sessions, id, &instance) {
                    Ok(Some(slot)) => {
                        if waiting.is_some() {
                            self.0.watch.waited(begun.elapsed());
                        }
                        return Ok((slot, false));
                    }
                    Ok(None) => {}
                    Err(()) if !begins => return self.acquire().await.map(|slot| (slot, false)),
                    Err(()) => {
                        sessions.unbind(id, &instance);
                        continue;
                    }
                },
                Found::Searched => {}
            }
            if waiting.is_none() {
                let before = self.0.session_waiting.fetch_add(1, Ordering::SeqCst);
                waiting = Some(Waiting(&self.0.session_waiting));
                if before >= self.0.options.max_waiting {
                    return Err(self.throttled());
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            if tokio::time::timeout(left, news).await.is_err() {
                return Err(self.throttled());
            }
        }
    }

    fn throttled(&self) -> Refusal {
        if !self.0.closed.load(Ordering::SeqCst) {
            self.0.watch.throttled();
        }
        Refusal::Throttled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(affinity: &SessionAffinity, headers: &[(&'static str, &str)]) -> Session {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().expect("a value"));
        }
        Session::of(affinity, &map)
    }

    fn told(affinity: &SessionAffinity, session: &Session, bound: bool, name: &str) -> Option<String> {
        let mut response = Response::new(crate::proxy::body::full(bytes::Bytes::new()));
        session.tell_client(affinity, bound, &mut response);
        response.headers().get(name).map(|value| value.to_str().expect("text").to_owned())
    }

    #[test]
    fn a_cookie_among_others_names_the_session() {
        let affinity = SessionAffinity::default();
        let known = of(&affinity, &[("cookie", "a=b; x-fc-cookie-session-id=s-1; c=d")]);
        assert_eq!((known.id.as_str(), known.made), ("s-1", false));
        assert_eq!(told(&affinity, &known, false, "set-cookie"), None);
        let again = told(&affinity, &known, true, "set-cookie");
        assert_eq!(again.as_deref(), Some("x-fc-cookie-session-id=s-1; Max-Age=21600"));
        let second = of(&affinity, &[("cookie", "a=b"), ("cookie", "x-fc-cookie-session-id=s-2")]);
        assert_eq!(second.id, "s-2");
        let long = format!("x-fc-cookie-session-id={}", "x".repeat(MAX_ID + 1));
        for other in ["", "x-fc-cookie-session-id=", "x-fc-cookie-session-id-2=s", "a=b", &long] {
            let made = of(&affinity, &[("cookie", other)]);
            assert!(made.made && made.id.len() > 20, "{other}");
            let set = told(&affinity, &made, true, "set-cookie").expect("a cookie");
            assert_eq!(set, format!("x-fc-cookie-session-id={}; Max-Age=21600", made.id));
        }
        assert_ne!(of(&affinity, &[]).id, of(&affinity, &[]).id);
    }

    #[test]
    fn a_header_names_the_session_or_is_made() {
        let affinity =
            SessionAffinity { header: Some(HeaderName::from_static("x-mine")), ..SessionAffinity::default() };
        let known = of(&affinity, &[("x-mine", "s-1"), ("cookie", "x-fc-cookie-session-id=s-2")]);
        assert_eq!((known.id.as_str(), told(&affinity, &known, true, "x-mine")), ("s-1", None));
        let made = of(&affinity, &[("x-mine", "two words")]);
        assert!(made.made);
        assert_eq!(told(&affinity, &made, true, "x-mine").as_ref(), Some(&made.id));
        assert_eq!(told(&affinity, &made, true, "set-cookie"), None);
        let mut headers = HeaderMap::new();
        made.tell_function(&affinity, &mut headers);
        assert_eq!(headers.get("x-mine").and_then(|id| id.to_str().ok()), Some(made.id.as_str()));
    }
}
