//! A job: no server, one container for each event, which is in its environment. The exit code tells how it
//! went.

#![allow(clippy::print_stdout, reason = "what a job writes goes to its log")]

use std::env;
use std::error::Error;

use serde_json::Value;

fn main() -> Result<(), Box<dyn Error>> {
    let event = env::var("FC_CUSTOM_CONTAINER_EVENT").or_else(|_| env::var("SCF_CUSTOM_CONTAINER_EVENT"))?;
    let event: Value = serde_json::from_str(&event)?;
    let numbers = event["numbers"].as_array().filter(|list| !list.is_empty()).ok_or("no numbers to add")?;
    let sum: i64 = numbers.iter().filter_map(Value::as_i64).sum();
    println!("the sum is {sum}");
    Ok(())
}
