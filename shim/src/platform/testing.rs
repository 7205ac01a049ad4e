//! What the platforms' tests share.

use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;

use super::{InvocationContext, InvocationKind, StartCause, StartFailure, TailLine};
use crate::{Credentials, FunctionConfig, Secret};

pub(super) fn role() -> Credentials {
    Credentials {
        access_key_id: Secret::new("the-id"),
        access_key_secret: Secret::new("the-key"),
        security_token: Secret::new("the-token"),
    }
}

pub(super) fn context(config: &FunctionConfig, kind: InvocationKind) -> InvocationContext<'_> {
    InvocationContext {
        config,
        instance_id: "the-instance",
        request_id: "the-request",
        kind,
        path: "/a/b",
        client: None,
        origin: None,
        retries: 0,
        asynchronous: false,
        code_checksum: "",
        trigger: None,
        credentials: config.credentials.as_ref(),
    }
}

pub(super) fn failure(cause: StartCause) -> StartFailure {
    let line = |bytes: &'static [u8]| TailLine { time: UNIX_EPOCH, bytes: Bytes::from_static(bytes) };
    StartFailure {
        request_id: "the-request".to_owned(),
        cause,
        command: ["npm", "run", "start"].map(str::to_owned).to_vec(),
        address: Some(([21, 0, 3, 4], 9000).into()),
        port: 9000,
        deadline: Duration::from_secs(120),
        elapsed: Duration::from_millis(1500),
        logs: vec![line(b"Listening on port 9000"), line(b"bye")],
    }
}
