//! The commands that talk to the node of this host.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::process::ExitCode;

use http::Method;
use serde_json::Value;
use skiff::function::file::{FileOptions, FunctionFile};
use skiff::node::Deployment;

use super::client::{Client, encoded, text_of};
use super::table;
use crate::cli::args::{DeployArgs, FunctionNameArgs, Global, NodeArgs};
use crate::cli::console::Console;
use crate::cli::failure::Failure;

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
    let namespace = args.namespace.as_deref().map(|name| format!("?namespace={}", encoded(name)));
    format!("/v1/functions/{}{}", encoded(&args.name), namespace.unwrap_or_default())
}
