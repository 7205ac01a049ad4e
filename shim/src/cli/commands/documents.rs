//! Completion scripts and manual pages, both made from the arguments' definition.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::args::Cli;
use crate::cli::failure::Failure;

/// `skiff completions`.
pub(crate) fn completions(shell: Shell) -> Result<ExitCode, Failure> {
    // Into memory first: the generator panics when its writer fails.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "skiff", &mut script);
    match io::stdout().lock().write_all(&script) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::host("writing to the standard output", &e))
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// `skiff man`.
pub(crate) fn man(dir: &Path) -> Result<ExitCode, Failure> {
    std::fs::create_dir_all(dir)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), dir))
        .map_err(|e| Failure::host(&format!("writing manual pages to {}", dir.display()), &e))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_page_for_each_command() {
        let dir = tempfile::tempdir().expect("a directory");
        assert!(man(&dir.path().join("man")).is_ok());
        for page in ["skiff.1", "skiff-run.1", "skiff-pull.1", "skiff-doctor.1", "skiff-completions.1"] {
            let text = std::fs::read_to_string(dir.path().join("man").join(page)).expect(page);
            assert!(text.starts_with(".ie"), "{page}");
        }
    }

    #[test]
    fn pages_that_cannot_be_written_are_a_failure_of_the_host() {
        let failure = man(Path::new("/proc/no/such")).expect_err("no directory");
        assert_eq!(failure.exit, 3);
        assert!(failure.message.contains("/proc/no/such"));
    }
}
