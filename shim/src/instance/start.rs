//! From a configuration to a server that listens.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use futures_util::future::FutureExt as _;
use skiff_runtime::{Acceleration, Container, ContainerSpec, Network, OomPolicy, Runtime, breakpoint};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::activity::freeze_when_idle;
use super::failure::failed_start;
use super::guest::Guest;
use super::logs::{LogSink, LogStream, Logs, Source};
use super::readiness::{NotReady, first_connection};
use super::role::{self, Role};
use super::shared::{Shared, drive};
use super::{Instance, State, Ties, Timeline, callbacks, health, metrics};
use crate::function::Callback;
use crate::platform::{InstanceStep, StartCause};
use crate::proxy::pool::Pool;
use crate::{Credentials, Error, ErrorKind, FunctionConfig, Image, Result};

/// A container that is to become an instance.
pub(super) struct Launch {
    pub(super) id: Arc<str>,
    pub(super) config: Arc<FunctionConfig>,
    /// The start command with its arguments, for error texts.
    pub(super) command: Vec<String>,
    pub(super) started: Instant,
    /// What the function's role has.
    pub(super) role: Arc<Role>,
    /// What the platform makes of the image.
    pub(super) code_checksum: String,
    pub(super) ties: Ties,
    /// When its start began.
    pub(super) since: SystemTime,
}

/// Starts the container, then waits for its server.
pub(super) async fn start(
    runtime: &Runtime,
    image: &Image,
    config: &Arc<FunctionConfig>,
    sink: Arc<dyn LogSink>,
    ties: Ties,
) -> Result<Instance> {
    config.validate()?;
    if config.network == Network::Host {
        check_port(config.port())?;
    }
    let id: Arc<str> = config.platform.new_instance_id().into();
    let launch = Launch::new(id, config, command(config, image));
    let logs = launch.logs(sink);
    let mut launch = launch.with_role().await.map_err(|error| error.with_logs(&logs))?;
    launch.ties = ties;
    launch.code_checksum = config.platform.code_checksum(&image.digest);
    launch.tell(&logs, InstanceStep::Creating);
    let pulled = image.timings;
    launch.tell(&logs, InstanceStep::ImageReady(pulled.resolve + pulled.pull + pulled.unpack));
    let container = match runtime.start(image, launch.spec()).await {
        Ok(container) => container,
        Err(error) => {
            launch.tell(&logs, InstanceStep::CreateFailed(&error.to_string()));
            return Err(failed_start(&launch, error).with_logs(&logs));
        }
    };
    let timeline = Timeline::new(&image.timings, &container.timings());
    let output = container.take_output();
    launch.bring_up(Arc::new(container), output, timeline, logs).await
}

/// Takes a container over that another process started and whose server was ready then. It is not
/// initialized again.
pub(super) async fn adopt(
    container: Container,
    image: &Image,
    config: &Arc<FunctionConfig>,
    sink: Arc<dyn LogSink>,
    ties: Ties,
) -> Result<Instance> {
    let mut launch = Launch::new(container.id().into(), config, command(config, image)).with_role().await?;
    launch.code_checksum = config.platform.code_checksum(&image.digest);
    launch.since = SystemTime::now().checked_sub(container.age()).unwrap_or(launch.since);
    launch.ties = ties;
    let logs = launch.logs(sink);
    // It may be frozen.
    container.thaw()?;
    let output = container.take_output();
    let guest: Arc<dyn Guest> = Arc::new(container);
    let pool = launch.reach(&guest, output, &logs).await?;
    let shared = launch.share(guest, pool, logs, Timeline::default());
    shared.cold.store(false, Ordering::Relaxed);
    shared.enter(State::Ready);
    Ok(Instance::of(shared))
}

/// In the host's own network another program may have the port, and would be taken for the
/// function's server.
fn check_port(port: u16) -> Result<()> {
    for any in [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()] {
        let used = TcpListener::bind((any, port)).is_err_and(|e| e.kind() == std::io::ErrorKind::AddrInUse);
        if used {
            let message =
                format!("port {port} of this host, where the function's server would listen, is in use");
            return Err(Error::new(ErrorKind::AddressInUse, message)
                .advise("stop what listens there, let the server listen on another port, or give it a network of its own"));
        }
    }
    Ok(())
}

impl Launch {
    pub(super) fn new(id: Arc<str>, config: &Arc<FunctionConfig>, command: Vec<String>) -> Self {
        Self {
            id,
            config: Arc::clone(config),
            command,
            started: Instant::now(),
            since: SystemTime::now(),
            role: Arc::default(),
            code_checksum: String::new(),
            ties: Ties::default(),
        }
    }

    /// Asks for what the function's role has. The time that this takes is the start's.
    pub(super) async fn with_role(mut self) -> Result<Self> {
        match Role::obtain(&self.config).await {
            Ok(role) => {
                self.role = Arc::new(role);
                Ok(self)
            }
            Err(why) => {
                let message = format!(
                    "the credentials of the role of function {} are not there: {why}",
                    self.config.name
                );
                let error = Error::new(ErrorKind::StartFailed, message.clone())
                    .advise("look at their file (its owner's alone: chmod 600) or service, or run the function without a role");
                let failure = self.failure(StartCause::Internal(message), Vec::new(), None);
                Err(error.with_start(self.config.platform, failure))
            }
        }
    }

    pub(super) fn spec(&self) -> ContainerSpec {
        ContainerSpec {
            label: self.ties.label.clone(),
            ..spec(&self.config, &self.id, self.role.current().as_deref())
        }
    }

    /// The logs of the instance that it is to become.
    pub(super) fn logs(&self, sink: Arc<dyn LogSink>) -> Arc<Logs> {
        Arc::new(Logs::new(Arc::clone(&self.id), self.config.platform.limits().log_line_bytes, sink))
    }

    pub(super) fn tell(&self, logs: &Logs, step: InstanceStep<'_>) {
        tell(&self.config, &self.id, logs, step);
    }

    /// Follows the output, and waits until the server can be connected to.
    async fn reach<R: Source>(
        &self,
        guest: &Arc<dyn Guest>,
        output: Option<(R, R)>,
        logs: &Arc<Logs>,
    ) -> Result<Arc<Pool>> {
        if let Some((stdout, stderr)) = output {
            logs.follow(LogStream::Stdout, stdout);
            logs.follow(LogStream::Stderr, stderr);
        }
        let (port, deadline) = (self.config.port(), self.started + self.config.start_deadline());
        match first_connection(&**guest, port, deadline).await {
            Ok(stream) => {
                let pool = Pool::new(Arc::clone(guest), port);
                pool.keep(stream).await;
                Ok(pool)
            }
            Err(reason) => Err(self.give_up(&**guest, logs, reason).await),
        }
    }

    /// Follows the output, waits for the server, and prepares it for its first invocation.
    pub(super) async fn bring_up<R: Source>(
        self,
        guest: Arc<dyn Guest>,
        output: Option<(R, R)>,
        mut timeline: Timeline,
        logs: Arc<Logs>,
    ) -> Result<Instance> {
        let begun = Instant::now();
        let pool = self.reach(&guest, output, &logs).await?;
        timeline.listen = begun.elapsed();
        breakpoint::reach("daemon-connected");
        guest.ready();
        self.tell(&logs, InstanceStep::ServerReady(self.started.elapsed()));
        let shared = self.share(guest, pool, logs, timeline);
        if let Err(reason) = prepare(&shared).await {
            return Err(self.give_up(&*shared.guest, &shared.logs, reason).await);
        }
        shared.enter(State::Ready);
        let whole = timeline.resolve + timeline.pull + timeline.unpack + self.started.elapsed();
        shared.tell(InstanceStep::Created(whole));
        Ok(Instance::of(shared))
    }

    fn share(
        &self,
        guest: Arc<dyn Guest>,
        pool: Arc<Pool>,
        logs: Arc<Logs>,
        timeline: Timeline,
    ) -> Arc<Shared> {
        Arc::new(Shared {
            id: Arc::clone(&self.id),
            config: Arc::clone(&self.config),
            guest,
            pool,
            logs,
            code_checksum: self.code_checksum.clone(),
            state: watch::Sender::new(State::Starting),
            timeline,
            cold: AtomicBool::new(true),
            provisioned: AtomicBool::new(false),
            activity: Arc::default(),
            healthy: AtomicBool::new(true),
            condemned: AtomicBool::new(false),
            role: Arc::clone(&self.role),
            since: self.since,
            tap: self.ties.tap.clone(),
            tracer: self.ties.tracer.clone(),
            busy: Mutex::default(),
        })
    }
}

/// Adds the platform's event of a step to the logs.
pub(super) fn tell(config: &FunctionConfig, id: &str, logs: &Logs, step: InstanceStep<'_>) {
    if let Some(event) = config.platform.instance_event(config, id, step) {
        logs.event(&event);
    }
}

/// What comes between a server that listens and the first invocation.
async fn prepare(shared: &Arc<Shared>) -> std::result::Result<(), NotReady> {
    let callbacks = async {
        let begun = Instant::now();
        callbacks::call(shared, Callback::Initializer).await.map_err(NotReady::Initializer)?;
        if shared.config.callbacks.initializer.is_some() {
            shared.tell(InstanceStep::Initialized(begun.elapsed()));
        }
        match &shared.config.health_check {
            Some(check) => health::first(shared, check).await.map_err(NotReady::Unhealthy),
            None => Ok(()),
        }
    };
    tokio::select! {
        biased;
        exit = shared.guest.wait() => Err(NotReady::ended(exit)),
        // The news of an end may come between one look and the other.
        done = callbacks => match shared.guest.wait().now_or_never() {
            Some(exit) if done.is_err() => Err(NotReady::ended(exit)),
            _ => done,
        },
    }
}

/// Starts what goes on beside an instance's invocations.
pub(super) fn tend(shared: &Arc<Shared>) -> Vec<JoinHandle<()>> {
    let mut tasks = vec![tokio::spawn(drive(Arc::clone(&shared.guest), Arc::downgrade(shared)))];
    if shared.config.freeze {
        tasks.push(tokio::spawn(freeze_when_idle(Arc::downgrade(shared))));
    }
    if shared.config.role.is_some() {
        tasks.push(tokio::spawn(role::refresh(Arc::downgrade(shared))));
    }
    if let Some(period) = shared.config.metrics_period {
        tasks.push(tokio::spawn(metrics::tell(Arc::downgrade(shared), period)));
    }
    if let Some(check) = shared.config.health_check.clone() {
        tasks.push(tokio::spawn(health::watch(Arc::downgrade(shared), check)));
    }
    tasks
}

pub(super) fn spec(config: &FunctionConfig, id: &str, role: Option<&Credentials>) -> ContainerSpec {
    let limits = config.platform.limits();
    let mut env = config.env.clone();
    env.extend(config.platform.environment(config, id, role));
    ContainerSpec {
        id: id.to_owned(),
        hostname: id.to_owned(),
        entrypoint: config.entrypoint.clone(),
        cmd: config.cmd.clone(),
        env,
        user: config.user.clone(),
        userns: config.userns,
        working_dir: config.working_dir.clone(),
        memory_bytes: u64::from(config.memory_mib) * 1024 * 1024,
        cpu_millis: config.cpu_millis,
        cpu_weight: 0,
        pids: config.pids.unwrap_or(limits.pids),
        oom: OomPolicy::KillContainer,
        nofile: limits.nofile,
        writable: config.writable,
        writable_bytes: config.writable_bytes,
        writable_inodes: config.writable_inodes,
        tmp_bytes: config.tmp_bytes,
        tmp_inodes: config.tmp_inodes,
        read_only: config.read_only,
        network: config.network,
        address: config.platform.new_address(),
        deadline: config.start_deadline(),
        acceleration: if config.acceleration { Acceleration::On } else { Acceleration::Off },
        ..ContainerSpec::default()
    }
}

/// The command that will run: an own entrypoint makes the image's cmd unused.
pub(super) fn command(config: &FunctionConfig, image: &Image) -> Vec<String> {
    let (entrypoint, of_image) = match &config.entrypoint {
        Some(entrypoint) => (entrypoint, [].as_slice()),
        None => (&image.config.entrypoint, image.config.cmd.as_slice()),
    };
    let cmd = config.cmd.as_deref().unwrap_or(of_image);
    entrypoint.iter().chain(cmd).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_of_the_host_that_is_in_use_is_told() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let error = check_port(port).expect_err("in use");
        assert_eq!(error.kind(), ErrorKind::AddressInUse);
        assert!(error.to_string().contains(&port.to_string()), "{error}");
        drop(listener);
        check_port(port).expect("free again");
    }
}
