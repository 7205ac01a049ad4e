//! A function without a server: its event is in its environment.
//!
//! The event may say what to do: `{"exit": 3}`, `{"sleep_ms": 1000}`, `{"oom": true}`, `{"env": true}`. SIGTERM ends it with
//! 143, after a line of output.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;

use crate::load;

/// Does what the event says.
pub(crate) fn run() -> ExitCode {
    let event = ["FC_CUSTOM_CONTAINER_EVENT", "SCF_CUSTOM_CONTAINER_EVENT"]
        .iter()
        .find_map(|name| std::env::var(name).ok().map(|event| (name, event)));
    let Some((name, event)) = event else {
        say("no event");
        return ExitCode::from(9);
    };
    say(&format!("{name} has {} bytes: {}", event.len(), event.chars().take(100).collect::<String>()));
    let event: Value = serde_json::from_str(&event).unwrap_or_default();
    if event["env"] == true {
        std::env::vars().for_each(|(name, value)| say(&format!("{name}={value}")));
    }
    if event["oom"] == true {
        load::take_all();
    }
    if let Some(millis) = event["sleep_ms"].as_u64()
        && !sleep(millis)
    {
        say("SIGTERM: bye");
        return ExitCode::from(143);
    }
    ExitCode::from(event["exit"].as_u64().and_then(|code| u8::try_from(code).ok()).unwrap_or(0))
}

fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Whether it was not ended by SIGTERM.
fn sleep(millis: u64) -> bool {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return true };
    runtime.block_on(async {
        let Ok(mut term) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) else {
            return true;
        };
        // From here on SIGTERM is heard.
        say("sleeps");
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(millis)) => true,
            _ = term.recv() => false,
        }
    })
}
