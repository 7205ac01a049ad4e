//! `skiff`: runs custom-container functions on this host. See `skiff --help`.

#![forbid(unsafe_code)]

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
