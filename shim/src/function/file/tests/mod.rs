mod devs;
mod tencent;

use std::time::Duration;

use proptest::prelude::*;
use skiff_runtime::{Network, Writable};

use super::*;
use crate::api::Destination;
use crate::function::{Mcp, Mode, SessionAffinity, SessionKey};
use crate::platform::HttpEvent;

fn parse(text: &str, language: Language) -> Result<FunctionFile> {
    let lookup = |name: &str| (name == "TAG").then(|| "7".to_owned());
    FunctionFile::parse(text, language, "the file", FileOptions { service: None, lookup: Some(&lookup) })
}

fn toml(text: &str) -> FunctionFile {
    parse(text, Language::Toml).expect("a function")
}

#[track_caller]
fn faults(text: &str, language: Language) -> Vec<String> {
    let error = parse(text, language).expect_err("faults");
    assert_eq!(error.kind(), ErrorKind::InvalidFunction);
    assert!(error.advice().is_some() && error.to_string().starts_with("the file has "), "{error}");
    error.faults().to_vec()
}

const OWN: &str = r#"
platform = "fc2"
name = "resize"
image = "registry.example/team/resize:1"
entrypoint = ["/usr/bin/python3", "app.py"]
command = "--fast"
user = "app:app"
userns = true
workdir = "/srv"
port = 8080
memory = "1GiB"
cpus = 0.5
pids = 64
writable = "tmpfs"
writable_size = "64MiB"
writable_inodes = 1000
tmp_size = "32MiB"
tmp_inodes = 500
read_only = true
accelerate = true
network = "bridge"
timeout = 30
start_timeout = "10s"
stop_timeout = "2s"
concurrency = 20
freeze = false
metrics_period = "30s"
region = "cn-beijing"
account_id = 1234567890123456
namespace = "team"
version = "prod"
handler = "index.handler"

[role]
url = "unix:/run/roles.sock"
token_file = "/etc/token"

[env]
MODE = "test"
LEVEL = 3

[callbacks]
initializer = "20s"
pre_freeze = "1s"
pre_stop = "5s"

[health_check]
path = "/health"
delay = "0"
period = "5s"
timeout = "2s"
failures = 4
successes = 2

[asynchronous]
retries = 5
max_age = "10m"
on_success = "http://127.0.0.1:8080/done"
on_failure = "/var/log/failed.jsonl"
"#;

#[track_caller]
fn check_own(file: &FunctionFile) {
    let config = &file.config;
    let seconds = Duration::from_secs;
    assert_eq!(file.image.as_deref(), Some("registry.example/team/resize:1"));
    assert_eq!((config.platform.name(), config.name.as_str()), ("fc2", "resize"));
    assert_eq!(config.entrypoint.as_ref().map(Vec::len), Some(2));
    assert_eq!(config.cmd, Some(vec!["--fast".to_owned()]));
    assert_eq!((config.user.as_deref(), config.userns), (Some("app:app"), true));
    assert_eq!((config.working_dir.as_deref(), config.port), (Some("/srv"), Some(8080)));
    assert_eq!((config.memory_mib, config.cpu_millis, config.pids), (1024, 500, Some(64)));
    assert_eq!((config.writable, config.network), (Writable::Tmpfs, Network::Bridge));
    assert_eq!((config.writable_bytes, config.writable_inodes), (64 << 20, 1000));
    assert_eq!((config.tmp_bytes, config.tmp_inodes), (32 << 20, 500));
    assert!(config.read_only && config.acceleration && !config.freeze);
    assert_eq!(config.metrics_period, Some(Duration::from_secs(30)));
    assert_eq!(
        (config.timeout, config.start_deadline, config.stop_grace),
        (seconds(30), Some(seconds(10)), seconds(2))
    );
    assert_eq!((config.concurrency, config.mode), (20, Mode::WebServer));
    assert_eq!((config.region.as_str(), config.account_id.as_str()), ("cn-beijing", "1234567890123456"));
    assert_eq!((config.namespace.as_str(), config.version.as_str()), ("team", "prod"));
    let mut env: Vec<_> = config.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    env.sort();
    assert_eq!(env, ["LEVEL=3", "MODE=test"]);
    let later = &config.asynchronous;
    assert_eq!((later.retries, later.max_age), (Some(5), Some(seconds(600))));
    assert!(matches!(&later.on_success, Some(Destination::Http(uri)) if uri.path() == "/done"));
    assert_eq!(later.on_failure, Some(Destination::File("/var/log/failed.jsonl".into())));
    let callbacks = &config.callbacks;
    assert_eq!((callbacks.initializer, callbacks.pre_stop), (Some(seconds(20)), Some(seconds(5))));
    let check = config.health_check.as_ref().expect("a check");
    assert_eq!((check.path.as_str(), check.initial_delay, check.period), ("/health", seconds(0), seconds(5)));
    assert_eq!((check.timeout, check.failure_threshold, check.success_threshold), (seconds(2), 4, 2));
    assert!(
        matches!(&config.role, Some(crate::RoleSource::Endpoint(service)) if service.url == "unix:/run/roles.sock")
    );
    assert_eq!(file.warnings, []);
}

#[test]
fn own_files_say_all_that_options_say() {
    check_own(&toml(OWN));
}

#[test]
fn http_events_are_chosen_by_their_form() {
    let read = |form: &str| toml(&format!("platform = \"scf\"\nname = \"f\"\nhttp_event = \"{form}\"\n"));
    for (name, form) in HttpEvent::ALL {
        assert_eq!(read(name).config.http_event, Some(form));
    }
    let idle = toml("platform = \"scf\"\nname = \"f\"\nwebsocket_idle = \"60s\"\n").config.websocket_idle();
    assert_eq!(idle, Some(Duration::from_secs(60)));
    let text = "platform = \"scf\"\nname = \"f\"\nhttp_event = \"lambda\"\n";
    let found = faults(text, Language::Toml);
    assert!(
        found[0].starts_with("line 3, column 14: http_event: \"lambda\" must be one of url, gateway"),
        "{found:?}"
    );
    let found = faults("name = \"f\"\nhttp_event = \"url\"\n", Language::Toml);
    assert!(found[0].starts_with("line 2, column 14: HTTP events: platform fc has none"), "{found:?}");
}

#[test]
fn the_same_in_json() {
    let table: toml::de::DeTable<'_> = toml::de::DeTable::parse(OWN).expect("TOML").into_inner();
    let json = as_json(&toml::de::DeValue::Table(table));
    check_own(&parse(&json.to_string(), Language::Json).expect("a function"));
    check_own(
        &parse(&serde_json::to_string_pretty(&json).expect("text"), Language::Yaml).expect("a function"),
    );
}

fn as_json(value: &toml::de::DeValue<'_>) -> serde_json::Value {
    use toml::de::DeValue;
    match value {
        DeValue::String(text) => text.to_string().into(),
        DeValue::Integer(number) => number.as_str().parse::<i64>().expect("a number").into(),
        DeValue::Float(number) => number.as_str().parse::<f64>().expect("a number").into(),
        DeValue::Boolean(is) => (*is).into(),
        DeValue::Array(items) => items.iter().map(|item| as_json(item.get_ref())).collect(),
        DeValue::Table(table) => serde_json::Value::Object(
            table.iter().map(|(key, value)| (key.get_ref().to_string(), as_json(value.get_ref()))).collect(),
        ),
        DeValue::Datetime(_) => serde_json::Value::Null,
    }
}

#[test]
fn what_a_file_does_not_say_is_the_platforms() {
    let file = toml("image = \"oci:dir/my-app:1\"");
    assert_eq!((file.config.platform.name(), file.config.name.as_str()), ("fc", "my-app"));
    assert_eq!(
        format!("{:?}", file.config),
        format!("{:?}", FunctionConfig::new("my-app", crate::platform::fc()))
    );
    assert_eq!(toml("").image, None);
}

#[test]
fn everything_that_is_wrong_is_told_at_once_with_its_line() {
    let text = "\
nmae = \"a\"
memory = \"100MiB\"
timeout = \"2d\"
port = 70000
read_only = \"yes\"
entrypoint = [\"a\", true]
writable = \"nfs\"

[env]
FC_X = \"s3cret-91bc\"
LIST = [1]

[health_check]
path = \"health\"
period = \"1h\"
";
    let told = faults(text, Language::Toml);
    let expected = [
        "line 1, column 1: nmae: no such key; is name meant?",
        "line 2, column 10: memory 100 MiB: must be 128 to 32768 MiB in steps of 64",
        "line 3, column 11: timeout: \"2d\": not a whole number of ms, s, m or h, such as 30s",
        "line 4, column 8: port: 70000 must be 1 to 65535",
        "line 5, column 13: read_only: must be true or false, and is a text",
        "line 6, column 20: entrypoint: must be a list of texts, and has true or false",
        "line 7, column 12: writable: \"nfs\" must be one of auto, quota, loop, tmpfs",
        "line 10, column 1: variable \"FC_X\": names beginning with FC_ are the platform's",
        "line 11, column 8: env.LIST: must be a text, and is a list",
        "line 14, column 8: health check path \"health\": must begin with \"/\" and have at most 2048 characters \
         that a URL can have",
        "line 15, column 10: health check period 3600s: must be 1 s to 120 s",
    ];
    assert_eq!(told, expected);
}

#[test]
fn rules_that_hang_together_are_told_where_they_are_broken() {
    let told = faults("platform = \"scf\"\nmode = \"job\"\n[callbacks]\npre_stop = 1\n", Language::Toml);
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].starts_with("line 2, column 8: mode job: has neither callbacks"), "{told:?}");
    assert!(told[1].starts_with("line 4, column 12: pre-stop: platform scf has no"), "{told:?}");
}

#[test]
fn what_becomes_of_asynchronous_calls_is_within_bounds() {
    let wrong = "[asynchronous]\nretries = 9\nmax_age = \"soon\"\non_success = \"https://host/\"\nto = \"x\"";
    let told = faults(wrong, Language::Toml);
    assert_eq!(told.len(), 4, "{told:#?}");
    for (fault, part) in
        told.iter().zip(["retries: 9 must be 0 to 8", "max_age", "only files and http://", "to"])
    {
        assert!(fault.contains(part), "{fault}");
    }
}

#[test]
fn session_affinity_says_which_calls_belong_together() {
    let cookie = toml("name = \"f\"\n[session_affinity]\n").config;
    assert_eq!((cookie.session_affinity, cookie.concurrency), (Some(SessionAffinity::default()), 200));
    let all = "name = \"f\"\nconcurrency = 10\n[session_affinity]\nheader = \"x-mine\"\nsessions = 10\n\
        lifetime = \"24h\"\nidle = \"1m\"";
    let config = toml(all).config;
    let affinity = config.session_affinity.expect("affinity");
    assert_eq!((affinity.sessions, affinity.lifetime.as_secs(), affinity.idle.as_secs()), (10, 86_400, 60));
    let header = |name: &'static str| SessionKey::Header(http::HeaderName::from_static(name));
    assert_eq!((affinity.key, config.concurrency, affinity.single_use), (header("x-mine"), 10, false));
    let once = toml("[session_affinity]\nsingle_use = true").config.session_affinity.expect("affinity");
    assert_eq!(once, SessionAffinity { single_use: true, ..SessionAffinity::default() });
    let wrong = "concurrency = 2\nplatform = \"fc2\"\n[session_affinity]\nlifetime = \"long\"\nsessions = 3";
    let told = faults(wrong, Language::Toml);
    assert_eq!(told.len(), 3, "{told:#?}");
    for part in ["lifetime", "platform fc2 has none", "must not be more than the concurrency, 2"] {
        assert!(told.iter().any(|fault| fault.contains(part)), "{part}: {told:#?}");
    }
}

#[test]
fn a_sessions_id_is_in_one_place() {
    let of = |platform: &str, text: &str| {
        let config = toml(&format!("platform = \"{platform}\"\n[session_affinity]\n{text}")).config;
        (config.session_affinity.expect("affinity").key, config.concurrency)
    };
    let sse = |path: &str, parameter: Option<&str>| {
        SessionKey::Mcp(Mcp::Sse { path: path.into(), parameter: parameter.map(str::to_owned) })
    };
    let streamable =
        |name: &'static str| SessionKey::Mcp(Mcp::Streamable { header: http::HeaderName::from_static(name) });
    assert_eq!(of("fc", "mcp = \"streamable\""), (streamable("mcp-session-id"), 200));
    assert_eq!(of("fc", "mcp = \"sse\""), (sse("/sse", None), 200));
    assert_eq!(of("fc", "mcp = \"sse\"\npath = \"/events\""), (sse("/events", None), 200));
    for (text, key) in [
        ("cookie = \"mine-1\"", SessionKey::Cookie("mine-1".into())),
        ("query = \"mine_1\"", SessionKey::Query("mine_1".into())),
        ("header = \"x-mine\"", SessionKey::Header(http::HeaderName::from_static("x-mine"))),
        ("mcp = \"streamable\"\nheader = \"x-mine\"", streamable("x-mine")),
        ("mcp = \"sse\"\nquery = \"mine_1\"", sse("/sse", Some("mine_1"))),
    ] {
        assert_eq!(of("scf", text), (key, 100), "{text}");
    }
    for (text, part) in [
        ("", "say where its id is: header, cookie, query or mcp"),
        ("cookie = \"mine-1\"\nheader = \"x-mine\"", "says more than once where an id is"),
        ("mcp = \"streamable\"\nquery = \"mine_1\"", "says more than once where an id is"),
        ("header = \"two words\"", "session_affinity.header: \"two words\""),
        ("mcp = \"stream\"", "session_affinity.mcp"),
        ("query = true", "session_affinity.query"),
        ("cookie = \"mine-1\"\npath = \"/sse\"", "session_affinity.path"),
        ("query = \"mine_1\"\nsessions = 101", "sessions 101: must be 1 to 100"),
    ] {
        let told = faults(&format!("platform = \"scf\"\n[session_affinity]\n{text}"), Language::Toml);
        assert!(told.len() == 1 && told[0].contains(part), "{text}: {told:#?}");
    }
}

#[test]
fn a_role_has_one_source() {
    let both = "[role]\nfile = \"a\"\nurl = \"https://h\"\n";
    assert_eq!(faults(both, Language::Toml), ["line 2, column 1: role has both a file and a url"]);
    let neither = "[role]\ntoken_file = \"a\"\n";
    assert_eq!(faults(neither, Language::Toml), ["line 2, column 1: role has neither a file nor a url"]);
    assert!(matches!(toml("[role]\nfile = \"a\"\n").config.role, Some(crate::RoleSource::File(_))));
}

#[test]
fn texts_that_are_no_files_are_told_with_their_line() {
    for (text, language, told) in [
        ("a = \n", Language::Toml, "line 1, column 5: "),
        ("name = \"a\"\nname = \"b\"\n", Language::Toml, "line 2, column 1: "),
        ("{\"a\": 1,}", Language::Json, "line 1, column 9: key must be a string"),
        (
            "{\"name\": \"a\", \"name\": \"b\"}",
            Language::Json,
            "line 1, column 15: name: given twice (first in line 1, column 2)",
        ),
        ("{\"a\": 1} // x", Language::Json, "line 1, column 10: trailing characters"),
        ("", Language::Json, "line 1, column 1: EOF"),
        ("a: 1\na: 2\n", Language::Yaml, "line 2, column 1: a: given twice"),
        ("a: [1\nb: 2", Language::Yaml, "line "),
        ("a: 1\n---\nb: 2\n", Language::Yaml, "line 2, column 1: a second document"),
        ("", Language::Yaml, "line 1, column 1: nothing"),
        ("? [a]\n: b\n", Language::Yaml, "line 1, column 3: a key that is no text"),
        ("[1, 2]", Language::Json, "line 1, column 1: a function must be a table, and this is a list"),
        ("name: *x\n", Language::Yaml, "line 1, column 7: "),
    ] {
        let found = faults(text, language);
        assert!(found[0].starts_with(told), "{text}: {found:?}");
    }
}

#[test]
fn hostile_files_are_bounded() {
    let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
    faults(&format!("{{\"a\": {deep}}}"), Language::Json);
    faults(&format!("a = {deep}"), Language::Toml);
    faults(&format!("a: {deep}"), Language::Yaml);
    let nested = format!("{{\"a\": {}1{}}}", "[".repeat(40), "]".repeat(40));
    assert!(faults(&nested, Language::Json)[0].ends_with("nested more than 32 deep"));
    // A billion laughs.
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let before = format!("*a{}, ", level - 1).repeat(10);
        bomb += &format!("a{level}: &a{level} [{}]\n", before.trim_end_matches(", "));
    }
    assert!(faults(&bomb, Language::Yaml)[0].contains("more than 5000 values"));
    // Many values, one long text that aliases repeat, variables that multiply.
    let many = "\"a\",".repeat(50_000);
    for (text, language) in [
        (format!("{{\"command\": [{many}1]}}"), Language::Json),
        (format!("command = [{many}1]"), Language::Toml),
        ((0..19_000).map(|key| format!("k{key}: 1\n")).collect(), Language::Yaml),
        (format!("vars: &a {}\ncommand: [{}]\n", "x".repeat(100_000), "*a, ".repeat(1000)), Language::Yaml),
    ] {
        assert!(faults(&text, language)[0].contains("more than 5000 values"));
    }
    let many = "${vars.a}".repeat(10_000);
    for (vars, told) in [
        (format!("  a: x\n  b: {many}\n"), "more than 5000 variables to replace"),
        (
            format!("  a: {}\n  b: {}\n", "x".repeat(10_000), "${vars.a}".repeat(10)),
            "become more than 65536 bytes",
        ),
        (
            format!("  a: [{}]\n  b: [{}]\n", "x, ".repeat(2000), "\"${vars.a}\", ".repeat(1000)),
            "more than 5000 variables to replace",
        ),
    ] {
        let text = format!(
            "vars:\n{vars}resources:\n  a:\n    component: fc3\n    props:\n      functionName: ${{vars.b}}\n"
        );
        let found = faults(&text, Language::Yaml);
        assert!(found.iter().any(|fault| fault.contains(told)), "{}", found.len());
    }
    assert!(faults(&" ".repeat(300_000), Language::Toml)[0].contains("more than 262144 bytes"));
    let long = format!("name = \"{}\"", "x".repeat(100_000));
    assert!(faults(&long, Language::Toml)[0].len() < 400, "a fault grows with its input");
}

#[test]
fn files_that_cannot_be_read_are_told() {
    let dir = tempfile::tempdir().expect("tempdir");
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).expect("written");
        path
    };
    let fifo = dir.path().join("fifo.toml");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
        .expect("a FIFO");
    std::fs::create_dir(dir.path().join("dir.toml")).expect("mkdir");
    for (path, told) in [
        (dir.path().join("none.toml"), "No such file"),
        (dir.path().join("dir.toml"), "is not a file"),
        (fifo, "is not a file"),
        (write("a.ini", b""), "is no file of a known kind"),
        (write("a.toml", b"\xff"), "is not a text in UTF-8"),
        (write("big.toml", &vec![b' '; 1 << 21]), "is larger than 262144 bytes"),
    ] {
        let error = FunctionFile::read(&path, FileOptions::default()).expect_err(told);
        assert!(error.to_string().contains(told) && error.advice().is_some(), "{error}");
        assert_eq!(error.exit_code(), crate::ExitCode::Usage);
    }
    let marked = write("bom.json", "\u{feff}{\"name\": \"a\"}".as_bytes());
    assert_eq!(FunctionFile::read(&marked, FileOptions::default()).expect("read").config.name, "a");
}

proptest! {
    /// Whatever stands in a file, reading it ends, and not in a panic.
    #[test]
    fn no_text_breaks_the_readers(text in ".{0,200}", from in 0_usize..2000, to in 0_usize..2000) {
        for language in [Language::Toml, Language::Json, Language::Yaml] {
            let _ = parse(&text, language);
            for whole in [OWN, devs::DEVS, tencent::TENCENT] {
                // A file with a hole in which something else stands.
                let end = |at: usize| (at.min(whole.len())..=whole.len()).find(|at| whole.is_char_boundary(*at));
                let (from, to) = (end(from.min(to)).unwrap_or(0), end(from.max(to)).unwrap_or(0));
                let _ = parse(&format!("{}{text}{}", &whole[..from], &whole[to..]), language);
            }
        }
    }
}
