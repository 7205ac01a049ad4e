//! Session affinity as the vendors write it: FC's `sessionAffinity` with `sessionAffinityConfig`, and the `SessionConfig`
//! of SCF's `InstanceConcurrencyConfig`.

use std::time::Duration;

use http::HeaderName;

use super::fields::{Fields, set};
use super::tree::Value;
use crate::FunctionConfig;
use crate::function::{Mcp, SessionAffinity, SessionKey};

/// The longest time of a session with any affinity, in seconds.
const MAX_S: i64 = 86_400;
const SCF_MAX_S: i64 = 604_800;

/// Of API 3.0.
pub(super) fn read_fc(props: &Fields<'_>, config: &mut FunctionConfig) {
    const KEY: &str = "sessionAffinity";
    let Some(node) = props.get(KEY) else {
        return props.ignored("sessionAffinityConfig", "there is no sessionAffinity");
    };
    let mut affinity = SessionAffinity::default();
    let mut by_header = false;
    match &node.value {
        Value::Text(kind) => match kind.as_str() {
            "NONE" => return props.ignored("sessionAffinityConfig", "there is no sessionAffinity"),
            "GENERATED_COOKIE" => {}
            "HEADER_FIELD" => by_header = true,
            "MCP_STREAMABLE" => affinity.key = SessionKey::Mcp(Mcp::streamable()),
            "MCP_SSE" => affinity.key = SessionKey::Mcp(Mcp::sse(Mcp::SSE_PATH)),
            _ => {
                let kinds = "must be NONE, GENERATED_COOKIE, HEADER_FIELD, MCP_SSE or MCP_STREAMABLE";
                return props.fault(node.place, KEY, kinds);
            }
        },
        other => return props.fault(node.place, KEY, &format!("must be a text, and is {}", other.kind())),
    }
    props.named("session affinity", node.place);
    let mut has_name = false;
    if let Some(table) = props.table("sessionAffinityConfig") {
        has_name = table.get("affinityHeaderFieldName").is_some();
        details(&table, &mut affinity, by_header);
        table.finish();
    }
    if by_header && !matches!(affinity.key, SessionKey::Header(_)) {
        // One that is wrong has been told.
        if !has_name {
            let needs = "HEADER_FIELD needs sessionAffinityConfig.affinityHeaderFieldName";
            props.fault(node.place, KEY, needs);
        }
        return;
    }
    config.concurrency = *config.platform.limits().concurrency.end();
    config.session_affinity = Some(affinity);
}

/// Of SCF, where instances take calls by session (`Type` is `Session-Based`).
pub(super) fn read_scf(instance: &Fields<'_>, config: &mut FunctionConfig) {
    let Some(node) = instance.get("SessionConfig") else {
        return instance.fault_here("is Session-Based, and has no SessionConfig");
    };
    instance.named("session affinity", node.place);
    let Some(table) = instance.table("SessionConfig") else { return };
    let mut affinity = SessionAffinity::default();
    if let Some(key) = scf_key(&table) {
        if !matches!(key, SessionKey::Mcp(Mcp::Sse { .. })) {
            table.ignored("SessionPath", "it is the path of MCP's streams");
        }
        affinity.key = key;
        let sessions = table.number("MaximumConcurrencySessionPerInstance", "", 1..=100);
        set(&mut affinity.sessions, sessions.and_then(|count| u32::try_from(count).ok()));
        set(&mut affinity.lifetime, table.seconds("MaximumTTLInSeconds", "", SCF_MAX_S));
        set(&mut affinity.idle, table.seconds("MaximumIdleTimeInSeconds", "", SCF_MAX_S));
        config.session_affinity = Some(affinity);
    }
    if table.text("IdleTimeoutStrategy", "").is_some_and(|strategy| strategy != "FATAL") {
        table.ignored("IdleTimeoutStrategy", "a session whose time is up is over");
    }
    // Without the source, they say nothing.
    table.known(&["MaximumConcurrencySessionPerInstance", "MaximumTTLInSeconds", "MaximumIdleTimeInSeconds"]);
    table.finish();
}

/// Where SCF is to look for an id. The sources of MCP are in the console alone; here they have FC's names too.
fn scf_key(table: &Fields<'_>) -> Option<SessionKey> {
    const SOURCE: &str = "SessionSource";
    let (name, path) = (table.text("SessionName", ""), table.text("SessionPath", ""));
    let Some(source) = table.text(SOURCE, "") else {
        if table.get(SOURCE).is_none() {
            table.fault_here("has no SessionSource");
        }
        return None;
    };
    let place = table.get(SOURCE)?.place;
    let needed = |name: Option<String>| {
        if table.get("SessionName").is_none() {
            table.fault(place, SOURCE, &format!("{source} needs a SessionName"));
        }
        name
    };
    let header = || table.parsed::<HeaderName>("SessionName", "");
    match source.as_str() {
        "HEADER" => needed(name).and_then(|_| header()).map(SessionKey::Header),
        "COOKIE" => needed(name).map(SessionKey::Cookie),
        "QUERY_STRING" => needed(name).map(SessionKey::Query),
        "MCP_SSE" => {
            let path = path.unwrap_or_else(|| Mcp::SSE_PATH.to_owned());
            Some(SessionKey::Mcp(Mcp::Sse { path, parameter: name }))
        }
        "MCP_STREAMABLE" => {
            let header = if name.is_some() { header()? } else { Mcp::HEADER };
            Some(SessionKey::Mcp(Mcp::Streamable { header }))
        }
        _ => {
            let sources = "must be HEADER, COOKIE, QUERY_STRING, MCP_SSE or MCP_STREAMABLE";
            table.fault(place, SOURCE, sources);
            None
        }
    }
}

fn details(table: &Fields<'_>, affinity: &mut SessionAffinity, by_header: bool) {
    match (table.parsed("affinityHeaderFieldName", ""), by_header) {
        (Some(header), true) => affinity.key = SessionKey::Header(header),
        (_, true) | (None, _) => {}
        (Some(_), false) => table.ignored("affinityHeaderFieldName", "ids are not in a header of its own"),
    }
    let path = table.text("sseEndpointPath", "");
    if let (SessionKey::Mcp(Mcp::Sse { path, .. }), Some(told)) = (&mut affinity.key, path) {
        *path = told;
    }
    let sessions = table.number("sessionConcurrencyPerInstance", "", 1..=200);
    set(&mut affinity.sessions, sessions.and_then(|count| u32::try_from(count).ok()));
    let time = |key| table.number(key, "", 1..=MAX_S).and_then(|seconds| u64::try_from(seconds).ok());
    set(&mut affinity.lifetime, time("sessionTTLInSeconds").map(Duration::from_secs));
    set(&mut affinity.idle, time("sessionIdleTimeoutInSeconds").map(Duration::from_secs));
    if matches!(affinity.key, SessionKey::Mcp(_)) {
        table.ignored("disableSessionIdReuse", "ids of MCP are the function's to choose");
    } else {
        affinity.single_use = table.boolean("disableSessionIdReuse").unwrap_or_default();
    }
}
