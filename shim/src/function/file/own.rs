//! Skiff's own form: the options of `skiff run` as keys.

use skiff_runtime::image::{CredentialEndpoint, EndpointToken};
use skiff_runtime::{Network, Writable};

use super::fields::{Fields, Report, set};
use super::tree::{Node, Place};
use crate::FunctionConfig;
use crate::api::{AsyncOptions, MAX_RETRIES};
use crate::function::{HealthCheck, Mcp, Mode, RoleSource, SessionAffinity, SessionKey};
use crate::platform::{self, HttpEvent};
use crate::units::{Cpus, DiskSize, Memory};

const TOP: Place = Place { line: 1, column: 1 };

pub(super) fn read(node: &Node, report: &Report) -> Option<(Option<String>, FunctionConfig)> {
    let Some(entries) = node.entries() else {
        report.fault(node.place, format!("a function must be a table, and this is {}", node.value.kind()));
        return None;
    };
    let fields = Fields::new(report, entries, "");
    let names: Vec<&str> = platform::all().iter().map(|platform| platform.name()).collect();
    let mut config = FunctionConfig::new("", one_of(&fields, "platform", &names, platform::by_name)?);
    let image = fields.text("image", "");
    config.name = fields.text("name", "name").unwrap_or_default();
    identity(&fields, &mut config);
    command(&fields, &mut config);
    limits(&fields, &mut config);
    life(&fields, &mut config);
    fields.finish();
    Some((image, config))
}

/// A value out of some; the first when there is none. `None` when it is none of them.
fn one_of<T>(
    fields: &Fields<'_>,
    key: &'static str,
    names: &[&str],
    take: impl Fn(&str) -> Option<T>,
) -> Option<T> {
    let Some(node) = fields.get(key) else { return take(names.first()?) };
    let text = fields.text(key, "")?;
    let taken = take(&text);
    if taken.is_none() {
        fields.fault(node.place, key, &format!("{text:?} must be one of {}", names.join(", ")));
    }
    taken
}

fn identity(fields: &Fields<'_>, config: &mut FunctionConfig) {
    set(&mut config.region, fields.text("region", "region"));
    set(&mut config.account_id, fields.text("account_id", "account id"));
    set(&mut config.app_id, fields.text("app_id", "app id"));
    set(&mut config.namespace, fields.text("namespace", "namespace"));
    set(&mut config.version, fields.text("version", "version"));
    set(&mut config.handler, fields.text("handler", "handler"));
}

fn command(fields: &Fields<'_>, config: &mut FunctionConfig) {
    if let Some(role) = fields.table("role") {
        config.role = of_role(&role);
        role.finish();
    }
    config.entrypoint = fields.words("entrypoint", "entrypoint");
    config.cmd = fields.words("command", "command");
    config.env = fields.variables("env");
    config.user = fields.text("user", "");
    config.userns = fields.boolean("userns").unwrap_or_default();
    config.working_dir = fields.text("workdir", "working directory");
    config.port = fields.number("port", "port", 1..=65_535).and_then(|port| u16::try_from(port).ok());
}

/// A file, or a service with the file of its token.
fn of_role(role: &Fields<'_>) -> Option<RoleSource> {
    let (file, url, token) = (role.text("file", ""), role.text("url", ""), role.text("token_file", ""));
    match (file, url) {
        (Some(file), None) => Some(RoleSource::File(file.into())),
        (None, Some(url)) => {
            let token = token.map(|file| EndpointToken::File(file.into()));
            Some(RoleSource::Endpoint(CredentialEndpoint { url, token }))
        }
        (file, _) => {
            let why =
                if file.is_some() { "has both a file and a url" } else { "has neither a file nor a url" };
            role.fault_here(why);
            None
        }
    }
}

fn limits(fields: &Fields<'_>, config: &mut FunctionConfig) {
    set(&mut config.memory_mib, fields.parsed::<Memory>("memory", "memory").map(|memory| memory.mib));
    set(&mut config.cpu_millis, fields.parsed::<Cpus>("cpus", "CPU limit").map(|cpus| cpus.millis));
    let count = |key, rule, most| fields.number(key, rule, 1..=most);
    config.pids = count("pids", "limit of", u32::MAX.into()).and_then(|pids| u32::try_from(pids).ok());
    let kinds = ["auto", "quota", "loop", "tmpfs"];
    let writable = |name: &str| match name {
        "auto" => Some(Writable::Auto),
        "quota" => Some(Writable::Quota),
        "loop" => Some(Writable::Loop),
        "tmpfs" => Some(Writable::Tmpfs),
        _ => None,
    };
    set(&mut config.writable, one_of(fields, "writable", &kinds, writable));
    let size = |key, rule| fields.parsed::<DiskSize>(key, rule).map(|size| size.0);
    set(&mut config.writable_bytes, size("writable_size", "writable layer"));
    set(&mut config.tmp_bytes, size("tmp_size", "/tmp"));
    let inodes = |key| count(key, "", i64::MAX).and_then(|count| u64::try_from(count).ok());
    set(&mut config.writable_inodes, inodes("writable_inodes"));
    set(&mut config.tmp_inodes, inodes("tmp_inodes"));
    config.read_only = fields.boolean("read_only").unwrap_or_default();
    config.acceleration = fields.boolean("accelerate").unwrap_or_default();
    let network = |name: &str| match name {
        "none" => Some(Network::None),
        "bridge" => Some(Network::Bridge),
        "host" => Some(Network::Host),
        _ => None,
    };
    set(&mut config.network, one_of(fields, "network", &["none", "bridge", "host"], network));
    set(&mut config.timeout, fields.time("timeout", "timeout"));
    config.websocket_idle = fields.time("websocket_idle", "WebSocket idle time");
    config.start_deadline = fields.time("start_timeout", "start deadline");
    set(&mut config.stop_grace, fields.time("stop_timeout", "stop grace"));
}

/// Which calls belong to one session; `None` when it has been told that it is wrong where an id is.
fn affinity(table: &Fields<'_>) -> Option<SessionAffinity> {
    let mut affinity = SessionAffinity::default();
    let key = session_key(table);
    let sessions = table.number("sessions", "", 0..=u32::MAX.into());
    set(&mut affinity.sessions, sessions.and_then(|count| u32::try_from(count).ok()));
    set(&mut affinity.lifetime, table.time("lifetime", ""));
    set(&mut affinity.idle, table.time("idle", ""));
    affinity.single_use = table.boolean("single_use").unwrap_or_default();
    set(&mut affinity.key, key.ok()?);
    Some(affinity)
}

/// Where a session's id is, if that is said. Those of the Model Context Protocol may be in a header, or parameter, of
/// another name. The error has been told.
fn session_key(table: &Fields<'_>) -> Result<Option<SessionKey>, ()> {
    let header: Option<http::HeaderName> = table.parsed("header", "");
    let (cookie, query, mcp) = (table.text("cookie", ""), table.text("query", ""), mcp(table));
    let read = [header.is_some(), cookie.is_some(), query.is_some(), mcp.is_some()];
    if ["header", "cookie", "query", "mcp"].map(|key| table.get(key).is_some()) != read {
        return Err(());
    }
    Ok(Some(match (mcp, cookie, header, query) {
        (None, None, None, None) => return Ok(None),
        (None, Some(cookie), None, None) => SessionKey::Cookie(cookie),
        (None, None, Some(header), None) => SessionKey::Header(header),
        (None, None, None, Some(query)) => SessionKey::Query(query),
        (Some(Mcp::Streamable { .. }), None, Some(header), None) => {
            SessionKey::Mcp(Mcp::Streamable { header })
        }
        (Some(Mcp::Sse { path, .. }), None, None, parameter) => SessionKey::Mcp(Mcp::Sse { path, parameter }),
        (Some(kind), None, None, None) => SessionKey::Mcp(kind),
        _ => {
            table.fault_here("says more than once where an id is: keep one of header, cookie, query and mcp");
            return Err(());
        }
    }))
}

/// Which sessions of the Model Context Protocol it has.
fn mcp(table: &Fields<'_>) -> Option<Mcp> {
    table.get("mcp")?;
    let kind = one_of(table, "mcp", &["streamable", "sse"], |name| match name {
        "streamable" => Some(Mcp::streamable()),
        "sse" => Some(Mcp::sse(Mcp::SSE_PATH)),
        _ => None,
    });
    if kind.is_none() {
        table.known(&["path"]);
    }
    match kind {
        Some(Mcp::Sse { .. }) => table.text("path", "").map(Mcp::sse).or(kind),
        kind => kind,
    }
}

/// What becomes of events and requests that are for later.
fn asynchronous(later: &Fields<'_>) -> AsyncOptions {
    let retries = later.number("retries", "", 0..=MAX_RETRIES.into());
    AsyncOptions {
        retries: retries.and_then(|count| u32::try_from(count).ok()),
        max_age: later.time("max_age", ""),
        on_success: later.parsed("on_success", ""),
        on_failure: later.parsed("on_failure", ""),
    }
}

fn life(fields: &Fields<'_>, config: &mut FunctionConfig) {
    let mode = |name: &str| match name {
        "web-server" => Some(Mode::WebServer),
        "job" => Some(Mode::Job),
        _ => None,
    };
    let place = fields.get("mode").map_or(TOP, |node| node.place);
    set(&mut config.mode, one_of(fields, "mode", &["web-server", "job"], mode));
    fields.named("mode job", place);
    let forms = HttpEvent::ALL.map(|(name, _)| name);
    if let Some(node) = fields.get("http_event") {
        fields.named("HTTP events", node.place);
        config.http_event = one_of(fields, "http_event", &forms, HttpEvent::by_name);
    }
    let concurrency = fields.number("concurrency", "concurrency", 0..=u32::MAX.into());
    set(&mut config.concurrency, concurrency.and_then(|count| u32::try_from(count).ok()));
    if let Some(node) = fields.get("session_affinity") {
        fields.named("session affinity", node.place);
        if let Some(table) = fields.table("session_affinity") {
            config.session_affinity = affinity(&table);
            table.finish();
        }
        // As in fc's cloud, where it cannot be chosen: the sessions of an instance share it.
        let most = *config.platform.limits().concurrency.end();
        set(&mut config.concurrency, concurrency.is_none().then_some(most));
    }
    set(&mut config.freeze, fields.boolean("freeze"));
    config.metrics_period = fields.time("metrics_period", "metrics period");
    if let Some(later) = fields.table("asynchronous") {
        config.asynchronous = asynchronous(&later);
        later.finish();
    }
    if let Some(callbacks) = fields.table("callbacks") {
        config.callbacks.initializer = callbacks.time("initializer", "initializer");
        config.callbacks.pre_freeze = callbacks.time("pre_freeze", "pre-freeze");
        config.callbacks.pre_stop = callbacks.time("pre_stop", "pre-stop");
        callbacks.finish();
    }
    let Some(node) = fields.get("health_check") else { return };
    fields.named("health check", node.place);
    let Some(check) = fields.table("health_check") else { return };
    let mut found = HealthCheck::new(check.text("path", "health check path").unwrap_or_default());
    // None at all is allowed before the first check.
    let delay = check.parsed::<crate::units::TimeLimit>("delay", "health check initial delay");
    set(&mut found.initial_delay, delay.map(|delay| delay.0.unwrap_or_default()));
    set(&mut found.period, check.time("period", "health check period"));
    set(&mut found.timeout, check.time("timeout", "health check timeout"));
    let times = |key, rule| check.number(key, rule, 1..=120).and_then(|count| u32::try_from(count).ok());
    set(&mut found.failure_threshold, times("failures", "health check failure threshold"));
    set(&mut found.success_threshold, times("successes", "health check success threshold"));
    check.finish();
    config.health_check = Some(found);
}
