//! Serverless Devs' `s.yaml`: the component `fc3` (API 3.0), and `fc` (2.0, a service and a function).

use std::cell::{Cell, RefCell};
use std::time::Duration;

use super::fields::{Fields, Report};
use super::languages::size;
use super::tree::{Entry, Node, Place, Value};
use super::{FileOptions, affinity};
use crate::FunctionConfig;
use crate::api::MAX_RETRIES;
use crate::function::{HealthCheck, Mode};
use crate::platform::{fc, fc2};
use crate::units::Cpus;

const MIB: u64 = 1 << 20;

/// Nesting of `${vars.…}` in each other.
const MAX_ROUNDS: usize = 8;

/// The time of an invocation that the API of 3.0 gives a function of which nothing is said; that of its console is longer.
const UNSAID_TIMEOUT: Duration = Duration::from_secs(3);

/// How often they are replaced in all, and the longest text that may come of it, in bytes.
const MAX_REPLACED: usize = 5_000;
const MAX_TEXT: usize = 64 << 10;

pub(super) fn read(
    node: &Node,
    report: &Report,
    options: FileOptions<'_>,
) -> Option<(Option<String>, FunctionConfig)> {
    let top = Fields::new(report, node.entries()?, "");
    top.known(&["edition", "name", "access", "actions", "template", "vars", "resources", "services"]);
    let resources = top.get("resources").or_else(|| top.get("services"))?;
    let (service, chosen) = choose(resources, report, options.service)?;
    let mut props = chosen.clone();
    Variables {
        vars: node.at(&["vars"]),
        options,
        report,
        told: RefCell::default(),
        left: Cell::new(MAX_REPLACED),
    }
    .replace(&mut props, 0);
    let (name, path) = (component(&props), format!("{service}."));
    let fields = Fields::new(report, props.entries()?, &path);
    fields.known(&["component", "actions", "extend"]);
    let props = fields.table("props")?;
    let read = if name == "fc" { two(&props) } else { three(&props) };
    fields.finish();
    props.finish();
    top.finish();
    read
}

fn component(node: &Node) -> String {
    let text = match node.at(&["component"]).map(|node| &node.value) {
        Some(Value::Text(text)) => text.as_str(),
        _ => "",
    };
    // `devsapp/fc3`, `fc3@0.1.2`
    let name = text.rsplit('/').next().unwrap_or_default();
    name.split('@').next().unwrap_or_default().to_owned()
}

/// The service of that name, or the only one that is a function.
fn choose<'a>(resources: &'a Node, report: &Report, wanted: Option<&str>) -> Option<(String, &'a Node)> {
    let entries = resources.entries().unwrap_or_default();
    let functions: Vec<&Entry> =
        entries.iter().filter(|entry| ["fc3", "fc"].contains(&component(&entry.node).as_str())).collect();
    let names = || functions.iter().map(|entry| entry.key.as_str()).collect::<Vec<_>>().join(", ");
    match (wanted, functions.as_slice()) {
        (Some(wanted), all) => {
            if let Some(found) = all.iter().find(|entry| entry.key == wanted) {
                return Some((found.key.clone(), &found.node));
            }
            report.fault(resources.place, format!("no function '{wanted}': there are {}", names()));
        }
        (None, [only]) => return Some((only.key.clone(), &only.node)),
        (None, []) => report.fault(resources.place, "no service of the component fc3 or fc"),
        (None, _) => {
            report
                .fault(resources.place, format!("several functions: choose one of {} by --service", names()));
        }
    }
    None
}

/// Replaces `${vars.NAME}` and `${env(NAME)}` in texts.
struct Variables<'a> {
    vars: Option<&'a Node>,
    options: FileOptions<'a>,
    report: &'a Report,
    told: RefCell<Vec<Place>>,
    /// How many may still be replaced.
    left: Cell<usize>,
}

impl Variables<'_> {
    fn replace(&self, node: &mut Node, round: usize) {
        let place = node.place;
        match &mut node.value {
            Value::List(items) => items.iter_mut().for_each(|item| self.replace(item, round)),
            Value::Table(entries) => {
                entries.iter_mut().for_each(|entry| self.replace(&mut entry.node, round));
            }
            Value::Text(text) if text.contains("${") => match self.resolve(text, place, round) {
                Ok(value) => node.value = value,
                Err(why) => self.fault(place, &why),
            },
            _ => {}
        }
    }

    fn fault(&self, place: Place, why: &str) {
        if !self.told.borrow().contains(&place) {
            self.told.borrow_mut().push(place);
            self.report.fault(place, why);
        }
    }

    fn resolve(&self, text: &str, place: Place, round: usize) -> Result<Value, String> {
        if round >= MAX_ROUNDS {
            return Err("variables that lead to each other".to_owned());
        }
        // The whole of a text may be any value.
        if let Some(inner) = text.strip_prefix("${").and_then(|rest| rest.strip_suffix('}'))
            && !inner.contains("${")
        {
            return self.value(inner.trim(), place, round);
        }
        let (mut out, mut rest) = (String::new(), text);
        while let Some((before, after)) = rest.split_once("${") {
            let (inner, after) = after.split_once('}').ok_or("a ${ without its }")?;
            out.push_str(before);
            match self.value(inner.trim(), place, round)? {
                Value::Text(text) => out.push_str(&text),
                Value::Integer(number) => out.push_str(&number.to_string()),
                Value::Float(number) => out.push_str(&number.to_string()),
                Value::Bool(is) => out.push_str(if is { "true" } else { "false" }),
                other => return Err(format!("${{{inner}}} is {} in the middle of a text", other.kind())),
            }
            if out.len() > MAX_TEXT {
                return Err(format!("variables that become more than {MAX_TEXT} bytes"));
            }
            rest = after;
        }
        out.push_str(rest);
        Ok(Value::Text(out))
    }

    /// A variable counts for all the values that it has.
    fn count(&self, values: usize) -> Result<(), String> {
        let left = self.left.get().checked_sub(values);
        self.left.set(left.ok_or_else(|| format!("more than {MAX_REPLACED} variables to replace"))?);
        Ok(())
    }

    fn value(&self, inner: &str, place: Place, round: usize) -> Result<Value, String> {
        self.count(1)?;
        if let Some(path) = inner.strip_prefix("vars.") {
            let keys: Vec<&str> = path.split('.').collect();
            let found = self.vars.and_then(|vars| vars.at(&keys));
            let found = found.ok_or_else(|| format!("${{{inner}}}: there is no such variable"))?;
            self.count(size(found))?;
            let mut node = found.clone();
            node.place = place;
            self.replace(&mut node, round + 1);
            return Ok(node.value);
        }
        let arguments = inner.strip_prefix("env(").and_then(|rest| rest.strip_suffix(')'));
        if let Some(arguments) = arguments {
            let mut words = arguments.split(',').map(|word| word.trim().trim_matches(['\'', '"']));
            let (name, otherwise) = (words.next().unwrap_or_default(), words.next());
            let value = self.options.lookup.and_then(|lookup| lookup(name));
            let value = value.or_else(|| otherwise.map(str::to_owned));
            return value.map(Value::Text).ok_or_else(|| format!("${{{inner}}}: {name} is not set here"));
        }
        Err(format!("${{{inner}}}: only ${{vars.NAME}} and ${{env(NAME)}} are understood"))
    }
}

fn u32_of(number: Option<i64>) -> Option<u32> {
    number.and_then(|number| u32::try_from(number).ok())
}

/// What both have, in the table of the function's own settings.
fn common(fields: &Fields<'_>, config: &mut FunctionConfig) {
    if let Some(memory) = u32_of(fields.number("memorySize", "memory", 1..=i64::from(u32::MAX))) {
        config.memory_mib = memory;
    }
    if let Some(mib) = fields.number("diskSize", "writable layer", 1..=1 << 20) {
        config.writable_bytes = u64::try_from(mib).unwrap_or_default() * MIB;
    }
    if let Some(timeout) = fields.seconds("timeout", "timeout", 1 << 32) {
        config.timeout = timeout;
    }
    if let Some(count) = u32_of(fields.number("instanceConcurrency", "concurrency", 0..=i64::from(u32::MAX)))
    {
        config.concurrency = count;
    }
    if fields.get("cpu").is_some() {
        let cpus = fields.parsed::<Cpus>("cpu", "CPU limit");
        config.cpu_millis = cpus.map_or(config.cpu_millis, |cpus| cpus.millis);
    }
    if let Some(handler) = fields.text("handler", "handler") {
        config.handler = handler;
    }
    config.env = fields.variables("environmentVariables");
    let Some(node) = fields.get("runtime") else { return };
    if let Some(runtime) = fields.text("runtime", "").filter(|runtime| runtime != "custom-container") {
        fields.fault(
            node.place,
            "runtime",
            &format!("{runtime:?} must be custom-container: Skiff runs images"),
        );
    }
}

fn three(props: &Fields<'_>) -> Option<(Option<String>, FunctionConfig)> {
    let mut config = FunctionConfig::new("", fc());
    config.name = props.text("functionName", "name").unwrap_or_default();
    if let Some(region) = props.text("region", "region") {
        config.region = region;
    }
    common(props, &mut config);
    let mut image = None;
    if let Some(container) = props.table("customContainerConfig") {
        image = container.text("image", "");
        config.entrypoint = container.words("entrypoint", "entrypoint");
        config.cmd = container.words("command", "command");
        config.port =
            u32_of(container.number("port", "port", 1..=65_535)).and_then(|port| u16::try_from(port).ok());
        config.health_check = health_check(&container, "healthCheckConfig");
        acceleration(&container, &mut config);
        container.all_ignored(
            &["acrInstanceId", "resolvedImageUri", "accelerationInfo"],
            "the registry is the image's",
        );
        container.ignored("registryConfig", "credentials of registries are options, see `skiff run --help`");
        container.finish();
    }
    if let Some(life) = props.table("instanceLifecycleConfig") {
        config.callbacks.initializer = callback(&life, "initializer", "initializer");
        config.callbacks.pre_stop = callback(&life, "preStop", "pre-stop");
        life.finish();
    }
    asynchronous(props, "asyncInvokeConfig", &mut config);
    if props.get("timeout").is_none() {
        config.timeout = UNSAID_TIMEOUT;
    }
    affinity::read_fc(props, &mut config);
    others(props);
    Some((image, config))
}

fn two(props: &Fields<'_>) -> Option<(Option<String>, FunctionConfig)> {
    let mut config = FunctionConfig::new("", fc2());
    if let Some(region) = props.text("region", "region") {
        config.region = region;
    }
    if let Some(service) = props.table("service") {
        if let Some(name) = service.text("name", "namespace") {
            config.namespace = name;
        }
        others(&service);
        service.all_ignored(&["tracingConfig", "userDefined"], "Skiff does not have it");
        service.finish();
    }
    props.all_ignored(&["triggers", "customDomains"], "Skiff has no triggers");
    let function = props.table("function")?;
    config.name = function.text("name", "name").unwrap_or_default();
    common(&function, &mut config);
    config.port =
        u32_of(function.number("caPort", "port", 1..=65_535)).and_then(|port| u16::try_from(port).ok());
    config.health_check = health_check(&function, "customHealthCheckConfig");
    let image = container_of_two(&function, &mut config);
    if let Some(life) = function.table("instanceLifecycleConfig") {
        config.callbacks.pre_freeze = callback(&life, "preFreeze", "pre-freeze");
        config.callbacks.pre_stop = callback(&life, "preStop", "pre-stop");
        life.finish();
    }
    // Its time counts where there is an initializer.
    let time = function.seconds("initializationTimeout", "initializer", 1 << 32);
    if function.text("initializer", "").is_some_and(|name| !name.is_empty()) {
        config.callbacks.initializer = Some(time.unwrap_or(std::time::Duration::from_secs(3)));
    }
    asynchronous(&function, "asyncConfiguration", &mut config);
    function.all_ignored(
        &["codeUri", "ossBucket", "ossKey", "instanceType", "caKeyPath"],
        "Skiff does not have it",
    );
    others(&function);
    function.finish();
    Some((image, config))
}

/// There, commands are texts that hold JSON.
fn container_of_two(function: &Fields<'_>, config: &mut FunctionConfig) -> Option<String> {
    let container = function.table("customContainerConfig")?;
    let words = |key: &'static str, rule: &str| {
        let node = container.get(key)?;
        let text = container.text(key, rule)?;
        if text.trim().is_empty() {
            return None;
        }
        let words = serde_json::from_str::<Vec<String>>(&text);
        if words.is_err() {
            container.fault(node.place, key, "must be a JSON list of texts, such as '[\"/code/server\"]'");
        }
        words.ok()
    };
    config.entrypoint = words("command", "entrypoint");
    config.cmd = words("args", "command");
    acceleration(&container, config);
    if container.boolean("webServerMode") == Some(false) {
        config.mode = Mode::Job;
    }
    container.all_ignored(&["instanceID", "accelerationInfo"], "the registry is the image's");
    let image = container.text("image", "");
    container.finish();
    image
}

fn acceleration(container: &Fields<'_>, config: &mut FunctionConfig) {
    let Some(node) = container.get("accelerationType") else { return };
    match container.text("accelerationType", "").as_deref() {
        Some("Default") => config.acceleration = true,
        Some("None" | "") | None => {}
        Some(other) => {
            container.fault(node.place, "accelerationType", &format!("{other:?} must be Default or None"));
        }
    }
}

/// What becomes of calls for later. Their time is bounded as FC's API does it.
fn asynchronous(fields: &Fields<'_>, key: &'static str, config: &mut FunctionConfig) {
    let Some(table) = fields.table(key) else { return };
    config.asynchronous.retries = u32_of(table.number("maxAsyncRetryAttempts", "", 0..=MAX_RETRIES.into()));
    let age = table.number("maxAsyncEventAgeInSeconds", "", 1..=604_800);
    config.asynchronous.max_age =
        age.and_then(|seconds| u64::try_from(seconds).ok()).map(std::time::Duration::from_secs);
    table.all_ignored(
        &["destinationConfig", "destination"],
        "its targets are in the cloud; --async-on-success and --async-on-failure name others",
    );
    table.all_ignored(&["asyncTask", "statefulInvocation", "qualifier"], "states of tasks are not kept");
    table.finish();
}

fn health_check(fields: &Fields<'_>, key: &'static str) -> Option<HealthCheck> {
    let node = fields.get(key)?;
    fields.named("health check", node.place);
    let table = fields.table(key)?;
    let mut check = HealthCheck::new(table.text("httpGetUrl", "health check path").unwrap_or_default());
    let second = |key, rule| table.seconds(key, rule, 1 << 32);
    if let Some(delay) = second("initialDelaySeconds", "health check initial delay") {
        check.initial_delay = delay;
    }
    if let Some(period) = second("periodSeconds", "health check period") {
        check.period = period;
    }
    if let Some(timeout) = second("timeoutSeconds", "health check timeout") {
        check.timeout = timeout;
    }
    let times = |key, rule| u32_of(table.number(key, rule, 1..=120));
    if let Some(count) = times("failureThreshold", "health check failure threshold") {
        check.failure_threshold = count;
    }
    if let Some(count) = times("successThreshold", "health check success threshold") {
        check.success_threshold = count;
    }
    table.finish();
    Some(check)
}

/// The time of a callback that has a handler; 3 s unless told.
fn callback(life: &Fields<'_>, key: &'static str, rule: &str) -> Option<std::time::Duration> {
    let table = life.table(key)?;
    let time = table.seconds("timeout", rule, 1 << 32);
    let has = table.text("handler", "").is_some_and(|name| !name.is_empty());
    table.ignored("command", "commands as initializers are not there");
    table.finish();
    has.then(|| time.unwrap_or(std::time::Duration::from_secs(3)))
}

fn others(fields: &Fields<'_>) {
    fields.all_ignored(&["description", "tags", "code", "functionId"], "it changes nothing here");
    fields.ignored("role", "give its credentials by --role-file, --role-url or variables");
    fields.ignored("logConfig", "logs go to the standard error");
    fields.all_ignored(
        &["vpcConfig", "internetAccess", "vpcBinding", "customDNS", "disableOndemand"],
        "what the function reaches is said by --network",
    );
    fields.all_ignored(
        &[
            "nasConfig",
            "ossMountConfig",
            "polarFsConfig",
            "layers",
            "gpuConfig",
            "instanceIsolationMode",
            "idleTimeout",
        ],
        "Skiff does not have it",
    );
    fields.all_ignored(
        &[
            "triggers",
            "concurrencyConfig",
            "provisionConfig",
            "scalingConfig",
            "customDomain",
            "tracingConfig",
            "resourceGroupId",
        ],
        "Skiff does not have it for one function in the foreground",
    );
}
