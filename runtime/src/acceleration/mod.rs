//! Image acceleration: what a start touches is recorded once, and read ahead by later starts.
//!
//! ```text
//! first start   overlay ─ fanotify ─ recorder ─┐ the container serves: pages (what was mapped)
//!                                              └ recording ─ list ─▶ STATE_DIR/traces/HEX/HEX.json
//! next starts   list ─ warm? nothing to do ─ cold: readahead, beside the rest of the start
//! ```
//! A start on a cold page cache reads its files one after the other, a few pages at a time, each when
//! it is needed. Read ahead, they come in the order in which they are needed, many at once, while
//! namespaces, mounts and cgroups are still being made.
//!
//! A list is only a hint, made from what an image's command did, so it is never trusted: its paths
//! are resolved beneath the layers' directories without following links, only regular files and
//! directories are opened, and every count and size has a bound. Nothing here fails a start.

mod list;
mod pages;
mod readahead;
mod recorder;
mod recording;
mod tree;

pub(crate) use list::ListPath;
pub use list::remove;
pub(crate) use readahead::ReadAhead;
pub(crate) use recorder::{Recorder, rootfs_of};
pub(crate) use recording::{Recording, Recordings, Subject};

/// What a start does for later starts of the same image and command, and with what earlier starts
/// have learnt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Acceleration {
    /// Neither records nor reads ahead.
    #[default]
    Off,
    /// Reads ahead what was recorded; records, where nothing was yet.
    On,
    /// Records, also where a recording is there, and replaces that.
    Record,
}

/// What a recording found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Recorded {
    /// Files and directories of the image that were opened.
    pub files: usize,
    /// Bytes of them that the next start reads ahead.
    pub bytes: u64,
}
