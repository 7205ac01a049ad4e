//! Session affinity as API 3.0 writes it: `sessionAffinity`, and `sessionAffinityConfig` with what belongs to it.

use std::time::Duration;

use super::fields::Fields;
use super::tree::Value;
use crate::FunctionConfig;
use crate::function::{AFFINITY_CONCURRENCY, Mcp, SessionAffinity};

/// The longest time of a session with any affinity, in seconds.
const MAX_S: i64 = 86_400;

pub(super) fn read(props: &Fields<'_>, config: &mut FunctionConfig) {
    const KEY: &str = "sessionAffinity";
    let Some(node) = props.get(KEY) else {
        return props.ignored("sessionAffinityConfig", "there is no sessionAffinity");
    };
    let (by_header, mcp) = match &node.value {
        Value::Text(kind) => match kind.as_str() {
            "NONE" => return props.ignored("sessionAffinityConfig", "there is no sessionAffinity"),
            "GENERATED_COOKIE" => (false, None),
            "HEADER_FIELD" => (true, None),
            "MCP_STREAMABLE" => (false, Some(Mcp::Streamable)),
            "MCP_SSE" => (false, Some(Mcp::Sse { path: Mcp::SSE_PATH.to_owned() })),
            _ => {
                let kinds = "must be NONE, GENERATED_COOKIE, HEADER_FIELD, MCP_SSE or MCP_STREAMABLE";
                return props.fault(node.place, KEY, kinds);
            }
        },
        other => return props.fault(node.place, KEY, &format!("must be a text, and is {}", other.kind())),
    };
    props.named("session affinity", node.place);
    let mut affinity = SessionAffinity { mcp, ..SessionAffinity::default() };
    if let Some(table) = props.table("sessionAffinityConfig") {
        details(&table, &mut affinity);
        table.finish();
    }
    if by_header && affinity.header.is_none() {
        return props.fault(
            node.place,
            KEY,
            "HEADER_FIELD needs sessionAffinityConfig.affinityHeaderFieldName",
        );
    }
    config.concurrency = AFFINITY_CONCURRENCY;
    config.session_affinity = Some(affinity);
}

fn details(table: &Fields<'_>, affinity: &mut SessionAffinity) {
    affinity.header = table.parsed("affinityHeaderFieldName", "");
    if let (Some(Mcp::Sse { path }), Some(told)) = (&mut affinity.mcp, table.text("sseEndpointPath", "")) {
        *path = told;
    }
    let sessions = table.number("sessionConcurrencyPerInstance", "", 1..=200);
    if let Some(sessions) = sessions.and_then(|count| u32::try_from(count).ok()) {
        affinity.sessions = sessions;
    }
    let time = |key| table.number(key, "", 1..=MAX_S).and_then(|seconds| u64::try_from(seconds).ok());
    if let Some(seconds) = time("sessionTTLInSeconds") {
        affinity.lifetime = Duration::from_secs(seconds);
    }
    if let Some(seconds) = time("sessionIdleTimeoutInSeconds") {
        affinity.idle = Duration::from_secs(seconds);
    }
    table.ignored("disableSessionIdReuse", "the id of a session that is over begins a new one");
}
