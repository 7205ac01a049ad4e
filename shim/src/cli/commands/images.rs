//! `skiff images`.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use skiff::StoredImage;

use super::{open_store, table};
use crate::cli::args::{Global, ImagesArgs};
use crate::cli::console::{Console, bytes};
use crate::cli::failure::Failure;

/// Digits of a digest that people are shown; `rmi` takes them.
const SHOWN_DIGITS: usize = 12;

/// Lists the images of the store.
pub(crate) fn images(global: &Global, args: &ImagesArgs, console: Console) -> Result<ExitCode, Failure> {
    let images = open_store(global)?.images().map_err(skiff::Error::from)?;
    if console.is_json() {
        for image in &images {
            console.result(String::new, || value(image))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let now = SystemTime::now();
    let rows = images.iter().flat_map(|image| rows(image, args.digests, now));
    let rows: Vec<Vec<String>> = std::iter::once(HEAD.map(String::from)).chain(rows).map(Vec::from).collect();
    let table = table(&rows);
    console.result(|| table, || Value::Null)?;
    Ok(ExitCode::SUCCESS)
}

const HEAD: [&str; 9] =
    ["NAME", "DIGEST", "PACKED", "UNPACKED", "SHARED", "LAYERS", "CREATED", "LAST USED", "USE"];

fn rows(image: &StoredImage, whole: bool, now: SystemTime) -> Vec<[String; 9]> {
    let none = ["<none>".to_owned()];
    let names = if image.names.is_empty() { &none[..] } else { &image.names[..] };
    let row = |name: &String| {
        [
            name.clone(),
            digest(&image.digest, whole),
            bytes(image.packed_bytes),
            bytes(image.unpacked_bytes),
            bytes(image.shared_bytes),
            image.layers.to_string(),
            image.created.as_deref().and_then(|created| created.get(..10)).unwrap_or("-").to_owned(),
            ago(now.duration_since(image.last_used).unwrap_or_default()),
            usage(image),
        ]
    };
    names.iter().map(row).collect()
}

fn digest(digest: &str, whole: bool) -> String {
    if whole {
        return digest.to_owned();
    }
    let hex = digest.split_once(':').map_or(digest, |(_, hex)| hex);
    hex.chars().take(SHOWN_DIGITS).collect()
}

fn usage(image: &StoredImage) -> String {
    let mut words = Vec::new();
    if !image.complete {
        words.push("incomplete");
    }
    if image.in_use {
        words.push("in use");
    }
    if !image.pinned_by.is_empty() {
        words.push("pinned");
    }
    words.join(", ")
}

/// `5 minutes ago`; months and years as days, which are exact.
fn ago(age: Duration) -> String {
    let seconds = age.as_secs();
    let (number, unit) = match seconds {
        0..60 => return "just now".into(),
        60..3_600 => (seconds / 60, "minute"),
        3_600..86_400 => (seconds / 3_600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{number} {unit}{} ago", if number == 1 { "" } else { "s" })
}

fn value(image: &StoredImage) -> Value {
    let used = image.last_used.duration_since(UNIX_EPOCH).unwrap_or_default();
    json!({
        "names": image.names,
        "digest": image.digest,
        "packed_bytes": image.packed_bytes,
        "unpacked_bytes": image.unpacked_bytes,
        "shared_bytes": image.shared_bytes,
        "layers": image.layers,
        "created": image.created,
        "last_used_unix_ms": u64::try_from(used.as_millis()).unwrap_or(u64::MAX),
        "in_use": image.in_use,
        "pinned_by": image.pinned_by,
        "complete": image.complete,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_one_unit() {
        for (seconds, text) in [
            (0, "just now"),
            (59, "just now"),
            (60, "1 minute ago"),
            (7_199, "1 hour ago"),
            (86_400, "1 day ago"),
            (86_400 * 400, "400 days ago"),
        ] {
            assert_eq!(ago(Duration::from_secs(seconds)), text, "{seconds}");
        }
    }
}
