//! The way out of a container with `--network bridge`: a veth pair between its namespace and the
//! host, and rules of one table for the whole run.
//!
//! Nothing is shared between containers: each has a point-to-point link without ARP, IPv6 neighbour
//! discovery or link-local addresses, and the host's end has no address at all. The pair ends with
//! the container's namespace, whatever ends that.

mod host;
mod nft;
mod rules;
mod uplink;
mod watch;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use netlink_packet_route::AddressFamily;

use super::Cidr;
use super::netlink::{self, End, Mac, Socket};
use crate::{Error, ErrorKind, Result};
pub(super) use rules::is_blocked;
use rules::{COMMON, Rules};
use watch::Watch;

/// The interface inside.
const INSIDE: &str = "eth0";
/// Hardware addresses of all pairs: each is a link of its own. Locally administered, and set by
/// hand, so that no policy of the host changes them.
const MAC_HOST: Mac = [0x02, 0x73, 0x6b, 0x00, 0x00, 0x01];
const MAC_INSIDE: Mac = [0x02, 0x73, 0x6b, 0x00, 0x00, 0x02];
/// The host's end as a container sees it: addresses that only its neighbour table knows.
const GATEWAY4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// A note in the run's directory that the run has a table.
const NOTE: &str = "egress";
/// The addresses of the run's containers, for the next owner of a lasting run.
const RANGE: &str = "egress-range";
/// Names and addresses are drawn; another run may have the same. As full as a range may be (and a
/// name is far from it), one of so many draws is free.
const DRAWS: usize = 256;

/// How the run's containers get out.
#[derive(Debug)]
struct Plan {
    rules: Rules,
    /// Keeps the rules there; until the run is closed.
    watch: Mutex<Option<Watch>>,
    /// Also where the host has a default route over IPv6.
    v6: bool,
    /// The host forwards IPv6 only between interfaces that are told to one by one.
    force_v6: bool,
}

/// The way out of a run; made when it is first used.
#[derive(Debug)]
pub(super) struct Egress {
    run: String,
    dir: PathBuf,
    range: Option<Cidr>,
    plan: Mutex<Option<Arc<Plan>>>,
}

impl Egress {
    /// Nothing is done yet.
    ///
    /// # Errors
    /// `InvalidArgument` for a range that containers cannot have.
    pub(super) fn new(run: &str, dir: &Path, range: Option<Cidr>) -> Result<Self> {
        range.map_or(Ok(()), host::check_range)?;
        Ok(Self { run: run.to_owned(), dir: dir.to_owned(), range, plan: Mutex::new(None) })
    }

    /// The plan; the first time, the host is looked at and the rules are made.
    fn plan(&self) -> Result<Arc<Plan>> {
        let mut plan = self.plan.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(plan) = &*plan {
            return Ok(Arc::clone(plan));
        }
        let made = Arc::new(self.install()?);
        *plan = Some(Arc::clone(&made));
        Ok(made)
    }

    fn install(&self) -> Result<Plan> {
        let socket = Socket::open().map_err(netlink_failed)?;
        let routes4 = host::routes(&socket, AddressFamily::Inet)?;
        // A host without IPv6 says so in many ways.
        let routes6 = socket.routes(AddressFamily::Inet6).unwrap_or_default();
        let range4 = match self.former_range() {
            Some(range) => range,
            None => host::choose_range(self.range, &routes4)?,
        };
        let _lock = uplink::Lock::take()?;
        let opening =
            uplink::Opening::plan(host::uplinks(&socket, &routes4)?, host::uplinks(&socket, &routes6)?)?;
        let rules = Rules {
            table: table(&self.run),
            interfaces: interfaces(&self.run),
            range4,
            range6: opening.v6.then(host::range6),
        };
        let kept = self.dir.join(RANGE);
        std::fs::write(&kept, range4.to_string())
            .map_err(|e| Error::host(format!("cannot write {}", kept.display()), e))?;
        // First the note, so that whatever comes next is undone.
        let note = self.dir.join(NOTE);
        std::fs::write(&note, opening.note())
            .map_err(|e| Error::host(format!("cannot write {}", note.display()), e))?;
        let guard = opening.script();
        if let Err(error) = nft::apply(&format!("{}{}", rules.script(), guard.as_deref().unwrap_or_default()))
        {
            // All or nothing: there is nothing to undo, and no program that could.
            let _ = std::fs::remove_file(&note);
            return Err(error);
        }
        opening.open()?;
        let mut tables = vec![(rules.table.clone(), rules.script_if_gone())];
        tables.extend(guard.map(|guard| (rules::GUARD.to_owned(), guard)));
        let watch = Watch::start(tables)?;
        tracing::debug!(table = rules.table, %range4, v6 = opening.v6, "the way out is made");
        Ok(Plan { rules, watch: Mutex::new(Some(watch)), v6: opening.v6, force_v6: opening.force_v6 })
    }

    /// Looks after the way out that a former owner of the run has made, if it made one.
    pub(super) fn resume(&self) -> Result<()> {
        if self.dir.join(NOTE).exists() { self.plan().map(drop) } else { Ok(()) }
    }

    /// The range whose addresses containers of this run have already: it is in use by themselves.
    fn former_range(&self) -> Option<Cidr> {
        std::fs::read_to_string(self.dir.join(RANGE)).ok()?.parse().ok()
    }

    /// From now on the rules may go.
    pub(super) fn close(&self) {
        if let Some(plan) = &*self.plan.lock().unwrap_or_else(PoisonError::into_inner) {
            plan.watch.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
    }

    /// Gives a namespace its link to the host. `inside` is a socket of the namespace; the calling
    /// thread is in the host's. What was made before a failure goes with the namespace.
    pub(super) fn wire(&self, namespace: BorrowedFd<'_>, inside: &Socket) -> Result<Ipv4Addr> {
        let plan = self.plan()?;
        let host = Socket::open().map_err(netlink_failed)?;
        let name = plan.pair(&host, namespace)?;
        let failed = |e: io::Error| Error::host(format!("cannot set up the interface {name}"), e);
        let index = host.index(&name).map_err(failed)?;
        plan.switch(&name)?;
        host.all([netlink::no_link_local(index), netlink::link_up(index)])
            .or_else(|e| v4_only(&host, index, e))
            .map_err(failed)?;
        let address = plan.claim(&host, index)?;
        let mut neighbours = vec![netlink::neighbour(index, address.into(), MAC_INSIDE)];
        if plan.v6 {
            let address6 = host::address6(address).into();
            neighbours.push(netlink::neighbour(index, address6, MAC_INSIDE));
            neighbours.push(netlink::route_to(address6, index));
        }
        host.all(neighbours).map_err(failed)?;
        plan.furnish(inside, address)
            .map_err(|e| Error::host(format!("cannot set up {INSIDE} with the address {address}"), e))?;
        Ok(address)
    }
}

/// A kernel without IPv6 has no modes of its addresses.
fn v4_only(host: &Socket, index: u32, error: io::Error) -> io::Result<()> {
    if Path::new("/proc/sys/net/ipv6").exists() { Err(error) } else { host.all([netlink::link_up(index)]) }
}

impl Plan {
    /// Makes the pair and gives the name of the host's end.
    fn pair(&self, host: &Socket, namespace: BorrowedFd<'_>) -> Result<String> {
        for _ in 0..DRAWS {
            let name = format!("{}{:06x}", self.rules.interfaces, random()? & 0xff_ffff);
            let here = End { name: &name, mac: MAC_HOST };
            match host.all([netlink::veth(here, End { name: INSIDE, mac: MAC_INSIDE }, namespace)]) {
                Ok(()) => return Ok(name),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => {
                    return Err(Error::host(format!("cannot make the veth pair {name}"), e)
                        .advise("modprobe veth, or run without --network bridge"));
                }
            }
        }
        Err(Error::new(
            ErrorKind::Host,
            format!("no free name for an interface like {}…", self.rules.interfaces),
        ))
    }

    /// The settings of the host's end.
    fn switch(&self, name: &str) -> Result<()> {
        host::set(&host::sysctl("ipv4", name, "forwarding"), "1")?;
        if !self.v6 {
            return host::set_if_known(&host::sysctl("ipv6", name, "disable_ipv6"), "1");
        }
        host::set_if_known(&host::sysctl("ipv6", name, "accept_ra"), "0")?;
        if self.force_v6 {
            host::set(&host::sysctl("ipv6", name, "force_forwarding"), "1")?;
        }
        Ok(())
    }

    /// Draws an address until the kernel makes the route to it: it makes none twice, whoever asks.
    fn claim(&self, host: &Socket, index: u32) -> Result<Ipv4Addr> {
        let range = self.rules.range4;
        for _ in 0..DRAWS {
            let address = draw(range, random()?);
            match host.all([netlink::route_to(address.into(), index)]) {
                Ok(()) => return Ok(address),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(Error::host(format!("cannot make a route to {address}"), e)),
            }
        }
        Err(Error::new(ErrorKind::Host, format!("the range {range} has no free address for a container"))
            .advise("run fewer containers with --network bridge, or give a larger range with --egress-range"))
    }

    /// The container's end: its address, and a way to everywhere.
    fn furnish(&self, inside: &Socket, address: Ipv4Addr) -> io::Result<()> {
        let index = inside.index(INSIDE)?;
        let mut all = Vec::new();
        if Path::new("/proc/sys/net/ipv6").exists() {
            all.push(netlink::no_link_local(index));
        }
        all.push(netlink::link_up(index));
        let mut ways = vec![(IpAddr::from(address), IpAddr::from(GATEWAY4))];
        if self.v6 {
            ways.push((host::address6(address).into(), GATEWAY6.into()));
        }
        for (address, gateway) in ways {
            all.push(netlink::address_on(index, address));
            all.push(netlink::neighbour(index, gateway, MAC_HOST));
            all.push(netlink::default_route(gateway, index));
        }
        inside.all(all)
    }
}

/// Removes the rules of a run that had any, when its containers are gone.
pub(crate) fn remove(run: &str, dir: &Path) -> Result<()> {
    let note = match std::fs::read_to_string(dir.join(NOTE)) {
        Ok(note) => note,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::host(format!("cannot read {}", dir.join(NOTE).display()), e)),
    };
    let lock = uplink::Lock::take()?;
    nft::apply(&rules::delete(&table(run)))?;
    uplink::close_if_last(&lock, &note)
}

/// Table names are as runs': random.
fn table(run: &str) -> String {
    format!("skiff-{run}")
}

/// As much of a run's name as fits: the kernel has 15 bytes for a name, and 6 are for the container.
fn interfaces(run: &str) -> String {
    format!("{COMMON}{}", run.get(..6).unwrap_or(run))
}

fn netlink_failed(error: io::Error) -> Error {
    Error::host("cannot open a netlink socket", error)
}

fn random() -> Result<u32> {
    let mut bytes = [0; 4];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|e| Error::host("cannot get random bytes", e))?;
    Ok(u32::from_ne_bytes(bytes))
}

/// An address of a range, neither its first nor its last: some programs refuse those.
fn draw(range: Cidr, random: u32) -> Ipv4Addr {
    let IpAddr::V4(first) = range.address() else { return Ipv4Addr::UNSPECIFIED };
    let size = u32::MAX >> range.prefix().min(31);
    Ipv4Addr::from_bits(first.to_bits() + 1 + random % (size - 1).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawn_addresses_are_inside_and_not_at_the_ends() {
        let range: Cidr = "10.5.0.16/28".parse().expect("a block");
        let mut seen = std::collections::BTreeSet::new();
        for random in 0..64 {
            seen.insert(draw(range, random));
        }
        assert_eq!(seen.len(), 14);
        assert_eq!(seen.first().map(ToString::to_string).as_deref(), Some("10.5.0.17"));
        assert_eq!(seen.last().map(ToString::to_string).as_deref(), Some("10.5.0.30"));
        assert!(range.contains(draw(range, u32::MAX).into()));
    }

    #[test]
    fn names_fit_the_kernel_and_tell_the_run() {
        let prefix = interfaces("0123456789ab");
        assert_eq!(prefix, "sk-012345");
        assert_eq!(prefix.len() + 6, 15);
        assert_eq!(table("0123456789ab"), "skiff-0123456789ab");
    }

    #[test]
    fn a_run_without_a_way_out_has_nothing_to_remove() {
        let dir = tempfile::tempdir().expect("a directory");
        remove("0123456789ab", dir.path()).expect("nothing to do");
    }
}
