//! What happened without an owner, kept until one has taken it.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use super::protocol::{Failure, Instance, Label};

/// Ended containers kept; each holds two descriptors and its label. The oldest is given up for more.
const MAX_ENDED: usize = 1024;
/// Failed starts kept.
const MAX_FAILED: usize = 64;

/// A container that has ended, with what its pipes still hold.
pub(super) struct Ended {
    pub(super) instance: Instance,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
}

/// A start that failed when nobody waited for it.
#[derive(Clone)]
pub(super) struct FailedStart {
    pub(super) id: String,
    pub(super) label: Label,
    pub(super) failure: Failure,
}

#[derive(Default)]
pub(super) struct Records {
    pub(super) ended: VecDeque<Ended>,
    pub(super) failed: VecDeque<FailedStart>,
    /// How many were given up for others since an owner was told.
    pub(super) given_up: u64,
}

impl Records {
    pub(super) fn is_empty(&self) -> bool {
        self.ended.is_empty() && self.failed.is_empty()
    }

    pub(super) fn ended(&mut self, ended: Ended) {
        if self.ended.len() >= MAX_ENDED {
            self.ended.pop_front();
            self.given_up += 1;
        }
        self.ended.push_back(ended);
    }

    pub(super) fn failed(&mut self, failed: FailedStart) {
        if self.failed.len() >= MAX_FAILED {
            self.failed.pop_front();
            self.given_up += 1;
        }
        self.failed.push_back(failed);
    }

    /// The owner needs them no more. `pid` 0 is a start that failed.
    pub(super) fn forget(&mut self, id: &str, pid: i32) {
        if pid == 0 {
            self.failed.retain(|failed| failed.id != id);
        } else {
            self.ended.retain(|ended| ended.instance.pid != pid || ended.instance.id != id);
        }
    }
}
