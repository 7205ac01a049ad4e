//! Root, and the capabilities that root may lack in a container.

use super::Check;
use super::host::Host;

/// Capabilities that a start needs, by their number in `linux/capability.h`.
const NEEDED: [(u32, &str); 11] = [
    (0, "CAP_CHOWN"),
    (1, "CAP_DAC_OVERRIDE"),
    (3, "CAP_FOWNER"),
    (5, "CAP_KILL"),
    (6, "CAP_SETGID"),
    (7, "CAP_SETUID"),
    (8, "CAP_SETPCAP"),
    (12, "CAP_NET_ADMIN"),
    (18, "CAP_SYS_CHROOT"),
    (21, "CAP_SYS_ADMIN"),
    (27, "CAP_MKNOD"),
];

pub(super) fn check(host: &Host) -> Check {
    const NAME: &str = "root";
    let status = match host.read("/proc/self/status") {
        Ok(status) => status,
        Err(e) => return Check::fail(NAME, format!("/proc/self/status: {e}"), "mount proc on /proc"),
    };
    let uid = field(&status, "Uid:").and_then(|ids| ids.split_whitespace().nth(1));
    match uid {
        Some("0") => {}
        Some(uid) => {
            return Check::fail(
                NAME,
                format!("effective user id {uid}"),
                "run skiff as root, for example by sudo",
            );
        }
        None => return Check::fail(NAME, "/proc/self/status names no user id", "mount proc on /proc"),
    }
    let held = field(&status, "CapEff:").and_then(|set| u64::from_str_radix(set, 16).ok()).unwrap_or(0);
    let missing: Vec<&str> =
        NEEDED.iter().filter(|(n, _)| held >> n & 1 == 0).map(|(_, name)| *name).collect();
    if missing.is_empty() {
        Check::ok(NAME, "user id 0 with the capabilities that a start needs")
    } else {
        Check::fail(
            NAME,
            format!("user id 0 without {}", missing.join(", ")),
            "run skiff outside a container, or in a privileged one",
        )
    }
}

/// Open files of one container that FC promises, the most of any platform.
const OPEN_FILES: u64 = 100_000;

/// Whether containers can be given as many open files as the platforms promise.
pub(super) fn open_files(host: &Host) -> Check {
    const NAME: &str = "open_files";
    let status = host.read("/proc/self/status").unwrap_or_default();
    let held = field(&status, "CapEff:").and_then(|set| u64::from_str_radix(set, 16).ok()).unwrap_or(0);
    // CAP_SYS_RESOURCE
    if held >> 24 & 1 == 1 {
        return Check::ok(NAME, "any limit can be set");
    }
    let limits = host.read("/proc/self/limits").unwrap_or_default();
    let hard = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    match hard.and_then(|line| line.split_whitespace().nth(1)) {
        Some("unlimited") => Check::ok(NAME, "no limit"),
        Some(hard) if hard.parse().is_ok_and(|hard: u64| hard >= OPEN_FILES) => {
            Check::ok(NAME, format!("at most {hard}"))
        }
        hard => Check::warn(
            NAME,
            format!("at most {}, and fc promises {OPEN_FILES}", hard.unwrap_or("unknown")),
            format!("raise the hard limit (ulimit -Hn {OPEN_FILES}) or grant CAP_SYS_RESOURCE"),
        ),
    }
}

/// The value of a `Name:\tvalue` line.
fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::super::testing::Fake;
    use super::*;

    #[test]
    fn open_files_that_cannot_be_raised_warn() {
        let limits = |hard| {
            format!(
                "Limit Soft Hard Units\nMax open files            1024                 {hard}                files\n"
            )
        };
        let host =
            |caps, hard| Fake::new().file("proc/self/status", caps).file("proc/self/limits", &limits(hard));
        assert_eq!(open_files(&host("CapEff:\t0000000001000000\n", "20000").host()).status, Status::Ok);
        assert_eq!(open_files(&host("CapEff:\t0000000000000000\n", "100000").host()).status, Status::Ok);
        let check = open_files(&host("CapEff:\t0000000000000000\n", "20000").host());
        assert_eq!(check.status, Status::Warn);
        assert!(check.found.contains("20000"), "{check:?}");
    }

    #[test]
    fn root_with_all_capabilities_is_ok() {
        let fake =
            Fake::new().file("proc/self/status", "Name:\tx\nUid:\t0\t0\t0\t0\nCapEff:\t000001fffeffffff\n");
        assert_eq!(check(&fake.host()).status, Status::Ok);
    }

    #[test]
    fn another_user_fails_and_is_told_to_use_sudo() {
        let fake =
            Fake::new().file("proc/self/status", "Uid:\t0\t1000\t1000\t1000\nCapEff:\t0000000000000000\n");
        let check = check(&fake.host());
        assert_eq!((check.status, check.found.as_str()), (Status::Fail, "effective user id 1000"));
        assert!(check.advice.is_some_and(|a| a.contains("sudo")));
    }

    #[test]
    fn root_of_an_ordinary_container_fails_and_names_what_it_lacks() {
        let fake = Fake::new().file("proc/self/status", "Uid:\t0\t0\t0\t0\nCapEff:\t00000000a80425fb\n");
        let check = check(&fake.host());
        assert_eq!(check.status, Status::Fail);
        assert_eq!(check.found, "user id 0 without CAP_NET_ADMIN, CAP_SYS_ADMIN");
    }

    #[test]
    fn no_proc_fails() {
        assert_eq!(check(&Fake::new().host()).status, Status::Fail);
    }
}
