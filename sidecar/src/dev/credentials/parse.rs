//! Text of a credentials file to [`Credential`]s.
//!
//! The tree is walked by hand rather than deserialized, since a deserializer's messages quote values.

use std::path::Path;

use jiff::Timestamp;
use nexus_crds::names::{is_provider, is_tenant};
use nexus_crds::strategy::StrategySpec;
use serde_json::{Map, Value as Json};

use super::{Credential, Field, Owner, Source};
use crate::manifest::problem::{Position, Problem};
use crate::manifest::yaml::{self, Entry, Node, Value};

/// Reads the text of a credentials file. Files it names are relative to its directory.
pub(crate) fn parse(file: &Path, text: &str) -> Result<Vec<Credential>, Vec<Problem>> {
    let mut documents = yaml::parse(file, text).map_err(|problem| vec![problem])?;
    let mut parser = Parser {
        file,
        problems: Vec::new(),
    };
    let document = match documents.len() {
        1 => documents.remove(0),
        0 => {
            return Err(vec![Problem::error(
                file,
                "no credentials; write `credentials: {...}`",
            )]);
        }
        _ => return Err(vec![Problem::error(file, "several documents; write one")]),
    };
    let credentials = parser.document(document);
    if parser.problems.is_empty() {
        Ok(credentials)
    } else {
        Err(parser.problems)
    }
}

struct Parser<'a> {
    file: &'a Path,
    problems: Vec<Problem>,
}

impl Parser<'_> {
    fn problem(&mut self, position: Position, field: &str, message: impl Into<String>) {
        self.problems
            .push(Problem::error(self.file, message).at(position).field(field));
    }

    fn document(&mut self, document: Node) -> Vec<Credential> {
        let mut credentials = Vec::new();
        let position = document.position;
        let Some(entries) = self.mapping(document, "") else {
            return credentials;
        };
        if !entries.iter().any(|entry| entry.key == "credentials") {
            self.problem(position, "credentials", "missing");
        }
        for entry in entries {
            if entry.key != "credentials" {
                self.problem(
                    entry.position,
                    &entry.key,
                    "unknown field; the file has one, `credentials`",
                );
                continue;
            }
            for entry in self.mapping(entry.node, "credentials").unwrap_or_default() {
                credentials.extend(self.credential(entry));
            }
        }
        credentials
    }

    fn mapping(&mut self, node: Node, field: &str) -> Option<Vec<Entry>> {
        let (position, kind) = (node.position, node.kind());
        if let Value::Mapping(entries) = node.value {
            return Some(entries);
        }
        self.problem(position, field, format!("must be a mapping, is {kind}"));
        None
    }

    fn credential(&mut self, entry: Entry) -> Option<Credential> {
        let Entry {
            key,
            position,
            node,
        } = entry;
        let path = format!("credentials.{key}");
        let owner = owner(&key);
        if owner.is_none() {
            self.problem(
                position,
                &path,
                "the key must be a provider (`github`), `provider@tenant`, or a connection id (a UUID)",
            );
        }
        let (mut fields, mut strategy, mut expires_at) = (Vec::new(), None, None);
        for entry in self.mapping(node, &path)? {
            let path = format!("{path}.{}", entry.key);
            match entry.key.as_str() {
                "strategy" => strategy = self.strategy(&entry.node, &path),
                "expires_at" => expires_at = self.expires_at(&entry.node, &path),
                _ => fields.extend(self.field(entry, &path)),
            }
        }
        if fields.is_empty() && self.problems.is_empty() {
            self.problem(
                position,
                &path,
                "no fields; write for example `access_token: {env: GITHUB_TOKEN}`",
            );
        }
        Some(Credential {
            key,
            position,
            owner: owner?,
            fields,
            strategy,
            expires_at,
        })
    }

    fn field(&mut self, entry: Entry, path: &str) -> Option<Field> {
        let Entry {
            key,
            position,
            node,
        } = entry;
        let source = match node.value {
            Value::String(text) if text.is_empty() => {
                self.problem(position, path, "empty");
                return None;
            }
            Value::String(text) => Source::Literal(text.into()),
            Value::Mapping(entries) => self.reference(&entries, position, path)?,
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Sequence(_) => {
                let kind = node.kind();
                let message = format!(
                    "must be a string in quotes, `{{env: NAME}}` or `{{file: PATH}}`, is {kind}"
                );
                self.problem(position, path, message);
                return None;
            }
        };
        Some(Field {
            name: key,
            position,
            source,
        })
    }

    fn reference(&mut self, entries: &[Entry], at: Position, path: &str) -> Option<Source> {
        if let [entry] = entries
            && let Some(text) = entry.node.as_str().filter(|text| !text.is_empty())
        {
            match entry.key.as_str() {
                "env" => return Some(Source::Variable(text.to_owned())),
                "file" => {
                    let directory = self.file.parent().unwrap_or(Path::new(""));
                    return Some(Source::File(directory.join(text)));
                }
                _ => {}
            }
        }
        self.problem(at, path, "must be `{env: NAME}` or `{file: PATH}`");
        None
    }

    fn strategy(&mut self, node: &Node, path: &str) -> Option<StrategySpec> {
        let known = node
            .entries()
            .iter()
            .all(|entry| matches!(entry.key.as_str(), "type" | "config"));
        let config = match node.get("config") {
            None => Some(Map::new()),
            Some(config) => match config.to_json() {
                Json::Object(config) => Some(config),
                Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) | Json::Array(_) => {
                    None
                }
            },
        };
        let (Some(kind), Some(config), true) = (node.get_str("type"), config, known) else {
            let message = "must be `{type: NAME}` or `{type: NAME, config: {...}}`";
            self.problem(node.position, path, message);
            return None;
        };
        Some(StrategySpec {
            kind: kind.to_owned(),
            config,
        })
    }

    fn expires_at(&mut self, node: &Node, path: &str) -> Option<Timestamp> {
        let time = match &node.value {
            Value::String(text) => text.parse().ok(),
            Value::Number(seconds) => seconds
                .as_i64()
                .and_then(|seconds| Timestamp::from_second(seconds).ok()),
            Value::Null | Value::Bool(_) | Value::Sequence(_) | Value::Mapping(_) => None,
        };
        if time.is_none() {
            let message = "must be a time like 2026-05-05T12:00:00Z or Unix seconds";
            self.problem(node.position, path, message);
        }
        time
    }
}

fn owner(key: &str) -> Option<Owner> {
    if let Ok(id) = key.parse() {
        return Some(Owner::Connection(id));
    }
    let (provider, tenant) = match key.split_once('@') {
        Some((provider, tenant)) => (provider, Some(tenant)),
        None => (key, None),
    };
    let valid = is_provider(provider) && tenant.is_none_or(|it| it == "*" || is_tenant(it));
    valid.then(|| Owner::Provider {
        provider: provider.to_owned(),
        tenant: tenant.map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Credential {
        parse(Path::new("c.yaml"), text).unwrap().remove(0)
    }

    fn refused(text: &str) -> Vec<String> {
        parse(Path::new("c.yaml"), text)
            .unwrap_err()
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn keys_are_providers_tenants_of_providers_or_connection_ids() {
        let owner_of = |key: &str| one(&format!("credentials: {{'{key}': {{a: b}}}}")).owner;
        let provider = |provider: &str, tenant: Option<&str>| Owner::Provider {
            provider: provider.into(),
            tenant: tenant.map(Into::into),
        };
        assert_eq!(owner_of("github"), provider("github", None));
        assert_eq!(owner_of("github@t_1"), provider("github", Some("t_1")));
        assert_eq!(owner_of("github@*"), provider("github", Some("*")));
        assert!(matches!(
            owner_of("7D6F3C1E-0000-4000-8000-000000000001"),
            Owner::Connection(_)
        ));
        assert!(refused("credentials: {'No Provider': {a: b}}")[0].contains("provider@tenant"));
    }

    #[test]
    fn each_mistake_has_its_line_and_field_and_no_value() {
        let all = refused(
            "credentials:\n  a: {k: 5}\n  b: {k: {evn: SEKRIT}}\n  c: {k: v, strategy: SEKRIT}\n  d: {k: v, expires_at: SEKRIT}\n  e: SEKRIT\nmore: 1\n",
        );
        let starts = [
            "c.yaml:2:7: credentials.a.k: ",
            "c.yaml:3:7: credentials.b.k: ",
            "c.yaml:4:23: credentials.c.strategy: ",
            "c.yaml:5:25: credentials.d.expires_at: ",
            "c.yaml:6:6: credentials.e: ",
            "c.yaml:7:1: more: ",
        ];
        assert_eq!(all.len(), starts.len(), "{all:#?}");
        for (problem, start) in all.iter().zip(starts) {
            assert!(problem.starts_with(start), "{problem}");
            assert!(!problem.contains("SEKRIT"), "{problem}");
        }
    }
}
