//! Devices, modules and programs beside the kernel's own needs.

use std::path::Path;

use rustix::fs::{Mode, OFlags, open};

use super::Check;
use super::host::Host;
use super::program::ask;

pub(super) fn loop_devices(host: &Host) -> Check {
    const NAME: &str = "loop";
    const INSTEAD: &str = "or run with --writable tmpfs";
    // Opening allocates no device.
    let control = open(host.path("/dev/loop-control"), OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    if let Err(e) = control {
        let found = format!("/dev/loop-control: {e}");
        return Check::warn(NAME, found, format!("modprobe loop as root, {INSTEAD}"));
    }
    match host.program("mkfs.ext4") {
        Some(_) => Check::ok(NAME, "devices and mkfs.ext4 for capped writable layers"),
        None => Check::warn(NAME, "no program mkfs.ext4", format!("apt install e2fsprogs, {INSTEAD}")),
    }
}

/// Tried rather than looked up: nf_tables may be built into the kernel, and then shows nowhere.
pub(super) fn nftables(host: &Host) -> Check {
    const NAME: &str = "nftables";
    const WHY: &str = "only a function's way out to the network needs it";
    let Some(nft) = host.program("nft") else {
        return Check::warn(NAME, "no program nft", format!("apt install nftables; {WHY}"));
    };
    if !host.is_root {
        return Check::warn(NAME, "program nft; not tried", "run skiff doctor as root to try it");
    }
    match ask(&nft, &["list", "tables"]) {
        Ok(answer) if answer.success => {
            forwarding(&nft).unwrap_or_else(|| Check::ok(NAME, format!("{} works", nft.display())))
        }
        Ok(answer) => {
            let found = format!("{} list tables: {}", nft.display(), answer.stderr);
            Check::warn(NAME, found, format!("modprobe nf_tables; {WHY}"))
        }
        Err(e) => Check::warn(NAME, format!("{}: {e}", nft.display()), WHY),
    }
}

/// Whether the table of `iptables` drops what the host forwards, as Docker has it: whatever Skiff's
/// table accepts, that one decides too.
fn forwarding(nft: &Path) -> Option<Check> {
    let answer = ask(nft, &["list", "chain", "ip", "filter", "FORWARD"]).ok()?;
    let drops = answer.success && answer.head.contains("policy drop");
    drops.then(|| {
        Check::warn(
            "nftables",
            "the chain FORWARD of iptables drops what it does not know",
            "for --network bridge: iptables -I FORWARD -i sk-+ -j ACCEPT; iptables -I FORWARD -o sk-+ -m \
             conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT (with Docker: DOCKER-USER instead of FORWARD)",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::super::testing::Fake;
    use super::*;

    #[test]
    fn loop_devices_need_the_control_file_and_mkfs() {
        let full = Fake::new().file("dev/loop-control", "").script("mkfs.ext4", "");
        assert_eq!(loop_devices(&full.host()).status, Status::Ok);

        let no_mkfs = loop_devices(&Fake::new().file("dev/loop-control", "").host());
        assert_eq!((no_mkfs.status, no_mkfs.found.as_str()), (Status::Warn, "no program mkfs.ext4"));
        assert!(no_mkfs.advice.is_some_and(|a| a.contains("--writable tmpfs")));

        let no_device = loop_devices(&Fake::new().script("mkfs.ext4", "").host());
        assert!(no_device.found.starts_with("/dev/loop-control: No such file"), "{no_device:?}");
        assert_eq!(no_device.status, Status::Warn);
    }

    #[test]
    fn a_program_that_cannot_be_executed_is_none() {
        let fake = Fake::new().file("dev/loop-control", "").file("bin/mkfs.ext4", "no mode");
        assert_eq!(loop_devices(&fake.host()).status, Status::Warn);
    }

    #[test]
    fn nftables_is_tried() {
        let works = nftables(&Fake::new().script("nft", "[ \"$*\" = 'list tables' ]").host());
        assert_eq!(works.status, Status::Ok, "{works:?}");
        let broken = Fake::new().script("nft", "echo 'Error: Could not process rule' >&2; exit 1");
        let broken = nftables(&broken.host());
        assert_eq!(broken.status, Status::Warn);
        assert!(broken.found.ends_with("nft list tables: Error: Could not process rule"), "{broken:?}");
    }

    #[test]
    fn a_firewall_that_drops_what_is_forwarded_is_told() {
        let script = "[ \"$2\" = tables ] || printf 'table ip filter {\\n\\tchain FORWARD {\\n\\t\\ttype filter \
                      hook forward priority filter; policy drop;\\n'";
        let check = nftables(&Fake::new().script("nft", script).host());
        assert_eq!(check.status, Status::Warn);
        assert!(check.advice.is_some_and(|advice| advice.contains("-i sk-+ -j ACCEPT")));
    }

    #[test]
    fn no_nft_and_no_root_are_told_apart() {
        assert_eq!(nftables(&Fake::new().host()).found, "no program nft");
        let fake = Fake::new().script("nft", "exit 0");
        let mut host = fake.host();
        host.is_root = false;
        assert_eq!(nftables(&host).found, "program nft; not tried");
    }
}
