//! Sums of records by function.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::Serialize;

use super::bill::mib_ms_as_gb_s;
use super::{Damage, Found, Kind, Record, Status, unix_ms};

/// Which records are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Those that ended then or later.
    pub since: Option<SystemTime>,
    /// Those of functions of this name.
    pub function: Option<String>,
    /// Those of this scf namespace or fc 2.0 service.
    pub namespace: Option<String>,
}

impl Selection {
    /// Whether it is one of them. What is missing may have been of any function.
    #[must_use]
    pub fn takes(&self, record: &Record) -> bool {
        let of = |wanted: &Option<String>, is: &str| wanted.as_deref().is_none_or(|wanted| wanted == is);
        let named = record.kind == Kind::Gap
            || (of(&self.function, &record.function) && of(&self.namespace, &record.namespace));
        named && self.since.is_none_or(|since| record.end_unix_ms >= unix_ms(since))
    }
}

/// What the records of one function come to.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct FunctionUsage {
    /// scf namespace or fc 2.0 service.
    pub namespace: String,
    /// Its name.
    pub function: String,
    /// The platform's name.
    pub platform: String,
    /// Invocations that reached it; each try of an asynchronous one counts.
    pub invocations: u64,
    /// Of them those that it answered with an error, or not at all.
    pub function_errors: u64,
    /// Of them those that the platform ended.
    pub platform_errors: u64,
    /// Requests that were refused before it saw them; not among the invocations.
    pub rejected: u64,
    /// Of the invocations the first of an instance.
    pub cold: u64,
    /// Milliseconds of invocations that are billed.
    pub billed_ms: u64,
    /// The same with its memory, in GB·s.
    pub gb_s: f64,
    /// Pulls of its images.
    pub pulls: u64,
    /// Milliseconds of pulls that are billed.
    pub pull_billed_ms: u64,
    /// The same with its memory, in GB·s.
    pub pull_gb_s: f64,
    #[serde(skip)]
    mib_ms: u128,
    #[serde(skip)]
    pull_mib_ms: u128,
}

impl FunctionUsage {
    fn add(&mut self, record: &Record) {
        let mib_ms = u128::from(record.memory_mib) * u128::from(record.billed_ms);
        match (record.kind, record.status) {
            (Kind::Pull, _) => {
                self.pulls += 1;
                self.pull_billed_ms += record.billed_ms;
                self.pull_mib_ms += mib_ms;
                self.pull_gb_s = mib_ms_as_gb_s(self.pull_mib_ms);
                return;
            }
            (_, Status::Rejected) => {
                self.rejected += 1;
                return;
            }
            (_, Status::Success) => {}
            (_, Status::FunctionError) => self.function_errors += 1,
            (_, Status::PlatformError) => self.platform_errors += 1,
        }
        self.invocations += 1;
        self.cold += u64::from(record.cold);
        self.billed_ms += record.billed_ms;
        self.mib_ms += mib_ms;
        self.gb_s = mib_ms_as_gb_s(self.mib_ms);
    }
}

/// What records come to.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Usage {
    /// By namespace and name.
    pub functions: Vec<FunctionUsage>,
    /// Calls of all functions that were answered and have no record.
    pub missing: u64,
    /// Parts of files that cannot be read.
    pub damages: Vec<Damage>,
}

impl FromIterator<Found> for Usage {
    fn from_iter<I: IntoIterator<Item = Found>>(found: I) -> Self {
        let (mut functions, mut usage) = (BTreeMap::<_, FunctionUsage>::new(), Self::default());
        for found in found {
            match found {
                Found::Damage(damage) => usage.damages.push(damage),
                Found::Record(record) if record.kind == Kind::Gap => usage.missing += record.missing,
                Found::Record(record) => {
                    let key = (record.namespace.clone(), record.function.clone(), record.platform.clone());
                    let function = functions.entry(key).or_insert_with(|| FunctionUsage {
                        namespace: record.namespace.clone(),
                        function: record.function.clone(),
                        platform: record.platform.clone(),
                        ..FunctionUsage::default()
                    });
                    function.add(&record);
                }
            }
        }
        Self { functions: functions.into_values().collect(), ..usage }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn record(function: &str, kind: Kind, status: Status, billed_ms: u64) -> Record {
        Record {
            kind,
            status,
            function: function.to_owned(),
            namespace: "team".to_owned(),
            platform: "scf".to_owned(),
            billed_ms,
            memory_mib: 256,
            ..Record::gap(0, 1_000, 2_000)
        }
    }

    #[test]
    fn sums_are_by_function_and_exact() {
        let mut found: Vec<Found> = (0..1_000_000)
            .map(|_| Found::Record(Box::new(record("b", Kind::Invocation, Status::Success, 1))))
            .collect();
        for (kind, status) in [
            (Kind::Invocation, Status::FunctionError),
            (Kind::Invocation, Status::PlatformError),
            (Kind::Invocation, Status::Rejected),
            (Kind::Pull, Status::Success),
        ] {
            let billed = if status == Status::Rejected { 0 } else { 4_000 };
            found.push(Found::Record(Box::new(record("a", kind, status, billed))));
        }
        found.push(Found::Record(Box::new(Record::gap(7, 0, 1))));
        let usage: Usage = found.into_iter().collect();
        let [a, b] = &usage.functions[..] else { panic!("{usage:?}") };
        assert_eq!((a.invocations, a.function_errors, a.platform_errors, a.rejected), (2, 1, 1, 1));
        assert_eq!((a.billed_ms, a.pulls, a.pull_billed_ms), (8_000, 1, 4_000));
        assert!((a.gb_s - 2.0).abs() < f64::EPSILON && (a.pull_gb_s - 1.0).abs() < f64::EPSILON);
        assert!((b.gb_s - 250.0).abs() < f64::EPSILON, "{}", b.gb_s);
        assert_eq!((b.invocations, b.billed_ms, usage.missing), (1_000_000, 1_000_000, 7));
    }

    #[test]
    fn what_is_asked_for_is_taken() {
        let record = record("a", Kind::Invocation, Status::Success, 1);
        let at = |ms| Some(UNIX_EPOCH + Duration::from_millis(ms));
        let name = |name: &str| Some(name.to_owned());
        let takes = |since, function, namespace| Selection { since, function, namespace }.takes(&record);
        assert!(takes(None, None, None) && takes(at(2_000), name("a"), name("team")));
        assert!(!takes(at(2_001), None, None) && !takes(None, name("b"), None));
        assert!(!takes(None, None, name("other")));
        let other = Selection { function: name("b"), ..Selection::default() };
        assert!(other.takes(&Record::gap(1, 0, 1)), "what is missing may have been its own");
    }
}
