//! How long each step of a start took.

use std::time::Duration;

use serde::ser::{Serialize, SerializeStruct, Serializer};
use skiff_runtime::StartTimings;
use skiff_runtime::image::PullTimings;

/// How long each step of a start took, in the order in which they happen. Serialised as
/// milliseconds: `{"resolve_ms":12.3,…,"total_ms":…}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeline {
    /// Until the manifest and configuration were known.
    pub resolve: Duration,
    /// Until the last byte of the last layer had come.
    pub pull: Duration,
    /// From then until everything was unpacked and committed.
    pub unpack: Duration,
    /// Writable layer and `/tmp` made ready.
    pub rootfs: Duration,
    /// Network namespace made ready.
    pub network: Duration,
    /// From the request to the keeper until the command was executed.
    pub spawn: Duration,
    /// From there until the server listened.
    pub listen: Duration,
}

impl Timeline {
    /// The steps before the server is waited for.
    #[must_use]
    pub fn new(pull: &PullTimings, start: &StartTimings) -> Self {
        Self {
            resolve: pull.resolve,
            pull: pull.pull,
            unpack: pull.unpack,
            rootfs: start.rootfs,
            network: start.network,
            spawn: start.spawn,
            listen: Duration::ZERO,
        }
    }

    /// Names and times of the steps, in order.
    #[must_use]
    pub fn steps(&self) -> [(&'static str, Duration); 7] {
        [
            ("resolve", self.resolve),
            ("pull", self.pull),
            ("unpack", self.unpack),
            ("rootfs", self.rootfs),
            ("network", self.network),
            ("spawn", self.spawn),
            ("listen", self.listen),
        ]
    }

    /// All steps together.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.steps().iter().map(|(_, time)| *time).sum()
    }
}

impl Serialize for Timeline {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let ms = |time: Duration| time.as_micros() as f64 / 1000.0;
        let mut map = serializer.serialize_struct("Timeline", 8)?;
        map.serialize_field("resolve_ms", &ms(self.resolve))?;
        map.serialize_field("pull_ms", &ms(self.pull))?;
        map.serialize_field("unpack_ms", &ms(self.unpack))?;
        map.serialize_field("rootfs_ms", &ms(self.rootfs))?;
        map.serialize_field("network_ms", &ms(self.network))?;
        map.serialize_field("spawn_ms", &ms(self.spawn))?;
        map.serialize_field("listen_ms", &ms(self.listen))?;
        map.serialize_field("total_ms", &ms(self.total()))?;
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_milliseconds_in_order() {
        let timeline = Timeline {
            resolve: Duration::from_micros(1500),
            listen: Duration::from_millis(20),
            ..Timeline::default()
        };
        assert_eq!(
            serde_json::to_string(&timeline).expect("serialises"),
            r#"{"resolve_ms":1.5,"pull_ms":0.0,"unpack_ms":0.0,"rootfs_ms":0.0,"network_ms":0.0,"spawn_ms":0.0,"listen_ms":20.0,"total_ms":21.5}"#
        );
        assert_eq!(timeline.steps().last(), Some(&("listen", Duration::from_millis(20))));
    }
}
