//! A web function: `GET /hello?name=World`, and a 404 for everything else.

use std::error::Error;

use tiny_http::{Response, Server};

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let server = Server::http("0.0.0.0:9000")?;
    for request in server.incoming_requests() {
        let (path, query) = request.url().split_once('?').unwrap_or((request.url(), ""));
        let answer = if path == "/hello" {
            let name = query.split('&').find_map(|pair| pair.strip_prefix("name=")).unwrap_or("World");
            Response::from_string(format!("Hello, {name}!\n"))
        } else {
            Response::from_string("There is only /hello.\n").with_status_code(404)
        };
        request.respond(answer)?;
    }
    Ok(())
}
