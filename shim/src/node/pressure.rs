//! Idle instances make room for the rest of the host when its memory runs short.

use std::sync::Weak;
use std::time::Duration;

use crate::pool::room::Room;

/// How often it is looked. One instance goes each time: what it frees is seen before the next.
const LOOK: Duration = Duration::from_secs(1);

/// Has the least recently used idle instance stop as long as less than `reserve_mib` are available.
pub(super) async fn relieve(room: Weak<Room>, reserve_mib: u64) {
    loop {
        tokio::time::sleep(LOOK).await;
        let Some(room) = room.upgrade() else { return };
        // A host that does not tell is not short.
        let text = tokio::fs::read_to_string("/proc/meminfo").await.unwrap_or_default();
        if available_mib(&text).is_some_and(|available| available < reserve_mib) {
            room.relieve();
        }
    }
}

fn available_mib(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_available_is_read() {
        let text = "MemTotal:       24663560 kB\nMemFree:          123 kB\nMemAvailable:   2097152 kB\n";
        assert_eq!(available_mib(text), Some(2048));
        for other in ["", "MemAvailable: much", "MemAvailable: 7", "MemAvailable: -1 kB", "MemTotal: 1 kB"] {
            assert_eq!(available_mib(other), None, "{other:?}");
        }
        let own = std::fs::read_to_string("/proc/meminfo").expect("of this host");
        assert!(available_mib(&own).is_some());
    }
}
