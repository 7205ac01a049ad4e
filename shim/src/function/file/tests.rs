use std::time::Duration;

use proptest::prelude::*;
use skiff_runtime::{Network, Writable};

use super::*;
use crate::function::Mode;

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

const DEVS: &str = r#"
edition: 3.0.0
name: demo
access: default
vars:
  region: cn-shanghai
  image: &image "registry.cn-shanghai.aliyuncs.com/team/app:${env(TAG)}"
  port: 8080
resources:
  site:
    component: website
    props: {}
  app:
    component: devsapp/fc3@0.1
    props:
      region: ${vars.region}
      functionName: "app-${vars.region}"
      runtime: custom-container
      description: a function
      cpu: 0.5
      memorySize: 1024
      diskSize: 10240
      timeout: 600
      instanceConcurrency: 10
      internetAccess: true
      role: acs:ram::1:role/x
      environmentVariables:
        MODE: prod
        COUNT: 3
      customContainerConfig:
        image: *image
        entrypoint: [ "/code/server" ]
        command:
          - --port
          - "8080"
        port: ${vars.port}
        acrInstanceId: cri-1
        healthCheckConfig:
          httpGetUrl: /health
          periodSeconds: 5
      instanceLifecycleConfig:
        initializer: { handler: index.initialize, timeout: 20 }
        preStop: { handler: index.stop }
      nasConfig: auto
      triggers: []
"#;

#[test]
fn serverless_devs_files_are_read() {
    let file = parse(DEVS, Language::Yaml).expect("a function");
    let config = &file.config;
    assert_eq!(file.image.as_deref(), Some("registry.cn-shanghai.aliyuncs.com/team/app:7"));
    assert_eq!((config.platform.name(), config.name.as_str()), ("fc", "app-cn-shanghai"));
    assert_eq!((config.memory_mib, config.cpu_millis, config.writable_bytes), (1024, 500, 10 << 30));
    assert_eq!((config.timeout.as_secs(), config.concurrency, config.port), (600, 10, Some(8080)));
    assert_eq!(config.entrypoint, Some(vec!["/code/server".to_owned()]));
    assert_eq!(config.cmd, Some(vec!["--port".to_owned(), "8080".to_owned()]));
    assert_eq!(config.env.len(), 2);
    let seconds = |time: Option<Duration>| time.map(|time| time.as_secs());
    assert_eq!(seconds(config.callbacks.initializer), Some(20));
    assert_eq!(seconds(config.callbacks.pre_stop), Some(3), "the default");
    assert_eq!(config.health_check.as_ref().map(|check| check.period.as_secs()), Some(5));
    let ignored: Vec<&str> = file.warnings.iter().map(|warning| warning.message.as_str()).collect();
    assert_eq!(ignored.len(), 6, "{ignored:#?}");
    assert!(
        ignored.iter().any(|text| text.contains("line 44, column 18: app.props.nasConfig is ignored")),
        "{ignored:#?}"
    );
}

#[test]
fn one_of_several_services_is_chosen() {
    let text = "services:\n  a:\n    component: fc3\n    props: {functionName: fa}\n  b:\n    component: fc\n    \
                props: {service: {name: s}, function: {name: fb, caPort: 80, customContainerConfig: {image: i, \
                command: '[\"/s\"]', args: '', webServerMode: false}}}\n";
    let with =
        |service| FunctionFile::parse(text, Language::Yaml, "f", FileOptions { service, lookup: None });
    assert_eq!(with(Some("a")).expect("a").config.name, "fa");
    let two = with(Some("b")).expect("b").config;
    assert_eq!((two.platform.name(), two.namespace.as_str(), two.mode), ("fc2", "s", Mode::Job));
    assert_eq!((two.entrypoint, two.port), (Some(vec!["/s".to_owned()]), Some(80)));
    let error = with(None).expect_err("which?").to_string();
    assert!(
        error.contains("line 2, column 3: several functions: choose one of a, b by --service"),
        "{error}"
    );
    let error = with(Some("c")).expect_err("none").to_string();
    assert!(error.contains("no function 'c': there are a, b"), "{error}");
}

#[test]
fn wrong_serverless_devs_files_are_told() {
    let with = |props: &str| {
        faults(&format!("resources:\n  a:\n    component: fc3\n    props:\n{props}"), Language::Yaml)
    };
    for (props, told) in [
        (
            "      runtime: python3.10\n",
            "line 5, column 16: a.props.runtime: \"python3.10\" must be custom-container",
        ),
        (
            "      memorysize: 512\n",
            "line 5, column 7: a.props.memorysize: no such key; is memorySize meant?",
        ),
        ("      memorySize: 100\n", "line 5, column 19: memory 100 MiB: must be"),
        ("      timeout: 1m\n", "line 5, column 16: a.props.timeout: must be a whole number, and is a text"),
        ("      functionName: ${vars.none}\n", "line 5, column 21: ${vars.none}: there is no such variable"),
        ("      functionName: ${env(NONE)}\n", "line 5, column 21: ${env(NONE)}: NONE is not set here"),
        ("      functionName: ${config(x)}\n", "line 5, column 21: ${config(x)}: only"),
        ("      functionName: a${vars\n", "line 5, column 21: a ${ without its }"),
    ] {
        let found = with(props);
        assert!(found[0].starts_with(told), "{found:?}");
    }
    let endless = "vars:\n  a: ${vars.b}\n  b: ${vars.a}\nresources:\n  a:\n    component: fc3\n    props:\n      functionName: ${vars.a}\n";
    let told = faults(endless, Language::Yaml);
    assert!(told.iter().any(|fault| fault.ends_with("variables that lead to each other")), "{told:?}");
    let command = "services:\n  a:\n    component: fc\n    props: {function: {customContainerConfig: {command: '/server'}}}\n";
    assert!(faults(command, Language::Yaml)[0].contains("command: must be a JSON list of texts"));
    assert!(
        faults("resources: {a: {component: website}}", Language::Yaml)[0]
            .contains("no service of the component")
    );
}

const TENCENT: &str = r#"{
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
    assert_eq!(config.entrypoint, Some(vec!["python".to_owned()]));
    assert_eq!(config.cmd, Some(vec!["-u".to_owned(), "app.py".to_owned()]));
    assert!(config.acceleration && config.concurrency == 20 && config.port == Some(9000));
    assert_eq!(config.env, [("MODE".to_owned(), "prod".to_owned())]);
    let ignored: Vec<&str> = file.warnings.iter().map(|warning| warning.message.as_str()).collect();
    assert_eq!(ignored.len(), 4, "{ignored:#?}");
    assert!(
        ignored.iter().any(|text| text.starts_with("line 20, column 11: Role is ignored")),
        "{ignored:#?}"
    );
    let job = TENCENT
        .replace("\"ImagePort\": 9000", "\"ImagePort\": -1")
        .replace("\"MaxConcurrency\": 20", "\"MaxConcurrency\": 1");
    assert_eq!(parse(&job, Language::Json).expect("a job").config.mode, Mode::Job);
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

proptest! {
    /// Whatever stands in a file, reading it ends, and not in a panic.
    #[test]
    fn no_text_breaks_the_readers(text in ".{0,200}", from in 0_usize..2000, to in 0_usize..2000) {
        for language in [Language::Toml, Language::Json, Language::Yaml] {
            let _ = parse(&text, language);
            for whole in [OWN, DEVS, TENCENT] {
                // A file with a hole in which something else stands.
                let end = |at: usize| (at.min(whole.len())..=whole.len()).find(|at| whole.is_char_boundary(*at));
                let (from, to) = (end(from.min(to)).unwrap_or(0), end(from.max(to)).unwrap_or(0));
                let _ = parse(&format!("{}{text}{}", &whole[..from], &whole[to..]), language);
            }
        }
    }
}
