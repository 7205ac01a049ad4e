//! The command line: arguments, output, signals and exit codes around the library.
//!
//! ```text
//! args ─ (values) ─ commands ─ the library
//!            console ◀──┘  lines, bars, JSON, errors
//! ```

mod args;
mod commands;
mod console;
mod failure;
mod interrupt;
mod trace;
mod values;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use args::{Cli, Command, ImageCommand, Output};
use console::Console;
use failure::Failure;

/// How long a thread that still reads or writes may keep the program from ending.
const THREADS_GRACE: Duration = Duration::from_secs(2);

/// Parses the arguments, does what they say, and tells how it went.
pub(crate) fn main() -> ExitCode {
    skiff::bound_allocator();
    let cli = match Cli::read() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let console = Console::new(&cli.global);
    trace::install(cli.global.log_level, console);
    match dispatch(&cli, console) {
        Ok(code) => code,
        Err(failure) => {
            console.fail(&failure);
            ExitCode::from(failure.exit)
        }
    }
}

fn dispatch(cli: &Cli, console: Console) -> Result<ExitCode, Failure> {
    match &cli.command {
        Command::Run(args) => in_tokio(commands::run::run(&cli.global, args, console)),
        Command::Serve(args) => {
            // Before there are threads.
            let manager = skiff::service::ServiceManager::take().map_err(skiff::Error::from)?;
            in_tokio(commands::serve::serve(&cli.global, args, console, manager))
        }
        Command::Stop => in_tokio(commands::stop::stop(&cli.global, console)),
        Command::Deploy(args) => in_tokio(commands::node::deploy(&cli.global, args, console)),
        Command::Functions(args) => in_tokio(commands::node::functions(&cli.global, args, console)),
        Command::Get(args) => in_tokio(commands::node::get(&cli.global, args, console)),
        Command::Delete(args) => in_tokio(commands::node::delete(&cli.global, args, console)),
        Command::Logs(args) => in_tokio(commands::logs::logs(&cli.global, args, console)),
        Command::Ps(args) => in_tokio(commands::ps::ps(&cli.global, args, console)),
        Command::Top(args) => in_tokio(commands::top::top(&cli.global, args, console)),
        Command::Events(args) => in_tokio(commands::events::events(&cli.global, args, console)),
        Command::Trace(args) => in_tokio(commands::trace::trace(&cli.global, args, console)),
        Command::Usage(args) => in_tokio(commands::usage::usage(&cli.global, args, console)),
        Command::Exec(args) => in_tokio(commands::exec::exec(&cli.global, args)),
        Command::Pull(args) => in_tokio(commands::pull::pull(&cli.global, args, console)),
        Command::Images(args) | Command::Image { command: ImageCommand::Ls(args) } => {
            commands::images::images(&cli.global, args, console)
        }
        Command::Rmi(args) | Command::Image { command: ImageCommand::Rm(args) } => {
            commands::rmi::rmi(&cli.global, args, console)
        }
        Command::Image { command: ImageCommand::Import(args) } => {
            in_tokio(commands::import::import(&cli.global, args, console))
        }
        Command::Image { command: ImageCommand::Verify(args) } => {
            commands::verify::verify(&cli.global, args, console)
        }
        Command::Gc(args) => commands::gc::gc(&cli.global, args, console),
        Command::Doctor => commands::doctor::doctor(&cli.global, console),
        Command::Completions { shell } => commands::documents::completions(*shell),
        Command::Man { dir } => commands::documents::man(dir),
    }
}

fn in_tokio(command: impl Future<Output = Result<ExitCode, Failure>>) -> Result<ExitCode, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::host("starting the program's threads", &e))?;
    let result = runtime.block_on(Box::pin(command));
    runtime.shutdown_timeout(THREADS_GRACE);
    result
}

/// Help and version go to stdout and are no error; everything else is bad usage.
fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // A reader that went away is no error of ours.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    // The first paragraph; usage and hints follow it.
    let text = error.to_string();
    let message = text.split("\n\n").next().unwrap_or_default().trim_start_matches("error: ");
    let failure = Failure::usage(message).advise("try --help");
    if wants_json(std::env::args_os(), std::env::var_os("SKIFF_OUTPUT")) {
        Console::json_errors().fail(&failure);
    } else {
        let _ = error.print();
    }
    ExitCode::from(failure.exit)
}

/// Whether arguments that cannot be parsed ask for JSON nevertheless.
fn wants_json(args: impl Iterator<Item = OsString>, env: Option<OsString>) -> bool {
    let mut wants = env.is_some_and(|value| value == Output::JSON);
    let mut previous = OsString::new();
    for arg in args.take_while(|arg| arg != "--") {
        if let Some(value) = arg.to_str().and_then(|arg| arg.strip_prefix("--output=")) {
            wants = value == Output::JSON;
        } else if previous == "--output" {
            wants = arg == Output::JSON;
        }
        previous = arg;
    }
    wants
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wants(args: &[&str], env: Option<&str>) -> bool {
        wants_json(args.iter().map(OsString::from), env.map(OsString::from))
    }

    #[test]
    fn json_is_seen_in_arguments_that_do_not_parse() {
        assert!(wants(&["skiff", "--output", "json", "rnu"], None));
        assert!(wants(&["skiff", "rnu", "--output=json"], Some("text")));
        assert!(wants(&["skiff", "rnu"], Some("json")));
        assert!(!wants(&["skiff", "rnu", "--output", "text"], Some("json")));
        assert!(!wants(&["skiff", "rnu", "--", "--output=json"], None));
        assert!(!wants(&["skiff", "--output"], None));
    }
}
