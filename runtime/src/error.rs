//! The one error type of this crate.
//!
//! An [`Error`] says what failed and on which value, whose fault it is, whether trying again can
//! help, and what to do about it. Callers decide by [`ErrorKind`]; people read the message, the
//! chain of causes and the advice. It never holds a secret: the constructors take texts that the
//! caller has already cleaned.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;

/// Result of a fallible operation of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

type Cause = Box<dyn StdError + Send + Sync + 'static>;

/// What failed, why, and what to do about it.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    message: Cow<'static, str>,
    advice: Option<Cow<'static, str>>,
    cause: Option<Cause>,
}

/// Who has to act for the error to go away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The caller: a wrong argument, reference or credential.
    Caller,
    /// The image: what it contains or declares.
    Image,
    /// The registry, or the way to it.
    Registry,
    /// This host: its kernel, its disk, its set-up.
    Host,
    /// Skiff itself: a defect.
    Skiff,
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident => $fault:ident, $retry:expr, $text:literal;)*) => {
        /// What sort of thing failed. New kinds may be added.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
        #[non_exhaustive]
        pub enum ErrorKind { $($(#[$doc])* $name,)* }

        impl ErrorKind {
            /// Who has to act.
            #[must_use]
            pub fn fault(self) -> Fault { match self { $(Self::$name => Fault::$fault,)* } }
            /// Whether the same call may succeed later without anything being changed.
            #[must_use]
            pub fn is_retryable(self) -> bool { match self { $(Self::$name => $retry,)* } }
            /// A stable name for machines, in snake case.
            #[must_use]
            pub fn as_str(self) -> &'static str { match self { $(Self::$name => $text,)* } }
        }
    };
}

kinds! {
    /// An image reference or source that cannot be parsed.
    InvalidReference => Caller, false, "invalid_reference";
    /// Another argument out of its bounds.
    InvalidArgument => Caller, false, "invalid_argument";
    /// A credentials file, variable or helper that cannot be used.
    InvalidCredentials => Caller, false, "invalid_credentials";
    /// The registry refused the credentials (401, 403).
    Unauthorized => Caller, false, "unauthorized";
    /// No such repository, tag, digest, file or directory.
    ImageNotFound => Caller, false, "image_not_found";
    /// The image cannot be removed: an instance, a pull or a pin uses it.
    ImageInUse => Caller, true, "image_in_use";
    /// A container that is to be frozen is kept awake by a command that runs in it.
    ContainerInUse => Caller, true, "container_in_use";
    /// The registry's name is unknown, or it does not answer.
    RegistryUnreachable => Registry, true, "registry_unreachable";
    /// The registry asked to slow down (429).
    RegistryThrottled => Registry, true, "registry_throttled";
    /// The registry failed (5xx) or answered what the distribution specification does not allow.
    RegistryFailed => Registry, true, "registry_failed";
    /// The pull did not end in the time that the caller gave it.
    PullTimedOut => Registry, true, "pull_timed_out";
    /// Bytes do not hash to the digest that names them.
    DigestMismatch => Registry, false, "digest_mismatch";
    /// A layer or manifest ended early, or its compression or archive is broken.
    CorruptImage => Image, false, "corrupt_image";
    /// A media type that is not an image of the kinds that Skiff runs.
    UnsupportedMediaType => Image, false, "unsupported_media_type";
    /// The index has no image for this platform.
    NoMatchingPlatform => Image, false, "no_matching_platform";
    /// A manifest, configuration or layer that breaks the rules, or tries to reach out of its root.
    InvalidImage => Image, false, "invalid_image";
    /// A size, count or depth over its limit.
    LimitExceeded => Image, false, "limit_exceeded";
    /// Neither the image nor the caller names a command.
    NoCommand => Image, false, "no_command";
    /// The start command does not exist in the image.
    CommandNotFound => Image, false, "command_not_found";
    /// The start command exists and cannot be executed.
    CommandNotExecutable => Image, false, "command_not_executable";
    /// The user or group does not exist in the image or is out of range.
    UnknownUser => Image, false, "unknown_user";
    /// The working directory cannot be entered.
    InvalidWorkingDirectory => Image, false, "invalid_working_directory";
    /// The container was not running within its deadline.
    StartTimedOut => Host, true, "start_timed_out";
    /// Root is needed.
    NotRoot => Host, false, "not_root";
    /// No usable cgroup hierarchy.
    NoCgroup => Host, false, "no_cgroup";
    /// The keeper binary is missing or is not of this version.
    KeeperNotFound => Host, false, "keeper_not_found";
    /// The keeper died or broke the protocol.
    KeeperLost => Host, true, "keeper_lost";
    /// The state directory's filesystem cannot be a lower layer of overlayfs.
    OverlayUnsupported => Host, false, "overlay_unsupported";
    /// The host's disk or quota is full.
    DiskFull => Host, true, "disk_full";
    /// An operation of the host failed.
    Host => Host, false, "host_error";
    /// A defect of Skiff.
    Internal => Skiff, false, "internal_error";
}

impl Error {
    /// A new error; `message` names the thing and the value.
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Inner { kind, message: message.into(), advice: None, cause: None }))
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn advise(mut self, advice: impl Into<Cow<'static, str>>) -> Self {
        self.0.advice = Some(advice.into());
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn because(mut self, cause: impl Into<Cause>) -> Self {
        self.0.cause = Some(cause.into());
        self
    }

    /// An operation of the host that failed: `message` names the operation and its arguments. A
    /// full disk becomes [`ErrorKind::DiskFull`].
    pub fn host(message: impl Into<Cow<'static, str>>, cause: impl Into<std::io::Error>) -> Self {
        let cause = cause.into();
        let full = [rustix::io::Errno::NOSPC, rustix::io::Errno::DQUOT]
            .iter()
            .any(|e| cause.raw_os_error() == Some(e.raw_os_error()));
        let kind = if full { ErrorKind::DiskFull } else { ErrorKind::Host };
        let error = Self::new(kind, message).because(cause);
        if full { error.advise("free space on that filesystem, then try again") } else { error }
    }

    /// What sort of thing failed.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Who has to act.
    #[must_use]
    pub fn fault(&self) -> Fault {
        self.0.kind.fault()
    }

    /// Whether the same call may succeed later without anything being changed.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.0.kind.is_retryable()
    }

    /// What to do about it, where there is something to say.
    #[must_use]
    pub fn advice(&self) -> Option<&str> {
        self.0.advice.as_deref()
    }

    /// The message and all its causes on one line, for logs and single-line outputs.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut next = self.source();
        while let Some(cause) = next {
            let cause_text = cause.to_string();
            if !text.ends_with(&cause_text) {
                text.push_str(": ");
                text.push_str(&cause_text);
            }
            next = cause.source();
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.0.kind, self.chain())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.cause.as_deref().map(|cause| cause as &(dyn StdError + 'static))
    }
}
