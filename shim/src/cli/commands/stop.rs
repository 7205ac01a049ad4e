//! `skiff stop`: ends what a node has left running.

use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;
use skiff::node::{FunctionState, LogFiles, Node, NodeLogs, NodeOptions};
use skiff::proxy::Listener;
use skiff::{CgroupParent, NetworkOptions, RuntimeOptions};

use super::serve::{METERING_NAME, RUN, SOCKET_NAME, SOCKETS_NAME};
use super::{absolute, require_root};
use crate::cli::args::Global;
use crate::cli::console::{Console, with_event};
use crate::cli::failure::Failure;
use crate::cli::interrupt::Interrupts;

/// How long taking instances over may need, and how often it is looked. Those that it takes longer for are killed.
const TAKEN_OVER: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(10);

/// Takes the instances over, as the next node would, and stops them.
pub(crate) async fn stop(global: &Global, console: Console) -> Result<ExitCode, Failure> {
    require_root()?;
    let count = match absolute(&global.run_dir)?.join(RUN).exists() {
        true => take_over_and_stop(global).await?,
        false => 0,
    };
    let text = || match count {
        0 => "no instance was left".to_owned(),
        1 => "1 instance stopped".to_owned(),
        count => format!("{count} instances stopped"),
    };
    console.result(text, || with_event("stopped", json!({ "instances": count })))?;
    Ok(ExitCode::SUCCESS)
}

async fn take_over_and_stop(global: &Global) -> Result<usize, Failure> {
    let interrupts = Interrupts::install()?;
    let node = Box::pin(interrupts.or(Node::open(options(global)?))).await??;
    let _ = interrupts.or(tokio::time::timeout(TAKEN_OVER, taken_over(&node))).await;
    let count = node.instances().len();
    let socket = absolute(&global.run_dir)?.join(SOCKET_NAME);
    // Its file goes with it.
    let left = node.inherited_socket(&socket.to_string_lossy());
    drop(left.and_then(|left| Listener::inherited(&socket, left).ok()));
    tokio::select! {
        stopped = node.shutdown() => stopped?,
        _ = interrupts.first() => node.runtime().shutdown().await.map_err(skiff::Error::from)?,
    }
    Ok(count)
}

/// Waits until the functions of the instances are there again.
async fn taken_over(node: &Node) {
    let awaited = |state| matches!(state, FunctionState::Pending | FunctionState::Preparing);
    while node.functions().iter().any(|function| awaited(function.state)) {
        tokio::time::sleep(LOOK).await;
    }
}

fn options(global: &Global) -> Result<NodeOptions, Failure> {
    let (run_dir, state_dir) = (absolute(&global.run_dir)?, absolute(&global.state_dir)?);
    let defaults = NodeOptions::new(&state_dir, &run_dir);
    Ok(NodeOptions {
        sockets: Some(run_dir.join(SOCKETS_NAME)),
        metering: Some(state_dir.join(METERING_NAME)),
        runtime: RuntimeOptions {
            state_dir,
            run_dir,
            keeper: global.keeper.as_deref().map(absolute).transpose()?,
            lasting: Some(RUN.to_owned()),
            network: NetworkOptions::default(),
            containers_ahead: 0,
            cgroup: CgroupParent::Auto,
        },
        // Last lines only: what the node has kept is not for this command to cut.
        logs: NodeLogs::Files(LogFiles { bytes: u64::MAX, files: usize::MAX }),
        ..defaults
    })
}
