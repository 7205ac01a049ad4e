//! Makes the rules again when somebody removes them: `nft flush ruleset`, or a firewall's reload,
//! takes all tables of a host, and containers would then reach it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use netlink_sys::protocols::NETLINK_NETFILTER;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::pipe::{PipeFlags, pipe_with};

use super::nft;
use crate::{Error, Result};

/// Who is told of changes to tables (`NFNLGRP_NFTABLES`).
const GROUP: u32 = 7;
/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_DELTABLE`.
const DELETED: u16 = 10 << 8 | 2;
/// `NFTA_TABLE_NAME`.
const NAME: u16 = 1;
/// Headers of a message: netlink's and netfilter's.
const HEADERS: usize = 16 + 4;
const MESSAGE_BYTES: usize = 64 << 10;

/// A thread that watches until this is dropped.
#[derive(Debug)]
pub(super) struct Watch {
    _end: OwnedFd,
}

impl Watch {
    /// Runs the script beside the name of a table whenever that has been deleted. It must fail or
    /// change nothing where the table is there.
    pub(super) fn start(tables: Vec<(String, String)>) -> Result<Self> {
        let failed = |e: io::Error| Error::host("cannot watch the rules of nftables", e);
        let mut socket = netlink_sys::Socket::new(NETLINK_NETFILTER).map_err(failed)?;
        socket.bind_auto().map_err(failed)?;
        socket.add_membership(GROUP).map_err(failed)?;
        socket.set_non_blocking(true).map_err(failed)?;
        let (end, _end) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
        std::thread::Builder::new()
            .name("skiff-rules".into())
            .spawn(move || watch(&socket, &end, &tables))
            .map_err(failed)?;
        Ok(Self { _end })
    }
}

fn watch(socket: &netlink_sys::Socket, end: &OwnedFd, tables: &[(String, String)]) {
    let mut buffer = Vec::with_capacity(MESSAGE_BYTES);
    loop {
        let mut fds =
            [PollFd::new(socket, PollFlags::IN), PollFd::from_borrowed_fd(end.as_fd(), PollFlags::IN)];
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return,
            Ok(_) if !fds[1].revents().is_empty() => return,
            Ok(_) => {}
        }
        buffer.clear();
        match socket.recv(&mut buffer, 0) {
            Ok(_) => {
                for name in deleted(&buffer) {
                    let ours = tables.iter().filter(|(table, _)| table.as_bytes() == name);
                    ours.for_each(|(_, script)| restore(script));
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            // More happened than was read: see whether they are there.
            Err(_) => tables.iter().for_each(|(_, script)| restore(script)),
        }
    }
}

fn restore(script: &str) {
    match nft::apply(script) {
        Ok(()) => tracing::warn!("somebody removed the rules of the way out; they are made again"),
        // They are there, or the run is at its end.
        Err(error) => tracing::debug!(error = error.chain(), "the rules of the way out are not made again"),
    }
}

/// The names of the deleted tables in a datagram of messages.
fn deleted(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        loop {
            let length = usize::try_from(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?)).ok()?;
            let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
            let message = bytes.get(..length).filter(|_| length >= 16)?;
            bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
            if kind == DELETED {
                return Some(name(message.get(HEADERS..).unwrap_or_default()).unwrap_or_default());
            }
        }
    })
}

/// The name among the attributes of a message, without its last zero.
fn name(mut attributes: &[u8]) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(attributes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(attributes.get(2..4)?.try_into().ok()?);
        let value = attributes.get(4..length)?;
        if kind == NAME {
            return Some(value.strip_suffix(&[0]).unwrap_or(value));
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, name: &[u8]) -> Vec<u8> {
        let mut attribute = u16::try_from(4 + name.len() + 1).expect("short").to_ne_bytes().to_vec();
        attribute.extend(NAME.to_ne_bytes());
        attribute.extend(name);
        attribute.resize((4 + name.len() + 1).next_multiple_of(4), 0);
        let length = u32::try_from(HEADERS + attribute.len()).expect("short");
        [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10], &[1, 0, 0, 0], &attribute].concat()
    }

    #[test]
    fn names_of_deleted_tables_are_found_among_others() {
        let bytes =
            [message(DELETED - 2, b"new"), message(DELETED, b"skiff-a"), message(DELETED, b"b")].concat();
        assert_eq!(deleted(&bytes).collect::<Vec<_>>(), [&b"skiff-a"[..], b"b"]);
    }

    #[test]
    fn broken_messages_end_the_search() {
        let whole = message(DELETED, b"skiff-a");
        for cut in 0..whole.len() {
            assert!(deleted(&whole[..cut]).all(|name| name != b"skiff-a"), "{cut}");
        }
        let mut looped = whole;
        looped[..4].copy_from_slice(&0u32.to_ne_bytes());
        assert_eq!(deleted(&looped).count(), 0);
    }
}
