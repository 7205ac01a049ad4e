//! Helpers of the integration tests: a sandbox for the `skiff` program, a registry, an HTTP client
//! for Unix sockets, and counts of everything that a run could leave behind.
//!
//! The tests need root, what `scripts/setup` installs and what `scripts/images` makes; without
//! these they fail and say so. Helpers panic with the reason: they have no other caller than tests.

mod baseline;
mod certificates;
pub mod http;
pub mod images;
mod like;
mod node;
pub mod process;
mod proxy;
mod registry;
mod sandbox;
mod served;
pub mod topology;

pub use baseline::Baseline;
pub use certificates::Certificates;
pub use like::{assert_like, is_like};
pub use node::{Node, deploy as deploy_as};
pub use proxy::Proxy;
pub use registry::{PASSWORD, Registry, USERNAME};
pub use sandbox::{Outcome, Sandbox};
pub use served::Served;
pub use topology::Topology;

use std::time::{Duration, Instant};

/// Calls `check` every few milliseconds until it gives something or the time is up.
pub fn wait_for<T>(patience: Duration, mut check: impl FnMut() -> Option<T>) -> Option<T> {
    let until = Instant::now() + patience;
    loop {
        if let Some(found) = check() {
            return Some(found);
        }
        if Instant::now() >= until {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs a program that must succeed and gives its standard output.
///
/// # Panics
/// When it cannot be run or fails.
pub fn must(program: &str, args: &[&str]) -> String {
    let output = std::process::Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("cannot run {program}: {error}; run scripts/setup"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {}: {stderr}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}
