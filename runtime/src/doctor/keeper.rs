//! The keeper program: where it is, and whether it is of this version.

use std::io;
use std::path::Path;

use super::Check;
use super::host::{Host, is_executable};
use super::program::ask;
use crate::keeper::candidate;

const NAME: &str = "keeper";
const PROGRAM: &str = "skiff-keeper";

pub(super) fn check(host: &Host, given: Option<&Path>) -> Check {
    let Some(path) = candidate(given, host.exe_dir.as_deref(), host.path_dirs()) else {
        let found = format!("no {PROGRAM} beside skiff or in PATH");
        return Check::fail(NAME, found, "install it beside skiff, or name it by --keeper");
    };
    let shown = path.display();
    if !is_executable(&path) {
        let found = format!("{shown} is not an executable file");
        return Check::fail(NAME, found, format!("name {PROGRAM} by --keeper"));
    }
    let expected = format!("{PROGRAM} {}", env!("CARGO_PKG_VERSION"));
    match version(&path) {
        Ok(version) if version == expected => Check::ok(NAME, format!("{shown}, {version}")),
        Ok(version) => Check::fail(
            NAME,
            format!("{shown} says `{version}`"),
            format!("install `{expected}`, which was built with this skiff"),
        ),
        Err(e) => Check::fail(NAME, format!("{shown} --version: {e}"), format!("install `{expected}`")),
    }
}

/// What it says of itself, in one bounded line.
fn version(path: &Path) -> io::Result<String> {
    ask(path, &["--version"]).map(|answer| answer.stdout)
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::super::testing::Fake;
    use super::*;

    fn checked(script: &str) -> Check {
        check(&Fake::new().script(PROGRAM, script).host(), None)
    }

    #[test]
    fn the_right_version_is_ok() {
        let check = checked(&format!("echo skiff-keeper {}", env!("CARGO_PKG_VERSION")));
        assert_eq!(check.status, Status::Ok, "{check:?}");
    }

    #[test]
    fn another_version_fails_and_is_shown() {
        let check = checked("echo skiff-keeper 0.0.1; echo more");
        assert_eq!(check.status, Status::Fail);
        assert!(check.found.ends_with("/skiff-keeper says `skiff-keeper 0.0.1`"), "{check:?}");
    }

    #[test]
    fn no_keeper_fails_and_says_where_it_was_looked_for() {
        let check = check(&Fake::new().host(), None);
        assert_eq!(check.found, "no skiff-keeper beside skiff or in PATH");
    }

    #[test]
    fn a_given_file_that_is_none_or_not_executable_fails() {
        let fake = Fake::new().file("keeper", "text");
        for name in ["keeper", "missing", "."] {
            let check = check(&fake.host(), Some(&fake.root().join(name)));
            assert!(check.found.ends_with("is not an executable file"), "{check:?}");
        }
    }

    #[test]
    fn a_keeper_that_hangs_is_given_up_and_killed() {
        let check = checked("exec sleep 60");
        assert_eq!(check.status, Status::Fail);
        assert!(check.found.ends_with("no answer within 2 s"), "{check:?}");
    }

    #[test]
    fn a_babbling_keeper_is_cut_and_cleaned() {
        let check = checked("head -c 9000 /dev/zero | tr '\\0' a; printf '\\033[31m'");
        assert_eq!(check.status, Status::Fail);
        assert!(check.found.len() < 600 && !check.found.contains('\u{1b}'));
    }
}
