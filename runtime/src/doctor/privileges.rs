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
