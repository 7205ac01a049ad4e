//! Files of Tencent's.

use super::*;

pub(super) const TENCENT: &str = r#"{
  "FunctionName": "resize",
  "Namespace": "team",
  "Runtime": "CustomImage",
  "Type": "HTTP",
  "MemorySize": 512,
  "Timeout": 60,
  "InitTimeout": 90,
  "DiskSize": 1024,
  "Code": {"ImageConfig": {
    "ImageType": "personal",
    "ImageUri": "ccr.ccs.tencentyun.com/team/resize:1@sha256:0000000000000000000000000000000000000000000000000000000000000000",
    "Command": "python",
    "Args": "-u app.py",
    "ContainerImageAccelerate": true,
    "ImagePort": 9000
  }},
  "Environment": {"Variables": [{"Key": "MODE", "Value": "prod"}]},
  "InstanceConcurrencyConfig": {"DynamicEnabled": "FALSE", "MaxConcurrency": 20},
  "ProtocolType": "WS",
  "ProtocolParams": {"WSParams": {"IdleTimeOut": 600}},
  "Role": "SCF_ExecuteRole",
  "VpcConfig": {"VpcId": "vpc-1"}
}"#;

#[test]
fn tencents_files_are_read() {
    let file = parse(TENCENT, Language::Json).expect("a function");
    let config = &file.config;
    let digest = "sha256:0000000000000000000000000000000000000000000000000000000000000000";
    assert_eq!(file.image, Some(format!("ccr.ccs.tencentyun.com/team/resize@{digest}")));
    assert_eq!(
        (config.platform.name(), config.name.as_str(), config.namespace.as_str()),
        ("scf", "resize", "team")
    );
    assert_eq!((config.memory_mib, config.timeout.as_secs(), config.writable_bytes), (512, 60, 1 << 30));
    assert_eq!(config.start_deadline.map(|time| time.as_secs()), Some(90));
    assert_eq!(config.websocket_idle.map(|time| time.as_secs()), Some(600));
    assert_eq!(config.entrypoint, Some(vec!["python".to_owned()]));
    assert_eq!(config.cmd, Some(vec!["-u".to_owned(), "app.py".to_owned()]));
    assert!(config.acceleration && config.concurrency == 20 && config.port == Some(9000));
    assert_eq!(config.env, [("MODE".to_owned(), "prod".to_owned())]);
    let ignored: Vec<&str> = file.warnings.iter().map(|warning| warning.message.as_str()).collect();
    assert_eq!(ignored.len(), 3, "{ignored:#?}");
    assert!(
        ignored.iter().any(|text| text.starts_with("line 22, column 11: Role is ignored")),
        "{ignored:#?}"
    );
    let job = TENCENT
        .replace("\"ImagePort\": 9000", "\"ImagePort\": -1")
        .replace("\"MaxConcurrency\": 20", "\"MaxConcurrency\": 1");
    assert_eq!(parse(&job, Language::Json).expect("a job").config.mode, Mode::Job);
}

/// The function with this as its `InstanceConcurrencyConfig`.
fn with_concurrency(json: &str) -> String {
    let told = "{\"DynamicEnabled\": \"FALSE\", \"MaxConcurrency\": 20}";
    assert!(TENCENT.contains(told));
    TENCENT.replace(told, json)
}

#[test]
fn dynamic_concurrency_is_named_and_none_takes_it_away() {
    let of = |json: &str| {
        let file = parse(&with_concurrency(json), Language::Json).expect("a function");
        let named = file.warnings.iter().filter(|warning| warning.message.contains("Concurrency")).count();
        (file.config.concurrency, named)
    };
    assert_eq!(of("{\"DynamicEnabled\": \"TRUE\", \"MaxConcurrency\": 7}"), (7, 1));
    assert_eq!(of("{\"DynamicEnabled\": \"\", \"MaxConcurrency\": 7}"), (1, 0));
    assert_eq!(of("{\"DynamicEnabled\": true, \"MaxConcurrency\": 7, \"MixNodeConfig\": []}"), (7, 2));
    assert_eq!(of("{\"DynamicEnabled\": false, \"MaxConcurrency\": 7}"), (7, 0));
    assert_eq!(of("{\"MaxConcurrency\": 7, \"Type\": \"Request-Based\"}"), (7, 0));
    assert_eq!(of("{\"MaxConcurrency\": 7, \"InstanceIsolationEnabled\": \"TRUE\"}"), (7, 1));
    assert_eq!(of("{\"MaxConcurrency\": 7, \"InstanceIsolationEnabled\": \"FALSE\"}"), (7, 0));
    assert_eq!(of("{\"MaxConcurrency\": 7, \"SessionConfig\": {\"SessionSource\": \"COOKIE\"}}"), (7, 1));
}

#[test]
fn sessions_of_scf_are_read() {
    let of = |more: &str| {
        let json = format!("{{\"Type\": \"Session-Based\", \"SessionConfig\": {{{more}}}}}");
        let config = parse(&with_concurrency(&json), Language::Json).expect("a function").config;
        (config.session_affinity.expect("affinity"), config.concurrency)
    };
    let all = "\"SessionSource\": \"HEADER\", \"SessionName\": \"X-Mine\", \"MaximumTTLInSeconds\": 600, \
        \"MaximumConcurrencySessionPerInstance\": 3, \"MaximumIdleTimeInSeconds\": 60, \
        \"IdleTimeoutStrategy\": \"FATAL\"";
    let header = |name: &'static str| http::HeaderName::from_static(name);
    let (affinity, concurrency) = of(all);
    assert_eq!((affinity.key, concurrency), (SessionKey::Header(header("x-mine")), 100));
    assert_eq!((affinity.sessions, affinity.lifetime.as_secs(), affinity.idle.as_secs()), (3, 600, 60));
    let pauses = "{\"Type\": \"Session-Based\", \"SessionConfig\": {\"SessionSource\": \"COOKIE\", \
        \"SessionName\": \"mine_1\", \"SessionPath\": \"/sse\", \"IdleTimeoutStrategy\": \"PAUSE\"}}";
    let pauses = parse(&with_concurrency(pauses), Language::Json).expect("a function").warnings;
    for key in ["IdleTimeoutStrategy", "SessionPath"] {
        let named = format!("InstanceConcurrencyConfig.SessionConfig.{key} is ignored");
        assert!(pauses.iter().any(|warning| warning.message.contains(&named)), "{key}: {pauses:#?}");
    }
    let key = |source: &str, more: &str| of(&format!("\"SessionSource\": \"{source}\"{more}")).0.key;
    let named = ", \"SessionName\": \"mine_1\"";
    assert_eq!(key("COOKIE", named), SessionKey::Cookie("mine_1".into()));
    assert_eq!(key("QUERY_STRING", named), SessionKey::Query("mine_1".into()));
    assert_eq!(key("MCP_STREAMABLE", ""), SessionKey::Mcp(Mcp::streamable()));
    assert_eq!(key("MCP_STREAMABLE", named), SessionKey::Mcp(Mcp::Streamable { header: header("mine_1") }));
    assert_eq!(key("MCP_SSE", ", \"SessionPath\": \"/events\""), SessionKey::Mcp(Mcp::sse("/events")));
    let sse = Mcp::Sse { path: "/sse".into(), parameter: Some("mine_1".into()) };
    assert_eq!(key("MCP_SSE", named), SessionKey::Mcp(sse));
}

#[test]
fn wrong_sessions_of_scf_are_told() {
    let session = |config: &str| format!("{{\"Type\": \"Session-Based\", \"SessionConfig\": {config}}}");
    for (json, part) in [
        ("{\"DynamicEnabled\": \"maybe\"}".to_owned(), "DynamicEnabled: must be TRUE or FALSE"),
        ("{\"Type\": \"Sticky\"}".to_owned(), "Type: must be Request-Based or Session-Based"),
        ("{\"Type\": \"Session-Based\"}".to_owned(), "has no SessionConfig"),
        (session("3"), "SessionConfig: must be a table"),
        (session("{\"SessionName\": \"mine_1\"}"), "has no SessionSource"),
        (session("{\"SessionSource\": \"BODY\"}"), "must be HEADER, COOKIE, QUERY_STRING"),
        (session("{\"SessionSource\": \"COOKIE\"}"), "COOKIE needs a SessionName"),
        (session("{\"SessionSource\": \"COOKIE\", \"SessionName\": \"a\"}"), "must be 5 to 40"),
        (session("{\"SessionSource\": \"HEADER\", \"SessionName\": \"a b c\"}"), "SessionName: \"a b c\""),
        (
            session(
                "{\"SessionSource\": \"COOKIE\", \"SessionName\": \"mine_1\", \
                 \"MaximumConcurrencySessionPerInstance\": 101}",
            ),
            "101 must be 1 to 100",
        ),
        (
            session("{\"SessionSource\": \"COOKIE\", \"SessionName\": \"mine_1\", \"SessionColour\": 1}"),
            "SessionColour: no such key",
        ),
    ] {
        let told = faults(&with_concurrency(&json), Language::Json);
        assert!(told.len() == 1 && told[0].contains(part), "{json}: {told:#?}");
    }
}

#[test]
fn what_changes_nothing_here_is_named() {
    let with =
        TENCENT.replace("\"ImageType\"", "\"EntryPoint\": \"sh\", \"RegistryId\": \"tcr-1\", \"ImageType\"");
    let with = with.replace(
        "\"Role\"",
        "\"ClsLogsetId\": \"1\", \"ClsTopicId\": \"2\", \"CfsConfig\": {}, \"Layers\": [], \"PublicNetConfig\": {}, \"Role\"",
    );
    let file = parse(&with, Language::Json).expect("a function");
    let named: Vec<&str> = file
        .warnings
        .iter()
        .filter_map(|warning| warning.message.split(": ").nth(1)?.strip_suffix(" is ignored"))
        .collect();
    for key in [
        "Code.ImageConfig.EntryPoint",
        "Code.ImageConfig.RegistryId",
        "Code.ImageConfig.ImageType",
        "ClsLogsetId",
        "ClsTopicId",
        "CfsConfig",
        "Layers",
        "VpcConfig",
        "PublicNetConfig",
        "Role",
    ] {
        assert!(named.contains(&key), "{key} in {named:?}");
    }
    assert_eq!(file.config.entrypoint, Some(vec!["python".to_owned()]), "an EntryPoint is not used");
}

#[test]
fn wrong_files_of_tencents_are_told() {
    for (from, to, told) in [
        ("\"MemorySize\": 512", "\"MemorySize\": 500", "line 6, column 17: memory 500 MiB: must be"),
        (
            "\"Timeout\": 60",
            "\"Timeout\": \"60\"",
            "line 7, column 14: Timeout: must be a whole number, and is a text",
        ),
        ("\"CustomImage\"", "\"Python3.9\"", "line 4, column 14: Runtime: \"Python3.9\" must be CustomImage"),
        (
            "\"Key\": \"MODE\"",
            "\"Key\": \"SCF_MODE\"",
            "line 18, column 33: variable \"SCF_MODE\": names beginning with SCF_",
        ),
        (
            "\"Value\": \"prod\"",
            "\"Value\": 3",
            "line 18, column 33: Environment.Variables: must be {\"Key\": TEXT",
        ),
        (
            "\"IdleTimeOut\": 600",
            "\"IdleTimeOut\": 1801",
            "line 21, column 50: WebSocket idle time 1801s: must be 1 s to 1800 s",
        ),
        ("\"Args\"", "\"Arguments\"", "line 14, column 5: Code.ImageConfig.Arguments: no such key"),
        (
            "\"ImagePort\": 9000",
            "\"ImagePort\": -2",
            "line 16, column 18: Code.ImageConfig.ImagePort: -2 must be -1 to 65535",
        ),
    ] {
        let found = faults(&TENCENT.replace(from, to), Language::Json);
        assert!(found[0].starts_with(told), "{found:?}");
    }
}

#[test]
fn words_of_commands_are_split_at_spaces_alone() {
    let quoted = TENCENT.replace("\"-u app.py\"", r#""-c \"import a\"  'b c'""#);
    assert_ne!(quoted, TENCENT);
    let args = parse(&quoted, Language::Json).expect("a function").config.cmd.expect("words");
    assert_eq!(args, ["-c", "\"import", "a\"", "'b", "c'"]);
}
