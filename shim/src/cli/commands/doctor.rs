//! `skiff doctor`.

use std::process::ExitCode;

use serde_json::{Value, json};
use skiff::ExitCode as Code;
use skiff::doctor::{Check, Status, examine};

use super::absolute;
use crate::cli::args::Global;
use crate::cli::console::{Console, Paint, paint};
use crate::cli::failure::Failure;

/// Looks at the host; exits 3 when something that Skiff must have is missing.
pub(crate) fn doctor(global: &Global, console: Console) -> Result<ExitCode, Failure> {
    let state_dir = absolute(&global.state_dir)?;
    let checks = examine(&state_dir, global.keeper.as_deref());
    console.result(|| text(&checks, console.colors_stdout()), || value(&checks))?;
    Ok(ExitCode::from(if is_fit(&checks) { Code::Success } else { Code::Platform } as u8))
}

fn is_fit(checks: &[Check]) -> bool {
    checks.iter().all(|check| check.status != Status::Fail)
}

fn value(checks: &[Check]) -> Value {
    json!({ "ok": is_fit(checks), "checks": checks })
}

/// One line for each check, one more for what to do about it, and one for the sum.
fn text(checks: &[Check], colors: bool) -> String {
    let mut text = String::new();
    for check in checks {
        let mark = match check.status {
            Status::Ok => paint(colors, Paint::Green, "ok  "),
            Status::Warn => paint(colors, Paint::Yellow, "warn"),
            Status::Fail => paint(colors, Paint::Red, "fail"),
        };
        text += &format!("{mark}  {:<10}  {}\n", check.name, check.found);
        if let Some(advice) = &check.advice {
            text += &format!("      {:<10}  {} {advice}\n", "", paint(colors, Paint::Dim, "->"));
        }
    }
    let count = |status| checks.iter().filter(|check| check.status == status).count();
    let sum = match (count(Status::Fail), count(Status::Warn)) {
        (0, 0) => "skiff can run here".to_owned(),
        (0, warnings) => format!("skiff can run here ({warnings} to look at)"),
        (failures, _) => format!("skiff cannot run here yet ({failures} to mend)"),
    };
    text + &paint(colors, Paint::Bold, &sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &'static str, status: Status, advice: Option<&str>) -> Check {
        Check { name, status, found: format!("found {name}"), advice: advice.map(Into::into) }
    }

    #[test]
    fn lines_name_what_was_found_and_what_to_do() {
        let checks = [
            check("root", Status::Ok, None),
            check("loop", Status::Warn, Some("modprobe loop")),
            check("cgroup", Status::Fail, Some("mount it")),
        ];
        assert_eq!(
            text(&checks, false),
            "ok    root        found root\n\
             warn  loop        found loop\n\
             \x20                 -> modprobe loop\n\
             fail  cgroup      found cgroup\n\
             \x20                 -> mount it\n\
             skiff cannot run here yet (1 to mend)"
        );
        assert!(!is_fit(&checks));
    }

    #[test]
    fn warnings_do_not_make_a_host_unfit() {
        let checks = [check("root", Status::Ok, None), check("loop", Status::Warn, Some("x"))];
        assert!(is_fit(&checks));
        assert!(text(&checks, false).ends_with("\nskiff can run here (1 to look at)"));
        assert!(text(&checks[..1], false).ends_with("\nskiff can run here"));
    }

    #[test]
    fn json_has_all_checks_and_the_sum() {
        let checks = [check("cgroup", Status::Fail, Some("mount it")), check("root", Status::Ok, None)];
        assert_eq!(
            value(&checks),
            json!({
                "ok": false,
                "checks": [
                    {"name": "cgroup", "status": "fail", "found": "found cgroup", "advice": "mount it"},
                    {"name": "root", "status": "ok", "found": "found root", "advice": null},
                ],
            })
        );
    }

    #[test]
    fn colours_are_only_put_where_wanted() {
        let checks = [check("root", Status::Fail, Some("x"))];
        assert!(text(&checks, true).starts_with("\x1b[31mfail\x1b[0m"));
        assert!(!text(&checks, false).contains('\x1b'));
    }
}
