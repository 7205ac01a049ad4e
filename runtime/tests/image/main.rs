//! Pulling images from real sources: OCI layouts, `docker save` archives, a real registry, and
//! servers that lie.
//!
//! Needs root, and the programs docker-registry, skopeo, umoci and htpasswd.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
#![allow(clippy::print_stdout, reason = "what was tried is part of the result")]

mod archives;
mod bombs;
mod breakout;
mod breaks;
mod collect;
mod compare;
mod corpus;
mod crash;
mod evil;
mod evil_documents;
mod expiry;
mod fair;
mod generated;
mod identity;
mod implied;
mod liar;
mod links;
mod local;
mod memory;
mod mirrors;
mod rationed;
mod raw;
mod redirects;
mod registry;
mod renewal;
mod resume;
mod secure;
mod support;
mod swap;
mod throttle;
mod umoci;
mod verify;
mod wire;
