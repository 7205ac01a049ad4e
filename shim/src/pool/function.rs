//! Calls of a function whose instances are a pool.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt as _};
use http::{Request, Response};

use super::affinity::Session;
use super::sessions::Sessions;
use super::{Pool, Refusal};
use crate::api::Function;
use crate::function::{SessionAffinity, SessionKey};
use crate::instance::invocation::Waited;
use crate::platform::{InvocationKind, PlatformAnswer};
use crate::proxy::body::Body;
use crate::proxy::{Later, of_platform, over_http};
use crate::{EventOutcome, FunctionConfig, InvokeOptions};

impl Function for Pool {
    fn config(&self) -> &FunctionConfig {
        Self::config(self)
    }

    fn longest(&self) -> Duration {
        self.longest_wait() + self.config().timeout
    }

    fn places(&self) -> usize {
        self.0.options.places(self.config())
    }

    fn invoke(&self, event: Bytes, mut options: InvokeOptions) -> BoxFuture<'_, EventOutcome> {
        async move {
            let begun = Instant::now();
            match self.acquire().await {
                Ok(slot) => {
                    options.waited = begun.elapsed();
                    let (outcome, receipt) = slot.instance().invoke_metered(event, options).await;
                    // The instance works on, while the answer waits for its record.
                    drop(slot);
                    receipt.settled().await;
                    outcome
                }
                Err(refusal) => refused_event(self.config(), &refusal, options.request_id, begun.elapsed()),
            }
        }
        .boxed()
    }

    fn forward(
        &self,
        client: Option<SocketAddr>,
        mut request: Request<Body>,
    ) -> BoxFuture<'static, Response<Body>> {
        let pool = self.clone();
        async move {
            let begun = Instant::now();
            // What is for later belongs to no session, as in the cloud.
            let sessions = pool.0.sessions.as_ref().zip(pool.config().session_affinity.as_ref());
            if let Some((sessions, affinity)) =
                sessions.filter(|_| request.extensions().get::<Later>().is_none())
            {
                if let SessionKey::Mcp(kind) = &affinity.key {
                    let passed = pool.forward_mcp(kind, sessions, client, request).await;
                    return passed.unwrap_or_else(|refusal| pool.refused(&refusal));
                }
                if let Some(session) = Session::of(pool.config(), affinity, &request) {
                    return pool.forward_session(session, sessions, affinity, client, request).await;
                }
            }
            match pool.acquire().await {
                Ok(slot) => {
                    request.extensions_mut().insert(Waited(begun.elapsed()));
                    let instance = Arc::clone(slot.instance());
                    instance.pass(client, request, Some(Box::new(slot))).await
                }
                Err(refusal) => {
                    let told = request.extensions().get::<Later>().map(|later| later.request_id.clone());
                    let request_id = told.unwrap_or_else(|| pool.config().platform.new_request_id());
                    of_platform(refuse_http(pool.config(), &refusal, &request_id))
                }
            }
        }
        .boxed()
    }
}

impl Pool {
    /// Passes a request on to the instance of its session.
    async fn forward_session(
        &self,
        mut session: Session,
        sessions: &Arc<Sessions>,
        affinity: &SessionAffinity,
        client: Option<SocketAddr>,
        mut request: Request<Body>,
    ) -> Response<Body> {
        let begun = Instant::now();
        let mut acquired = self.acquire_for(sessions, &session.id).await;
        if matches!((&acquired, &affinity.key), (Err(Refusal::SessionOver(_)), SessionKey::Cookie(_))) {
            // Ids of cookies are the platform's to choose; clients keep them longer than they last.
            session = Session::made();
            acquired = self.acquire_for(sessions, &session.id).await;
        }
        match acquired {
            Ok((slot, bound)) => {
                session.tell_function(affinity, request.headers_mut());
                request.extensions_mut().insert(Waited(begun.elapsed()));
                let instance = Arc::clone(slot.instance());
                let mut response = instance.pass(client, request, Some(Box::new(slot))).await;
                session.tell_client(affinity, bound, &mut response);
                response
            }
            Err(refusal) => self.refused(&refusal),
        }
    }

    fn refused(&self, refusal: &Refusal) -> Response<Body> {
        let request_id = self.config().platform.new_request_id();
        of_platform(refuse_http(self.config(), refusal, &request_id))
    }
}

/// What the platform tells a caller that got no instance.
fn refuse(
    config: &FunctionConfig,
    refusal: &Refusal,
    request_id: &str,
    kind: InvocationKind,
) -> PlatformAnswer {
    let throttled = || config.platform.throttled(config, request_id, kind);
    match refusal {
        Refusal::Start(error) => error.answer_to(request_id, kind).unwrap_or_else(throttled),
        Refusal::Throttled => throttled(),
        Refusal::SessionOver(id) => config.platform.session_over(id, request_id, kind),
    }
}

/// The same for the client of an HTTP request.
fn refuse_http(config: &FunctionConfig, refusal: &Refusal, request_id: &str) -> PlatformAnswer {
    over_http(config, |kind| refuse(config, refusal, request_id, kind))
}

/// The same as the outcome of an event call.
pub(super) fn refused_event(
    config: &FunctionConfig,
    refusal: &Refusal,
    request_id: Option<String>,
    duration: Duration,
) -> EventOutcome {
    let request_id = request_id.unwrap_or_else(|| config.platform.new_request_id());
    let answer = refuse(config, refusal, &request_id, InvocationKind::Event);
    EventOutcome::refused(request_id, answer, duration)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::scf;
    use crate::platform::{StartCause, StartFailure};
    use crate::{Error, ErrorKind, HttpEvent};

    #[test]
    fn who_gets_no_instance_is_told_in_the_form_of_its_way() {
        let mut config = FunctionConfig::new("resize", scf());
        let mut told = |form| {
            config.http_event = form;
            let answer = refuse_http(&config, &Refusal::Throttled, "the-request");
            let body: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
            (answer.status.as_u16(), body["statusCode"].clone(), body["errorCode"].clone())
        };
        let none = serde_json::Value::Null;
        for form in [None, Some(HttpEvent::Url)] {
            assert_eq!(told(form), (432, 432.into(), none.clone()), "{form:?}");
        }
        assert_eq!(told(Some(HttpEvent::Gateway)), (200, 432.into(), (-1).into()));
    }

    #[test]
    fn all_who_waited_for_a_start_that_failed_have_their_own_request() {
        for platform in [scf(), crate::platform::fc()] {
            let config = FunctionConfig::new("resize", platform);
            let failure = StartFailure::of(&config, "of-the-start".to_owned(), StartCause::TimedOut);
            let error = Error::new(ErrorKind::StartFailed, "late").with_start(platform, failure);
            let refusal = Refusal::Start(Arc::new(error));
            let header = format!("x-{}-request-id", platform.name());
            for own in ["one", "another"] {
                assert_eq!(refuse_http(&config, &refusal, own).headers[&header], own);
                let outcome = refused_event(&config, &refusal, Some(own.to_owned()), Duration::ZERO);
                let text = String::from_utf8_lossy(&outcome.body).into_owned();
                assert_eq!(
                    (outcome.request_id.as_str(), &outcome.headers[&header]),
                    (own, &own.parse().expect("a value"))
                );
                assert!(text.contains(own) && !text.contains("of-the-start"), "{text}");
            }
        }
    }
}
