//! What a file says, whatever language it is written in: values with their places.

use crate::Error;

/// Deepest nesting of lists and tables.
pub(super) const MAX_DEPTH: usize = 32;

/// Values of a file at most; an alias counts for all that it repeats, and a long text for several. Finding
/// the place of one takes time by the length of the file.
pub(super) const MAX_NODES: usize = 5_000;

/// Line and column, from 1 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) line: usize,
    pub(super) column: usize,
}

impl Place {
    /// Of a byte of a text.
    pub(super) fn of(text: &str, byte: usize) -> Self {
        let before = &text.as_bytes()[..byte.min(text.len())];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        let start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let column = String::from_utf8_lossy(&before[start..]).chars().count() + 1;
        Self { line, column }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

/// One value.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) value: Value,
}

#[derive(Clone, Debug)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Integer(i64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Table(Vec<Entry>),
    /// Something that none of the other languages has, such as a date of TOML.
    Other(&'static str),
}

/// A key of a table with its value.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) place: Place,
    pub(super) node: Node,
}

impl Value {
    /// What it is, in words.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "true or false",
            Self::Integer(_) => "a whole number",
            Self::Float(_) => "a number",
            Self::Text(_) => "a text",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
            Self::Other(kind) => kind,
        }
    }
}

impl Node {
    pub(super) fn entries(&self) -> Option<&[Entry]> {
        match &self.value {
            Value::Table(entries) => Some(entries),
            _ => None,
        }
    }

    /// The value at a path of keys.
    pub(super) fn at(&self, path: &[&str]) -> Option<&Self> {
        path.iter().try_fold(self, |node, key| {
            node.entries()?.iter().find(|entry| entry.key == *key).map(|entry| &entry.node)
        })
    }
}

/// Adds a key, unless the table has it already.
pub(super) fn add(
    entries: &mut Vec<Entry>,
    key: String,
    place: Place,
    node: Node,
) -> Result<(), (Place, String)> {
    if let Some(first) = entries.iter().find(|entry| entry.key == key) {
        return Err((place, format!("{key}: given twice (first in {})", first.place)));
    }
    entries.push(Entry { key, place, node });
    Ok(())
}

/// How many values a file may still have.
#[derive(Debug)]
pub(super) struct Left(usize);

impl Left {
    pub(super) fn new() -> Self {
        Self(MAX_NODES)
    }

    pub(super) fn take(&mut self, nodes: usize, place: Place) -> Result<(), Fatal> {
        let left = self.0.checked_sub(nodes);
        self.0 =
            left.ok_or_else(|| (place, format!("more than {MAX_NODES} values, aliases counted in full")))?;
        Ok(())
    }
}

/// What stops the reading of a file.
pub(super) type Fatal = (Place, String);

/// The error of a file that cannot be read as its language.
pub(super) fn fatal(what: &str, (place, why): Fatal) -> Error {
    super::invalid(what, vec![format!("{place}: {why}")])
}
