//! Options of `skiff exec`.

use clap::Args;

/// Options of `skiff exec`.
#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    /// The instance, by its id or a beginning of it that no other has.
    pub(crate) instance: String,
    /// Pass the standard input on.
    #[arg(long, short)]
    pub(crate) interactive: bool,
    /// Give it a terminal of its own.
    #[arg(long, short)]
    pub(crate) tty: bool,
    /// Set a variable, or pass on this one of Skiff's own (may be given again).
    #[arg(long, short, value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<String>,
    /// Run as this user instead of the instance's: name or id, and :group if wanted.
    #[arg(long, short, value_name = "USER[:GROUP]")]
    pub(crate) user: Option<String>,
    /// Start in this directory instead of the instance's.
    #[arg(long, short, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// The command and its arguments.
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(crate) command: Vec<String>,
}
