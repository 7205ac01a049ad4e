//! Every `unsafe` of the crate, each with the reason why it is sound, behind safe functions.
#![allow(unsafe_code)]

mod loopdev;
mod process;

pub(crate) use loopdev::{LoopConfig, loop_clear, loop_configure, loop_get_free};
pub(crate) use process::{
    ForkResult, close_all_except, exit_now, fork_single_threaded, load_seccomp_filter, reset_signals,
};
