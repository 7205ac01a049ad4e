//! The rules of the way out, as `nft` reads them.
//!
//! A run has one table, made when its first container wants a way out. Interfaces of all runs begin
//! with [`COMMON`], those of one run with [`Rules::interfaces`]; so a new container needs no rule of
//! its own. What an interface may send is decided before connection tracking and before any
//! destination is rewritten, and again when it is forwarded:
//!
//! ```text
//! from a container ─ own source? ─ allowed destination? ─┬─ to this host: drop
//!                                                        └─ forward: not to a container ─ masquerade
//! to a container ─ answer to what it began? ─ forward
//! ```

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;

use crate::network::Cidr;

/// How the interfaces of all runs begin.
pub(in crate::network) const COMMON: &str = "sk-";

/// The table that keeps a host from forwarding for others where Skiff had to turn forwarding on.
pub(super) const GUARD: &str = "skiff-uplink";

/// Where containers may not go although it may look like the outside: this host and its links, and
/// the addresses where clouds give credentials to whoever asks.
pub(super) const BLOCKED: [&str; 17] = [
    "0.0.0.0/8",
    "127.0.0.0/8",
    // Link-local (RFC 3927); metadata of AWS, Azure, GCP, Tencent (169.254.0.23).
    "169.254.0.0/16",
    // Metadata of Alibaba, Oracle and Azure's host.
    "100.100.100.200/32",
    "192.0.0.192/32",
    "168.63.129.16/32",
    "224.0.0.0/4",
    "255.255.255.255/32",
    "::/127",
    "::ffff:0.0.0.0/96",
    // Link-local and multicast.
    "fe80::/10",
    "ff00::/8",
    // Metadata of AWS and GCP.
    "fd00:ec2::/32",
    "fd20:ce::/32",
    // IPv4 link-local and Alibaba's metadata behind a NAT64 (RFC 6052) or 6to4 (RFC 3056).
    "64:ff9b::a9fe:0/112",
    "64:ff9b::6464:64c8/128",
    "2002:a9fe::/32",
];

/// Most connections of one container at once: conntrack's table is the host's, and a container that
/// filled it would cut off all others.
const FLOWS_MAX: u32 = 4096;

/// Whether containers are kept from an address.
pub(in crate::network) fn is_blocked(address: IpAddr) -> bool {
    BLOCKED.iter().any(|block| block.parse::<Cidr>().is_ok_and(|block| block.contains(address)))
}

/// What the table of a run is made of.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    /// `skiff-RUN`.
    pub(super) table: String,
    /// How the names of the run's interfaces begin.
    pub(super) interfaces: String,
    /// Where containers' addresses are from.
    pub(super) range4: Cidr,
    /// The same for IPv6; `None` where there is no way out over IPv6.
    pub(super) range6: Option<Cidr>,
}

impl Rules {
    /// Makes the table, or makes it anew, in one transaction.
    pub(super) fn script(&self) -> String {
        format!("{}\n{}", delete(&self.table), self.table())
    }

    /// Makes the table; fails where it is.
    pub(super) fn script_if_gone(&self) -> String {
        format!("create table inet {}\n{}", self.table, self.table())
    }

    fn table(&self) -> String {
        let Self { table, interfaces, range4, .. } = self;
        let source6 = self.range6.map_or_else(
            || "meta nfproto ipv6 drop".to_owned(),
            |range6| format!("ip6 saddr != {range6} drop"),
        );
        let (blocked4, blocked6) = (blocked(false), blocked(true));
        format!(
            r#"table inet {table} {{
    set blocked4 {{ type ipv4_addr; flags interval; elements = {{ {blocked4} }}; }}
    set blocked6 {{ type ipv6_addr; flags interval; elements = {{ {blocked6} }}; }}
    set flows4 {{ type ipv4_addr; size 65535; flags dynamic; }}
    set flows6 {{ type ipv6_addr; size 65535; flags dynamic; }}
    chain refuse {{
        reject with icmpx type admin-prohibited
    }}
    chain destination {{
        ip daddr @blocked4 goto refuse
        ip6 daddr @blocked6 goto refuse
    }}
    chain source {{
        ip saddr != {range4} drop
        {source6}
        fib saddr . iif oif missing drop
        jump destination
        fib daddr type != unicast goto refuse
    }}
    chain prerouting {{
        type filter hook prerouting priority -310; policy accept;
        iifname "{interfaces}*" jump source
    }}
    chain input {{
        type filter hook input priority -10; policy accept;
        iifname "{interfaces}*" drop
    }}
    chain outbound {{
        oifname "{COMMON}*" goto refuse
        jump destination
        ct state invalid drop
        ct state new add @flows4 {{ ip saddr ct count over {FLOWS_MAX} }} goto refuse
        ct state new add @flows6 {{ ip6 saddr ct count over {FLOWS_MAX} }} goto refuse
        accept
    }}
    chain inbound {{
        iifname "{COMMON}*" drop
        ct state established,related accept
        drop
    }}
    chain forward {{
        type filter hook forward priority -10; policy accept;
        oifname "{interfaces}*" jump inbound
        iifname "{interfaces}*" jump outbound
    }}
    chain postrouting {{
        type nat hook postrouting priority 100; policy accept;
        iifname "{interfaces}*" masquerade
    }}
}}
"#
        )
    }
}

fn blocked(v6: bool) -> String {
    let of_family = BLOCKED.iter().filter(|block| block.contains("::") == v6);
    of_family.copied().collect::<Vec<_>>().join(", ")
}

/// Removes a table, also one that is not there.
pub(super) fn delete(table: &str) -> String {
    format!("add table inet {table}\ndelete table inet {table}")
}

/// Interfaces on which forwarding was off, one list for each family: what comes in there and is not
/// for a container is not forwarded, as before. Adds to those that other runs have named.
pub(super) fn guard(uplinks4: &BTreeSet<String>, uplinks6: &BTreeSet<String>) -> String {
    let mut script = format!(
        r#"table inet {GUARD} {{
    set uplinks4 {{ type ifname; }}
    set uplinks6 {{ type ifname; }}
    chain forward {{ type filter hook forward priority -20; policy accept; }}
}}
flush chain inet {GUARD} forward
add rule inet {GUARD} forward meta nfproto ipv4 iifname @uplinks4 oifname != "{COMMON}*" drop
add rule inet {GUARD} forward meta nfproto ipv6 iifname @uplinks6 oifname != "{COMMON}*" drop
"#
    );
    for (set, names) in [("uplinks4", uplinks4), ("uplinks6", uplinks6)] {
        for name in names {
            let _ = writeln!(script, "add element inet {GUARD} {set} {{ \"{name}\" }}");
        }
    }
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(range6: Option<&str>) -> String {
        let rules = Rules {
            table: "skiff-0123456789ab".into(),
            interfaces: "sk-012345".into(),
            range4: "198.19.0.0/16".parse().expect("a block"),
            range6: range6.map(|text| text.parse().expect("a block")),
        };
        rules.script()
    }

    #[test]
    fn the_table_is_of_the_run_and_replaces_itself() {
        let text = rules(None);
        assert!(text.starts_with(
            "add table inet skiff-0123456789ab\ndelete table inet skiff-0123456789ab\ntable inet skiff-0123456789ab {"
        ));
        assert!(text.contains("iifname \"sk-012345*\" jump source"), "{text}");
        assert!(text.contains("ip saddr != 198.19.0.0/16 drop"), "{text}");
    }

    #[test]
    fn without_a_way_out_over_ipv6_all_of_it_is_dropped() {
        assert!(rules(None).contains("meta nfproto ipv6 drop"));
        let with = rules(Some("fd73:6b69:6666::/64"));
        assert!(
            with.contains("ip6 saddr != fd73:6b69:6666::/64 drop") && !with.contains("nfproto ipv6 drop")
        );
    }

    #[test]
    fn every_blocked_block_is_in_a_set_and_is_known() {
        let text = rules(None);
        for block in BLOCKED {
            let parsed: Cidr = block.parse().expect(block);
            assert!(is_blocked(parsed.address()));
            assert!(text.contains(block), "{block}");
        }
        for address in
            ["169.254.169.254", "169.254.0.23", "100.100.100.200", "fd00:ec2::254", "fe80::1", "::1"]
        {
            assert!(is_blocked(address.parse().expect("ip")), "{address}");
        }
        for address in ["1.1.1.1", "10.0.0.1", "100.100.2.136", "2001:db8::1", "fd73:6b69:6666::1"] {
            assert!(!is_blocked(address.parse().expect("ip")), "{address}");
        }
    }

    #[test]
    fn the_guard_names_the_interfaces_of_each_family() {
        let text = guard(&BTreeSet::from(["eth0".into()]), &BTreeSet::from(["eth1".into()]));
        assert!(text.contains("add element inet skiff-uplink uplinks4 { \"eth0\" }"), "{text}");
        assert!(text.contains("add element inet skiff-uplink uplinks6 { \"eth1\" }"), "{text}");
    }
}
