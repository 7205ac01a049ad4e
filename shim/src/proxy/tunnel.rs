//! A connection that has switched protocols (WebSocket): bytes both ways until one side ends, the
//! container ends, or the function's time is up.

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;
use tokio::time::timeout_at;

use crate::instance::invocation::Invocation;
use crate::platform::InvocationFailure;

/// Copies until the end, which ends the invocation.
pub(super) async fn run(mut invocation: Invocation, client: OnUpgrade, server: OnUpgrade) {
    let copy = async {
        let (client, server) =
            futures_util::future::try_join(client, server).await.map_err(|e| e.to_string())?;
        let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
        copy_bidirectional(&mut client, &mut server).await.map_err(|e| e.to_string())
    };
    match timeout_at(invocation.deadline(), copy).await {
        Ok(Ok(_)) => {
            invocation.succeed(None, None);
        }
        Ok(Err(reason)) => drop(invocation.fail(&InvocationFailure::ConnectionBroken(reason))),
        Err(_) => drop(invocation.fail(&InvocationFailure::TimedOut)),
    }
}
