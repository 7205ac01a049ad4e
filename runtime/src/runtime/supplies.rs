//! What a start takes along to the keeper: a network namespace and disks. Mostly they are ready; what is
//! not is made by threads, as it takes milliseconds.

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use crate::keeper::protocol::{SpaceKind, StartRequest};
use crate::network::Namespaces;
use crate::rootfs::{Cap, Disks, Use};
use crate::{ContainerSpec, Error, ErrorKind, Network, Result};

/// As far as they are there.
pub(super) struct Supplies {
    network: (Network, Ipv4Addr),
    namespace: Option<OwnedFd>,
    disks: Vec<Place>,
    /// How long their parts took.
    pub(super) namespace_took: Duration,
    pub(super) disks_took: Duration,
}

/// A place for a disk.
struct Place {
    cap: Cap,
    purpose: Use,
    disk: Option<OwnedFd>,
}

impl Supplies {
    /// Takes what is ready, but a namespace only if there is none yet. Does not block.
    ///
    /// # Errors
    /// `Host` when a namespace that was ready cannot be used.
    pub(super) fn ready(
        request: &StartRequest,
        spec: &ContainerSpec,
        namespace: Option<OwnedFd>,
        disks: &Disks,
        namespaces: &Namespaces,
    ) -> Result<Self> {
        let began = Instant::now();
        let network = (spec.network, spec.address());
        let namespace = match namespace {
            Some(namespace) => Some(namespace),
            None => namespaces.take_ready(spec.network, spec.address())?,
        };
        let namespace_took = began.elapsed();
        let spaces =
            [(request.writable, spec.writable_cap(), Use::Writable), (request.tmp, spec.tmp_cap(), Use::Tmp)];
        let wanted = spaces.into_iter().filter(|(kind, ..)| matches!(kind, SpaceKind::Disk));
        let places = wanted.map(|(_, cap, purpose)| {
            let disk = disks.take_ready(cap, purpose);
            Place { cap, purpose, disk }
        });
        Ok(Self { network, namespace, disks: places.collect(), namespace_took, disks_took: Duration::ZERO })
    }

    pub(super) fn are_complete(&self) -> bool {
        self.namespace.is_some() && self.disks.iter().all(|place| place.disk.is_some())
    }

    /// Makes the rest. The parts wait for the kernel, not for each other: each disk is made by a thread
    /// of its own. Blocks.
    ///
    /// # Errors
    /// `InvalidArgument` for a cap out of bounds; `Host`, `DiskFull`.
    pub(super) fn complete(mut self, disks: &Disks, namespaces: &Namespaces) -> Result<Self> {
        let began = Instant::now();
        let (made, namespace, disks_took) = std::thread::scope(|scope| {
            let missing = self.disks.iter_mut().filter(|place| place.disk.is_none());
            let making: Vec<_> = missing
                .map(|place| {
                    scope.spawn(move || {
                        place.disk = Some(disks.make(place.cap, place.purpose)?);
                        Ok(())
                    })
                })
                .collect();
            let namespace = match self.namespace.take() {
                Some(ready) => Ok(ready),
                None => {
                    let (network, address) = self.network;
                    let made = namespaces.make(network, address);
                    self.namespace_took = began.elapsed();
                    made
                }
            };
            let none = making.is_empty();
            let panicked = |_| Err(Error::new(ErrorKind::Internal, "the making of a disk panicked"));
            let made = making.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(panicked));
            (made, namespace, if none { Duration::ZERO } else { began.elapsed() })
        });
        made?;
        self.namespace = Some(namespace?);
        self.disks_took = disks_took;
        Ok(self)
    }

    /// The namespace and the disks, when all are there.
    ///
    /// # Errors
    /// `Internal` when they are not.
    pub(super) fn take(self) -> Result<(OwnedFd, Vec<OwnedFd>)> {
        let disks: Option<Vec<_>> = self.disks.into_iter().map(|place| place.disk).collect();
        self.namespace
            .zip(disks)
            .ok_or_else(|| Error::new(ErrorKind::Internal, "a start lacks its namespace or a disk"))
    }
}
