//! Places where a build for tests stops itself, so that a test can kill whom it likes just there.
//!
//! `SKIFF_BREAK_AT` names one place. The process that comes to it stops (SIGSTOP) until it gets SIGCONT,
//! each time that it comes there. What is built without debug assertions, as all that is installed, has
//! none of this.

/// The environment variable that names the place.
pub const VARIABLE: &str = "SKIFF_BREAK_AT";

/// Stops this process if the environment names this place.
#[inline]
pub fn reach(place: &str) {
    if cfg!(debug_assertions) && std::env::var_os(VARIABLE).is_some_and(|named| named == place) {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::STOP);
    }
}

/// What a program that is executed without an environment is to know of this.
pub(crate) fn environment() -> Option<(&'static str, std::ffi::OsString)> {
    let named = std::env::var_os(VARIABLE)?;
    cfg!(debug_assertions).then_some((VARIABLE, named))
}
