use std::fs;
use std::path::{Path, PathBuf};

use super::super::hierarchy::Hierarchy;
use super::*;

const MEMORY: u64 = 64 << 20;

/// A directory that looks like a group with these files.
fn group(hierarchy: Hierarchy, dirs: &[PathBuf], files: &[&str]) -> Group {
    for dir in dirs {
        fs::create_dir_all(dir).expect("mkdir");
        files.iter().for_each(|file| fs::write(dir.join(file), "").expect("write"));
    }
    Group::of_run(hierarchy, "run").child("c")
}

fn v2(root: &Path, files: &[&str]) -> Group {
    group(Hierarchy::unified_at(root), &[root.join("skiff/run/c")], files)
}

fn v1(root: &Path, files: &[&str]) -> Group {
    let dirs = ["memory", "cpu", "pids", "freezer"].map(|c| root.join(c).join("skiff/run/c"));
    group(Hierarchy::split_at(root), &dirs, files)
}

fn written(root: &Path, file: &str) -> String {
    fs::read_to_string(root.join(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
}

const ALL: Limits = Limits {
    memory_bytes: MEMORY,
    cpu_millis: 1500,
    cpu_weight: 250,
    pids: 60,
    nofile: 0,
    oom: OomPolicy::KillContainer,
};
const V2: [&str; 6] =
    ["memory.max", "memory.swap.max", "memory.oom.group", "cpu.max", "cpu.weight", "pids.max"];
const V1: [&str; 5] =
    ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "cpu.cfs_quota_us", "cpu.shares", "pids.max"];

#[test]
fn limits_of_version_2_are_in_its_files() {
    let root = tempfile::tempdir().expect("tempdir");
    v2(root.path(), &V2).limit(&ALL).expect("set");
    let expected = ["67108864", "0", "1", "150000 100000", "250", "62"];
    for (file, value) in V2.into_iter().zip(expected) {
        assert_eq!(written(&root.path().join("skiff/run/c"), file), value, "{file}");
    }
}

#[test]
fn limits_of_version_1_are_in_its_files() {
    let root = tempfile::tempdir().expect("tempdir");
    v1(root.path(), &V1).limit(&ALL).expect("set");
    for (file, value) in [
        ("memory/skiff/run/c/memory.limit_in_bytes", "67108864"),
        ("memory/skiff/run/c/memory.memsw.limit_in_bytes", "67108864"),
        ("cpu/skiff/run/c/cpu.cfs_quota_us", "150000"),
        ("cpu/skiff/run/c/cpu.shares", "2560"),
        ("pids/skiff/run/c/pids.max", "62"),
    ] {
        assert_eq!(written(root.path(), file), value, "{file}");
    }
}

#[test]
fn no_limit_is_not_written() {
    let root = tempfile::tempdir().expect("tempdir");
    let none = Limits { oom: OomPolicy::KillProcess, ..Limits::default() };
    v2(root.path(), &V2).limit(&none).expect("set");
    for file in V2 {
        assert_eq!(written(&root.path().join("skiff/run/c"), file), "", "{file}");
    }
}

#[test]
fn a_kernel_without_swap_limits_is_fine_and_without_others_is_not() {
    let old = tempfile::tempdir().expect("tempdir");
    v2(old.path(), &["memory.max", "cpu.max", "cpu.weight", "pids.max"]).limit(&ALL).expect("set");
    let none = tempfile::tempdir().expect("tempdir");
    let error = v2(none.path(), &[]).limit(&ALL).expect_err("no file");
    assert!(error.to_string().contains("cannot write '67108864' to"), "{error}");
    assert!(error.to_string().contains("memory.max"), "{error}");
    assert!(!none.path().join("skiff/run/c/memory.max").exists(), "it was made");
}

#[test]
fn a_weight_is_the_same_in_both_versions() {
    for (weight, expected) in [(1, 10), (100, 1024), (150, 1536), (10_000, 102_400)] {
        assert_eq!(shares(weight), expected, "{weight}");
    }
}
