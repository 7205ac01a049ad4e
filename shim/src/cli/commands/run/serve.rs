//! Invocations from sockets, until a signal comes or the function ends.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use serde_json::json;
use skiff::api::{self, Api, ApiOptions, Function, One};
use skiff::proxy::Listener;
use skiff::{Exit, Mode, Runtime, State};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Run;
use crate::cli::args::RunArgs;
use crate::cli::commands::absolute;
use crate::cli::console::with_event;
use crate::cli::failure::Failure;
use crate::cli::interrupt::Signal;
use crate::cli::values::Listen;

/// Name of the socket that a run makes where none is asked for.
const SOCKET_NAME: &str = "invoke.sock";

/// And the one of the invoke API.
const API_SOCKET_NAME: &str = "api.sock";

/// Where a run listens: Unix sockets first.
pub(super) struct Listeners {
    /// For requests that are passed on.
    requests: Vec<Listener>,
    /// For the invoke API.
    api: Vec<Listener>,
}

impl Listeners {
    /// Takes the addresses; connections wait until they are served.
    pub(super) async fn open(args: &RunArgs, runtime: &Runtime, mode: Mode) -> Result<Self, Failure> {
        let open = async |socket: &Option<PathBuf>, name: &str, listen: Option<Listen>| {
            let path = match socket {
                Some(path) => absolute(path)?,
                None => runtime.dir().join(name),
            };
            let mut listeners = vec![Listener::unix(path)?];
            if let Some(listen) = listen {
                listeners.push(Listener::tcp(listen.0).await?);
            }
            Ok::<_, Failure>(listeners)
        };
        // What has no server takes no requests.
        if mode == Mode::Job && (args.socket.is_some() || args.listen.is_some()) {
            return Err(Failure::usage("a job has no server to pass requests on to")
                .advise("give --api-socket and --api-listen for its events, or --event for one"));
        }
        let requests = match mode {
            Mode::Job => Vec::new(),
            _ => open(&args.socket, SOCKET_NAME, args.listen).await?,
        };
        Ok(Self { requests, api: open(&args.api.api_socket, API_SOCKET_NAME, args.api.api_listen).await? })
    }

    /// What is told of each: words, event, address.
    fn told(&self) -> Vec<(&'static str, &'static str, String)> {
        let requests = self.requests.iter().map(|at| ("listening", "listening", at.address()));
        let api = self.api.iter().map(|at| ("invoke API", "api_listening", at.address()));
        requests.chain(api).collect()
    }
}

/// Why serving came to its end.
enum End {
    Signal(Signal),
    /// The function ended by itself.
    Function(Arc<str>, State),
    /// A listener failed.
    Listener(Failure),
}

impl Run<'_> {
    /// Tells where it listens, and passes requests on until the end, which `over` may bring. Running
    /// requests may end within the proxy's grace, unless a second signal comes.
    pub(super) async fn serve(
        &self,
        function: Arc<dyn Function>,
        instance: Option<&str>,
        over: impl Future<Output = (Arc<str>, State)>,
        listeners: Listeners,
        options: ApiOptions,
    ) -> Result<ExitCode, Failure> {
        let told = listeners.told();
        let api = Api::new(Arc::new(One::new(Arc::clone(&function))), options);
        let (shutdown, mut servers) = spawn(listeners, &function, &api);
        for (words, event, address) in &told {
            self.console.result(
                || format!("{words} on {address}"),
                || with_event(event, json!({ "address": address, "instance": instance })),
            )?;
        }
        let end = tokio::select! {
            signal = self.interrupts.first() => End::Signal(signal),
            (id, state) = over => End::Function(id, state),
            failure = failed(&mut servers) => End::Listener(failure),
        };
        if let End::Signal(signal) = &end {
            self.console.note(
                "stopping",
                || format!("{}: running requests may end; a second signal ends them", signal.name()),
                || json!({ "signal": signal.name() }),
            );
        }
        shutdown.send_replace(true);
        let over = async {
            ended(&mut servers).await;
            api.close().await;
        };
        tokio::select! {
            () = over => {}
            _ = self.interrupts.second() => {}
        }
        servers.shutdown().await;
        match end {
            End::Signal(_) => Ok(ExitCode::SUCCESS),
            End::Function(id, state) => Err(Failure::ended(&id, &how(state))),
            End::Listener(failure) => Err(failure),
        }
    }
}

type Servers = JoinSet<skiff::Result<()>>;

/// One task for each listener, all of which end when the sender says so.
fn spawn(
    listeners: Listeners,
    function: &Arc<dyn Function>,
    api: &Arc<Api>,
) -> (watch::Sender<bool>, Servers) {
    let (shutdown, told) = watch::channel(false);
    let mut servers = Servers::new();
    let until = || {
        let mut told = told.clone();
        async move {
            // A sender that is gone says so too.
            let _ = told.wait_for(|shutdown| *shutdown).await;
        }
    };
    for listener in listeners.requests {
        servers.spawn(api::serve_requests(listener, api.async_calls(), Arc::clone(function), until()));
    }
    for listener in listeners.api {
        servers.spawn(api::serve(listener, Arc::clone(api), until()));
    }
    (shutdown, servers)
}

/// Waits until a server has failed; one that ends otherwise before it was told to is none.
async fn failed(servers: &mut Servers) -> Failure {
    while let Some(ended) = servers.join_next().await {
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return error.into(),
            Err(error) => return Failure::host("serving a listener", &error),
        }
    }
    std::future::pending().await
}

async fn ended(servers: &mut Servers) {
    while servers.join_next().await.is_some() {}
}

/// How an instance ended, in words.
pub(super) fn how(state: State) -> String {
    let State::Ended(exit) = state else { return "it is gone".into() };
    match exit {
        Exit { oom_killed: true, .. } => "killed for want of memory; give it more by --memory".into(),
        Exit { code: Some(code), .. } => format!("exit code {code}"),
        Exit { signal: Some(signal), .. } => format!("killed by signal {signal}"),
        Exit { .. } => "it is gone".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(code: Option<i32>, signal: Option<i32>, oom_killed: bool) -> String {
        how(State::Ended(Exit { code, signal, oom_killed }))
    }

    #[test]
    fn every_end_has_words() {
        assert_eq!(told(Some(3), None, false), "exit code 3");
        assert_eq!(told(None, Some(9), false), "killed by signal 9");
        assert!(told(None, Some(9), true).starts_with("killed for want of memory"));
        assert_eq!(told(None, None, false), "it is gone");
        assert_eq!(how(State::Failed), "it is gone");
    }
}
