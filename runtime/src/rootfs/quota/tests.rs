//! On real filesystems with project quotas, which few hosts have: the directories that
//! `SKIFF_TEST_EXT4_QUOTA` and `SKIFF_TEST_XFS_QUOTA` name.
#![allow(clippy::print_stderr, reason = "a skipped test says why")]

use std::collections::HashSet;
use std::fs::File;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::project::FIRST_ID;
use super::remove::open_dir;
use super::*;
use crate::sys::{ProjectQuota, QuotaTarget, project_of, project_quota, set_project};

const RUN: &str = "0123456789ab";
const SMALL: Cap = Cap { bytes: 1 << 20, inodes: 64 };

/// A new directory on each filesystem with quotas that this host has.
fn places() -> Vec<tempfile::TempDir> {
    let variables = ["SKIFF_TEST_EXT4_QUOTA", "SKIFF_TEST_XFS_QUOTA"];
    let place = |name: &&str| {
        let dir = std::env::var_os(name);
        if dir.is_none() {
            eprintln!("skipped: {name} names no directory on a filesystem with project quotas");
        }
        dir.map(|dir| tempfile::tempdir_in(dir).expect("tempdir"))
    };
    variables.iter().filter_map(place).collect()
}

fn create(place: &tempfile::TempDir) -> Area {
    Area::create(place.path(), RUN, &place.path().join("link")).expect("quotas work there")
}

fn quota_of(dir: &Path) -> (u32, ProjectQuota) {
    let dir = open_dir(rustix::fs::CWD, dir.as_os_str()).expect("open");
    let project = project_of(&dir).expect("a project");
    (project, Quotas::of(dir.as_fd()).expect("quotas").get(project).expect("its quota"))
}

/// Nothing is left of a project. XFS frees the inodes of removed files a moment later.
#[track_caller]
fn assert_forgotten(quotas: &Quotas, project: u32) {
    let until = Instant::now() + Duration::from_secs(30);
    while quotas.get(project).expect("quota") != ProjectQuota::default() {
        assert!(Instant::now() < until, "{project}: {:?}", quotas.get(project));
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn directories_get_projects_of_their_own_with_limits_that_go_with_them() {
    for place in places() {
        let mut area = create(&place);
        let mut projects = HashSet::new();
        for container in 0..32 {
            for what in ["root", "tmp"] {
                let dir = make(area.path(), &format!("c{container}"), what, SMALL).expect("made");
                let (project, quota) = quota_of(&dir);
                assert_eq!(project & 0xFF00_0000, FIRST_ID);
                assert!(projects.insert(project), "{project} was given twice");
                assert_eq!(
                    (quota.limit_bytes, quota.limit_inodes, quota.inodes),
                    (SMALL.bytes, SMALL.inodes, 1)
                );
                fs::create_dir_all(dir.join("a/b/c")).expect("mkdir");
                std::os::unix::fs::symlink("/etc", dir.join("a/link")).expect("symlink");
                assert_eq!(quota_of(&dir.join("a/b")).0, project, "what is made inside belongs to it");
            }
        }
        let root = File::open(place.path()).expect("open");
        for container in 0..32 {
            let taken = area.take(&format!("c{container}")).expect("it was there");
            area.remove_taken(&taken).expect("removed");
        }
        assert!(area.take("c0").is_none());
        assert_eq!(fs::read_dir(area.path()).expect("read").count(), 0);
        let quotas = Quotas::of(root.as_fd()).expect("quotas");
        projects.into_iter().for_each(|project| assert_forgotten(&quotas, project));
        assert!(Path::new("/etc").is_dir(), "no link is followed");
    }
}

#[test]
fn a_project_that_somebody_has_is_not_given() {
    for place in places() {
        let area = create(&place);
        let dir = make(area.path(), "c", "root", SMALL).expect("made");
        let (project, _) = quota_of(&dir);
        // As if another had drawn the same at once.
        let other = place.path().join("other");
        fs::create_dir(&other).expect("mkdir");
        let opened = File::open(&other).expect("open");
        set_project(&opened, project).expect("set");
        assert_eq!(quota_of(&other).1.inodes, 2);
        let quotas = Quotas::of(opened.as_fd()).expect("quotas");
        let own = quotas.claim(opened.as_fd(), SMALL).expect("another one");
        assert_ne!(own, project);
        assert_eq!(quota_of(&dir).1.inodes, 1);
    }
}

#[test]
fn what_a_dead_run_left_goes_at_the_next_start_and_a_live_run_stays() {
    for place in places() {
        let (live, dead) = (create(&place), "ba9876543210");
        let link = place.path().join("dead");
        let crashed = Area::create(place.path(), dead, &link).expect("quotas work there");
        let dirs = [live.path(), crashed.path()].map(|area| make(area, "c", "root", SMALL).expect("made"));
        let (project, _) = quota_of(&dirs[1]);
        fs::write(dirs[1].join("file"), [1; 4096]).expect("write");
        // The daemon dies, and the keeper holds on.
        let keeper = Area::hold(&link).expect("there");
        drop(crashed);
        sweep(place.path()).expect("swept");
        assert!(dirs[1].exists(), "its keeper lives");
        drop(keeper);
        sweep(place.path()).expect("swept");
        assert!(dirs[0].exists());
        assert!(!place.path().join("writable").join(dead).exists());
        let root = File::open(place.path()).expect("open");
        assert_forgotten(&Quotas::of(root.as_fd()).expect("quotas"), project);
        remove_area(&place.path().join("link")).expect("removed");
        assert!(!live.path().exists());
    }
}

#[test]
fn kernels_without_quotactl_fd_are_asked_by_the_device() {
    for place in places() {
        let area = create(&place);
        let (project, by_file) = quota_of(&make(area.path(), "c", "root", SMALL).expect("made"));
        let dir = File::open(place.path()).expect("open");
        let device = project::device_of(dir.as_fd()).expect("in the mount table");
        assert_eq!(project_quota(QuotaTarget::Device(&device), project).expect("its quota"), by_file);
    }
}

#[test]
fn a_state_directory_without_quotas_is_left_as_it_is() {
    let place = tempfile::tempdir_in("/dev/shm").expect("tempdir");
    let error = Area::create(place.path(), RUN, &place.path().join("link")).expect_err("a tmpfs");
    assert!(error.to_string().contains("only ext4 and XFS"), "{error}");
    sweep(place.path()).expect("nothing to do");
    assert!(Area::hold(&place.path().join("link")).is_none());
    remove_area(&place.path().join("link")).expect("nothing to do");
    assert_eq!(fs::read_dir(place.path()).expect("read").count(), 0);
}

#[test]
fn leftovers_of_dead_runs_go_also_where_quotas_are_off_now() {
    let place = tempfile::tempdir().expect("tempdir");
    let left = place.path().join("writable").join(RUN).join("c/root/u/deep/er");
    fs::create_dir_all(&left).expect("mkdir");
    std::os::unix::fs::symlink(place.path(), left.join("up")).expect("symlink");
    sweep(place.path()).expect("swept");
    assert_eq!(fs::read_dir(place.path().join("writable")).expect("read").count(), 0);
    assert!(place.path().exists());
}
