//! Calls of sessions: each goes to the instance of its session.
//!
//! What the documentation leaves open: a call whose instance works on as many as it may waits, as every call does
//! here, and a session whose instance is gone is a new one with the same id.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use http::header::{COOKIE, HeaderName, HeaderValue, SET_COOKIE};
use http::{HeaderMap, Request, Response};

use super::inner::Slot;
use super::sessions::{Found, Search, Sessions};
use super::{Pool, Refusal, Wish};
use crate::FunctionConfig;
use crate::function::{SessionAffinity, SessionKey};
use crate::platform::{self, new_session_id};
use crate::proxy::body::Body;

/// Bytes of an id at most; a client's that is longer is none.
const MAX_ID: usize = 128;

/// The session that a request is of.
pub(super) struct Session {
    pub(super) id: String,
    /// Whether its client does not know it yet.
    made: bool,
}

impl Session {
    /// `None` when it is of none.
    pub(super) fn of<B>(
        config: &FunctionConfig,
        affinity: &SessionAffinity,
        request: &Request<B>,
    ) -> Option<Self> {
        let headers = request.headers();
        let given = match &affinity.key {
            SessionKey::Header(name) => headers.get(name).and_then(|value| value.to_str().ok()),
            SessionKey::Cookie(name) => cookie(headers, name),
            SessionKey::Query(name) => request.uri().query().and_then(|query| in_query(query, name)),
            SessionKey::Mcp(_) => None,
        };
        let narrow = config.platform.name() == platform::scf().name();
        match (given.filter(|id| is_id(id) && (!narrow || is_narrow(id))), &affinity.key) {
            (Some(id), _) => Some(Self { id: id.to_owned(), made: false }),
            (None, SessionKey::Query(_) | SessionKey::Mcp(_)) => None,
            (None, _) => Some(Self::made()),
        }
    }

    /// A new one.
    pub(super) fn made() -> Self {
        Self { id: new_session_id(), made: true }
    }

    /// Tells the function which session it is, where its client has not.
    pub(super) fn tell_function(&self, affinity: &SessionAffinity, headers: &mut HeaderMap) {
        if let (SessionKey::Header(name), true) = (&affinity.key, self.made) {
            self.insert(name, headers);
        }
    }

    /// Tells the client, when it does not know the session or its instance is another.
    pub(super) fn tell_client(&self, affinity: &SessionAffinity, bound: bool, response: &mut Response<Body>) {
        // On scf clients may choose ids, and their cookies are theirs.
        let anew = |name: &str| bound && name == SessionKey::FC_COOKIE;
        match &affinity.key {
            SessionKey::Header(name) if self.made => self.insert(name, response.headers_mut()),
            SessionKey::Cookie(name) if self.made || anew(name) => {
                let seconds = affinity.lifetime.as_secs();
                let cookie = format!("{name}={}; Max-Age={seconds}", self.id);
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

/// Whether it has only what SCF's documents allow.
fn is_narrow(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

/// The value of a query's parameter, as it stands there.
pub(super) fn in_query<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
}

/// The session's id among the cookies.
fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let all = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = all.flat_map(|text| text.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(key, _)| *key == name).map(|(_, id)| id)
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
        let (begun, mut waited) = (Instant::now(), false);
        let found = self.find_slot(sessions, id, begins, &mut waited);
        let result =
            tokio::time::timeout(self.longest_wait(), found).await.unwrap_or(Err(Refusal::Throttled));
        self.tell(&result, waited, begun);
        result
    }

    async fn find_slot(
        &self,
        sessions: &Arc<Sessions>,
        id: &str,
        begins: bool,
        waited: &mut bool,
    ) -> std::result::Result<(Slot, bool), Refusal> {
        let mut waiting = None;
        loop {
            // Before looking: nothing that happens meanwhile is missed.
            let mut news = std::pin::pin!(sessions.news());
            news.as_mut().enable();
            let found = if begins {
                sessions.find(id)
            } else {
                match sessions.bound(id) {
                    Some(instance) => Found::Bound(instance),
                    None => return Ok((self.take_noted(Wish::Slot, waited).await?, false)),
                }
            };
            let outcome = match found {
                Found::New(search) => return Ok((self.begin(search, waited).await?, true)),
                Found::Bound(instance) => {
                    waiting = None;
                    // It does not end meanwhile for want of calls.
                    let Some(used) = sessions.use_of(id, &instance) else { continue };
                    let (slot, has_waited) = self.take(Wish::Of(&instance)).await;
                    *waited |= has_waited;
                    if let Some(mut slot) = slot? {
                        slot.session = Some(used);
                        return Ok((slot, false));
                    }
                    if !begins {
                        return Ok((self.take_noted(Wish::Slot, waited).await?, false));
                    }
                    sessions.unbind(id, &instance);
                    continue;
                }
                Found::Over => {
                    // Somebody may wait for its place.
                    self.0.go_on();
                    return Err(Refusal::SessionOver(id.to_owned()));
                }
                Found::Searched(outcome) => outcome,
            };
            if waiting.is_none() {
                let before = self.0.session_waiting.fetch_add(1, Ordering::SeqCst);
                waiting = Some(Waiting(&self.0.session_waiting));
                if before >= self.0.options.max_waiting {
                    return Err(Refusal::Throttled);
                }
            }
            *waited = true;
            news.await;
            if let Some(refusal) = outcome.get() {
                return Err(refusal.clone());
            }
        }
    }

    /// An instance for a session that has none.
    async fn begin(&self, search: Search, waited: &mut bool) -> std::result::Result<Slot, Refusal> {
        let mut slot = match self.take_noted(Wish::Place, waited).await {
            Ok(slot) => slot,
            Err(refusal) => {
                search.failed(&refusal);
                return Err(refusal);
            }
        };
        let place = slot.place.take().ok_or(Refusal::Throttled)?;
        slot.session = Some(search.found(place));
        Ok(slot)
    }

    async fn take_noted(&self, wish: Wish<'_>, waited: &mut bool) -> std::result::Result<Slot, Refusal> {
        let (slot, has_waited) = self.take(wish).await;
        *waited |= has_waited;
        slot?.ok_or(Refusal::Throttled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(
        platform: &'static dyn crate::Platform,
        key: SessionKey,
        target: &str,
        headers: &[(&'static str, &str)],
    ) -> (SessionAffinity, Option<Session>) {
        let affinity = SessionAffinity { key, ..SessionAffinity::default() };
        let mut request = Request::get(target).body(()).expect("a request");
        for (name, value) in headers {
            request.headers_mut().append(*name, value.parse().expect("a value"));
        }
        let session = Session::of(&FunctionConfig::new("f", platform), &affinity, &request);
        (affinity, session)
    }

    fn of(affinity: &SessionAffinity, headers: &[(&'static str, &str)]) -> Session {
        on(platform::fc(), affinity.key.clone(), "/", headers).1.expect("a session")
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
        let key = SessionKey::Header(HeaderName::from_static("x-mine"));
        let affinity = SessionAffinity { key, ..SessionAffinity::default() };
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

    #[test]
    fn on_scf_an_id_is_in_what_the_function_names() {
        let id = |(_, session): (SessionAffinity, Option<Session>)| session.map(|session| session.id);
        let on = |key: &SessionKey, target: &str, headers: &[(&'static str, &str)]| {
            super::tests::on(platform::scf(), key.clone(), target, headers)
        };
        let query = SessionKey::Query("session".to_owned());
        assert_eq!(id(on(&query, "/a?x=1&session=s-1&session=s-2", &[])).as_deref(), Some("s-1"));
        for none in ["/", "/?session=", "/?session", "/?session=a.b", "/?sessions=a", "/session=a"] {
            assert_eq!(id(on(&query, none, &[("session", "a")])), None, "{none}");
        }
        let cookie = SessionKey::Cookie("session".to_owned());
        let (affinity, known) = on(&cookie, "/", &[("cookie", "session=s_1")]);
        let known = known.expect("a session");
        assert_eq!((known.id.as_str(), told(&affinity, &known, true, "set-cookie")), ("s_1", None));
        let (affinity, made) = on(&cookie, "/", &[("cookie", "session=a.b")]);
        let made = made.expect("a session");
        let set = told(&affinity, &made, true, "set-cookie").expect("a cookie");
        assert_eq!(set, format!("session={}; Max-Age=21600", made.id));
        let header = SessionKey::Header(HeaderName::from_static("x-mine"));
        assert_eq!(id(on(&header, "/", &[("x-mine", "s-1")])).as_deref(), Some("s-1"));
        assert_ne!(id(on(&header, "/", &[("x-mine", "s:1")])).as_deref(), Some("s:1"));
    }
}
