//! `skiff image import`.

use std::process::ExitCode;

use skiff::{PullOptions, Reference, Source};

use super::pull::{open, text, value};
use super::{absolute, require_root};
use crate::cli::args::{Global, ImportArgs};
use crate::cli::console::{Console, Progress};
use crate::cli::failure::Failure;
use crate::cli::interrupt::Interrupts;

/// Brings an image of a directory or archive into the store under a name.
pub(crate) async fn import(
    global: &Global,
    args: &ImportArgs,
    console: Console,
) -> Result<ExitCode, Failure> {
    require_root()?;
    let source: Source = args.source.parse().map_err(skiff::Error::from)?;
    let name = args.name.as_ref().map(|name| name.parse::<Reference>()).transpose();
    let name = name.map_err(skiff::Error::from)?;
    let state_dir = absolute(&global.state_dir)?;
    let interrupts = Interrupts::install()?;
    let store = open(state_dir).await?;
    let progress = Progress::new(console);
    // A file of this host comes as fast as it can.
    let options =
        PullOptions { timeout: None, observer: Some(progress.observer()), ..PullOptions::default() };
    let import = Box::pin(store.import(&source, name.as_ref(), &options));
    let image = interrupts.or(import).await?.map_err(skiff::Error::from)?;
    console.result(|| text(&image), || value(&image))?;
    Ok(ExitCode::SUCCESS)
}
