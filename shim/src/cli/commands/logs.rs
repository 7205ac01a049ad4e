//! `skiff logs`: what a deployed function and its platform wrote.

use std::process::ExitCode;

use serde_json::Value;

use super::client::{Client, encoded};
use crate::cli::args::{Global, LogsArgs};
use crate::cli::console::{Console, Paint, paint};
use crate::cli::failure::Failure;

/// Writes the lines, and those that come if it is to follow.
pub(crate) async fn logs(global: &Global, args: &LogsArgs, console: Console) -> Result<ExitCode, Failure> {
    let node = Client::new(global, &args.function.node)?;
    node.follow(&path(args)?, |line| {
        if console.is_json() {
            return console.line(String::new, || line.clone());
        }
        // What is for programs is JSON in a line.
        match line["stream"].as_str() {
            Some("stdout" | "stderr" | "platform") => {
                let said = console.shown(line["line"].as_str().unwrap_or_default().trim_end_matches('\r'));
                let head = head(line, args.times, console.colors_stdout());
                console.line(|| format!("{head} {said}"), || Value::Null)
            }
            _ => Ok(true),
        }
    })
    .await?;
    Ok(ExitCode::SUCCESS)
}

fn path(args: &LogsArgs) -> Result<String, Failure> {
    let mut query = Vec::new();
    if args.follow {
        query.push("follow=true".to_owned());
    }
    if let Some(since) = &args.since {
        query.push(format!("since={}", since.unix_ms()));
    }
    if let Some(id) = &args.request {
        query.push(format!("request={}", encoded(id)));
    }
    if let Some(namespace) = &args.function.namespace {
        query.push(format!("namespace={}", encoded(namespace)));
    }
    let name = encoded(&args.function.name);
    Ok(format!("/v1/functions/{name}/logs?{}", query.join("&")))
}

/// `[TIME ]INSTANCE |`.
fn head(line: &Value, times: bool, colors: bool) -> String {
    let of = |key: &str| line[key].as_str().unwrap_or_default();
    let instance = line["instance"].as_str().unwrap_or("skiff");
    let color = if of("stream") == "platform" { Paint::Dim } else { Paint::Cyan };
    let head = paint(colors, color, &format!("{instance} |"));
    if times { format!("{} {head}", of("time")) } else { head }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_line_has_its_instance_and_its_time_if_it_is_asked_for() {
        let line = json!({"time": "T", "instance": "c-1", "stream": "stdout", "line": "hi"});
        assert_eq!(head(&line, false, false), "c-1 |");
        assert_eq!(head(&line, true, true), "T \u{1b}[36mc-1 |\u{1b}[0m");
        assert_eq!(head(&json!({"stream": "platform", "line": "lost"}), false, false), "skiff |");
    }
}
