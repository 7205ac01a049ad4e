//! A registry, spoken to as the OCI distribution specification says (*Pull*), and its mirrors.
//!
//! ```text
//! Client ─ hosts.toml: mirror, mirror, … registry ─ Host ─ auth ─ challenge ─ realm ─ token
//!                                                     └ transport (TLS, proxies)
//! ```
//! References, media types and the registry's errors are `oci-client`'s. The transport is `reqwest`
//! and not `oci_client::Client` (0.18): Skiff must bound manifests before they are in memory, must
//! see `Retry-After` and resume a broken layer, and must decide itself which host is shown
//! credentials; that client reads whole bodies, hides headers and sends the password to whatever
//! token realm the registry names.
//!
//! Where credentials go:
//! - to the registry's host and port, after it asked for them, over the scheme that was chosen;
//! - to the token realm of its challenge, under the rule in [`realm`];
//! - nowhere else. Redirects are followed in [`host`], which takes everything of its own off once
//!   they leave the host, port or scheme; a redirect from HTTPS to HTTP is refused, and token realms
//!   are not followed at all. Layer descriptors' `urls` are never read. A mirror of another host has
//!   credentials of its own, or none.

mod auth;
pub(crate) mod challenge;
mod header;
mod host;
pub(crate) mod hosts;
pub(crate) mod proxies;
pub(crate) mod realm;
mod retry;
pub(crate) mod token;
pub(crate) mod transport;

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use reqwest::Response;
use reqwest::header::{CONTENT_TYPE, HeaderMap};

use self::host::{Get, Host};
use super::deadline::Deadline;
use super::digest::Digest;
use super::source::Reference;
use super::{PullOptions, limits, manifest};
use crate::{Error, Result};

pub(crate) use host::shown_time;
pub(crate) use retry::{Backoff, Failure};

/// Answers of one mirror for one blob; after that many breaks the next host is asked.
const MAX_MIRROR_ANSWERS: u32 = 3;
/// A mirror that sent wrong bytes of a blob.
const DISTRUSTED: u32 = u32::MAX;

/// One repository of one registry, and where else it is to be had.
pub(crate) struct Client {
    reference: Reference,
    /// In the order of asking; the registry itself is the last. Never empty.
    hosts: Vec<Host>,
    /// How often each host answered for a blob.
    answers: Mutex<HashMap<Digest, Vec<u32>>>,
    times: transport::Times,
    /// The end of the pull, which waits may not go beyond.
    deadline: Deadline,
}

impl Client {
    /// A client for `reference`; nothing is sent yet.
    ///
    /// # Errors
    /// `InvalidArgument` for a file that cannot be used, `InvalidCredentials`.
    pub(crate) async fn new(
        reference: &Reference,
        options: &PullOptions,
        deadline: Deadline,
    ) -> Result<Self> {
        let hosts = hosts::all(reference, options)?;
        if let Some(registry) = hosts.last() {
            registry.auth.check().await?;
        }
        let times = options.times.clone();
        Ok(Self { reference: reference.clone(), hosts, answers: Mutex::default(), times, deadline })
    }

    /// A manifest under a tag or digest, and what the registry calls its type.
    pub(crate) async fn manifest(&self, target: &str) -> Result<(Bytes, Option<String>)> {
        let path = format!("manifests/{target}");
        let accept = manifest::ACCEPTED.join(", ");
        let what = self.reference.to_string();
        let get = Get { path: &path, accept: Some(&accept), offset: 0, what: &what };
        let digest = target.parse::<Digest>().ok();
        for mirror in self.mirrors() {
            if !(if digest.is_some() { mirror.pull } else { mirror.resolve }) {
                continue;
            }
            match document(mirror, &get, "manifest", limits::MAX_MANIFEST_BYTES, digest.as_ref()).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => mirror.pass_over(&failure),
            }
        }
        // The caller verifies what the registry itself gives.
        self.patiently(&get, "manifest", limits::MAX_MANIFEST_BYTES).await
    }

    /// A small blob, such as a configuration.
    pub(crate) async fn blob(&self, digest: &Digest, size: u64) -> Result<Bytes> {
        let (path, what) = self.blob_names(digest);
        let get = Get { path: &path, accept: None, offset: 0, what: &what };
        for mirror in self.mirrors().filter(|mirror| mirror.pull) {
            match document(mirror, &get, "configuration", size, Some(digest)).await {
                Ok((bytes, _)) => return Ok(bytes),
                Err(failure) => mirror.pass_over(&failure),
            }
        }
        Ok(self.patiently(&get, "configuration", size).await?.0)
    }

    /// The answer with a blob's bytes from `offset` on; all of them if the status is not 206. A mirror
    /// that fails, or broke off too often, is passed over.
    pub(crate) async fn blob_from(&self, digest: &Digest, offset: u64) -> Result<Response, Failure> {
        let (path, what) = self.blob_names(digest);
        let get = Get { path: &path, accept: None, offset, what: &what };
        for (at, host) in self.hosts.iter().enumerate() {
            let is_mirror = at + 1 < self.hosts.len();
            if is_mirror && (!host.pull || host.is_down() || self.answered(digest, at) >= MAX_MIRROR_ANSWERS)
            {
                continue;
            }
            match host.get(&get).await {
                Ok(response) => {
                    self.note(digest, |answers| answers[at] = answers[at].saturating_add(1));
                    return Ok(response);
                }
                Err(failure) if is_mirror => host.pass_over(&failure),
                Err(failure) => return Err(failure),
            }
        }
        Err(Failure::last(Error::new(crate::ErrorKind::Internal, "a pull without a registry")))
    }

    /// Says that the bytes of a blob were wrong. Mirrors that sent any are not asked for it again;
    /// `false` if none did, so that asking again is of no use.
    pub(crate) fn distrust(&self, digest: &Digest) -> bool {
        let mirrors = self.hosts.len() - 1;
        let mut any = false;
        self.note(digest, |answers| {
            for answer in answers[..mirrors].iter_mut().filter(|a| (1..DISTRUSTED).contains(*a)) {
                *answer = DISTRUSTED;
                any = true;
            }
        });
        if any {
            tracing::info!(%digest, "a mirror sent wrong bytes; the next host is asked");
        }
        any
    }

    /// The next bytes of an answer.
    pub(crate) async fn chunk(&self, response: &mut Response) -> Result<Option<Bytes>, Failure> {
        self.host_of(response).chunk(response).await
    }

    /// The waits between attempts.
    pub(crate) fn backoff(&self) -> Backoff {
        Backoff::new(&self.times, self.deadline)
    }

    /// The error of a connection that brings next to nothing.
    pub(crate) fn too_slow(&self) -> Error {
        self.registry().too_slow()
    }

    fn registry(&self) -> &Host {
        &self.hosts[self.hosts.len() - 1]
    }

    fn mirrors(&self) -> impl Iterator<Item = &Host> {
        self.hosts[..self.hosts.len() - 1].iter().filter(|mirror| !mirror.is_down())
    }

    /// Whose answer it is, for errors; the registry stands for all storage that hosts redirect to.
    fn host_of(&self, response: &Response) -> &Host {
        let origin = response.url().origin();
        self.hosts.iter().find(|host| host.base.origin() == origin).unwrap_or_else(|| self.registry())
    }

    fn blob_names(&self, digest: &Digest) -> (String, String) {
        (format!("blobs/{digest}"), format!("{digest} of {}", self.reference))
    }

    /// Asks the registry itself until it answers or fails for good.
    async fn patiently(&self, get: &Get<'_>, what: &str, limit: u64) -> Result<(Bytes, Option<String>)> {
        let mut backoff = self.backoff();
        loop {
            match document(self.registry(), get, what, limit, None).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => backoff.after(failure).await?,
            }
        }
    }

    fn answered(&self, digest: &Digest, host: usize) -> u32 {
        let mut count = 0;
        self.note(digest, |answers| count = answers[host]);
        count
    }

    fn note(&self, digest: &Digest, change: impl FnOnce(&mut Vec<u32>)) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        change(answers.entry(digest.clone()).or_insert_with(|| vec![0; self.hosts.len()]));
    }
}

/// A whole document and its type, verified if its digest is known.
async fn document(
    host: &Host,
    get: &Get<'_>,
    what: &str,
    limit: u64,
    digest: Option<&Digest>,
) -> Result<(Bytes, Option<String>), Failure> {
    let response = host.get(get).await?;
    let declared = content_type(response.headers());
    let body = host.bounded(response, what, limit).await?;
    if let Some(digest) = digest {
        digest.verify(&body, what).map_err(Failure::last)?;
    }
    Ok((body, declared))
}

fn content_type(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    Some(value.split(';').next()?.trim().to_owned())
}
