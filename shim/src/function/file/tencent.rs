//! Tencent's function configuration: the parameters of `CreateFunction` in JSON.

use super::affinity;
use super::fields::{Fields, Report};
use super::tree::{Node, Value};
use crate::FunctionConfig;
use crate::function::Mode;
use crate::platform::scf;

const MIB: u64 = 1 << 20;

pub(super) fn read(node: &Node, report: &Report) -> Option<(Option<String>, FunctionConfig)> {
    let fields = Fields::new(report, node.entries()?, "");
    let mut config = FunctionConfig::new("", scf());
    config.name = fields.text("FunctionName", "name").unwrap_or_default();
    if let Some(namespace) = fields.text("Namespace", "namespace") {
        config.namespace = namespace;
    }
    if let Some(memory) = fields.number("MemorySize", "memory", 1..=i64::from(u32::MAX)) {
        config.memory_mib = u32::try_from(memory).unwrap_or_default();
    }
    if let Some(timeout) = fields.seconds("Timeout", "timeout", 1 << 32) {
        config.timeout = timeout;
    }
    config.start_deadline = fields.seconds("InitTimeout", "start deadline", 1 << 32);
    websocket(&fields, &mut config);
    if let Some(mib) = fields.number("DiskSize", "writable layer", 1..=1 << 20) {
        config.writable_bytes = u64::try_from(mib).unwrap_or_default() * MIB;
    }
    variables(&fields, &mut config);
    concurrency(&fields, &mut config);
    kind(&fields);
    let image = code(&fields, &mut config);
    others(&fields);
    fields.finish();
    Some((image, config))
}

/// `{"WSParams": {"IdleTimeOut": 15}}`. WebSockets are let through whatever `ProtocolType` says.
fn websocket(fields: &Fields<'_>, config: &mut FunctionConfig) {
    fields.known(&["ProtocolType"]);
    let Some(parameters) = fields.table("ProtocolParams") else { return };
    if let Some(websocket) = parameters.table("WSParams") {
        config.websocket_idle = websocket.seconds("IdleTimeOut", "WebSocket idle time", 1 << 32);
        websocket.finish();
    }
    parameters.finish();
}

/// `{"Variables": [{"Key": …, "Value": …}]}`
fn variables(fields: &Fields<'_>, config: &mut FunctionConfig) {
    let Some(environment) = fields.table("Environment") else { return };
    if let Some(node) = environment.get("Variables") {
        let Value::List(items) = &node.value else {
            environment.fault(node.place, "Variables", "must be a list of {\"Key\", \"Value\"}");
            return;
        };
        for item in items {
            let text = |key: &str| match item.at(&[key]).map(|node| &node.value) {
                Some(Value::Text(text)) => Some(text.clone()),
                _ => None,
            };
            match (text("Key"), text("Value")) {
                (Some(key), Some(value)) => {
                    environment
                        .named(&format!("variable {:?}", crate::function::validate::short(&key)), item.place);
                    config.env.push((key, value));
                }
                _ => environment.fault(item.place, "Variables", "must be {\"Key\": TEXT, \"Value\": TEXT}"),
            }
        }
        environment.named("environment of", node.place);
    }
    environment.finish();
}

fn concurrency(fields: &Fields<'_>, config: &mut FunctionConfig) {
    let Some(instance) = fields.table("InstanceConcurrencyConfig") else { return };
    if let Some(count) = instance.number("MaxConcurrency", "concurrency", 0..=i64::from(u32::MAX)) {
        config.concurrency = u32::try_from(count).unwrap_or_default();
    }
    let by_session = instance.get("Type").is_some_and(|node| {
        let kind = instance.text("Type", "");
        if kind.as_deref().is_some_and(|kind| !matches!(kind, "Request-Based" | "Session-Based")) {
            instance.fault(node.place, "Type", "must be Request-Based or Session-Based");
        }
        kind.as_deref() == Some("Session-Based")
    });
    if by_session {
        if instance.get("MaxConcurrency").is_none() {
            config.concurrency = *config.platform.limits().concurrency.end();
        }
        affinity::read_scf(&instance, config);
    } else {
        instance.ignored("SessionConfig", "Type is not Session-Based");
    }
    match switch(&instance, "DynamicEnabled") {
        // It takes a function's concurrency away, and not that of its sessions.
        Some(Switch::Empty) if !by_session => config.concurrency = 1,
        Some(Switch::On) => {
            instance.ignored("DynamicEnabled", "concurrency here is what MaxConcurrency says");
        }
        None | Some(Switch::Off | Switch::Empty) => {}
    }
    instance.ignored("MixNodeConfig", "concurrency here is what MaxConcurrency says");
    if matches!(switch(&instance, "InstanceIsolationEnabled"), Some(Switch::On)) {
        instance.ignored("InstanceIsolationEnabled", "instances are containers, and end as others do");
    }
    instance.finish();
}

/// `TRUE`, `FALSE` or nothing (`""`), in whatever letters, or a truth value of JSON.
enum Switch {
    On,
    Off,
    Empty,
}

fn switch(fields: &Fields<'_>, key: &'static str) -> Option<Switch> {
    let node = fields.get(key)?;
    match &node.value {
        Value::Bool(true) => Some(Switch::On),
        Value::Bool(false) => Some(Switch::Off),
        Value::Text(text) if text.is_empty() => Some(Switch::Empty),
        Value::Text(text) if text.eq_ignore_ascii_case("true") => Some(Switch::On),
        Value::Text(text) if text.eq_ignore_ascii_case("false") => Some(Switch::Off),
        _ => {
            fields.fault(node.place, key, "must be TRUE or FALSE");
            None
        }
    }
}

/// Event and Web functions are served alike here.
fn kind(fields: &Fields<'_>) {
    for (key, known) in [("Type", ["Event", "HTTP"]), ("Runtime", ["CustomImage", "CustomImage"])] {
        let Some(node) = fields.get(key) else { continue };
        if let Some(text) = fields.text(key, "").filter(|text| !known.contains(&text.as_str())) {
            fields.fault(
                node.place,
                key,
                &format!("{text:?} must be {}: Skiff runs images", known.join(" or ")),
            );
        }
    }
}

fn code(fields: &Fields<'_>, config: &mut FunctionConfig) -> Option<String> {
    let code = fields.table("Code")?;
    code.all_ignored(
        &[
            "CosBucketName",
            "CosObjectName",
            "ZipFile",
            "CosBucketRegion",
            "DemoId",
            "TempCosObjectName",
            "GitUrl",
        ],
        "Skiff runs images",
    );
    let image = code.table("ImageConfig");
    let uri = image.as_ref().and_then(|image| image_config(image, config));
    if let Some(image) = image {
        image.finish();
    }
    code.finish();
    uri
}

fn image_config(image: &Fields<'_>, config: &mut FunctionConfig) -> Option<String> {
    image.all_ignored(&["ImageType", "RegistryId"], "the registry is the one of ImageUri");
    image.ignored("EntryPoint", "it is deprecated; use Command");
    image.ignored("RegistryCertificate", "use --ca-file");
    // Both are split at spaces; no rule for quotes is documented.
    let words = |key: &'static str, rule: &str| {
        let text = image.text(key, rule)?;
        let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        (!words.is_empty()).then_some(words)
    };
    config.entrypoint = words("Command", "entrypoint");
    config.cmd = words("Args", "command");
    config.acceleration = image.boolean("ContainerImageAccelerate").unwrap_or_default();
    match image.number("ImagePort", "port", -1..=65_535) {
        Some(-1) => config.mode = Mode::Job,
        Some(port) => config.port = u16::try_from(port).ok(),
        None => {}
    }
    image.text("ImageUri", "").map(|uri| plain(&uri))
}

/// Without the tag, where a digest follows it: `NAME:TAG@DIGEST` is `NAME@DIGEST` to registries.
fn plain(uri: &str) -> String {
    let Some((name, digest)) = uri.split_once('@') else { return uri.to_owned() };
    let name = match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => name,
    };
    format!("{name}@{digest}")
}

fn others(fields: &Fields<'_>) {
    fields.all_ignored(&["Description", "Tags", "Handler", "Stamp", "CodeSource"], "it changes nothing here");
    fields.ignored("Role", "give its credentials by --role-file, --role-url or variables");
    fields.all_ignored(
        &["VpcConfig", "PublicNetConfig", "IntranetConfig", "IpConfig"],
        "what the function reaches is said by --network",
    );
    fields.all_ignored(
        &["ClsLogsetId", "ClsTopicId", "AutoCreateClsTopic", "AutoDeployClsTopicIndex"],
        "logs go to the standard error",
    );
    fields.all_ignored(&["CfsConfig", "Layers", "UseGpu", "NodeType", "NodeSpec"], "Skiff does not have it");
    fields.all_ignored(
        &["DeadLetterConfig", "AsyncRunEnable", "TraceEnable", "L5Enable", "InstallDependency", "DnsCache"],
        "Skiff does not have it",
    );
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn a_tag_before_a_digest_goes() {
        for (uri, expected) in [
            ("ccr.ccs.tencentyun.com/a/b:1", "ccr.ccs.tencentyun.com/a/b:1"),
            ("ccr.ccs.tencentyun.com/a/b:1@sha256:00", "ccr.ccs.tencentyun.com/a/b@sha256:00"),
            ("127.0.0.1:5000/a/b@sha256:00", "127.0.0.1:5000/a/b@sha256:00"),
            ("oci:dir:tag", "oci:dir:tag"),
        ] {
            assert_eq!(plain(uri), expected);
        }
    }
}
