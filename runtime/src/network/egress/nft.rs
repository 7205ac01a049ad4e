//! The program `nft`: run when a run first needs rules and when they go, never for a start.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{Error, ErrorKind, Result};

/// Where system programs are; the keeper has no `PATH`.
const DIRS: [&str; 6] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/local/bin"];
/// Most bytes of an answer that are read: a list of tables is far below.
const ANSWER_MAX: u64 = 4 << 20;
/// Most bytes of a complaint that are told.
const COMPLAINT_MAX: u64 = 4096;

/// Where it is.
fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = DIRS.iter().map(PathBuf::from).chain(std::env::split_paths(&path));
    dirs.map(|dir| dir.join("nft")).find(|program| program.is_file())
}

fn program() -> Result<PathBuf> {
    find().ok_or_else(|| {
        Error::new(ErrorKind::Host, "the way out to the network needs the program nft, and there is none")
            .advise("apt install nftables, or run without --network bridge")
    })
}

/// Has a script run, all of it or nothing.
pub(super) fn apply(script: &str) -> Result<()> {
    run(&program()?, &["-f", "-"], script).map(|_| ())
}

/// Asks something, for an answer in JSON.
pub(super) fn ask(what: &[&str]) -> Result<serde_json::Value> {
    let answer = run(&program()?, &[&["-j"], what].concat(), "")?;
    serde_json::from_str(&answer)
        .map_err(|e| Error::host(format!("nft -j {} answered no JSON", what.join(" ")), io::Error::from(e)))
}

fn run(program: &Path, args: &[&str], input: &str) -> Result<String> {
    let failed = |e: io::Error| Error::host(format!("cannot run {}", program.display()), e);
    let mut child = Command::new(program)
        .args(args)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    // A script is shorter than a pipe is long, and nft reads all of it before it answers.
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
    let mut answer = String::new();
    let read = child.stdout.take().map_or(Ok(0), |out| out.take(ANSWER_MAX).read_to_string(&mut answer));
    let mut complaint = Vec::new();
    let _ = child.stderr.take().map(|err| err.take(COMPLAINT_MAX).read_to_end(&mut complaint));
    let status = child.wait().map_err(failed)?;
    if !status.success() {
        return Err(refused(program, args, &complaint));
    }
    written.map_err(failed)?;
    read.map_err(failed)?;
    Ok(answer)
}

fn refused(program: &Path, args: &[&str], complaint: &[u8]) -> Error {
    let text = String::from_utf8_lossy(complaint);
    let first = text.lines().next().unwrap_or("it did not say why").trim();
    Error::new(ErrorKind::Host, format!("{} {} failed: {first}", program.display(), args.join(" ")))
        .advise("modprobe nf_tables nft_fib_inet nft_masq nft_connlimit nft_reject_inet; see `skiff doctor`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_tells_what_nft_said() {
        let error = run(Path::new("/bin/sh"), &["-c", "echo 'Error: no such thing' >&2; exit 1"], "");
        let error = error.expect_err("it failed");
        assert!(error.to_string().contains("Error: no such thing"), "{error}");
        assert!(error.advice().is_some_and(|advice| advice.contains("nf_tables")));
    }

    #[test]
    fn a_program_that_is_none_is_an_error() {
        let error = run(Path::new("/nonexistent/nft"), &[], "").expect_err("missing");
        assert!(error.to_string().contains("/nonexistent/nft"), "{error}");
    }
}
