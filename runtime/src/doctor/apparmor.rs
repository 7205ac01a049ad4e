//! AppArmor, which some distributions have and others have not.

use super::Check;
use super::host::Host;
use crate::sandbox::apparmor::{ENABLED, PARSER};

pub(super) fn check(host: &Host) -> Check {
    const NAME: &str = "apparmor";
    if !host.read(ENABLED).is_ok_and(|text| text.starts_with('Y')) {
        return Check::ok(NAME, "off; containers are confined without it");
    }
    match host.program(PARSER) {
        Some(parser) => Check::ok(NAME, format!("on; {} loads the profile of containers", parser.display())),
        None => Check::warn(
            NAME,
            format!("on, but there is no program {PARSER}: containers run without a profile"),
            "apt install apparmor",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::super::testing::Fake;
    use super::*;

    #[test]
    fn a_host_with_apparmor_needs_its_parser() {
        let enabled = "sys/module/apparmor/parameters/enabled";
        assert_eq!(check(&Fake::new().host()).status, Status::Ok);
        assert_eq!(check(&Fake::new().file(enabled, "N\n").host()).status, Status::Ok);
        let without = check(&Fake::new().file(enabled, "Y\n").host());
        assert_eq!((without.status, without.advice.as_deref()), (Status::Warn, Some("apt install apparmor")));
        let with = check(&Fake::new().file(enabled, "Y\n").script("apparmor_parser", "").host());
        assert_eq!(with.status, Status::Ok, "{with:?}");
    }
}
