//! Failures as people read them.

use super::super::failure::Failure;
use super::paint::{Paint, paint};
use super::printable;

/// `error: MESSAGE`, its faults and causes, the platform's answer, and what to do; ends with a line
/// feed.
pub(super) fn render(failure: &Failure, colors: bool) -> String {
    let mut text = format!("{} {}\n", paint(colors, Paint::Red, "error:"), safe(&failure.message));
    for fault in &failure.faults {
        text += &format!("  - {}\n", safe(fault));
    }
    for cause in &failure.causes {
        text += &format!("  {} {}\n", paint(colors, Paint::Dim, "caused by:"), indent(&safe(cause)));
    }
    if let Some(answer) = &failure.answer {
        let label = format!("{} answers its caller:", answer.platform);
        let body = indent(&safe(&answer.body));
        text += &format!(
            "  {} {} ({})\n    {body}\n",
            paint(colors, Paint::Dim, &label),
            answer.status,
            answer.code
        );
    }
    if let Some(advice) = &failure.advice {
        text += &format!("  {} {}\n", paint(colors, Paint::Green, "help:"), indent(&safe(advice)));
    }
    text
}

/// `warning: MESSAGE` and what to do; without a line feed at the end.
pub(super) fn render_warning(warning: &skiff::Warning, colors: bool) -> String {
    let (label, help) = (paint(colors, Paint::Yellow, "warning:"), paint(colors, Paint::Green, "help:"));
    format!("{label} {}\n  {help} {}", safe(&warning.message), indent(&safe(&warning.advice)))
}

/// Messages may quote what a registry or an image says: it must not steer the terminal.
fn safe(text: &str) -> String {
    printable(text.trim_end())
}

/// Puts further lines under the first.
fn indent(text: &str) -> String {
    text.replace('\n', "\n    ")
}

#[cfg(test)]
mod tests {
    use super::super::super::failure::Answer;
    use super::*;

    fn failure() -> Failure {
        let mut failure = Failure::usage("the thing `x` failed").advise("do y");
        failure.causes = vec!["near".into(), "far\nand wide".into()];
        failure
    }

    #[test]
    fn all_parts_come_in_order() {
        let mut failure = failure();
        failure.faults = vec!["one".into(), "two".into()];
        failure.answer = Some(Answer {
            platform: "fc",
            status: 412,
            code: "FunctionNotStarted",
            body: "{\"Code\":\"FunctionNotStarted\"}".into(),
        });
        assert_eq!(
            render(&failure, false),
            "error: the thing `x` failed\n  - one\n  - two\n  caused by: near\n  caused by: far\n    and wide\n  \
             fc answers its caller: 412 (FunctionNotStarted)\n    {\"Code\":\"FunctionNotStarted\"}\n  help: do y\n"
        );
    }

    #[test]
    fn a_bare_failure_is_one_line() {
        assert_eq!(render(&Failure::usage("no"), false), "error: no\n");
    }

    #[test]
    fn colours_are_for_labels_only() {
        let text = render(&failure(), true);
        assert!(text.starts_with("\x1b[31merror:\x1b[0m the thing"), "{text:?}");
    }

    #[test]
    fn quoted_texts_cannot_steer_the_terminal() {
        let text = render(&Failure::usage("said \x1b]0;evil\x07\r!"), false);
        assert_eq!(text, "error: said \\u{1b}]0;evil\\u{7}\\r!\n");
    }

    #[test]
    fn the_json_form_has_all_fields_and_no_exit_code() {
        let value = serde_json::to_value(failure()).expect("JSON");
        let keys: Vec<_> = value.as_object().expect("an object").keys().cloned().collect();
        for key in ["kind", "message", "causes", "faults", "advice", "fault", "retryable"] {
            assert!(keys.iter().any(|k| k == key), "{key}");
        }
        assert_eq!(keys.len(), 7);
    }
}
