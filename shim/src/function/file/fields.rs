//! Taking values out of a tree: each by its key and type, everything that is wrong reported.

use std::cell::RefCell;
use std::str::FromStr;
use std::time::Duration;

use super::tree::{Entry, Node, Place, Value};
use crate::function::validate::short;
use crate::platform::Warning;
use crate::units::Time;

/// What is found while a file is read.
#[derive(Debug, Default)]
pub(super) struct Report {
    faults: RefCell<Vec<(Place, String)>>,
    warnings: RefCell<Vec<(Place, Warning)>>,
    /// What the function's own rules call a value, and where it stands.
    places: RefCell<Vec<(String, Place)>>,
}

impl Report {
    pub(super) fn fault(&self, place: Place, text: impl Into<String>) {
        self.faults.borrow_mut().push((place, text.into()));
    }

    /// A setting that Skiff does nothing about.
    pub(super) fn ignored(&self, place: Place, key: &str, why: &str) {
        let warning = Warning {
            kind: "setting_ignored",
            message: format!("{place}: {key} is ignored: {why}"),
            advice: "remove it, or go on without it".to_owned(),
        };
        self.warnings.borrow_mut().push((place, warning));
    }

    /// Adds faults of the function's own rules, with the places of what they are about: each begins with
    /// the name of that.
    pub(super) fn of_rules(&self, faults: &[String]) {
        let places = self.places.borrow();
        for fault in faults {
            let about = places.iter().filter(|(name, _)| fault.starts_with(name.as_str()));
            let place = about.max_by_key(|(name, _)| name.len()).map(|(_, place)| *place);
            self.fault(place.unwrap_or(Place { line: 1, column: 1 }), fault.clone());
        }
    }

    /// All faults and all warnings, in the order of the file.
    pub(super) fn finish(self) -> (Vec<String>, Vec<Warning>) {
        let mut faults = self.faults.into_inner();
        faults.sort();
        faults.dedup();
        let text = |(place, text): (Place, String)| format!("{place}: {text}");
        let mut warnings = self.warnings.into_inner();
        warnings.sort_by_key(|(place, _)| *place);
        (faults.into_iter().map(text).collect(), warnings.into_iter().map(|(_, warning)| warning).collect())
    }
}

/// Sets what a file says, and leaves what it does not.
pub(super) fn set<T>(value: &mut T, given: Option<T>) {
    if let Some(given) = given {
        *value = given;
    }
}

/// A table that values are taken out of.
pub(super) struct Fields<'a> {
    report: &'a Report,
    entries: &'a [Entry],
    /// Keys from the top to here, for messages: `a.b.`.
    path: String,
    asked: RefCell<Vec<&'static str>>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(report: &'a Report, entries: &'a [Entry], path: &str) -> Self {
        Self { report, entries, path: path.to_owned(), asked: RefCell::default() }
    }

    /// The value of a key; nothing (`null`) is none.
    pub(super) fn get(&self, key: &'static str) -> Option<&'a Node> {
        self.asked.borrow_mut().push(key);
        let found = self.entries.iter().find(|entry| entry.key == key)?;
        (!matches!(found.node.value, Value::Null)).then_some(&found.node)
    }

    pub(super) fn fault(&self, place: Place, key: &str, why: &str) {
        self.report.fault(place, format!("{}{key}: {why}", self.path));
    }

    /// A fault of the table as a whole, told at its first key.
    pub(super) fn fault_here(&self, why: &str) {
        let place = self.entries.first().map_or(Place { line: 1, column: 1 }, |entry| entry.place);
        self.report.fault(place, format!("{} {why}", self.path.trim_end_matches('.')));
    }

    fn typed<T>(
        &self,
        key: &'static str,
        wanted: &str,
        take: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Option<(T, Place)> {
        let node = self.get(key)?;
        let taken = take(&node.value);
        if taken.is_none() {
            self.fault(node.place, key, &format!("must be {wanted}, and is {}", node.value.kind()));
        }
        taken.map(|value| (value, node.place))
    }

    /// A text; numbers are taken as theirs. `rule` is what the function's rules call it.
    pub(super) fn text(&self, key: &'static str, rule: &str) -> Option<String> {
        let (text, place) = self.typed(key, "a text", |value| match value {
            Value::Text(text) => Some(text.clone()),
            Value::Integer(number) => Some(number.to_string()),
            _ => None,
        })?;
        self.named(rule, place);
        Some(text)
    }

    pub(super) fn boolean(&self, key: &'static str) -> Option<bool> {
        let taken = self.typed(key, "true or false", |value| match value {
            Value::Bool(is) => Some(*is),
            _ => None,
        })?;
        Some(taken.0)
    }

    /// A whole number within bounds.
    pub(super) fn number(
        &self,
        key: &'static str,
        rule: &str,
        range: std::ops::RangeInclusive<i64>,
    ) -> Option<i64> {
        let (number, place) = self.typed(key, "a whole number", |value| match value {
            Value::Integer(number) => Some(*number),
            _ => None,
        })?;
        self.named(rule, place);
        if range.contains(&number) {
            return Some(number);
        }
        self.fault(place, key, &format!("{number} must be {} to {}", range.start(), range.end()));
        None
    }

    /// A value as it is written on the command line; a whole number is one too where that has no unit.
    pub(super) fn parsed<T: FromStr>(&self, key: &'static str, rule: &str) -> Option<T>
    where
        T::Err: std::fmt::Display,
    {
        let (text, place) = self.typed(key, "a text or a number", |value| match value {
            Value::Text(text) => Some(text.clone()),
            Value::Integer(number) => Some(number.to_string()),
            Value::Float(number) => Some(number.to_string()),
            _ => None,
        })?;
        self.named(rule, place);
        match text.parse() {
            Ok(value) => Some(value),
            Err(why) => {
                self.fault(place, key, &format!("{:?}: {why}", short(&text)));
                None
            }
        }
    }

    pub(super) fn time(&self, key: &'static str, rule: &str) -> Option<Duration> {
        self.parsed::<Time>(key, rule).map(|time| time.0)
    }

    /// Whole seconds, as the vendors write times.
    pub(super) fn seconds(&self, key: &'static str, rule: &str, most: i64) -> Option<Duration> {
        let seconds = self.number(key, rule, 0..=most)?;
        u64::try_from(seconds).ok().map(Duration::from_secs)
    }

    /// A list of texts; one text is a list of one.
    pub(super) fn words(&self, key: &'static str, rule: &str) -> Option<Vec<String>> {
        let node = self.get(key)?;
        self.named(rule, node.place);
        let items = match &node.value {
            Value::Text(text) => return Some(vec![text.clone()]),
            Value::List(items) => items,
            other => {
                self.fault(node.place, key, &format!("must be a list of texts, and is {}", other.kind()));
                return None;
            }
        };
        let word = |item: &Node| match &item.value {
            Value::Text(text) => Some(text.clone()),
            Value::Integer(number) => Some(number.to_string()),
            other => {
                self.fault(item.place, key, &format!("must be a list of texts, and has {}", other.kind()));
                None
            }
        };
        items.iter().map(word).collect()
    }

    /// A table of texts: variables. Values are secrets to some, and never told.
    pub(super) fn variables(&self, key: &'static str) -> Vec<(String, String)> {
        let Some(table) = self.table(key) else { return Vec::new() };
        let mut variables = Vec::new();
        for entry in table.entries {
            self.named(&format!("variable {:?}", short(&entry.key)), entry.place);
            match &entry.node.value {
                Value::Text(text) => variables.push((entry.key.clone(), text.clone())),
                Value::Integer(number) => variables.push((entry.key.clone(), number.to_string())),
                Value::Float(number) => variables.push((entry.key.clone(), number.to_string())),
                Value::Bool(is) => variables.push((entry.key.clone(), is.to_string())),
                other => table.fault(
                    entry.node.place,
                    &short(&entry.key),
                    &format!("must be a text, and is {}", other.kind()),
                ),
            }
        }
        if let Some(first) = table.entries.first() {
            self.named("environment of", first.place);
        }
        variables
    }

    /// A table below this one.
    pub(super) fn table(&self, key: &'static str) -> Option<Fields<'a>> {
        let (entries, _) = self.typed(key, "a table", |value| match value {
            Value::Table(entries) => Some(entries.as_slice()),
            _ => None,
        })?;
        Some(Fields::new(self.report, entries, &format!("{}{key}.", self.path)))
    }

    /// Tells of a key that Skiff does nothing about, if it is there.
    pub(super) fn ignored(&self, key: &'static str, why: &str) {
        if let Some(node) = self.get(key) {
            self.report.ignored(node.place, &format!("{}{key}", self.path), why);
        }
    }

    /// Keys that say nothing about the function.
    pub(super) fn known(&self, keys: &[&'static str]) {
        self.asked.borrow_mut().extend(keys);
    }

    pub(super) fn all_ignored(&self, keys: &[&'static str], why: &str) {
        keys.iter().for_each(|key| self.ignored(key, why));
    }

    /// What the function's own rules call the value that stands there.
    pub(super) fn named(&self, rule: &str, place: Place) {
        if !rule.is_empty() {
            self.report.places.borrow_mut().push((rule.to_owned(), place));
        }
    }

    /// Reports keys that nobody has asked for.
    pub(super) fn finish(self) {
        let asked = self.asked.borrow();
        for entry in self.entries.iter().filter(|entry| !asked.contains(&entry.key.as_str())) {
            let near =
                asked.iter().map(|known| (strsim::damerau_levenshtein(known, &short(&entry.key)), known));
            let near = near.min().filter(|(distance, known)| *distance <= known.len().div_ceil(3));
            let hint = near.map_or_else(
                || format!("there are {}", asked.join(", ")),
                |(_, known)| format!("is {known} meant?"),
            );
            self.report
                .fault(entry.place, format!("{}{}: no such key; {hint}", self.path, short(&entry.key)));
        }
    }
}
