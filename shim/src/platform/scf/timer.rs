//! The event of a timer.

use std::time::SystemTime;

use bytes::Bytes;
use serde::Serialize;

use crate::platform::rfc3339;

/// Bytes of `2019-02-21T11:49:00`.
const TO_SECONDS: usize = 19;

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Event<'a> {
    #[serde(rename = "Type")]
    kind: &'static str,
    trigger_name: &'a str,
    time: String,
    message: &'a str,
}

pub(super) fn event(name: &str, time: SystemTime, message: &str) -> Bytes {
    let time = rfc3339(time);
    let time = format!("{}Z", time.get(..TO_SECONDS).unwrap_or(&time));
    let event = Event { kind: "Timer", trigger_name: name, time, message };
    serde_json::to_vec(&event).unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn it_is_the_one_of_the_documentation() {
        let time = UNIX_EPOCH + Duration::from_millis(1_550_749_740_250);
        assert_eq!(
            event("EveryDay", time, "user define msg body"),
            r#"{"Type":"Timer","TriggerName":"EveryDay","Time":"2019-02-21T11:49:00Z","Message":"user define msg body"}"#
        );
    }
}
