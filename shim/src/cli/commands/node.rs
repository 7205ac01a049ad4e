//! The commands that talk to the node of this host.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use skiff::function::file::{FileOptions, FunctionFile};
use skiff::node::Deployment;
use tokio::net::UnixStream;

use super::serve::SOCKET_NAME;
use super::{absolute, table};
use crate::cli::args::{DeployArgs, FunctionNameArgs, Global, NodeArgs};
use crate::cli::console::Console;
use crate::cli::failure::Failure;

/// Bytes of an answer of the node at most.
const MAX_ANSWER: usize = 64 << 20;

/// Deploys a function.
pub(crate) async fn deploy(
    global: &Global,
    args: &DeployArgs,
    console: Console,
) -> Result<ExitCode, Failure> {
    let node = Client::new(global, &args.node)?;
    let deployment = deployment(args)?;
    let body = serde_json::to_vec(&deployment).map_err(|e| Failure::host("writing the deployment", &e))?;
    let mut answer = node.ask(Method::POST, "/v1/functions", body).await?;
    for warning in answer["warnings"].as_array().into_iter().flatten() {
        console.warn_json(warning);
    }
    let function = answer["function"].take();
    let text = || {
        let (name, revision) = (text_of(&function["name"]), &function["revision"]);
        format!("deployed {name} revision {revision}: {}", text_of(&function["digest"]))
    };
    console.result(text, || function.clone())?;
    Ok(ExitCode::SUCCESS)
}

/// Reads the file here: what is wrong is told without a node, and its variables are this command's.
fn deployment(args: &DeployArgs) -> Result<Deployment, Failure> {
    let asked = RefCell::new(BTreeMap::new());
    let lookup = |name: &str| {
        let value = std::env::var(name).ok()?;
        asked.borrow_mut().insert(name.to_owned(), value.clone());
        Some(value)
    };
    let options = FileOptions { service: args.service.as_deref(), lookup: Some(&lookup) };
    FunctionFile::read(&args.file, options)?;
    let text = std::fs::read_to_string(&args.file)
        .map_err(|e| Failure::usage(format!("cannot read {}: {e}", args.file.display())))?;
    let name = args.file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut deployment = Deployment::new(text, name);
    deployment.service.clone_from(&args.service);
    deployment.variables = asked.into_inner();
    deployment.scaling = args.scaling();
    // The images of layouts and archives are files of this command's place.
    Ok(deployment)
}

/// Lists what is deployed.
pub(crate) async fn functions(
    global: &Global,
    args: &NodeArgs,
    console: Console,
) -> Result<ExitCode, Failure> {
    let answer = Client::new(global, args)?.ask(Method::GET, "/v1/functions", Vec::new()).await?;
    let functions: Vec<&Value> = answer["functions"].as_array().into_iter().flatten().collect();
    if console.is_json() {
        for function in functions {
            console.result(String::new, || function.clone())?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let head = ["NAME", "NAMESPACE", "PLATFORM", "STATE", "REVISION", "INSTANCES", "IMAGE"].map(String::from);
    let rows: Vec<Vec<String>> =
        std::iter::once(head.to_vec()).chain(functions.into_iter().map(row)).collect();
    console.result(|| table(&rows), || Value::Null)?;
    Ok(ExitCode::SUCCESS)
}

fn row(function: &Value) -> Vec<String> {
    let instances = &function["instances"];
    let warm = instances["warm"].as_u64().unwrap_or(0) + instances["leaving"].as_u64().unwrap_or(0);
    let starting = instances["starting"].as_u64().unwrap_or(0);
    let count = if starting == 0 { warm.to_string() } else { format!("{warm} (+{starting})") };
    let revision = function["revision"].as_u64().map_or("-".to_owned(), |number| number.to_string());
    let texts = ["name", "namespace", "platform", "state"].map(|key| text_of(&function[key]));
    texts.into_iter().chain([revision, count, text_of(&function["image"])]).collect()
}

fn text_of(value: &Value) -> String {
    value.as_str().unwrap_or("-").to_owned()
}

/// Tells all about one function.
pub(crate) async fn get(
    global: &Global,
    args: &FunctionNameArgs,
    console: Console,
) -> Result<ExitCode, Failure> {
    let function = Client::new(global, &args.node)?.ask(Method::GET, &path(args), Vec::new()).await?;
    let text = || serde_json::to_string_pretty(&function).unwrap_or_default();
    console.result(text, || function.clone())?;
    Ok(ExitCode::SUCCESS)
}

/// Takes a function away.
pub(crate) async fn delete(
    global: &Global,
    args: &FunctionNameArgs,
    console: Console,
) -> Result<ExitCode, Failure> {
    let answer = Client::new(global, &args.node)?.ask(Method::DELETE, &path(args), Vec::new()).await?;
    console.result(|| format!("deleted {}", args.name), || answer.clone())?;
    Ok(ExitCode::SUCCESS)
}

fn path(args: &FunctionNameArgs) -> String {
    let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let namespace = args.namespace.as_deref().map(|name| format!("?namespace={}", encoded(name)));
    format!("/v1/functions/{}{}", encoded(&args.name), namespace.unwrap_or_default())
}

/// The node of this host.
pub(super) struct Client {
    socket: PathBuf,
}

impl Client {
    pub(super) fn new(global: &Global, args: &NodeArgs) -> Result<Self, Failure> {
        let socket = match &args.socket {
            Some(path) => absolute(path)?,
            None => absolute(&global.run_dir)?.join(SOCKET_NAME),
        };
        Ok(Self { socket })
    }

    /// What there is at a path.
    pub(super) async fn get(&self, path: &str) -> Result<Value, Failure> {
        self.ask(Method::GET, path, Vec::new()).await
    }

    /// What there is at a path, a JSON object in each line, as it comes.
    pub(super) async fn lines(
        &self,
        path: &str,
        mut each: impl FnMut(Value) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut response = self.send(Method::GET, path, Vec::new()).await?;
        if response.status() != StatusCode::OK {
            return whole(response).await.map(drop);
        }
        let mut begun = Vec::new();
        while let Some(frame) = response.frame().await {
            let frame = frame.map_err(|e| Failure::host("reading the node's answer", &e))?;
            begun.extend_from_slice(&frame.into_data().unwrap_or_default());
            let Some(end) = begun.iter().rposition(|byte| *byte == b'\n') else { continue };
            let rest = begun.split_off(end + 1);
            for line in begun.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                let value = serde_json::from_slice(line);
                each(value.map_err(|e| Failure::host("understanding the node's answer", &e))?)?;
            }
            begun = rest;
        }
        Ok(())
    }

    /// One request; an answer that is an error becomes a failure.
    async fn ask(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Value, Failure> {
        whole(self.send(method, path, body).await?).await
    }

    /// One request. Its connection ends with the body of its answer.
    async fn send(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Response<Incoming>, Failure> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|e| no_node(&self.socket, &e))?;
        let failed = |e: hyper::Error| Failure::host("talking to the node", &e);
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "node")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| Failure::host("asking the node", &e))?;
        sender.send_request(request).await.map_err(failed)
    }
}

async fn whole(response: Response<Incoming>) -> Result<Value, Failure> {
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    let bytes = body.map_err(|e| Failure::host("reading the node's answer", &*e))?.to_bytes();
    let value: Value =
        serde_json::from_slice(&bytes).map_err(|e| Failure::host("understanding the node's answer", &e))?;
    if status == StatusCode::OK { Ok(value) } else { Err(Failure::of_node(&value["error"])) }
}

fn no_node(socket: &Path, error: &std::io::Error) -> Failure {
    Failure::usage(format!("no node listens on {}: {error}", socket.display()))
        .advise("start one by `skiff serve`, or name its socket or its run directory")
}
