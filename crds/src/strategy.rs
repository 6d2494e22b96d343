//! How a credential is put on a request: the words of the Nexus protocol, parsed into types.
//!
//! A [`StrategySpec`] is what a document says (a route, or the control plane); a [`Strategy`] is what the
//! sidecar can apply. Neither holds a secret, only the names of credential fields.

use std::borrow::Cow;
use std::collections::HashSet;

use http::{HeaderName, HeaderValue};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::header::is_reserved;

/// A strategy as written in a document: `{"type": ..., "config": {...}}`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StrategySpec {
    /// The scheme, e.g. `oauth2`, `header`, `aws_sigv4`.
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 64))]
    pub kind: String,
    /// The scheme's settings; all values are strings but `set`, a JSON array.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    #[schemars(schema_with = "any_object")]
    pub config: Map<String, Value>,
}

/// The settings differ by type, so the API server keeps them as they are and `compile` judges them.
fn any_object(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

/// A strategy that can be applied.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Strategy {
    /// `Authorization: Bearer <access_token>`.
    Oauth2,
    /// One header or several, each set from a credential field (`header`, and its alias `api_key`).
    Header(Vec<HeaderPart>),
    /// One query parameter or several, each set from a credential field.
    QueryParam(Vec<ParamPart>),
    /// `Authorization: Basic` (RFC 7617).
    BasicAuth {
        /// Where the user name comes from.
        username: Username,
        /// Credential field that holds the password.
        password_field: String,
    },
    /// HMAC of the body bytes in a header.
    HmacPayload {
        /// Header that carries the signature.
        header_name: HeaderName,
        /// Credential field that holds the key.
        secret_field: String,
        /// Hash function.
        algorithm: HmacAlgorithm,
        /// How the signature is written.
        encoding: HmacEncoding,
    },
    /// AWS Signature Version 4.
    AwsSigv4 {
        /// Service name of the credential scope, e.g. `s3`.
        service: String,
        /// Region of the credential scope; `None` leaves it to the host name.
        region: Option<String>,
    },
}

/// One header of a `header` strategy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HeaderPart {
    /// Header to set.
    pub name: HeaderName,
    /// Credential field that holds the value.
    pub credential_field: String,
    /// Put before the value, literally.
    pub value_prefix: String,
}

/// One parameter of a `query_param` strategy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ParamPart {
    /// Parameter name, before encoding.
    pub name: String,
    /// Credential field that holds the value.
    pub credential_field: String,
}

/// Where the user name of a `basic_auth` strategy comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Username {
    /// A credential field.
    Field(String),
    /// Written in the strategy, e.g. `x-access-token`.
    Literal(String),
}

/// Hash function of an `hmac_payload` strategy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HmacAlgorithm {
    /// HMAC-SHA-256.
    Sha256,
    /// HMAC-SHA-1.
    Sha1,
}

/// How the signature of an `hmac_payload` strategy is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HmacEncoding {
    /// Lower-case hexadecimal.
    Hex,
    /// Base64 with padding (RFC 4648 section 4).
    Base64,
}

/// Why a strategy cannot be applied. Carries names from the document, never a credential's value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StrategyError {
    /// The scheme is not one we know.
    #[error("strategy type {0:?} is not known")]
    UnknownType(String),
    /// The scheme is known and comes with a later version.
    #[error("strategy type {0:?} is not supported by this version")]
    Unsupported(String),
    /// A setting is missing, of the wrong kind or out of range.
    #[error("config.{field}: {reason}")]
    Config {
        /// The setting's name.
        field: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// The route asks for a presentation that the delivered credential cannot have.
    #[error("the route presents the credential as {route}, the control plane delivers {delivered}")]
    Mismatch {
        /// Type in the route.
        route: String,
        /// Type delivered.
        delivered: String,
    },
}

/// The scheme's name in a document, with `api_key` read as its other spelling `header`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Oauth2,
    Header,
    QueryParam,
    BasicAuth,
    HmacPayload,
    AwsSigv4,
    /// Named by the protocol, built by a later version.
    Later,
}

impl Kind {
    fn named(name: &str) -> Result<Self, StrategyError> {
        Ok(match name {
            "oauth2" => Self::Oauth2,
            "header" | "api_key" => Self::Header,
            "query_param" => Self::QueryParam,
            "basic_auth" => Self::BasicAuth,
            "hmac_payload" => Self::HmacPayload,
            "aws_sigv4" => Self::AwsSigv4,
            "dpop" | "oauth1" | "mtls" | "hmac_template" | "path" => Self::Later,
            unknown => return Err(StrategyError::UnknownType(unknown.to_owned())),
        })
    }
}

/// The settings that a type knows; `None` where a later version says.
pub(crate) fn settings(kind: &str) -> Option<&'static [&'static str]> {
    Some(match Kind::named(kind).ok()? {
        Kind::Oauth2 => &[],
        Kind::Header => &["header_name", "credential_field", "value_prefix", "set"],
        Kind::QueryParam => &["param_name", "credential_field", "set"],
        Kind::BasicAuth => &["username", "username_field", "password_field"],
        Kind::HmacPayload => &["header_name", "secret_field", "algo", "encoding"],
        Kind::AwsSigv4 => &["service", "region"],
        Kind::Later => return None,
    })
}

impl Strategy {
    /// Parses a strategy with the defaults of the protocol.
    pub fn parse(spec: &StrategySpec) -> Result<Self, StrategyError> {
        parse_as(spec, Defaults::PROTOCOL)
    }

    /// The strategy that applies when a route says how to present what the control plane delivers.
    ///
    /// An `oauth2` credential may be presented as `header` or `basic_auth` (its `credential_field` or
    /// `password_field` then defaults to `access_token`); any other difference of type is an error. Where the types are equal, the route's
    /// config wins key by key, except `region`, where the delivered one does.
    pub fn effective(
        route: Option<&StrategySpec>,
        delivered: &StrategySpec,
    ) -> Result<Self, StrategyError> {
        let Some(route) = route else {
            return Self::parse(delivered);
        };
        let (ours, theirs) = (Kind::named(&route.kind)?, Kind::named(&delivered.kind)?);
        let same = ours == theirs && (ours != Kind::Later || route.kind == delivered.kind);
        if same {
            return Self::parse(&merge(route, delivered));
        }
        match (ours, theirs) {
            (Kind::Header | Kind::BasicAuth, Kind::Oauth2) => parse_as(route, Defaults::OAUTH2),
            (Kind::Later, Kind::Oauth2) => Err(StrategyError::Unsupported(route.kind.clone())),
            (
                Kind::Oauth2
                | Kind::Header
                | Kind::QueryParam
                | Kind::BasicAuth
                | Kind::HmacPayload
                | Kind::AwsSigv4
                | Kind::Later,
                _,
            ) => Err(StrategyError::Mismatch {
                route: route.kind.clone(),
                delivered: delivered.kind.clone(),
            }),
        }
    }
}

/// Settings of which a document has one or the other: naming one takes the place of the other.
const ALTERNATIVES: [(&str, &[&str]); 2] = [
    (
        "set",
        &[
            "header_name",
            "param_name",
            "credential_field",
            "value_prefix",
        ],
    ),
    ("username", &["username_field"]),
];

fn merge(route: &StrategySpec, delivered: &StrategySpec) -> StrategySpec {
    let mut config = delivered.config.clone();
    for (key, value) in &route.config {
        if key == "region" && config.contains_key(key) {
            continue;
        }
        for (one, others) in ALTERNATIVES {
            if key == one {
                others.iter().for_each(|other| drop(config.remove(*other)));
            } else if others.contains(&key.as_str()) {
                config.remove(one);
            }
        }
        config.insert(key.clone(), value.clone());
    }
    StrategySpec {
        kind: delivered.kind.clone(),
        config,
    }
}

/// Credential fields that are meant where a document names none.
#[derive(Clone, Copy)]
struct Defaults {
    value: &'static str,
    password: &'static str,
}

impl Defaults {
    const PROTOCOL: Self = Self {
        value: "api_key",
        password: "password",
    };
    const OAUTH2: Self = Self {
        value: "access_token",
        password: "access_token",
    };
}

fn parse_as(spec: &StrategySpec, defaults: Defaults) -> Result<Strategy, StrategyError> {
    let kind = Kind::named(&spec.kind)?;
    let config = Config::new(&spec.config)?;
    Ok(match kind {
        Kind::Oauth2 => Strategy::Oauth2,
        Kind::Header => Strategy::Header(header_parts(&config, defaults)?),
        Kind::QueryParam => Strategy::QueryParam(param_parts(&config, defaults)?),
        Kind::BasicAuth => Strategy::BasicAuth {
            username: match config.text("username")? {
                Some(literal) => Username::Literal(user_name(literal)?),
                None => Username::Field(config.field("username_field", "username")?),
            },
            password_field: config.field("password_field", defaults.password)?,
        },
        Kind::HmacPayload => Strategy::HmacPayload {
            header_name: header_name("header_name", config.required("header_name")?)?,
            secret_field: config.field("secret_field", "api_secret")?,
            algorithm: match config.text("algo")?.unwrap_or("sha256") {
                "sha256" => HmacAlgorithm::Sha256,
                "sha1" => HmacAlgorithm::Sha1,
                other => return Err(one_of("algo", other, "sha256, sha1")),
            },
            encoding: match config.text("encoding")?.unwrap_or("hex") {
                "hex" => HmacEncoding::Hex,
                "base64" => HmacEncoding::Base64,
                other => return Err(one_of("encoding", other, "hex, base64")),
            },
        },
        Kind::AwsSigv4 => Strategy::AwsSigv4 {
            service: scope_part("service", config.required("service")?)?,
            region: config
                .text("region")?
                .filter(|region| !region.is_empty())
                .map(|region| scope_part("region", region))
                .transpose()?,
        },
        Kind::Later => return Err(StrategyError::Unsupported(spec.kind.clone())),
    })
}

fn header_parts(config: &Config<'_>, defaults: Defaults) -> Result<Vec<HeaderPart>, StrategyError> {
    let part = |config: &Config<'_>, key: &str, default: Option<&str>| {
        let name = match default {
            Some(default) => config.text(key)?.unwrap_or(default),
            None => config.required(key)?,
        };
        let value_prefix = config.text("value_prefix")?.unwrap_or_default();
        if HeaderValue::from_str(value_prefix).is_err() {
            return Err(invalid(
                "value_prefix",
                "has a character that a header value cannot have",
            ));
        }
        Ok(HeaderPart {
            name: header_name(key, name)?,
            credential_field: config.field("credential_field", defaults.value)?,
            value_prefix: value_prefix.to_owned(),
        })
    };
    let Some(set) = config.set(&["header_name", "credential_field", "value_prefix"])? else {
        return Ok(vec![part(config, "header_name", Some("Authorization"))?]);
    };
    let parts = each_of(&set, |entry| part(entry, "name", None))?;
    distinct(parts.iter().map(|part| part.name.as_str()))?;
    Ok(parts)
}

fn param_parts(config: &Config<'_>, defaults: Defaults) -> Result<Vec<ParamPart>, StrategyError> {
    let part = |config: &Config<'_>, key: &str| {
        Ok(ParamPart {
            name: config.required(key)?.to_owned(),
            credential_field: config.field("credential_field", defaults.value)?,
        })
    };
    let Some(set) = config.set(&["param_name", "credential_field"])? else {
        return Ok(vec![part(config, "param_name")?]);
    };
    let parts = each_of(&set, |entry| part(entry, "name"))?;
    distinct(parts.iter().map(|part| part.name.as_str()))?;
    Ok(parts)
}

/// Parses the entries of `set`, naming the entry in an error.
fn each_of<T>(
    set: &[Value],
    parse: impl Fn(&Config<'_>) -> Result<T, StrategyError>,
) -> Result<Vec<T>, StrategyError> {
    let entry = |(index, value): (usize, &Value)| {
        let Value::Object(entry) = value else {
            return Err(invalid(&format!("set[{index}]"), "must be an object"));
        };
        Config::new(entry)
            .and_then(|config| parse(&config))
            .map_err(|error| match error {
                StrategyError::Config { field, reason } => StrategyError::Config {
                    field: format!("set[{index}].{field}"),
                    reason,
                },
                other @ (StrategyError::UnknownType(_)
                | StrategyError::Unsupported(_)
                | StrategyError::Mismatch { .. }) => other,
            })
    };
    set.iter().enumerate().map(entry).collect()
}

fn distinct<'a>(names: impl Iterator<Item = &'a str>) -> Result<(), StrategyError> {
    let mut seen = HashSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(invalid("set", &format!("{name:?} is set twice")));
        }
    }
    Ok(())
}

/// Settings of a strategy, known to be strings but for `set`.
struct Config<'a>(&'a Map<String, Value>);

impl<'a> Config<'a> {
    fn new(settings: &'a Map<String, Value>) -> Result<Self, StrategyError> {
        let odd = settings
            .iter()
            .find(|(key, value)| key.as_str() != "set" && !value.is_string());
        match odd {
            Some((key, _)) => Err(invalid(key, "must be a string")),
            None => Ok(Self(settings)),
        }
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>, StrategyError> {
        match self.0.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(invalid(key, "must be a string")),
        }
    }

    fn required(&self, key: &str) -> Result<&'a str, StrategyError> {
        match self.text(key)? {
            Some("") => Err(invalid(key, "must not be empty")),
            Some(text) => Ok(text),
            None => Err(invalid(key, "is required")),
        }
    }

    /// Name of a credential field.
    fn field(&self, key: &str, default: &str) -> Result<String, StrategyError> {
        match self.text(key)? {
            Some("") => Err(invalid(key, "must not be empty")),
            Some(text) => Ok(text.to_owned()),
            None => Ok(default.to_owned()),
        }
    }

    /// The entries of `set`, which takes the place of the settings in `instead_of`.
    fn set(&self, instead_of: &[&str]) -> Result<Option<Cow<'a, [Value]>>, StrategyError> {
        let entries: Cow<'a, [Value]> = match self.0.get("set") {
            None => return Ok(None),
            Some(Value::Array(entries)) => Cow::Borrowed(entries),
            Some(Value::String(text)) => match serde_json::from_str(text) {
                Ok(Value::Array(entries)) => Cow::Owned(entries),
                Ok(_) | Err(_) => return Err(invalid("set", "does not hold a JSON array")),
            },
            Some(_) => return Err(invalid("set", "must be a JSON array")),
        };
        if entries.is_empty() {
            return Err(invalid("set", "must have at least one entry"));
        }
        if let Some(both) = instead_of.iter().find(|key| self.0.contains_key(**key)) {
            return Err(invalid(both, "cannot be combined with set"));
        }
        Ok(Some(entries))
    }
}

fn header_name(field: &str, name: &str) -> Result<HeaderName, StrategyError> {
    let name = HeaderName::try_from(name)
        .map_err(|_| invalid(field, &format!("{name:?} is not a header name")))?;
    if is_reserved(&name) {
        let reason = format!("{name} belongs to the connection or to the sidecar, no credential");
        return Err(invalid(field, &reason));
    }
    Ok(name)
}

/// RFC 7617 section 2: a user name has no colon, neither part has control characters.
fn user_name(name: &str) -> Result<String, StrategyError> {
    if name.is_empty() || name.contains(|c: char| c == ':' || c.is_control()) {
        let reason = "must not be empty or have a colon or control characters";
        return Err(invalid("username", reason));
    }
    Ok(name.to_owned())
}

fn scope_part(field: &str, text: &str) -> Result<String, StrategyError> {
    let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if !text.bytes().all(word) {
        return Err(invalid(field, "may have letters, digits, `-`, `_` and `.`"));
    }
    Ok(text.to_owned())
}

fn one_of(field: &str, found: &str, known: &str) -> StrategyError {
    invalid(field, &format!("{found:?} is not one of {known}"))
}

fn invalid(field: &str, reason: &str) -> StrategyError {
    StrategyError::Config {
        field: field.to_owned(),
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests;
