//! Daemon, keeper and container are killed at each step of a start, an invocation and a stop, and at
//! random times. Whatever dies when: what lives ends in time and says why, and the next run finds
//! everything as it was.
//!
//! What is built for tests stops itself where `SKIFF_BREAK_AT` says (`skiff_runtime::breakpoint`).

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use skiff_tests::process::Process;
use skiff_tests::topology::with_resolv_conf;
use skiff_tests::{Baseline, Sandbox, Topology, images, wait_for};

/// How long a process may take to come to its place, or to end after that.
const PATIENCE: Duration = Duration::from_secs(60);

/// Who is killed there.
const NOBODY: &[Role] = &[];
const VICTIMS: [&[Role]; 5] = [
    NOBODY,
    &[Role::Daemon],
    &[Role::Keeper],
    &[Role::Container],
    &[Role::Keeper, Role::Daemon, Role::Container],
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Daemon,
    Keeper,
    /// All children of the keeper: the process that starts the container, and its first process.
    Container,
}

/// A `skiff run` and its keeper's family, as they were seen at some moment.
struct Family {
    daemon: Process,
    keeper: Option<Process>,
    containers: Vec<Process>,
}

impl Family {
    fn of(pid: u32) -> Option<Self> {
        let daemon = Process::of(pid)?;
        let keeper = Process::children_of(pid).into_iter().find(|child| child.state != 'Z');
        let containers = keeper.as_ref().map(|keeper| Process::children_of(keeper.pid)).unwrap_or_default();
        Some(Self { daemon, keeper, containers })
    }

    fn all(&self) -> impl Iterator<Item = &Process> {
        [&self.daemon].into_iter().chain(&self.keeper).chain(&self.containers)
    }

    fn stopped(&self) -> Option<&Process> {
        self.all().find(|process| process.state == 'T')
    }

    fn role(&self, role: Role) -> Vec<&Process> {
        match role {
            Role::Daemon => vec![&self.daemon],
            Role::Keeper => self.keeper.iter().collect(),
            Role::Container => self.containers.iter().collect(),
        }
    }
}

/// Where runs are killed.
struct Scene {
    sandbox: Sandbox,
    /// With a way out, on a host of its own; else with the defaults.
    topology: Option<Topology>,
}

impl Scene {
    fn new(topology: Option<Topology>) -> Self {
        let scene = Self { sandbox: Sandbox::new(), topology };
        scene.event();
        scene
    }

    fn command(&self) -> Command {
        let command = |options: &[&str]| {
            let image = images::oci("function");
            self.sandbox.skiff(&[&["run", &image, "--event", r#"{"k":1}"#], options].concat())
        };
        let Some(topology) = &self.topology else { return command(&[]) };
        let file = self.sandbox.write("resolv.conf", "nameserver 198.51.100.10\n");
        topology.host.inside_after(&with_resolv_conf(&file), &command(&["--network", "bridge"]))
    }

    /// A run that nobody harms.
    #[track_caller]
    fn event(&self) {
        let _ = self.sandbox.finish(self.command()).ok();
    }

    /// One event's run, whose output goes to files.
    fn run(&self, name: &str, place: Option<&str>) -> Child {
        let mut command = self.command();
        let file = |what: &str| {
            std::fs::File::create(self.sandbox.path().join(format!("{what}.{name}"))).expect("a file")
        };
        command.stdin(Stdio::null()).stdout(file("out")).stderr(file("err"));
        if let Some(place) = place {
            command.env("SKIFF_BREAK_AT", place);
        }
        command.spawn().expect("skiff")
    }

    /// What the network of its host is like.
    fn traces(&self) -> String {
        self.topology.as_ref().map(Topology::traces).unwrap_or_default()
    }
}

/// What it wrote is an answer if it ended well, and else a reason.
#[track_caller]
fn assert_told(sandbox: &Sandbox, name: &str, code: Option<i32>, what: &str) {
    let read =
        |kind: &str| std::fs::read_to_string(sandbox.path().join(format!("{kind}.{name}"))).expect("output");
    let (out, err) = (read("out"), read("err"));
    assert!(!err.contains("panicked"), "{what}: {err}");
    match code {
        // It was killed itself.
        None => {}
        Some(0) => assert!(out.contains(r#""k":1"#), "{what}: no answer: {out} {err}"),
        Some(_) => assert!(err.contains("error"), "{what}: no reason: {err}"),
    }
}

/// Lets one run come to its place, kills, and lets the rest go on until it has ended.
fn crash(scene: &Scene, place: &str, victims: &[Role]) {
    let what = format!("{victims:?} at {place}");
    let mut child = scene.run(place, Some(place));
    let found = wait_for(PATIENCE, || {
        let ended = child.try_wait().expect("wait");
        assert!(ended.is_none(), "{what}: it ended before: {ended:?}");
        Family::of(child.id()).filter(|family| family.stopped().is_some())
    });
    let family = found.unwrap_or_else(|| panic!("{what}: nobody comes there"));
    for process in victims.iter().flat_map(|role| family.role(*role)) {
        process.signal(Signal::KILL);
    }
    for process in family.all() {
        process.signal(Signal::CONT);
    }
    // Another process may come to that place later: a keeper is there again for each container.
    let ended = wait_for(PATIENCE, || {
        if let Some(stopped) = Family::of(child.id()).as_ref().and_then(Family::stopped) {
            stopped.signal(Signal::CONT);
        }
        child.try_wait().expect("wait")
    });
    let Some(status) = ended else {
        let _ = child.kill();
        let _ = child.wait();
        panic!("{what}: the daemon does not end");
    };
    if let Some(keeper) = &family.keeper {
        let gone = wait_for(PATIENCE, || {
            // It may have stopped again on its way.
            Process::of(keeper.pid)
                .filter(|now| now.state == 'T')
                .iter()
                .for_each(|now| now.signal(Signal::CONT));
            (!keeper.is_alive()).then_some(())
        });
        assert!(gone.is_some(), "{what}: the keeper lives on");
    }
    assert_told(&scene.sandbox, place, status.code(), &what);
    if victims.is_empty() {
        assert_eq!(status.code(), Some(0), "{what}: a pause does no harm");
    }
}

/// These victims at all these places, and after each a run that works and leaves what there was.
fn crash_in(scene: &Scene, places: &[&str], victims: &[&[Role]]) {
    for place in places {
        let (baseline, before) = (Baseline::take(&scene.sandbox), scene.traces());
        for victims in victims {
            crash(scene, place, victims);
            scene.event();
        }
        baseline.assert_restored();
        let restored = wait_for(PATIENCE, || (scene.traces() == before).then_some(()));
        assert!(restored.is_some(), "{place}: before: {before}\nafter: {}", scene.traces());
    }
}

fn crash_at(places: &[&str]) {
    crash_in(&Scene::new(None), places, &VICTIMS);
}

#[test]
fn at_each_step_of_the_daemon_until_it_serves() {
    crash_at(&["daemon-executed", "daemon-prepared", "daemon-started", "daemon-connected"]);
}

#[test]
fn at_each_step_of_the_keeper_until_it_serves() {
    crash_at(&["keeper-configured", "keeper-forked", "keeper-told"]);
}

#[test]
fn at_each_step_of_the_start_process() {
    crash_at(&["start-joined", "start-mounted", "start-created", "start-executed"]);
}

/// Interfaces, addresses and rules are there too.
#[test]
fn at_each_step_of_a_start_with_a_way_out() {
    let scene = Scene::new(Some(Topology::new()));
    crash_in(&scene, &["daemon-prepared", "daemon-started"], &VICTIMS[1..]);
    crash_in(&scene, &["keeper-forked", "keeper-told", "start-joined", "start-created"], &VICTIMS[1..]);
}

#[test]
fn at_each_step_of_an_invocation() {
    crash_at(&["daemon-invokes", "daemon-answered"]);
}

#[test]
fn at_each_step_of_a_stop() {
    crash_at(&["daemon-stops", "daemon-stopped", "daemon-shuts-down", "daemon-kept-nothing"]);
    crash_at(&["keeper-reaped", "keeper-cleans", "keeper-killed"]);
}

/// For a few seconds, or as many as `SKIFF_TEST_KILL_SECONDS` says.
#[test]
#[allow(clippy::print_stdout, reason = "how much was tried is part of the result")]
fn at_random_times() {
    let seconds = std::env::var("SKIFF_TEST_KILL_SECONDS").ok().and_then(|text| text.parse().ok());
    let until = Instant::now() + Duration::from_secs(seconds.unwrap_or(10));
    let scene = Scene::new(None);
    let baseline = Baseline::take(&scene.sandbox);
    let mut random = Random::new();
    let (mut runs, mut killed) = (0_u32, 0_u32);
    while Instant::now() < until {
        let mut child = scene.run("random", None);
        std::thread::sleep(Duration::from_micros(random.below(250_000)));
        let victims = VICTIMS[1 + usize::try_from(random.below(4)).expect("small")];
        if let Some(family) = Family::of(child.id()).filter(|family| family.daemon.is_alive()) {
            victims.iter().flat_map(|role| family.role(*role)).for_each(|process| {
                killed += 1;
                process.signal(Signal::KILL);
            });
        }
        let ended = wait_for(PATIENCE, || child.try_wait().expect("wait"));
        let status = ended.unwrap_or_else(|| panic!("{victims:?}: the daemon does not end"));
        assert_told(&scene.sandbox, "random", status.code(), &format!("{victims:?}"));
        runs += 1;
    }
    scene.event();
    baseline.assert_restored();
    println!("{runs} runs, {killed} processes killed");
    assert!(killed > 0, "nobody was killed in {runs} runs");
}

/// Numbers that differ with every run (xorshift): what was found by one is looked for in the kernel's and
/// Skiff's messages, not replayed, since the moment decides and not the number.
struct Random(u64);

impl Random {
    fn new() -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock");
        Self(now.as_nanos() as u64 | 1)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}
