//! What a group used, and whether memory ran out in it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::time::Duration;

use super::{Group, Version};
use crate::Stats;

impl Group {
    /// What the group uses and used. A file that is missing (an older kernel, a group that is
    /// gone) counts as zero.
    pub(crate) fn stats(&self) -> Stats {
        let memory_bytes = self.memory_bytes();
        Stats {
            memory_bytes,
            memory_peak_bytes: self.peak_above(memory_bytes),
            cpu: self.cpu(),
            oom_kills: self.oom_kills(),
            processes: self.number("pids", "pids.current"),
            forks_refused: self.keyed("pids", "pids.events", "max"),
        }
    }

    fn memory_bytes(&self) -> u64 {
        self.number(
            "memory",
            match self.hierarchy.version() {
                Version::V1 => "memory.usage_in_bytes",
                Version::V2 => "memory.current",
            },
        )
    }

    /// The most that it had at once, or what it has now where the kernel does not tell.
    pub(crate) fn memory_peak_bytes(&self) -> u64 {
        match self.peak_above(0) {
            0 => self.memory_bytes(),
            peak => peak,
        }
    }

    fn peak_above(&self, least: u64) -> u64 {
        self.number("memory", self.peak_name()).max(least)
    }

    fn peak_name(&self) -> &'static str {
        match self.hierarchy.version() {
            Version::V1 => "memory.max_usage_in_bytes",
            Version::V2 => "memory.peak",
        }
    }

    /// What tells the most memory, kept open; `None` where the kernel has no such file.
    pub(crate) fn open_peak(&self) -> Option<Peak> {
        File::open(self.file("memory", self.peak_name())?).ok().map(Peak)
    }

    fn cpu(&self) -> Duration {
        match self.hierarchy.version() {
            Version::V1 => Duration::from_nanos(self.number("cpuacct", "cpuacct.usage")),
            Version::V2 => Duration::from_micros(self.keyed("cpu", "cpu.stat", "usage_usec")),
        }
    }

    /// How many processes the kernel killed in it for want of memory.
    pub(crate) fn oom_kills(&self) -> u64 {
        let file = match self.hierarchy.version() {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        };
        self.keyed("memory", file, "oom_kill")
    }

    pub(super) fn file(&self, controller: &str, name: &str) -> Option<PathBuf> {
        Some(self.hierarchy.root_of(controller)?.join(&self.path).join(name))
    }

    fn read(&self, controller: &str, name: &str) -> Option<String> {
        fs::read_to_string(self.file(controller, name)?).ok()
    }

    fn number(&self, controller: &str, name: &str) -> u64 {
        self.read(controller, name).and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }

    fn keyed(&self, controller: &str, name: &str, key: &str) -> u64 {
        let text = self.read(controller, name).unwrap_or_default();
        text.lines()
            .filter_map(|line| line.split_once(' '))
            .find(|(k, _)| *k == key)
            .and_then(|(_, value)| value.trim().parse().ok())
            .unwrap_or(0)
    }
}

/// The open file of the most memory that a group had: to look at it again is one call of the kernel.
#[derive(Debug)]
pub(crate) struct Peak(File);

impl Peak {
    /// In bytes; `None` when the group is gone.
    pub(crate) fn bytes(&self) -> Option<u64> {
        // A number of 64 bits and a line feed.
        let mut text = [0; 24];
        let length = self.0.read_at(&mut text, 0).ok()?;
        std::str::from_utf8(text.get(..length)?).ok()?.trim().parse().ok()
    }
}
