//! `skiff ps`: the instances of a node.

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use http::Method;
use serde_json::Value;

use super::client::{Client, text_of};
use super::table;
use crate::cli::args::{Global, NodeArgs};
use crate::cli::console::{Console, bytes};
use crate::cli::failure::Failure;

/// Lists them.
pub(crate) async fn ps(global: &Global, args: &NodeArgs, console: Console) -> Result<ExitCode, Failure> {
    let answer = Client::new(global, args)?.ask(Method::GET, "/v1/instances", Vec::new()).await?;
    let instances: Vec<&Value> = answer["instances"].as_array().into_iter().flatten().collect();
    if console.is_json() {
        for instance in instances {
            console.result(String::new, || instance.clone())?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis() as u64);
    let head = ["INSTANCE", "FUNCTION", "NAMESPACE", "REVISION", "STATE", "AGE", "CALLS", "MEMORY"];
    let rows: Vec<Vec<String>> = std::iter::once(head.map(String::from).to_vec())
        .chain(instances.into_iter().map(|instance| row(instance, now)))
        .collect();
    console.result(|| table(&rows), || Value::Null)?;
    Ok(ExitCode::SUCCESS)
}

fn row(instance: &Value, now: u64) -> Vec<String> {
    let state = if instance["frozen"] == true { "frozen".to_owned() } else { text_of(&instance["state"]) };
    let since = instance["since_unix_ms"].as_u64();
    let age = since.map_or("-".to_owned(), |since| age(now.saturating_sub(since) / 1000));
    let memory = instance["memory_bytes"].as_u64().filter(|_| since.is_some());
    vec![
        text_of(&instance["id"]),
        text_of(&instance["function"]),
        text_of(&instance["namespace"]),
        instance["revision"].to_string(),
        state,
        age,
        instance["running"].to_string(),
        memory.map_or("-".to_owned(), bytes),
    ]
}

/// `7s`, `5m`, `3h` or `2d`.
fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_row_tells_what_there_is() {
        let instance = json!({
            "id": "c-1", "function": "f", "namespace": "ns", "revision": 3, "state": "ready", "frozen": true,
            "since_unix_ms": 1000, "running": 0, "memory_bytes": 7 << 20,
        });
        let told = ["c-1", "f", "ns", "3", "frozen", "59s", "0", "7.0 MiB"];
        assert_eq!(row(&instance, 60_000), told);
        let starting = json!({"id": null, "function": "f", "namespace": "ns", "revision": 3, "state": "starting", "running": 0});
        assert_eq!(row(&starting, 60_000), ["-", "f", "ns", "3", "starting", "-", "0", "-"]);
    }

    #[test]
    fn ages_have_one_unit() {
        let told: Vec<String> = [0, 119, 120, 7199, 7200, 172_799, 172_800].into_iter().map(age).collect();
        assert_eq!(told, ["0s", "119s", "2m", "119m", "2h", "47h", "2d"]);
    }
}
