//! The parent of all containers of a Skiff daemon; started by it, not by hand.

fn main() -> std::process::ExitCode {
    skiff_runtime::keeper::main()
}
