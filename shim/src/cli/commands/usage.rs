//! `skiff usage`: what deployed functions have used, as their platforms bill it.

use std::process::ExitCode;
use std::time::SystemTime;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use http::Method;

use super::client::Client;
use super::table;
use crate::cli::args::{Global, UsageArgs};
use crate::cli::console::Console;
use crate::cli::failure::Failure;

/// Sums for people, records for machines.
pub(crate) async fn usage(global: &Global, args: &UsageArgs, console: Console) -> Result<ExitCode, Failure> {
    let node = Client::new(global, &args.node)?;
    let query = query(args, SystemTime::now());
    if console.is_json() {
        let target = format!("/v1/usage/records{query}");
        node.follow(&target, |line| console.result(String::new, || line.clone()).map(|()| true)).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let usage = node.ask(Method::GET, &format!("/v1/usage{query}"), Vec::new()).await?;
    console.result(|| sums(&usage), || Value::Null)?;
    for warning in warnings(&usage) {
        console.warn_json(&warning);
    }
    Ok(ExitCode::SUCCESS)
}

fn query(args: &UsageArgs, now: SystemTime) -> String {
    let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let since = args.since.map(|age| {
        let since =
            now.checked_sub(age.0).and_then(|since| since.duration_since(SystemTime::UNIX_EPOCH).ok());
        since.unwrap_or_default().as_millis().to_string()
    });
    let pairs = [
        ("since_unix_ms", since),
        ("function", args.function.as_deref().map(encoded)),
        ("namespace", args.namespace.as_deref().map(encoded)),
    ];
    let pairs: Vec<String> =
        pairs.into_iter().filter_map(|(key, value)| Some(format!("{key}={}", value?))).collect();
    if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) }
}

fn sums(usage: &Value) -> String {
    let head = [
        "NAME",
        "NAMESPACE",
        "PLATFORM",
        "INVOCATIONS",
        "ERRORS",
        "COLD",
        "BILLED MS",
        "GB·S",
        "PULLS",
        "PULL GB·S",
    ];
    let functions = usage["functions"].as_array().into_iter().flatten().map(row);
    let rows: Vec<Vec<String>> = std::iter::once(head.map(String::from).to_vec()).chain(functions).collect();
    table(&rows)
}

fn row(function: &Value) -> Vec<String> {
    let text = |key: &str| function[key].as_str().unwrap_or("-").to_owned();
    let number = |key: &str| function[key].as_u64().unwrap_or(0);
    let gb_s = |key: &str| format!("{:.3}", function[key].as_f64().unwrap_or(0.0));
    vec![
        text("function"),
        text("namespace"),
        text("platform"),
        number("invocations").to_string(),
        (number("function_errors") + number("platform_errors")).to_string(),
        number("cold").to_string(),
        number("billed_ms").to_string(),
        gb_s("gb_s"),
        number("pulls").to_string(),
        gb_s("pull_gb_s"),
    ]
}

/// What is not in the sums, and why.
fn warnings(usage: &Value) -> Vec<Value> {
    let mut warnings = Vec::new();
    let mut warn = |kind: &str, message: String, advice: &str| {
        warnings.push(json!({ "kind": kind, "message": message, "advice": advice }));
    };
    if let Some(why) = usage["meter"]["failing"].as_str() {
        let unbilled = &usage["meter"]["unbilled"];
        let message = format!("records are not kept at the moment: {why}; {unbilled} calls have none so far");
        warn("metering_fails", message, "make room on its disk, or repair it: the next call tries again");
    }
    if let Some(missing) = usage["missing"].as_u64().filter(|missing| *missing > 0) {
        let message = format!("{missing} calls were answered and have no record");
        warn("records_missing", message, "the records of kind gap tell when; the node's log tells why");
    }
    for damage in usage["damages"].as_array().into_iter().flatten() {
        let part = |key: &str| damage[key].as_str().unwrap_or_default();
        let message = format!("{}: {}", part("file"), part("what"));
        warn("records_damaged", message, "restore the file from a copy; what could be read of it is counted");
    }
    warnings
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser as _;

    use super::*;
    use crate::cli::args::{Cli, Command};

    fn asked(args: &[&str]) -> String {
        let cli = Cli::try_parse_from([&["skiff", "usage"], args].concat()).expect("valid");
        let Command::Usage(args) = cli.command else { panic!("{:?}", cli.command) };
        query(&args, SystemTime::UNIX_EPOCH + Duration::from_secs(100_000))
    }

    #[test]
    fn what_is_asked_for_reaches_the_node() {
        assert_eq!(asked(&[]), "");
        let all = ["--since", "1d", "--function", "a/b", "--namespace", "team"];
        assert_eq!(asked(&all), "?since_unix_ms=13600000&function=a%2Fb&namespace=team");
        assert_eq!(asked(&["--since", "7d"]), "?since_unix_ms=0", "before 1970");
    }

    #[test]
    fn sums_stand_in_a_table_and_what_is_missing_is_told() {
        let usage = json!({
            "functions": [{ "namespace": "default", "function": "resize", "platform": "fc", "invocations": 12,
                "function_errors": 1, "platform_errors": 2, "cold": 1, "billed_ms": 340, "gb_s": 0.17,
                "pulls": 1, "pull_gb_s": 2.5 }],
            "missing": 3,
            "damages": [{ "file": "/m/1.meter", "what": "9 bytes in it are no record" }],
            "meter": { "failing": "cannot write to /m: no space", "unbilled": 3, "late": 0, "next_sequence": 14 },
        });
        let lines: Vec<String> = sums(&usage).lines().map(str::to_owned).collect();
        assert_eq!(
            lines[1].split_whitespace().collect::<Vec<_>>(),
            ["resize", "default", "fc", "12", "3", "1", "340", "0.170", "1", "2.500"]
        );
        let kinds: Vec<Value> = warnings(&usage).iter().map(|warning| warning["kind"].clone()).collect();
        assert_eq!(kinds, ["metering_fails", "records_missing", "records_damaged"]);
        assert!(warnings(&json!({ "functions": [], "missing": 0, "damages": [] })).is_empty());
    }
}
