//! Skiff inside another program: pulls an image, runs it as a function, invokes it once.
//!
//! ```text
//! embed SOURCE [EVENT]
//! ```
//! `SOURCE` is a reference, `oci:DIR[:TAG]` or `docker-archive:FILE`. The environment may give
//! `SKIFF_STATE_DIR`, `SKIFF_RUN_DIR`, `SKIFF_KEEPER` and `SKIFF_PLATFORM`. Needs root.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example shows what it does")]

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use skiff::{
    FunctionConfig, Instance, LogLine, LogSink, PullOptions, Runtime, RuntimeOptions, Source, platform,
};

fn path(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).map(PathBuf::from)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let source: Source = arguments.next().context("usage: embed SOURCE [EVENT]")?.parse()?;
    let event = arguments.next().unwrap_or_else(|| "{}".to_owned());
    let platform = std::env::var("SKIFF_PLATFORM").unwrap_or_else(|_| "fc".to_owned());
    let platform = platform::by_name(&platform).context("SKIFF_PLATFORM must be fc, fc2 or scf")?;

    let state_dir = path("SKIFF_STATE_DIR").unwrap_or_else(|| "/var/lib/skiff".into());
    let run_dir = path("SKIFF_RUN_DIR").unwrap_or_else(|| "/run/skiff".into());
    let options = RuntimeOptions { keeper: path("SKIFF_KEEPER"), ..RuntimeOptions::new(state_dir, run_dir) };
    let runtime = Runtime::open(options).await?;
    let done = invoke(&runtime, &source, FunctionConfig::new("embedded", platform), event).await;
    runtime.shutdown().await?;
    done
}

async fn invoke(
    runtime: &Arc<Runtime>,
    source: &Source,
    config: FunctionConfig,
    event: String,
) -> anyhow::Result<()> {
    let options = PullOptions { limits: config.platform.image_limits(), ..PullOptions::default() };
    let image = runtime.store().pull(source, &options).await?;
    let logs: Arc<dyn LogSink> =
        Arc::new(|line: &LogLine| eprintln!("{} {:?}", line.stream.as_str(), line.text()));
    let instance = Instance::start(runtime, &image, &Arc::new(config), logs).await?;
    let outcome = instance.invoke_event(event.into()).await;
    println!("{}", String::from_utf8_lossy(&outcome.body));
    instance.stop().await?;
    anyhow::ensure!(outcome.exit_code() == skiff::ExitCode::Success, "{:?}", outcome.result);
    Ok(())
}
