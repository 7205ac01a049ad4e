//! TOML, JSON and YAML as trees. Each is read by a library of its own; bounds are set here.

use std::borrow::Cow;

use jsonc_parser::ast;
use jsonc_parser::{CollectOptions, ParseOptions, parse_to_ast};
use saphyr_parser::{Event, Parser, ScalarStyle, Span};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::tree::{Entry, Fatal, Left, MAX_DEPTH, Node, Place, Value, add};

/// TOML.
pub(super) fn toml(text: &str) -> Result<Node, Fatal> {
    let table = DeTable::parse(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        (Place::of(text, at), error.message().to_owned())
    })?;
    let value = Value::Table(toml_entries(text, table.get_ref(), 0, &mut Left::new())?);
    Ok(Node { place: Place { line: 1, column: 1 }, value })
}

fn toml_entries(text: &str, table: &DeTable<'_>, depth: usize, left: &mut Left) -> Result<Vec<Entry>, Fatal> {
    let mut entries = Vec::new();
    for (key, value) in table {
        let place = Place::of(text, key.span().start);
        if depth >= MAX_DEPTH {
            return Err((place, too_deep()));
        }
        add(&mut entries, key.get_ref().to_string(), place, toml_node(text, value, depth + 1, left)?)?;
    }
    entries.sort_by_key(|entry| entry.place);
    Ok(entries)
}

fn toml_node(text: &str, value: &Spanned<DeValue<'_>>, depth: usize, left: &mut Left) -> Result<Node, Fatal> {
    let place = Place::of(text, value.span().start);
    left.take(1, place)?;
    if depth >= MAX_DEPTH {
        return Err((place, too_deep()));
    }
    let value = match value.get_ref() {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map(Value::Integer)
            .map_err(|_| (place, "a number that is too large".to_owned()))?,
        DeValue::Float(number) => {
            number.as_str().parse().map(Value::Float).map_err(|_| (place, "no number".to_owned()))?
        }
        DeValue::Boolean(is) => Value::Bool(*is),
        DeValue::Datetime(_) => Value::Other("a date"),
        DeValue::Array(items) => {
            let items = items.iter().map(|item| toml_node(text, item, depth + 1, left));
            Value::List(items.collect::<Result<_, _>>()?)
        }
        DeValue::Table(table) => Value::Table(toml_entries(text, table, depth, left)?),
    };
    Ok(Node { place, value })
}

/// JSON, strictly.
pub(super) fn json(text: &str) -> Result<Node, Fatal> {
    // Its errors name a place, and it bounds the depth.
    serde_json::from_str::<serde::de::IgnoredAny>(text).map_err(|error| {
        let words = error.to_string();
        let why = words.rsplit_once(" at line ").map_or(words.as_str(), |(why, _)| why).to_owned();
        (Place { line: error.line().max(1), column: error.column().max(1) }, why)
    })?;
    let options = ParseOptions { allow_comments: false, ..ParseOptions::default() };
    let parsed = parse_to_ast(text, &CollectOptions::default(), &options);
    let parsed = parsed.map_err(|error| (Place::of(text, error.range().start), error.kind().to_string()))?;
    let value = parsed.value.ok_or((Place { line: 1, column: 1 }, "nothing stands there".to_owned()))?;
    json_node(text, &value, 0, &mut Left::new())
}

fn json_node(text: &str, value: &ast::Value<'_>, depth: usize, left: &mut Left) -> Result<Node, Fatal> {
    use jsonc_parser::common::Ranged as _;
    let place = Place::of(text, value.range().start);
    left.take(1, place)?;
    if depth >= MAX_DEPTH {
        return Err((place, too_deep()));
    }
    let value = match value {
        ast::Value::StringLit(text) => Value::Text(text.value.to_string()),
        ast::Value::NumberLit(number) => match (number.value.parse(), number.value.parse()) {
            (Ok(whole), _) => Value::Integer(whole),
            (_, Ok(number)) => Value::Float(number),
            _ => return Err((place, "no number".to_owned())),
        },
        ast::Value::BooleanLit(is) => Value::Bool(is.value),
        ast::Value::NullKeyword(_) => Value::Null,
        ast::Value::Array(items) => {
            let items = items.elements.iter().map(|item| json_node(text, item, depth + 1, left));
            Value::List(items.collect::<Result<_, _>>()?)
        }
        ast::Value::Object(object) => {
            let mut entries = Vec::new();
            for property in &object.properties {
                let node = json_node(text, &property.value, depth + 1, left)?;
                let at = Place::of(text, property.range.start);
                add(&mut entries, property.name.clone().into_string(), at, node)?;
            }
            Value::Table(entries)
        }
    };
    Ok(Node { place, value })
}

/// YAML, one document of it.
pub(super) fn yaml(text: &str) -> Result<Node, Fatal> {
    let mut loader = Loader { events: Parser::new_from_str(text), anchors: Vec::new(), left: Left::new() };
    let start = Place { line: 1, column: 1 };
    loop {
        match loader.next()? {
            (Event::StreamEnd, _) => return Err((start, "nothing stands there".to_owned())),
            (Event::StreamStart | Event::DocumentStart(_) | Event::Nothing, _) => {}
            (event, place) => {
                let node = loader.node(event, place, 0)?;
                return match (loader.next()?, loader.next()?) {
                    ((Event::DocumentEnd, _), (Event::StreamEnd, _)) => Ok(node),
                    (_, (_, place)) => Err((place, "a second document: one is what can be read".to_owned())),
                };
            }
        }
    }
}

struct Loader<'a> {
    events: Parser<'a, saphyr_parser::StrInput<'a>>,
    /// By their ids; ids begin with 1.
    anchors: Vec<(usize, Node)>,
    left: Left,
}

impl<'a> Loader<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Place), Fatal> {
        match self.events.next_event() {
            Some(Ok((event, span))) => Ok((event, place(&span))),
            Some(Err(error)) => {
                let marker = error.marker();
                let place = Place { line: marker.line(), column: marker.col() + 1 };
                Err((place, error.info().to_owned()))
            }
            None => Ok((Event::StreamEnd, Place { line: 1, column: 1 })),
        }
    }

    fn node(&mut self, event: Event<'a>, place: Place, depth: usize) -> Result<Node, Fatal> {
        if depth >= MAX_DEPTH {
            return Err((place, too_deep()));
        }
        self.left.take(1, place)?;
        let (anchor, value) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let is_text = tag.is_some_and(|tag| tag.suffix == "str") || style != ScalarStyle::Plain;
                (anchor, if is_text { Value::Text(text.into_owned()) } else { plain(text) })
            }
            Event::SequenceStart(anchor, _) => (anchor, Value::List(self.list(depth)?)),
            Event::MappingStart(anchor, _) => (anchor, Value::Table(self.table(depth)?)),
            Event::Alias(id) => {
                let found =
                    self.anchors.iter().find(|(anchor, _)| *anchor == id).map(|(_, node)| node.clone());
                let mut node =
                    found.ok_or((place, "an alias of nothing that stands before it".to_owned()))?;
                self.left.take(size(&node), place)?;
                node.place = place;
                return Ok(node);
            }
            _ => return Err((place, "no value".to_owned())),
        };
        let node = Node { place, value };
        if anchor > 0 {
            self.anchors.push((anchor, node.clone()));
        }
        Ok(node)
    }

    fn list(&mut self, depth: usize) -> Result<Vec<Node>, Fatal> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(items),
                (event, place) => items.push(self.node(event, place, depth + 1)?),
            }
        }
    }

    fn table(&mut self, depth: usize) -> Result<Vec<Entry>, Fatal> {
        let mut entries = Vec::new();
        loop {
            let key = match self.next()? {
                (Event::MappingEnd, _) => return Ok(entries),
                (event, place) => self.node(event, place, depth + 1)?,
            };
            let name = match key.value {
                Value::Text(text) => text,
                Value::Integer(number) => number.to_string(),
                Value::Float(number) => number.to_string(),
                Value::Bool(is) => is.to_string(),
                _ => return Err((key.place, "a key that is no text".to_owned())),
            };
            let (event, place) = self.next()?;
            let node = self.node(event, place, depth + 1)?;
            add(&mut entries, name, key.place, node)?;
        }
    }
}

/// How many values a node counts for.
pub(super) fn size(node: &Node) -> usize {
    1 + match &node.value {
        Value::List(items) => items.iter().map(size).sum(),
        Value::Table(entries) => entries.iter().map(|entry| size(&entry.node) + entry.key.len() / 64).sum(),
        Value::Text(text) => text.len() / 64,
        _ => 0,
    }
}

fn place(span: &Span) -> Place {
    Place { line: span.start.line(), column: span.start.col() + 1 }
}

/// A scalar without quotes, by the core schema of YAML 1.2.
fn plain(text: Cow<'_, str>) -> Value {
    match text.as_ref() {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    let number = text.bytes().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte));
    match (text.parse(), text.parse::<f64>()) {
        (Ok(whole), _) => Value::Integer(whole),
        (_, Ok(float)) if number => Value::Float(float),
        _ => Value::Text(text.into_owned()),
    }
}

fn too_deep() -> String {
    format!("nested more than {MAX_DEPTH} deep")
}
