//! Who may connect to a Unix socket: the modes of its file say so first, and what the kernel tells of each peer
//! says it again, for a file whose mode somebody has changed.

use std::os::fd::AsFd as _;

use tokio::net::UnixStream;

/// Whose connections are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peers {
    /// All that the file's mode lets through.
    Unchecked,
    /// Those of root, of this process's user, and of the members of a group.
    Checked { group: Option<u32> },
}

impl Peers {
    /// Whether a connection is taken; tells of it.
    pub(super) fn admit(self, stream: &UnixStream) -> bool {
        let Self::Checked { group } = self else { return true };
        let peer = match stream.peer_cred() {
            Ok(peer) => peer,
            Err(error) => {
                tracing::warn!(%error, "a connection is refused: it cannot be told whose it is");
                return false;
            }
        };
        let (uid, gid, pid) = (peer.uid(), peer.gid(), peer.pid());
        let groups = || skiff_runtime::service::peer_groups(stream.as_fd()).unwrap_or_default();
        let own = rustix::process::geteuid().as_raw();
        let admitted = [0, own].contains(&uid) || group.is_some_and(|group| is_member(gid, groups, group));
        if admitted {
            tracing::debug!(uid, gid, pid, "a connection");
        } else {
            tracing::warn!(
                uid,
                gid,
                pid,
                "a connection is refused: neither root's nor of the sockets' group"
            );
        }
        admitted
    }
}

fn is_member(gid: u32, groups: impl FnOnce() -> Vec<u32>, group: u32) -> bool {
    gid == group || groups().contains(&group)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ones_own_connection_is_admitted() {
        let (one, _other) = UnixStream::pair().expect("a pair");
        assert!(Peers::Unchecked.admit(&one) && Peers::Checked { group: None }.admit(&one));
    }

    #[test]
    fn a_member_has_the_group_as_its_first_or_as_another() {
        assert!(is_member(7, Vec::new, 7) && is_member(1, || vec![2, 7], 7));
        assert!(!is_member(1, || vec![2, 3], 7) && !is_member(1, Vec::new, 7));
    }
}
