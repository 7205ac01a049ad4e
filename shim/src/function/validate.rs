//! The rules of a function configuration.

use crate::{FunctionConfig, Result};

pub(super) fn validate(_config: &FunctionConfig) -> Result<()> {
    unimplemented!("skeleton")
}
