//! What calls the function instead of a caller.

use std::str::FromStr;
use std::time::SystemTime;

use bytes::Bytes;
use skiff::{Platform, Trigger};

use super::Invalid;

/// Longest name of a trigger, in bytes.
const MAX_NAME_BYTES: usize = 60;

/// The name of a timer that has none.
const TIMER: &str = "timer";

/// `timer` or `timer:NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TriggerArg {
    name: String,
}

impl FromStr for TriggerArg {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let name = match text.split_once(':') {
            Some((TIMER, name)) => name,
            None if text == TIMER => TIMER,
            _ => return Err(Invalid::new("not timer or timer:NAME")),
        };
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.bytes().all(allowed) {
            return Err(Invalid::new(format!(
                "a timer's name has 1 to {MAX_NAME_BYTES} letters, digits, \"_\" and \"-\""
            )));
        }
        Ok(Self { name: name.to_owned() })
    }
}

impl TriggerArg {
    /// What it is to the function.
    pub(crate) fn kind(&self) -> Trigger {
        Trigger::Timer
    }

    /// The event of its going off now, with this message.
    ///
    /// # Errors
    /// A message that is no text, or a platform without such events.
    pub(crate) fn event(&self, platform: &'static dyn Platform, message: &[u8]) -> Result<Bytes, Invalid> {
        let message = std::str::from_utf8(message)
            .map_err(|_| Invalid::new("the message of a timer (--event) must be text (UTF-8)"))?;
        platform.timer_event(&self.name, SystemTime::now(), message).ok_or_else(|| {
            Invalid::new(format!("--trigger timer: platform {} has no timer events here", platform.name()))
        })
    }
}

#[cfg(test)]
mod tests {
    use skiff::platform::{fc, scf};

    use super::*;

    #[test]
    fn a_timer_has_a_name() {
        let name = |text: &str| text.parse::<TriggerArg>().map(|trigger| trigger.name);
        assert_eq!(name("timer"), Ok("timer".to_owned()));
        assert_eq!(name("timer:Every-Day_2"), Ok("Every-Day_2".to_owned()));
        for text in ["", "cos", "timer:", "timer:a b", "Timer", &format!("timer:{}", "x".repeat(61))] {
            name(text).expect_err(text);
        }
    }

    #[test]
    fn its_event_is_the_platforms() {
        let timer: TriggerArg = "timer:EveryDay".parse().expect("a timer");
        let event = timer.event(scf(), b"user define msg body").expect("an event");
        let text = String::from_utf8(event.to_vec()).expect("UTF-8");
        assert!(text.starts_with(r#"{"Type":"Timer","TriggerName":"EveryDay","Time":"20"#), "{text}");
        assert!(text.ends_with(r#"Z","Message":"user define msg body"}"#), "{text}");
        timer.event(scf(), &[0xff]).expect_err("no text");
        assert!(timer.event(fc(), b"").expect_err("none").to_string().contains("platform fc"));
    }
}
