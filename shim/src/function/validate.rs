//! The rules of a function configuration, all of them checked, whatever fails.

use std::collections::HashSet;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::lifecycle;
use crate::platform::Limits;
use crate::{Error, ErrorKind, FunctionConfig, Result};

/// Smallest writable layer or `/tmp`: an ext4 filesystem needs as much.
const MIN_DISK_BYTES: u64 = 1024 * 1024;

/// Largest writable layer or `/tmp`: fc's 60 GB for GPU functions, and some.
const MAX_DISK_BYTES: u64 = 64 * 1024 * 1024 * 1024;

/// Longest start command and longest list of arguments, in words.
const MAX_COMMAND_WORDS: usize = 1024;

/// Longest text of any other field, in bytes.
const MAX_TEXT_BYTES: usize = 256;

/// Cores at most, in thousandths (scf's 128 GB functions have 64).
const MAX_CPU_MILLIS: u32 = 64_000;

/// Longest stop.
const MAX_STOP_GRACE: Duration = Duration::from_secs(90);

pub(super) fn validate(config: &FunctionConfig) -> Result<()> {
    let limits = config.platform.limits();
    let mut faults = Vec::new();
    name(config, limits, &mut faults);
    resources(config, limits, &mut faults);
    times(config, limits, &mut faults);
    command(config, &mut faults);
    env(config, limits, &mut faults);
    texts(config, &mut faults);
    lifecycle::check(config, limits, &mut faults);
    if faults.is_empty() {
        return Ok(());
    }
    let count = if faults.len() == 1 { "1 fault".to_owned() } else { format!("{} faults", faults.len()) };
    let message = format!(
        "function {:?} has {count} under platform {}: {}",
        short(&config.name),
        config.platform.name(),
        faults.join("; ")
    );
    Err(Error::new(ErrorKind::InvalidFunction, message)
        .advise("correct each of them and try again")
        .with_faults(faults))
}

/// Fc: letters, digits, `_` and `-`, begins with a letter or `_`. Scf: the same, begins with a letter.
fn name(config: &FunctionConfig, limits: &Limits, faults: &mut Vec<String>) {
    let name = &config.name;
    let head = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    let rest = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if !head || !rest || name.len() > limits.name_chars {
        faults.push(format!(
            "name {:?}: must be 1 to {} letters, digits, \"_\" and \"-\", and begin with a letter or \"_\"",
            short(name),
            limits.name_chars
        ));
    }
    let both = name.len() + config.namespace.len();
    if let Some(limit) = limits.full_name_chars.filter(|limit| both > *limit) {
        faults.push(format!("namespace of {both} characters with the name: must be at most {limit}"));
    }
}

fn resources(config: &FunctionConfig, limits: &Limits, faults: &mut Vec<String>) {
    let memory = config.memory_mib;
    let stepped = limits.memory_mib.contains(&memory) && memory.is_multiple_of(limits.memory_step_mib);
    if !stepped && !limits.memory_also_mib.contains(&memory) {
        faults.push(format!(
            "memory {memory} MiB: must be {} to {} MiB in steps of {}",
            limits.memory_mib.start(),
            limits.memory_mib.end(),
            limits.memory_step_mib
        ));
    }
    if config.cpu_millis != 0 && !(50..=MAX_CPU_MILLIS).contains(&config.cpu_millis) {
        faults.push(format!(
            "CPU limit of {} thousandths of a core: must be 50 to {MAX_CPU_MILLIS}, or 0 for none",
            config.cpu_millis
        ));
    }
    if config.pids == Some(0) {
        faults.push("limit of 0 processes: must be at least 1".to_owned());
    }
    for (what, bytes) in [("writable layer", config.writable_bytes), ("/tmp", config.tmp_bytes)] {
        if !(MIN_DISK_BYTES..=MAX_DISK_BYTES).contains(&bytes) {
            faults.push(format!(
                "{what} of {bytes} bytes: must be {MIN_DISK_BYTES} to {MAX_DISK_BYTES} bytes (1 MiB to 64 GiB)"
            ));
        }
    }
    if config.port == Some(0) {
        faults.push("port 0: must be 1 to 65535".to_owned());
    }
}

fn times(config: &FunctionConfig, limits: &Limits, faults: &mut Vec<String>) {
    let mut check = |what: &str, time: Duration, range: &RangeInclusive<u64>| {
        if time < Duration::from_secs(*range.start()) || time > Duration::from_secs(*range.end()) {
            faults.push(format!("{what} {time:?}: must be {} s to {} s", range.start(), range.end()));
        }
    };
    check("timeout", config.timeout, &limits.timeout_s);
    check("start deadline", config.start_deadline(), &limits.start_deadline_s);
    match (config.websocket_idle, config.platform.defaults().websocket_idle) {
        (Some(_), None) => {
            faults
                .push(format!("WebSocket idle time: platform {} has no such limit", config.platform.name()));
        }
        (Some(time), Some(_)) => check("WebSocket idle time", time, &limits.websocket_idle_s),
        (None, _) => {}
    }
    if config.stop_grace > MAX_STOP_GRACE {
        faults.push(format!("stop grace {:?}: must be at most 90 s", config.stop_grace));
    }
}

fn command(config: &FunctionConfig, faults: &mut Vec<String>) {
    for (what, words) in [("entrypoint", &config.entrypoint), ("command", &config.cmd)] {
        let Some(words) = words else { continue };
        if words.len() > MAX_COMMAND_WORDS {
            faults.push(format!("{what} of {} words: must be at most {MAX_COMMAND_WORDS}", words.len()));
        }
        if words.iter().any(|word| word.contains('\0')) {
            faults.push(format!("{what}: contains a NUL character"));
        }
    }
    if config.entrypoint.as_ref().is_some_and(|words| words.first().is_some_and(String::is_empty)) {
        faults.push("entrypoint: its first word is empty".to_owned());
    }
    if let Some(dir) = &config.working_dir
        && (!dir.starts_with('/') || dir.contains('\0'))
    {
        faults.push(format!("working directory {:?}: must be an absolute path", short(dir)));
    }
}

/// Values are not shown: users keep secrets in them.
fn env(config: &FunctionConfig, limits: &Limits, faults: &mut Vec<String>) {
    let mut seen = HashSet::new();
    let total: usize = config.env.iter().map(|(name, value)| name.len() + value.len()).sum();
    if total > limits.env_total_bytes {
        faults.push(format!(
            "environment of {total} bytes: names and values together must be at most {} bytes",
            limits.env_total_bytes
        ));
    }
    for (name, value) in &config.env {
        let shown = short(name);
        let head = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic());
        let rest = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !head || !rest || !limits.env_key_bytes.contains(&name.len()) {
            faults.push(format!(
                "variable {shown:?}: its name must be {} to {} letters, digits and \"_\", and begin with a letter",
                limits.env_key_bytes.start(),
                limits.env_key_bytes.end()
            ));
        }
        if let Some(prefix) = config.platform.reserved_env_prefixes().iter().find(|p| name.starts_with(**p)) {
            faults.push(format!("variable {shown:?}: names beginning with {prefix} are the platform's"));
        }
        if config.platform.reserved_env_names().contains(&name.as_str()) {
            faults.push(format!("variable {shown:?}: this name is the platform's"));
        }
        if value.contains('\0') {
            faults.push(format!("variable {shown:?}: its value contains a NUL character"));
        }
        if !seen.insert(name) {
            faults.push(format!("variable {shown:?}: given twice"));
        }
    }
}

/// What ends up in headers and variables.
fn texts(config: &FunctionConfig, faults: &mut Vec<String>) {
    for (what, text) in [
        ("region", &config.region),
        ("account id", &config.account_id),
        ("app id", &config.app_id),
        ("namespace", &config.namespace),
        ("version", &config.version),
        ("handler", &config.handler),
    ] {
        if text.len() > MAX_TEXT_BYTES || !text.bytes().all(|b| b.is_ascii_graphic()) {
            faults.push(format!(
                "{what} {:?}: must be at most {MAX_TEXT_BYTES} visible ASCII characters without spaces",
                short(text)
            ));
        }
    }
    faults.extend(config.credentials.iter().flat_map(super::Credentials::faults));
}

/// The first 64 characters: an error text must not grow with its input.
pub(super) fn short(text: &str) -> String {
    if text.chars().nth(64).is_none() {
        text.to_owned()
    } else {
        text.chars().take(64).chain(['…']).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::{fc, fc2, scf};
    use crate::{Credentials, ExitCode, Platform, Secret};

    fn with(platform: &'static dyn Platform, change: impl FnOnce(&mut FunctionConfig)) -> FunctionConfig {
        let mut config = FunctionConfig::new("resize", platform);
        change(&mut config);
        config
    }

    fn faults(config: &FunctionConfig) -> Vec<String> {
        config.validate().err().map(|error| error.faults().to_vec()).unwrap_or_default()
    }

    fn set(config: &mut FunctionConfig, name: &str, value: &str) {
        config.env.push((name.to_owned(), value.to_owned()));
    }

    #[test]
    fn the_defaults_of_every_platform_are_valid() {
        for platform in crate::platform::all() {
            assert_eq!(faults(&FunctionConfig::new("resize", platform)), Vec::<String>::new());
        }
    }

    #[test]
    fn all_faults_are_reported_together() {
        let config = with(fc(), |config| {
            config.name = "1 bad".to_owned();
            config.memory_mib = 100;
            config.timeout = Duration::ZERO;
            config.port = Some(0);
            set(config, "FC_REGION", "x");
        });
        let error = config.validate().expect_err("five faults");
        assert_eq!(error.kind(), ErrorKind::InvalidFunction);
        assert_eq!(error.exit_code(), ExitCode::Usage);
        assert_eq!(error.faults().len(), 5, "{error}");
        for fault in error.faults() {
            assert!(error.to_string().contains(fault), "{error}");
        }
    }

    #[test]
    fn names_have_their_rules() {
        for good in ["a", "_a", "Resize-2_b", &"x".repeat(60)] {
            assert!(faults(&with(scf(), |c| c.name = good.to_owned())).is_empty(), "{good}");
        }
        for bad in ["", "1a", "-a", "a b", "a/b", "ä", "a\n", &"x".repeat(61)] {
            assert_eq!(faults(&with(scf(), |c| c.name = bad.to_owned())).len(), 1, "{bad:?}");
        }
    }

    #[test]
    fn a_name_and_its_namespace_have_a_bound_together() {
        let faults = |platform, namespace: usize| {
            faults(&with(platform, |c| {
                c.name = "n".repeat(60);
                c.namespace = "s".repeat(namespace);
            }))
        };
        assert!(faults(scf(), 58).is_empty() && faults(fc(), 64).len() <= 1);
        let found = faults(scf(), 59);
        assert_eq!(found, ["namespace of 119 characters with the name: must be at most 118"]);
        assert!(faults(fc(), 59).is_empty(), "fc says nothing of it");
    }

    #[test]
    fn a_websocket_may_be_idle_as_long_as_the_platform_says() {
        let idle = |platform, seconds| {
            faults(&with(platform, |c| c.websocket_idle = Some(Duration::from_secs(seconds))))
        };
        assert!(idle(scf(), 1).is_empty() && idle(scf(), 1800).is_empty());
        assert_eq!((idle(scf(), 0).len(), idle(scf(), 1801).len()), (1, 1));
        assert_eq!(idle(fc(), 15), ["WebSocket idle time: platform fc has no such limit"]);
    }

    #[test]
    fn memory_goes_in_the_platforms_steps() {
        for (platform, good, bad) in
            [(fc(), [128, 192, 32_768], [64, 130, 32_832]), (scf(), [64, 128, 3072], [0, 192, 123_008])]
        {
            for memory in good {
                assert!(faults(&with(platform, |c| c.memory_mib = memory)).is_empty(), "{memory}");
            }
            for memory in bad {
                assert_eq!(faults(&with(platform, |c| c.memory_mib = memory)).len(), 1, "{memory}");
            }
        }
    }

    #[test]
    fn variables_have_their_rules() {
        let one = |platform, name: &str| faults(&with(platform, |c| set(c, name, "v")));
        for good in ["HOME", "a1_b"] {
            assert!(one(fc(), good).is_empty() && one(scf(), good).is_empty(), "{good}");
        }
        for bad in ["", "1A", "_A", "A-B", "A=B", "A\0", "ÄÄ"] {
            assert_eq!(one(fc(), bad).len(), 1, "{bad:?}");
        }
        for reserved in ["SCF_X", "QCLOUD_X", "TENCENTCLOUD_X"] {
            assert_eq!(one(scf(), reserved).len(), 1);
            assert!(one(fc(), reserved).is_empty());
        }
        assert_eq!(one(fc(), "FC_X").len(), 1);
        assert!(one(scf(), "FC_X").is_empty());
        assert_eq!(one(scf(), "X").len(), 1, "scf wants two characters");
    }

    #[test]
    fn the_environment_is_bounded_and_its_values_are_not_shown() {
        let exact = with(fc(), |c| set(c, "KEY", &"s".repeat(4093)));
        assert!(faults(&exact).is_empty());
        let over = with(fc(), |c| set(c, "KEY", &"s".repeat(4094)));
        assert_eq!(faults(&over).len(), 1);
        let nul = with(fc(), |c| set(c, "KEY", "hunter2\0"));
        let text = nul.validate().expect_err("NUL").to_string();
        assert!(text.contains("KEY") && !text.contains("hunter2"), "{text}");
        let twice = with(fc(), |c| {
            set(c, "KEY", "1");
            set(c, "KEY", "2");
        });
        assert_eq!(faults(&twice).len(), 1);
    }

    #[test]
    fn some_names_of_variables_are_those_of_fc_two() {
        for name in ["accessKeyID", "accessKeySecret", "securityToken", "topic"] {
            let told = faults(&with(fc2(), |c| set(c, name, "x")));
            assert_eq!(told, [format!("variable {name:?}: this name is the platform's")]);
            assert!(faults(&with(fc(), |c| set(c, name, "x"))).is_empty());
        }
        assert!(faults(&with(fc2(), |c| set(c, "topics", "x"))).is_empty());
    }

    #[test]
    fn scf_bounds_variables_and_times() {
        let one = |name: &str, value: &str| faults(&with(scf(), |c| set(c, name, value)));
        assert!(one("AB", "").is_empty() && one(&"A".repeat(64), "").is_empty());
        for name in ["A", &"A".repeat(65)] {
            assert_eq!(one(name, "").len(), 1, "{name}");
        }
        assert!(one("KEY", &"s".repeat(4093)).is_empty());
        assert_eq!(one("KEY", &"s".repeat(4094)).len(), 1, "4 KB in all, names included");
        type Change = fn(&mut FunctionConfig, u64);
        let changes: [(Change, u64, u64); 2] = [
            (|c, seconds| c.timeout = Duration::from_secs(seconds), 1, 86_400),
            (|c, seconds| c.start_deadline = Some(Duration::from_secs(seconds)), 1, 300),
        ];
        for (index, (change, least, most)) in changes.into_iter().enumerate() {
            for (seconds, valid) in [(least - 1, false), (least, true), (most, true), (most + 1, false)] {
                let found = faults(&with(scf(), |c| change(c, seconds)));
                assert_eq!(found.is_empty(), valid, "{index}: {seconds} s: {found:?}");
            }
        }
    }

    #[test]
    fn times_and_sizes_are_bounded() {
        type Change = fn(&mut FunctionConfig);
        let changes: [Change; 8] = [
            |c| c.timeout = Duration::from_secs(86_401),
            |c| c.start_deadline = Some(Duration::from_secs(301)),
            |c| c.stop_grace = Duration::from_secs(91),
            |c| c.writable_bytes = 0,
            |c| c.tmp_bytes = u64::MAX,
            |c| c.cpu_millis = 49,
            |c| c.pids = Some(0),
            |c| c.entrypoint = Some(vec!["x".to_owned(); 1025]),
        ];
        for (index, change) in changes.into_iter().enumerate() {
            assert_eq!(faults(&with(fc(), change)).len(), 1, "change {index}");
        }
    }

    #[test]
    fn texts_cannot_break_headers() {
        for bad in ["a\r\nb", "a b", "ü", &"x".repeat(257)] {
            assert_eq!(faults(&with(fc(), |c| c.region = bad.to_owned())).len(), 1, "{bad:?}");
        }
        let config = with(fc(), |c| {
            let secret = |text: &str| Secret::new(text);
            c.credentials = Some(Credentials {
                access_key_id: secret("id"),
                access_key_secret: secret("hunter2\n"),
                security_token: secret(""),
            });
        });
        let error = config.validate().expect_err("line feed");
        assert_eq!(error.faults().len(), 1);
        assert!(!error.to_string().contains("hunter2"));
        let long = with(fc(), |c| c.name = "x".repeat(10_000));
        assert!(long.validate().expect_err("long").to_string().len() < 500);
    }

    #[test]
    fn commands_and_directories_have_their_rules() {
        let words = |text: &str| Some(vec![text.to_owned()]);
        assert_eq!(faults(&with(fc(), |c| c.entrypoint = words(""))).len(), 1);
        assert_eq!(faults(&with(fc(), |c| c.cmd = words("a\0"))).len(), 1);
        assert!(faults(&with(fc(), |c| c.cmd = words(""))).is_empty());
        assert_eq!(faults(&with(fc(), |c| c.working_dir = Some("srv".to_owned()))).len(), 1);
        assert!(faults(&with(fc(), |c| c.working_dir = Some("/srv".to_owned()))).is_empty());
    }
}
