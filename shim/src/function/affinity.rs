//! Session affinity (fc, scf): the calls of a session go to one instance.

use std::time::Duration;

use http::HeaderName;

use super::{FunctionConfig, Mode};
use crate::platform;

/// Sessions that one instance may have, at most: of fc and of scf.
const FC_SESSIONS: u32 = 200;
const SCF_SESSIONS: u32 = 100;

/// As many as it has unless told, of both.
const DEFAULT_SESSIONS: u32 = 20;

/// How long a session lives unless told, and at most: with the cookie of fc six hours. Those of scf are not documented;
/// seven days are what tools of its own allow.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(21_600);
const MAX_LIFETIME: Duration = Duration::from_secs(86_400);
const SCF_LIFETIME: Duration = Duration::from_secs(604_800);

/// How long one may be without a call, unless told.
const DEFAULT_IDLE: Duration = Duration::from_secs(1800);

/// Headers with a meaning of their own, which an id would take from them, or which do not pass.
const TAKEN: [&str; 16] = [
    "authorization",
    "connection",
    "cookie",
    "expect",
    "forwarded",
    "keep-alive",
    "location",
    "origin",
    "range",
    "referer",
    "server",
    "set-cookie",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "www-authenticate",
];

/// The same of all headers whose names begin so.
const TAKEN_BEGINNINGS: [&str; 7] =
    ["accept", "access-control-", "content-", "if-", "proxy-", "sec-", "x-forwarded-"];

/// Which calls belong together, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionAffinity {
    /// Where a request has its session's id.
    pub key: SessionKey,
    /// Sessions that one instance may have at once: 1 to 200 (fc), 1 to 100 (scf).
    pub sessions: u32,
    /// How long a session lives, from its first call on.
    pub lifetime: Duration,
    /// How long it may be without a call.
    pub idle: Duration,
    /// The id of a session whose time is up is refused, and begins no other one (fc: `disableSessionIdReuse`).
    pub single_use: bool,
}

/// Where a request has its session's id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionKey {
    /// In a cookie of this name, on fc [`SessionKey::FC_COOKIE`]. Who has none begins a session.
    Cookie(String),
    /// In this header. Who has none begins a session.
    Header(HeaderName),
    /// In this parameter of the address's query (scf). Who has none is of no session.
    Query(String),
    /// Where the Model Context Protocol has it. The function chooses the ids.
    Mcp(Mcp),
}

/// How clients of the Model Context Protocol talk with the function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mcp {
    /// Streamable HTTP: the answer to a POST has the session's id in a header, and DELETE ends it.
    Streamable {
        /// The header; only scf lets it be another than [`Mcp::HEADER`].
        header: HeaderName,
    },
    /// HTTP with SSE: a stream is the session, and its first event names the id.
    Sse {
        /// The path of the stream.
        path: String,
        /// The parameter of an address that has the id; `session_id` or `sessionId` when `None`. Only scf lets it be
        /// another.
        parameter: Option<String>,
    },
}

impl SessionKey {
    /// The cookie of fc.
    pub const FC_COOKIE: &str = "x-fc-cookie-session-id";
}

impl Mcp {
    /// The protocol's own header.
    pub const HEADER: HeaderName = HeaderName::from_static("mcp-session-id");

    /// Where the stream of SSE is, unless told.
    pub const SSE_PATH: &str = "/sse";

    /// Streamable HTTP with the protocol's own header.
    #[must_use]
    pub fn streamable() -> Self {
        Self::Streamable { header: Self::HEADER }
    }

    /// HTTP with SSE, the stream at this path.
    #[must_use]
    pub fn sse(path: impl Into<String>) -> Self {
        Self::Sse { path: path.into(), parameter: None }
    }
}

impl Default for SessionAffinity {
    /// By the cookie of fc, 20 sessions for six hours, half an hour of them idle.
    fn default() -> Self {
        Self {
            key: SessionKey::Cookie(SessionKey::FC_COOKIE.to_owned()),
            sessions: DEFAULT_SESSIONS,
            lifetime: DEFAULT_LIFETIME,
            idle: DEFAULT_IDLE,
            single_use: false,
        }
    }
}

/// Adds what is wrong with it to `faults`.
pub(super) fn check(config: &FunctionConfig, faults: &mut Vec<String>) {
    let Some(affinity) = &config.session_affinity else { return };
    let name = config.platform.name();
    let (fc, scf) = (name == platform::fc().name(), name == platform::scf().name());
    let mut fault = |text: String| faults.push(format!("session affinity{text}"));
    if !fc && !scf {
        fault(format!(": platform {name} has none"));
    }
    if config.mode == Mode::Job {
        fault(": a job has no HTTP requests".to_owned());
    }
    let (sessions, concurrency) = (affinity.sessions, config.concurrency);
    let most = if scf { SCF_SESSIONS } else { FC_SESSIONS };
    if !(1..=most).contains(&sessions) {
        fault(format!(" sessions {sessions}: must be 1 to {most}"));
    } else if sessions > concurrency && !scf {
        fault(format!(" sessions {sessions}: must not be more than the concurrency, {concurrency}"));
    }
    match (affinity.single_use, &affinity.key) {
        (true, _) if scf => fault(" single_use: platform scf has none".to_owned()),
        (true, SessionKey::Mcp(_)) => {
            fault(" single_use: ids of MCP are the function's to choose".to_owned());
        }
        _ => {}
    }
    let most = match &affinity.key {
        _ if scf => SCF_LIFETIME,
        SessionKey::Cookie(_) => DEFAULT_LIFETIME,
        SessionKey::Header(_) | SessionKey::Query(_) | SessionKey::Mcp(_) => MAX_LIFETIME,
    };
    for (what, time) in [("lifetime", affinity.lifetime), ("idle time", affinity.idle)] {
        if !(Duration::from_secs(1)..=most).contains(&time) {
            fault(format!(" {what} {time:?}: must be 1 s to {} s", most.as_secs()));
        }
    }
    let wrong = if scf { wrong_scf(&affinity.key) } else { wrong_fc(&affinity.key) };
    wrong.into_iter().for_each(fault);
}

/// What is wrong with where fc is to look for an id.
fn wrong_fc(key: &SessionKey) -> Option<String> {
    let short = super::validate::short;
    match key {
        SessionKey::Cookie(name) if name != SessionKey::FC_COOKIE => {
            Some(format!(" cookie {:?}: on fc it is always {}", short(name), SessionKey::FC_COOKIE))
        }
        SessionKey::Query(name) => Some(format!(" query {:?}: fc has no sessions by query", short(name))),
        SessionKey::Header(name) => wrong_name("header", name.as_str(), "x-fc-"),
        SessionKey::Mcp(Mcp::Streamable { header }) if *header != Mcp::HEADER => {
            let name = short(header.as_str());
            Some(format!(" header {name:?}: sessions of MCP have no header of their own on fc; leave it out"))
        }
        SessionKey::Mcp(Mcp::Sse { parameter: Some(name), .. }) => {
            let name = short(name);
            Some(format!(
                " query {name:?}: sessions of MCP have no parameter of their own on fc; leave it out"
            ))
        }
        SessionKey::Mcp(Mcp::Sse { path, .. }) => wrong_path(path),
        SessionKey::Cookie(_) | SessionKey::Mcp(Mcp::Streamable { .. }) => None,
    }
}

/// What is wrong with where scf is to look for an id.
fn wrong_scf(key: &SessionKey) -> Option<String> {
    match key {
        SessionKey::Cookie(name) if name == SessionKey::FC_COOKIE => {
            Some(format!(": say where its id is: header, cookie, query or mcp ({name} is the cookie of fc)"))
        }
        SessionKey::Cookie(name) => wrong_name("cookie", name, "x-scf-"),
        SessionKey::Query(name) => wrong_name("query", name, "x-scf-"),
        SessionKey::Header(name) | SessionKey::Mcp(Mcp::Streamable { header: name }) => {
            wrong_name("header", name.as_str(), "x-scf-")
        }
        SessionKey::Mcp(Mcp::Sse { path, parameter }) => wrong_path(path)
            .or_else(|| parameter.as_ref().and_then(|name| wrong_name("query", name, "x-scf-"))),
    }
}

/// The rule of both platforms' documents. What clients send of the platform's own headers does not reach functions.
fn wrong_name(what: &str, name: &str, platforms: &str) -> Option<String> {
    let rest = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let is_name = (5..=40).contains(&name.len())
        && name.starts_with(|first: char| first.is_ascii_alphabetic())
        && name.bytes().all(rest);
    let short = super::validate::short(name);
    if !is_name {
        return Some(format!(
            " {what} {short:?}: must be 5 to 40 letters, digits, - and _, the first one a letter"
        ));
    }
    // As servers see it that make variables of headers.
    let plain = name.to_ascii_lowercase().replace('_', "-");
    if plain.starts_with(platforms) {
        return Some(format!(" {what} {short}: names beginning with {platforms} are the platform's"));
    }
    let taken = TAKEN.contains(&plain.as_str())
        || TAKEN_BEGINNINGS.iter().any(|beginning| plain.starts_with(beginning));
    (what == "header" && taken)
        .then(|| format!(" {what} {short}: it has a meaning of its own; name another one"))
}

fn wrong_path(path: &str) -> Option<String> {
    let is_path = path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'?');
    let path = super::validate::short(path);
    (!is_path).then(|| format!(" path {path:?}: must be an address's path, such as {}", Mcp::SSE_PATH))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::{fc, fc2, scf};

    fn faults(change: impl FnOnce(&mut FunctionConfig, &mut SessionAffinity)) -> Vec<String> {
        let mut config = FunctionConfig::new("f", fc());
        config.concurrency = *fc().limits().concurrency.end();
        let mut affinity = SessionAffinity::default();
        change(&mut config, &mut affinity);
        config.session_affinity = Some(affinity);
        let mut faults = Vec::new();
        check(&config, &mut faults);
        faults
    }

    #[track_caller]
    fn one(part: &str, faults: &[String]) {
        assert!(faults.len() == 1 && faults[0].contains(part), "{part}: {faults:?}");
    }

    fn header(name: &'static str) -> SessionKey {
        SessionKey::Header(HeaderName::from_static(name))
    }

    #[test]
    fn sessions_and_their_times_are_within_the_platforms() {
        assert_eq!(faults(|_, _| ()), [""; 0]);
        one("sessions 0: must be 1 to 200", &faults(|_, affinity| affinity.sessions = 0));
        one("sessions 201", &faults(|_, affinity| affinity.sessions = 201));
        one("more than the concurrency, 10", &faults(|config, _| config.concurrency = 10));
        one("lifetime", &faults(|_, affinity| affinity.lifetime = Duration::from_secs(21_601)));
        one("idle time", &faults(|_, affinity| affinity.idle = Duration::ZERO));
        one("platform fc2 has none", &faults(|config, _| config.platform = fc2()));
        one("no HTTP requests", &faults(|config, _| config.mode = Mode::Job));
        let day = |_: &mut FunctionConfig, affinity: &mut SessionAffinity| {
            (affinity.key, affinity.lifetime) = (header("x-mine"), MAX_LIFETIME);
        };
        assert_eq!(faults(day), [""; 0]);
    }

    #[test]
    fn an_id_is_where_the_platform_looks_for_it() {
        let of = |key: SessionKey| faults(|_, affinity| affinity.key = key);
        let sse = |path: &str, parameter: Option<&str>| {
            let parameter = parameter.map(str::to_owned);
            SessionKey::Mcp(Mcp::Sse { path: path.to_owned(), parameter })
        };
        let streamable = |name| SessionKey::Mcp(Mcp::Streamable { header: HeaderName::from_static(name) });
        for key in [header("x-mine"), header("a_-09"), sse("/sse", None), SessionKey::Mcp(Mcp::streamable())]
        {
            assert_eq!(of(key.clone()), [""; 0], "{key:?}");
        }
        let long = "x".repeat(41);
        for (key, part) in [
            (header("x-fc-mine"), "names beginning with x-fc- are"),
            (header("x-me"), "5 to 40"),
            (SessionKey::Header(long.parse().expect("a name")), "5 to 40"),
            (header("1-mine"), "the first one a letter"),
            (header("x.mine"), "letters, digits"),
            (header("x_fc-mine"), "names beginning with x-fc- are"),
            (header("content-length"), "a meaning of its own"),
            (header("keep-alive"), "a meaning of its own"),
            (
                SessionKey::Cookie("mi\nne".to_owned()),
                "cookie \"mi\\nne\": on fc it is always x-fc-cookie-session-id",
            ),
            (SessionKey::Query("session".to_owned()), "fc has no sessions by query"),
            (sse("sse", None), "path \"sse\""),
            (sse("/sse", Some("mine")), "query \"mine\": sessions of MCP"),
            (streamable("x-mine"), "header \"x-mine\": sessions of MCP"),
        ] {
            one(part, &of(key));
        }
        let of = |key: SessionKey| {
            faults(|config, affinity| (config.platform, config.concurrency, affinity.key) = (scf(), 1, key))
        };
        for key in [
            header("x-mine"),
            SessionKey::Cookie("Session-Id".to_owned()),
            SessionKey::Query("session_id".to_owned()),
            sse("/events", Some("session")),
            streamable("x-mine"),
        ] {
            assert_eq!(of(key.clone()), [""; 0], "{key:?}");
        }
        for (key, part) in [
            (SessionKey::Cookie(SessionKey::FC_COOKIE.to_owned()), "header, cookie, query or mcp"),
            (SessionKey::Cookie("a b c".to_owned()), "cookie \"a b c\": must be 5 to 40"),
            (SessionKey::Query("id".to_owned()), "query \"id\""),
            (header("x-scf-mine"), "names beginning with x-scf-"),
            (sse("/events?a", None), "path"),
            (sse("/events", Some("id")), "query \"id\""),
        ] {
            one(part, &of(key));
        }
        let scf_of = |change: fn(&mut SessionAffinity)| {
            faults(|config, affinity| {
                (config.platform, affinity.key) = (scf(), header("x-mine"));
                change(affinity);
            })
        };
        one("sessions 101: must be 1 to 100", &scf_of(|affinity| affinity.sessions = 101));
        one("single_use: platform scf", &scf_of(|affinity| affinity.single_use = true));
        assert_eq!(scf_of(|affinity| affinity.lifetime = SCF_LIFETIME), [""; 0]);
        one("lifetime", &scf_of(|affinity| affinity.lifetime = SCF_LIFETIME + Duration::from_secs(1)));
        let of_mcp = |_: &mut FunctionConfig, affinity: &mut SessionAffinity| {
            (affinity.key, affinity.single_use) = (SessionKey::Mcp(Mcp::streamable()), true);
        };
        one("single_use: ids of MCP", &faults(of_mcp));
    }
}
