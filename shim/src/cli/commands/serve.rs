//! `skiff serve`: the node of this host, until a signal.

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use serde_json::json;
use skiff::api::{self, AccessKeys, AsyncOptions};
use skiff::node::{LineForm, Node, NodeLogs, NodeOptions, control};
use skiff::proxy::Listener;
use skiff::service::ServiceManager;
use skiff::telemetry::TraceExport;
use skiff::{CgroupParent, RuntimeOptions, Secret};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::run::raise_open_files;
use super::{absolute, require_root, variable};
use crate::cli::args::{Global, LogTo, Remote, ServeArgs};
use crate::cli::console::{Console, with_event};
use crate::cli::failure::Failure;
use crate::cli::interrupt::{Interrupts, Signal};

/// Name of the node's socket below the run directory.
pub(crate) const SOCKET_NAME: &str = "skiff.sock";

/// Name of its lasting run.
pub(super) const RUN: &str = "node";

/// Name of the directory of the functions' sockets.
pub(super) const SOCKETS_NAME: &str = "functions";

/// Name of the directory of the records of what is billed, in the state directory.
pub(super) const METERING_NAME: &str = "meter";

/// Serves until the end. What started this process, where it is a service, is `manager`.
pub(crate) async fn serve(
    global: &Global,
    args: &ServeArgs,
    console: Console,
    mut manager: ServiceManager,
) -> Result<ExitCode, Failure> {
    require_root()?;
    let api_options = args.api.as_api().options()?;
    let options = options(global, args, api_options.asynchronous)?;
    let spans = options.trace_export.clone();
    let remote = args.remote.remote()?;
    raise_open_files();
    let interrupts = Interrupts::install()?;
    // Before instances of a former node are there, which a failure from then on would end.
    let handed = manager.socket().map_err(skiff::Error::from)?.map(Listener::handed_over).transpose()?;
    let tcp = Tcp::open(args, remote).await?;
    let node = Box::pin(interrupts.or(Node::open(options))).await??;
    let socket = listen(global, args, &node, handed).await;
    let until = Until { args, console, interrupts: &interrupts, node: &node, manager: &manager };
    let served = match socket {
        Ok(socket) => Box::pin(until.a_signal(socket, tcp, api_options.keys)).await,
        Err(error) => Err(error),
    };
    manager.stopping();
    let leaves = matches!(served, Ok(Signal::Terminate)) && !args.stop_instances;
    let end = async { if leaves { node.detach().await } else { node.shutdown().await } };
    let cleaned = tokio::select! {
        cleaned = end => cleaned.map_err(Failure::from),
        _ = interrupts.second() => node.runtime().shutdown().await.map_err(|e| skiff::Error::from(e).into()),
    };
    tokio::select! {
        () = end_of_traces(spans) => {}
        _ = interrupts.second() => {}
    }
    served?;
    cleaned?;
    Ok(ExitCode::SUCCESS)
}

fn options(global: &Global, args: &ServeArgs, asynchronous: AsyncOptions) -> Result<NodeOptions, Failure> {
    let run_dir = absolute(&global.run_dir)?;
    let sockets = match &args.sockets {
        Some(dir) => absolute(dir)?,
        None => run_dir.join(SOCKETS_NAME),
    };
    let state_dir = absolute(&global.state_dir)?;
    Ok(NodeOptions {
        runtime: RuntimeOptions {
            state_dir: state_dir.clone(),
            run_dir,
            keeper: global.keeper.as_deref().map(absolute).transpose()?,
            lasting: Some(RUN.to_owned()),
            network: args.network.node_options(),
            containers_ahead: args.container_pool,
            cgroup: args.cgroup_parent.clone().map_or(CgroupParent::Auto, CgroupParent::Below),
        },
        pull: args.source.pull_options(variable)?,
        logs: match args.logs.log_to {
            LogTo::Files => NodeLogs::Files(args.logs.files()),
            LogTo::Stdout => NodeLogs::Stream(Arc::new(Mutex::new(std::io::stdout())), LineForm::Json),
            LogTo::Journal => NodeLogs::Stream(Arc::new(Mutex::new(std::io::stdout())), LineForm::Journal),
        },
        sockets: Some(sockets),
        socket_group: args.socket_group.map(|group| group.0),
        metering: (!args.no_metering).then(|| state_dir.join(METERING_NAME)),
        limits: args.limits.limits(),
        asynchronous,
        trace_export: trace_export(args)?,
    })
}

#[cfg(feature = "otel")]
fn trace_export(args: &ServeArgs) -> Result<Option<TraceExport>, Failure> {
    Ok(args.traces.export(variable)?)
}

#[cfg(not(feature = "otel"))]
fn trace_export(_: &ServeArgs) -> Result<Option<TraceExport>, Failure> {
    Ok(None)
}

/// Exports what has not been exported.
async fn end_of_traces(export: Option<TraceExport>) {
    let Some(export) = export else { return };
    if let Ok(Err(error)) = tokio::task::spawn_blocking(move || export.shutdown()).await {
        tracing::warn!(error, "spans of the last invocations may be lost");
    }
}

/// What is served on TCP.
struct Tcp {
    /// The invoke APIs alone.
    invoke: Option<Listener>,
    /// Everything, for those who show the token, if there is one.
    all: Option<(Listener, Option<Secret>)>,
}

impl Tcp {
    async fn open(args: &ServeArgs, remote: Option<Remote>) -> Result<Self, Failure> {
        let invoke = match args.api.api_listen {
            Some(listen) => Some(Listener::tcp(listen.0).await?),
            None => None,
        };
        let all = match remote {
            Some(Remote { address, tls: Some(tls), token }) => {
                Some((Listener::tls(address, &tls).await?, token))
            }
            Some(Remote { address, tls: None, token }) => Some((Listener::tcp(address).await?, token)),
            None => None,
        };
        Ok(Self { invoke, all })
    }

    fn addresses(&self) -> Vec<String> {
        let all = self.all.as_ref().map(|(listener, _)| listener);
        self.invoke.iter().chain(all).map(Listener::address).collect()
    }
}

struct Until<'a> {
    args: &'a ServeArgs,
    console: Console,
    interrupts: &'a Interrupts,
    node: &'a Arc<Node>,
    manager: &'a ServiceManager,
}

impl Until<'_> {
    async fn a_signal(&self, socket: Listener, tcp: Tcp, keys: AccessKeys) -> Result<Signal, Failure> {
        let Self { args, console, interrupts, node, manager } = self;
        let stays = socket.stays();
        let told: Vec<String> = [socket.address()].into_iter().chain(tcp.addresses()).collect();
        let api = node.api(keys);
        let (stop, stopped) = watch::channel(false);
        let over = || {
            let mut stopped = stopped.clone();
            async move {
                let _ = stopped.wait_for(|stop| *stop).await;
            }
        };
        let mut servers = JoinSet::new();
        servers.spawn(control::serve(socket, Arc::clone(node), Arc::clone(&api), over()));
        if let Some(tcp) = tcp.invoke {
            servers.spawn(api::serve(tcp, Arc::clone(&api), over()));
        }
        if let Some((tcp, token)) = tcp.all {
            let (node, api, over) = (Arc::clone(node), Arc::clone(&api), over());
            servers.spawn(async move {
                match &token {
                    Some(token) => control::serve_guarded(tcp, node, api, token, over).await,
                    // Its client's certificate was its pass.
                    None => control::serve(tcp, node, api, over).await,
                }
            });
        }
        for address in told {
            let event = || with_event("serving", json!({ "address": address }));
            console.result(|| format!("serving on {address}"), event)?;
        }
        let _ = std::io::stdout().flush();
        manager.ready();
        let end = tokio::select! {
            signal = interrupts.first() => Ok(signal),
            Some(ended) = servers.join_next() => match ended {
                Ok(Err(error)) => Err(Failure::from(error)),
                // It ends when it is told to.
                _ => Ok(interrupts.first().await),
            },
        };
        if matches!(end, Ok(Signal::Terminate)) && !args.stop_instances {
            stays.store(true, Ordering::SeqCst);
        }
        stop.send_replace(true);
        let ended = async { while servers.join_next().await.is_some() {} };
        tokio::select! {
            () = ended => {}
            _ = interrupts.second() => {}
        }
        end
    }
}

/// The node's socket: that of the service manager, the one that a former node has left, or a new one; kept for the
/// next node where nobody else keeps it.
async fn listen(
    global: &Global,
    args: &ServeArgs,
    node: &Node,
    handed: Option<Listener>,
) -> Result<Listener, Failure> {
    let group = args.socket_group.map(|group| group.0);
    let path = match &args.socket {
        Some(path) => absolute(path)?,
        None => absolute(&global.run_dir)?.join(SOCKET_NAME),
    };
    let name = path.to_string_lossy();
    let left = node.inherited_socket(&name);
    if let Some(listener) = handed {
        // A keeper that is gone has none.
        let _ = node.runtime().release_socket(&name).await;
        return Ok(listener.for_group(group)?);
    }
    let left = left.and_then(|socket| Listener::inherited(&path, socket).ok());
    let listener = left.map_or_else(|| Listener::unix(&path), Ok)?.for_group(group)?;
    node.keep_socket(&name, &listener).await?;
    Ok(listener)
}
