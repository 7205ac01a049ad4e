//! Disks that are ready before they are asked for, and that end after they are needed: to attach a loop
//! device and to mount its filesystem takes milliseconds in which a start would wait, and to unmount it
//! takes some in which nobody would be told that the container has ended.
//!
//! The pool holds disks of those caps that were asked for at least twice, so a single start makes no
//! disk that nobody uses. A few threads fill it up while no start is under way, and let go of the disks of
//! containers that have ended: they wait for the kernel more than they work. The disks have no names and
//! their devices clear themselves, so a crash leaves nothing.

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::Cap;
use super::disk::{Maker, Use};
use crate::Result;

/// What is ready is alike in these.
type Kind = (Cap, Use);

/// Ready disks of one kind: for eight starts at once. One takes some 300 KiB of disk.
const READY_MAX: usize = 8;
/// Fewer are made ready while starts are under way too.
const READY_LOW: usize = 4;
/// Kinds of which disks are ready; the one that was not asked for longest goes first.
const KINDS_MAX: usize = 8;
/// From how many disks of a kind on it is worth having some ready.
const ASKED_MIN: u32 = 2;
/// The pool is filled up when nobody asked for so long: a start has the processor for itself, and so has
/// what it starts.
const QUIET: Duration = Duration::from_millis(100);
/// A disk takes two to three milliseconds to be made, and as long to end, of which a tenth is work.
const THREADS: usize = 4;
/// How long a closed pool waits for its threads, which wait for the host's filesystem.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);
const CLOSE_PAUSE: Duration = Duration::from_millis(1);
/// Below the starts that come meanwhile (nice(2)).
const NICE: i32 = 10;

/// Makes disks, or has them ready.
#[derive(Debug)]
pub(crate) struct Disks {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    maker: Maker,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    shelves: HashMap<Kind, Shelf>,
    /// Of containers that have ended.
    retired: VecDeque<OwnedFd>,
    /// How many threads let go of one.
    letting_go: usize,
    last_asked: Instant,
    closed: bool,
}

#[derive(Debug)]
struct Shelf {
    ready: Vec<OwnedFd>,
    /// Being made.
    making: usize,
    asked: u32,
    last_asked: Instant,
}

impl Shelf {
    fn wants(&self) -> bool {
        self.asked >= ASKED_MIN && self.ready.len() + self.making < READY_MAX
    }

    fn is_low(&self) -> bool {
        self.wants() && self.ready.len() + self.making < READY_LOW
    }
}

impl Disks {
    /// Templates of disks are kept in `dir`.
    pub(crate) fn new(dir: PathBuf) -> Self {
        let state = State::new();
        let shared = Shared { maker: Maker::new(dir), state: Mutex::new(state), changed: Condvar::new() };
        Self { shared: Arc::new(shared), threads: Mutex::default() }
    }

    /// A mount of a new ext4 filesystem of that cap, as of [`Maker::make`], if one is ready.
    pub(crate) fn take_ready(&self, cap: Cap, purpose: Use) -> Option<OwnedFd> {
        let (ready, wanting) = self.shared.lock().ask((cap, purpose));
        if wanting {
            self.start_threads();
            self.shared.changed.notify_one();
        }
        ready
    }

    /// Makes one.
    ///
    /// # Errors
    /// `InvalidArgument` for a cap out of bounds; `Host`, `DiskFull`.
    pub(crate) fn make(&self, cap: Cap, purpose: Use) -> Result<OwnedFd> {
        self.shared.maker.make(cap, purpose)
    }

    /// Keeps copies of a container's disks until this is dropped, and ends them then, elsewhere: its last
    /// process would have to do so before it has ended. Where there is no copy it does.
    pub(crate) fn keep(&self, disks: &[OwnedFd]) -> KeptDisks {
        let copied = !disks.is_empty() && self.start_threads();
        let copies = disks.iter().filter(|_| copied).filter_map(|disk| disk.try_clone().ok());
        KeptDisks { shared: Arc::downgrade(&self.shared), disks: copies.collect() }
    }

    /// Starts them if need be; whether there are any. Without, every start makes its own disks.
    fn start_threads(&self) -> bool {
        let mut threads = lock(&self.threads);
        if threads.is_empty() && !self.shared.lock().closed {
            threads.extend((0..THREADS).filter_map(|_| {
                let shared = Arc::clone(&self.shared);
                std::thread::Builder::new().name("skiff-disks".into()).spawn(move || shared.work()).ok()
            }));
        }
        !threads.is_empty()
    }

    /// Lets go of all disks that are not in use, and makes none any more. Waits until that is done, but
    /// not for a filesystem of the host that does not answer.
    pub(crate) fn close(&self) {
        {
            let mut state = self.shared.lock();
            state.closed = true;
            let ready: Vec<_> = state.shelves.drain().flat_map(|(_, shelf)| shelf.ready).collect();
            state.retired.extend(ready);
        }
        self.shared.changed.notify_all();
        let threads = std::mem::take(&mut *lock(&self.threads));
        let until = Instant::now() + CLOSE_PATIENCE;
        for thread in threads {
            while !thread.is_finished() && Instant::now() < until {
                std::thread::sleep(CLOSE_PAUSE);
            }
            if thread.is_finished() {
                // One that panicked has nothing to tell.
                let _ = thread.join();
            }
        }
    }

    #[cfg(test)]
    fn ready(&self, kind: Kind) -> usize {
        self.shared.lock().shelves.get(&kind).map_or(0, |shelf| shelf.ready.len())
    }
}

/// Copies of a container's disks.
#[derive(Debug)]
pub(crate) struct KeptDisks {
    shared: Weak<Shared>,
    disks: Vec<OwnedFd>,
}

impl Drop for KeptDisks {
    fn drop(&mut self) {
        let Some(shared) = self.shared.upgrade() else { return };
        let mut state = shared.lock();
        if !state.closed {
            state.retired.extend(self.disks.drain(..));
            shared.changed.notify_all();
        }
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        self.close();
    }
}

/// What the thread does next.
enum Task {
    LetGo(OwnedFd),
    Make(Kind),
}

impl State {
    fn new() -> Self {
        Self {
            shelves: HashMap::new(),
            retired: VecDeque::new(),
            letting_go: 0,
            last_asked: Instant::now(),
            closed: false,
        }
    }

    /// A ready disk, if there is one, and whether there is something to do for a thread.
    fn ask(&mut self, kind: Kind) -> (Option<OwnedFd>, bool) {
        self.last_asked = Instant::now();
        if self.closed {
            return (None, false);
        }
        if !self.shelves.contains_key(&kind) && self.shelves.len() >= KINDS_MAX {
            let oldest = self.shelves.iter().min_by_key(|(_, shelf)| shelf.last_asked).map(|(kind, _)| *kind);
            let gone = oldest.and_then(|oldest| self.shelves.remove(&oldest));
            self.retired.extend(gone.into_iter().flat_map(|shelf| shelf.ready));
        }
        let last_asked = self.last_asked;
        let shelf = self.shelves.entry(kind).or_insert_with(|| Shelf {
            ready: Vec::new(),
            making: 0,
            asked: 0,
            last_asked,
        });
        shelf.asked = shelf.asked.saturating_add(1);
        shelf.last_asked = last_asked;
        let ready = shelf.ready.pop();
        let wanting = shelf.wants() || !self.retired.is_empty();
        (ready, wanting)
    }

    /// Takes in a disk that was made ready, or the news that it could not be made.
    fn put(&mut self, kind: Kind, made: Result<OwnedFd>) {
        let Some(shelf) = self.shelves.get_mut(&kind) else {
            self.retired.extend(made.ok());
            return;
        };
        shelf.making = shelf.making.saturating_sub(1);
        match made {
            Ok(disk) if shelf.wants() => shelf.ready.push(disk),
            Ok(disk) => self.retired.push_back(disk),
            Err(error) => {
                // The next starts will say so themselves; not tried again before them.
                shelf.asked = 0;
                tracing::debug!(error = error.chain(), "no disk could be made ready");
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn work(&self) {
        // If it cannot be set, starts only share the processor with it.
        let _ = rustix::process::setpriority_process(None, NICE);
        while let Some(task) = self.next_task() {
            let (cap, purpose) = match task {
                Task::LetGo(disk) => {
                    drop(disk);
                    self.lock().letting_go -= 1;
                    continue;
                }
                Task::Make(kind) => kind,
            };
            let made = self.maker.make(cap, purpose);
            self.lock().put((cap, purpose), made);
        }
    }

    /// Waits until there is something to do; `None` at the end.
    fn next_task(&self) -> Option<Task> {
        let mut state = self.lock();
        loop {
            // One is left for those who start: to end a disk with much on it takes long.
            let others = if state.closed { THREADS } else { THREADS - 1 };
            if state.letting_go < others
                && let Some(disk) = state.retired.pop_front()
            {
                state.letting_go += 1;
                return Some(Task::LetGo(disk));
            }
            if state.closed {
                return None;
            }
            let find = |wanted: fn(&Shelf) -> bool| {
                state.shelves.iter().find(|(_, shelf)| wanted(shelf)).map(|(kind, _)| *kind)
            };
            let (low, wanted, quiet) = (find(Shelf::is_low), find(Shelf::wants), state.last_asked.elapsed());
            if let Some(kind) = low.or(wanted.filter(|_| quiet >= QUIET)) {
                state.shelves.entry(kind).and_modify(|shelf| shelf.making += 1);
                return Some(Task::Make(kind));
            }
            state = if wanted.is_some() {
                let waited = self.changed.wait_timeout(state, QUIET.saturating_sub(quiet));
                waited.unwrap_or_else(PoisonError::into_inner).0
            } else {
                self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAP: Cap = Cap { bytes: 16 << 20, inodes: 512 };
    const KIND: Kind = (CAP, Use::Writable);

    impl Disks {
        fn take(&self, cap: Cap) -> Result<OwnedFd> {
            self.take_ready(cap, KIND.1).map_or_else(|| self.make(cap, KIND.1), Ok)
        }
    }

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
        drop(disks.take(CAP).expect("first"));
        std::thread::sleep(QUIET * 3);
        assert_eq!(disks.ready(KIND), 0, "one start needs no pool");
        drop(disks.take(CAP).expect("second"));
        wait_for("the pool fills", || disks.ready(KIND) == READY_MAX);
        std::thread::sleep(QUIET * 3);
        assert_eq!(disks.ready(KIND), READY_MAX);
        assert!(devices(dir.path()) >= READY_MAX);
        let taken = disks.take(CAP).expect("a ready one");
        disks.close();
        wait_for("all but the taken one are detached", || devices(dir.path()) == 1);
        drop(taken);
        drop(disks.take(CAP).expect("a closed pool makes each"));
        assert_eq!(disks.ready(KIND), 0);
        drop(disks);
        wait_for("all are detached", || devices(dir.path()) == 0);
        let names: Vec<_> = std::fs::read_dir(dir.path()).expect("read").flatten().collect();
        assert_eq!(names.len(), 1, "the template alone: {names:?}");
    }

    #[test]
    fn kinds_are_bounded_and_the_oldest_goes() {
        let mut state = State::new();
        let kind = |n: usize| (Cap::new((n as u64 + 1) << 20, 0), Use::Tmp);
        for n in 0..KINDS_MAX {
            state.ask(kind(n));
        }
        state.ask(kind(0));
        state.ask(kind(KINDS_MAX));
        assert_eq!(state.shelves.len(), KINDS_MAX);
        assert!(state.shelves.contains_key(&kind(0)) && !state.shelves.contains_key(&kind(1)));
    }

    #[test]
    fn a_failure_is_not_tried_again_before_somebody_asks() {
        let mut state = State::new();
        let wanting = |state: &mut State| state.ask(KIND).1;
        assert!(!wanting(&mut state) && wanting(&mut state));
        state.put(KIND, Err(crate::Error::new(crate::ErrorKind::DiskFull, "full")));
        assert!(!state.shelves[&KIND].wants());
        assert!(!wanting(&mut state));
    }

    #[test]
    fn disks_that_were_kept_end_soon_after_whoever_kept_them() {
        let dir = tempfile::tempdir().expect("tempdir");
        let disks = Disks::new(dir.path().to_owned());
        let disk = disks.take(CAP).expect("made");
        let kept = disks.keep(std::slice::from_ref(&disk));
        drop(disk);
        assert_eq!(devices(dir.path()), 1, "a copy is kept");
        drop(kept);
        wait_for("it is detached", || devices(dir.path()) == 0);
        let (disk, kept) = {
            let disk = disks.take(CAP).expect("made");
            let kept = disks.keep(std::slice::from_ref(&disk));
            (disk, kept)
        };
        disks.close();
        drop((disk, kept));
        wait_for("a closed pool keeps none", || devices(dir.path()) == 0);
    }
}
