//! `skiff pull`, and the preparation of what it brought.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use skiff::{
    CgroupParent, FunctionConfig, Image, Instance, NetworkOptions, Rehearsal, Runtime, RuntimeOptions, Store,
    platform,
};

use super::{absolute, require_root, variable};
use crate::cli::args::{Global, PullArgs, source};
use crate::cli::console::{Console, Progress, bytes};
use crate::cli::failure::Failure;
use crate::cli::interrupt::Interrupts;

/// How long an image's command may take until it listens when it is rehearsed.
const REHEARSAL_PATIENCE: Duration = Duration::from_secs(10);

/// Brings the image into the store; only a preparation needs a keeper and the run directory.
pub(crate) async fn pull(global: &Global, args: &PullArgs, console: Console) -> Result<ExitCode, Failure> {
    require_root()?;
    let source = source(&args.image)?;
    let mut options = args.source.pull_options(variable)?;
    if let Some(platform) = args.platform {
        options.limits = platform.image_limits();
    }
    let state_dir = absolute(&global.state_dir)?;
    let interrupts = Interrupts::install()?;
    let store = open(state_dir).await?;
    let progress = Progress::new(console);
    options.observer = Some(progress.observer());
    let image = interrupts.or(store.pull(&source, &options)).await?.map_err(skiff::Error::from)?;
    console.result(|| text(&image), || value(&image))?;
    if args.prepare {
        match Box::pin(prepare(global, args, &image, &interrupts)).await? {
            Ok(rehearsal) => console.note("prepared", || prepared(&rehearsal), || fields(&rehearsal)),
            Err(warning) => console.note(
                "not_prepared",
                || format!("warning: the image is pulled, but not prepared: {warning}"),
                || json!({ "warning": warning }),
            ),
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs the command once and cleans up. The outer error is a signal; the inner one the reason why
/// nothing was recorded.
async fn prepare(
    global: &Global,
    args: &PullArgs,
    image: &Image,
    interrupts: &Interrupts,
) -> Result<Result<Rehearsal, String>, Failure> {
    let options = RuntimeOptions {
        state_dir: absolute(&global.state_dir)?,
        run_dir: absolute(&global.run_dir)?,
        keeper: global.keeper.as_deref().map(absolute).transpose()?,
        lasting: None,
        network: NetworkOptions { ready: 0, ..NetworkOptions::default() },
        containers_ahead: 0,
        cgroup: CgroupParent::Auto,
    };
    let runtime = match interrupts.or(Runtime::open(options)).await? {
        Ok(runtime) => runtime,
        Err(error) => return Ok(Err(error.chain())),
    };
    let platform = args.platform.unwrap_or_else(platform::fc);
    let function = skiff::function::name_from_image(&args.image, platform.limits().name_chars);
    let config = Arc::new(FunctionConfig::new(function, platform));
    let rehearsal = interrupts.or(Instance::rehearse(&runtime, image, &config, REHEARSAL_PATIENCE)).await;
    let cleaned = runtime.shutdown().await;
    let result = rehearsal?.map_err(reason);
    Ok(result.and_then(|rehearsal| cleaned.map(|()| rehearsal).map_err(|error| error.chain())))
}

/// An error with its causes in one line.
fn reason(error: skiff::Error) -> String {
    let failure = Failure::from(error);
    let parts = std::iter::once(&failure.message).chain(&failure.causes);
    parts.map(String::as_str).collect::<Vec<_>>().join(": ")
}

fn prepared(rehearsal: &Rehearsal) -> String {
    let recorded = rehearsal.recorded;
    let late = if rehearsal.listened { "" } else { " (its server did not listen in that time)" };
    format!("prepared: {} files, {} to read ahead{late}", recorded.files, bytes(recorded.bytes))
}

fn fields(rehearsal: &Rehearsal) -> Value {
    let recorded = rehearsal.recorded;
    json!({ "files": recorded.files, "bytes": recorded.bytes, "listened": rehearsal.listened })
}

pub(super) async fn open(state_dir: std::path::PathBuf) -> Result<Arc<Store>, Failure> {
    let opened = tokio::task::spawn_blocking(move || Store::open(&state_dir)).await;
    let store = opened.map_err(|e| Failure::host("opening the store", &e))?;
    Ok(store.map_err(skiff::Error::from)?)
}

pub(super) fn text(image: &Image) -> String {
    format!("{} {} layers, {}", image.digest, image.layer_count(), bytes(image.packed_bytes))
}

pub(super) fn value(image: &Image) -> Value {
    let ms = |time: Duration| time.as_micros() as f64 / 1e3;
    json!({
        "name": image.name,
        "digest": image.digest,
        "layers": image.layer_count(),
        "packed_bytes": image.packed_bytes,
        "timings": {
            "resolve_ms": ms(image.timings.resolve),
            "pull_ms": ms(image.timings.pull),
            "unpack_ms": ms(image.timings.unpack),
        },
    })
}
