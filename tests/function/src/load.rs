//! Paths that use up what the container is given.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use hyper::{Response, StatusCode};
use serde_json::{Value, json};

use crate::http::{Body, json, text};
use crate::query::Query;

const MIB: usize = 1024 * 1024;

/// Memory that `/alloc` holds until the end.
static HELD: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// Answers `path`; the work is done on another thread, so that the server goes on answering.
pub(crate) async fn answer(path: &str, argument: &str, query: &Query) -> Response<Body> {
    let work: Box<dyn FnOnce() -> Value + Send> = match path {
        "fill" => {
            let (dir, mib) = (query.text("dir", "/tmp"), query.number("mib", 1));
            Box::new(move || fill(Path::new(&dir), mib))
        }
        "alloc" => {
            let mib = query.number("mib", 1);
            Box::new(move || alloc(mib))
        }
        "oom" => Box::new(|| alloc(u64::MAX)),
        "fork" => {
            let count = query.number("n", 1);
            Box::new(move || fork(count))
        }
        "log" => {
            let line = query.text("line", "");
            Box::new(move || log(&line))
        }
        _ => std::process::exit(argument.parse().unwrap_or(1)),
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => json(&value),
        Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "the work panicked\n"),
    }
}

/// Writes a file of `mib` MiB into `dir`; tells how far it came and by which error it ended.
fn fill(dir: &Path, mib: u64) -> Value {
    let chunk = vec![0xa5_u8; MIB];
    let mut written: u64 = 0;
    let result = (|| -> std::io::Result<()> {
        let mut file = std::fs::File::create(dir.join("fill"))?;
        let mut left = mib.saturating_mul(MIB as u64);
        while left > 0 {
            let part = chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let count = file.write(&chunk[..part])?;
            written += count as u64;
            left -= count as u64;
        }
        file.sync_all()
    })();
    json!({ "bytes": written, "error": result.err().map(|error| errno(&error)) })
}

/// The name of the errno that the tests look for, or its number.
pub(crate) fn errno(error: &std::io::Error) -> String {
    let number = error.raw_os_error().unwrap_or(0);
    let name = match number {
        1 => "EPERM",
        2 => "ENOENT",
        11 => "EAGAIN",
        12 => "ENOMEM",
        13 => "EACCES",
        28 => "ENOSPC",
        30 => "EROFS",
        122 => "EDQUOT",
        _ => return format!("errno {number}"),
    };
    name.to_owned()
}

/// Takes and touches `mib` MiB, and keeps them.
fn alloc(mib: u64) -> Value {
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..mib {
        held.push(vec![1; MIB]);
    }
    json!({ "held_mib": held.len() })
}

/// Takes memory until there is none.
pub(crate) fn take_all() {
    alloc(u64::MAX);
}

/// Starts `count` idle processes, as many as are allowed.
fn fork(count: u64) -> Value {
    for started in 0..count {
        let child = Command::new("/proc/self/exe").arg("idle").stdin(Stdio::null()).spawn();
        if let Err(error) = child {
            return json!({ "started": started, "error": errno(&error) });
        }
    }
    json!({ "started": count, "error": null })
}

/// Writes one line to standard output and one to standard error.
fn log(line: &str) -> Value {
    let out = writeln!(std::io::stdout(), "{line}").is_ok();
    let err = writeln!(std::io::stderr(), "{line} (stderr)").is_ok();
    json!({ "stdout": out, "stderr": err })
}
