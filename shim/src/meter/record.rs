//! What is kept of an invocation, and of an image's pull.

use serde::{Deserialize, Serialize};

use super::bill::gb_s;
use crate::platform::InvocationFailure;

/// One record. Text fields that do not apply to its kind are empty.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Record {
    /// Its number: one more than that of the record before it.
    #[serde(skip)]
    pub sequence: u64,
    /// What it is of.
    pub kind: Kind,
    /// The platform's name.
    pub platform: String,
    /// scf namespace or fc 2.0 service.
    pub namespace: String,
    /// The function's name.
    pub function: String,
    /// The revision that worked.
    pub revision: u64,
    /// The instance's id.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub instance: String,
    /// The request's id. An asynchronous event has the same for all its tries.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub request_id: String,
    /// How often an asynchronous event had been tried before.
    #[serde(default)]
    pub retries: u32,
    /// Whether its caller did not wait for it.
    #[serde(default)]
    pub asynchronous: bool,
    /// When it began, in milliseconds since 1970.
    pub start_unix_ms: u64,
    /// When it ended.
    pub end_unix_ms: u64,
    /// Milliseconds that are billed, by the platform's rules.
    pub billed_ms: u64,
    /// Memory of the function in MiB, which the platforms write MB.
    pub memory_mib: u32,
    /// Highest memory use of the instance so far, in bytes.
    #[serde(default)]
    pub memory_peak_bytes: u64,
    /// Whether it was the first of its instance.
    #[serde(default)]
    pub cold: bool,
    /// How it went.
    pub status: Status,
    /// The platform's name or number for what went wrong.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub code: String,
    /// HTTP status of the answer, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_status: Option<u16>,
    /// Of a pull: the image's digest.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub image: String,
    /// Of a gap: how many records could not be kept.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub missing: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What a record is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// One invocation, or one try of an asynchronous one.
    Invocation,
    /// One pull of an image by which something came.
    Pull,
    /// Records that could not be kept, between the one before and the one after it.
    Gap,
}

/// How an invocation went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// The function answered.
    Success,
    /// The function reported an error, or ended while it served.
    FunctionError,
    /// The platform got no answer: its time was up, its caller went away, a limit.
    PlatformError,
    /// It was refused for what the caller sent, before the function saw it; billed nothing.
    Rejected,
}

impl Status {
    pub(crate) fn of(reported: bool, failure: Option<&InvocationFailure>) -> Self {
        match failure {
            None if reported => Self::FunctionError,
            None => Self::Success,
            Some(failure) if failure.is_of_request() => Self::Rejected,
            Some(failure) if failure.is_of_function() => Self::FunctionError,
            Some(_) => Self::PlatformError,
        }
    }
}

impl Record {
    /// What is billed, in GB·s.
    #[must_use]
    pub fn gb_s(&self) -> f64 {
        gb_s(self.memory_mib, self.billed_ms)
    }

    /// As one line of JSON, with its number and what it comes to.
    #[must_use]
    pub fn to_line(&self) -> String {
        #[derive(Serialize)]
        struct Line<'a> {
            sequence: u64,
            #[serde(flatten)]
            record: &'a Record,
            gb_s: f64,
        }
        let line = Line { sequence: self.sequence, record: self, gb_s: self.gb_s() };
        serde_json::to_string(&line).unwrap_or_default()
    }

    /// That so many could not be kept from one time to another.
    pub(super) fn gap(missing: u64, start_unix_ms: u64, end_unix_ms: u64) -> Self {
        Self {
            sequence: 0,
            kind: Kind::Gap,
            platform: String::new(),
            namespace: String::new(),
            function: String::new(),
            revision: 0,
            instance: String::new(),
            request_id: String::new(),
            retries: 0,
            asynchronous: false,
            start_unix_ms,
            end_unix_ms,
            billed_ms: 0,
            memory_mib: 0,
            memory_peak_bytes: 0,
            cold: false,
            status: Status::PlatformError,
            code: String::new(),
            http_status: None,
            image: String::new(),
            missing,
        }
    }
}
