//! A small synchronous rtnetlink client: what the namespace of a container needs, inside and on the
//! host.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;

/// `lo` is the first interface of every network namespace.
const LOOPBACK_INDEX: u32 = 1;
/// Longest datagram that the kernel answers with: it fills at most 32 KiB of a dump.
const ANSWER_BYTES: usize = 64 << 10;
/// Most routes that are looked at. More are on routers of the Internet, not on hosts of functions.
const ROUTES_MAX: usize = 200_000;
/// Who made a route, in `/etc/iproute2/rt_protos` terms: a number that nobody else uses.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(213);
const CREATE: u16 = NLM_F_CREATE | NLM_F_EXCL;

/// A hardware address.
pub(super) type Mac = [u8; 6];

/// One end of a veth pair.
#[derive(Clone, Copy, Debug)]
pub(super) struct End<'a> {
    pub(super) name: &'a str,
    pub(super) mac: Mac,
}

/// A route of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) destination: Option<IpAddr>,
    pub(super) prefix: u8,
    /// The interfaces that it leads to.
    pub(super) interfaces: Vec<u32>,
    /// Whether Skiff made it, in this or another run.
    pub(super) ours: bool,
    pub(super) unicast: bool,
}

/// A netlink socket in the namespace of the thread that opened it.
#[derive(Debug)]
pub(super) struct Socket(netlink_sys::Socket);

type Message = (RouteNetlinkMessage, u16);

impl Socket {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = netlink_sys::Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        Ok(Self(socket))
    }

    /// The number of an interface.
    pub(super) fn index(&self, name: &str) -> io::Result<u32> {
        Ok(rustix::net::netdevice::name_to_index(&self.0, name)?)
    }

    /// The name of an interface.
    pub(super) fn name(&self, index: u32) -> io::Result<String> {
        Ok(rustix::net::netdevice::index_to_name(&self.0, index)?)
    }

    /// Asks for each in order, in one datagram. Goes on after a failure, and tells the first.
    pub(super) fn all(&self, messages: impl IntoIterator<Item = Message>) -> io::Result<()> {
        let mut bytes = Vec::new();
        let mut count = 0;
        for (message, flags) in messages {
            count += 1;
            append(&mut bytes, message, flags | NLM_F_ACK, count);
        }
        self.0.send(&bytes, 0)?;
        let mut first = None;
        for _ in 0..count {
            if let Err(error) = self.acknowledged() {
                first = first.or(Some(error));
            }
        }
        first.map_or(Ok(()), Err)
    }

    fn acknowledged(&self) -> io::Result<()> {
        let mut answer = Vec::with_capacity(ANSWER_BYTES);
        self.0.recv(&mut answer, 0)?;
        match parse(&answer)?.payload {
            NetlinkPayload::Error(error) if error.code.is_none() => Ok(()),
            NetlinkPayload::Error(error) => Err(error.to_io()),
            other => Err(invalid(format!("netlink answered message type {}", other.message_type()))),
        }
    }

    /// All routes of a family.
    pub(super) fn routes(&self, family: AddressFamily) -> io::Result<Vec<Route>> {
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        let mut bytes = Vec::new();
        append(&mut bytes, RouteNetlinkMessage::GetRoute(message), NLM_F_DUMP, 1);
        self.0.send(&bytes, 0)?;
        let mut routes = Vec::new();
        loop {
            let mut answer = Vec::with_capacity(ANSWER_BYTES);
            self.0.recv(&mut answer, 0)?;
            let mut rest = &answer[..];
            while !rest.is_empty() {
                let packet = parse(rest)?;
                let length = usize::try_from(packet.header.length).unwrap_or(usize::MAX);
                match packet.payload {
                    NetlinkPayload::Done(_) => return Ok(routes),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) => {
                        routes.push(read_route(&route));
                    }
                    _ => {}
                }
                if routes.len() > ROUTES_MAX {
                    return Err(invalid(format!("the host has more than {ROUTES_MAX} routes")));
                }
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

fn append(bytes: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16, sequence: u32) {
    let mut header = NetlinkHeader::default();
    header.flags = flags | NLM_F_REQUEST;
    header.sequence_number = sequence;
    let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
    packet.finalize();
    let from = bytes.len();
    bytes.resize(from + packet.buffer_len().next_multiple_of(4), 0);
    packet.serialize(&mut bytes[from..]);
}

fn parse(bytes: &[u8]) -> io::Result<NetlinkMessage<RouteNetlinkMessage>> {
    NetlinkMessage::deserialize(bytes).map_err(|e| invalid(e.to_string()))
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn read_route(message: &RouteMessage) -> Route {
    let header = &message.header;
    let (mut destination, mut interfaces) = (None, Vec::new());
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(v4)) => destination = Some((*v4).into()),
            RouteAttribute::Destination(RouteAddress::Inet6(v6)) => destination = Some((*v6).into()),
            RouteAttribute::Oif(index) => interfaces.push(*index),
            RouteAttribute::MultiPath(hops) => interfaces.extend(hops.iter().map(|h| h.interface_index)),
            _ => {}
        }
    }
    Route {
        destination,
        prefix: header.destination_prefix_length,
        interfaces,
        ours: header.protocol == PROTOCOL,
        unicast: header.kind == RouteType::Unicast,
    }
}

fn set_link(index: u32) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link
}

pub(super) fn link_up(index: u32) -> Message {
    let mut link = set_link(index);
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    (RouteNetlinkMessage::SetLink(link), 0)
}

pub(super) fn loopback_up() -> Message {
    link_up(LOOPBACK_INDEX)
}

/// Keeps the kernel from giving an interface a link-local address when it comes up.
pub(super) fn no_link_local(index: u32) -> Message {
    let mut link = set_link(index);
    let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    link.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])]));
    (RouteNetlinkMessage::SetLink(link), 0)
}

pub(super) fn loopback_address(address: Ipv4Addr) -> Message {
    address_on(LOOPBACK_INDEX, address.into())
}

/// An address of its own, without a network around it.
pub(super) fn address_on(index: u32, address: IpAddr) -> Message {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = full(address);
    message.header.index = index;
    // Nobody else is on the link.
    message.header.flags =
        if address.is_ipv6() { AddressHeaderFlags::Nodad } else { AddressHeaderFlags::empty() };
    message.attributes.push(AddressAttribute::Local(address));
    message.attributes.push(AddressAttribute::Address(address));
    (RouteNetlinkMessage::NewAddress(message), CREATE)
}

/// A veth pair: one end here, the other in a namespace. Neither asks who has an address (no ARP, no
/// neighbour discovery); both are down. `AlreadyExists` when the name is taken.
pub(super) fn veth(here: End<'_>, there: End<'_>, namespace: BorrowedFd<'_>) -> Message {
    let mut peer = end(there);
    peer.attributes.push(LinkAttribute::NetNsFd(namespace.as_raw_fd()));
    let mut link = end(here);
    link.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    (RouteNetlinkMessage::NewLink(link), CREATE)
}

fn end(end: End<'_>) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.header.flags = LinkFlags::Noarp;
    link.header.change_mask = LinkFlags::Noarp;
    link.attributes.push(LinkAttribute::IfName(end.name.to_owned()));
    link.attributes.push(LinkAttribute::Address(end.mac.to_vec()));
    link
}

/// Who has an address on a link, for good: such entries do not count against the host's table.
pub(super) fn neighbour(index: u32, address: IpAddr, mac: Mac) -> Message {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.attributes.push(NeighbourAttribute::Destination(match address {
        IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
        IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
    }));
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
    (RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE)
}

/// The route to one address. `AlreadyExists` when there is one already.
pub(super) fn route_to(address: IpAddr, index: u32) -> Message {
    let mut message = route(address, index);
    message.header.destination_prefix_length = full(address);
    message.header.scope = RouteScope::Link;
    message.attributes.push(RouteAttribute::Destination(address.into()));
    (RouteNetlinkMessage::NewRoute(message), CREATE)
}

/// The default route over a gateway that is on the link, whatever the addresses say.
pub(super) fn default_route(gateway: IpAddr, index: u32) -> Message {
    let mut message = route(gateway, index);
    message.header.flags = RouteFlags::Onlink;
    message.attributes.push(RouteAttribute::Gateway(gateway.into()));
    (RouteNetlinkMessage::NewRoute(message), CREATE)
}

fn route(address: IpAddr, index: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(address);
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = PROTOCOL;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes.push(RouteAttribute::Oif(index));
    message
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn full(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}
