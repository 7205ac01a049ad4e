//! Options of the commands about a node.

#[cfg(feature = "otel")]
use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use skiff::node::{LogFiles, NodeLimits, Scaling};
#[cfg(feature = "otel")]
use skiff::telemetry::TraceExport;

use super::{ApiArgs, AsyncArgs, NetworkArgs, RemoteArgs, SourceArgs};
use crate::cli::values::{Age, DiskSize, Group, Listen, Memory, Since, Time};

/// Options of `skiff serve`.
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Serve control API and invoke APIs on this Unix socket [default: skiff.sock in the run directory].
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// A directory with a socket for each function, where plain HTTP requests are passed on to it
    /// [default: functions in the run directory].
    #[arg(long, value_name = "DIR")]
    pub(crate) sockets: Option<PathBuf>,
    /// Let the members of this group use all these sockets too: a name, or a number.
    #[arg(long, value_name = "GROUP", env = "SKIFF_SOCKET_GROUP", hide_env_values = true)]
    pub(crate) socket_group: Option<Group>,
    /// Put the instances' cgroups below this one, as /proc/PID/cgroup names it
    /// [default: the service's own where systemd delegates it, else /skiff].
    #[arg(long, value_name = "CGROUP", env = "SKIFF_CGROUP_PARENT", hide_env_values = true)]
    pub(crate) cgroup_parent: Option<PathBuf>,
    /// How many containers are made ready ahead of first calls, without image and command; 0.7 MiB each
    /// (cgroup version 1).
    #[arg(long, value_name = "COUNT", default_value_t = 4)]
    #[arg(value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(0..=64))]
    pub(crate) container_pool: usize,
    /// Stop all instances at SIGTERM too, instead of leaving them to the next `skiff serve`.
    #[arg(long)]
    pub(crate) stop_instances: bool,
    /// Keep no records of invocations and pulls for billing (`skiff usage`).
    #[arg(long)]
    pub(crate) no_metering: bool,
    #[command(flatten)]
    pub(crate) source: SourceArgs,
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
    #[command(flatten)]
    pub(crate) limits: NodeLimitArgs,
    #[command(flatten)]
    pub(crate) logs: NodeLogArgs,
    #[command(flatten)]
    pub(crate) api: NodeApiArgs,
    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
    #[cfg(feature = "otel")]
    #[command(flatten)]
    pub(crate) traces: SpanArgs,
}

/// Where spans of invocations go.
#[cfg(feature = "otel")]
#[derive(Debug, Args)]
#[command(next_help_heading = "Traces")]
pub(crate) struct SpanArgs {
    /// Export a span of each invocation to this OpenTelemetry collector, by OTLP over HTTP: its base address,
    /// such as http://localhost:4318 [default: what OTEL_EXPORTER_OTLP_ENDPOINT says, else none].
    #[arg(long, value_name = "URL")]
    pub(crate) otlp_endpoint: Option<String>,
}

#[cfg(feature = "otel")]
impl SpanArgs {
    /// What exports them, where anything tells to; `variable` reads the environment.
    pub(crate) fn export(
        &self,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> skiff::Result<Option<TraceExport>> {
        let is = |name: &str, value: &str| variable(name).is_some_and(|is| is.eq_ignore_ascii_case(value));
        let told = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"]
            .iter()
            .any(|name| variable(name).is_some_and(|address| !address.is_empty()));
        let off = is("OTEL_SDK_DISABLED", "true") || is("OTEL_TRACES_EXPORTER", "none");
        match &self.otlp_endpoint {
            Some(endpoint) => TraceExport::otlp(Some(endpoint)).map(Some),
            None if told && !off => TraceExport::otlp(None).map(Some),
            None => Ok(None),
        }
    }
}

/// What the functions of a node have together.
#[derive(Debug, Args)]
#[command(next_help_heading = "Limits")]
pub(crate) struct NodeLimitArgs {
    /// Instances of all functions at once [default: no limit].
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_instances: Option<u32>,
    /// What the memory sizes of all instances may come to [default: no limit].
    #[arg(long, value_name = "SIZE")]
    pub(crate) max_memory: Option<Memory>,
    /// Stop idle instances, least recently used first, while the host has less memory available
    /// [default: none].
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory_reserve: Option<Memory>,
}

impl NodeLimitArgs {
    pub(crate) fn limits(&self) -> NodeLimits {
        let mib = |size: Memory| u64::from(size.mib);
        NodeLimits {
            max_instances: self.max_instances.map(|count| usize::try_from(count).unwrap_or(usize::MAX)),
            memory_mib: self.max_memory.map(mib),
            reserve_mib: self.memory_reserve.map(mib),
        }
    }
}

/// Where the functions of a node log to.
#[derive(Debug, Args)]
#[command(next_help_heading = "Logs")]
pub(crate) struct NodeLogArgs {
    /// Where what functions and their platforms write goes.
    #[arg(long, value_name = "WHERE", value_enum, default_value_t = LogTo::Files)]
    pub(crate) log_to: LogTo,
    /// Size of a file of logs, 1MiB to 64GiB; a function has several.
    #[arg(long, value_name = "SIZE", default_value = "8MiB")]
    pub(crate) log_size: DiskSize,
    /// Files of each function, 2 to 1000; the oldest goes when there is one too many.
    #[arg(long, value_name = "COUNT", default_value_t = 4, value_parser = clap::value_parser!(u32).range(2..=1000))]
    pub(crate) log_files: u32,
}

impl NodeLogArgs {
    pub(crate) fn files(&self) -> LogFiles {
        let files = usize::try_from(self.log_files).unwrap_or(usize::MAX);
        LogFiles { bytes: self.log_size.0, files }
    }
}

/// Where log lines go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogTo {
    /// Into files below the state directory, for `skiff logs`.
    Files,
    /// To the standard output, a JSON object in each line.
    Stdout,
    /// To the standard output with levels, as systemd's journal reads them.
    Journal,
}

/// Options of `skiff top`.
#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    /// How often a terminal's table is made anew.
    #[arg(long, value_name = "TIME", default_value = "2s")]
    pub(crate) interval: Time,
    /// Functions at most.
    #[arg(long, value_name = "COUNT", default_value_t = 20)]
    pub(crate) rows: usize,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
}

/// Options of `skiff logs`.
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    #[command(flatten)]
    pub(crate) function: FunctionNameArgs,
    /// Go on with the lines that come, until the function is deleted.
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// None that are older: 10m, or 2026-01-01T12:00:00Z.
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<Since>,
    /// Those of this request only.
    #[arg(long, value_name = "ID")]
    pub(crate) request: Option<String>,
    /// The time of each line before it.
    #[arg(long, short)]
    pub(crate) times: bool,
}

/// The invoke APIs of a node.
#[derive(Debug, Args)]
#[command(next_help_heading = "Invoke API")]
pub(crate) struct NodeApiArgs {
    /// Serve the invoke APIs, and nothing else, on a TCP address too: IP:PORT, or PORT on 127.0.0.1.
    #[arg(long, value_name = "ADDR")]
    pub(crate) api_listen: Option<Listen>,
    /// Check the callers' signatures against the access keys in this file: in each line an id, a
    /// space and its secret. Without it, any signature will do.
    #[arg(long, value_name = "FILE")]
    pub(crate) api_keys: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) asynchronous: AsyncArgs,
}

impl NodeApiArgs {
    pub(crate) fn as_api(&self) -> ApiArgs {
        ApiArgs {
            api_socket: None,
            api_listen: self.api_listen,
            api_keys: self.api_keys.clone(),
            asynchronous: self.asynchronous.clone(),
        }
    }
}

/// Where the node is.
#[derive(Debug, Args)]
pub(crate) struct NodeArgs {
    /// The node's socket [default: skiff.sock in the run directory].
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
}

/// Options of `skiff trace`.
#[derive(Debug, Args)]
pub(crate) struct TraceArgs {
    /// The request's id, as the answer's headers and the log tell it.
    pub(crate) request: String,
    /// Draw it into this file too, as a picture (SVG).
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
}

/// Options of `skiff usage`.
#[derive(Debug, Args)]
pub(crate) struct UsageArgs {
    /// Only what ended so long ago or less, such as 12h or 30d.
    #[arg(long, value_name = "AGE")]
    pub(crate) since: Option<Age>,
    /// Only functions of this name.
    #[arg(long, value_name = "NAME")]
    pub(crate) function: Option<String>,
    /// Only those of this scf namespace or fc 2.0 service.
    #[arg(long, value_name = "NAME")]
    pub(crate) namespace: Option<String>,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
}

/// Options of `skiff deploy`.
#[derive(Debug, Args)]
pub(crate) struct DeployArgs {
    /// The function: Skiff's own (.toml, .json), an s.yaml of Serverless Devs, or Tencent's function
    /// configuration (.json).
    pub(crate) file: PathBuf,
    /// Which function of an s.yaml that has several.
    #[arg(long, value_name = "NAME")]
    pub(crate) service: Option<String>,
    /// Instances at once, 1 to 1000.
    #[arg(long, value_name = "COUNT", default_value_t = Scaling::default().max_instances)]
    pub(crate) max_instances: u32,
    /// Instances that are there without a call.
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    pub(crate) provisioned: u32,
    /// Stop an instance that has had no invocation for so long.
    #[arg(long, value_name = "TIME", default_value = "5m")]
    pub(crate) idle_timeout: Time,
    /// What the memory sizes of its instances may come to [default: no limit].
    #[arg(long, value_name = "SIZE")]
    pub(crate) max_memory: Option<Memory>,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
}

impl DeployArgs {
    pub(crate) fn scaling(&self) -> Scaling {
        Scaling {
            max_instances: self.max_instances,
            provisioned: self.provisioned,
            // Less than a second is what one can be.
            idle_s: self.idle_timeout.0.as_secs().max(1),
            max_memory_mib: self.max_memory.map(|size| size.mib),
        }
    }
}

/// Options of commands about one function.
#[derive(Debug, Args)]
pub(crate) struct FunctionNameArgs {
    /// The function's name.
    pub(crate) name: String,
    /// Its scf namespace or fc 2.0 service, where several have a function of that name.
    #[arg(long, value_name = "NAME")]
    pub(crate) namespace: Option<String>,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
}
