//! Without the feature `otel` nobody exports spans, and this is known when Skiff is compiled.

use std::time::SystemTime;

use http::HeaderMap;

use super::TraceContext;
use crate::FunctionConfig;
use crate::instance::Trace;

/// What exports spans; there is none without the feature `otel`.
#[derive(Clone, Debug)]
pub enum TraceExport {}

impl TraceExport {
    /// Nothing has to be exported.
    ///
    /// # Errors
    /// None.
    pub fn shutdown(&self) -> Result<(), String> {
        match *self {}
    }

    pub(crate) fn begin(
        &self,
        _: Option<&TraceContext>,
        _: [SystemTime; 2],
        _: &FunctionConfig,
    ) -> Option<Span> {
        match *self {}
    }
}

#[derive(Debug)]
pub(crate) enum Span {}

impl Span {
    pub(crate) fn inject(&self, _: &mut HeaderMap) {
        match *self {}
    }

    pub(crate) fn end(&self, _: &Trace, _: SystemTime, _: &'static str, _: bool) {
        match *self {}
    }
}
