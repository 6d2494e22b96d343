//! YAML (and JSON, its subset) as a tree in which every node knows its place in the file.
//!
//! Messages made here never quote a value, since credential files are read with this, too.

use std::borrow::Cow;
use std::fmt;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Number;
use serde_saphyr::options::MergeKeyPolicy;
use serde_saphyr::{Location, RenderOptions, SnippetMode, Spanned, UserMessageFormatter};

use super::problem::{Position, Problem};

/// Deepest nesting of a document: a route needs nine levels, and each costs stack.
const MAX_DEPTH: usize = 24;
/// Most nodes of a file: a route of 5,000 connections has some 30,000.
const MAX_NODES: usize = 2_000_000;
/// Most nodes that aliases may add.
const MAX_ALIASED_NODES: usize = 100_000;

/// A value with its place. It may hold a secret, so it has no `Debug`.
pub(crate) struct Node {
    /// Where the value begins.
    pub(crate) position: Position,
    /// The value.
    pub(crate) value: Value,
}

/// A value of the YAML core schema with string keys.
pub(crate) enum Value {
    Null,
    Bool(bool),
    Number(Number),
    String(String),
    Sequence(Vec<Node>),
    Mapping(Vec<Entry>),
}

/// A key and its value.
pub(crate) struct Entry {
    /// The key.
    pub(crate) key: String,
    /// Where the key begins.
    pub(crate) position: Position,
    /// The value.
    pub(crate) node: Node,
}

/// The documents of a file; empty ones are skipped.
pub(crate) fn parse(file: &Path, text: &str) -> Result<Vec<Node>, Problem> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            flow_nesting_limit: MAX_DEPTH,
            max_nodes: MAX_NODES,
            max_events: 2 * MAX_NODES,
            max_recorded_anchor_events: MAX_ALIASED_NODES,
            max_documents: 100_000,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: MAX_ALIASED_NODES,
        },
        merge_keys: MergeKeyPolicy::Error,
        // Of YAML 1.2: a `password: no` stays the text it looks like.
        strict_booleans: true,
    };
    serde_saphyr::from_multiple_with_options::<Node>(text, options)
        .map(|documents| {
            documents
                .into_iter()
                .filter(|node| !matches!(node.value, Value::Null))
                .collect()
        })
        .map_err(|error| {
            let error = error.without_snippet();
            // The library's text ends with the place, which the problem says in its own way.
            let mut options = RenderOptions::new(&UserMessageFormatter);
            options.snippets = SnippetMode::Off;
            let message = error.render_with_options(options);
            let message = message
                .rsplit_once(" at line ")
                .map_or(message.as_str(), |(message, _)| message);
            Problem::error(file, message).at(error.location().and_then(position))
        })
}

fn position(location: Location) -> Option<Position> {
    let line = u32::try_from(location.line())
        .ok()
        .filter(|line| *line > 0)?;
    let column = u32::try_from(location.column()).unwrap_or(1);
    Some(Position { line, column })
}

impl Node {
    /// The value of a mapping's key.
    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        self.entries()
            .iter()
            .find(|entry| entry.key == key)
            .map(|entry| &entry.node)
    }

    /// The value of a mapping's key, if it is a string.
    pub(crate) fn get_str(&self, key: &str) -> Option<&str> {
        self.get(key)?.as_str()
    }

    /// The entries, if it is a mapping.
    pub(crate) fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Mapping(entries) => entries,
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Sequence(_) => &[],
        }
    }

    /// The text, if it is a string.
    pub(crate) fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::String(text) => Some(text),
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::Sequence(_)
            | Value::Mapping(_) => None,
        }
    }

    /// What kind of value it is, for messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self.value {
            Value::Null => "nothing",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::String(_) => "a string",
            Value::Sequence(_) => "a list",
            Value::Mapping(_) => "a mapping",
        }
    }

    /// The value without the places.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        match &self.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(value) => (*value).into(),
            Value::Number(value) => value.clone().into(),
            Value::String(value) => value.as_str().into(),
            Value::Sequence(nodes) => nodes.iter().map(Node::to_json).collect(),
            Value::Mapping(entries) => entries
                .iter()
                .map(|entry| (entry.key.clone(), entry.node.to_json()))
                .collect(),
        }
    }

    /// Where a field such as `spec.connections[2].tenant` is; of a field that is missing, its nearest parent.
    pub(crate) fn locate(&self, field: &str) -> Position {
        let (mut node, mut found, mut rest) = (self, self.position, field);
        while !rest.is_empty() {
            let Some((position, child, remainder)) = node.step(rest) else {
                break;
            };
            (node, found, rest) = (child, position, remainder);
        }
        found
    }

    /// One step along a field path. Keys may hold dots: the longest one that fits is meant.
    fn step<'a, 'f>(&'a self, path: &'f str) -> Option<(Position, &'a Node, &'f str)> {
        if let Some(path) = path.strip_prefix('[') {
            let (index, rest) = path.split_once(']')?;
            let Value::Sequence(nodes) = &self.value else {
                return None;
            };
            let node = nodes.get(index.parse::<usize>().ok()?)?;
            return Some((node.position, node, rest));
        }
        let path = path.strip_prefix('.').unwrap_or(path);
        self.entries()
            .iter()
            .filter_map(|entry| {
                let rest = path.strip_prefix(entry.key.as_str())?;
                (rest.is_empty() || rest.starts_with(['.', '['])).then_some((entry, rest))
            })
            .max_by_key(|(entry, _)| entry.key.len())
            .map(|(entry, rest)| (entry.position, &entry.node, rest))
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Spanned {
            value, referenced, ..
        } = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self {
            position: known(referenced),
            value,
        })
    }
}

fn known(location: Location) -> Position {
    position(location).unwrap_or(Position { line: 1, column: 1 })
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom("a number that is not finite; use a finite one"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.into()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Value, A::Error> {
        let mut nodes = Vec::new();
        while let Some(node) = sequence.next_element()? {
            nodes.push(node);
        }
        Ok(Value::Sequence(nodes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key::<Spanned<Cow<'de, str>>>()? {
            entries.push(Entry {
                position: known(key.referenced),
                key: key.value.into_owned(),
                node: map.next_value()?,
            });
        }
        Ok(Value::Mapping(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(text: &str) -> Node {
        let mut documents = parse(Path::new("f"), text).unwrap();
        assert_eq!(documents.len(), 1);
        documents.remove(0)
    }

    fn refused(text: &str) -> Problem {
        parse(Path::new("f"), text).err().unwrap()
    }

    fn place(node: &Node, field: &str) -> (u32, u32) {
        let Position { line, column } = node.locate(field);
        (line, column)
    }

    #[test]
    fn a_field_is_found_where_its_key_stands() {
        let node = document(
            "spec:\n  upstream:\n    url: x\n  list:\n    - a: 1\n    - a: 2\n  headers:\n    a.b: c\n    a: d\n",
        );
        assert_eq!(place(&node, "spec.upstream"), (2, 3));
        assert_eq!(place(&node, "spec.upstream.url"), (3, 5));
        assert_eq!(place(&node, "spec.list[1].a"), (6, 7));
        assert_eq!(place(&node, "spec.headers.a.b"), (8, 5));
        assert_eq!(place(&node, "spec.upstream.missing.more"), (2, 3));
        assert_eq!(place(&node, "spec.list[7]"), (4, 3));
    }

    #[test]
    fn json_is_read_too_also_with_tabs() {
        let node =
            document("{\n\t\"spec\": {\n\t\t\"n\": [1, -2, 2.5, true, null, \"s\"]\n\t}\n}\n");
        assert_eq!(place(&node, "spec.n[1]").0, 3);
        assert_eq!(
            node.to_json(),
            serde_json::json!({"spec": {"n": [1, -2, 2.5, true, null, "s"]}})
        );
    }

    #[test]
    fn only_core_schema_booleans_are_booleans_and_quoted_numbers_are_strings() {
        let node = document("a: no\nb: \"22\"\nc: '2022-11-28'\nd: true\ne: 10s\nf: 2022-11-28\n");
        assert_eq!(
            node.to_json(),
            serde_json::json!({"a": "no", "b": "22", "c": "2022-11-28", "d": true, "e": "10s", "f": "2022-11-28"})
        );
    }

    #[test]
    fn empty_documents_are_skipped() {
        let documents = parse(Path::new("f"), "---\n# only a comment\n---\na: 1\n---\n").unwrap();
        assert_eq!(documents.len(), 1);
        assert!(parse(Path::new("f"), "").unwrap().is_empty());
    }

    #[test]
    fn a_syntax_error_says_where_and_does_not_quote_the_line() {
        let problem = refused("a: 1\nb: \"sEcReT\n");
        assert!(problem.position.is_some_and(|at| at.line >= 2), "{problem}");
        assert!(!problem.to_string().contains("sEcReT"), "{problem}");
        let problem = refused("a: 1\nb: [sEcReT: x: y\n");
        assert!(!problem.to_string().contains("sEcReT"), "{problem}");
    }

    #[test]
    fn a_key_given_twice_is_refused() {
        let problem = refused("a: 1\nb: 2\na: 3\n");
        assert_eq!(problem.position.unwrap().line, 3);
    }

    #[test]
    fn depth_is_limited() {
        refused(&format!("{}{}", "[".repeat(100), "]".repeat(100)));
        let deep: Vec<String> = (0..100).map(|n| format!("{}a:", " ".repeat(n))).collect();
        refused(&deep.join("\n"));
    }

    #[test]
    fn an_alias_bomb_is_refused() {
        let level = |n: usize| {
            let item = n.checked_sub(1).map_or("x".into(), |n| format!("*a{n}"));
            format!("a{n}: &a{n} [{}]", vec![item; 9].join(","))
        };
        let bomb: Vec<String> = (0..10).map(level).collect();
        refused(&bomb.join("\n"));
    }

    #[test]
    fn few_aliases_are_fine() {
        let node = document("a: &x {b: 1}\nc: *x\n");
        assert_eq!(node.to_json()["c"]["b"], 1);
    }
}
