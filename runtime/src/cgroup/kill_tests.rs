use super::*;
use crate::cgroup::freeze::tests::Real;

const PATIENCE: Duration = Duration::from_secs(20);

/// Limits the processes of a group: a bomb must not reach the host.
fn limit(real: &Real, processes: u32) {
    let file = real.0.file("pids", "pids.max").expect("pids");
    fs::write(file, processes.to_string()).expect("a limit");
}

#[test]
fn a_fork_bomb_outside_of_any_pid_namespace_is_killed() {
    let mut real = Real::new("bomb");
    limit(&real, 60);
    // Shells that start two others and end: what was listed a moment ago is gone, and has children.
    real.run("b() { b & b & }; b; while :; do b; done");
    real.run("b() { b & b & }; b; while :; do b; done");
    real.wait_for("the bomb", |group| group.stats().forks_refused > 0);
    real.0.kill(PATIENCE).expect("killed");
    assert_eq!(real.0.processes().len(), 0);
}

#[test]
fn processes_that_fork_and_end_are_killed() {
    let mut real = Real::new("chain");
    limit(&real, 60);
    // Never more than a few processes, each of which lives for a millisecond.
    for _ in 0..4 {
        real.run("f() { f & }; f");
    }
    // Each has joined by its end; one that came late would live on.
    real.shells_ended();
    real.0.kill(PATIENCE).expect("killed");
    assert_eq!(real.0.processes().len(), 0);
}

#[test]
fn a_group_with_groups_below_it_is_killed_and_removed_from_the_bottom() {
    let mut real = Real::new("below");
    real.run("sleep 1000");
    real.wait_for("a process", |group| !group.processes().is_empty());
    let below = real.0.child("a").child("b");
    // Without controllers of their own: on version 2 their parent could have no process else.
    for dir in below.dirs() {
        fs::create_dir_all(dir).expect("groups below");
    }
    let procs = below.file("pids", "cgroup.procs").expect("pids");
    fs::write(procs, real.0.processes()[0].to_string()).expect("moved");
    assert!(!real.0.try_remove().expect("no error"), "it has a process");
    real.0.kill(PATIENCE).expect("killed");
    real.0.remove(PATIENCE).expect("removed");
    assert_eq!(real.0.dirs().filter(|dir| dir.exists()).count(), 0);
}
