//! Devices, modules and programs beside the kernel's own needs.

use rustix::fs::{Mode, OFlags, open};

use super::Check;
use super::host::Host;

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

pub(super) fn nftables(host: &Host) -> Check {
    const NAME: &str = "nftables";
    let kernel = host.exists("/sys/module/nf_tables");
    match (kernel, host.program("nft")) {
        (true, Some(_)) => Check::ok(NAME, "module nf_tables and program nft"),
        (true, None) => Check::ok(NAME, "module nf_tables"),
        (false, program) => Check::warn(
            NAME,
            if program.is_some() { "program nft, but no module nf_tables" } else { "no module nf_tables" },
            "modprobe nf_tables; only a function's way out to the network needs it",
        ),
    }
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
    fn nftables_is_the_module_first() {
        let both = Fake::new().file("sys/module/nf_tables/refcnt", "1").script("nft", "");
        assert_eq!(nftables(&both.host()).found, "module nf_tables and program nft");
        let program = nftables(&Fake::new().script("nft", "").host());
        assert_eq!(
            (program.status, program.found.as_str()),
            (Status::Warn, "program nft, but no module nf_tables")
        );
        assert_eq!(nftables(&Fake::new().host()).status, Status::Warn);
    }
}
