//! `skiff gc`.

use std::process::ExitCode;

use serde_json::{Value, json};
use skiff::{GcOptions, GcReport};

use super::{open_store, open_store_as_it_is};
use crate::cli::args::{GcArgs, Global};
use crate::cli::console::{Console, bytes};
use crate::cli::failure::Failure;

/// Removes what is not needed.
pub(crate) fn gc(global: &Global, args: &GcArgs, console: Console) -> Result<ExitCode, Failure> {
    let mut options = GcOptions::default();
    options.older_than = args.older_than.map(|age| age.0);
    options.max_bytes = args.max_size.map(|size| size.0);
    options.all = args.all;
    options.dry_run = args.dry_run;
    let store = if args.dry_run { open_store_as_it_is(global)? } else { open_store(global)? };
    let report = store.collect(&options).map_err(skiff::Error::from)?;
    console.result(|| text(&report, args.dry_run), || value(&report, args.dry_run))?;
    Ok(ExitCode::SUCCESS)
}

/// One line for each image, and the sum.
fn text(report: &GcReport, dry_run: bool) -> String {
    let word = if dry_run { "would remove" } else { "removed" };
    let mut lines: Vec<String> = Vec::new();
    for image in &report.images {
        let names = if image.names.is_empty() { "<none>".into() } else { image.names.join(", ") };
        lines.push(format!("{word} {names} {}", image.digest));
    }
    lines.push(format!(
        "{word} {} images, {} layers, {} documents, {} leftovers: {} free",
        report.images.len(),
        report.layers.len(),
        report.blobs,
        report.leftovers + report.leases,
        bytes(report.freed_bytes)
    ));
    lines.join("\n")
}

fn value(report: &GcReport, dry_run: bool) -> Value {
    let image = |image: &skiff::RemovedImage| json!({ "digest": image.digest, "names": image.names });
    json!({
        "dry_run": dry_run,
        "images": report.images.iter().map(image).collect::<Vec<_>>(),
        "layers": report.layers,
        "blobs": report.blobs,
        "leases": report.leases,
        "leftovers": report.leftovers,
        "freed_bytes": report.freed_bytes,
    })
}
