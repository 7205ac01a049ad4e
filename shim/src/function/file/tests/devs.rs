//! Files of Serverless Devs.

use super::*;

pub(super) const DEVS: &str = r#"
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

/// A function with these lines below `props`.
fn with(lines: &str) -> String {
    let head = "resources:\n  app:\n    component: fc3\n    props:\n      functionName: f\n";
    let image = "      runtime: custom-container\n      customContainerConfig:\n        image: registry/f\n";
    let lines: Vec<String> = lines.lines().map(|line| format!("      {line}\n")).collect();
    format!("{head}{image}{}", lines.concat())
}

#[test]
fn session_affinity_is_read() {
    let text = "sessionAffinity: HEADER_FIELD\nsessionAffinityConfig:\n  affinityHeaderFieldName: x-mine\n  \
        sessionConcurrencyPerInstance: 1\n  sessionIdleTimeoutInSeconds: 1800\n  sessionTTLInSeconds: 86400";
    let file = parse(&with(text), Language::Yaml).expect("a function");
    let affinity = file.config.session_affinity.expect("affinity");
    assert_eq!(affinity.key, SessionKey::Header(http::HeaderName::from_static("x-mine")));
    assert!(!affinity.single_use);
    assert_eq!((affinity.sessions, affinity.lifetime.as_secs(), affinity.idle.as_secs()), (1, 86_400, 1800));
    assert_eq!((file.config.concurrency, file.warnings.len()), (200, 0));
    let cookie = parse(&with("sessionAffinity: GENERATED_COOKIE"), Language::Yaml).expect("a function");
    assert_eq!(cookie.config.session_affinity, Some(crate::function::SessionAffinity::default()));
    let once = "sessionAffinity: GENERATED_COOKIE\nsessionAffinityConfig:\n  disableSessionIdReuse: true";
    let once = parse(&with(once), Language::Yaml).expect("a function");
    assert!(once.config.session_affinity.expect("affinity").single_use && once.warnings.is_empty());
    let other =
        "sessionAffinity: GENERATED_COOKIE\nsessionAffinityConfig:\n  affinityHeaderFieldName: x-mine";
    let other = parse(&with(other), Language::Yaml).expect("a function");
    assert!(other.warnings[0].message.contains("affinityHeaderFieldName is ignored"), "{:?}", other.warnings);
    let of_mcp = "sessionAffinity: MCP_SSE\nsessionAffinityConfig:\n  disableSessionIdReuse: true";
    let of_mcp = parse(&with(of_mcp), Language::Yaml).expect("a function");
    assert!(of_mcp.warnings[0].message.contains("disableSessionIdReuse is ignored"), "{:?}", of_mcp.warnings);
    let mcp = |text: &str| {
        let file = parse(&with(text), Language::Yaml).expect("a function");
        assert_eq!((file.config.concurrency, file.warnings.len()), (200, 0));
        let affinity = file.config.session_affinity.expect("affinity");
        (affinity.key, affinity.sessions)
    };
    let sse = |path: &str| SessionKey::Mcp(Mcp::sse(path));
    assert_eq!(mcp("sessionAffinity: MCP_STREAMABLE"), (SessionKey::Mcp(Mcp::streamable()), 20));
    assert_eq!(mcp("sessionAffinity: MCP_SSE\nsessionAffinityConfig: {}"), (sse("/sse"), 20));
    let all = "sessionAffinity: MCP_SSE\nsessionAffinityConfig:\n  sseEndpointPath: /events\n  \
        sessionConcurrencyPerInstance: 5";
    assert_eq!(mcp(all), (sse("/events"), 5));
    for (wrong, part) in [
        (
            "sessionAffinity: STICKY",
            "must be NONE, GENERATED_COOKIE, HEADER_FIELD, MCP_SSE or MCP_STREAMABLE",
        ),
        ("sessionAffinity: HEADER_FIELD", "needs sessionAffinityConfig.affinityHeaderFieldName"),
        (
            "sessionAffinity: HEADER_FIELD\nsessionAffinityConfig:\n  affinityHeaderFieldName: two words\n  \
             sessionTTLInSeconds: 86400",
            "affinityHeaderFieldName: \"two words\"",
        ),
        (
            "sessionAffinity: GENERATED_COOKIE\nsessionAffinityConfig:\n  sessionConcurrencyPerInstance: 201",
            "201 must be 1 to 200",
        ),
        (
            "sessionAffinity: GENERATED_COOKIE\nsessionAffinityConfig:\n  sessionTTLInSeconds: 86400",
            "must be 1 s to 21600 s",
        ),
    ] {
        let told = faults(&with(wrong), Language::Yaml);
        assert!(told.len() == 1 && told[0].contains(part), "{wrong}: {told:#?}");
    }
}

#[test]
fn what_becomes_of_calls_for_later_is_read() {
    let three = DEVS.replace(
        "      nasConfig: auto\n",
        "      asyncInvokeConfig:\n        maxAsyncRetryAttempts: 0\n        maxAsyncEventAgeInSeconds: 60\n        \
         asyncTask: true\n        destinationConfig: { onFailure: { destination: acs:fc:::functions/x } }\n",
    );
    let file = parse(&three, Language::Yaml).expect("a function");
    let later = &file.config.asynchronous;
    assert_eq!((later.retries, later.max_age), (Some(0), Some(Duration::from_secs(60))));
    assert_eq!((&later.on_success, &later.on_failure), (&None, &None));
    let told = |part: &str| file.warnings.iter().any(|warning| warning.message.contains(part));
    assert!(
        told("asyncInvokeConfig.destinationConfig is ignored") && told("--async-on-failure"),
        "{:#?}",
        file.warnings
    );
    assert!(told("asyncInvokeConfig.asyncTask is ignored"), "{:#?}", file.warnings);
    let wrong = three.replace("Attempts: 0", "Attempts: 9").replace("Seconds: 60", "Seconds: 604801");
    let told = faults(&wrong, Language::Yaml);
    assert!(
        told.len() == 2 && told[0].contains("must be 0 to 8") && told[1].contains("must be 1 to 604800"),
        "{told:#?}"
    );
}

#[test]
fn a_time_that_is_not_said_is_that_of_the_api() {
    let of = |lines: &str| parse(&with(lines), Language::Yaml).expect("a function").config.timeout.as_secs();
    assert_eq!((of("memorySize: 512"), of("timeout: 60")), (3, 60));
}
