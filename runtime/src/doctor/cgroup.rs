//! The cgroup hierarchy: version 2 alone, version 1, or both (hybrid).

use std::path::Path;

use super::host::Host;
use super::mounts::{self, Mount};
use super::{Check, Status};
use crate::cgroup::{NEEDED, Version, delegated, is_marked, own_path};

const NAME: &str = "cgroup";

/// Where every distribution mounts the hierarchy.
const MOUNT_POINT: &str = "/sys/fs/cgroup";

/// Controllers that a version 1 hierarchy must have: three for limits, two to freeze and to fence.
const V1_CONTROLLERS: [&str; 5] = ["memory", "cpu", "pids", "freezer", "devices"];

/// What there is where systemd runs the host (sd_booted(3)).
const SYSTEMD: &str = "/run/systemd/system";

const ADVICE_NONE: &str = "mount it: mount -t cgroup2 none /sys/fs/cgroup";
const ADVICE_DELEGATE: &str = "let systemd delegate all controllers: `Delegate=yes` in the unit";
const ADVICE_READ_ONLY: &str = "run skiff outside a container, or with a writable /sys/fs/cgroup";

pub(super) fn check(host: &Host) -> Check {
    let mounts = match mounts::read(host) {
        Ok(mounts) => mounts,
        Err(e) => return Check::fail(NAME, format!("/proc/self/mountinfo: {e}"), "mount proc on /proc"),
    };
    let root = mounts.iter().rfind(|m| m.point == Path::new(MOUNT_POINT));
    if let Some(root) = root.filter(|m| m.fs_type == "cgroup2") {
        return check_v2(host, root);
    }
    let v1: Vec<&Mount> = mounts.iter().filter(|m| m.fs_type == "cgroup").collect();
    if v1.is_empty() {
        return Check::fail(NAME, format!("nothing is mounted on {MOUNT_POINT}"), ADVICE_NONE);
    }
    let hybrid = mounts.iter().any(|m| m.fs_type == "cgroup2");
    check_v1(&v1, if hybrid { "version 1 (hybrid)" } else { "version 1" })
}

fn check_v2(host: &Host, root: &Mount) -> Check {
    let available = match host.read("/sys/fs/cgroup/cgroup.controllers") {
        Ok(available) => available,
        Err(e) => return Check::fail(NAME, format!("{MOUNT_POINT}/cgroup.controllers: {e}"), ADVICE_NONE),
    };
    let missing = absent(&NEEDED, |want| available.split_whitespace().any(|has| has == want));
    let check = judge("version 2", &missing, root.has("ro"), &available);
    if check.status == Status::Ok { place(host, &check) } else { check }
}

/// Where the groups of containers go, when this program is started as it is now.
fn place(host: &Host, check: &Check) -> Check {
    let own = host.read("/proc/self/cgroup").ok().and_then(|text| own_path(&text, Version::V2));
    let dir = |group: &Path| host.path(MOUNT_POINT).join(group);
    let Some(base) = own.and_then(|own| delegated(&own, &|group| is_marked(&dir(group)))) else {
        let systemd = host.path(SYSTEMD).is_dir();
        let note =
            if systemd { " (not delegated by systemd; with `Delegate=yes` below the unit)" } else { "" };
        return Check::ok(NAME, format!("{}; groups below /skiff{note}", check.found));
    };
    let given = std::fs::read_to_string(dir(&base).join("cgroup.controllers")).unwrap_or_default();
    let missing = absent(&NEEDED, |want| given.split_whitespace().any(|has| has == want));
    if missing.is_empty() {
        return Check::ok(
            NAME,
            format!("{}; groups below /{}, which is delegated", check.found, base.display()),
        );
    }
    let found = format!("version 2, and /{} is delegated without {}", base.display(), missing.join(", "));
    Check::fail(NAME, found, ADVICE_DELEGATE)
}

fn check_v1(mounts: &[&Mount], version: &str) -> Check {
    let missing = absent(&V1_CONTROLLERS, |want| mounts.iter().any(|m| m.has(want)));
    let read_only = mounts.iter().any(|m| m.has("ro") && V1_CONTROLLERS.iter().any(|c| m.has(c)));
    judge(version, &missing, read_only, &V1_CONTROLLERS.join(" "))
}

fn absent<'a>(wanted: &[&'a str], has: impl Fn(&str) -> bool) -> Vec<&'a str> {
    wanted.iter().copied().filter(|want| !has(want)).collect()
}

fn judge(version: &str, missing: &[&str], read_only: bool, controllers: &str) -> Check {
    if !missing.is_empty() {
        let found = format!("{version} without {}", missing.join(", "));
        return Check::fail(NAME, found, missing_advice(missing));
    }
    if read_only {
        return Check::fail(NAME, format!("{version}, mounted read-only"), ADVICE_READ_ONLY);
    }
    Check::ok(NAME, format!("{version} with {controllers}"))
}

fn missing_advice(missing: &[&str]) -> String {
    if missing.contains(&"memory") {
        "boot with `cgroup_enable=memory` (some distributions leave the memory controller off)".into()
    } else {
        format!("boot a kernel with these controllers, and mount them below {MOUNT_POINT}")
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Fake;
    use super::*;

    fn v1(controllers: &[&str]) -> String {
        let mut table = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n".to_owned();
        for c in controllers {
            table += &format!("32 31 0:29 / /sys/fs/cgroup/{c} rw,relatime - cgroup cgroup rw,{c}\n");
        }
        table
    }

    fn checked(table: &str) -> Check {
        check(&Fake::new().file("proc/self/mountinfo", table).host())
    }

    fn checked_v2(controllers: &str, options: &str) -> Check {
        let table = format!("31 23 0:28 / /sys/fs/cgroup {options} - cgroup2 cgroup2 rw,nsdelegate\n");
        let fake = Fake::new().file("proc/self/mountinfo", &table);
        check(&fake.file("sys/fs/cgroup/cgroup.controllers", controllers).host())
    }

    #[test]
    fn version_1_with_shared_hierarchies_is_ok() {
        let check = checked(&v1(&["cpu,cpuacct", "memory", "pids", "freezer", "devices"]));
        assert_eq!(check.status, Status::Ok, "{check:?}");
        assert!(check.found.starts_with("version 1 with"));
    }

    #[test]
    fn hybrid_is_told_from_version_1() {
        let table = v1(&["cpu", "memory", "pids", "freezer", "devices"])
            + "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        assert!(checked(&table).found.starts_with("version 1 (hybrid) with"));
    }

    #[test]
    fn version_1_without_memory_fails_and_names_the_boot_option() {
        let check = checked(&v1(&["cpu", "pids", "freezer", "devices"]));
        assert_eq!((check.status, check.found.as_str()), (Status::Fail, "version 1 without memory"));
        assert!(check.advice.is_some_and(|a| a.contains("cgroup_enable=memory")));
    }

    #[test]
    fn version_2_is_ok_or_names_what_it_lacks() {
        assert_eq!(checked_v2("cpuset cpu io memory hugetlb pids rdma misc\n", "rw").status, Status::Ok);
        assert_eq!(checked_v2("cpuset io memory\n", "rw").found, "version 2 without cpu, pids");
        assert_eq!(checked_v2("", "rw").status, Status::Fail);
    }

    const CONTROLLERS: &str = "cpuset cpu io memory pids";

    fn unified(own: &str) -> Fake {
        let table = "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
        let fake = Fake::new().file("proc/self/mountinfo", table).file("proc/self/cgroup", own);
        fake.file("sys/fs/cgroup/cgroup.controllers", CONTROLLERS)
    }

    #[test]
    fn where_groups_go_is_told() {
        let session = "0::/user.slice/user-0.slice/session-1.scope\n";
        let alone = check(&unified(session).host());
        assert!(alone.found.ends_with("; groups below /skiff"), "{alone:?}");
        let systemd = check(&unified(session).file("run/systemd/system/x", "").host());
        assert_eq!(systemd.status, Status::Ok);
        assert!(
            systemd.found.contains("not delegated") && systemd.found.contains("Delegate=yes"),
            "{systemd:?}"
        );
    }

    #[test]
    fn a_delegated_group_has_the_controllers_or_fails() {
        for (given, status) in [("cpu memory pids", Status::Ok), ("cpu pids", Status::Fail)] {
            let unit = "sys/fs/cgroup/system.slice/x.service";
            let fake = unified("0::/system.slice/x.service/daemon\n");
            let fake = fake.file(&format!("{unit}/cgroup.controllers"), given);
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::setxattr(fake.root().join(unit), "user.delegate", b"1", flags)
                .expect("the temporary directory keeps attributes");
            let check = check(&fake.host());
            assert_eq!(check.status, status, "{check:?}");
            assert!(check.found.contains("/system.slice/x.service"), "{check:?}");
        }
    }

    #[test]
    fn a_read_only_hierarchy_fails() {
        let check = checked_v2("cpu memory pids", "ro,nosuid");
        assert_eq!((check.status, check.found.as_str()), (Status::Fail, "version 2, mounted read-only"));
    }

    #[test]
    fn no_hierarchy_fails() {
        let check = checked("27 1 254:0 / / rw - ext4 /dev/vda rw\n");
        assert_eq!(
            (check.status, check.found.as_str()),
            (Status::Fail, "nothing is mounted on /sys/fs/cgroup")
        );
    }
}
