//! Sessions of the Model Context Protocol (<https://modelcontextprotocol.io/specification>), whose ids functions
//! choose: in a header of the answer (Streamable HTTP), or in the first event of a stream (HTTP with SSE).
//!
//! What FC's documentation leaves open: a request with an id that is no session's goes to any instance, which tells
//! its client so, and a request without an id that begins no session does too.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use http::header::{CONTENT_TYPE, HeaderName};
use http::{HeaderMap, Method, Request, Response};
use http_body_util::BodyExt as _;

use super::affinity::{in_query, is_id};
use super::inner::Slot;
use super::sessions::{Sessions, Use};
use super::{Pool, Refusal};
use crate::function::Mcp;
use crate::instance::invocation::Waited;
use crate::platform::new_session_id;
use crate::proxy::body::Body;

/// Names of the parameter that has the id in an address, as servers write it, unless the function says another.
const PARAMETERS: [&str; 2] = ["session_id", "sessionId"];

/// Bytes of a stream in which its first event is looked for, each time that some have come: not so many that single bytes
/// would cost much.
const MAX_FIRST: usize = 4 * 1024;

/// What a request is to the sessions.
enum Part {
    /// Of this session.
    Of(String),
    /// It asks for a new one, which is known by this name until the function has chosen its id.
    Begins(String),
    /// None of theirs.
    Other,
}

impl Part {
    fn of<B>(kind: &Mcp, sessions: &Sessions, request: &Request<B>) -> Self {
        let given = match kind {
            Mcp::Streamable { header } => id_in(request.headers(), header),
            Mcp::Sse { parameter, .. } => {
                request.uri().query().and_then(|query| id_in_query(query, parameter.as_deref()))
            }
        };
        let begins = match kind {
            Mcp::Streamable { .. } => request.method() == Method::POST,
            Mcp::Sse { path, .. } => request.method() == Method::GET && request.uri().path() == path,
        };
        match given {
            Some(id) if sessions.bound(id).is_some() => Self::Of(id.to_owned()),
            None if begins => Self::Begins(new_session_id()),
            _ => Self::Other,
        }
    }
}

/// Has a session go on until its function has named it, or its client has left.
struct UntilNamed<'a>(&'a Pool, Option<Use>);

impl Drop for UntilNamed<'_> {
    fn drop(&mut self) {
        if self.1.take().is_some() {
            // Somebody may wait for its place.
            self.0.0.go_on();
        }
    }
}

impl Pool {
    /// Passes a request on to the instance of its session.
    pub(super) async fn forward_mcp(
        &self,
        kind: &Mcp,
        sessions: &Arc<Sessions>,
        client: Option<SocketAddr>,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, Refusal> {
        let (part, begun) = (Part::of(kind, sessions, &request), Instant::now());
        let slot = self.acquire_part(sessions, &part).await?;
        request.extensions_mut().insert(Waited(begun.elapsed()));
        let ends = request.method() == Method::DELETE;
        let instance = Arc::clone(slot.instance());
        // Until it has its name: the slot may be let go before the answer is here.
        let _until_named = match &part {
            Part::Begins(made) => Some(UntilNamed(self, sessions.use_of(made, instance.id()))),
            Part::Of(_) | Part::Other => None,
        };
        let response = instance.pass(client, request, Some(Box::new(slot))).await;
        Ok(match (part, kind) {
            (Part::Begins(made), Mcp::Streamable { header }) => {
                if let Some(id) = id_in(response.headers(), header) {
                    sessions.name(&made, id, true);
                }
                response
            }
            (Part::Begins(made), Mcp::Sse { parameter, .. }) if is_stream(response.headers()) => {
                let (sessions, parameter) = (Arc::clone(sessions), parameter.clone());
                response.map(|body| opening(body, parameter, move |id| sessions.name(&made, id, false)))
            }
            (Part::Of(id), Mcp::Streamable { .. }) if ends && response.status().is_success() => {
                sessions.end(&id);
                // Somebody may wait for its place.
                self.0.go_on();
                response
            }
            _ => response,
        })
    }

    async fn acquire_part(&self, sessions: &Arc<Sessions>, part: &Part) -> Result<Slot, Refusal> {
        match part {
            Part::Of(id) => self.acquire_known(sessions, id).await,
            Part::Begins(made) => {
                let (slot, _) = self.acquire_for(sessions, made).await?;
                sessions.ends_with_its_calls(made);
                Ok(slot)
            }
            Part::Other => self.acquire().await,
        }
    }
}

fn id_in<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok()).filter(|id| is_id(id))
}

fn id_in_query<'a>(query: &'a str, parameter: Option<&str>) -> Option<&'a str> {
    let id = match parameter {
        Some(name) => in_query(query, name),
        None => PARAMETERS.iter().find_map(|name| in_query(query, name)),
    };
    id.filter(|id| is_id(id))
}

fn is_stream(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    kind.is_some_and(|kind| kind.starts_with("text/event-stream"))
}

/// The same stream, whose first event `endpoint` names the session.
fn opening(body: Body, parameter: Option<String>, named: impl FnOnce(&str) + Send + 'static) -> Body {
    let mut beginning = Beginning { seen: Some((Vec::new(), named)), parameter };
    body.map_frame(move |frame| {
        if let Some(bytes) = frame.data_ref() {
            // Before its client can answer.
            beginning.look(bytes);
        }
        frame
    })
    .boxed_unsync()
}

/// What has come of a stream; `None` when the session has a name, or will have none.
struct Beginning<F> {
    seen: Option<(Vec<u8>, F)>,
    parameter: Option<String>,
}

impl<F: FnOnce(&str)> Beginning<F> {
    fn look(&mut self, bytes: &[u8]) {
        let Some((mut seen, named)) = self.seen.take() else { return };
        seen.extend_from_slice(&bytes[..bytes.len().min(MAX_FIRST.saturating_sub(seen.len()))]);
        let breaks = bytes.iter().any(|byte| matches!(byte, b'\n' | b'\r'));
        match breaks.then(|| endpoint(&seen)).flatten() {
            Some(address) => {
                let query = address.split_once('?').map(|(_, query)| query);
                if let Some(id) = query.and_then(|query| id_in_query(query, self.parameter.as_deref())) {
                    named(id);
                }
            }
            None if seen.len() < MAX_FIRST => self.seen = Some((seen, named)),
            None => {}
        }
    }
}

/// The address in the first whole event `endpoint`.
fn endpoint(stream: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(stream).replace("\r\n", "\n").replace('\r', "\n");
    let (whole, _) = text.rsplit_once("\n\n")?;
    whole.split("\n\n").find_map(|event| {
        let field = |name: &str| {
            event.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
        };
        field("event").filter(|name| *name == "endpoint")?;
        field("data").map(str::to_owned)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use bytes::Bytes;
    use http_body_util::StreamBody;
    use hyper::body::Frame;

    use super::*;
    use crate::proxy::body::BodyError;

    #[test]
    fn the_id_is_in_the_address_of_the_first_event() {
        let whole = "event: endpoint\ndata: /messages/?x=1&session_id=s-1\n\n";
        for cut in 0..whole.len() {
            assert_eq!(endpoint(&whole.as_bytes()[..cut]), None, "{cut}");
        }
        for (stream, address) in [
            (whole, Some("/messages/?x=1&session_id=s-1")),
            ("event:endpoint\r\ndata:/m?sessionId=s\r\n\r\nevent: message\r\n", Some("/m?sessionId=s")),
            (": ping\n\nevent: endpoint\ndata: /m\n\n", Some("/m")),
            ("event: message\ndata: /m\n\n", None),
            ("data: /m?sessionId=s\n\n", None),
            ("event: endpoint\n\n", None),
        ] {
            assert_eq!(endpoint(stream.as_bytes()).as_deref(), address, "{stream:?}");
        }
        assert_eq!(id_in_query("x=1&session_id=s-1", None), Some("s-1"));
        assert_eq!(id_in_query("x=1&session_id=s-1", Some("x")), Some("1"));
        assert_eq!(id_in_query("x=1&session_id=s-1", Some("y")), None);
        let long = format!("sessionId={}", "x".repeat(200));
        for none in ["", "session_id=", "session=1", "sessionId", "sessionId=a b", &long] {
            assert_eq!(id_in_query(none, None), None, "{none:?}");
        }
    }

    #[tokio::test]
    async fn a_stream_passes_unchanged_however_it_comes() {
        let whole = "event: endpoint\ndata: /m?sessionId=s-7\n\nevent: message\ndata: {}\n\n";
        for size in [1, 7, whole.len()] {
            let parts: Vec<Bytes> = whole.as_bytes().chunks(size).map(Bytes::copy_from_slice).collect();
            let frames = parts.into_iter().map(|part| Ok::<_, BodyError>(Frame::data(part)));
            let body = StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync();
            let named = Arc::new(Mutex::new(Vec::new()));
            let noted = Arc::clone(&named);
            let opened =
                opening(body, None, move |id: &str| noted.lock().expect("a lock").push(id.to_owned()));
            let passed = opened.collect().await.expect("passed").to_bytes();
            assert_eq!(
                (passed, &*named.lock().expect("a lock")),
                (Bytes::from(whole), &vec!["s-7".to_owned()])
            );
        }
        // One that names none costs no more than its beginning.
        let noise = vec![b'x'; 3 * MAX_FIRST];
        let named = |_: &str| panic!("there is no event");
        let mut beginning = Beginning { seen: Some((Vec::new(), named)), parameter: None };
        beginning.look(&noise);
        assert!(beginning.seen.is_none());
    }
}
