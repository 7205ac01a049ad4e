//! Pulling images from real sources: OCI layouts, `docker save` archives, a real registry, and
//! servers that lie.
//!
//! Needs root, and the programs docker-registry, skopeo, umoci and htpasswd.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod breakout;
mod compare;
mod liar;
mod local;
mod raw;
mod registry;
mod resume;
mod support;
mod umoci;
