//! The word that a pull is over: its time has passed, a layer has failed, or nobody waits for it.

use tokio::sync::watch;

use crate::{Error, ErrorKind};

/// Tells whoever works for a pull to give up.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop(Option<watch::Receiver<bool>>);

impl Stop {
    /// The sender says `true`, or goes away.
    pub(crate) fn pair() -> (watch::Sender<bool>, Self) {
        let (sender, receiver) = watch::channel(false);
        (sender, Self(Some(receiver)))
    }

    /// Waits for the word; for ever where nobody can give it.
    pub(crate) async fn asked(&self) {
        match self.0.clone() {
            // An error is a sender that went away.
            Some(mut receiver) => drop(receiver.wait_for(|stopped| *stopped).await),
            None => std::future::pending().await,
        }
    }

    /// What ends because of it.
    pub(crate) fn error() -> Error {
        Error::new(ErrorKind::Internal, "the pull was stopped")
    }
}
