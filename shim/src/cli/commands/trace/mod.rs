//! `skiff trace`: what one invocation took, step by step.

mod draw;

use std::path::Path;
use std::process::ExitCode;

use http::Method;
use serde_json::Value;

use self::draw::Chart;
use super::client::{Client, encoded};
use crate::cli::args::{Global, TraceArgs};
use crate::cli::console::Console;
use crate::cli::failure::Failure;

/// Draws it.
pub(crate) async fn trace(global: &Global, args: &TraceArgs, console: Console) -> Result<ExitCode, Failure> {
    let path = format!("/v1/traces/{}", encoded(&args.request));
    let trace = Client::new(global, &args.node)?.ask(Method::GET, &path, Vec::new()).await?;
    let chart = Chart::of(&trace);
    if let Some(file) = &args.svg {
        write(file, &chart.svg())?;
    }
    console.result(|| chart.text(), || trace.clone())?;
    Ok(ExitCode::SUCCESS)
}

fn write(file: &Path, svg: &str) -> Result<(), Failure> {
    std::fs::write(file, svg).map_err(|error| {
        Failure::usage(format!("{} cannot be written: {error}", file.display()))
            .advise("name a file in a directory that is there")
    })
}

/// The first line of a chart.
fn title(trace: &Value) -> String {
    let text = |key: &str| trace[key].as_str().unwrap_or("-");
    let status = trace["status"].as_u64().map(|status| status.to_string());
    let error = trace["error"].as_str().map(str::to_owned);
    let end: Vec<String> = status.into_iter().chain(error).collect();
    // An event's answer has no status of its own.
    let end = if end.is_empty() { "answered".to_owned() } else { end.join(" ") };
    let start = if trace["cold"] == true { "cold start" } else { "warm" };
    format!("{} revision {} on {}: {end}, {start}", text("function"), trace["revision"], text("instance"))
}
