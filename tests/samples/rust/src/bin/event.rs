//! A function for events: `{"name": "World"}` is answered with `{"greeting": "Hello, World!"}`.
//!
//! Alibaba FC posts events to /invoke, Tencent SCF to /event-invoke.

use std::error::Error;

use serde_json::{Value, json};
use tiny_http::{Request, Response, Server};

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let server = Server::http("0.0.0.0:9000")?;
    for mut request in server.incoming_requests() {
        let answer = match greet(&mut request) {
            Ok(answer) => Response::from_string(answer.to_string()),
            Err(error) => Response::from_string(error.to_string()).with_status_code(400),
        };
        request.respond(answer)?;
    }
    Ok(())
}

fn greet(request: &mut Request) -> Result<Value, Box<dyn Error>> {
    let event: Value = serde_json::from_reader(request.as_reader())?;
    let name = event["name"].as_str().ok_or("the event has no name")?;
    Ok(json!({ "greeting": format!("Hello, {name}!") }))
}
