use super::*;

fn own(path: &str) -> PathBuf {
    own_path(&format!("0::{path}\n"), Version::V2).expect(path)
}

#[test]
fn the_own_group_is_found_in_both_versions() {
    assert_eq!(own("/system.slice/skiff.service"), Path::new("system.slice/skiff.service"));
    assert_eq!(own("/"), Path::new(""));
    let hybrid = "9:cpu,cpuacct:/a\n8:pids:/user.slice/b\n1:name=systemd:/c\n0::/d\n";
    assert_eq!(own_path(hybrid, Version::V1), Some("user.slice/b".into()));
    assert_eq!(own_path(hybrid, Version::V2), Some("d".into()));
    for out_of_reach in ["0::/../other", "0::", "", "8:pids"] {
        assert_eq!(own_path(out_of_reach, Version::V2), None, "{out_of_reach}");
    }
}

#[test]
fn only_a_delegated_group_of_the_process_itself_is_used() {
    let marked = |marked: &'static str| move |group: &Path| group == Path::new(marked);
    let unit = "system.slice/skiff.service";
    let found = |path: &str, mark: &'static str| delegated(&own(path), &marked(mark));
    assert_eq!(found("/system.slice/skiff.service", unit), Some(unit.into()));
    assert_eq!(found("/system.slice/skiff.service/daemon", unit), Some(unit.into()));
    assert_eq!(found("/system.slice/skiff.service/a/b", unit), None, "somebody's further below");
    let user = "user.slice/user-0.slice/user@0.service";
    assert_eq!(found("/user.slice/user-0.slice/user@0.service/init.scope", user), None, "its manager's");
    assert_eq!(found("/user.slice/user-0.slice/user@0.service/app.slice/x.scope", user), None);
    assert_eq!(found("/user.slice/user-0.slice/session-1.scope", "none"), None);
    assert_eq!(found("/", ""), None, "the root belongs to nobody");
    assert_eq!(found("/daemon", ""), None);
}

#[test]
fn paths_that_lead_elsewhere_are_refused() {
    let hierarchy = Hierarchy::unified_at(Path::new("/nowhere"));
    for path in ["", "a", "../a", "/a/../b", "/.."] {
        let error = settle(&hierarchy, &CgroupParent::Below(path.into())).expect_err(path);
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{path}");
        assert!(error.to_string().contains(path), "{error}");
    }
}

/// A version 2 hierarchy that no kernel looks after, with one group.
fn fake(group: &str, controllers: &str, procs: &str) -> (tempfile::TempDir, Hierarchy, PathBuf) {
    let root = tempfile::tempdir().expect("tempdir");
    let dir = root.path().join(group);
    fs::create_dir_all(&dir).expect("mkdir");
    fs::write(dir.join("cgroup.controllers"), controllers).expect("write");
    fs::write(dir.join("cgroup.procs"), procs).expect("write");
    let hierarchy = Hierarchy::unified_at(root.path());
    (root, hierarchy, dir)
}

fn mark(dir: &Path) {
    rustix::fs::setxattr(dir, MARKS[1], b"1", rustix::fs::XattrFlags::empty())
        .expect("the temporary directory keeps attributes");
}

#[test]
fn a_given_group_must_exist_have_controllers_and_no_processes() {
    let below = |controllers, procs, path: &str| {
        let (_root, hierarchy, _) = fake("a.service/runs", controllers, procs);
        settle(&hierarchy, &CgroupParent::Below(path.into()))
    };
    let all = "cpuset cpu io memory pids\n";
    let settled = below(all, "", "/a.service/runs").expect("usable");
    assert_eq!(settled.base(), Path::new("a.service/runs"));
    assert_eq!(settled.parent(), Path::new("a.service/runs/skiff"));
    for (controllers, procs, path, named) in [
        (all, "", "/a.service/none", "a.service/none"),
        ("cpu pids", "", "/a.service/runs", "'cpu pids'"),
        (all, "12\n34\n", "/a.service/runs", "12"),
    ] {
        let error = below(controllers, procs, path).expect_err(named);
        assert_eq!(error.kind(), ErrorKind::NoCgroup, "{error}");
        assert!(error.to_string().contains(named) && error.advice().is_some(), "{error}");
    }
    below("", "1\n", "/").expect("the root has what it has");
}

#[test]
fn a_group_that_is_not_delegated_is_left_alone() {
    let (root, hierarchy, dir) = fake("system.slice/x.service", "cpu memory pids", "12\n");
    let settled = settle_auto(&hierarchy, "0::/system.slice/x.service\n").expect("settled");
    assert_eq!(settled.parent(), Path::new("skiff"));
    assert!(!dir.join(LEAF).exists());
    assert_eq!(fs::read_dir(root.path()).expect("read").count(), 1, "nothing was made");
}

#[test]
fn a_delegated_group_is_used_and_emptied() {
    let (_root, hierarchy, dir) = fake("system.slice/x.service", "cpu memory pids", "");
    mark(&dir);
    let settled = settle_auto(&hierarchy, "0::/system.slice/x.service\n").expect("settled");
    assert_eq!(settled.base(), Path::new("system.slice/x.service"));
    assert!(dir.join(LEAF).is_dir());
    let again = settle_auto(&hierarchy, "0::/system.slice/x.service/daemon\n").expect("settled");
    assert_eq!(again, settled, "a process that was moved finds the same");
}

#[test]
fn a_delegated_group_without_controllers_or_that_cannot_be_emptied_is_told() {
    let (_root, hierarchy, dir) = fake("x.service", "cpu", "");
    mark(&dir);
    let error = settle_auto(&hierarchy, "0::/x.service\n").expect_err("no memory");
    assert!(error.advice().is_some_and(|a| a.contains("Delegate=yes")), "{error:?}");
    // Written processes do not leave a file that is not the kernel's.
    let (_root, hierarchy, dir) = fake("x.service", "cpu memory pids", "12\n");
    mark(&dir);
    let error = settle_auto(&hierarchy, "0::/x.service\n").expect_err("12 stays");
    assert!(error.to_string().contains("x.service/daemon"), "{error}");
    assert_eq!(fs::read_to_string(dir.join(LEAF).join("cgroup.procs")).expect("asked for"), "12");
}

#[test]
fn a_keeper_goes_to_the_leaf_of_its_runs_group_if_there_is_one() {
    let (_root, hierarchy, dir) = fake("a.service", "cpu memory pids\n", "");
    let based = hierarchy.based_on(Path::new("a.service"));
    join_leaf(&based).expect("there is none");
    assert!(!dir.join(LEAF).exists());
    fs::create_dir(dir.join(LEAF)).expect("mkdir");
    join_leaf(&hierarchy).expect("at the top there is none either");
    join_leaf(&based).expect("moved");
    assert_eq!(fs::read_to_string(dir.join(LEAF).join("cgroup.procs")).expect("written"), "0");
}
