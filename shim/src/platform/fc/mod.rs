//! skeleton
use http::{HeaderMap, StatusCode};

use super::{
    Defaults, InvocationContext, InvocationFailure, InvocationKind, InvocationReport, Limits, Platform,
    PlatformAnswer, StartFailure,
};
use crate::FunctionConfig;

#[derive(Debug)]
pub(super) struct Fc(pub(super) &'static str);

impl Platform for Fc {
    fn name(&self) -> &'static str {
        self.0
    }
    fn defaults(&self) -> &'static Defaults {
        unimplemented!("skeleton")
    }
    fn limits(&self) -> &'static Limits {
        unimplemented!("skeleton")
    }
    fn reserved_env_prefixes(&self) -> &'static [&'static str] {
        unimplemented!("skeleton")
    }
    fn new_request_id(&self) -> String {
        unimplemented!("skeleton")
    }
    fn new_instance_id(&self) -> String {
        unimplemented!("skeleton")
    }
    fn environment(&self, _config: &FunctionConfig, _instance_id: &str) -> Vec<(String, String)> {
        unimplemented!("skeleton")
    }
    fn event_path(&self) -> &'static str {
        unimplemented!("skeleton")
    }
    fn event_headers(&self, _headers: &mut HeaderMap) {}
    fn prepare_request(&self, _context: &InvocationContext<'_>, _headers: &mut HeaderMap) {}
    fn finish_response(&self, _context: &InvocationContext<'_>, _headers: &mut HeaderMap) {}
    fn is_function_error(&self, _status: StatusCode, _headers: &HeaderMap) -> bool {
        false
    }
    fn start_failure(&self, _failure: &StartFailure, _kind: InvocationKind) -> PlatformAnswer {
        unimplemented!("skeleton")
    }
    fn invocation_failure(
        &self,
        _context: &InvocationContext<'_>,
        _failure: &InvocationFailure,
        _report: &InvocationReport<'_>,
    ) -> PlatformAnswer {
        unimplemented!("skeleton")
    }
    fn log_start(&self, _context: &InvocationContext<'_>) -> Vec<String> {
        unimplemented!("skeleton")
    }
    fn log_end(&self, _context: &InvocationContext<'_>, _report: &InvocationReport<'_>) -> Vec<String> {
        unimplemented!("skeleton")
    }
}
pub(super) static FC_3: Fc = Fc("fc");
pub(super) static FC_2: Fc = Fc("fc2");
