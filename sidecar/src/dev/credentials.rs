//! The credentials file of `dev`: which secrets there are and where they come from.
//!
//! ```yaml
//! credentials:
//!   github: {access_token: {env: GITHUB_TOKEN}}
//! ```
//!
//! The tree is walked by hand rather than deserialized, since a deserializer's messages quote values.

use std::fmt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use nexus_crds::names::{ConnectionId, is_provider, is_tenant};
use nexus_crds::strategy::StrategySpec;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value as Json};
use uuid::Uuid;

use crate::manifest::problem::{Position, Problem};
use crate::manifest::yaml::{self, Entry, Node, Value};

/// Namespace of the connection ids that are derived from names; a random UUID, fixed for good.
const NAMESPACE: Uuid = Uuid::from_u128(0x3b0c_9c55_6f0e_4f0b_9a3d_52d8_1f6e_77c4);

/// A variable of the environment by name.
pub type Environment = fn(&str) -> Option<String>;

/// Whose credential an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// A connection that routes list.
    Connection(ConnectionId),
    /// The routes of a provider that list no connections. A tenant may be `*`.
    Provider {
        provider: String,
        tenant: Option<String>,
    },
}

/// Where a field's value comes from.
pub(crate) enum Source {
    /// The file itself.
    Literal(SecretString),
    /// An environment variable.
    Variable(String),
    /// A file, trimmed.
    File(PathBuf),
}

/// A credential field.
pub(crate) struct Field {
    pub(crate) name: String,
    pub(crate) position: Position,
    pub(crate) source: Source,
}

/// One credential.
pub(crate) struct Credential {
    /// The key as written.
    pub(crate) key: String,
    pub(crate) position: Position,
    pub(crate) owner: Owner,
    pub(crate) fields: Vec<Field>,
    pub(crate) strategy: Option<StrategySpec>,
    pub(crate) expires_at: Option<Timestamp>,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fields: Vec<&str> = self
            .fields
            .iter()
            .map(|field| field.name.as_str())
            .collect();
        f.debug_struct("Credential")
            .field("key", &self.key)
            .field("fields", &fields)
            .finish_non_exhaustive()
    }
}

impl Credential {
    /// The connection it is served under.
    pub(crate) fn connection(&self) -> ConnectionId {
        match &self.owner {
            Owner::Connection(id) => *id,
            Owner::Provider { .. } => Uuid::new_v5(&NAMESPACE, self.key.as_bytes()).into(),
        }
    }

    /// True if the entry has the field.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.fields.iter().any(|field| field.name == name)
    }

    /// The field path of the entry.
    pub(crate) fn path(&self) -> String {
        format!("credentials.{}", self.key)
    }

    /// Reads the values now.
    pub(crate) fn resolve(
        &self,
        file: &Path,
        environment: Environment,
    ) -> Result<Map<String, Json>, Vec<Problem>> {
        let (mut values, mut problems) = (Map::new(), Vec::new());
        for field in &self.fields {
            match field.source.read(environment) {
                Ok(value) => {
                    values.insert(field.name.clone(), value.expose_secret().into());
                }
                Err(message) => problems.push(
                    Problem::error(file, message)
                        .at(field.position)
                        .field(format!("{}.{}", self.path(), field.name)),
                ),
            }
        }
        if problems.is_empty() {
            Ok(values)
        } else {
            Err(problems)
        }
    }
}

impl Source {
    fn read(&self, environment: Environment) -> Result<SecretString, String> {
        let (value, origin) = match self {
            Self::Literal(value) => return Ok(value.clone()),
            Self::Variable(name) => {
                let value = environment(name).ok_or_else(|| {
                    format!("the environment variable {name} is not set; export it, or remove this credential")
                })?;
                (value, format!("the environment variable {name}"))
            }
            Self::File(path) => {
                let value = std::fs::read_to_string(path)
                    .map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
                (value.trim().to_owned(), path.display().to_string())
            }
        };
        if value.is_empty() {
            Err(format!("{origin} is empty"))
        } else {
            Ok(value.into())
        }
    }
}

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

    fn environment(name: &str) -> Option<String> {
        match name {
            "TOKEN" => Some("from-env".into()),
            "EMPTY" => Some(String::new()),
            _ => None,
        }
    }

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
    fn a_value_is_literal_or_comes_from_the_environment_or_a_file() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("key"), "from-file\n").unwrap();
        let file = dir.path().join("c.yaml");
        let text =
            "credentials: {p: {a: plain, b: {env: TOKEN}, c: {file: key}, expires_at: 1777982400}}";
        let credential = parse(&file, text).unwrap().remove(0);
        let values = credential.resolve(&file, environment).unwrap();
        assert_eq!(
            Json::Object(values),
            serde_json::json!({"a": "plain", "b": "from-env", "c": "from-file"})
        );
        assert_eq!(
            credential.expires_at.unwrap().to_string(),
            "2026-05-05T12:00:00Z"
        );
    }

    #[test]
    fn a_missing_variable_names_itself_its_field_and_its_line() {
        let credential = one("credentials:\n  github:\n    access_token: {env: NOPE}\n");
        let problems = credential.resolve(Path::new("c.yaml"), environment);
        let text = problems.unwrap_err()[0].to_string();
        assert!(
            text.starts_with("c.yaml:3:5: credentials.github.access_token: the environment variable NOPE is not set"),
            "{text}"
        );
        let credential = one("credentials: {p: {a: {env: EMPTY}}}");
        assert!(credential.resolve(Path::new("c"), environment).is_err());
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
    fn the_connection_of_a_key_never_changes() {
        assert_eq!(
            one("credentials: {github: {a: b}}")
                .connection()
                .to_string(),
            one("credentials: {github: {x: y}}")
                .connection()
                .to_string()
        );
        assert_ne!(
            one("credentials: {github: {a: b}}").connection(),
            one("credentials: {github@t: {a: b}}").connection()
        );
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

    #[test]
    fn debug_shows_names_and_no_secret() {
        let credential = one("credentials: {p: {api_key: sEcReT}}");
        let shown = format!("{credential:?}");
        assert!(
            shown.contains("api_key") && !shown.contains("sEcReT"),
            "{shown}"
        );
    }
}
