//! Calls of a function whose instances are a pool.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt as _};
use http::{Request, Response};

use super::affinity::Session;
use super::refused::{Asked, refuse_event, refuse_http};
use super::sessions::Sessions;
use super::{Pool, Refusal};
use crate::api::Function;
use crate::function::{SessionAffinity, SessionKey};
use crate::instance::invocation::Waited;
use crate::proxy::body::Body;
use crate::proxy::{Later, of_platform};
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
                Err(refusal) => refuse_event(self.config(), &refusal, &options, begun.elapsed()),
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
                    let asked = Asked::over_http(client, &request);
                    let passed = pool.forward_mcp(kind, sessions, client, request).await;
                    return passed.unwrap_or_else(|refusal| pool.refused(&refusal, asked));
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
                Err(refusal) => pool.refused(&refusal, Asked::over_http(client, &request)),
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
            Err(refusal) => self.refused(&refusal, Asked::over_http(client, &request)),
        }
    }

    fn refused(&self, refusal: &Refusal, asked: Asked) -> Response<Body> {
        of_platform(refuse_http(self.config(), refusal, asked))
    }
}
