//! Who answers a container's questions for names: what its `/etc/resolv.conf` says.

use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6, UdpSocket};

use super::Network;
use super::egress::is_blocked;

/// What the host says.
const HOST: &str = "/etc/resolv.conf";
/// What systemd-resolved asks; its own server is on a loopback address.
const SYSTEMD: &str = "/run/systemd/resolve/resolv.conf";
/// Most that is read of such a file.
const BYTES_MAX: u64 = 64 << 10;
/// Servers that resolvers look at (`MAXNS` of glibc and musl).
const SERVERS_MAX: usize = 3;
const PORT: u16 = 53;

/// Where a container with a forwarder asks: an address of its own loopback, as Docker has it.
pub(super) const FORWARDER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 11)), PORT);

/// The text for a container, and whom a forwarder has to ask for it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Resolver {
    pub(crate) text: String,
    /// Servers that only the host reaches; empty when no forwarder is needed.
    pub(crate) upstreams: Vec<SocketAddr>,
}

impl Resolver {
    /// For a container of this host.
    pub(crate) fn of(network: Network) -> Self {
        let own = read(HOST);
        match network {
            Network::None => Self { text: without_loopback(&own), upstreams: Vec::new() },
            Network::Host => Self { text: own, upstreams: Vec::new() },
            Network::Bridge => bridge(&own, || read(SYSTEMD), is_reachable),
        }
    }
}

/// The host's own text where containers reach all its servers, or the text behind systemd-resolved
/// where they reach those; else a forwarder, which asks as the host does.
fn bridge(own: &str, systemd: impl Fn() -> String, reachable: impl Fn(IpAddr) -> bool) -> Resolver {
    let all_reachable = |text: &str| {
        let servers = servers(text);
        !servers.is_empty() && servers.iter().all(|server| reachable(server.ip()))
    };
    if all_reachable(own) {
        return Resolver { text: own.to_owned(), upstreams: Vec::new() };
    }
    let is_stub = servers(own).iter().all(|server| server.ip() == IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53)));
    if is_stub && !servers(own).is_empty() {
        let behind = systemd();
        if all_reachable(&behind) {
            return Resolver { text: behind, upstreams: Vec::new() };
        }
    }
    let mut upstreams = servers(own);
    if upstreams.is_empty() {
        // What a resolver asks when its file names nobody.
        upstreams.push(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PORT));
    }
    let others = own.lines().filter(|line| line.split_whitespace().next() != Some("nameserver"));
    let first = format!("nameserver {}\n", FORWARDER.ip());
    let text = others.fold(first, |text, line| format!("{text}{line}\n"));
    Resolver { text, upstreams }
}

/// Whether a container with a way out reaches an address: it is not the host's own, to which it can
/// bind, nor kept from containers.
fn is_reachable(address: IpAddr) -> bool {
    !is_blocked(address) && UdpSocket::bind((address, 0)).is_err()
}

/// The servers of a text; what is no address is passed over, as resolvers do.
fn servers(text: &str) -> Vec<SocketAddr> {
    let named = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()).flatten()
    });
    named.filter_map(server).take(SERVERS_MAX).collect()
}

/// An address, or a link-local one with its interface (`fe80::1%eth0`).
fn server(word: &str) -> Option<SocketAddr> {
    if let Ok(address) = word.parse::<IpAddr>() {
        return Some(SocketAddr::new(address, PORT));
    }
    let (address, interface) = word.split_once('%')?;
    let plain = interface.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.@".contains(&b));
    if !plain || interface.starts_with('.') {
        return None;
    }
    let index = std::fs::read_to_string(format!("/sys/class/net/{interface}/ifindex")).ok()?;
    Some(SocketAddrV6::new(address.parse().ok()?, PORT, 0, index.trim().parse().ok()?).into())
}

/// Lines without the servers that only the host itself reaches.
fn without_loopback(text: &str) -> String {
    let local = |line: &&str| {
        let mut words = line.split_whitespace();
        words.next() == Some("nameserver")
            && words.next().is_some_and(|a| a.starts_with("127.") || a == "::1")
    };
    text.lines().filter(|line| !local(line)).map(|line| format!("{line}\n")).collect()
}

/// A file's text; empty when it cannot be read.
fn read(path: &str) -> String {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(BYTES_MAX).read_to_end(&mut bytes));
    if read.is_err() {
        return String::new();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(own: &str, systemd: &str) -> Resolver {
        bridge(own, || systemd.to_owned(), |address| !address.is_loopback() && !is_blocked(address))
    }

    fn addresses(resolver: &Resolver) -> Vec<String> {
        resolver.upstreams.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn servers_that_containers_reach_are_told_as_they_are() {
        let text = "search example.com\nnameserver 10.0.0.2\nnameserver 2001:db8::53\noptions ndots:2\n";
        assert_eq!(resolve(text, ""), Resolver { text: text.into(), upstreams: Vec::new() });
    }

    #[test]
    fn behind_systemd_resolved_are_servers_that_containers_reach() {
        let stub = "nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch lan\n";
        let behind = "nameserver 10.0.0.2\nsearch lan\n";
        assert_eq!(resolve(stub, behind).text, behind);
        let unreachable = resolve(stub, "nameserver fe80::1%eth0\n");
        assert_eq!(unreachable.text, "nameserver 127.0.0.11\noptions edns0 trust-ad\nsearch lan\n");
        assert_eq!(addresses(&unreachable), ["127.0.0.53:53"]);
    }

    #[test]
    fn servers_that_only_the_host_reaches_get_a_forwarder() {
        for own in ["nameserver 127.0.0.1\n", "nameserver ::1\n", "nameserver 169.254.169.253\n"] {
            let resolver = resolve(own, "nameserver 10.0.0.2\n");
            assert_eq!(resolver.text, "nameserver 127.0.0.11\n");
            assert_eq!(resolver.upstreams.len(), 1, "{own}");
        }
        let mixed = resolve("nameserver 10.0.0.2\nnameserver 127.0.0.1\n", "");
        assert_eq!(addresses(&mixed), ["10.0.0.2:53", "127.0.0.1:53"]);
    }

    #[test]
    fn nonsense_is_passed_over_and_bounded() {
        let many = "nameserver 127.0.0.1\n".repeat(1000);
        assert_eq!(resolve(&many, "").upstreams.len(), SERVERS_MAX);
        for own in [
            "",
            "nameserver\n",
            "nameserver 1.2.3\nnameserver fe80::1%../../etc\n",
            "\0\u{fffd}",
            "nameserver x%lo",
        ] {
            let resolver = resolve(own, "");
            assert_eq!(addresses(&resolver), ["127.0.0.1:53"], "{own:?}");
            assert!(resolver.text.starts_with("nameserver 127.0.0.11\n"));
        }
    }

    #[test]
    fn an_interface_may_be_named_with_a_link_local_address() {
        // Every host has lo, and it is the first.
        let Some(SocketAddr::V6(found)) = server("fe80::1%lo") else { panic!("an address") };
        assert_eq!(found.scope_id(), 1);
    }

    #[test]
    fn a_container_without_a_way_out_is_told_of_no_loopback_server() {
        let text = "search a\nnameserver 127.0.0.53\nnameserver 10.0.0.2\nnameserver ::1\n";
        assert_eq!(without_loopback(text), "search a\nnameserver 10.0.0.2\n");
    }

    #[test]
    fn own_addresses_of_the_host_are_not_reached() {
        assert!(!is_reachable("127.0.0.1".parse().expect("ip")));
        // TEST-NET-1 (RFC 5737) is on no host.
        assert!(is_reachable("192.0.2.1".parse().expect("ip")));
    }
}
