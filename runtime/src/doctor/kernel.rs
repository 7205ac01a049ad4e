//! The kernel's version, namespaces and seccomp filters.

use super::Check;
use super::host::Host;
use crate::rootfs::{LAYERS_ONE_BY_ONE, kernel_version};

/// `openat2`, pidfds and overlay's `volatile` are there from 5.11 on in one kernel.
const NEEDED: (u32, u32) = (5, 11);

/// The namespaces of a container, with the kernel options that make them.
const NAMESPACES: [(&str, &str); 6] = [
    ("mnt", "CONFIG_NAMESPACES"),
    ("pid", "CONFIG_PID_NS"),
    ("net", "CONFIG_NET_NS"),
    ("ipc", "CONFIG_IPC_NS"),
    ("uts", "CONFIG_UTS_NS"),
    ("cgroup", "CONFIG_CGROUPS"),
];

/// The actions of the default seccomp profile.
const SECCOMP_ACTIONS: [&str; 2] = ["errno", "allow"];

pub(super) fn version(host: &Host) -> Check {
    const NAME: &str = "kernel";
    let release = host.read("/proc/sys/kernel/osrelease").unwrap_or_default();
    let Some(version) = kernel_version(&release) else {
        return Check::fail(NAME, format!("unknown release `{release}`"), "mount proc on /proc");
    };
    if version < NEEDED {
        let (major, minor) = NEEDED;
        Check::fail(NAME, release, format!("boot a kernel of version {major}.{minor} or later"))
    } else if version < LAYERS_ONE_BY_ONE {
        let (major, minor) = LAYERS_ONE_BY_ONE;
        let advice = format!("optional: from {major}.{minor} on, overlay takes its layers one by one");
        Check::warn(NAME, release, advice)
    } else {
        Check::ok(NAME, release)
    }
}

pub(super) fn namespaces(host: &Host) -> Check {
    const NAME: &str = "namespaces";
    for (name, option) in NAMESPACES {
        // A link whose target names no file: it must not be followed.
        if host.path(&format!("/proc/self/ns/{name}")).symlink_metadata().is_err() {
            return Check::fail(
                NAME,
                format!("no {name} namespaces"),
                format!("boot a kernel with {option}=y"),
            );
        }
        let limit = format!("/proc/sys/user/max_{name}_namespaces");
        if host.read(&limit).is_ok_and(|max| max == "0") {
            let sysctl = format!("user.max_{name}_namespaces");
            return Check::fail(NAME, format!("{sysctl} is 0"), format!("sysctl -w {sysctl}=10000"));
        }
    }
    Check::ok(NAME, NAMESPACES.map(|(name, _)| name).join(" "))
}

pub(super) fn seccomp(host: &Host) -> Check {
    const NAME: &str = "seccomp";
    const ADVICE: &str = "boot a kernel with CONFIG_SECCOMP_FILTER=y";
    let Ok(actions) = host.read("/proc/sys/kernel/seccomp/actions_avail") else {
        return Check::fail(NAME, "the kernel has no seccomp filters", ADVICE);
    };
    let missing: Vec<&str> = SECCOMP_ACTIONS
        .into_iter()
        .filter(|want| !actions.split_whitespace().any(|has| has == *want))
        .collect();
    if missing.is_empty() {
        Check::ok(NAME, format!("filters with {actions}"))
    } else {
        Check::fail(NAME, format!("no action {}", missing.join(", ")), ADVICE)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::super::testing::Fake;
    use super::*;

    fn version_of(release: &str) -> Check {
        version(&Fake::new().file("proc/sys/kernel/osrelease", release).host())
    }

    #[test]
    fn kernels_are_judged_by_major_and_minor() {
        for (release, status) in [
            ("6.18.5\n", Status::Ok),
            ("6.5.0-rc1", Status::Ok),
            ("10.0", Status::Ok),
            ("6.1.0-28-cloud-amd64", Status::Warn),
            ("5.11.0", Status::Warn),
            ("5.10.0-33-amd64", Status::Fail),
            ("3.10.0-1160.el7.x86_64", Status::Fail),
            ("plan9", Status::Fail),
            ("", Status::Fail),
        ] {
            assert_eq!(version_of(release).status, status, "{release}");
        }
    }

    #[test]
    fn an_old_kernel_is_named_and_so_is_the_one_to_boot() {
        let check = version_of("5.4.0-200-generic");
        assert_eq!(check.found, "5.4.0-200-generic");
        assert!(check.advice.is_some_and(|a| a.contains("5.11")));
    }

    fn with_namespaces(names: &[&str]) -> Fake {
        names.iter().fold(Fake::new(), |fake, name| fake.link(&format!("proc/self/ns/{name}"), "none:[1]"))
    }

    #[test]
    fn all_namespaces_are_ok() {
        let fake = with_namespaces(&["mnt", "pid", "net", "ipc", "uts", "cgroup"]);
        assert_eq!(namespaces(&fake.host()).status, Status::Ok);
    }

    #[test]
    fn a_missing_namespace_fails_and_names_its_option() {
        let check = namespaces(&with_namespaces(&["mnt", "pid", "ipc", "uts", "cgroup"]).host());
        assert_eq!((check.status, check.found.as_str()), (Status::Fail, "no net namespaces"));
        assert!(check.advice.is_some_and(|a| a.contains("CONFIG_NET_NS")));
    }

    #[test]
    fn namespaces_forbidden_by_sysctl_fail() {
        let fake = with_namespaces(&["mnt", "pid", "net", "ipc", "uts", "cgroup"])
            .file("proc/sys/user/max_net_namespaces", "0\n");
        let check = namespaces(&fake.host());
        assert_eq!((check.status, check.found.as_str()), (Status::Fail, "user.max_net_namespaces is 0"));
    }

    #[test]
    fn seccomp_needs_its_actions() {
        const FILE: &str = "proc/sys/kernel/seccomp/actions_avail";
        let full = Fake::new().file(FILE, "kill_process kill_thread trap errno trace log allow\n");
        assert_eq!(seccomp(&full.host()).status, Status::Ok);
        let half = Fake::new().file(FILE, "kill_thread allow\n");
        assert_eq!(seccomp(&half.host()).found, "no action errno");
        assert_eq!(seccomp(&Fake::new().host()).status, Status::Fail);
    }
}
