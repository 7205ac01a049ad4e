//! The arguments as they are written.

mod api;
mod exec;
mod function;
mod help;
mod help_node;
mod images;
mod lifecycle;
mod network;
mod node;
mod pool;
mod remote;
mod source;

use std::ffi::OsStr;
use std::path::PathBuf;

pub(crate) use api::{ApiArgs, AsyncArgs};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
pub(crate) use exec::ExecArgs;
pub(crate) use function::FunctionArgs;
use function::{platform_parser, replace};
pub(crate) use images::{GcArgs, ImageCommand, ImagesArgs, ImportArgs, PullWhen, RmiArgs, VerifyArgs};
pub(crate) use network::NetworkArgs;
pub(crate) use node::{
    DeployArgs, FunctionNameArgs, LogTo, LogsArgs, NodeArgs, ServeArgs, TopArgs, TraceArgs, UsageArgs,
};
pub(crate) use pool::PoolArgs;
pub(crate) use remote::{Remote, RemoteArgs};
pub(crate) use source::{SourceArgs, source};

use super::values::{EventSource, Listen, TriggerArg};

/// Runs custom-container functions on this host as Alibaba FC and Tencent SCF run them.
#[derive(Debug, Parser)]
#[command(name = "skiff", version, after_help = help::SKIFF, after_long_help = help::SKIFF_LONG)]
#[command(max_term_width = 100, subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Cli {
    /// The arguments of this process. A variable that is empty is not set.
    ///
    /// # Errors
    /// Help and version, and what cannot be parsed.
    pub(crate) fn read() -> Result<Self, clap::Error> {
        let mut matches = without_empty(Self::command()).try_get_matches()?;
        Self::from_arg_matches_mut(&mut matches)
    }
}

/// Takes the variables that are empty from the options that they stand for.
fn without_empty(command: clap::Command) -> clap::Command {
    let is_empty = |name: &OsStr| std::env::var_os(name).is_some_and(|value| value.is_empty());
    command
        .mut_args(|arg| if arg.get_env().is_some_and(is_empty) { arg.env(None::<&str>) } else { arg })
        .mut_subcommands(without_empty)
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a function from an image and serve invocations, or answer one event.
    #[command(after_help = help::RUN, after_long_help = help::RUN_LONG)]
    Run(Box<RunArgs>),
    /// Serve deployed functions, and what is deployed while it runs.
    #[command(after_help = help_node::SERVE, after_long_help = help_node::SERVE_LONG)]
    Serve(Box<ServeArgs>),
    /// Stop the instances that a node has left running.
    #[command(after_help = help_node::STOP, after_long_help = help_node::STOP_LONG)]
    Stop,
    /// Deploy a function on the node of this host, or a new revision of it.
    #[command(after_help = help_node::DEPLOY, after_long_help = help_node::DEPLOY_LONG)]
    Deploy(DeployArgs),
    /// List the functions that are deployed.
    #[command(after_help = help_node::FUNCTIONS, after_long_help = help_node::FUNCTIONS_LONG)]
    Functions(NodeArgs),
    /// Tell all about a deployed function.
    #[command(after_help = help_node::GET, after_long_help = help_node::GET_LONG)]
    Get(FunctionNameArgs),
    /// Take a deployed function away.
    #[command(after_help = help_node::DELETE, after_long_help = help_node::DELETE_LONG)]
    Delete(FunctionNameArgs),
    /// Show what a deployed function and its platform wrote.
    #[command(after_help = help_node::LOGS, after_long_help = help_node::LOGS_LONG)]
    Logs(LogsArgs),
    /// List the instances of a node.
    #[command(after_help = help_node::PS, after_long_help = help_node::PS_LONG)]
    Ps(NodeArgs),
    /// Show what functions use; on a terminal, again and again.
    #[command(after_help = help_node::TOP, after_long_help = help_node::TOP_LONG)]
    Top(TopArgs),
    /// Tell what happens to functions from now on.
    #[command(after_help = help_node::EVENTS, after_long_help = help_node::EVENTS_LONG)]
    Events(NodeArgs),
    /// Draw what one invocation took, step by step.
    #[command(after_help = help_node::TRACE, after_long_help = help_node::TRACE_LONG)]
    Trace(TraceArgs),
    /// Tell what deployed functions have used, as their platforms bill it.
    #[command(after_help = help_node::USAGE, after_long_help = help_node::USAGE_LONG)]
    Usage(UsageArgs),
    /// Run a command in an instance that runs, as its own processes run.
    #[command(after_help = help::EXEC, after_long_help = help::EXEC_LONG)]
    Exec(ExecArgs),
    /// Bring an image into the store and exit.
    #[command(after_help = help::PULL, after_long_help = help::PULL_LONG)]
    Pull(Box<PullArgs>),
    /// List the images that are here.
    #[command(after_help = help::IMAGES, after_long_help = help::IMAGES_LONG)]
    Images(ImagesArgs),
    /// Remove images, and the layers that no other image has.
    #[command(after_help = help::RMI, after_long_help = help::RMI_LONG)]
    Rmi(RmiArgs),
    /// Remove what is not needed of the images that are here.
    #[command(after_help = help::GC, after_long_help = help::GC_LONG)]
    Gc(GcArgs),
    /// Work with the images that are here.
    #[command(after_help = help::IMAGE, subcommand_required = true, arg_required_else_help = true)]
    Image {
        #[command(subcommand)]
        command: ImageCommand,
    },
    /// Tell what this host has and lacks of what Skiff needs.
    #[command(after_help = help::DOCTOR, after_long_help = help::DOCTOR_LONG)]
    Doctor,
    /// Write a completion script for a shell to the standard output.
    #[command(after_help = help::COMPLETIONS)]
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Write the manual pages of all commands into a directory.
    #[command(hide = true)]
    Man {
        /// The directory; made if missing.
        dir: PathBuf,
    },
}

/// Options of every command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Where images are kept.
    #[arg(long, global = true, value_name = "DIR", env = "SKIFF_STATE_DIR", hide_env_values = true)]
    #[arg(default_value = "/var/lib/skiff")]
    pub(crate) state_dir: PathBuf,
    /// Where sockets and locks of what runs are kept.
    #[arg(long, global = true, value_name = "DIR", env = "SKIFF_RUN_DIR", hide_env_values = true)]
    #[arg(default_value = "/run/skiff")]
    pub(crate) run_dir: PathBuf,
    /// The skiff-keeper program [default: beside skiff, then in PATH].
    #[arg(long, global = true, value_name = "PATH", env = "SKIFF_KEEPER", hide_env_values = true)]
    pub(crate) keeper: Option<PathBuf>,
    /// How much Skiff tells of its own work on the standard error.
    #[arg(long, global = true, value_name = "LEVEL", env = "SKIFF_LOG_LEVEL", hide_env_values = true)]
    #[arg(value_enum, default_value_t = LogLevel::Warn)]
    pub(crate) log_level: LogLevel,
    /// Text for people, or JSON lines for programs.
    #[arg(long, global = true, value_name = "FORMAT", env = "SKIFF_OUTPUT", hide_env_values = true)]
    #[arg(value_enum, default_value_t = Output::Text)]
    pub(crate) output: Output,
    /// No progress and no timeline; results, errors and the function's own output only.
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
    /// Colours; `auto` is on a terminal, unless NO_COLOR is set.
    #[arg(long, global = true, value_name = "WHEN", value_enum, default_value_t = Color::Auto)]
    pub(crate) color: Color,
}

/// Options of `skiff run`.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// [REGISTRY/]REPOSITORY[:TAG][@DIGEST], oci:DIR[:TAG], oci-archive:FILE[:TAG] or
    /// docker-archive:FILE[:TAG]; instead of the one that a file names.
    #[arg(required_unless_present = "file")]
    pub(crate) image: Option<String>,
    /// Read the function from a file: Skiff's own (.toml, .json), an s.yaml of Serverless Devs, or
    /// Tencent's function configuration (.json). Options here go before what it says.
    #[arg(long, short, value_name = "FILE", help_heading = "Function")]
    pub(crate) file: Option<PathBuf>,
    /// Which function of an s.yaml that has several.
    #[arg(long, value_name = "NAME", help_heading = "Function", requires = "file")]
    pub(crate) service: Option<String>,
    #[command(flatten)]
    pub(crate) source: SourceArgs,
    /// When to ask the registry what the image is.
    #[arg(long, value_name = "WHEN", value_enum, default_value_t, help_heading = "Image")]
    pub(crate) pull: PullWhen,
    #[command(flatten)]
    pub(crate) function: FunctionArgs,
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
    /// Serve on this Unix socket instead of one below the run directory.
    #[arg(long, value_name = "PATH", help_heading = "Invocation")]
    pub(crate) socket: Option<PathBuf>,
    /// Serve on a TCP address too: IP:PORT, or PORT on 127.0.0.1.
    #[arg(long, value_name = "ADDR", help_heading = "Invocation")]
    pub(crate) listen: Option<Listen>,
    /// Answer this one event and exit: a text, - for the standard input, or @FILE.
    #[arg(long, value_name = "EVENT", help_heading = "Invocation")]
    #[arg(conflicts_with_all = ["socket", "listen", "AsyncArgs"])]
    #[arg(allow_hyphen_values = true)]
    pub(crate) event: Option<EventSource>,
    /// Make the event that of a timer which goes off now, with the text of --event as its message:
    /// timer, or timer:NAME (scf).
    #[arg(long, value_name = "TRIGGER", help_heading = "Invocation", requires = "event")]
    pub(crate) trigger: Option<TriggerArg>,
    #[command(flatten)]
    pub(crate) pool: PoolArgs,
    #[command(flatten)]
    pub(crate) api: ApiArgs,
    /// Arguments that replace the image's cmd.
    #[arg(last = true, value_name = "ARGS", help_heading = None)]
    pub(crate) args: Vec<String>,
}

/// Options of `skiff pull`.
#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// [REGISTRY/]REPOSITORY[:TAG][@DIGEST], oci:DIR[:TAG], oci-archive:FILE[:TAG] or
    /// docker-archive:FILE[:TAG].
    pub(crate) image: String,
    #[command(flatten)]
    pub(crate) source: SourceArgs,
    /// Hold the image to this platform's limits too: fc, fc2 or scf.
    #[arg(long, help_heading = "Image", env = "SKIFF_PLATFORM", hide_env_values = true)]
    #[arg(value_parser = platform_parser(), hide_possible_values = true)]
    pub(crate) platform: Option<&'static dyn skiff::Platform>,
    /// Then run the image's command once, without network, to record what a start of it touches
    /// (image acceleration; used by run --accelerate).
    #[arg(long, help_heading = "Image")]
    pub(crate) prepare: bool,
}

/// The form of what is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Text,
    Json,
}

impl Output {
    /// The value that asks for JSON.
    pub(crate) const JSON: &'static str = "json";
}

/// When to colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    Auto,
    Always,
    Never,
}

/// How much is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum LogLevel {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("skiff").chain(args.split_whitespace()))
    }

    fn run(args: &str) -> RunArgs {
        match parse(&format!("run {args}")).expect("arguments").command {
            Command::Run(args) => *args,
            other => panic!("not run: {other:?}"),
        }
    }

    #[test]
    fn the_command_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_tells_of_exit_codes() {
        for name in [
            "run",
            "serve",
            "stop",
            "deploy",
            "functions",
            "get",
            "delete",
            "logs",
            "ps",
            "top",
            "events",
            "exec",
            "pull",
            "images",
            "rmi",
            "gc",
            "image",
            "doctor",
        ] {
            let mut command = Cli::command();
            let help = command.find_subcommand_mut(name).expect(name).render_long_help().to_string();
            assert!(help.contains("Exit codes:") && help.contains("Examples:"), "{name}");
        }
    }

    #[test]
    fn global_options_go_before_or_after_the_command() {
        for args in ["--output json doctor", "doctor --output json", "doctor --output=json"] {
            assert_eq!(parse(args).map(|cli| cli.global.output).ok(), Some(Output::Json), "{args}");
        }
    }

    #[test]
    fn words_after_two_dashes_are_arguments() {
        let args = run("image --platform scf -- --event -x y");
        assert_eq!(args.args, ["--event", "-x", "y"]);
        assert_eq!(args.event, None);
        assert_eq!(args.function.platform.map(|platform| platform.name()), Some("scf"));
    }

    #[test]
    fn an_event_may_start_with_a_dash() {
        assert_eq!(run("image --event -").event, Some(EventSource::Stdin));
        assert_eq!(run("image --event -1").event, Some(EventSource::Text("-1".into())));
    }

    #[test]
    fn what_excludes_each_other_is_refused() {
        for args in [
            "run",
            "run image --event x --socket /s",
            "run image --event x --listen 80",
            "run image --health-timeout 1s",
            "run image --command x -- y",
            "run image --platform aws",
            "run image --memory 512",
            "run image --port 0",
            "run image --max-instances 0",
            "run image --event x --max-instances 2",
            "run image --event x --idle-timeout 1s",
            "run image --trigger timer",
            "run image --trigger cos --event x",
            "run image --pids 0",
            "serve --log-size 1KiB",
            "serve --log-files 1",
            "serve --log-to disk",
            "logs",
            "logs demo --since soon",
            "top --interval soon",
            "run image extra",
            "pull image --memory 512MiB",
            "pull image --platform aws",
            "pull image --client-cert c.pem",
            "pull image --client-key c.pem",
            "pull image --credentials-file f --credential-helper h",
            "pull image --credentials-file f --credentials-url https://h",
            "pull image --credential-helper h --credentials-url https://h",
            "pull image --credentials-token-file f",
            "pull image --pull-timeout soon",
            "doctor image",
            "--output yaml doctor",
            "",
        ] {
            assert!(parse(args).is_err_and(|e| e.exit_code() == 2), "{args}");
        }
    }

    #[test]
    fn a_wrong_size_says_what_is_wrong() {
        let error = parse("run image --memory 512").expect_err("no unit").to_string();
        assert!(error.contains("invalid value '512' for '--memory <SIZE>': the unit is missing"), "{error}");
    }
}
