//! HTTP from host sockets to an instance: both bodies stream, nothing is retried that a server may
//! have seen.

mod socket;

use std::future::Future;
use std::sync::Arc;

pub use socket::Listener;

use crate::{Instance, Result};

/// Serves HTTP/1.1 on `listener` and passes every request to the instance until `shutdown`
/// resolves; then takes no more connections and lets running requests end within a grace of 10 s.
/// Removes the socket file at the end.
///
/// # Errors
/// `Listen` when the listener itself fails; broken connections and requests are not errors.
pub async fn serve(
    _listener: Listener,
    _instance: Arc<Instance>,
    _shutdown: impl Future<Output = ()>,
) -> Result<()> {
    unimplemented!("skeleton")
}
