//! Which session has which instance.
//!
//! ```text
//! new ── somebody looks for an instance ── bound ── calls ── idle too long, old, or the instance is gone ── unknown
//! ```
//!
//! A session keeps a place of its instance, of which there are so many. Nothing here waits but for news.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Instant;

use tokio::sync::Notify;

use super::Refusal;
use super::inner::lock;
use crate::function::SessionAffinity;

/// Ids that are remembered after their sessions' time, the latest, where none may be used again.
const MAX_OVER: usize = 65_536;

/// The sessions of a pool.
pub(super) struct Sessions {
    rules: SessionAffinity,
    inner: Mutex<Inner>,
    /// Something has changed that somebody may wait for.
    news: Notify,
}

#[derive(Default)]
struct Inner {
    sessions: HashMap<Arc<str>, Session>,
    /// The ids that functions have chosen for sessions, by what these were known as before.
    names: HashMap<Arc<str>, Arc<str>>,
    /// Of each instance, by its id: those that sessions have, and those that are kept for one.
    places: HashMap<Arc<str>, u32>,
    over: Over,
}

/// Ids of sessions whose time is up, where none may be used again.
#[derive(Default)]
struct Over {
    ids: HashSet<Arc<str>>,
    /// Oldest first.
    order: VecDeque<Arc<str>>,
}

struct Session {
    /// `None` while one is looked for.
    instance: Option<Arc<str>>,
    /// Of that search, where none was found.
    outcome: Arc<OnceLock<Refusal>>,
    begun: Instant,
    used: Instant,
    /// Calls that run.
    running: usize,
    /// It goes on without a call.
    lasts: bool,
    /// What it was known as before its function chose an id.
    made: Option<Arc<str>>,
}

/// What is known of a session.
pub(super) enum Found {
    /// It has this instance.
    Bound(Arc<str>),
    /// It is new, or has ended: who asks looks for an instance now.
    New(Search),
    /// Somebody else looks. What came of it where that is nothing.
    Searched(Arc<OnceLock<Refusal>>),
    /// Its time is up, and its id begins no other.
    Over,
}

/// The task to find an instance for a session; dropping it gives it up.
pub(super) struct Search {
    sessions: Arc<Sessions>,
    id: Arc<str>,
    outcome: Arc<OnceLock<Refusal>>,
}

/// A place that is kept for a session.
pub(super) struct Place {
    sessions: Arc<Sessions>,
    instance: Arc<str>,
    /// It is a session's by now.
    taken: bool,
}

/// A call of a session, until it is dropped.
pub(super) struct Use {
    sessions: Arc<Sessions>,
    id: Arc<str>,
    instance: Arc<str>,
}

impl Sessions {
    pub(super) fn new(rules: &SessionAffinity) -> Arc<Self> {
        Arc::new(Self { rules: rules.clone(), inner: Mutex::default(), news: Notify::new() })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    /// What there is to wait for. Get it before looking.
    pub(super) fn news(&self) -> tokio::sync::futures::Notified<'_> {
        self.news.notified()
    }

    pub(super) fn find(self: &Arc<Self>, id: &str) -> Found {
        let now = Instant::now();
        let mut inner = self.inner();
        match inner.sessions.get(id) {
            Some(session) if self.is_over(session, now) => self.expire(&mut inner, id),
            Some(Session { instance: Some(instance), .. }) => return Found::Bound(Arc::clone(instance)),
            Some(session) => return Found::Searched(Arc::clone(&session.outcome)),
            None => {}
        }
        if inner.over.ids.contains(id) {
            return Found::Over;
        }
        let id: Arc<str> = id.into();
        let outcome: Arc<OnceLock<Refusal>> = Arc::default();
        let session = Session {
            instance: None,
            outcome: Arc::clone(&outcome),
            begun: now,
            used: now,
            running: 0,
            lasts: true,
            made: None,
        };
        inner.sessions.insert(Arc::clone(&id), session);
        Found::New(Search { sessions: Arc::clone(self), id, outcome })
    }

    fn is_over(&self, session: &Session, now: Instant) -> bool {
        let Some(_) = session.instance else { return false };
        let idle = session.running == 0 && now.saturating_duration_since(session.used) >= self.rules.idle;
        session.lasts && (idle || now.saturating_duration_since(session.begun) >= self.rules.lifetime)
    }

    /// The instance of a session, if there is such a session.
    pub(super) fn bound(&self, id: &str) -> Option<Arc<str>> {
        let (now, inner) = (Instant::now(), self.inner());
        inner.sessions.get(id).filter(|session| !self.is_over(session, now))?.instance.clone()
    }

    /// From now on it is over when none of its calls runs.
    pub(super) fn ends_with_its_calls(&self, id: &str) {
        if let Some(session) = self.inner().sessions.get_mut(id) {
            session.lasts = false;
        }
    }

    /// Gives a session that is known as `made` the id that its function has chosen, unless that is another's. It
    /// goes on without a call if it `lasts`.
    pub(super) fn name(&self, made: &str, id: &str, lasts: bool) {
        {
            let mut inner = self.inner();
            if inner.sessions.contains_key(id) {
                return;
            }
            let Some((made, mut session)) = inner.sessions.remove_entry(made) else { return };
            let id: Arc<str> = id.into();
            (session.lasts, session.made) = (lasts, Some(Arc::clone(&made)));
            inner.names.insert(made, Arc::clone(&id));
            inner.sessions.insert(id, session);
        }
        self.news.notify_waiters();
    }

    /// Ends a session, whatever runs.
    pub(super) fn end(&self, id: &str) {
        self.inner().remove(id);
        self.news.notify_waiters();
    }

    /// Keeps a place of an instance for a session, if there is one.
    pub(super) fn keep(&self, instance: &str) -> bool {
        let mut inner = self.inner();
        match inner.places.get_mut(instance) {
            Some(count) if *count >= self.rules.sessions => false,
            Some(count) => {
                *count += 1;
                true
            }
            None => {
                inner.places.insert(instance.into(), 1);
                true
            }
        }
    }

    /// What gives a place back that was kept.
    pub(super) fn place(self: &Arc<Self>, instance: &str) -> Place {
        Place { sessions: Arc::clone(self), instance: instance.into(), taken: false }
    }

    /// A call of a session begins; `None` when it is not this instance's any more.
    pub(super) fn use_of(self: &Arc<Self>, id: &str, instance: &str) -> Option<Use> {
        let mut inner = self.inner();
        let (id, _) = inner.sessions.get_key_value(id)?;
        let id = Arc::clone(id);
        let session = inner.sessions.get_mut(&id)?;
        if session.instance.as_deref() != Some(instance) {
            return None;
        }
        session.running += 1;
        Some(Use { sessions: Arc::clone(self), id, instance: instance.into() })
    }

    /// Whether an instance has sessions, or is to have one.
    pub(super) fn has(&self, instance: &str) -> bool {
        self.inner().places.contains_key(instance)
    }

    /// A session's instance is gone, for it alone.
    pub(super) fn unbind(&self, id: &str, instance: &str) {
        let mut inner = self.inner();
        if inner.sessions.get(id).is_some_and(|session| session.instance.as_deref() == Some(instance)) {
            inner.remove(id);
        }
    }

    /// An instance is gone, and so are its sessions.
    pub(super) fn forget(&self, instance: &str) {
        {
            let mut inner = self.inner();
            let Inner { sessions, names, places, .. } = &mut *inner;
            sessions.retain(|_, session| session.instance.as_deref() != Some(instance));
            names.retain(|_, id| sessions.contains_key(id));
            places.remove(instance);
        }
        self.news.notify_waiters();
    }

    /// Ends what is over.
    pub(super) fn sweep(&self) {
        let now = Instant::now();
        let mut inner = self.inner();
        let over = inner.sessions.iter().filter(|(_, session)| self.is_over(session, now));
        let over: Vec<Arc<str>> = over.map(|(id, _)| Arc::clone(id)).collect();
        over.iter().for_each(|id| self.expire(&mut inner, id));
    }

    /// The time of a session is up.
    fn expire(&self, inner: &mut Inner, id: &str) {
        inner.remove(id);
        if self.rules.single_use {
            inner.over.add(id.into());
        }
    }
}

impl Over {
    fn add(&mut self, id: Arc<str>) {
        if !self.ids.insert(Arc::clone(&id)) {
            return;
        }
        self.order.push_back(id);
        if self.order.len() > MAX_OVER
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
    }
}

impl Inner {
    fn remove(&mut self, id: &str) {
        let Some(session) = self.sessions.remove(id) else { return };
        if let Some(made) = session.made {
            self.names.remove(&made);
        }
        if let Some(instance) = session.instance {
            self.give_back(&instance);
        }
    }

    fn give_back(&mut self, instance: &str) {
        // One whose instance has been forgotten has none to give back.
        if let Some(count) = self.places.get_mut(instance) {
            *count -= 1;
            if *count == 0 {
                self.places.remove(instance);
            }
        }
    }
}

impl Search {
    /// There is no instance for it, and why: those that wait for it need not look again.
    pub(super) fn failed(&self, refusal: &Refusal) {
        // Nobody else sets it.
        let _ = self.outcome.set(refusal.clone());
    }

    /// Binds the session to the instance of a place, and begins its first call.
    pub(super) fn found(self, mut place: Place) -> Use {
        if let Some(session) = self.sessions.inner().sessions.get_mut(&self.id) {
            (session.instance, session.running) = (Some(Arc::clone(&place.instance)), 1);
            session.begun = Instant::now();
            place.taken = true;
        }
        let (sessions, id) = (Arc::clone(&self.sessions), Arc::clone(&self.id));
        Use { sessions, id, instance: Arc::clone(&place.instance) }
    }
}

impl Drop for Search {
    fn drop(&mut self) {
        {
            let mut inner = self.sessions.inner();
            if inner.sessions.get(&self.id).is_some_and(|session| session.instance.is_none()) {
                inner.sessions.remove(&self.id);
            }
        }
        self.sessions.news.notify_waiters();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.taken {
            self.sessions.inner().give_back(&self.instance);
            self.sessions.news.notify_waiters();
        }
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        {
            let mut inner = self.sessions.inner();
            let id = inner.names.get(&self.id).map_or_else(|| Arc::clone(&self.id), Arc::clone);
            // Another session of this id has calls of its own.
            let is_its = |session: &&mut Session| session.instance.as_ref() == Some(&self.instance);
            if let Some(session) = inner.sessions.get_mut(&id).filter(is_its) {
                session.running = session.running.saturating_sub(1);
                session.used = Instant::now();
                if session.running == 0 && !session.lasts {
                    inner.remove(&id);
                }
            }
        }
        self.sessions.news.notify_waiters();
    }
}

#[cfg(test)]
#[path = "sessions_tests.rs"]
mod tests;
