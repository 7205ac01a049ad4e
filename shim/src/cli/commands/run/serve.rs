//! Invocations from sockets, until a signal comes or the function ends.

use std::process::ExitCode;
use std::sync::Arc;

use serde_json::json;
use skiff::proxy::{self, Listener};
use skiff::{Exit, Instance, Runtime, State};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Run;
use crate::cli::args::RunArgs;
use crate::cli::commands::absolute;
use crate::cli::console::with_event;
use crate::cli::failure::Failure;
use crate::cli::interrupt::Signal;

/// Name of the socket that a run makes where none is asked for.
const SOCKET_NAME: &str = "invoke.sock";

/// Where a run listens: the Unix socket first.
pub(super) struct Listeners(Vec<Listener>);

impl Listeners {
    /// Takes the addresses; connections wait until they are served.
    pub(super) async fn open(args: &RunArgs, runtime: &Runtime) -> Result<Self, Failure> {
        let path = match &args.socket {
            Some(path) => absolute(path)?,
            None => runtime.dir().join(SOCKET_NAME),
        };
        let mut listeners = vec![Listener::unix(path)?];
        if let Some(listen) = args.listen {
            listeners.push(Listener::tcp(listen.0).await?);
        }
        Ok(Self(listeners))
    }
}

/// Why serving came to its end.
enum End {
    Signal(Signal),
    /// The function ended by itself.
    Function(State),
    /// A listener failed.
    Listener(Failure),
}

impl Run<'_> {
    /// Tells where it listens, and passes requests on until the end. Running requests may end
    /// within the proxy's grace, unless a second signal comes.
    pub(super) async fn serve(
        &self,
        instance: &Arc<Instance>,
        listeners: Listeners,
    ) -> Result<ExitCode, Failure> {
        let addresses: Vec<String> = listeners.0.iter().map(Listener::address).collect();
        let (shutdown, mut servers) = spawn(listeners, instance);
        for address in &addresses {
            self.console.result(
                || format!("listening on {address}"),
                || with_event("listening", json!({ "address": address, "instance": instance.id() })),
            )?;
        }
        let end = tokio::select! {
            signal = self.interrupts.first() => End::Signal(signal),
            state = instance.wait() => End::Function(state),
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
        tokio::select! {
            () = ended(&mut servers) => {}
            _ = self.interrupts.second() => servers.shutdown().await,
        }
        match end {
            End::Signal(_) => Ok(ExitCode::SUCCESS),
            End::Function(state) => Err(Failure::ended(instance.id(), &how(state))),
            End::Listener(failure) => Err(failure),
        }
    }
}

type Servers = JoinSet<skiff::Result<()>>;

/// One task for each listener, all of which end when the sender says so.
fn spawn(listeners: Listeners, instance: &Arc<Instance>) -> (watch::Sender<bool>, Servers) {
    let (shutdown, told) = watch::channel(false);
    let mut servers = Servers::new();
    for listener in listeners.0 {
        let (instance, mut told) = (Arc::clone(instance), told.clone());
        servers.spawn(async move {
            let until = async move {
                // A sender that is gone says so too.
                let _ = told.wait_for(|shutdown| *shutdown).await;
            };
            proxy::serve(listener, instance, until).await
        });
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
fn how(state: State) -> String {
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
