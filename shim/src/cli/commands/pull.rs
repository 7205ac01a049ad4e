//! `skiff pull`.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use skiff::{Image, Store};

use super::{absolute, require_root, variable};
use crate::cli::args::{Global, PullArgs};
use crate::cli::console::{Console, Progress, bytes};
use crate::cli::failure::Failure;
use crate::cli::interrupt::Interrupts;

/// Brings the image into the store. Needs neither a keeper nor the run directory.
pub(crate) async fn pull(global: &Global, args: &PullArgs, console: Console) -> Result<ExitCode, Failure> {
    require_root()?;
    let source = args.source.source()?;
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
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn open(state_dir: std::path::PathBuf) -> Result<Arc<Store>, Failure> {
    let opened = tokio::task::spawn_blocking(move || Store::open(&state_dir)).await;
    let store = opened.map_err(|e| Failure::host("opening the store", &e))?;
    Ok(store.map_err(skiff::Error::from)?)
}

pub(super) fn text(image: &Image) -> String {
    format!("{} {} layers, {}", image.digest, image.layers.len(), bytes(image.packed_bytes))
}

pub(super) fn value(image: &Image) -> Value {
    let ms = |time: Duration| time.as_micros() as f64 / 1e3;
    json!({
        "name": image.name,
        "digest": image.digest,
        "layers": image.layers.len(),
        "packed_bytes": image.packed_bytes,
        "timings": {
            "resolve_ms": ms(image.timings.resolve),
            "pull_ms": ms(image.timings.pull),
            "unpack_ms": ms(image.timings.unpack),
        },
    })
}
