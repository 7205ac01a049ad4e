//! `skiff rmi`.

use std::process::ExitCode;

use serde_json::{Value, json};
use skiff::Removal;

use super::open_store;
use crate::cli::args::{Global, RmiArgs};
use crate::cli::console::{Console, bytes};
use crate::cli::failure::Failure;

/// Removes images, each as if it were the only one. The first failure is the program's.
pub(crate) fn rmi(global: &Global, args: &RmiArgs, console: Console) -> Result<ExitCode, Failure> {
    let store = open_store(global)?;
    let mut first: Option<Failure> = None;
    for image in &args.images {
        match store.remove(image) {
            Ok(removal) => console.result(|| text(&removal), || value(&removal))?,
            Err(error) => {
                let failure = Failure::from(skiff::Error::from(error));
                match &first {
                    None => first = Some(failure),
                    Some(_) => console.fail(&failure),
                }
            }
        }
    }
    first.map_or(Ok(ExitCode::SUCCESS), Err)
}

fn text(removal: &Removal) -> String {
    let names = removal.names.iter().map(|name| format!("untagged {name}"));
    let removed = removal.removed.then(|| {
        let freed = bytes(removal.freed_bytes);
        format!("removed {}: {} layers, {freed} free", removal.digest, removal.layers.len())
    });
    names.chain(removed).collect::<Vec<_>>().join("\n")
}

fn value(removal: &Removal) -> Value {
    json!({
        "digest": removal.digest,
        "names": removal.names,
        "removed": removal.removed,
        "layers": removal.layers,
        "freed_bytes": removal.freed_bytes,
    })
}
