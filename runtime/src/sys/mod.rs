//! Every `unsafe` of the crate, each with the reason why it is sound, behind safe functions.
#![allow(unsafe_code)]

mod fanotify;
mod handover;
mod loopdev;
mod memory;
mod mount;
mod pages;
mod process;
pub(crate) mod pty;
mod quota;
mod readable;

pub(crate) use fanotify::{new_watch, watch_filesystem};
pub(crate) use handover::{forget_variables, peer_groups, take_descriptors};
pub(crate) use loopdev::{LoopConfig, loop_clear, loop_configure, loop_get_free};
pub(crate) use memory::{bound_allocator, give_back};
pub(crate) use mount::set_idmap;
pub(crate) use pages::{PAGE_SIZE, resident_pages};
pub(crate) use process::{
    ForkResult, Limits, close_all_except, close_on_exec, exit_now, fork_into_group, fork_single_threaded,
    load_seccomp_filter, reset_signals,
};
pub(crate) use quota::{
    ProjectQuota, QuotaTarget, project_of, project_quota, set_project, set_project_limits,
};
pub(crate) use readable::readable;
