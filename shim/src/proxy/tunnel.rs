//! A connection that has switched protocols (WebSocket): bytes both ways until one side ends, the
//! container ends, or the function's time is up. Where the platform says how long a WebSocket may be idle and
//! how it may end, it is watched.

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;
use tokio::time::timeout_at;

use super::websocket::{Side, Watch};
use crate::instance::invocation::Invocation;
use crate::platform::InvocationFailure;

/// Copies until the end, which ends the invocation.
pub(super) async fn run(mut invocation: Invocation, client: OnUpgrade, server: OnUpgrade, protocol: &[u8]) {
    let config = &invocation.shared.config;
    let idle = config.websocket_idle().filter(|_| protocol.eq_ignore_ascii_case(b"websocket"));
    let watch = Watch::new(config.platform.limits().websocket_message_bytes);
    let copy = async {
        let (client, server) =
            futures_util::future::try_join(client, server).await.map_err(|e| e.to_string())?;
        let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
        if idle.is_some() {
            let (mut client, mut server) = (watch.of(Side::Client, client), watch.of(Side::Server, server));
            return copy_bidirectional(&mut client, &mut server).await.map_err(|e| e.to_string());
        }
        copy_bidirectional(&mut client, &mut server).await.map_err(|e| e.to_string())
    };
    let copied = async {
        let Some(limit) = idle else { return copy.await.map_err(InvocationFailure::ConnectionBroken) };
        tokio::select! {
            copied = copy => match watch.failure() {
                Some(failure) => Err(failure),
                None => copied.map_err(InvocationFailure::ConnectionBroken),
            },
            () = watch.idle(limit) => Err(InvocationFailure::WebSocketIdle),
        }
    };
    match timeout_at(invocation.deadline(), copied).await {
        Ok(Ok(_)) => {
            invocation.succeed(None, None);
        }
        Ok(Err(failure)) => drop(invocation.fail(&failure)),
        Err(_) => drop(invocation.fail(&InvocationFailure::TimedOut)),
    }
}
