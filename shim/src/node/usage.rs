//! What functions were billed, from the node's records.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use percent_encoding::percent_decode_str;
use serde_json::json;
use tokio::sync::mpsc;

use super::Node;
use super::control::unix_time;
use crate::meter::{Found, Meter, Reader, Selection, Usage};
use crate::proxy::body::{Body, BodyError};
use crate::{Error, ErrorKind, Result};

/// Bytes of lines that are sent at once.
const CHUNK: usize = 64 * 1024;

/// Clients that read records at once. Each has a file of them in memory.
pub(super) const STREAMS: usize = 4;

/// The same for sums, which wait for each other.
pub(super) const SUMS: usize = 2;

/// Chunks that wait for a slow client.
const CHUNKS: usize = 4;

impl Node {
    /// The records of its functions' invocations and pulls; `None` when it keeps none.
    #[must_use]
    pub fn meter(&self) -> Option<&Meter> {
        self.meter.as_ref()
    }

    /// What the records come to, by function.
    ///
    /// # Errors
    /// `NotFound` when it keeps none; `Runtime(Host)` when they cannot be read.
    pub async fn usage(&self, selection: Selection) -> Result<Usage> {
        let reader = self.records(selection)?;
        let turn = self.sums.acquire().await;
        let summed = tokio::task::spawn_blocking(move || reader.collect()).await;
        drop(turn);
        summed.map_err(|error| {
            Error::new(ErrorKind::Runtime(skiff_runtime::ErrorKind::Internal), "adding records up failed")
                .because(error)
        })
    }

    /// The records themselves, the oldest first. Reading blocks.
    ///
    /// # Errors
    /// As [`Node::usage`].
    pub fn records(&self, selection: Selection) -> Result<Reader> {
        let meter = self.meter().ok_or_else(|| {
            Error::new(ErrorKind::NotFound, "this node keeps no records of what is billed")
                .advise("start it without --no-metering")
        })?;
        // What has a lower number is on the disk.
        Ok(Reader::open(meter.dir(), selection)?.until(meter.status().next_sequence))
    }
}

/// The answer to `GET /v1/usage`.
pub(super) async fn sums(node: &Node, query: Option<&str>) -> Result<serde_json::Value> {
    let usage = node.usage(selection(query)?).await?;
    let mut value = json!(usage);
    value["meter"] = json!(node.meter().map(Meter::status));
    Ok(value)
}

/// The answer to `GET /v1/usage/records`: a JSON object in each line.
pub(super) fn lines(node: &Node, query: Option<&str>) -> Result<Response<Body>> {
    let reader = node.records(selection(query)?)?;
    let Ok(turn) = Arc::clone(&node.streams).try_acquire_owned() else {
        let message = format!("{STREAMS} others read the records already");
        return Err(Error::new(ErrorKind::Busy, message).advise("end one of them, or wait"));
    };
    let (chunks, told) = mpsc::channel(CHUNKS);
    tokio::task::spawn_blocking(move || {
        let mut chunk = Vec::new();
        for found in reader {
            let line = match found {
                Found::Record(record) => record.to_line(),
                Found::Damage(damage) => json!({ "kind": "damage", "damage": damage }).to_string(),
            };
            chunk.extend_from_slice(line.as_bytes());
            chunk.push(b'\n');
            // The client may have gone.
            if chunk.len() >= CHUNK && chunks.blocking_send(std::mem::take(&mut chunk)).is_err() {
                return;
            }
        }
        if !chunk.is_empty() {
            let _ = chunks.blocking_send(chunk);
        }
        drop(turn);
    });
    let frames = stream::unfold(told, |mut told| async move {
        let chunk = told.recv().await?;
        Some((Ok::<_, BodyError>(Frame::data(Bytes::from(chunk))), told))
    });
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    *response.status_mut() = StatusCode::OK;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    Ok(response)
}

fn selection(query: Option<&str>) -> Result<Selection> {
    let mut selection = Selection::default();
    for (key, value) in query.unwrap_or_default().split('&').filter_map(|pair| pair.split_once('=')) {
        let value = percent_decode_str(value).decode_utf8_lossy().into_owned();
        match key {
            "function" => selection.function = Some(value),
            "namespace" => selection.namespace = Some(value),
            "since_unix_ms" => selection.since = Some(unix_time(key, &value)?),
            // As everywhere in this API, what is not known is passed over.
            _ => {}
        }
    }
    Ok(selection)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn a_query_selects() {
        let asked =
            selection(Some("function=a%2Fb&namespace=team&since_unix_ms=1500&other=1")).expect("valid");
        assert_eq!((asked.function.as_deref(), asked.namespace.as_deref()), (Some("a/b"), Some("team")));
        assert_eq!(asked.since, Some(UNIX_EPOCH + Duration::from_millis(1_500)));
        assert_eq!(selection(None).expect("valid"), Selection::default());
    }

    #[test]
    fn a_time_that_is_none_is_told() {
        let far = format!("since_unix_ms={}", i64::MAX);
        for query in ["since_unix_ms=", "since_unix_ms=-1", "since_unix_ms=soon", "since_unix_ms=1e9", &far] {
            let error = selection(Some(query)).expect_err(query);
            assert_eq!(error.kind(), ErrorKind::Runtime(skiff_runtime::ErrorKind::InvalidArgument));
            assert!(error.to_string().contains("since_unix_ms"), "{error}");
        }
    }
}
