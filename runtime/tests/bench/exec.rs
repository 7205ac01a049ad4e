//! Processes that tests have executed in running containers.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use skiff_runtime::{Container, ContainerSpec, Exec, ExecSpec, Exit};

use super::{Bench, shell};

pub(crate) const KEEPER: &str = env!("CARGO_BIN_EXE_skiff-keeper");

pub(crate) fn command(words: &[&str]) -> ExecSpec {
    ExecSpec { argv: words.iter().map(ToString::to_string).collect(), ..ExecSpec::default() }
}

pub(crate) fn script(text: &str) -> ExecSpec {
    command(&["/bin/sh", "-c", text])
}

/// A container that says when it runs, and then sleeps.
pub(crate) async fn sleeper(bench: &Bench, change: impl FnOnce(&mut ContainerSpec)) -> Container {
    let mut spec = shell("exec sleep 1000");
    change(&mut spec);
    bench.start(spec).await.expect("starts")
}

pub(crate) async fn start(container: &Container, spec: ExecSpec) -> skiff_runtime::Result<Exec> {
    container.exec(spec, Some(Path::new(KEEPER))).await
}

pub(crate) async fn read_all(from: OwnedFd) -> String {
    tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        // A terminal whose last user has gone is an error.
        let mut file = File::from(from);
        let mut chunk = [0; 65536];
        while let Ok(read @ 1..) = file.read(&mut chunk) {
            bytes.extend_from_slice(&chunk[..read]);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
    .await
    .expect("a thread")
}

/// Runs to the end, without input.
pub(crate) async fn run(container: &Container, spec: ExecSpec) -> (Exit, String, String) {
    let mut exec = start(container, spec).await.expect("starts");
    let streams = exec.take_streams().expect("no terminal");
    drop(streams.stdin);
    let ended = async { tokio::join!(read_all(streams.stdout), read_all(streams.stderr), exec.wait()) };
    let (out, err, exit) = tokio::time::timeout(Duration::from_secs(60), ended).await.expect("it ends");
    (exit.expect("an exit"), out, err)
}
