//! What this host has to hold written bytes, looked up once for a run.

use std::path::Path;

use crate::{Error, ErrorKind, Result, Writable};

/// What works here; else why not.
#[derive(Debug)]
pub(crate) struct Choice {
    quota: Result<(), Error>,
    disks: Result<(), Error>,
}

impl Choice {
    /// `quota` as it was tried; loop devices are looked for.
    pub(crate) fn new(quota: Result<(), Error>) -> Self {
        let looked = crate::doctor::loop_devices();
        let disks = match looked.advice {
            None => Ok(()),
            Some(advice) => Err(Error::new(ErrorKind::Host, looked.found).advise(advice)),
        };
        Self { quota, disks }
    }

    /// For a host whose state directory is not there yet or which must not be written to.
    pub(crate) fn of_host(state_dir: &Path) -> Self {
        Self::new(super::quota::probe(state_dir))
    }

    /// What `Auto` is here, and why not something better.
    pub(crate) fn auto(&self) -> (Writable, Option<String>) {
        match (&self.quota, &self.disks) {
            (Ok(()), _) => (Writable::Quota, None),
            (Err(quota), Ok(())) => (Writable::Loop, Some(quota.chain())),
            (Err(quota), Err(disks)) => {
                (Writable::Tmpfs, Some(format!("{}; {}", quota.chain(), disks.chain())))
            }
        }
    }

    /// The kind that was asked for, or the best that is here.
    ///
    /// # Errors
    /// `Host` when the host lacks what was asked for.
    pub(crate) fn resolve(&self, asked: Writable) -> Result<Writable> {
        let (kind, works) = match asked {
            Writable::Auto => return Ok(self.auto().0),
            Writable::Tmpfs => return Ok(asked),
            Writable::Quota => ("quota", &self.quota),
            Writable::Loop => ("loop", &self.disks),
        };
        let Err(why) = works else { return Ok(asked) };
        let error = Error::new(why.kind(), format!("this host has no writable layers of the kind {kind}"))
            .because(why.chain());
        Err(match why.advice() {
            Some(advice) => error.advise(advice.to_owned()),
            None => error.advise("see `skiff doctor`, or use `--writable auto`"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(quota: bool, disks: bool) -> Choice {
        let works = |works: bool, why: &'static str| {
            if works { Ok(()) } else { Err(Error::new(ErrorKind::Host, why).advise("do this")) }
        };
        Choice { quota: works(quota, "no quota"), disks: works(disks, "no loop") }
    }

    #[test]
    fn auto_takes_the_best_and_says_why_no_better() {
        assert_eq!(choice(true, true).auto(), (Writable::Quota, None));
        assert_eq!(choice(false, true).auto(), (Writable::Loop, Some("no quota".into())));
        assert_eq!(choice(false, false).auto(), (Writable::Tmpfs, Some("no quota; no loop".into())));
        assert_eq!(choice(false, true).resolve(Writable::Auto).expect("one"), Writable::Loop);
    }

    #[test]
    fn a_kind_that_is_asked_for_is_given_or_refused() {
        for kind in [Writable::Quota, Writable::Loop, Writable::Tmpfs] {
            assert_eq!(choice(true, true).resolve(kind).expect("all are there"), kind);
        }
        for (kind, name) in [(Writable::Quota, "quota"), (Writable::Loop, "loop")] {
            let error = choice(false, false).resolve(kind).expect_err("missing");
            assert!(error.to_string().ends_with(name), "{error}");
            assert!(error.chain().contains(&format!("no {name}")), "{error:?}");
            assert_eq!(error.advice(), Some("do this"));
        }
        assert_eq!(choice(false, false).resolve(Writable::Tmpfs).expect("always"), Writable::Tmpfs);
    }
}
