//! The root filesystem of a container, in two halves: `disk` makes ready, in the daemon, what
//! holds written bytes; `mount` puts overlay, writable layer and `/tmp` together inside the
//! container's own mount namespace. `path` looks into the result without trusting it.

mod disk;
pub(crate) mod idmap;
pub(crate) mod mount;
pub(crate) mod path;

pub(crate) use disk::Disks;
