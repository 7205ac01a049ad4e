//! Disks that are ready before they are asked for: attaching a loop device takes milliseconds in
//! which its start would wait.
//!
//! The pool holds disks of those caps that were asked for at least twice, so a single start makes no
//! disk that nobody uses. A thread fills it while no start is under way. The disks have no names and
//! their devices clear themselves, so a crash leaves nothing.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::Cap;
use super::disk::Maker;
use crate::Result;

/// Ready disks of one cap: two for each of four starts at once. One takes some 300 KiB of disk.
const READY_MAX: usize = 8;
/// Caps for which disks are ready; the one that was not asked for longest goes first.
const CAPS_MAX: usize = 4;
/// From how many disks of a cap on it is worth having some ready: a start takes two.
const ASKED_MIN: u32 = 3;
/// The pool is filled when nobody asked for so long: a start has the processor for itself.
const QUIET: Duration = Duration::from_millis(10);
/// Below the starts that come meanwhile (nice(2)).
const NICE: i32 = 10;

/// Makes disks, or has them ready.
#[derive(Debug)]
pub(crate) struct Disks {
    shared: Arc<Shared>,
    filler: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    maker: Maker,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    shelves: HashMap<Cap, Shelf>,
    last_asked: Instant,
    closed: bool,
}

#[derive(Debug)]
struct Shelf {
    ready: Vec<OwnedFd>,
    asked: u32,
    last_asked: Instant,
}

impl Shelf {
    fn wants(&self) -> bool {
        self.asked >= ASKED_MIN && self.ready.len() < READY_MAX
    }
}

impl Disks {
    /// Templates of disks are kept in `dir`.
    pub(crate) fn new(dir: PathBuf) -> Self {
        let state = State { shelves: HashMap::new(), last_asked: Instant::now(), closed: false };
        let shared = Shared { maker: Maker::new(dir), state: Mutex::new(state), changed: Condvar::new() };
        Self { shared: Arc::new(shared), filler: Mutex::new(None) }
    }

    /// An empty ext4 filesystem of that cap on a loop device. The device is detached when the
    /// descriptor is closed and no mount uses it.
    ///
    /// # Errors
    /// `InvalidArgument` for a cap out of bounds; `Host`, `DiskFull`.
    pub(crate) fn take(&self, cap: Cap) -> Result<OwnedFd> {
        let (ready, wanting) = self.shared.lock().ask(cap);
        if wanting {
            self.start_filler();
            self.shared.changed.notify_one();
        }
        match ready {
            Some(disk) => Ok(disk),
            None => self.shared.maker.make(cap),
        }
    }

    fn start_filler(&self) {
        let mut filler = self.filler.lock().unwrap_or_else(PoisonError::into_inner);
        if filler.is_none() && !self.shared.lock().closed {
            let shared = Arc::clone(&self.shared);
            // Without it every start makes its own.
            *filler =
                std::thread::Builder::new().name("skiff-disks".into()).spawn(move || shared.fill()).ok();
        }
    }

    /// Lets go of all ready disks, and makes none any more.
    pub(crate) fn close(&self) {
        let shelves = {
            let mut state = self.shared.lock();
            state.closed = true;
            std::mem::take(&mut state.shelves)
        };
        self.shared.changed.notify_one();
        drop(shelves);
        let filler = self.filler.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(filler) = filler {
            // It ends after at most one disk; one that panicked has nothing to tell.
            let _ = filler.join();
        }
    }

    #[cfg(test)]
    fn ready(&self, cap: Cap) -> usize {
        self.shared.lock().shelves.get(&cap).map_or(0, |shelf| shelf.ready.len())
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        self.close();
    }
}

impl State {
    /// A ready disk, if there is one, and whether more should be made ready.
    fn ask(&mut self, cap: Cap) -> (Option<OwnedFd>, bool) {
        self.last_asked = Instant::now();
        if self.closed {
            return (None, false);
        }
        if !self.shelves.contains_key(&cap) && self.shelves.len() >= CAPS_MAX {
            let oldest = self.shelves.iter().min_by_key(|(_, shelf)| shelf.last_asked).map(|(cap, _)| *cap);
            oldest.and_then(|oldest| self.shelves.remove(&oldest));
        }
        let last_asked = self.last_asked;
        let shelf =
            self.shelves.entry(cap).or_insert_with(|| Shelf { ready: Vec::new(), asked: 0, last_asked });
        shelf.asked = shelf.asked.saturating_add(1);
        shelf.last_asked = last_asked;
        (shelf.ready.pop(), shelf.wants())
    }

    /// Takes in a disk that was made ready, or the news that it could not be made.
    fn put(&mut self, cap: Cap, made: Result<OwnedFd>) {
        let Some(shelf) = self.shelves.get_mut(&cap) else { return };
        match made {
            Ok(disk) if shelf.wants() => shelf.ready.push(disk),
            Ok(_) => {}
            Err(error) => {
                // The next starts will say so themselves; not tried again before them.
                shelf.asked = 0;
                tracing::debug!(error = error.chain(), "no disk could be made ready");
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fill(&self) {
        // If it cannot be set, starts only share the processor with it.
        let _ = rustix::process::setpriority_process(None, NICE);
        while let Some(cap) = self.next_wanted() {
            let made = self.maker.make(cap);
            let mut state = self.lock();
            if state.closed {
                return;
            }
            state.put(cap, made);
        }
    }

    /// Waits until there is a disk to be made and no start is under way; `None` at the end.
    fn next_wanted(&self) -> Option<Cap> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return None;
            }
            let wanted = state.shelves.iter().find(|(_, shelf)| shelf.wants()).map(|(cap, _)| *cap);
            let quiet = state.last_asked.elapsed();
            state = match wanted {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(_) if quiet < QUIET => {
                    let waited = self.changed.wait_timeout(state, QUIET.saturating_sub(quiet));
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                wanted => return wanted,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAP: Cap = Cap { bytes: 16 << 20, inodes: 512 };

    fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
        let until = Instant::now() + Duration::from_secs(30);
        while !holds() {
            assert!(Instant::now() < until, "{what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The loop devices whose file is below a directory.
    fn devices(dir: &std::path::Path) -> usize {
        let all = std::fs::read_dir("/sys/block").expect("sysfs").flatten();
        let file = |d: std::fs::DirEntry| std::fs::read_to_string(d.path().join("loop/backing_file"));
        let dir = dir.display().to_string();
        all.filter_map(|d| file(d).ok()).filter(|file| file.contains(&dir)).count()
    }

    #[test]
    fn a_cap_that_is_asked_for_again_is_made_ready_and_nothing_is_left() {
        let dir = tempfile::tempdir().expect("tempdir");
        let disks = Disks::new(dir.path().to_owned());
        drop([disks.take(CAP).expect("first"), disks.take(CAP).expect("second")]);
        std::thread::sleep(QUIET * 3);
        assert_eq!(disks.ready(CAP), 0, "one start needs no pool");
        drop(disks.take(CAP).expect("third"));
        wait_for("the pool fills", || disks.ready(CAP) == READY_MAX);
        std::thread::sleep(QUIET * 3);
        assert_eq!(disks.ready(CAP), READY_MAX);
        assert!(devices(dir.path()) >= READY_MAX);
        let taken = disks.take(CAP).expect("a ready one");
        disks.close();
        wait_for("all but the taken one are detached", || devices(dir.path()) == 1);
        drop(taken);
        drop(disks.take(CAP).expect("a closed pool makes each"));
        assert_eq!(disks.ready(CAP), 0);
        drop(disks);
        wait_for("all are detached", || devices(dir.path()) == 0);
        let names: Vec<_> = std::fs::read_dir(dir.path()).expect("read").flatten().collect();
        assert_eq!(names.len(), 1, "the template alone: {names:?}");
    }

    #[test]
    fn caps_are_bounded_and_the_oldest_goes() {
        let mut state = State { shelves: HashMap::new(), last_asked: Instant::now(), closed: false };
        let cap = |n: usize| Cap::new((n as u64 + 1) << 20, 0);
        for n in 0..CAPS_MAX {
            state.ask(cap(n));
        }
        state.ask(cap(0));
        state.ask(cap(CAPS_MAX));
        assert_eq!(state.shelves.len(), CAPS_MAX);
        assert!(state.shelves.contains_key(&cap(0)) && !state.shelves.contains_key(&cap(1)));
    }

    #[test]
    fn a_failure_is_not_tried_again_before_somebody_asks() {
        let mut state = State { shelves: HashMap::new(), last_asked: Instant::now(), closed: false };
        let wanting = |state: &mut State| state.ask(CAP).1;
        assert!(!wanting(&mut state) && !wanting(&mut state) && wanting(&mut state));
        state.put(CAP, Err(crate::Error::new(crate::ErrorKind::DiskFull, "full")));
        assert!(!state.shelves[&CAP].wants());
        assert!(!wanting(&mut state));
    }
}
