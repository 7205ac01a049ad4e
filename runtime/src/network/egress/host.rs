//! What the host offers: a free range of addresses, the interfaces that lead out, and whether they
//! forward.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_route::AddressFamily;

use crate::network::Cidr;
use crate::network::netlink::{Route, Socket};
use crate::{Error, ErrorKind, Result};

/// Ranges that are tried in order when none is given. The first two are for benchmarks of network
/// devices (RFC 2544) and nobody's; the others are private. Not 100.64.0.0/10 (RFC 6598): clouds
/// have their own services there.
const RANGES: [&str; 4] = ["198.19.0.0/16", "198.18.0.0/16", "10.213.0.0/16", "172.29.0.0/16"];
/// A range of unique local addresses (RFC 4193); a container's ends with its IPv4 address.
const RANGE6: Cidr6 = Cidr6(Ipv6Addr::new(0xfd73, 0x6b69, 0x6666, 0, 0, 0, 0, 0), 64);
/// Longest prefix of a given range: 16 addresses.
const PREFIX_MAX: u8 = 28;

struct Cidr6(Ipv6Addr, u8);

pub(super) fn range6() -> Cidr {
    Cidr::around(RANGE6.0.into(), RANGE6.1)
}

/// The IPv6 address that belongs to an IPv4 one.
pub(super) fn address6(address: Ipv4Addr) -> Ipv6Addr {
    Ipv6Addr::from_bits(RANGE6.0.to_bits() | u128::from(address.to_bits()))
}

/// Whether a range can be given to containers at all.
pub(super) fn check_range(range: Cidr) -> Result<()> {
    let unusable = |why: &str| {
        Err(Error::new(
            ErrorKind::InvalidArgument,
            format!("containers cannot have addresses of {range}: {why}"),
        )
        .advise("give a private range such as 10.213.0.0/16"))
    };
    if !range.address().is_ipv4() {
        return unusable("it is not IPv4");
    }
    if !(8..=PREFIX_MAX).contains(&range.prefix()) {
        return unusable(&format!("its prefix must be of 8 to {PREFIX_MAX} bits"));
    }
    let blocked = super::rules::BLOCKED.iter().filter_map(|block| block.parse::<Cidr>().ok());
    if blocked.into_iter().any(|block| block.overlaps(&range)) {
        return unusable("it is link-local, multicast or metadata");
    }
    Ok(())
}

/// The range that containers get addresses of: the given one, or the first that the host has no
/// route or address in.
pub(super) fn choose_range(given: Option<Cidr>, routes: &[Route]) -> Result<Cidr> {
    if let Some(range) = given {
        check_range(range)?;
        return match routes.iter().find(|route| uses(route, range)) {
            None => Ok(range),
            Some(route) => Err(in_use(&range.to_string(), route)),
        };
    }
    let ranges = RANGES.iter().filter_map(|text| text.parse::<Cidr>().ok());
    let free = ranges.into_iter().find(|range| !routes.iter().any(|route| uses(route, *range)));
    free.ok_or_else(|| {
        let message = format!("the host has routes into each of {}", RANGES.join(", "));
        Error::new(ErrorKind::Host, message).advise("give a free range with --egress-range")
    })
}

/// Whether a route says that addresses of a range are somewhere in particular.
fn uses(route: &Route, range: Cidr) -> bool {
    let Some(destination) = route.destination else { return false };
    let block = Cidr::around(destination, route.prefix);
    !route.ours && route.prefix > 0 && block.overlaps(&range)
}

fn in_use(range: &str, route: &Route) -> Error {
    let destination = route.destination.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let message = format!("the host has a route to {destination}/{} in the range {range}", route.prefix);
    Error::new(ErrorKind::Host, message).advise("give a range that the host does not use with --egress-range")
}

/// The interfaces of the default routes of a family, in every table: which one a packet takes is for
/// the host's rules to say.
pub(super) fn uplinks(socket: &Socket, routes: &[Route]) -> Result<Vec<String>> {
    let defaults = routes.iter().filter(|route| route.unicast && route.prefix == 0);
    let mut names = Vec::new();
    for index in defaults.flat_map(|route| &route.interfaces) {
        // One that goes at this moment is no uplink.
        let Ok(name) = socket.name(*index) else { continue };
        if !is_plain(&name) {
            let message =
                format!("the interface '{}' has a name that nft cannot be told", name.escape_default());
            return Err(Error::new(ErrorKind::Host, message).advise("rename it"));
        }
        if name != "lo" && !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(names)
}

/// Whether a name can stand in a script and in a path.
pub(super) fn is_plain(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.@:".contains(&b);
    !name.is_empty() && name.len() <= 15 && name.bytes().all(allowed) && name != "." && name != ".."
}

pub(super) fn routes(socket: &Socket, family: AddressFamily) -> Result<Vec<Route>> {
    socket.routes(family).map_err(|e| Error::host("cannot list the routes of the host", e))
}

/// A setting of an interface, of the namespace that this thread is in.
pub(super) fn sysctl(family: &str, interface: &str, name: &str) -> String {
    format!("/proc/sys/net/{family}/conf/{interface}/{name}")
}

/// Whether a setting is on; `None` where the kernel does not know it.
pub(super) fn is_on(path: &str) -> Option<bool> {
    fs::read_to_string(path).ok().map(|text| text.trim() != "0")
}

/// Changes a setting.
pub(super) fn set(path: &str, value: &str) -> Result<()> {
    fs::write(path, value).map_err(|e| {
        Error::host(format!("cannot write {value} to {path}"), e)
            .advise("Skiff must be able to write to /proc/sys/net")
    })
}

/// Changes a setting, where the kernel knows it.
pub(super) fn set_if_known(path: &str, value: &str) -> Result<()> {
    match fs::write(path, value) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(Error::host(format!("cannot write {value} to {path}"), e))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(text: &str) -> Route {
        let block: Cidr = text.parse().expect(text);
        Route {
            destination: Some(block.address()),
            prefix: block.prefix(),
            interfaces: vec![2],
            ours: false,
            unicast: true,
        }
    }

    #[test]
    fn a_range_that_the_host_uses_is_passed_over() {
        let default = Route { destination: None, prefix: 0, ..route("0.0.0.0/0") };
        let chosen = |routes: &[Route]| choose_range(None, routes).map(|range| range.to_string());
        assert_eq!(chosen(&[default]).expect("free"), "198.19.0.0/16");
        assert_eq!(chosen(&[route("198.18.0.0/15")]).expect("free"), "10.213.0.0/16");
        assert_eq!(chosen(&[route("198.19.7.1/32"), route("10.0.0.0/8")]).expect("free"), "198.18.0.0/16");
        let all = [route("198.18.0.0/15"), route("10.0.0.0/8"), route("172.16.0.0/12")];
        let error = chosen(&all).expect_err("none is free");
        assert!(error.advice().is_some_and(|advice| advice.contains("--egress-range")), "{error}");
    }

    #[test]
    fn what_other_runs_have_is_no_use_by_the_host() {
        let ours = Route { ours: true, ..route("198.19.0.7/32") };
        assert_eq!(choose_range(None, &[ours]).expect("free").to_string(), "198.19.0.0/16");
    }

    #[test]
    fn a_given_range_must_be_free_and_fit() {
        let give = |text: &str, routes: &[Route]| choose_range(Some(text.parse().expect(text)), routes);
        assert!(give("10.5.0.0/24", &[]).is_ok());
        let error = give("10.5.0.0/24", &[route("10.0.0.0/8")]).expect_err("in use");
        assert!(error.to_string().contains("10.0.0.0/8"), "{error}");
        for text in ["10.5.0.0/29", "0.0.0.0/4", "169.254.0.0/24", "100.100.0.0/16", "fd00::/64"] {
            let error = give(text, &[]).expect_err(text);
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{text}");
        }
    }

    #[test]
    fn an_ipv6_address_belongs_to_each_ipv4_address() {
        let address = address6(Ipv4Addr::new(198, 19, 3, 4));
        assert_eq!(address.to_string(), "fd73:6b69:6666::c613:304");
        assert!(range6().contains(address.into()));
    }

    #[test]
    fn names_that_could_end_a_string_or_a_path_are_not_plain() {
        for name in ["eth0", "enp3s0f0.100", "wg-0", "a@b"] {
            assert!(is_plain(name), "{name}");
        }
        for name in ["", "..", "a\"b", "a*", "a{b", "ü", "a;b", "abcdefghijklmnop"] {
            assert!(!is_plain(name), "{name}");
        }
    }
}
