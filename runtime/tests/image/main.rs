//! Pulling images from real sources: OCI layouts, `docker save` archives, a real registry, and
//! servers that lie.
//!
//! Needs root, and the programs docker-registry, skopeo, umoci and htpasswd.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod archives;
mod bombs;
mod breakout;
mod collect;
mod compare;
mod corpus;
mod crash;
mod evil;
mod evil_documents;
mod fair;
mod generated;
mod implied;
mod liar;
mod links;
mod local;
mod memory;
mod mirrors;
mod raw;
mod registry;
mod renewal;
mod resume;
mod secure;
mod support;
mod swap;
mod umoci;
mod verify;
