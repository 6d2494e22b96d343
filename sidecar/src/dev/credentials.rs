//! The credentials file of `dev`: which secrets there are and where they come from.
//!
//! ```yaml
//! credentials:
//!   github: {access_token: {env: GITHUB_TOKEN}}
//! ```

mod parse;

use std::fmt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use nexus_crds::names::ConnectionId;
use nexus_crds::strategy::StrategySpec;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value as Json};
use uuid::Uuid;

pub(crate) use self::parse::parse;
use crate::manifest::problem::{Position, Problem};

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
    fn debug_shows_names_and_no_secret() {
        let credential = one("credentials: {p: {api_key: sEcReT}}");
        let shown = format!("{credential:?}");
        assert!(
            shown.contains("api_key") && !shown.contains("sEcReT"),
            "{shown}"
        );
    }
}
