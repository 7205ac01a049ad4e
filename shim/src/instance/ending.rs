//! Bringing an invocation to its end from outside: by somebody who is not its caller.

use std::sync::Arc;

use tokio::sync::watch;

use super::shared::Shared;
use crate::platform::InvocationFailure;

/// What has been asked for; each includes the ones before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Asked {
    #[default]
    Nothing,
    /// SIGTERM for the function's process.
    Signal,
    /// The end.
    Termination,
}

/// Ends the invocation that has it among its [`InvokeOptions`](super::InvokeOptions). Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Ending(Arc<watch::Sender<Asked>>);

impl Ending {
    /// For one invocation.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sends SIGTERM to the function's process when the invocation runs. The invocation goes on: it ends as
    /// the function lets it end. A process 1 without a handler never sees the signal.
    pub fn signal(&self) {
        self.ask(Asked::Signal);
    }

    /// Ends the invocation, whether it runs or has not begun, and has the instance replaced that worked on it
    /// alone.
    pub fn terminate(&self) {
        self.ask(Asked::Termination);
    }

    fn ask(&self, asked: Asked) {
        self.0.send_if_modified(|has| {
            let more = asked > *has;
            *has = asked.max(*has);
            more
        });
    }

    /// Whether anything has been asked for.
    pub(crate) fn is_asked(&self) -> bool {
        *self.0.borrow() != Asked::Nothing
    }

    /// Waits until anything is asked for.
    pub(crate) async fn asked(&self) {
        self.reached(Asked::Signal).await;
    }

    /// Waits until the end is asked for.
    pub(crate) async fn terminated(&self) {
        self.reached(Asked::Termination).await;
    }

    async fn reached(&self, asked: Asked) {
        // The sender lives as long as `self`.
        let _ = self.0.subscribe().wait_for(|has| *has >= asked).await;
    }
}

/// The same one.
impl PartialEq for Ending {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Ending {}

/// Does what is asked for, until that is the end.
pub(super) async fn asked(shared: &Shared, ending: Option<&Ending>) -> InvocationFailure {
    let Some(ending) = ending else { return std::future::pending().await };
    ending.asked().await;
    if *ending.0.borrow() == Asked::Signal {
        let sent = shared.guest.terminate();
        shared.logs.platform(None, shared.config.platform.log_signal(sent));
    }
    ending.terminated().await;
    InvocationFailure::Terminated
}
