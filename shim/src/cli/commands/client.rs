//! The node of this host, asked over its socket.

use std::path::{Path, PathBuf};

use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use super::absolute;
use super::serve::SOCKET_NAME;
use crate::cli::args::{Global, NodeArgs};
use crate::cli::failure::Failure;

/// Bytes of an answer of the node at most.
const MAX_ANSWER: usize = 64 << 20;

/// Bytes of one line of an answer that has no end.
const MAX_LINE: usize = 4 << 20;

/// A part of a path or a value of a query.
pub(super) fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// The text of a field, for people.
pub(super) fn text_of(value: &Value) -> String {
    value.as_str().unwrap_or("-").to_owned()
}

/// The node of this host.
pub(super) struct Client {
    socket: PathBuf,
}

/// An answer on its way; the connection ends with it.
struct Answer {
    response: Response<Incoming>,
    connection: JoinHandle<Result<(), hyper::Error>>,
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Client {
    pub(super) fn new(global: &Global, args: &NodeArgs) -> Result<Self, Failure> {
        let socket = match &args.socket {
            Some(path) => absolute(path)?,
            None => absolute(&global.run_dir)?.join(SOCKET_NAME),
        };
        Ok(Self { socket })
    }

    /// One request; an answer that is an error becomes a failure.
    pub(super) async fn ask(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Value, Failure> {
        let mut answer = self.send(method, path, body).await?;
        let status = answer.response.status();
        let value = whole(&mut answer).await?;
        if status == StatusCode::OK { Ok(value) } else { Err(Failure::of_node(&value["error"])) }
    }

    /// Gives each line of an answer, a JSON object, to `line` until that says that it is enough, or the
    /// answer ends.
    pub(super) async fn follow(
        &self,
        path: &str,
        mut line: impl FnMut(&Value) -> Result<bool, Failure>,
    ) -> Result<(), Failure> {
        let mut answer = self.send(Method::GET, path, Vec::new()).await?;
        if answer.response.status() != StatusCode::OK {
            return Err(Failure::of_node(&whole(&mut answer).await?["error"]));
        }
        let mut rest: Vec<u8> = Vec::new();
        while let Some(frame) = answer.response.body_mut().frame().await {
            let frame = frame.map_err(|e| Failure::host("reading the node's answer", &e))?;
            rest.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
            let end = rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            for text in rest[..end].split(|byte| *byte == b'\n').filter(|text| !text.is_empty()) {
                let value: Value = serde_json::from_slice(text)
                    .map_err(|e| Failure::host("understanding the node's answer", &e))?;
                if !line(&value)? {
                    return Ok(());
                }
            }
            rest.drain(..end);
            if rest.len() > MAX_LINE {
                let error = std::io::Error::other(format!("a line of more than {MAX_LINE} bytes"));
                return Err(Failure::host("understanding the node's answer", &error));
            }
        }
        Ok(())
    }

    async fn send(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Answer, Failure> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|e| no_node(&self.socket, &e))?;
        let failed = |e: hyper::Error| Failure::host("talking to the node", &e);
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
        let connection = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "node")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| Failure::host("asking the node", &e))?;
        let response = sender.send_request(request).await.map_err(failed)?;
        Ok(Answer { response, connection })
    }
}

async fn whole(answer: &mut Answer) -> Result<Value, Failure> {
    let body = Limited::new(answer.response.body_mut(), MAX_ANSWER).collect().await;
    let bytes = body.map_err(|e| Failure::host("reading the node's answer", &*e))?.to_bytes();
    serde_json::from_slice(&bytes).map_err(|e| Failure::host("understanding the node's answer", &e))
}

fn no_node(socket: &Path, error: &std::io::Error) -> Failure {
    Failure::usage(format!("no node listens on {}: {error}", socket.display()))
        .advise("start one by `skiff serve`, or name its socket or its run directory")
}
