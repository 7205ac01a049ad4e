//! `skiff events`: what happens to functions from now on.

use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use serde_json::Value;
use skiff::units::rfc3339_millis;

use super::client::Client;
use crate::cli::args::{Global, NodeArgs};
use crate::cli::console::Console;
use crate::cli::failure::Failure;

/// Writes a line for each event until the node ends.
pub(crate) async fn events(global: &Global, args: &NodeArgs, console: Console) -> Result<ExitCode, Failure> {
    let node = Client::new(global, args)?;
    node.follow("/v1/events", |event| console.line(|| console.shown(&text(event)), || event.clone())).await?;
    Ok(ExitCode::SUCCESS)
}

/// `TIME NAMESPACE/FUNCTION EVENT FIELD=VALUE…`.
fn text(event: &Value) -> String {
    let of = |key: &str| event[key].as_str().unwrap_or_default();
    if of("event") == "missed" {
        return format!("{} events were missed: this command is too slow", event["count"]);
    }
    let time = UNIX_EPOCH + Duration::from_millis(event["unix_ms"].as_u64().unwrap_or_default());
    let mut text = format!("{} {}/{} {}", rfc3339_millis(time), of("namespace"), of("function"), of("event"));
    let fields = event.as_object().into_iter().flatten();
    for (key, value) in fields {
        if !["unix_ms", "namespace", "function", "event"].contains(&key.as_str()) {
            text += &format!(" {key}={}", value.as_str().map_or_else(|| value.to_string(), str::to_owned));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_is_a_line() {
        let event = json!({
            "unix_ms": 1_575_021_210_859_u64, "namespace": "default", "function": "f", "event": "deployed", "revision": 3,
        });
        assert_eq!(text(&event), "2019-11-29T09:53:30.859Z default/f deployed revision=3");
        assert!(text(&json!({"event": "missed", "count": 7})).starts_with("7 events were missed"));
    }
}
