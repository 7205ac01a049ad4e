//! Session affinity (fc): the calls of a session go to one instance.

use std::ops::RangeInclusive;
use std::time::Duration;

use http::HeaderName;

use super::{FunctionConfig, Mode};
use crate::platform;

/// Sessions that one instance may have, and as many as it has unless told.
const SESSIONS: RangeInclusive<u32> = 1..=200;
const DEFAULT_SESSIONS: u32 = 20;

/// How long a session lives unless told, and at most: with cookies six hours.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(21_600);
const MAX_LIFETIME: Duration = Duration::from_secs(86_400);

/// How long one may be without a call, unless told.
const DEFAULT_IDLE: Duration = Duration::from_secs(1800);

/// What an instance of a function with session affinity works on at once, as in the cloud: its sessions share it.
pub const AFFINITY_CONCURRENCY: u32 = 200;

/// Which calls belong together, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionAffinity {
    /// The request header that has a session's id; the cookie of the platform when `None`.
    pub header: Option<HeaderName>,
    /// Sessions of the Model Context Protocol, whose ids are the function's.
    pub mcp: Option<Mcp>,
    /// Sessions that one instance may have at once, 1 to 200.
    pub sessions: u32,
    /// How long a session lives, from its first call on.
    pub lifetime: Duration,
    /// How long it may be without a call.
    pub idle: Duration,
}

/// How clients of the Model Context Protocol talk with the function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mcp {
    /// Streamable HTTP: the answer to a POST has the session's id in `Mcp-Session-Id`, and DELETE ends it.
    Streamable,
    /// HTTP with SSE: a stream is the session, and its first event names the id.
    Sse {
        /// The path of the stream.
        path: String,
    },
}

impl Mcp {
    /// Where the stream of SSE is, unless told.
    pub const SSE_PATH: &str = "/sse";
}

impl Default for SessionAffinity {
    /// By cookie, 20 sessions for six hours, half an hour of them idle.
    fn default() -> Self {
        Self {
            header: None,
            mcp: None,
            sessions: DEFAULT_SESSIONS,
            lifetime: DEFAULT_LIFETIME,
            idle: DEFAULT_IDLE,
        }
    }
}

/// Adds what is wrong with it to `faults`.
pub(super) fn check(config: &FunctionConfig, faults: &mut Vec<String>) {
    let Some(affinity) = &config.session_affinity else { return };
    let mut fault = |text: String| faults.push(format!("session affinity{text}"));
    if config.platform.name() != platform::fc().name() {
        fault(format!(": platform {} has none", config.platform.name()));
    }
    if config.mode == Mode::Job {
        fault(": a job has no HTTP requests".to_owned());
    }
    let (sessions, concurrency) = (affinity.sessions, config.concurrency);
    if !SESSIONS.contains(&sessions) {
        fault(format!(" sessions {sessions}: must be {} to {}", SESSIONS.start(), SESSIONS.end()));
    } else if sessions > concurrency {
        fault(format!(" sessions {sessions}: must not be more than the concurrency, {concurrency}"));
    }
    if affinity.header.is_some() && affinity.mcp.is_some() {
        fault(": sessions of MCP have no header of their own; leave header out".to_owned());
    }
    if let Some(Mcp::Sse { path }) = &affinity.mcp
        && !(path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'?'))
    {
        fault(format!(" path {path:?}: must be an address's path, such as {}", Mcp::SSE_PATH));
    }
    let most =
        if affinity.header.is_some() || affinity.mcp.is_some() { MAX_LIFETIME } else { DEFAULT_LIFETIME };
    let second = Duration::from_secs(1);
    if !(second..=most).contains(&affinity.lifetime) {
        fault(format!(" lifetime {:?}: must be 1 s to {} s", affinity.lifetime, most.as_secs()));
    }
    if !(second..=most).contains(&affinity.idle) {
        fault(format!(" idle time {:?}: must be 1 s to {} s", affinity.idle, most.as_secs()));
    }
    // What clients send of these does not reach functions.
    if let Some(name) = affinity.header.as_ref().filter(|name| name.as_str().starts_with("x-fc-")) {
        fault(format!(" header {name}: names beginning with x-fc- are the platform's"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::{fc, fc2};

    fn faults(change: impl FnOnce(&mut FunctionConfig, &mut SessionAffinity)) -> Vec<String> {
        let mut config = FunctionConfig::new("f", fc());
        config.concurrency = AFFINITY_CONCURRENCY;
        let mut affinity = SessionAffinity::default();
        change(&mut config, &mut affinity);
        config.session_affinity = Some(affinity);
        let mut faults = Vec::new();
        check(&config, &mut faults);
        faults
    }

    #[test]
    fn sessions_and_their_times_are_within_the_platforms() {
        assert_eq!(faults(|_, _| ()), [""; 0]);
        let one = |part: &str, faults: Vec<String>| {
            assert!(faults.len() == 1 && faults[0].contains(part), "{part}: {faults:?}");
        };
        one("sessions 0: must be 1 to 200", faults(|_, affinity| affinity.sessions = 0));
        one("sessions 201", faults(|_, affinity| affinity.sessions = 201));
        one("more than the concurrency, 10", faults(|config, _| config.concurrency = 10));
        one("lifetime", faults(|_, affinity| affinity.lifetime = Duration::from_secs(21_601)));
        one("idle time", faults(|_, affinity| affinity.idle = Duration::ZERO));
        one("platform fc2 has none", faults(|config, _| config.platform = fc2()));
        one("no HTTP requests", faults(|config, _| config.mode = Mode::Job));
        let header = |name: &'static str| Some(HeaderName::from_static(name));
        let mcp = |path: &str| Some(Mcp::Sse { path: path.to_owned() });
        one("path \"sse\"", faults(|_, affinity| affinity.mcp = mcp("sse")));
        one(
            "leave header out",
            faults(|_, affinity| {
                (affinity.mcp, affinity.header) = (mcp("/sse"), header("x-mine"));
            }),
        );
        one("header x-fc-mine", faults(|_, affinity| affinity.header = header("x-fc-mine")));
        let day = |_: &mut FunctionConfig, affinity: &mut SessionAffinity| {
            (affinity.header, affinity.lifetime) = (header("x-mine"), MAX_LIFETIME);
        };
        assert_eq!(faults(day), [""; 0]);
    }
}
