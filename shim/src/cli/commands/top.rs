//! `skiff top`: what functions use, again and again.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::client::{Client, text_of};
use super::table;
use crate::cli::args::{Global, TopArgs};
use crate::cli::console::{Console, bytes};
use crate::cli::failure::Failure;

/// Between the two looks that a single table needs.
const ONCE: Duration = Duration::from_secs(1);

/// From the top left corner on; what stood there is written over, line by line.
const HOME: &str = "\x1b[H";
const REST_OF_LINE: &str = "\x1b[K\n";
const REST_OF_SCREEN: &str = "\x1b[J";

/// Writes a table, on a terminal again and again.
pub(crate) async fn top(global: &Global, args: &TopArgs, console: Console) -> Result<ExitCode, Failure> {
    let node = Client::new(global, &args.node)?;
    let refreshes = console.is_terminal() && !console.is_json();
    let pause = if refreshes { args.interval.0.max(Duration::from_millis(100)) } else { ONCE };
    let mut before = Look::at(&node).await?;
    loop {
        if !refreshes {
            tokio::time::sleep(pause).await;
        }
        let now = Look::at(&node).await?;
        let functions = now.since(&before);
        if !refreshes {
            return once(&functions, args, console);
        }
        let text = text(&functions, args.rows).replace('\n', REST_OF_LINE);
        let screen = format!("{HOME}{text}{REST_OF_LINE}{REST_OF_SCREEN}");
        if !console.line(|| screen.trim_end_matches('\n').to_owned(), || Value::Null)? {
            return Ok(ExitCode::SUCCESS);
        }
        before = now;
        tokio::time::sleep(pause).await;
    }
}

fn once(functions: &[Function], args: &TopArgs, console: Console) -> Result<ExitCode, Failure> {
    if console.is_json() {
        for function in functions {
            console.result(String::new, || function.json())?;
        }
    } else {
        console.result(|| text(functions, args.rows), || Value::Null)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A node at one moment.
struct Look {
    at: Instant,
    functions: Vec<Value>,
    instances: Vec<Value>,
}

/// A function over a time.
struct Function {
    name: String,
    namespace: String,
    instances: u64,
    starting: u64,
    running: u64,
    waiting: u64,
    free: u64,
    memory_bytes: u64,
    cpu_percent: f64,
    calls_per_second: f64,
}

impl Look {
    async fn at(node: &Client) -> Result<Self, Failure> {
        let list = async |path: &str, key: &str| {
            let mut answer = node.ask(Method::GET, path, Vec::new()).await?;
            Ok::<Vec<Value>, Failure>(answer[key].as_array_mut().map(std::mem::take).unwrap_or_default())
        };
        let functions = list("/v1/functions", "functions").await?;
        let instances = list("/v1/instances", "instances").await?;
        Ok(Self { at: Instant::now(), functions, instances })
    }

    /// CPU time by instance, of those of a function.
    fn cpu_ms(&self, function: &Value) -> BTreeMap<&str, u64> {
        let of = |instance: &&Value| {
            instance["function"] == function["name"] && instance["namespace"] == function["namespace"]
        };
        let cpu = |instance: &Value| instance["cpu_ms"].as_u64().unwrap_or_default();
        self.instances
            .iter()
            .filter(of)
            .filter_map(|instance| Some((instance["id"].as_str()?, cpu(instance))))
            .collect()
    }

    /// What has happened since an earlier look; who uses most comes first.
    fn since(&self, before: &Self) -> Vec<Function> {
        let seconds = self.at.duration_since(before.at).as_secs_f64().max(0.001);
        let mut functions: Vec<Function> =
            self.functions.iter().map(|function| self.function(function, before, seconds)).collect();
        functions.sort_by_key(|function| {
            let cpu = Reverse((function.cpu_percent * 10.0) as u64);
            (cpu, Reverse(function.memory_bytes), function.name.clone())
        });
        functions
    }

    fn function(&self, now: &Value, before: &Self, seconds: f64) -> Function {
        let count = |key: &str| now["instances"][key].as_u64().unwrap_or_default();
        let is_it = |then: &&Value| then["name"] == now["name"] && then["namespace"] == now["namespace"];
        let calls = |value: &Value| value["calls"].as_u64().unwrap_or_default();
        let then = before.functions.iter().find(is_it).map_or_else(|| calls(now), calls);
        let used_then = before.cpu_ms(now);
        let used = self.cpu_ms(now);
        // One that is new has used all that it has used since.
        let cpu_ms: u64 =
            used.iter().map(|(id, cpu)| cpu.saturating_sub(used_then.get(id).copied().unwrap_or(0))).sum();
        let memory = self.instances.iter().filter(|instance| {
            instance["function"] == now["name"] && instance["namespace"] == now["namespace"]
        });
        Function {
            name: text_of(&now["name"]),
            namespace: text_of(&now["namespace"]),
            instances: count("warm") + count("leaving"),
            starting: count("starting"),
            running: count("running"),
            waiting: count("waiting"),
            free: count("free"),
            memory_bytes: memory.map(|instance| instance["memory_bytes"].as_u64().unwrap_or_default()).sum(),
            cpu_percent: cpu_ms as f64 / 10.0 / seconds,
            calls_per_second: calls(now).saturating_sub(then) as f64 / seconds,
        }
    }
}

impl Function {
    fn json(&self) -> Value {
        let tenths = |value: f64| (value * 10.0).round() / 10.0;
        json!({
            "name": self.name,
            "namespace": self.namespace,
            "instances": self.instances,
            "starting": self.starting,
            "running": self.running,
            "waiting": self.waiting,
            "free": self.free,
            "memory_bytes": self.memory_bytes,
            "cpu_percent": tenths(self.cpu_percent),
            "calls_per_second": tenths(self.calls_per_second),
        })
    }

    fn row(&self) -> Vec<String> {
        let instances = match self.starting {
            0 => self.instances.to_string(),
            starting => format!("{} (+{starting})", self.instances),
        };
        vec![
            self.name.clone(),
            self.namespace.clone(),
            instances,
            self.running.to_string(),
            self.waiting.to_string(),
            self.free.to_string(),
            bytes(self.memory_bytes),
            format!("{:.1}", self.cpu_percent),
            format!("{:.1}", self.calls_per_second),
        ]
    }
}

fn text(functions: &[Function], most: usize) -> String {
    let head =
        ["FUNCTION", "NAMESPACE", "INSTANCES", "RUNNING", "WAITING", "FREE", "MEMORY", "CPU%", "CALLS/S"];
    let shown = functions.iter().take(most).map(Function::row);
    let rows: Vec<Vec<String>> = std::iter::once(head.map(String::from).to_vec()).chain(shown).collect();
    let more = match functions.len().saturating_sub(most) {
        0 => String::new(),
        more => format!("\nand {more} more"),
    };
    table(&rows) + &more
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(at: Instant, calls: u64, cpu: &[(&str, u64)]) -> Look {
        let instance = |(id, cpu_ms): &(&str, u64)| json!({"id": id, "function": "f", "namespace": "ns", "memory_bytes": 1 << 20, "cpu_ms": cpu_ms});
        let status = json!({"warm": 1, "leaving": 1, "starting": 2, "running": 3, "waiting": 4, "free": 5});
        let idle = json!({"name": "a", "namespace": "ns", "calls": 9, "instances": {}});
        Look {
            at,
            functions: vec![
                idle,
                json!({"name": "f", "namespace": "ns", "calls": calls, "instances": status}),
            ],
            instances: cpu.iter().map(instance).collect(),
        }
    }

    #[test]
    fn rates_are_those_of_the_time_between() {
        let begun = Instant::now();
        let before = look(begun, 100, &[("i-1", 500), ("gone", 9000)]);
        let after = look(begun + Duration::from_secs(2), 150, &[("i-1", 1500), ("new", 200)]);
        let functions = after.since(&before);
        assert_eq!(
            text(&functions, 9),
            "FUNCTION  NAMESPACE  INSTANCES  RUNNING  WAITING  FREE  MEMORY   CPU%  CALLS/S\n\
             f         ns         2 (+2)     3        4        5     2.0 MiB  60.0  25.0\n\
             a         ns         0          0        0        0     0 B      0.0   0.0"
        );
        assert!(text(&functions, 1).ends_with("\nand 1 more"));
        assert_eq!(functions[0].json()["cpu_percent"], 60.0);
    }
}
