//! Containers whose memory runs out: which deaths of an init that explains, and what is killed where
//! the kernel does not kill all of a container by itself.
//!
//! The kernel counts what it kills for want of memory, and does not say whom. So it is looked at
//! when it may have killed: an init that lives on then was not its victim, and what kills it later
//! is something else.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData};
use rustix::process::{Pid, Signal, kill_process};

use crate::OomPolicy;
use crate::cgroup::{Group, OomAlarm};

/// For how long it is looked after an alarm: on version 1 it comes before the kernel's search.
const LOOK_FOR: Duration = Duration::from_millis(200);
/// How long to wait between looks: at first, and at most. On version 2 a container that is short of
/// memory rings the alarm a hundred times a second, whether the kernel kills or not.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(16);
/// The kernel counts before it sends the signal, a few instructions later.
const SETTLE_AFTER: Duration = Duration::from_millis(10);
/// Alarms taken at once; more come the next time.
const MAX_EVENTS: usize = 32;

/// The containers that run.
pub(super) struct OomWatch {
    epoll: Option<OwnedFd>,
    watched: HashMap<Pid, Watched>,
    /// Those whose alarm has rung.
    looking: HashMap<Pid, Look>,
}

/// What is known of one container.
struct Watched {
    group: Group,
    policy: OomPolicy,
    /// `None` where the kernel kills all of the container by itself, or tells nothing.
    alarm: Option<OomAlarm>,
    /// How many were killed whom the init has outlived.
    settled: u64,
    /// How many were killed, and since when that is known.
    seen: (u64, Instant),
    /// The init has been killed here, after another process had been.
    killed: bool,
}

struct Look {
    since: Instant,
    next: Instant,
    pause: Duration,
}

impl OomWatch {
    pub(super) fn new() -> Self {
        // Without it, deaths by want of memory are told less exactly.
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).ok();
        Self { epoll, watched: HashMap::new(), looking: HashMap::new() }
    }

    /// Begins to watch the container of this init.
    pub(super) fn watch(&mut self, init: Pid, group: Group, policy: OomPolicy) {
        let alarm = self.alarm(init, &group, policy);
        let look = alarm.is_some() && group.oom_kills() > 0;
        let seen = (0, Instant::now());
        self.watched.insert(init, Watched { group, policy, alarm, settled: 0, seen, killed: false });
        if look {
            self.look_at(init);
        }
    }

    fn alarm(&self, init: Pid, group: &Group, policy: OomPolicy) -> Option<OomAlarm> {
        if policy == OomPolicy::KillContainer && group.can_kill_whole() {
            return None;
        }
        let (epoll, alarm) = (self.epoll.as_ref()?, group.oom_alarm().ok()?);
        let data = EventData::new_u64(init.as_raw_nonzero().get().unsigned_abs().into());
        epoll::add(epoll, &alarm, data, alarm.interest()).ok()?;
        Some(alarm)
    }

    /// Whether the end of an init, which has been waited for, is for want of memory: by this signal,
    /// or by itself, and after so many kills in its group. It is no longer watched then.
    pub(super) fn explains(&mut self, init: Pid, signal: Option<i32>, kills: u64) -> bool {
        let Some(watched) = self.watched.remove(&init) else { return false };
        let recently = self.looking.remove(&init).is_some();
        if let (Some(epoll), Some(alarm)) = (&self.epoll, &watched.alarm) {
            let _ = epoll::delete(epoll, alarm);
        }
        watched.explains(signal, kills, recently)
    }

    /// Readable when an alarm has rung.
    pub(super) fn descriptor(&self) -> Option<&OwnedFd> {
        self.epoll.as_ref()
    }

    /// How long until a container must be looked at, if one must.
    pub(super) fn timeout(&self, now: Instant) -> Option<Duration> {
        self.looking.values().map(|look| look.next.saturating_duration_since(now)).min()
    }

    /// Takes the alarms that have rung, and looks at what is due.
    pub(super) fn attend(&mut self) {
        for init in self.rung() {
            if let Some(alarm) = self.watched.get(&init).and_then(|w| w.alarm.as_ref()) {
                alarm.rearm();
                self.look_at(init);
            }
        }
        let now = Instant::now();
        let watched = &mut self.watched;
        self.looking.retain(|init, look| {
            if look.next > now {
                return true;
            }
            look.next = now + look.pause;
            look.pause = (look.pause * 2).min(LONGEST_PAUSE);
            let goes_on = now < look.since + LOOK_FOR;
            watched.get_mut(init).is_some_and(|w| !w.settle(*init, now) && goes_on)
        });
    }

    fn look_at(&mut self, init: Pid) {
        let now = Instant::now();
        let look = Look { since: now, next: now, pause: FIRST_PAUSE };
        self.looking.entry(init).and_modify(|look| look.since = now).or_insert(look);
    }

    fn rung(&self) -> Vec<Pid> {
        let Some(epoll) = &self.epoll else { return Vec::new() };
        let mut events = Vec::with_capacity(MAX_EVENTS);
        let none = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        if epoll::wait(epoll, rustix::buffer::spare_capacity(&mut events), Some(&none)).is_err() {
            return Vec::new();
        }
        let pids = events.iter().filter_map(|event| i32::try_from(event.data.u64()).ok());
        pids.filter_map(Pid::from_raw).collect()
    }
}

impl Watched {
    /// Looks whether the kernel has killed in the group. True when nothing more is to be expected
    /// of this alarm.
    fn settle(&mut self, init: Pid, now: Instant) -> bool {
        let kills = self.group.oom_kills();
        if kills <= self.settled {
            return false;
        }
        if kills > self.seen.0 {
            self.seen = (kills, now);
        }
        match self.policy {
            OomPolicy::KillContainer => {
                // It has not been waited for, so the number is still its own.
                self.killed = kill_process(init, Signal::KILL).is_ok();
                self.group.kill_once();
                true
            }
            OomPolicy::KillProcess if now >= self.seen.1 + SETTLE_AFTER && !is_dying(init) => {
                self.settled = kills;
                true
            }
            OomPolicy::KillProcess => false,
        }
    }

    /// `recently`: an alarm has just rung, so a container that is killed whole was about to be.
    fn explains(&self, signal: Option<i32>, kills: u64, recently: bool) -> bool {
        let killed = signal == Some(Signal::KILL.as_raw());
        kills > self.settled
            && (killed || self.killed || (recently && self.policy == OomPolicy::KillContainer))
    }
}

/// Whether a process has been sent SIGKILL, or is ending.
fn is_dying(pid: Pid) -> bool {
    const EXITING: u64 = 4; // PF_EXITING of linux/sched.h
    let read = |name| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
    let (status, stat) = (read("status"), read("stat"));
    let kill = 1_u64 << (Signal::KILL.as_raw() - 1);
    let pending = status.lines().any(|line| {
        let mask = line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:"));
        mask.and_then(|m| u64::from_str_radix(m.trim(), 16).ok()).is_some_and(|m| m & kill != 0)
    });
    // The name, in parentheses, may hold anything; the flags are the seventh field after it
    // (proc_pid_stat(5)).
    let flags =
        stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(6)?.parse::<u64>().ok());
    pending || flags.is_none_or(|flags| flags & EXITING != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_kill_that_was_not_outlived_explains_a_death() {
        let (killed, exited) = (Some(9), None);
        let group = Group::of_run(crate::cgroup::Hierarchy::detect().expect("cgroups"), "none");
        let oom = |policy, settled, killed| {
            let (group, seen) = (group.clone(), (settled, Instant::now()));
            Watched { group, policy, alarm: None, settled, seen, killed }
        };
        let one = OomPolicy::KillProcess;
        assert!(!oom(one, 0, false).explains(killed, 0, true), "the kernel has killed nobody");
        assert!(oom(one, 0, false).explains(killed, 1, true));
        assert!(!oom(one, 1, false).explains(killed, 1, true), "its child's, and it lived on");
        assert!(oom(one, 1, false).explains(killed, 2, true));
        assert!(!oom(one, 0, false).explains(exited, 1, true), "it ended by itself");
        let all = OomPolicy::KillContainer;
        assert!(oom(all, 0, false).explains(killed, 1, false));
        assert!(oom(all, 0, false).explains(exited, 1, true), "it was about to be killed");
        assert!(!oom(all, 0, false).explains(exited, 1, false));
        assert!(!oom(all, 0, false).explains(killed, 0, false));
    }

    #[test]
    fn the_dying_are_told_from_the_living() {
        assert!(!is_dying(rustix::process::getpid()));
        let mut child = std::process::Command::new("sleep").arg("100").spawn().expect("sleep");
        let pid = Pid::from_child(&child);
        assert!(!is_dying(pid));
        child.kill().expect("kill");
        assert!(is_dying(pid));
        child.wait().expect("ends");
        assert!(is_dying(pid), "one that is gone");
    }
}
