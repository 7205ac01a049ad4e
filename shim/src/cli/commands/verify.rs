//! `skiff image verify`.

use std::process::ExitCode;
use std::sync::Arc;

use serde_json::{Value, json};
use skiff::{RuntimeError, RuntimeErrorKind, VerifyOptions, VerifyReport};

use super::open_store;
use crate::cli::args::{Global, VerifyArgs};
use crate::cli::console::Console;
use crate::cli::failure::Failure;

/// Verifies images, or all that is in the store.
pub(crate) fn verify(global: &Global, args: &VerifyArgs, console: Console) -> Result<ExitCode, Failure> {
    let mut options = VerifyOptions::default();
    options.images.clone_from(&args.images);
    options.repair = args.repair;
    if console.is_json() {
        options.observer = Some(Arc::new(move |part: &str, done, of| {
            console.note("verified", String::new, || json!({ "part": part, "done": done, "of": of }));
        }));
    }
    let report = open_store(global)?.verify(&options).map_err(skiff::Error::from)?;
    console.result(|| text(&report), || value(&report))?;
    if report.is_sound() { Ok(ExitCode::SUCCESS) } else { Err(unsound(&report, args.repair)) }
}

fn unsound(report: &VerifyReport, repaired: bool) -> Failure {
    let damaged = report.damages.iter().filter(|damage| !damage.removed).count();
    let message =
        format!("the store has {damaged} damaged parts and {} incomplete images", report.incomplete.len());
    let advice = match (damaged, repaired) {
        (0, _) => "pull the incomplete images again",
        (_, false) => "remove what is damaged with --repair, then pull again",
        (_, true) => "stop the instances that use what is damaged, then repair again",
    };
    skiff::Error::from(RuntimeError::new(RuntimeErrorKind::Host, message).advise(advice)).into()
}

fn text(report: &VerifyReport) -> String {
    let damages = report.damages.iter().map(|damage| {
        let removed = if damage.removed { " (removed)" } else { "" };
        // The names of files are the image's: they must not steer a terminal.
        let what: String = damage.what.chars().flat_map(shown).collect();
        format!("damaged: {}: {what}{removed}", damage.part)
    });
    let incomplete = report.incomplete.iter().map(|name| format!("incomplete: {name}"));
    let sum = format!(
        "verified {} images: {} layers ({} cannot be verified), {} documents; {} damaged",
        report.images,
        report.layers,
        report.unverifiable.len(),
        report.documents,
        report.damages.len()
    );
    damages.chain(incomplete).chain([sum]).collect::<Vec<_>>().join("\n")
}

fn shown(c: char) -> Vec<char> {
    if c.is_control() { c.escape_default().collect() } else { vec![c] }
}

fn value(report: &VerifyReport) -> Value {
    let damages = report
        .damages
        .iter()
        .map(|damage| json!({ "part": damage.part, "what": damage.what, "removed": damage.removed }));
    json!({
        "sound": report.is_sound(),
        "images": report.images,
        "layers": report.layers,
        "documents": report.documents,
        "damages": damages.collect::<Vec<_>>(),
        "incomplete": report.incomplete,
        "unverifiable": report.unverifiable,
    })
}
