//! The network of a container: a namespace made by the host, with `lo` up and the container's own
//! address on it, and entered by the host only to dial. No veth, bridge or NAT is needed to invoke;
//! a way out is made apart from it ([`egress`]).

mod cidr;
mod dial;
mod dns;
pub(crate) mod egress;
mod namespace;
mod netlink;
mod resolver;

use std::net::Ipv4Addr;

pub use cidr::Cidr;
pub(crate) use dial::Dialer;
pub(crate) use dns::Forwarder;
pub(crate) use namespace::Namespaces;
pub(crate) use resolver::Resolver;

/// The address of a container that was given none: link-local space (RFC 3927), which no service
/// of the outside can have.
pub(crate) const DEFAULT_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 100, 2);

/// What a container reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// Itself.
    #[default]
    None,
    /// The outside, over the host, by TCP, UDP and ICMP: not the host's own addresses, other
    /// containers or metadata services. Nobody reaches it from outside.
    Bridge,
    /// All that the host reaches, and the host itself: there is no isolation of networks. Its server
    /// is dialled at 127.0.0.1 of the host, whose ports it shares.
    Host,
}

/// How namespaces are made.
#[derive(Clone, Copy, Debug)]
pub struct NetworkOptions {
    /// How many ready namespaces are kept of each kind that is used; a container takes one, and
    /// another is made in the background. 0 makes each when it is needed. At most 1024.
    pub ready: usize,
    /// The IPv4 addresses of containers with [`Network::Bridge`], as the host sees them; `None` is
    /// the first of some ranges that the host does not use.
    pub egress_range: Option<Cidr>,
}

impl Default for NetworkOptions {
    fn default() -> Self {
        Self { ready: 8, egress_range: None }
    }
}
